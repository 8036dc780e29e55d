"""What a loss is by chance, and what to say of a model that is no better."""

from __future__ import annotations

import math

from cliplet.config import LossConfig
from cliplet.training.objective import TERMS, is_taught, weights_of

USUAL_CAUSES = (
    "Usual causes: captions that do not belong to their pictures (look with: cliplet inspect DATA); learning rates too "
    "high or too low by a factor of ten (--optim.head-lr, --optim.image-lr, --optim.text-lr); a tower from scratch "
    "with too little data or too few steps; pretrained weights with another mean and deviation than model.preprocess "
    "says."
)
CHANCE_SHARE = 0.97  # a mean loss above this share of chance has learnt nothing


def warning_at_chance(loss: LossConfig, mean: float, images: int, captions_per_image: int) -> str:
    """What to say where the `mean` of recent losses tells that nothing is learnt; nothing where it does not, and where
    teachers have a part in the loss, for of what they say nobody knows the chance."""
    if is_taught(loss):
        return ""
    chance = chance_loss(loss, images, captions_per_image)
    if mean <= CHANCE_SHARE * chance:
        return ""
    return (
        f"{mean:.2f}, no better than chance ({chance:.2f} for a batch of {images}): the model tells no pair from "
        f"another. {USUAL_CAUSES}"
    )


def chance_loss(loss: LossConfig, images: int, captions_per_image: int) -> float:
    """The loss, but for teachers' terms, of a model that tells no pair from another: all its features are alike, its
    bias the best there is.

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
    return sum(weight * chances[name] for name, weight in weights_of(loss).items() if name in TERMS)
