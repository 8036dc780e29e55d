"""Files, bytes and arrays to RGB pictures: orientation, modes, limits. No torch."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from cliplet.errors import ImageError

MAX_PIXELS = 200_000_000  # a decompression bomb is larger; the largest camera pictures are not
MAX_BYTES = 512 * 2**20
# What photographs come in. Pillow reads more, but hands EPS to an outside interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
MIN_SIDE = 2  # a 1x1 picture is a placeholder or a tracking pixel, not a photograph

# Pillow warns of odd metadata; what matters it raises. Once and for all threads: `warnings.catch_warnings` is for one.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding, with our own message
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a picture half grey is a wrong picture

ImageLike = str | Path | bytes | Image.Image | np.ndarray


def load_image(source: ImageLike, smallest_side: int | None = None) -> Image.Image:
    """Any picture as an upright 8-bit RGB one.

    `source`: a path, an encoded file's bytes, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or
    (H, W, 4) of uint8, or of floats in 0..1. `smallest_side`: pixels beyond which the shorter side need not be
    kept; it lets a large JPEG be decoded at a half, a quarter or an eighth of its size.

    EXIF orientation is applied, transparency laid on white, 16-bit scaled to 8, CMYK and palettes converted, of an
    animation the first frame taken.

    Raises ImageError with the reason: missing, not a picture, truncated, too large or 1x1.
    """
    try:
        image = _open(source)
        _check_size(image, _name(source))
        if smallest_side and image.format == "JPEG" and image is not source:  # a caller's own picture stays whole
            image.draft(None, (smallest_side, smallest_side))
        image.load()
        return _to_rgb(_upright(image))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{_name(source)}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{_name(source)}: not a picture, or of a kind that Pillow does not read") from None
    except Exception as error:
        # Broken files make Pillow's plug-ins raise nearly anything; all of it means one thing.
        raise ImageError(f"{_name(source)}: cannot be decoded: {error}") from None


def _open(source: ImageLike) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=_formats())
    path = Path(source)
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not a picture")
    size = path.stat().st_size
    if size == 0:
        raise ImageError(f"{path}: the file is empty")
    if size > MAX_BYTES:
        raise ImageError(f"{path}: {size / 2**20:.0f} MB, over the limit of {MAX_BYTES / 2**20:.0f} MB")
    # Read whole: one call to the file system, and no file stays open when decoding fails.
    return Image.open(io.BytesIO(path.read_bytes()), formats=_formats())


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _from_array(array: np.ndarray) -> Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_fits:
        raise ImageError(f"array of shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("array of floats: expected values from 0 to 1")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"array of {array.dtype}: expected uint8, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} pixels, over the limit of {MAX_PIXELS / 1e6:.0f} megapixels")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels is too small to show anything")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata is no reason to lose a good picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    transparent = "transparency" in image.info  # RGB too: a PNG may name one colour that is not there
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_scaled_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "La":  # Pillow knows no other way out of it
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or transparent:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bit(values: np.ndarray) -> np.ndarray:
    """32 bits do not say their range: 0..1 (floats only), 0..255 or 0..65535, whichever holds the largest number."""
    fractions = np.issubdtype(values.dtype, np.floating)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = values.max(initial=0.0)
    if fractions and largest <= 1.0:
        values = values * 255.0
    elif largest > 255.0:
        values = values / max(257.0, largest / 255.0)
    return values.clip(0, 255).round().astype(np.uint8)


def _name(source: Any) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    if getattr(source, "filename", ""):
        return str(source.filename)
    return {"bytes": "picture given as bytes", "ndarray": "picture given as an array"}.get(
        type(source).__name__, f"picture given as {type(source).__name__}"
    )
