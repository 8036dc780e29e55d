"""The sigmoid loss: every pair is a question of its own. B images, C captions, D embed_dim."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cliplet.losses._logits import caption_logits


def siglip(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    caption_image_C: torch.Tensor,
    logit_bias: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Sigmoid loss (Zhai et al. 2023, arXiv:2303.15343); a scalar in float32 (or float64).

    `image_BD`, `text_CD`: unit features. `logit_scale`: the factor itself, not its logarithm. `caption_image_C`: for
    each caption the row of its picture. `logit_bias`: added to every logit; since one pair in B is right, training
    starts well only from a bias far below zero (the paper: scale 10, bias -10).

    Every (image, caption) pair costs -log sigmoid(logit) where the caption belongs to the image and
    -log sigmoid(-logit) elsewhere. The loss is the sum over all B x C pairs divided by C: the cost of one caption. A
    second caption of a picture is one more right pair, and a picture without captions has only wrong ones. With one
    caption a picture it is open_clip's `SigLipLoss`.

    Raises ValueError where the shapes do not fit each other.
    """
    logits_BC, owned_BC = caption_logits(image_BD, text_CD, logit_scale, caption_image_C)
    logits_BC = logits_BC + logit_bias
    return -F.logsigmoid(torch.where(owned_BC, logits_BC, -logits_BC)).sum() / len(text_CD)
