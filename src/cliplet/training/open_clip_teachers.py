"""OpenCLIP's models as teachers, computed by OpenCLIP itself: those that `models/open_clip.py` cannot express.

Shapes: B pictures, C captions, S image_size, T embed_dim, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from cliplet.errors import ModelError
from cliplet.models.huggingface import current_names
from cliplet.models.open_clip_tokenizers import SAMPLES, library
from cliplet.models.open_clip_weights import find_pretrained, read_open_clip_weights
from cliplet.models.sources import load_exactly

# What checkpoints may hold beside the features' own weights: a bias of logits, ids that older transformers kept.
NOT_FOR_FEATURES = ("logit_bias", "text.transformer.embeddings.position_ids")


def is_theirs_alone(source: str) -> bool:
    """Whether a model's text side or tokenizer is a Hugging Face one, which cliplet may not be able to express."""
    described = library(f"open_clip:{source}").get_model_config(source.partition("/")[0])
    text = described["text_cfg"] if described else {}
    return bool(text.get("hf_model_name") or text.get("hf_tokenizer_name"))


class OpenClipTeacher:
    """An OpenCLIP model with its own tokenizer. Its features are of unit length here."""

    def __init__(self, source: str):
        """`source`: ARCHITECTURE/PRETRAINED. Raises ModelError."""
        name, _, pretrained = source.partition("/")
        found = find_pretrained(name, pretrained)
        described = library(f"open_clip:{source}").get_model_config(name)
        if not described:
            raise ModelError(f"there is no OpenCLIP architecture {name!r}")
        described["quick_gelu"] = found.quick_gelu or described.get("quick_gelu", False)
        model = _built(name, described)
        self.preprocess = found.preprocess(_side_length(name, model.visual.image_size))
        weights = read_open_clip_weights(found.file)
        if getattr(model.text, "transformer", None) is not None and described["text_cfg"].get("hf_model_name"):
            weights = current_names(model.text.transformer, weights, "text.transformer.")
        if model.logit_bias is not None:  # it moves all logits alike: a student never sees it
            weights.setdefault("logit_bias", torch.zeros(()))
        for scalar in ("logit_scale", "logit_bias"):  # some keep them as vectors of one number
            own = getattr(model, scalar)
            if scalar in weights and own is not None and weights[scalar].numel() == own.numel():
                weights[scalar] = weights[scalar].reshape(own.shape)
        load_exactly(model, weights, str(found.file), ignore=NOT_FOR_FEATURES)
        self.module, self.width = model, described["embed_dim"]
        self.logit_scale: float | None = float(model.logit_scale.detach().exp())
        self._tokenize = _their_tokenizer(name, described["text_cfg"], found.file.parent)
        ids_NL = self._tokenize(SAMPLES)
        self.tokenizer = hashlib.sha256(json.dumps(ids_NL.tolist()).encode()).hexdigest()
        self._mean_std: tuple[torch.Tensor, torch.Tensor] | None = None

    def images(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        if self._mean_std is None:
            mean, std = (
                torch.tensor(three, device=pixels_B3SS.device).view(1, 3, 1, 1)
                for three in (self.preprocess.mean, self.preprocess.std)
            )
            self._mean_std = 255 * mean, 255 * std
        mean, std = self._mean_std
        return F.normalize(self.module.encode_image((pixels_B3SS.float() - mean) / std).float(), dim=-1)

    def texts(self, captions: Sequence[str], device: torch.device) -> torch.Tensor:
        # Half a surrogate pair, as JSON's escapes allow it in a caption, is no character: it is read as "?".
        ids_CL = self._tokenize([caption.encode("utf-8", "replace").decode() for caption in captions])
        return F.normalize(self.module.encode_text(ids_CL.to(device)).float(), dim=-1)


def _built(name: str, described: dict[str, Any]) -> Any:
    """An OpenCLIP model with random weights, its text side apart from the rest. `described` is used up.

    Its own factory would fetch weights that are replaced anyway, and knows one text side less. Raises ModelError.
    """
    open_clip = library(f"the OpenCLIP architecture {name}")
    described = {key: value for key, value in described.items() if key != "custom_text"}
    described["vision_cfg"]["timm_model_pretrained"] = False
    described["text_cfg"]["hf_model_pretrained"] = False
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
        return open_clip.get_tokenizer(name)
    except Exception as error:  # network, missing files, options that it does not know
        raise ModelError(
            f"OpenCLIP's {name}: its tokenizer could not be loaded: {_first_line(error)}",
            "Without a network, name a local weights file, with its tokenizer.json in the same folder.",
        ) from None


def _side_length(name: str, size: int | Sequence[int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError(f"OpenCLIP's {name}: takes pictures of {height} x {width} pixels; cliplet's are square")
    return height


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
