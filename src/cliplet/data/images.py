"""Files, bytes and arrays to RGB pictures: a fast way for JPEGs, orientation, modes, limits. No torch."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from cliplet.data.places import read_bytes
from cliplet.errors import ImageError

MAX_PIXELS = 200_000_000  # a decompression bomb is larger; the largest camera pictures are not
MAX_BYTES = 512 * 2**20
# What photographs come in. Pillow reads more, but hands EPS to an outside interpreter, and decodes an ICO when it is
# opened, before its size can be looked at.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "HEIF")
JPEG_START = b"\xff\xd8\xff"
START_OF_SCAN, EXIF_SEGMENT = b"\xda", b"\xe1"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_SWAPPED = tuple(TURNS[number] for number in (5, 6, 7, 8))
MIN_SIDE = 2  # a 1x1 picture is a placeholder or a tracking pixel, not a photograph

# Pillow warns of odd metadata; what matters it raises. Once and for all threads: `warnings.catch_warnings` is for one.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding, with our own message
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a picture half grey is a wrong picture

ImageLike = str | Path | bytes | Image.Image | np.ndarray


def load_image(source: ImageLike, smallest_side: int | None = None) -> Image.Image:
    """Any picture as an upright 8-bit RGB one; see `decode_image`, of which it is the Pillow image."""
    return decode(source, smallest_side).image()


def decode_image(source: ImageLike, smallest_side: int | None = None) -> np.ndarray:
    """Any picture as upright 8-bit RGB pixels: (H, W, 3) uint8.

    `source`: a path or another place (`data/places.py`), an encoded file's bytes, a Pillow image, or an array (H, W),
    (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or of floats in 0..1. `smallest_side`: pixels beyond which the shorter
    side need not be kept; it lets a large JPEG be decoded at a half, a quarter or an eighth of its size.

    EXIF orientation is applied, transparency laid on white, 16-bit scaled to 8, CMYK and palettes converted, of an
    animation the first frame taken.

    Raises ImageError with the reason: missing, not a picture, truncated, too large or 1x1.
    """
    return decode(source, smallest_side).array()


class Decoded(NamedTuple):
    """A decoded picture, in whichever form its decoder gave it: converting it unasked would take time for nothing."""

    picture: Image.Image | np.ndarray
    width: int  # of the whole picture, upright, before any reduction
    height: int
    reduction: int = 1  # pixels of the whole picture, in each direction, to one of these: 1, 2, 4 or 8

    def image(self) -> Image.Image:
        """As a Pillow image."""
        return self.picture if isinstance(self.picture, Image.Image) else Image.fromarray(self.picture)

    def array(self) -> np.ndarray:
        """As (H, W, 3) uint8."""
        return np.asarray(self.picture) if isinstance(self.picture, Image.Image) else self.picture


def decode(source: ImageLike, smallest_side: int | None = None, name: str = "") -> Decoded:
    """Any picture as an upright 8-bit RGB one, with the size that it had; see `decode_image`.

    `name` is what messages call the picture, where the source itself does not say.
    """
    name = name or _name(source)
    try:
        if isinstance(source, (str, Path, bytes)):
            data = source if isinstance(source, bytes) else read_bytes(source, MAX_BYTES)
            decoded = _fast_jpeg(data, smallest_side, name)
            if decoded:
                return decoded
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        else:
            image = _from_array(source) if isinstance(source, np.ndarray) else source
        _check_size(image.size, name)
        width, height = image.size
        factor = 1
        if image.format == "JPEG" and image is not source:  # a caller's own picture stays whole
            factor = _reduction(width, height, smallest_side)
            image.draft(None, (width // factor, height // factor))
        image.load()
        upright = _upright(image)
        turned = upright.size != image.size and upright.size == image.size[::-1]
        size = (height, width) if turned else (width, height)
        return Decoded(_to_rgb(upright), *size, factor)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture, or of a kind that Pillow does not read") from None
    except Exception as error:
        # Broken files make Pillow's plug-ins raise nearly anything; all of it means one thing.
        raise ImageError(f"{name}: cannot be decoded: {error}") from None


def _fast_jpeg(data: bytes, smallest_side: int | None, name: str) -> Decoded | None:
    """A plain JPEG by libjpeg-turbo without the way through Pillow; None for what Pillow has to look at.

    The pixels are the same as Pillow's at every size. What is in doubt, damaged data too, is left to Pillow, so that
    a picture is refused for one reason only.
    """
    if data[:3] != JPEG_START:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray", "RGB"):  # inks, which only Pillow converts
            return None
        _check_size((width, height), name)
        factor = _reduction(width, height, smallest_side)
        pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor), min_factor=factor
        )
    except ValueError:
        return None
    turn = _orientation(data)
    if turn is None:
        return Decoded(pixels, width, height, factor)
    size = (height, width) if turn in SIDES_SWAPPED else (width, height)
    return Decoded(Image.fromarray(pixels).transpose(turn), *size, factor)


def _reduction(width: int, height: int, smallest_side: int | None) -> int:
    """How much smaller a JPEG may be decoded: 1, 2, 4 or 8, the sizes for which decoders have fast code."""
    if not smallest_side:
        return 1
    return next((factor for factor in (8, 4, 2) if min(width, height) >= factor * smallest_side), 1)


def _orientation(data: bytes) -> Image.Transpose | None:
    """How a JPEG has to be turned, by its EXIF data."""
    if not _has_exif(data):
        return None
    try:
        tag = Image.open(io.BytesIO(data), formats=["JPEG"]).getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata is no reason to lose a good picture
        return None
    return TURNS.get(tag) if isinstance(tag, int) else None


def _has_exif(data: bytes) -> bool:
    """Whether a JPEG has EXIF data, by the marks of its segments: Pillow would take longer to open it."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != START_OF_SCAN:
        if data[place + 1 : place + 2] == EXIF_SEGMENT and data[place + 4 : place + 10] == b"Exif\0\0":
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with, and HEIC where its decoder is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
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


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
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
