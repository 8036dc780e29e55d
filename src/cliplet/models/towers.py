"""What image towers and text towers share: their interface, and their parameters by depth.

Shapes: B images, S image_size, N texts, L tokens, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cliplet.config import ImageTowerConfig, TextTowerConfig
from cliplet.errors import ModelError


class ImageTower(nn.Module):
    """Normalised pixels (B, 3, S, S) to features (B, width)."""

    config: ImageTowerConfig
    model: nn.Module
    width: int
    architecture: dict[str, Any] | None = None  # None: the configuration says it all

    def blocks(self) -> list[list[nn.Parameter]]:
        """The tower's parameters by depth, from input to output; stem first, final norm with the last."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> ImageTower:
        """Training mode, in which batch norm keeps its statistics where they are frozen or its weights are; and none
        of it for a tower that is frozen whole, which computes as in evaluation, without dropout."""
        mode = mode and is_trained(self)
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                module.train(mode and self.config.train_batch_norm and not frozen)
        return self

    def _measure(self, image_size: int, name: str) -> None:
        """Sets `width`, asked of the tower itself, for what libraries say of it is not always what comes out."""
        try:
            with torch.no_grad():
                self.width = self.eval()(torch.zeros(1, 3, image_size, image_size)).shape[-1]
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:  # a size that its patches do not divide
            raise ModelError(
                f"image tower {name}: cannot be built for {image_size} pixels: {error}",
                "Set model.preprocess.image_size to a size that it takes.",
            ) from None


class TextTower(nn.Module):
    """Token ids and mask, both (N, L), to features (N, width). Padding never changes them."""

    config: TextTowerConfig
    width: int
    architecture: dict[str, Any] | None

    def train(self, mode: bool = True) -> TextTower:
        """Training mode, but not for a tower that is frozen whole, which computes as in evaluation, without dropout."""
        super().train(mode and is_trained(self))
        return self

    def states(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        """A state for each token, (N, L, width); those at padding mean nothing."""
        raise NotImplementedError

    def check_states(self) -> None:
        """Raises ModelError where the tower has no states to give."""
        raise ModelError(
            f"a text tower of kind {self.config.kind} gives no states of its tokens",
            "Choose a head that needs none: model.text_head.kind other than convffn.",
        )

    def blocks(self) -> list[list[nn.Parameter]]:
        """The tower's parameters by depth, from input to output; embeddings first, final norm with the last."""
        raise NotImplementedError


def is_trained(tower: nn.Module) -> bool:
    """Whether any of its parameters is."""
    return any(parameter.requires_grad for parameter in tower.parameters())


def by_depth(tower: nn.Module, layers: list[list[nn.Parameter]]) -> list[list[nn.Parameter]]:
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


def longest_list(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a model's layers, taken to be the longest of its module lists; none if it has no list."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers = max(lists, key=len, default=nn.ModuleList())
    return [list(layer.parameters()) for layer in layers]


def final_norms_joined(blocks: list[list[nn.Parameter]]) -> list[list[nn.Parameter]]:
    """`blocks` with a last one of vectors alone (norms, their biases) joined to the one before: by "the last two
    blocks" people mean two blocks and the norm after them."""
    while len(blocks) > 1 and all(parameter.ndim < 2 for parameter in blocks[-1]):
        blocks = [*blocks[:-2], blocks[-2] + blocks[-1]]
    return blocks
