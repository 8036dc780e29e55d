"""A margin over the hardest negatives. B images, C captions, D embed_dim, k negatives a caption."""

from __future__ import annotations

import torch

from cliplet.losses._logits import caption_logits


def hard_negative_margin(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    caption_image_C: torch.Tensor,
    k: int = 5,
    margin: float = 0.1,
) -> torch.Tensor:
    """How far the k hardest negatives come within `margin` of the right pair; a scalar in float32 (or float64).

    `image_BD`, `text_CD`: unit features. `logit_scale`: the factor itself, not its logarithm. `caption_image_C`: for
    each caption the row of its picture. `margin`: in units of the scaled logits, not of the cosine.

    For each caption, image to text takes the k largest logits of its picture among other pictures' captions, text to
    image the k largest logits of the caption among other pictures; each negative costs
    max(0, margin + negative - positive), the positive being the caption's logit with its own picture. A direction is
    the mean over all (caption, negative) pairs, the loss the mean of both directions. Where there are fewer than k
    negatives, all there are count; a picture alone has none, and then the direction is 0 and so is its gradient.
    A term of the system "Mini-CLIP from scratch"; the margin after VSE++ (Faghri et al. 2018, arXiv:1707.05612), which
    takes k = 1 and unscaled cosines.

    Raises ValueError for `k` below 1 and where the shapes do not fit each other.
    """
    if k < 1:
        raise ValueError(f"the margin needs at least one hard negative, k is {k}")
    logits_BC, owned_BC = caption_logits(image_BD, text_CD, logit_scale, caption_image_C)
    wrong_BC = logits_BC.masked_fill(owned_BC, -torch.inf)
    captions_Bk = wrong_BC.topk(min(k, len(text_CD)), dim=1).values
    images_Ck = wrong_BC.T.topk(min(k, len(image_BD)), dim=1).values
    positive_C = logits_BC.T.gather(1, caption_image_C[:, None])[:, 0]
    image_to_text = _mean_violation(captions_Bk[caption_image_C], positive_C, margin)
    text_to_image = _mean_violation(images_Ck, positive_C, margin)
    return (image_to_text + text_to_image) / 2


def _mean_violation(negative_Ck: torch.Tensor, positive_C: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean of max(0, margin + negative - positive) over the negatives there are; -inf stands where there is none."""
    # the maximum turns -inf into a plain 0 with a zero gradient, so only the count has to know of it
    violation_Ck = (margin + negative_Ck - positive_C[:, None]).relu()
    return violation_Ck.sum() / (negative_Ck > -torch.inf).sum().clamp(min=1)
