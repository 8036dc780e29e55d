"""The loss of a batch: the terms that the configuration weighs, and their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cliplet.config import LossConfig, RunConfig, StageConfig
from cliplet.errors import TrainingError
from cliplet.losses import distillation, hard_negative_margin, info_nce, siglip
from cliplet.losses.distillation import TeacherFeatures
from cliplet.models.dual_encoder import Output


class Lesson(NamedTuple):
    """What teachers say of a batch, and how a student compares itself with them."""

    teachers: Sequence[TeacherFeatures]
    projected: Sequence[tuple[torch.Tensor, torch.Tensor]]  # student's features (B, T), (C, T) in each one's width
    affinity_scale: float | None = None
    train_temperature: bool = True


Term = Callable[[Output, torch.Tensor, LossConfig], torch.Tensor]
TaughtTerm = Callable[[Output, torch.Tensor, LossConfig, Lesson], torch.Tensor]


def _feature(output: Output, owners_C: torch.Tensor, loss: LossConfig, lesson: Lesson) -> torch.Tensor:
    term = {"mse": distillation.feature_mse, "cosine": distillation.feature_cosine}[loss.feature_distance]
    pairs = zip(lesson.projected, lesson.teachers, strict=True)
    return _mean([distillation.feature_loss(*ours, theirs.image, theirs.text, term) for ours, theirs in pairs])


def _logit(output: Output, owners_C: torch.Tensor, loss: LossConfig, lesson: Lesson) -> torch.Tensor:
    scale = output.logit_scale if lesson.train_temperature else output.logit_scale.detach()
    return distillation.ensemble_kl(*output[:2], scale, lesson.teachers)


def _affinity(output: Output, owners_C: torch.Tensor, loss: LossConfig, lesson: Lesson) -> torch.Tensor:
    if lesson.affinity_scale is None:
        return _logit(output, owners_C, loss, lesson)
    teachers = [teacher._replace(logit_scale=lesson.affinity_scale) for teacher in lesson.teachers]
    return distillation.ensemble_kl(*output[:2], lesson.affinity_scale, teachers)


def _interactive(output: Output, owners_C: torch.Tensor, loss: LossConfig, lesson: Lesson) -> torch.Tensor:
    each = lesson.teachers
    return _mean(
        [distillation.interactive(*output[:3], one.image, one.text, owners_C, loss.soft_targets) for one in each]
    )


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()


# Each takes a batch's output and caption_image_C, and gives a scalar.
TERMS: dict[str, Term] = {
    "info_nce": lambda output, owners, loss: info_nce(*output[:3], owners, loss.soft_targets),
    "siglip": lambda output, owners, loss: siglip(
        *output[:3], owners, 0.0 if output.logit_bias is None else output.logit_bias
    ),
    "hard_negative": lambda output, owners, loss: hard_negative_margin(
        *output[:3], owners, loss.hard_negatives, loss.margin
    ),
}
# Each takes the lesson too.
TAUGHT_TERMS: dict[str, TaughtTerm] = {
    "feature": _feature,
    "logit": _logit,
    "affinity": _affinity,
    "interactive": _interactive,
}


def loss_in_stage(config: RunConfig, stage: StageConfig) -> LossConfig:
    """A run's loss with the weights that a stage changes, and without the teachers' terms where they are switched
    off."""
    changes = {name: weight for name, weight in stage.loss.model_dump().items() if weight is not None}
    if not config.distil.enabled:
        changes |= dict.fromkeys(TAUGHT_TERMS, 0.0)
    return config.loss.model_copy(update=changes)


def weights_of(loss: LossConfig) -> dict[str, float]:
    """The weight of each term that has one. Raises TrainingError when none has."""
    weights = {name: getattr(loss, name) for name in (*TERMS, *TAUGHT_TERMS) if getattr(loss, name) > 0}
    if not weights:
        names = ", ".join(f"loss.{name}" for name in (*TERMS, *TAUGHT_TERMS))
        raise TrainingError(
            "the loss has no term: all its weights are 0", f"Give a weight to one of {names}, or in that stage's loss."
        )
    return weights


def is_taught(loss: LossConfig) -> bool:
    """Whether a loss has a term of teachers'."""
    return bool(TAUGHT_TERMS.keys() & weights_of(loss).keys())


def loss_terms(
    output: Output, caption_image_C: torch.Tensor, loss: LossConfig, lesson: Lesson | None = None
) -> dict[str, torch.Tensor]:
    """Each weighed term's value, not yet times its weight. Raises TrainingError for a teachers' term without one."""
    terms = {}
    for name in weights_of(loss):
        if name in TERMS:
            terms[name] = TERMS[name](output, caption_image_C, loss)
        elif lesson is None:
            raise TrainingError(f"loss.{name} has a weight, but there is no teacher", NAME_A_TEACHER)
        elif name == "affinity" and lesson.affinity_scale is None and "logit" in terms:
            terms[name] = terms["logit"]  # the same quantity
        else:
            terms[name] = TAUGHT_TERMS[name](output, caption_image_C, loss, lesson)
    return terms


NAME_A_TEACHER = (
    "Name one with --distil.teachers, or a store with --distil.store; or go without: --distil.enabled False."
)


def total(terms: dict[str, torch.Tensor], loss: LossConfig) -> torch.Tensor:
    """The sum of the terms, each times its weight: what is minimised."""
    weights = weights_of(loss)
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
