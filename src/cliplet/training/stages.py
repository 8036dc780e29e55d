"""Which parameters train when."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cliplet.config import Blocks, StageConfig
from cliplet.errors import TrainingError
from cliplet.models import DualEncoder


@dataclass(frozen=True)
class Place:
    """Where a stage lies: its number and its first epoch, both from 0."""

    number: int
    first_epoch: int
    stage: StageConfig


def stage_at(stages: tuple[StageConfig, ...], epoch: int) -> Place:
    """The stage that an epoch belongs to."""
    first = 0
    for number, stage in enumerate(stages):
        if epoch < first + stage.epochs:
            return Place(number, first, stage)
        first += stage.epochs
    raise ValueError(f"epoch {epoch} is beyond the {first} epochs of all stages")


def set_trainable(model: DualEncoder, stage: StageConfig) -> str:
    """Freezes and frees parameters as the stage says; returns a line for people on what trains.

    Heads and temperature always train. Raises TrainingError when a tower has fewer blocks than are to train.
    """
    image = _free_last(model.image_tower, stage.image_blocks, "image")
    text = _free_last(model.text_tower, stage.text_blocks, "text")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = f"{trained / 1e6:.1f} of {model.count_parameters() / 1e6:.1f} M parameters"
    return f"heads, image tower: {image}, text tower: {text}; {share}"


def _free_last(tower: nn.Module, count: Blocks, name: str) -> str:
    blocks = tower.blocks()  # type: ignore[operator]
    if count != "all" and count > len(blocks):
        raise TrainingError(
            f"{name}_blocks is {count}, but the {name} tower has {len(blocks)} blocks", "Use a smaller number, or all."
        )
    free = len(blocks) if count == "all" else count
    for depth, block in enumerate(blocks):
        for parameter in block:
            parameter.requires_grad_(depth >= len(blocks) - free)
            if not parameter.requires_grad:
                parameter.grad = None
    return "frozen" if free == 0 else "all" if free == len(blocks) else f"last {free} of {len(blocks)} blocks"
