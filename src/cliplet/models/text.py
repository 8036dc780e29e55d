"""Text towers: any Hugging Face encoder, or a transformer from scratch. Padding never changes a feature.

Shapes: N texts, L tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from cliplet.config import TextTowerConfig
from cliplet.errors import ModelError
from cliplet.models.attention import build_attention
from cliplet.models.huggingface import architecture_of, build_model, drop_pooler, load_model, pooled_output
from cliplet.models.open_clip import OpenClipTextTower
from cliplet.models.sources import first_that_loads
from cliplet.models.tokenizers import huggingface_tokenizer, make_tokenizer
from cliplet.models.towers import TextTower, by_depth, longest_list
from cliplet.runtime.tokenizer import Tokenizer

Say = Callable[[str], None]


def pool(states_NLW: torch.Tensor, mask_NL: torch.Tensor, how: Literal["mean", "first", "last"]) -> torch.Tensor:
    """Token states to one vector a text (N, W): the mean over real tokens, the first, or the last real one."""
    if how == "first":
        return states_NLW[:, 0]
    if how == "last":
        last = mask_NL.sum(1).clamp(min=1) - 1
        return states_NLW[torch.arange(last.shape[0], device=last.device), last]  # not len(): an export would keep it
    weight = mask_NL.unsqueeze(-1).to(states_NLW.dtype)
    return (states_NLW * weight).sum(1) / weight.sum(1).clamp(min=1)


class HuggingFaceTower(TextTower):
    """Any encoder that transformers' AutoModel builds."""

    def __init__(self, config: TextTowerConfig, model: Any):
        super().__init__()
        self.config = config
        self.model = model
        if config.pooling != "model":
            drop_pooler(model)
        self.width = int(getattr(model.config, "hidden_size", 0))

    @classmethod
    def from_sources(cls, config: TextTowerConfig, say: Say) -> tuple[HuggingFaceTower, Tokenizer]:
        """With pretrained weights and the tokenizer that belongs to them, from the first source that has both."""
        return first_that_loads("text tower", config.sources, lambda source: cls._load(config, source), say)

    @classmethod
    def _load(cls, config: TextTowerConfig, source: str) -> tuple[HuggingFaceTower, Tokenizer]:
        tower = cls(config, _checked(load_model(source), config))
        tokenizer = huggingface_tokenizer(source, config.context_length)
        known, expected = tokenizer.vocab_size, int(tower.model.config.vocab_size)
        # transformers makes an empty tokenizer, without a word, where a folder has none; a padded embedding is usual.
        if not expected / 2 <= known <= expected:
            raise ModelError(
                f"its tokenizer knows {known:,} tokens and its model {expected:,}: they do not belong together"
            )
        return tower, tokenizer

    @classmethod
    def from_scratch(cls, config: TextTowerConfig, tokenizer: Tokenizer) -> HuggingFaceTower:
        """With random weights, from the configuration's `architecture`.

        The vocabulary is that of the architecture, or of the tokenizer where the architecture names none.
        """
        architecture = {"vocab_size": tokenizer.vocab_size, **config.architecture, "pad_token_id": tokenizer.pad_id}
        _check_vocabulary(int(architecture["vocab_size"]), tokenizer)
        return cls(config, _checked(build_model(architecture, "text tower"), config))

    @property
    def architecture(self) -> dict[str, Any]:  # type: ignore[override]
        """The Hugging Face configuration as plain data."""
        return architecture_of(self.model)

    def states(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids_NL, attention_mask=attention_mask_NL).last_hidden_state

    def check_states(self) -> None:
        """It has them."""

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        if self.config.pooling == "model":
            output = self.model(input_ids=input_ids_NL, attention_mask=attention_mask_NL)
            return pooled_output(output, "text tower")
        return pool(self.states(input_ids_NL, attention_mask_NL), attention_mask_NL, self.config.pooling)

    def blocks(self) -> list[list[nn.Parameter]]:
        return by_depth(self, longest_list(self.model))


class TransformerTower(TextTower):
    """A transformer encoder from scratch with learned positions."""

    def __init__(self, config: TextTowerConfig, vocab_size: int):
        super().__init__()
        if config.pooling == "model":
            raise ModelError(
                "a transformer from scratch has no pooling of its own", "Set model.text.pooling to mean, first or last."
            )
        self.config = config
        self.width = config.width
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    @property
    def architecture(self) -> dict[str, Any]:  # type: ignore[override]
        """What the configuration does not say: the embedding may have more rows than the tokenizer has entries."""
        return {"vocab_size": self.token_embedding.num_embeddings}

    def states(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        return self.final_norm(self._layers(input_ids_NL, attention_mask_NL))

    def check_states(self) -> None:
        if self.config.final_norm == "pooled":
            raise ModelError(
                "the tokens' states have no last norm, which acts on the pooled vector only",
                "Set model.text.final_norm to tokens for a head that reads tokens.",
            )

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        if self.config.final_norm == "pooled":
            states_NLW = self._layers(input_ids_NL, attention_mask_NL)
            return self.final_norm(pool(states_NLW, attention_mask_NL, self.config.pooling))  # type: ignore[arg-type]
        states_NLW = self.states(input_ids_NL, attention_mask_NL)
        return pool(states_NLW, attention_mask_NL, self.config.pooling)  # type: ignore[arg-type]

    def _layers(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        states_NLW = self.token_embedding(input_ids_NL) + self.position_embedding[: input_ids_NL.shape[1]]
        states_NLW = self.dropout(states_NLW)
        for layer in self.layers:
            states_NLW = layer(states_NLW, attention_mask_NL)
        return states_NLW

    def blocks(self) -> list[list[nn.Parameter]]:
        return by_depth(self, [list(layer.parameters()) for layer in self.layers])


class Block(nn.Module):
    """Attention and MLP, each beside a shortcut, with a norm before it or after both."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        width, attention = config.width, config.attention
        self.post = config.norm == "post"
        self.attention_norm = nn.LayerNorm(width)
        self.attention = build_attention(
            attention.kind,
            width,
            config.heads,
            config.context_length,
            linformer_k=attention.linformer_k,
            one_kv_head=attention.linformer_one_kv_head,
            share_kv=attention.linformer_share_kv,
            performer_features=attention.performer_features,
        )
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states_NLW: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        if self.post:
            states_NLW = self.attention_norm(states_NLW + self.dropout(self.attention(states_NLW, mask_NL)))
            return self.mlp_norm(states_NLW + self.dropout(self.mlp(states_NLW)))
        states_NLW = states_NLW + self.dropout(self.attention(self.attention_norm(states_NLW), mask_NL))
        return states_NLW + self.dropout(self.mlp(self.mlp_norm(states_NLW)))


def build_text_tower(config: TextTowerConfig, captions: Iterable[str], say: Say) -> tuple[TextTower, Tokenizer]:
    """A new tower and its tokenizer: pretrained where `config` names sources, else random, its tokenizer loaded or
    trained on `captions`. Raises ModelError."""
    if config.kind == "open_clip":
        return OpenClipTextTower.from_name(config)
    if config.kind == "huggingface" and config.sources:
        if config.tokenizer.kind not in ("auto", "huggingface") or config.tokenizer.sources:
            raise ModelError(
                "a pretrained text tower reads the tokens of its own tokenizer only",
                "Leave model.text.tokenizer alone, or give no model.text.sources to train the tower from scratch.",
            )
        return HuggingFaceTower.from_sources(config, say)
    tokenizer = make_tokenizer(config.tokenizer, captions, config.context_length, say)
    if config.kind == "huggingface":
        return HuggingFaceTower.from_scratch(config, tokenizer), tokenizer
    return TransformerTower(config, tokenizer.vocab_size), tokenizer


def text_tower_skeleton(
    config: TextTowerConfig, tokenizer: Tokenizer, architecture: Mapping[str, Any] | None
) -> TextTower:
    """A tower with random weights, from what was saved of one. Raises ModelError."""
    if config.kind == "transformer":
        rows = (architecture or {}).get("vocab_size", tokenizer.vocab_size)
        _check_vocabulary(rows, tokenizer)
        return TransformerTower(config, rows)
    if architecture is None:
        raise ModelError(f"the text tower is of kind {config.kind}, but its text_architecture is missing")
    if config.kind == "huggingface":
        tower = HuggingFaceTower(config, build_model(architecture, "text tower"))
        _check_vocabulary(int(tower.model.config.vocab_size), tokenizer)
        return tower
    return OpenClipTextTower(config, architecture)


def _check_vocabulary(rows: int, tokenizer: Tokenizer) -> None:
    """Raises ModelError where the tokenizer has entries that the tower knows nothing of."""
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size:,} entries, but the text tower {rows:,} embeddings",
            "Choose a smaller model.text.tokenizer.vocab_size, or the tokenizer that belongs to the tower.",
        )


def _checked(model: Any, config: TextTowerConfig) -> Any:
    """The model. Raises ModelError for one that does not turn token ids into a state each, not for long enough, or
    for which padding is not nothing, or that does no pooling where it is to."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and 0 < longest < config.context_length:  # XLNet says -1: there is no limit
        raise ModelError(f"reads at most {longest} tokens, but model.text.context_length is {config.context_length}")
    length, few = config.context_length, 3
    whole, alone = probe(model, length, length), probe(model, few, few)
    if alone is None:
        raise ModelError(f"{type(model).__name__} is no plain text encoder; choose one like BERT, RoBERTa or MiniLM")
    if whole is None:  # positions of RoBERTa begin after the padding's number, so its last ones cannot be used
        raise ModelError(f"reads fewer than {length} tokens, which model.text.context_length asks for")
    padded = probe(model, few, length)
    if padded is None or not torch.allclose(
        padded.last_hidden_state[:, :few], alone.last_hidden_state, atol=1e-4, rtol=1e-3
    ):
        raise ModelError(
            f"{type(model).__name__} mixes padding into a text, which so means something else beside longer ones; "
            "choose one like BERT, RoBERTa or MiniLM"
        )
    if config.pooling == "model":
        pooled_output(alone, "text tower")
    return model


def probe(model: Any, length: int, padded: int) -> Any:
    """What a Hugging Face encoder says of some text of that length with padding behind it up to `padded`; None where
    that is not a state for each token."""
    pad_id = getattr(model.config, "pad_token_id", None) or 0
    ids = torch.full((1, padded), pad_id)
    ids[:, :length] = 3 if pad_id == 2 else 2
    training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(input_ids=ids, attention_mask=(torch.arange(padded) < length).long()[None])
        return output if output.last_hidden_state.shape == (1, padded, model.config.hidden_size) else None
    except Exception:  # encoder-decoders, two-tower models and what is too long each fail in their own way
        return None
    finally:
        model.train(training)
