"""Which parameters train when."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cliplet.config import Blocks, OptimConfig, RunConfig, StageConfig
from cliplet.errors import TrainingError
from cliplet.models import DualEncoder
from cliplet.models.towers import ImageTower, TextTower
from cliplet.training.objective import loss_in_stage, weights_of

NAMED = 12  # names of what trains that are listed at most


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


def peak_rates(stage: StageConfig, optim: OptimConfig) -> dict[str, float]:
    """The peak learning rate of each part in a stage: its own, or the optim section's."""
    own = {"image": stage.image_lr, "text": stage.text_lr, "head": stage.head_lr}
    usual = {"image": optim.image_lr, "text": optim.text_lr, "head": optim.head_lr}
    return {part: usual[part] if rate is None else rate for part, rate in own.items()}


def set_trainable(model: DualEncoder, stage: StageConfig) -> str:
    """Freezes and frees parameters as the stage says; returns a line for people on what trains.

    Raises TrainingError when a tower has fewer blocks than are to train, or nothing would train at all.
    """
    image = _free_last(model.image_tower, stage.image_blocks, "image")
    text = _free_last(model.text_tower, stage.text_blocks, "text")
    for parameter in head_parameters(model):
        parameter.requires_grad_(stage.heads)
        if not stage.heads:
            parameter.grad = None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError(
            "a stage trains nothing: both towers are frozen, and the heads too",
            "Set image_blocks, text_blocks or heads of that stage.",
        )
    names = trained_names(model)
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    count = sum(parameter.numel() for parameter in trained)
    return (
        f"image tower: {image}, text tower: {text}, heads and temperature: {'all' if stage.heads else 'frozen'}; "
        f"{count:,} of {model.count_parameters():,} parameters, in {len(trained)} tensors: {listed}"
    )


def trained_parameters(model: DualEncoder, stage: StageConfig) -> int:
    """How many numbers train in a stage. Frees and freezes on the way."""
    set_trainable(model, stage)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def refuse_idle(model: DualEncoder, stage: StageConfig, optim: OptimConfig) -> None:
    """Raises TrainingError for a stage whose trainable parameters all have the learning rate 0."""
    rates = peak_rates(stage, optim)
    parts = {"image": model.image_tower.parameters(), "text": model.text_tower.parameters()}
    moving = [part for part, found in parts.items() if rates[part] and any(p.requires_grad for p in found)]
    if not moving and not (rates["head"] and any(p.requires_grad for p in head_parameters(model))):
        raise TrainingError(
            "a stage trains nothing: the learning rates of all that it frees are 0",
            "Set image_lr, text_lr or head_lr of that stage, or of the optim section.",
        )


def refuse_bad_stages(model: DualEncoder, config: RunConfig) -> None:
    """Raises TrainingError for a stage, the last as well as the first, that cannot be, trains nothing or has no loss.

    Frees and freezes on the way; `set_trainable` has the last word when a stage begins.
    """
    for stage in config.train.stages:
        set_trainable(model, stage)
        refuse_idle(model, stage, config.optim)
        weights_of(loss_in_stage(config, stage))


def head_parameters(model: DualEncoder) -> list[nn.Parameter]:
    """What is in neither tower: heads, temperature, bias."""
    return [p for name, p in model.named_parameters() if not name.startswith(("image_tower.", "text_tower."))]


def trained_names(module: nn.Module, prefix: str = "") -> list[str]:
    """Names of what trains in the fewest words: a module's name and `.*` where all its parameters do."""
    parameters = list(module.parameters())
    if not any(p.requires_grad for p in parameters):
        return []
    if prefix and all(p.requires_grad for p in parameters):
        return [f"{prefix}.*"]
    dot = f"{prefix}." if prefix else ""
    own = [f"{dot}{name}" for name, p in module.named_parameters(recurse=False) if p.requires_grad]
    return own + [name for child, inner in module.named_children() for name in trained_names(inner, f"{dot}{child}")]


def _free_last(tower: ImageTower | TextTower, count: Blocks, name: str) -> str:
    blocks = tower.blocks()
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
