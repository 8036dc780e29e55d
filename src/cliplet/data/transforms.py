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
COLOURS_A_VIEW = 3
VIEW_NUMBERS = 8
NO_CHANGE = (0.5, 0.5, 0.5)  # draws of colour
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


@dataclass(frozen=True, slots=True)
class View:
    """One augmented view of a picture. Places are shares of the picture's width and height, in 0..1; colours are
    factors, and 1 leaves them as they are."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    @property
    def recoloured(self) -> bool:
        """Whether any colour factor is not 1."""
        return not self.brightness == self.contrast == self.saturation == 1.0

    def numbers(self) -> tuple[float, ...]:
        """VIEW_NUMBERS numbers in the order of the fields; the flip as 0 or 1."""
        places = float(self.left), float(self.top), float(self.right), float(self.bottom)
        return *places, float(self.flip), float(self.brightness), float(self.contrast), float(self.saturation)

    @classmethod
    def of(cls, numbers: Sequence[float] | np.ndarray) -> View:
        """The view of such numbers. Raises ValueError where they are not VIEW_NUMBERS."""
        left, top, right, bottom, flip, brightness, contrast, saturation = (float(number) for number in numbers)
        return cls(left, top, right, bottom, bool(flip), brightness, contrast, saturation)


def stored(view: View) -> View:
    """The view after a trip through float32, which is what a store can replay. Its places are in 0..1."""
    numbers = np.array(view.numbers(), dtype=np.float32)
    numbers[:4] = numbers[:4].clip(0, 1)
    return View.of(numbers)


def draw_view(config: AugmentConfig, draws: Sequence[float], colours: Sequence[float] = NO_CHANGE) -> View:
    """A random crop and flip from DRAWS_A_VIEW numbers, and factors of brightness, contrast and saturation from
    COLOURS_A_VIEW more; all uniform in [0, 1).

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
    amounts = config.brightness, config.contrast, config.saturation
    factors = (1 + (2 * float(colour) - 1) * amount for colour, amount in zip(colours, amounts, strict=True))
    return View(left, top, left + crop_width, top + crop_height, bool(coin < config.flip), *factors)


def apply_view(pixels_HW3: np.ndarray, view: View, size: int) -> torch.Tensor:
    """The view of an RGB picture (H, W, 3) uint8 as a (size, size, 3) uint8 tensor; bicubic with antialiasing.

    Crops are cut at whole pixels. PyTorch resamples bytes as Pillow does, in a fifth of the time. Colours are changed
    after that, so that the time it takes depends on the size alone.
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
    if view.recoloured:
        square = torch.from_numpy(_recoloured(square.numpy(), view))
    return square.flip(1) if view.flip else square


def _recoloured(square_SS3: np.ndarray, view: View) -> np.ndarray:
    """A new (S, S, 3) uint8 square: each pixel is blended with its grey by the saturation, then with the square's mean
    grey by the contrast, then multiplied by the brightness.

    What comes out is rounded and cut to 0..255 once, where torchvision does so after each of the three; so their order
    makes no difference. NumPy does it element by element: matrix products take as long, but their last bits depend on
    the processor and on threads, and PyTorch's own threads stand in each other's way when called from the loader's.
    """
    channel_means = square_SS3.sum(0, dtype=np.int64).sum(0) / square_SS3[..., 0].size
    mean = sum(share * float(value) for share, value in zip(LUMA, channel_means, strict=True))
    gain = view.brightness * view.contrast
    values = square_SS3.astype(np.float32)
    added = values[..., 0] * LUMA[0]
    added += values[..., 1] * LUMA[1]
    added += values[..., 2] * LUMA[2]
    added *= gain * (1 - view.saturation)
    added += view.brightness * (1 - view.contrast) * mean + 0.5  # bytes are cut off below the point
    values *= gain * view.saturation
    for channel in range(3):  # half the time of adding to all at once
        values[..., channel] += added
    return values.clip(0, 255, out=values).astype(np.uint8)


def _whole(start: float, end: float, length: int) -> tuple[int, int]:
    """The nearest whole pixels, one at least."""
    first = min(round(start), length - 1)
    return first, max(first + 1, round(end))
