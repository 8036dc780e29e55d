"""Multi-positive InfoNCE. B images, C captions, D embed_dim."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cliplet.losses._logits import caption_logits


def info_nce(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    caption_image_C: torch.Tensor,
    soft_targets: bool = True,
) -> torch.Tensor:
    """Symmetric contrastive loss in which every caption of a picture is right; a scalar in float32 (or float64).

    `image_BD`, `text_CD`: unit features. `logit_scale`: the factor itself, not its logarithm.
    `caption_image_C`: for each caption the row of its picture, so pictures may have any number of captions.

    Image to text: KL divergence from the target that is uniform over the picture's captions. With
    `soft_targets=False`, cross-entropy against the picture's first caption, the one that comes first in `text_CD`;
    its other captions are left out of the softmax, for they are right too and no negatives. A picture without
    captions has no target and is left out of this mean. Text to image: cross-entropy of each caption against
    its picture. The loss is the mean of the two. With one caption a picture it is the loss of CLIP (Radford et al.
    2021, arXiv:2103.00020); uniform targets as in supervised contrastive learning (Khosla et al. 2020,
    arXiv:2004.11362) and TinyCLIP-ConvFFN. Being a divergence, it starts near ln B in both directions for any K
    captions a picture, and features that are all alike give exactly ln B. Only with `soft_targets=False` the first
    direction starts at ln(1 + (B - 1) K) instead.

    Raises ValueError where the shapes do not fit each other.
    """
    logits_BC, owned_BC = caption_logits(image_BD, text_CD, logit_scale, caption_image_C)
    return (image_to_text(logits_BC, owned_BC, soft_targets) + text_to_image(logits_BC, caption_image_C)) / 2


def image_to_text(logits_BC: torch.Tensor, owned_BC: torch.Tensor, soft_targets: bool = True) -> torch.Tensor:
    """The half of `info_nce` in which each picture looks for its captions, `owned_BC` being true at those."""
    count_B = owned_BC.sum(1).to(logits_BC.dtype)
    has_caption_B = count_B > 0
    if soft_targets:
        target_BC = owned_BC / count_B.clamp(min=1)[:, None]
        divergence_B = -(target_BC * logits_BC.log_softmax(1)).sum(1) - count_B.clamp(min=1).log()
    else:
        first_B = owned_BC.int().argmax(1)  # argmax gives the first of equals
        later_BC = owned_BC & (owned_BC.cumsum(1) > 1)
        divergence_B = F.cross_entropy(logits_BC.masked_fill(later_BC, -torch.inf), first_B, reduction="none")
    return (divergence_B * has_caption_B).sum() / has_caption_B.sum()


def text_to_image(logits_BC: torch.Tensor, caption_image_C: torch.Tensor) -> torch.Tensor:
    """The half of `info_nce` in which each caption looks for its picture."""
    return F.cross_entropy(logits_BC.T, caption_image_C)
