"""Image towers: any timm model, any Hugging Face vision model, one interface.

An image tower turns normalised pixels (B, 3, S, S) into features (B, `width`), gives its parameters by depth
(`blocks`), and says in `architecture` what its configuration does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from cliplet.config import ImageTowerConfig
from cliplet.errors import ModelError, nearest
from cliplet.models.huggingface import architecture_of, build_model, drop_pooler, load_model, pooled_output
from cliplet.models.open_clip import OpenClipImageTower
from cliplet.models.sources import first_that_loads, load_exactly, read_weights, resolve
from cliplet.models.towers import ImageTower, by_depth, final_norms_joined, longest_list

Say = Callable[[str], None]


class TimmTower(ImageTower):
    """A timm model without its classifier."""

    def __init__(self, config: ImageTowerConfig, image_size: int):
        super().__init__()
        if not timm.is_model(config.name):
            raise ModelError(f"there is no timm model {config.name!r}", nearest(config.name, timm.list_models()))
        self.config = config
        try:
            self.model: Any = _create(config.name, image_size)
        except (AssertionError, RuntimeError, ValueError) as error:  # a size that the patches do not divide, say
            raise ModelError(
                f"image tower {config.name}: cannot be built for {image_size} pixels: {error}",
                "Set model.preprocess.image_size to a size that it takes.",
            ) from None
        self._measure(image_size, config.name)

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        if self.config.pooling == "model":
            return self.model(pixels_B3HW)
        states = self.model.forward_features(pixels_B3HW)
        class_token = getattr(self.model, "num_prefix_tokens", 0) or getattr(self.model, "cls_token", None) is not None
        if states.ndim == 3 and (class_token or self.config.pooling == "mean"):
            return states[:, 0] if self.config.pooling == "first" else states.mean(1)
        if self.config.pooling == "first":
            raise ModelError(
                f"image tower {self.config.name}: has no first token to pool by", "Set model.image.pooling to model."
            )
        return self.model.forward_head(states, pre_logits=True)  # a map's mean is what convolutional networks do anyway

    def blocks(self) -> list[list[nn.Parameter]]:
        depth_of = group_parameters(self.model, self.model.group_matcher(coarse=True), reverse=True)
        blocks: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            blocks.setdefault(depth_of[name], []).append(parameter)
        return final_norms_joined([blocks[depth] for depth in sorted(blocks)])

    def load_pretrained(self, image_size: int, say: Say) -> None:
        """Fills in the weights from the first of the configuration's sources that loads."""
        if self.config.weights:
            first_that_loads(
                f"image tower {self.config.name}",
                self.config.weights,
                lambda source: self._load(source, image_size),
                say,
            )

    def _load(self, source: str, image_size: int) -> None:
        if source == "hub":
            try:
                self.model = _create(self.config.name, image_size, pretrained=True)
            except Exception as error:  # network, missing repository, no weights of that name
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ModelError(f"the hub could not be used: {reason}") from None
            return
        path = Path(resolve(source))
        file = path / "model.safetensors" if path.is_dir() else path
        load_exactly(self.model, read_weights(file), str(file), ignore=classifiers(self.model))


class HuggingFaceImageTower(ImageTower):
    """Any vision encoder that transformers' AutoModel builds: ViT, DINO, CLIP's, ResNet, ConvNeXt, ..."""

    def __init__(self, config: ImageTowerConfig, image_size: int, model: Any):
        super().__init__()
        self.config = config
        self.model = model
        if config.pooling != "model":
            drop_pooler(model)
        if getattr(model.config, "is_encoder_decoder", False) or model.main_input_name != "pixel_values":
            raise ModelError(f"{type(model).__name__} is no plain vision encoder; choose one like ViT or DINO")
        try:
            self._measure(image_size, str(model.config.model_type))
        except (TypeError, AttributeError) as error:  # a text model, or one that wants more than pixels
            raise ModelError(f"{type(model).__name__} is no plain vision encoder: {error}") from None

    @classmethod
    def from_sources(cls, config: ImageTowerConfig, image_size: int, say: Say) -> HuggingFaceImageTower:
        """With pretrained weights from the first source that loads; random ones if no source is named."""
        if not config.weights:
            return cls(config, image_size, build_model(config.architecture, "image tower"))
        return first_that_loads(
            "image tower", config.weights, lambda source: cls(config, image_size, load_model(source)), say
        )

    @property
    def architecture(self) -> dict[str, Any]:  # type: ignore[override]
        """The Hugging Face configuration as plain data."""
        return architecture_of(self.model)

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=pixels_B3HW)
        if self.config.pooling == "model":
            return pooled_output(output, "image tower")
        states = output.last_hidden_state
        if states.ndim == 3:
            return states[:, 0] if self.config.pooling == "first" else states.mean(1)
        if self.config.pooling == "first":
            raise ModelError("image tower: has no first token to pool by", "Set model.image.pooling to mean.")
        return states.mean((2, 3))

    def blocks(self) -> list[list[nn.Parameter]]:
        return by_depth(self, longest_list(self.model))


def build_image_tower(config: ImageTowerConfig, image_size: int, say: Say) -> ImageTower:
    """A new tower with the pretrained weights that `config` names, or random ones. Raises ModelError."""
    if config.kind == "timm":
        tower = TimmTower(config, image_size)
        tower.load_pretrained(image_size, say)
        return tower
    if config.kind == "huggingface":
        return HuggingFaceImageTower.from_sources(config, image_size, say)
    return OpenClipImageTower.from_name(config, image_size)


def image_tower_skeleton(
    config: ImageTowerConfig, image_size: int, architecture: Mapping[str, Any] | None
) -> ImageTower:
    """A tower with random weights, from what was saved of one. Raises ModelError."""
    if config.kind == "timm":
        return TimmTower(config, image_size)
    if architecture is None:
        raise ModelError(f"the image tower is of kind {config.kind}, but its image_architecture is missing")
    if config.kind == "huggingface":
        return HuggingFaceImageTower(config, image_size, build_model(architecture, "image tower"))
    return OpenClipImageTower(config, image_size, architecture)


def _create(name: str, image_size: int, pretrained: bool = False) -> nn.Module:
    """A timm model; its size is told to those that must know it (transformers), and kept from those that need not.

    Channels last in memory is what convolutions are fast in, on CPUs (three times) and GPUs; transformers do not mind.
    """
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=image_size)
    except TypeError:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model.to(memory_format=torch.channels_last)


def classifiers(model: Any) -> tuple[str, ...]:
    """Beginnings of the names that a timm model's classifier would have."""
    classifier = model.default_cfg.get("classifier") or ()
    return tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))
