"""One look at every file: read once, decoded once, small. What is found stands in arrays, some 150 bytes a file."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from cliplet.data.duplicates import COARSE, SIDE, coarse_squares, grey_square, perceptual_hashes
from cliplet.data.images import FORMATS, JPEG_START, MAX_BYTES, decode
from cliplet.data.places import file_name, read_bytes
from cliplet.errors import ClipletError

DETAIL = 56  # pixels of the shorter side that a look needs; a JPEG is decoded at a half, a quarter or an eighth for it
BLOCK = 1024  # pictures given to the pool at a time, so that ten million do not wait in memory
TASK = 8  # pictures that a thread takes at once: handing them over one by one takes as long as looking
BLANK = 3.0  # deviation of a picture's grey values below which there is nothing on it
ENDINGS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
    **{f".{name}": name.upper() for name in ("png", "webp", "gif", "bmp", "avif")},
}
COLOURS = {"RGBA": "RGB with transparency", "RGBa": "RGB with transparency", "L": "grey", "LA": "grey", "La": "grey"}
COLOURS |= {"P": "palette", "PA": "palette", "1": "black and white", "I": "32 bit", "F": "32 bit"}
INKS = {"Gray": "grey", "CMYK": "CMYK", "YCCK": "CMYK"}  # of a JPEG
USUAL_COLOURS = ("RGB", "RGB with transparency", "grey")
NOT_THERE = (FileNotFoundError, NotADirectoryError)  # what stands behind an ImageError of a missing file

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Looks:
    """What was found at each of F files. Of one that cannot be used only `reason` and `missing` say something."""

    reason: np.ndarray  # (F,) place in `reasons` why it cannot be used; -1 for a good one
    reasons: tuple[str, ...]
    missing: np.ndarray  # (F,) bool: there is no such file
    width: np.ndarray  # (F,) pixels, upright
    height: np.ndarray
    size: np.ndarray  # (F,) bytes
    sha256: np.ndarray  # (F, 32) uint8
    hash: np.ndarray  # (F,) uint64
    coarse: np.ndarray  # (F, COARSE, COARSE) uint8
    blank: np.ndarray  # (F,) bool
    format: np.ndarray  # (F,) place in `formats`
    formats: tuple[str, ...]
    colour: np.ndarray  # (F,) place in `colours`
    colours: tuple[str, ...]
    animated: np.ndarray  # (F,) bool
    mislabelled: np.ndarray  # (F,) bool: its name ends as that of another format

    @property
    def good(self) -> np.ndarray:
        """(F,) bool: files that decode."""
        return self.reason < 0


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found at one place."""

    reason: str = ""
    missing: bool = False
    width: int = 0
    height: int = 0
    size: int = 0
    sha256: bytes = bytes(32)
    grey: bytes = bytes(SIDE * SIDE)
    format: str = ""
    colour: str = ""
    animated: bool = False
    mislabelled: bool = False


class _Names:
    """Numbers for names."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, names: list[str]) -> list[int]:
        """The number of each name, -1 for an empty one."""
        return [self._numbers.setdefault(name, len(self._numbers)) if name else -1 for name in names]

    def all(self) -> tuple[str, ...]:
        return tuple(self._numbers)


def look_at_all(place_of: Callable[[int], str], files: int, workers: int | None, progress: Tell | None) -> Looks:
    """Looks at the places of so many files. `progress(done, total)` is called in this thread after each."""
    reasons, formats, colours = _Names(), _Names(), _Names()
    looks = Looks(
        reason=np.full(files, -1, np.int32),
        reasons=(),
        missing=np.zeros(files, bool),
        width=np.zeros(files, np.int32),
        height=np.zeros(files, np.int32),
        size=np.zeros(files, np.int64),
        sha256=np.zeros((files, 32), np.uint8),
        hash=np.zeros(files, np.uint64),
        coarse=np.zeros((files, COARSE, COARSE), np.uint8),
        blank=np.zeros(files, bool),
        format=np.full(files, -1, np.int16),
        formats=(),
        colour=np.full(files, -1, np.int16),
        colours=(),
        animated=np.zeros(files, bool),
        mislabelled=np.zeros(files, bool),
    )
    with ThreadPoolExecutor(threads(workers), thread_name_prefix="inspect") as pool:
        for start in range(0, files, BLOCK):
            numbers = range(start, min(start + BLOCK, files))
            tasks = [numbers[at : at + TASK] for at in range(0, len(numbers), TASK)]
            found: list[_Look] = []
            for some in pool.map(lambda task: list(map(_look, task)), [list(map(place_of, task)) for task in tasks]):
                for look in some:
                    found.append(look)
                    if progress:
                        progress(start + len(found), files)
            block = slice(start, start + len(found))
            _store(looks, block, found)
            looks.reason[block] = reasons.of([look.reason for look in found])
            looks.format[block] = formats.of([look.format for look in found])
            looks.colour[block] = colours.of([look.colour for look in found])
    return replace(looks, reasons=reasons.all(), formats=formats.all(), colours=colours.all())


def threads(workers: int | None) -> int:
    """As many as asked for; by itself as many as cores, at most 8."""
    return workers or min(8, os.cpu_count() or 1)


def _store(looks: Looks, block: slice, found: list[_Look]) -> None:
    """Numbers of a block of files to their places in the arrays."""
    for name in ("missing", "width", "height", "size", "animated", "mislabelled"):
        getattr(looks, name)[block] = [getattr(look, name) for look in found]
    looks.sha256[block] = np.frombuffer(b"".join(look.sha256 for look in found), np.uint8).reshape(-1, 32)
    greys = np.frombuffer(b"".join(look.grey for look in found), np.uint8).reshape(-1, SIDE, SIDE)
    looks.hash[block] = perceptual_hashes(greys)
    looks.coarse[block] = coarse_squares(greys)
    looks.blank[block] = (greys.std(axis=(1, 2)) < BLANK) & ~np.array([bool(look.reason) for look in found])


def _look(place: str) -> _Look:
    try:
        data = read_bytes(place, MAX_BYTES)
        decoded = decode(data, DETAIL, place)
        form, colour, animated = _kind(data)
        ending = Path(file_name(place)).suffix.lower()
        return _Look(
            width=decoded.width,
            height=decoded.height,
            size=len(data),
            sha256=hashlib.sha256(data).digest(),
            grey=grey_square(decoded.image()).tobytes(),
            format=form,
            colour=colour,
            animated=animated,
            mislabelled=ENDINGS.get(ending, form) != form,
        )
    except Exception as error:  # whatever a plug-in raises, it is about this one file
        return _Look(_reason(error, place), missing=isinstance(error.__context__, NOT_THERE))


def _reason(error: Exception, place: str) -> str:
    """Why a picture cannot be used, without its name."""
    text = error.message if isinstance(error, ClipletError) else str(error)
    return text.removeprefix(f"{place}: ") or type(error).__name__


def _kind(data: bytes) -> tuple[str, str, bool]:
    """Format, colours and whether it is animated, by the head of a picture that is known to decode."""
    if data.startswith(JPEG_START):
        with suppress(ValueError):
            return "JPEG", INKS.get(simplejpeg.decode_jpeg_header(data)[2], "RGB"), False
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        colour = COLOURS.get(image.mode, image.mode)
        # Pillow gives 16-bit colours as 8-bit ones; the head of a PNG says what they are.
        if image.mode.startswith("I;16") or (image.format == "PNG" and data[24] == 16):
            colour = "16 bit"
        return image.format or "", colour, bool(getattr(image, "is_animated", False))


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def small_picture(place: str) -> np.ndarray | None:
    """(SIDE, SIDE, 3) uint8 for a second look; None for what cannot be read any more."""
    try:
        image = decode(read_bytes(place, MAX_BYTES), DETAIL, place).image()
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    except Exception:
        return None
