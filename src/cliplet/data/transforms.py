"""Training augmentation as stored parameters: drawn first, applied after, so that any view can be made again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cliplet.config import AugmentConfig
from cliplet.runtime.preprocess import resized_crop


@dataclass(frozen=True, slots=True)
class View:
    """One augmented view of a picture. Places are shares of the picture's width and height, in 0..1."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool


def draw_view(width: int, height: int, config: AugmentConfig, random: np.random.Generator) -> View:
    """A random crop and flip of a picture of `width` x `height` pixels.

    Area and log aspect ratio are uniform, as in torchvision's RandomResizedCrop. Where a crop of that ratio would not
    fit, the nearest ratio that fits is taken instead of another draw: the area stays the one drawn, and each view
    takes the same number of random values.
    """
    area, ratio, place_x, place_y, coin = random.random(5)
    area = config.crop_scale[0] + area * (config.crop_scale[1] - config.crop_scale[0])
    low, high = (math.log(value) for value in config.crop_ratio)
    # The ratio is relative to the picture's own, so that a crop of the whole area is the whole picture.
    side = math.sqrt(area)
    stretch = min(max(math.exp((low + ratio * (high - low)) / 2), side), 1 / side)
    crop_width, crop_height = min(1.0, side * stretch), min(1.0, side / stretch)
    left, top = place_x * (1 - crop_width), place_y * (1 - crop_height)
    return View(left, top, left + crop_width, top + crop_height, bool(coin < config.flip))


def apply_view(image: Image.Image, view: View, size: int) -> np.ndarray:
    """The view of an RGB picture as (size, size, 3) uint8."""
    box = (view.left * image.width, view.top * image.height, view.right * image.width, view.bottom * image.height)
    pixels = resized_crop(image, box, size)
    return pixels[:, ::-1] if view.flip else pixels
