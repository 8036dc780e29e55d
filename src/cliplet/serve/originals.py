"""A library's own files, and nothing else: opened only while they hold what the library knows, and sent in parts."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cliplet.library.records import Picture
from cliplet.serve.refusals import Refused

# By what a file holds, never by its name. Nothing that a browser would run, SVG among it, is in here.
TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "avif": "image/avif",
    "heic": "image/heic",
    "heif": "image/heif",
    "tiff": "image/tiff",
    "jpeg2000": "image/jp2",
    "ico": "image/vnd.microsoft.icon",
}
OTHER_TYPE = "application/octet-stream"
PART = 256 * 2**10  # bytes that are read at once
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
CHANGED_HINT = "cliplet index brings the library up to date."


class Originals:
    """Opens pictures' files. What is remembered is which files were found to be right: hashing takes a second a GB."""

    def __init__(self, remembered: int = 4096):
        self._right: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._remembered = remembered
        self._turn = threading.Lock()

    def open(self, picture: Picture, content: str) -> BinaryIO:
        """A picture's file, at its beginning. `content`: the hash of what it holds, as the library knows it.

        Raises Refused where the file is gone, may not be read, or holds anything else. So whatever was put in its place
        meanwhile, a link to a file of others say, is never sent: only contents that were indexed are.
        """
        stream = _opened(picture)
        try:
            found = os.fstat(stream.fileno())
            state = (content, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if state not in self._right:
                if content_hash(stream) != content:
                    raise changed()
                self._remember(state)
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return stream

    def _remember(self, state: tuple[object, ...]) -> None:
        with self._turn:
            self._right[state] = None
            while len(self._right) > self._remembered:
                self._right.popitem(last=False)


def read_original(picture: Picture, content: str) -> bytes:
    """The whole of a picture's file, under the same conditions."""
    with _opened(picture) as stream:
        data = stream.read()
    if content_hash(io.BytesIO(data)) != content:
        raise changed()
    return data


def _opened(picture: Picture) -> BinaryIO:
    """A regular file of the size that is known."""
    # A pipe in the file's place would be waited for otherwise.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(picture.path, flags)
    except (OSError, ValueError):
        raise Refused(404, "the picture's file is not there any more, or may not be read", CHANGED_HINT) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != picture.bytes:
        os.close(descriptor)
        raise changed()
    return open(descriptor, "rb", buffering=0)


def content_hash(stream: BinaryIO) -> str:
    """Of what an open file holds, as libraries take it; in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    while part := stream.read(2**20):
        digest.update(part)
    return digest.hexdigest()


def changed() -> Refused:
    """Of a file that is not what it was."""
    return Refused(409, "the picture's file was changed since it was indexed", CHANGED_HINT)


def file_headers(picture: Picture, tag: str) -> dict[str, str]:
    """Headers of a picture's file. `tag` names its content."""
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", picture.name)[-100:] or "picture"
    whole = quote(picture.name.encode("utf-8", "replace"), safe="")
    return {
        "content-type": TYPES.get(picture.format, OTHER_TYPE),
        "content-disposition": f"inline; filename=\"{plain}\"; filename*=UTF-8''{whole}",
        "cache-control": "private, no-cache",
        "etag": f'"{tag}"',
        "accept-ranges": "bytes",
        # Should it be looked at as a page of its own after all, it may do nothing.
        "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox",
    }


class FileAnswer(Response):
    """An open file, or the part of it that is asked for. It closes the file."""

    def __init__(
        self,
        stream: BinaryIO,
        size: int,
        headers: Mapping[str, str],
        read: Callable[[BinaryIO, int], Awaitable[bytes]] | None = None,
    ):
        """`read`: reads so many bytes of the file in a thread; by itself one of the event loop's own."""
        super().__init__(None, 200, dict(headers))
        self._stream, self._size, self._read = stream, size, read or _read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, part by part, as fast as the client reads; no thread waits for the client."""
        gone = asyncio.create_task(_until_gone(receive))
        try:
            start, end = self._part(Headers(scope=scope))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            left = 0 if scope.get("head") else end - start
            self._stream.seek(start)
            while left and not gone.done():
                data = await self._read(self._stream, min(PART, left))
                if not data:
                    raise OSError("a file became shorter while it was sent")
                left -= len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._stream.close()

    def _part(self, headers: Headers) -> tuple[int, int]:
        """The bytes to send; sets status and headers. Several parts at once are answered by the whole, as they may."""
        start, end = 0, self._size
        tag = self.headers["etag"]
        match = RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
        if same_tag(headers, tag):
            self.status_code, end = 304, 0
            del self.headers["content-length"]
            return start, end
        if match and any(match.groups()) and headers.get("if-range", tag) == tag:
            first, last = match.groups()
            start = int(first) if first else max(0, self._size - int(last))
            end = min(self._size, int(last) + 1) if first and last else self._size
            if start >= end:
                self.status_code, start, end = 416, 0, 0
                self.headers["content-range"] = f"bytes */{self._size}"
            else:
                self.status_code = 206
                self.headers["content-range"] = f"bytes {start}-{end - 1}/{self._size}"
        self.headers["content-length"] = str(end - start)
        return start, end


async def _read(stream: BinaryIO, size: int) -> bytes:
    return await asyncio.to_thread(stream.read, size)


async def _until_gone(receive: Receive) -> None:
    """Ends when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def same_tag(headers: Headers, tag: str) -> bool:
    """Whether the client has what `tag` names."""
    known = [one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(",")]
    return tag in known or known == ["*"]


def unchanged_or(headers: Headers, content: bytes, answer: Mapping[str, str]) -> Response:
    """The content with its headers, among them its tag; or that the client has it."""
    if same_tag(headers, answer["etag"]):
        return Response(None, 304, {name: value for name, value in answer.items() if name != "content-type"})
    return Response(content, 200, dict(answer))


def writable_folder(folder: Path) -> bool:
    """Whether files can be written to a folder, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
