"""The loss of a batch: the terms that the configuration weighs, and their sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from cliplet.config import LossConfig, StageLossConfig
from cliplet.errors import TrainingError
from cliplet.losses import hard_negative_margin, info_nce, siglip
from cliplet.models.dual_encoder import Output

Term = Callable[[Output, torch.Tensor, LossConfig], torch.Tensor]

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


def loss_in_stage(loss: LossConfig, stage: StageLossConfig) -> LossConfig:
    """`loss` with the weights that a stage changes."""
    changes = {name: weight for name, weight in stage.model_dump().items() if weight is not None}
    return loss.model_copy(update=changes)


def weights_of(loss: LossConfig) -> dict[str, float]:
    """The weight of each term that has one. Raises TrainingError when none has."""
    weights = {name: getattr(loss, name) for name in TERMS if getattr(loss, name) > 0}
    if not weights:
        names = ", ".join(f"loss.{name}" for name in TERMS)
        raise TrainingError(
            "the loss has no term: all its weights are 0", f"Give a weight to one of {names}, or in that stage's loss."
        )
    return weights


def loss_terms(output: Output, caption_image_C: torch.Tensor, loss: LossConfig) -> dict[str, torch.Tensor]:
    """Each weighed term's value, not yet times its weight."""
    return {name: TERMS[name](output, caption_image_C, loss) for name in weights_of(loss)}


def total(terms: dict[str, torch.Tensor], loss: LossConfig) -> torch.Tensor:
    """The sum of the terms, each times its weight: what is minimised."""
    weights = weights_of(loss)
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def chance_loss(loss: LossConfig, images: int, captions_per_image: int) -> float:
    """The loss of a model that tells no pair from another: all its features are alike, its bias the best there is.

    In closed form, for the logits of a large batch would fill the memory. InfoNCE towards shared targets is ln B, and
    the side with the first caption as target ln(1 + (B - 1) K); SigLIP's best sigmoid is the share of right pairs.
    """
    wrong, batch = images - 1, math.log(images)
    first = math.log(1 + wrong * captions_per_image)
    chances = {
        "info_nce": batch if loss.soft_targets else (first + batch) / 2,
        "siglip": batch - wrong * math.log1p(-1 / images) if wrong else 0.0,
        "hard_negative": loss.margin if wrong else 0.0,
    }
    return sum(weight * chances[name] for name, weight in weights_of(loss).items())
