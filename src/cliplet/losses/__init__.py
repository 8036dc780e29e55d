"""Losses: pure functions of tensors, all over `caption_image`."""

from cliplet.losses.contrastive import info_nce

__all__ = ["info_nce"]
