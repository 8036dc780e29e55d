"""Pictures that clients send: looked at before they are decoded, and remembered as vectors for a while."""

from __future__ import annotations

import io
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cliplet.errors import ImageError
from cliplet.serve.bombs import refuse_bomb
from cliplet.serve.refusals import Refused

if TYPE_CHECKING:
    import numpy as np
    from fastapi import Request

# Fewer than in a library: of these, the first bytes tell the size of what is decoded. An icon may hold anything.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
TAKEN = f"These are: {', '.join(FORMATS)}."
SIDEWAYS = (5, 6, 7, 8)  # orientations by which width and height change places
AT_ONCE, AT_ONCE_OF_ONE = 32, 8  # pictures that may be on their way at one time: of all clients, and of one
SENT = "the picture that was sent"
PICTURE_BODY = {
    # What stands in the description of the interface; the field's name does not matter.
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["picture"],
                    "properties": {"picture": {"type": "string", "format": "binary", "description": "The file."}},
                }
            }
        },
    }
}


class Upload(NamedTuple):
    """A picture that was sent."""

    vector_D: np.ndarray
    width: int  # pixels, upright
    height: int


class Uploads:
    """The last uploads of a library. Nothing of a picture is kept but its vector."""

    def __init__(self, most: int, seconds: float, now: Callable[[], float] = time.monotonic):
        self._most, self._seconds, self._now = most, seconds, now
        self._kept: OrderedDict[str, tuple[float, Upload]] = OrderedDict()

    def put(self, upload: Upload) -> str:
        """Remembers one; the name that it gets cannot be guessed."""
        name = secrets.token_urlsafe(16)
        self._kept[name] = (self._now() + self._seconds, upload)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Upload:
        """Raises Refused where it is not remembered any more."""
        end, upload = self._kept.get(name, (0.0, None))
        if upload is None or end < self._now():
            self._kept.pop(name, None)
            raise Refused(404, "the picture that was sent is not remembered any more", "Send it again.")
        self._kept.move_to_end(name)  # of those that are not asked for, the oldest goes first
        return upload


class Receiving:
    """How many pictures are on their way: their bytes lie in memory and on the disk until they are read."""

    def __init__(self, most: int = AT_ONCE, of_one: int = AT_ONCE_OF_ONE):
        """`of_one`: of one client, so that one whose pictures trickle in does not keep others from sending theirs."""
        self._most, self._of_one = most, of_one
        self._coming: Counter[str] = Counter()

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """One more of a client while the block runs. Raises Refused where there are too many."""
        if self._coming[client] >= self._of_one or self._coming.total() >= self._most:
            raise Refused(503, "too many pictures are being sent at once", headers={"retry-after": "2"})
        self._coming[client] += 1
        try:
            yield
        finally:
            self._coming[client] -= 1
            if not self._coming[client]:
                del self._coming[client]


async def sent_picture(request: Request) -> bytes:
    """The file of a form. Raises Refused where there is none, or more than one."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "a picture is sent as multipart/form-data", "With curl: -F picture=@FILE.")
    from python_multipart.exceptions import FormParserError

    try:
        async with request.form(max_files=1, max_fields=8) as form:
            for value in form.values():
                if not isinstance(value, str):
                    return await value.read()
    except FormParserError as error:  # which older versions of Starlette let through
        raise Refused(400, f"the form cannot be read: {error}") from None
    raise Refused(422, "the form holds no file", "With curl: -F picture=@FILE.")


def upright_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height of a picture by its first bytes, before any memory is taken for pixels.

    Raises ImageError for what is no picture or made to be slow, and Refused for one of more than `max_pixels`.
    """
    refuse_bomb(data, SENT)
    canvas = _webp_canvas(data)
    if canvas:  # of which Pillow makes its pixels as soon as it opens it
        _refuse_large(*canvas, max_pixels)
    from PIL import ExifTags, Image

    from cliplet.data import images  # which also sets what Pillow refuses by itself

    Image.init()
    known = [name for name in (*images.FORMATS, "HEIF") if name in FORMATS and name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=known) as image:
            width, height = image.size
            _refuse_large(width, height, max_pixels)
            # Of a PNG without it, Pillow would look for it behind all pixels.
            with_exif = image.format != "PNG" or "exif" in image.info
            turned = with_exif and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except Refused:
        raise
    except Exception:  # broken files make Pillow's plug-ins raise nearly anything
        raise ImageError(f"{SENT} is none, or of a kind that is not taken", TAKEN) from None
    return (height, width) if turned else (width, height)


def _refuse_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refused(
            413,
            f"{SENT} has {width:,} x {height:,} pixels; {max_pixels / 1e6:,g} megapixels are taken",
            "Make it smaller; the model looks at a few hundred pixels.",
        )


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """The size of a WebP picture by its header; None for anything else."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None
