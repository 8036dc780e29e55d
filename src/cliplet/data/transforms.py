"""Training augmentation as stored parameters: drawn first, applied after, so that any view can be made again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cliplet.config import AugmentConfig

DRAWS_A_VIEW = 5


@dataclass(frozen=True, slots=True)
class View:
    """One augmented view of a picture. Places are shares of the picture's width and height, in 0..1."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool


def draw_view(config: AugmentConfig, draws: Sequence[float]) -> View:
    """A random crop and flip, from DRAWS_A_VIEW numbers that are uniform in [0, 1).

    Area and log aspect ratio are uniform, as in torchvision's RandomResizedCrop. Where a crop of that ratio would not
    fit, the nearest ratio that fits is taken instead of another draw: the area stays the one drawn, and each view
    takes the same number of random values.
    """
    area, ratio, place_x, place_y, coin = draws
    area = config.crop_scale[0] + area * (config.crop_scale[1] - config.crop_scale[0])
    low, high = (math.log(value) for value in config.crop_ratio)
    # The ratio is relative to the picture's own, so that a crop of the whole area is the whole picture.
    side = math.sqrt(area)
    stretch = min(max(math.exp((low + ratio * (high - low)) / 2), side), 1 / side)
    crop_width, crop_height = min(1.0, side * stretch), min(1.0, side / stretch)
    left, top = place_x * (1 - crop_width), place_y * (1 - crop_height)
    return View(left, top, left + crop_width, top + crop_height, bool(coin < config.flip))


def apply_view(pixels_HW3: np.ndarray, view: View, size: int) -> torch.Tensor:
    """The view of an RGB picture (H, W, 3) uint8 as a (size, size, 3) uint8 tensor; bicubic with antialiasing.

    Crops are cut at whole pixels. PyTorch resamples bytes as Pillow does, in a fifth of the time.
    """
    height, width, _ = pixels_HW3.shape
    left, right = _whole(view.left * width, view.right * width, width)
    top, bottom = _whole(view.top * height, view.bottom * height, height)
    crop_HW3 = pixels_HW3[top:bottom, left:right]
    if not crop_HW3.flags.writeable:  # PyTorch takes no memory that must not be written to
        crop_HW3 = crop_HW3.copy()
    # The batch's side is added before the channels move: only so PyTorch sees channels that stand last in memory.
    crop_13HW = torch.from_numpy(crop_HW3)[None].permute(0, 3, 1, 2)
    if crop_13HW.shape[2:] != (size, size):
        crop_13HW = F.interpolate(crop_13HW, (size, size), mode="bicubic", antialias=True)
    square = crop_13HW[0].permute(1, 2, 0)
    return square.flip(1) if view.flip else square


def _whole(start: float, end: float, length: int) -> tuple[int, int]:
    """The nearest whole pixels, one at least."""
    first = min(round(start), length - 1)
    return first, max(first + 1, round(end))
