"""Image towers: any timm model behind one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from cliplet.config import ImageTowerConfig
from cliplet.errors import ModelError, nearest
from cliplet.models.sources import first_that_loads, load_exactly, read_weights, resolve


class ImageTower(nn.Module):
    """A timm model without its classifier: normalised pixels (B, 3, S, S) to features (B, width)."""

    def __init__(self, config: ImageTowerConfig, image_size: int):
        super().__init__()
        if not timm.is_model(config.name):
            raise ModelError(f"there is no timm model {config.name!r}", nearest(config.name, timm.list_models()))
        self.config = config
        try:
            self.model: Any = _create(config.name, image_size)
            with torch.no_grad():  # asked of the model itself, for timm's num_features is not always what comes out
                self.width = self.model.eval()(torch.zeros(1, 3, image_size, image_size)).shape[-1]
        except (AssertionError, RuntimeError, ValueError) as error:  # a size that the patches do not divide, say
            raise ModelError(
                f"image tower {config.name}: cannot be built for {image_size} pixels: {error}",
                "Set model.preprocess.image_size to a size that it takes.",
            ) from None

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.model(pixels_B3HW)

    def blocks(self) -> list[list[nn.Parameter]]:
        """The tower's parameters by depth, from input to output, as timm groups them; stem first, final norm last."""
        depth_of = group_parameters(self.model, self.model.group_matcher(coarse=True), reverse=True)
        blocks: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            blocks.setdefault(depth_of[name], []).append(parameter)
        return [blocks[depth] for depth in sorted(blocks)]

    def train(self, mode: bool = True) -> ImageTower:
        """Training mode, in which batch norm keeps its statistics where they are frozen or its weights are."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                module.train(mode and self.config.train_batch_norm and not frozen)
        return self

    def load_pretrained(self, image_size: int, say: Callable[[str], None]) -> None:
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
        classifier = self.model.default_cfg.get("classifier") or "\0"
        heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
        load_exactly(self.model, read_weights(file), str(file), ignore=tuple(f"{head}." for head in heads))


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
