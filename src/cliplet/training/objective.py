"""The loss of a batch: the terms that the configuration weighs, and their sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

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


@lru_cache(maxsize=8)  # it is asked for again and again, and takes a matrix as large as a batch's
def chance_loss(loss: LossConfig, images: int, captions_per_image: int) -> float:
    """The loss of a model that tells no pair from another: all its features are alike, its bias the best there is."""
    same = torch.ones(1, 1, dtype=torch.float64)
    owners_C = torch.arange(images).repeat_interleave(captions_per_image)
    # With every logit the same, SigLIP is least where its sigmoid is the share of pairs that belong together.
    bias = torch.tensor(-math.log(max(images - 1, 1e-9)) - 1, dtype=torch.float64)
    output = Output(same.expand(images, 1), same.expand(len(owners_C), 1), torch.tensor(1.0), bias)
    return float(total(loss_terms(output, owners_C, loss), loss))
