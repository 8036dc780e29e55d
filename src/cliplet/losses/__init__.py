"""Losses: pure functions of tensors. The contrastive ones all over `caption_image`; distillation is a module."""

from cliplet.losses import distillation
from cliplet.losses.contrastive import info_nce
from cliplet.losses.hard_negative import hard_negative_margin
from cliplet.losses.sigmoid import siglip

__all__ = ["distillation", "hard_negative_margin", "info_nce", "siglip"]
