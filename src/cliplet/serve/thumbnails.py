"""Small pictures for lists of them: each is made once, and kept by what the file holds."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tempfile
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from cliplet.files import cache_folder
from cliplet.library.records import Picture
from cliplet.serve.originals import read_original, writable_folder

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 80
FORMATS = {b"RIFF": "image/webp", b"\xff\xd8\xff\xe0": "image/jpeg"}  # by their first four bytes


class Thumbnails:
    """The thumbnails of one library, in a folder: names are hashes of contents, so nothing is ever outdated."""

    def __init__(self, folder: Path | None, side: int, pool: Executor):
        """`folder`: where they are kept; None is nowhere. `side`: pixels of the longer side. They are made in threads
        of `pool`."""
        self._folder, self._side, self._pool = folder, side, pool
        self._making: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, picture: Picture, content: str) -> tuple[bytes, str]:
        """A thumbnail and its type. `content`: the hash of what the file holds.

        Raises Refused where there is none yet and the file is not what it was, ImageError where it cannot be read.
        """
        data = await asyncio.to_thread(self._kept, content)
        if data is None:
            if content not in self._making:  # whoever else asks for the same one waits for it
                task = self._making[content] = asyncio.create_task(self._make(picture, content))
                # Should nobody be left to hear it, an error is none that has to be told.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            data = await asyncio.shield(self._making[content])
        return data, FORMATS.get(data[:4], "image/jpeg")

    async def _make(self, picture: Picture, content: str) -> bytes:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._made, picture, content)
        finally:
            del self._making[content]

    def _made(self, picture: Picture, content: str) -> bytes:
        data = encoded(thumbnail(read_original(picture, content), picture, self._side))
        if self._folder is not None:
            _keep(self._file(content), data)
        return data

    def _kept(self, content: str) -> bytes | None:
        if self._folder is None:
            return None
        try:
            data = self._file(content).read_bytes()
        except OSError:
            return None
        return data if data[:4] in FORMATS else None  # a power cut leaves empty files

    def _file(self, content: str) -> Path:
        assert self._folder is not None
        return self._folder / content[:2] / f"{content}-{self._side}"


def thumbnails_folder(place: str) -> Path | None:
    """Where a library's thumbnails are kept: in itself, or, where nothing may be written there or it is no folder,
    in the cache of this user; None where neither can be written to."""
    key = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    within = [Path(place) / "thumbnails"] if Path(place).is_dir() else []
    return next((one for one in [*within, cache_folder() / "thumbnails" / key] if writable_folder(one)), None)


def thumbnail(data: bytes, picture: Picture, side: int) -> Image:
    """A picture whose longer side has no more than `side` pixels. Raises ImageError."""
    from cliplet.data.images import decode

    longer, shorter = max(picture.width, picture.height, 1), max(1, min(picture.width, picture.height))
    image = decode(data, max(1, min(shorter, round(side * shorter / longer))), picture.name).image()
    if max(image.size) > side:
        scale = side / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=2.0
        )
    return image


def encoded(image: Image) -> bytes:
    """As WebP, or as JPEG where this Pillow has no WebP."""
    from PIL import features

    stream = io.BytesIO()
    if features.check("webp"):
        image.save(stream, "WEBP", quality=QUALITY, method=2)
    else:
        image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _keep(file: Path, data: bytes) -> None:
    """Written beside and renamed. It is not brought to the disk at once, for it can be made again; nor is it an error
    when it cannot be written, on a full disk say."""
    beside = ""
    try:
        file.parent.mkdir(exist_ok=True)
        descriptor, beside = tempfile.mkstemp(prefix=".", dir=file.parent)
        with open(descriptor, "wb") as stream:
            stream.write(data)
        Path(beside).replace(file)
    except OSError:
        if beside:
            Path(beside).unlink(missing_ok=True)
