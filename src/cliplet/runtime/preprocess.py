"""The evaluation transform, without torch. Training validates through this very function, so the two cannot differ."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cliplet.config import PreprocessConfig
from cliplet.data.images import ImageLike, load_image


def preprocess_image(source: ImageLike, config: PreprocessConfig) -> np.ndarray:
    """A picture as the model's square: (S, S, 3) uint8, S = image_size.

    Shorter side to image_size / crop_fraction, bicubic with antialiasing, then the centre: the same pixels
    as torchvision's Resize and CenterCrop but for the rounding of the crop, done here in one resampling. With `squash`
    the whole picture, its aspect ratio given up; crop_fraction then has no part.
    Normalisation is left to the model, which does it where it runs. Raises ImageError.
    """
    size = config.image_size
    if config.resize == "squash":
        image = load_image(source, smallest_side=size)
        return resized_crop(image, (0, 0, image.width, image.height), size)
    image = load_image(source, smallest_side=round(size / config.crop_fraction))
    side = min(image.size) * config.crop_fraction
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return resized_crop(image, (left, top, left + side, top + side), size)


def resized_crop(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part of an RGB picture inside `box` (left, top, right, bottom; pixels, may be fractions),
    resampled to (size, size, 3) uint8."""
    if image.size == (size, size) and box == (0, 0, size, size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
