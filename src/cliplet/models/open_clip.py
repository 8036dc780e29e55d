"""OpenCLIP's models behind the towers' interface, and opening their pretrained weights.

Features are OpenCLIP's own: projected, not normalised. Not supported here are text sides that are Hugging Face models,
and tokenizers that a tokenizer.json cannot express; `open_clip_native.py` runs models with these. Shapes: B images,
S image_size, N texts, L tokens, D embed_dim.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import group_parameters
from torch import nn

from cliplet.config import ImageTowerConfig, PreprocessConfig, TextTowerConfig
from cliplet.errors import ModelError, nearest
from cliplet.models.open_clip_tokenizers import Inexpressible, clip_tokenizer, library, refilled, tokenizer_of
from cliplet.models.open_clip_weights import Pretrained, find_pretrained, read_open_clip_weights
from cliplet.models.sources import load_exactly
from cliplet.models.towers import ImageTower, TextTower, by_depth
from cliplet.runtime.tokenizer import Tokenizer

__all__ = ["OpenClipImageTower", "OpenClipParts", "OpenClipTextTower", "clip_tokenizer", "open_clip_model"]


class OpenClipImageTower(ImageTower):
    """The image side of an OpenCLIP model, projection included."""

    def __init__(self, config: ImageTowerConfig, image_size: int, architecture: Mapping[str, Any]):
        """`architecture`: embed_dim, quick_gelu and vision_cfg of OpenCLIP's description. Raises ModelError."""
        super().__init__()
        self.config = config
        self.architecture = dict(architecture)
        side = side_length(architecture.get("vision_cfg", {}).get("image_size", 224), config.name)
        if image_size != side:
            raise ModelError(
                f"image tower {config.name}: takes pictures of {side} pixels, not of {image_size}",
                f"Set model.preprocess.image_size to {side}.",
            )
        # Convolutions are faster so, as in other towers.
        self.model: Any = _build("vision", architecture, config.name).to(memory_format=torch.channels_last)
        self._measure(image_size, config.name)

    @classmethod
    def from_name(cls, config: ImageTowerConfig, image_size: int) -> OpenClipImageTower:
        """With random weights, after OpenCLIP's description of architecture `config.name`.

        Its own towers are built for any size that their patches divide, timm's only for their own. Raises ModelError.
        """
        if config.weights or config.pooling != "model":
            raise ModelError(
                f"image tower {config.name}: OpenCLIP's towers pool as they do and take no model.image.weights",
                "Leave both alone; for pretrained weights set train.start_from to open_clip:ARCHITECTURE/PRETRAINED.",
            )
        described = described_architecture(config.name)
        vision = described["vision_cfg"]
        if "timm_model_name" not in vision and side_length(vision.get("image_size", 224), config.name) != image_size:
            step = 32 if isinstance(vision.get("layers"), list) else vision.get("patch_size", 16)
            if isinstance(step, int) and image_size % step == 0:
                vision["image_size"] = image_size
        return cls(config, image_size, _part(described, "vision_cfg"))

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return _one_vector(self.model(pixels_B3HW), f"image tower {self.config.name}")

    def blocks(self) -> list[list[nn.Parameter]]:
        model = self.model
        if hasattr(model, "trunk"):
            depth_of = group_parameters(model.trunk, model.trunk.group_matcher(coarse=True), reverse=True)
            groups: dict[int, list[nn.Parameter]] = {}
            for name, parameter in model.trunk.named_parameters():
                groups.setdefault(depth_of[name], []).append(parameter)
            head = [*model.trunk.get_classifier().parameters(), *model.head.parameters()]
            return _with_last([groups[depth] for depth in sorted(groups)], head)
        if hasattr(model, "transformer"):
            layers = [list(layer.parameters()) for layer in model.transformer.resblocks]
            return _with_last(by_depth(self, layers), [model.proj])
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        return by_depth(self, [list(stage.parameters()) for stage in stages])


class OpenClipTextTower(TextTower):
    """The text side of an OpenCLIP model, projection included.

    OpenCLIP pads every text to the full context, and some of its models read the padding. Such models get it so; for
    the others, whose tokens look back only, a batch is as long as its longest text, which gives the same features.
    """

    def __init__(self, config: TextTowerConfig, architecture: Mapping[str, Any]):
        """`architecture`: embed_dim, quick_gelu and text_cfg of OpenCLIP's description, and how its tokenizer pads
        (pad_id, stripped_id). Raises ModelError."""
        super().__init__()
        self.config = config
        self.architecture = dict(architecture)
        text = architecture.get("text_cfg", {})
        _check_text(text, config)
        self.padding = {"pad_id": architecture.get("pad_id", 0), "stripped_id": architecture.get("stripped_id")}
        self.model: Any = _build("text", architecture, config.name)
        pooled_by_position = self.model.pool_type in ("first", "argmax", "eos")
        self.looks_back = self.model.attn_mask is not None and self.model.cls_emb is None and pooled_by_position
        ids_NL = torch.zeros(1, config.context_length, dtype=torch.int64)
        with torch.no_grad():
            self.width = self.eval()(ids_NL, torch.ones_like(ids_NL)).shape[-1]

    @classmethod
    def from_name(cls, config: TextTowerConfig) -> tuple[OpenClipTextTower, Tokenizer]:
        """With random weights, after OpenCLIP's description of architecture `config.name`; and its tokenizer.

        Raises ModelError.
        """
        if config.sources or config.tokenizer.kind != "auto":
            raise ModelError(
                f"text tower {config.name}: OpenCLIP's towers have their own tokenizer and take no model.text.sources",
                "Leave both alone; for pretrained weights set train.start_from to open_clip:ARCHITECTURE/PRETRAINED.",
            )
        return cls.from_description(config, described_architecture(config.name))

    @classmethod
    def from_description(
        cls, config: TextTowerConfig, described: Mapping[str, Any], folder: Path | None = None
    ) -> tuple[OpenClipTextTower, Tokenizer]:
        """As `from_name`, from OpenCLIP's description itself; `folder`: where a tokenizer.json may lie."""
        text = described["text_cfg"]
        _check_text(text, config)
        tokenizer, padding = tokenizer_of(config.name, text, folder)
        tower = cls(config, _part(described, "text_cfg") | padding)
        if tokenizer.vocab_size > tower.model.vocab_size:
            raise Inexpressible(
                f"text tower {config.name}: its tokenizer has {tokenizer.vocab_size:,} entries, but the tower "
                f"{tower.model.vocab_size:,} embeddings"
            )
        return tower, tokenizer

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        if self.looks_back:
            features = self._as_long_as_they_are(refilled(input_ids_NL, attention_mask_NL, 0, **self.padding))
        else:
            length = self.config.context_length
            features = self.model(refilled(input_ids_NL, attention_mask_NL, length, **self.padding))
        return _one_vector(features, f"text tower {self.config.name}")

    def _as_long_as_they_are(self, ids_NL: torch.Tensor) -> torch.Tensor:
        """What OpenCLIP's own forward computes, which insists on the full context."""
        model, length = self.model, ids_NL.shape[1]
        states = model.token_embedding(ids_NL) + model.positional_embedding[:length]
        states = model.transformer(states, attn_mask=model.attn_mask[:length, :length])
        if model.pool_type == "first":
            place_N = torch.zeros_like(ids_NL[:, 0])
        elif model.pool_type == "argmax":  # the closing token has the highest id
            place_N = ids_NL.argmax(1)
        else:
            place_N = (ids_NL == model.eos_id).int().argmax(1)
        pooled = model.ln_final(states[torch.arange(ids_NL.shape[0], device=ids_NL.device), place_N])
        if isinstance(model.text_projection, nn.Linear):
            return model.text_projection(pooled)
        return pooled if model.text_projection is None else pooled @ model.text_projection

    def blocks(self) -> list[list[nn.Parameter]]:
        layers = [list(layer.parameters()) for layer in self.model.transformer.resblocks]
        projection = self.model.text_projection
        return _with_last(by_depth(self, layers), [projection] if isinstance(projection, nn.Parameter) else [])


class OpenClipParts(NamedTuple):
    """What an OpenCLIP model is made of."""

    image_tower: OpenClipImageTower
    text_tower: OpenClipTextTower
    tokenizer: Tokenizer
    logit_scale: float  # a logarithm, as it is stored
    logit_bias: float | None
    preprocess: PreprocessConfig


def open_clip_model(source: str) -> OpenClipParts:
    """The model `ARCHITECTURE/PRETRAINED`, PRETRAINED being one of OpenCLIP's tags or a local weights file.

    Weights must fit exactly; the text decoder of CoCa is left out. Where weights are on record as trained with quick
    GELU, the model has it, be the architecture named with `-quickgelu` or without. The record of a tag is OpenCLIP's;
    of a file, the open_clip_config.json beside it. Without one, pictures are prepared as all tags of the architecture
    agree, or else by OpenCLIP's defaults, and for weights like OpenAI's `-quickgelu` must be named. Raises ModelError,
    Inexpressible for a model that only OpenCLIP itself can run (`open_clip_native.py`).
    """
    name, _, named = source.partition("/")
    described = described_architecture(name)
    text, vision = described["text_cfg"], described["vision_cfg"]
    text_config = TextTowerConfig(kind="open_clip", name=name, context_length=text.get("context_length", 77))
    _check_text(text, text_config)  # before anything is fetched
    side = side_length(vision.get("image_size", 224), name)
    found: Pretrained = find_pretrained(name, named)
    if found.quick_gelu:
        described["quick_gelu"] = True
    preprocess = found.preprocess(side)
    text_tower, tokenizer = OpenClipTextTower.from_description(text_config, described, found.file.parent)
    image_config = ImageTowerConfig(kind="open_clip", name=name)
    image_tower = OpenClipImageTower(image_config, preprocess.image_size, _part(described, "vision_cfg"))

    weights = read_open_clip_weights(found.file)
    whole = nn.Module()
    whole.visual, whole.text = image_tower.model, text_tower.model
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in weights or scalar == "logit_scale":
            whole.register_buffer(scalar, torch.zeros(()))
    load_exactly(whole, weights, str(found.file), ignore=("text_decoder.",) if "multimodal_cfg" in described else ())
    bias = float(weights["logit_bias"]) if "logit_bias" in weights else None
    return OpenClipParts(image_tower, text_tower, tokenizer, float(weights["logit_scale"]), bias, preprocess)


def described_architecture(name: str) -> dict[str, Any]:
    """OpenCLIP's description of an architecture, a copy. Raises ModelError."""
    open_clip = library(f"the OpenCLIP architecture {name}")
    known = open_clip.list_models()
    if name not in known:
        raise ModelError(f"there is no OpenCLIP architecture {name!r}", nearest(name, known))
    return open_clip.get_model_config(name)


def _part(described: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What a tower keeps of a description: enough to build it again, and plain data."""
    return {
        "embed_dim": described["embed_dim"],
        "quick_gelu": bool(described.get("quick_gelu", False)),
        side: json.loads(json.dumps(described[side])),
    }


def _build(side: str, architecture: Mapping[str, Any], name: str) -> nn.Module:
    """One side of an OpenCLIP model with random weights. OpenCLIP's public classes would build the other as well."""
    library(f"the OpenCLIP architecture {name}")
    from open_clip import model as open_clip_model

    try:
        # Weights come from elsewhere, and one vector is all that is asked for.
        settings = {**architecture[f"{side}_cfg"], "output_tokens": False}
        if side == "vision":
            settings["timm_model_pretrained"] = False
        build = open_clip_model._build_vision_tower if side == "vision" else open_clip_model._build_text_tower
        return build(architecture["embed_dim"], settings, architecture.get("quick_gelu", False))
    except Exception as error:  # each kind of tower stumbles over odd values in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"OpenCLIP cannot build the {side} side of {name}: {reason}") from None


def side_length(size: int | Sequence[int], name: str) -> int:
    """Of the square pictures that architecture `name` takes. Raises ModelError where they are no squares."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError(f"image tower {name}: takes pictures of {height} x {width} pixels; cliplet's are square")
    return height


def _check_text(text: Mapping[str, Any], config: TextTowerConfig) -> None:
    """Raises ModelError for a text side that is not supported, or of another context length."""
    if text.get("hf_model_name"):
        raise Inexpressible(
            f"text tower {config.name}: is the Hugging Face model {text['hf_model_name']} inside OpenCLIP, "
            "which is not supported",
            "Choose another architecture, or train with model.text.kind huggingface.",
        )
    length = text.get("context_length", 77)
    if length != config.context_length:
        raise ModelError(
            f"text tower {config.name}: reads texts of {length} tokens, "
            f"but model.text.context_length is {config.context_length}",
            f"Set model.text.context_length to {length}.",
        )


def _one_vector(features: Any, what: str) -> torch.Tensor:
    """The features, if they are a vector an input; some of OpenCLIP's poolings give all states."""
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ModelError(f"{what}: gives more than one vector for an input, which is not supported")
    return features


def _with_last(blocks: Iterable[list[nn.Parameter]], last: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """`blocks` with `last`, wherever it was, at their end, and norms that stand alone joined to the block before."""
    moved = {id(parameter) for parameter in last}
    joined: list[list[nn.Parameter]] = []
    for block in blocks:
        rest = [parameter for parameter in block if id(parameter) not in moved]
        if joined and all(parameter.ndim < 2 for parameter in rest):
            joined[-1] += rest
        else:
            joined.append(rest)
    joined[-1] += last
    return joined
