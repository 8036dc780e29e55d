"""Files elsewhere: http and https by the standard library, other addresses by fsspec."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from cliplet.errors import DataError

TIMEOUT = 30.0  # seconds without a byte
ASK_TIMEOUT = 10.0  # seconds for the question whether a cached file is still the one
TRIED_AGAIN = (408, 425, 429, 500, 502, 503, 504)

_silent: set[str] = set()  # hosts that could not be reached; each is asked once, for there may be a thousand shards


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a server says of a file, to tell whether it is still the same one."""

    size: int | None = None  # bytes
    etag: str = ""
    modified: str = ""

    def fits(self, other: Stamp) -> bool:
        """Whether both may be of one file: they differ in nothing that both name."""
        pairs = ((self.size, other.size), (self.etag, other.etag), (self.modified, other.modified))
        return all(mine == theirs for mine, theirs in pairs if mine not in (None, "") and theirs not in (None, ""))


class BrokenOff(Exception):
    """A try failed; another one may not."""


Source = tuple[Stamp, int, Callable[[int], bytes]]
Opened = AbstractContextManager[Source]


class Remote(Protocol):
    """A file elsewhere. No OSError of the network leaves it: they become BrokenOff, or DataError."""

    @property
    def url(self) -> str: ...

    def ask(self) -> Stamp | None:
        """What the file is now; None where that cannot be found out."""

    def opened(self, have: int, known: Stamp) -> Opened:
        """What the whole file is, the byte from which on it comes, and what reads it; `have` bytes of the file that
        was `known` are there already."""


def remote(url: str) -> Remote:
    """What loads a URL."""
    return Http(url) if urlsplit(url).scheme in ("http", "https") else Fsspec(url)


def shown(url: str) -> str:
    """A URL for people and logs: without what may be a password in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class Http:
    url: str

    def ask(self) -> Stamp | None:
        host = urlsplit(self.url).netloc
        if host in _silent:
            return None
        try:
            with self._request("HEAD", {}, ASK_TIMEOUT) as answer:
                return _stamp(answer.headers, 0)
        except urllib.error.HTTPError:
            return None  # many servers answer nothing but GET
        except (OSError, http.client.HTTPException, ValueError):
            _silent.add(host)
            return None

    @contextmanager
    def opened(self, have: int, known: Stamp) -> Iterator[Source]:
        # A weak ETag says that two files are alike, not that their bytes are the same.
        same = "" if known.etag.startswith("W/") else known.etag or known.modified
        asked = {"Range": f"bytes={have}-", "If-Range": same} if have and same else {}
        answer = self._answer(asked)
        start = have if answer.status == 206 else 0
        # A server may not know If-Range and send the end of another file.
        if start and not (_range(answer) == have and _stamp(answer.headers, start).fits(known)):
            answer.close()
            answer, start = self._answer({}), 0
        with answer:

            def read(size: int) -> bytes:
                try:
                    data: bytes = answer.read(size)
                    return data
                except (OSError, http.client.HTTPException) as error:
                    raise BrokenOff(_reason(error)) from None

            yield _stamp(answer.headers, start), start, read

    def _answer(self, asked: dict[str, str]) -> Any:
        try:
            return self._request("GET", asked, TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416 and asked:  # it has become shorter: begin anew
                return self._answer({})
            if error.code in TRIED_AGAIN:
                raise BrokenOff(f"the server answers {error.code} {error.reason}") from None
            raise DataError(
                f"{shown(self.url)}: the server answers {error.code} {error.reason}",
                "It needs a password or a key: load the file by other means, and name the file."
                if error.code in (401, 403)
                else "Check the address.",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise BrokenOff(_reason(error)) from None
        except ValueError as error:
            raise DataError(f"{shown(self.url)}: {error}", "Check the address.") from None

    def _request(self, method: str, headers: dict[str, str], timeout: float) -> Any:
        headers = {"User-Agent": "cliplet", **headers}  # some servers refuse Python's own name
        return urllib.request.urlopen(urllib.request.Request(self.url, headers=headers, method=method), timeout=timeout)


def _stamp(headers: Any, start: int) -> Stamp:
    length = headers.get("Content-Length") or ""
    size = int(length) + start if length.isdecimal() else None
    return Stamp(size, headers.get("ETag") or "", headers.get("Last-Modified") or "")


def _range(answer: Any) -> int:
    """The byte that the server begins with; -1 where it does not say."""
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    return int(match[1]) if match else -1


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__


@dataclass(frozen=True)
class Fsspec:
    url: str

    def ask(self) -> Stamp | None:
        try:
            return _described(*self._place())
        except Exception:  # each of fsspec's file systems has errors of its own
            return None

    @contextmanager
    def opened(self, have: int, known: Stamp) -> Iterator[Source]:
        try:
            system, path = self._place()
            stamp = _described(system, path)
            source = system.open(path, "rb")
        except ImportError as error:
            missing = error.name or getattr(error.__cause__, "name", None)  # fsspec's own says in words what it lacks
            raise DataError(
                f"{shown(self.url)}: is read by the package fsspec, which is not installed"
                if missing == "fsspec"
                else f"{shown(self.url)}: cannot be read by fsspec: {error}",
                "Install what is missing, or load the file by other means"
                + (f": pip install {missing.partition('.')[0]}" if missing else "."),
            ) from None
        except (FileNotFoundError, PermissionError, ValueError) as error:
            raise DataError(f"{shown(self.url)}: {_reason(error)}", "Check the address.") from None
        except Exception as error:
            raise BrokenOff(_reason(error)) from None
        with source:
            start = have if have and stamp.etag and stamp == known else 0
            source.seek(start)

            def read(size: int) -> bytes:
                try:
                    data: bytes = source.read(size)
                    return data
                except Exception as error:
                    raise BrokenOff(_reason(error)) from None

            yield stamp, start, read

    def _place(self) -> tuple[Any, str]:
        import fsspec

        system, path = fsspec.core.url_to_fs(self.url)
        return system, path


def _described(system: Any, path: str) -> Stamp:
    info = system.info(path)
    tags = (info.get(name) for name in ("ETag", "etag", "mtime", "created"))
    return Stamp(info.get("size"), next((str(tag) for tag in tags if tag), ""))
