"""Small pictures for lists of them: each is made once, and kept by what the file holds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cliplet.files import cache_folder
from cliplet.library.records import Picture
from cliplet.serve.bombs import refuse_bomb
from cliplet.serve.originals import read_original, writable_folder
from cliplet.serve.pools import Pools

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 80
BETWEEN_LOOKS = 500  # thumbnails that are made between two looks at how many bytes they have
PART_FOLDER = re.compile(r"[0-9a-f]{2}")
NAME = re.compile(r"[0-9a-f]+-\d+|\..*")  # a thumbnail, or one that was never finished
FORMATS = {b"RIFF": "image/webp", b"\xff\xd8\xff\xe0": "image/jpeg"}  # by their first four bytes


class Thumbnails:
    """The thumbnails of one library, in a folder: names are hashes of contents, so nothing is ever outdated."""

    def __init__(self, folder: Path | None, side: int, pools: Pools, most_bytes: int):
        """`folder`: where they are kept; None is nowhere. `side`: pixels of the longer side. `most_bytes`: of all that
        are kept, about; then the oldest go."""
        self._folder, self._side, self._pools, self._most_bytes = folder, side, pools, most_bytes
        self._making: dict[str, _Making] = {}
        self._until_look = 0  # thumbnails that are made before the next look at how many bytes there are
        self._looking: asyncio.Task[None] | None = None

    def tag(self, content: str) -> str:
        """What names a thumbnail, as HTTP's ETag. `content`: the hash of what the picture's file holds."""
        return f'"{content}-{self._side}"'

    async def get(self, picture: Picture, content: str) -> tuple[bytes, str]:
        """A thumbnail and its type. `content`: the hash of what the file holds.

        Raises Refused where there is none yet and the file is not what it was, ImageError where it cannot be read.
        """
        data = await self._pools.files.run(lambda: self._kept(content))
        if data is None:
            data = await self._made_for(picture, content)
        return data, FORMATS.get(data[:4], "image/jpeg")

    async def _made_for(self, picture: Picture, content: str) -> bytes:
        """Whoever else asks for the same one waits for it; what nobody waits for any more is not begun."""
        making = self._making.get(content)
        if making is None:
            making = self._making[content] = _Making(asyncio.create_task(self._make(picture, content)))
            # Should nobody be left to hear it, an error is none that has to be told.
            making.task.add_done_callback(lambda done: done.cancelled() or done.exception())
        making.waiting += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if not making.waiting and not making.task.done():
                self._making.pop(content, None)
                making.task.cancel()

    async def _make(self, picture: Picture, content: str) -> bytes:
        try:
            data = await self._pools.slow.run(lambda: self._made(picture, content))
        finally:
            making = self._making.get(content)
            if making is not None and making.task is asyncio.current_task():
                del self._making[content]
        self._look()
        return data

    def _made(self, picture: Picture, content: str) -> bytes:
        original = read_original(picture, content)
        refuse_bomb(original, picture.name)
        data = encoded(thumbnail(original, picture, self._side))
        if self._folder is not None:
            _keep(self._file(content), data)
        return data

    def _look(self) -> None:
        """Now and then, and while nobody waits for it, lets go of what was made first."""
        self._until_look -= 1
        if self._folder is None or self._until_look > 0 or self._looking is not None:
            return
        self._until_look = BETWEEN_LOOKS
        folder = self._folder

        async def shrink() -> None:
            try:
                await self._pools.files.run(lambda: shrink_folder(folder, self._most_bytes))
            finally:
                self._looking = None

        self._looking = asyncio.create_task(shrink())
        self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())

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


@dataclasses.dataclass
class _Making:
    """A thumbnail that is being made, and how many wait for it."""

    task: asyncio.Task[bytes]
    waiting: int = 0


def shrink_folder(folder: Path, most_bytes: int) -> None:
    """Deletes the thumbnails that were made first where all together have more than so many bytes, until a tenth is
    free again. What is no thumbnail stays."""
    kept: list[tuple[float, int, str]] = []
    for below in _entries(folder):
        if not PART_FOLDER.fullmatch(below.name) or not below.is_dir(follow_symlinks=False):
            continue
        for file in _entries(below.path):
            if NAME.fullmatch(file.name):
                with contextlib.suppress(OSError):
                    found = file.stat(follow_symlinks=False)
                    kept.append((found.st_mtime, found.st_size, file.path))
    size = sum(one[1] for one in kept)
    if size <= most_bytes:
        return
    kept.sort()
    for _, bytes_of_one, file_path in kept:
        if size <= 0.9 * most_bytes:
            break
        with contextlib.suppress(OSError):
            Path(file_path).unlink()
            size -= bytes_of_one


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


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
