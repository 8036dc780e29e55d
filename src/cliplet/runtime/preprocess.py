"""The evaluation transform, without torch. Training validates through this very function, so the two cannot differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from cliplet.config import PreprocessConfig
from cliplet.data.images import ImageLike, decode

DECODED_SIDES = 3  # a decoder's own reduction is coarser than bicubic, so most of the way is left to the latter


class Grid(NamedTuple):
    """How a picture becomes a square: resized to `width` x `height` pixels, of which the square at `left`, `top` is
    taken."""

    width: int
    height: int
    left: int
    top: int


def evaluation_grid(width: int, height: int, config: PreprocessConfig) -> Grid:
    """The sizes and places of torchvision's Resize and CenterCrop for a picture of `width` x `height` pixels.

    Shorter side to image_size / crop_fraction, then the centre. With `squash` the whole picture, its aspect ratio
    given up; crop_fraction then has no part.
    """
    size = config.image_size
    if config.resize == "squash":
        return Grid(size, size, 0, 0)
    short = round(size / config.crop_fraction)
    long = int(short * max(width, height) / min(width, height))
    new_width, new_height = (short, long) if width <= height else (long, short)
    return Grid(new_width, new_height, round((new_width - size) / 2), round((new_height - size) / 2))


def preprocess_image(source: ImageLike, config: PreprocessConfig) -> np.ndarray:
    """A picture as the model's square: (S, S, 3) uint8, S = image_size; see `evaluation_grid`.

    Bicubic with antialiasing: the same pixels as torchvision's Resize and CenterCrop of a Pillow image, but only those
    that are kept are computed. A large JPEG is decoded at reduced size where that leaves DECODED_SIDES times the pixels
    needed. Normalisation is left to the model, which does it where it runs. Raises ImageError.
    """
    decoded = decode(source, smallest_side=decoded_side(config))
    size, grid = config.image_size, evaluation_grid(decoded.width, decoded.height, config)
    image = decoded.image()
    if image.size == (grid.width, grid.height):
        return np.asarray(image.crop((grid.left, grid.top, grid.left + size, grid.top + size)))
    if (grid.width, grid.height) == (size, size):
        edges = (0, 0, decoded.width / decoded.reduction, decoded.height / decoded.reduction)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=edges))
    # Pixels of the picture to one of the grid. A reduced picture may reach a little beyond the whole one's edges.
    across = decoded.width / decoded.reduction / grid.width
    down = decoded.height / decoded.reduction / grid.height
    # Rows first and then columns, each in a call of its own: Pillow would choose the order by the sizes, and with it
    # how the values between are rounded.
    rows = (grid.left * across, 0, min((grid.left + size) * across, image.width), image.height)
    image = image.resize((size, image.height), Image.Resampling.BICUBIC, box=rows)
    columns = (0, grid.top * down, size, min((grid.top + size) * down, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=columns))


def decoded_side(config: PreprocessConfig) -> int:
    """Pixels beyond which a JPEG's shorter side is not needed for the evaluation transform."""
    fraction = 1.0 if config.resize == "squash" else config.crop_fraction
    return round(DECODED_SIDES * config.image_size / fraction)
