"""OpenCLIP's models computed by OpenCLIP itself: those that `open_clip.py` cannot express and no model folder can hold.

Shapes: B pictures, C captions, S image_size, D embed_dim, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cliplet.config import PreprocessConfig
from cliplet.errors import ModelError
from cliplet.models.dual_encoder import DualEncoder
from cliplet.models.huggingface import current_names
from cliplet.models.open_clip import described_architecture, side_length
from cliplet.models.open_clip_tokenizers import SAMPLES, Inexpressible, library
from cliplet.models.open_clip_weights import find_pretrained, read_open_clip_weights
from cliplet.models.pretrained import open_model
from cliplet.models.sources import load_exactly, look_for_the_hub
from cliplet.runtime.engines import OPEN_CLIP

# What checkpoints may hold beside the features' own weights: a bias of logits, ids that older transformers kept.
NOT_FOR_FEATURES = ("logit_bias", "text.transformer.embeddings.position_ids")


def open_for_features(source: str | Path) -> DualEncoder | NativeOpenClip:
    """A model in evaluation mode on the CPU, to be used as it is: whatever `open_model` takes, and every other model of
    OpenCLIP's for square pictures, with a Hugging Face text side or a tokenizer of any kind. Raises ModelError."""
    try:
        return open_model(source)
    except Inexpressible:
        return NativeOpenClip(str(source).removeprefix(OPEN_CLIP))


class NativeConfig(NamedTuple):
    """What of a model's configuration holds for OpenCLIP's models too."""

    preprocess: PreprocessConfig
    embed_dim: int


class NativeTokenizer:
    """OpenCLIP's own tokenizer of an architecture, called as cliplet's are."""

    def __init__(self, theirs: Callable[[list[str]], torch.Tensor]):
        self._theirs = theirs

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of `texts` and a mask of ones, both (C, L) int64, L being the whole context: OpenCLIP's models are
        given their padding, and know by themselves what to make of it."""
        # Half a surrogate pair, as JSON's escapes allow it in a caption, is no character: it is read as "?".
        ids_CL = self._theirs([text.encode("utf-8", "replace").decode() for text in texts]).numpy()
        return ids_CL, np.ones_like(ids_CL)

    def on_samples(self) -> str:
        """What it makes of texts that set tokenizers apart, as JSON: equal for tokenizers that do the same."""
        return json.dumps(self(SAMPLES)[0].tolist())


class NativeOpenClip(nn.Module):
    """An OpenCLIP model with its own tokenizer, in evaluation mode. Its features are of unit length here."""

    def __init__(self, source: str):
        """`source`: ARCHITECTURE/PRETRAINED, the second being one of OpenCLIP's tags or a local weights file. Weights
        must fit exactly; a tokenizer.json beside them goes before the hub's. Raises ModelError."""
        super().__init__()
        name, _, pretrained = source.partition("/")
        described = described_architecture(name)
        side_length(described["vision_cfg"].get("image_size", 224), name)  # before anything is fetched
        found = find_pretrained(name, pretrained)
        if found.quick_gelu:
            described["quick_gelu"] = True
        text, embed_dim = dict(described["text_cfg"]), described["embed_dim"]
        self.model = _built(name, described)
        _load(self.model, found.file, is_huggingface=bool(text.get("hf_model_name")))
        self.config = NativeConfig(found.preprocess(side_length(self.model.visual.image_size, name)), embed_dim)
        self.tokenizer = NativeTokenizer(_their_tokenizer(name, text, found.file.parent))
        mean, std = torch.tensor(self.config.preprocess.mean), torch.tensor(self.config.preprocess.std)
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", 255 * mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * std.view(1, 3, 1, 1), persistent=False)
        self.eval()

    @property
    def logit_scale(self) -> torch.Tensor:
        """What cosines are multiplied with."""
        return self.model.logit_scale.exp()

    def encode_image(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """uint8 pixels, on the model's device, to unit features (B, D) float32."""
        pixels_B3SS = (pixels_B3SS.float() - self.pixel_mean) / self.pixel_std
        return F.normalize(self.model.encode_image(pixels_B3SS).float(), dim=-1)

    def encode_text(self, input_ids_CL: torch.Tensor, attention_mask_CL: torch.Tensor) -> torch.Tensor:
        """What the tokenizer gives, on the model's device, to unit features (C, D) float32."""
        return F.normalize(self.model.encode_text(input_ids_CL).float(), dim=-1)


def _load(model: Any, file: Path, is_huggingface: bool) -> None:
    """Puts the weights of `file` into an OpenCLIP model. Raises ModelError where they do not fit."""
    weights = read_open_clip_weights(file)
    if is_huggingface and getattr(model.text, "transformer", None) is not None:
        weights = current_names(model.text.transformer, weights, "text.transformer.")
    if model.logit_bias is not None:  # it moves all logits alike: no feature depends on it
        weights.setdefault("logit_bias", torch.zeros(()))
    for scalar in ("logit_scale", "logit_bias"):  # some keep them as vectors of one number
        own = getattr(model, scalar)
        if scalar in weights and own is not None and weights[scalar].numel() == own.numel():
            weights[scalar] = weights[scalar].reshape(own.shape)
    load_exactly(model, weights, str(file), ignore=NOT_FOR_FEATURES)


def _built(name: str, described: dict[str, Any]) -> Any:
    """An OpenCLIP model with random weights, its text side apart from the rest. `described` is used up.

    Its own factory would fetch weights that are replaced anyway, and knows one text side less. Raises ModelError.
    """
    open_clip = library(f"the OpenCLIP architecture {name}")
    described = {key: value for key, value in described.items() if key != "custom_text"}
    described["vision_cfg"]["timm_model_pretrained"] = False
    described["text_cfg"]["hf_model_pretrained"] = False
    _look_for_the_hub_unless_local(described["text_cfg"].get("hf_model_name"))
    kind = open_clip.CoCa if "multimodal_cfg" in described else open_clip.CustomTextCLIP
    try:
        return kind(**described)
    except Exception as error:  # network, missing files, odd values: each part stumbles in its own way
        raise ModelError(
            f"OpenCLIP cannot build {name}: {_first_line(error)}",
            "Without a network, the configuration of its Hugging Face text side must be in the hub's cache.",
        ) from None


def _their_tokenizer(name: str, text: dict[str, Any], folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """OpenCLIP's own tokenizer: texts to ids (C, L). A tokenizer.json beside the weights goes before the hub's.

    Raises ModelError.
    """
    open_clip = library(f"OpenCLIP's {name}")
    try:
        if text.get("hf_tokenizer_name") and (folder / "tokenizer.json").is_file():
            return open_clip.tokenizer.HFTokenizer(
                str(folder),
                context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=text.get("tokenizer_mode"),
                **(text.get("tokenizer_kwargs") or {}),
            )
        _look_for_the_hub_unless_local(text.get("hf_tokenizer_name"))
        return open_clip.get_tokenizer(name)
    except Exception as error:  # network, missing files, options that it does not know
        raise ModelError(
            f"OpenCLIP's {name}: its tokenizer could not be loaded: {_first_line(error)}",
            "Without a network, name a local weights file, with its tokenizer.json in the same folder.",
        ) from None


def _look_for_the_hub_unless_local(source: str | None) -> None:
    if source and not Path(source).exists():
        look_for_the_hub()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
