"""What the losses share: shapes checked, logits in full precision, whose caption is whose. B images, C captions,
D features."""

from __future__ import annotations

import torch


def scaled_logits(image_BD: torch.Tensor, text_CD: torch.Tensor, logit_scale: torch.Tensor | float) -> torch.Tensor:
    """`logit_scale` times the cosines of unit features, (B, C); in float32 (or float64) whatever autocast is on.

    Raises ValueError where the features are no matrices of one width, or have no rows.
    """
    if image_BD.ndim != 2 or text_CD.ndim != 2 or image_BD.shape[1] != text_CD.shape[1]:
        raise ValueError(
            f"image features {tuple(image_BD.shape)} and text features {tuple(text_CD.shape)} do not fit each other"
        )
    if not len(image_BD) or not len(text_CD):
        raise ValueError("a loss needs at least one image and one caption")
    image_BD, text_CD = full_precision(image_BD), full_precision(text_CD)
    with torch.autocast(image_BD.device.type, enabled=False):
        return logit_scale * image_BD @ text_CD.T


def caption_logits(
    image_BD: torch.Tensor, text_CD: torch.Tensor, logit_scale: torch.Tensor | float, caption_image_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`scaled_logits`, and a mask (B, C) that is true where the caption belongs to the image.

    Raises ValueError where shapes do not fit. The values of `caption_image_C` are not looked at: reading them would
    make every step wait for the device.
    """
    if caption_image_C.shape != text_CD.shape[:1]:
        raise ValueError(
            f"text features {tuple(text_CD.shape)} and caption_image {tuple(caption_image_C.shape)} do not fit each "
            "other: every caption needs the row of its picture"
        )
    logits_BC = scaled_logits(image_BD, text_CD, logit_scale)
    return logits_BC, caption_image_C == torch.arange(len(image_BD), device=caption_image_C.device)[:, None]


def full_precision(features: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
