"""Text towers: any Hugging Face encoder, or a transformer from scratch. Padding never changes a feature.

Shapes: N texts, L tokens, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from cliplet.config import TextTowerConfig
from cliplet.errors import ModelError
from cliplet.models.sources import first_that_loads, resolve
from cliplet.models.tokenizers import huggingface_tokenizer
from cliplet.runtime.tokenizer import Tokenizer

Pooling = Literal["mean", "first", "last"]


def pool(states_NLW: torch.Tensor, mask_NL: torch.Tensor, how: Pooling) -> torch.Tensor:
    """Token states to one vector a text (N, W): the mean over real tokens, the first, or the last real one."""
    if how == "first":
        return states_NLW[:, 0]
    if how == "last":
        last = mask_NL.sum(1).clamp(min=1) - 1
        return states_NLW[torch.arange(len(last), device=last.device), last]
    weight = mask_NL.unsqueeze(-1).to(states_NLW.dtype)
    return (states_NLW * weight).sum(1) / weight.sum(1).clamp(min=1)


class HuggingFaceTower(nn.Module):
    """Any encoder that transformers' AutoModel builds: ids and mask (N, L) to features (N, W)."""

    def __init__(self, config: TextTowerConfig, model: Any):
        super().__init__()
        self.config = config
        self.model = model
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # ours pools its own way; these parameters would train on nothing
        self.width = int(self.model.config.hidden_size)

    @classmethod
    def from_architecture(cls, config: TextTowerConfig, architecture: dict[str, Any]) -> HuggingFaceTower:
        """With random weights, from what `architecture` returned when the model was saved. Needs no network."""
        from transformers import AutoConfig, AutoModel

        try:
            # In float32 whatever the configuration says of the source's own weights: these were trained in float32.
            return cls(config, AutoModel.from_config(AutoConfig.for_model(**architecture)).float())
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"text tower: transformers cannot build {architecture.get('model_type')!r}: {error}"
            ) from None

    @classmethod
    def from_sources(cls, config: TextTowerConfig, say: Callable[[str], None]) -> tuple[HuggingFaceTower, Tokenizer]:
        """With pretrained weights and the tokenizer that belongs to them, from the first source that has both."""
        if not config.sources:
            raise ModelError(
                "the text tower is of kind huggingface but names no source",
                "Set model.text.sources to a hub name or a local folder, or model.text.kind to transformer.",
            )
        return first_that_loads("text tower", config.sources, lambda source: cls._load(config, source), say)

    @classmethod
    def _load(cls, config: TextTowerConfig, source: str) -> tuple[HuggingFaceTower, Tokenizer]:
        from transformers import AutoModel
        from transformers.utils import logging

        place = resolve(source)
        if source != place and not Path(place).is_dir():
            raise ModelError(f"{place}: no such folder")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            model = AutoModel.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # network, missing files, unknown architecture: transformers raises many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(reason) from None
        _check_encoder(model)
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest and longest < config.context_length:
            raise ModelError(
                f"reads at most {longest} tokens, but model.text.context_length is {config.context_length}"
            )
        tokenizer = huggingface_tokenizer(place, config.context_length)
        known, expected = tokenizer.vocab_size, int(model.config.vocab_size)
        # transformers makes an empty tokenizer, without a word, where a folder has none; a padded embedding is usual.
        if not expected / 2 <= known <= expected:
            raise ModelError(
                f"its tokenizer knows {known:,} tokens and its model {expected:,}: they do not belong together"
            )
        return cls(config, model.float()), tokenizer

    @property
    def architecture(self) -> dict[str, Any]:
        """What `from_architecture` needs: the Hugging Face configuration as plain data."""
        return {key: value for key, value in self.model.config.to_dict().items() if key not in ("dtype", "torch_dtype")}

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        states_NLW = self.model(input_ids=input_ids_NL, attention_mask=attention_mask_NL).last_hidden_state
        return pool(states_NLW, attention_mask_NL, self.config.pooling)

    def blocks(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: embeddings, then each layer; what comes after the layers goes with the last."""
        layers = max(
            (module for module in self.model.modules() if isinstance(module, nn.ModuleList)),
            key=len,
            default=nn.ModuleList(),
        )
        return _by_depth(self, [list(layer.parameters()) for layer in layers])


class TransformerTower(nn.Module):
    """A pre-norm transformer encoder from scratch with learned positions: ids and mask (N, L) to features (N, W)."""

    architecture: dict[str, Any] | None = None  # the configuration and the vocabulary say it all

    def __init__(self, config: TextTowerConfig, vocab_size: int):
        super().__init__()
        if config.width % config.heads:
            raise ModelError(f"model.text.width {config.width} is not a multiple of model.text.heads {config.heads}")
        self.config = config
        self.width = config.width
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        length = input_ids_NL.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"texts of {length} tokens are longer than context_length {self.config.context_length}")
        states_NLW = self.dropout(self.token_embedding(input_ids_NL) + self.position_embedding[:length])
        attend_N11L = attention_mask_NL.bool()[:, None, None, :]
        for layer in self.layers:
            states_NLW = layer(states_NLW, attend_N11L)
        return pool(self.final_norm(states_NLW), attention_mask_NL, self.config.pooling)

    def blocks(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: embeddings, then each layer; the final norm goes with the last."""
        return _by_depth(self, [list(layer.parameters()) for layer in self.layers])


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_NLW: torch.Tensor, attend_N11L: torch.Tensor) -> torch.Tensor:
        states_NLW = states_NLW + self.dropout(self._attention(self.attention_norm(states_NLW), attend_N11L))
        return states_NLW + self.dropout(self.mlp(self.mlp_norm(states_NLW)))

    def _attention(self, states_NLW: torch.Tensor, attend_N11L: torch.Tensor) -> torch.Tensor:
        texts, length, width = states_NLW.shape
        qkv = self.qkv(states_NLW).view(texts, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attend_N11L)
        return self.out(mixed.transpose(1, 2).reshape(texts, length, width))


def _check_encoder(model: Any) -> None:
    """Raises ModelError for a model that does not turn token ids into one state a token."""
    try:
        ids = torch.ones(1, 2, dtype=torch.long)
        with torch.no_grad():
            states_NLW = model.eval()(input_ids=ids, attention_mask=ids).last_hidden_state
        fits = states_NLW.shape == (1, 2, model.config.hidden_size)
    except Exception:  # encoder-decoders and two-tower models each fail in their own way
        fits = False
    if not fits:
        raise ModelError(f"{type(model).__name__} is no plain text encoder; choose one like BERT, RoBERTa or MiniLM")


def _by_depth(tower: nn.Module, layers: list[list[nn.Parameter]]) -> list[list[nn.Parameter]]:
    """All parameters: what is defined before the layers comes first, what is defined after them goes into the last."""
    if not layers:
        return [list(tower.parameters())]
    inside = {id(parameter) for layer in layers for parameter in layer}
    before: list[nn.Parameter] = []
    after: list[nn.Parameter] = []
    seen_layer = False
    for parameter in tower.parameters():  # in the order of definition, which is the order of use
        if id(parameter) in inside:
            seen_layer = True
        else:
            (after if seen_layer else before).append(parameter)
    return [before, *layers[:-1], layers[-1] + after]
