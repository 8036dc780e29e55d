"""A URL's file in a cache folder: loaded once, taken up again where it broke off, asked for anew only if it changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cliplet.data.remotes import BrokenOff, Remote, Stamp, remote, shown
from cliplet.errors import DataError
from cliplet.files import cache_folder

try:
    import fcntl
except ImportError:  # no locks on Windows: two processes must not load the same file at once there
    fcntl = None  # type: ignore[assignment]

WAITS = (1.0, 4.0)  # seconds before the second and the third try
CHUNK = 2**20

Tell = Callable[[int, int], None]  # of (bytes loaded, bytes in all); 0 in all where that is not known


def fetch(url: str, tell: Tell | None = None) -> Path:
    """The file of a URL, in the cache; one that is there is loaded again only if the server has another by now.

    http and https by the standard library; other addresses (s3://, gs://, hf://) by fsspec, where it is installed.
    The cache is CLIPLET_CACHE, or cliplet in XDG_CACHE_HOME or ~/.cache. Without a network the cached file is taken.
    Raises DataError for what cannot be loaded or written.
    """
    source = remote(url)
    target = downloads_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{_file_name(url)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not _is_current(target, source):
                _load(source, target, tell or (lambda done, total: None))
    except OSError as error:  # the network's are dealt with below
        raise DataError(
            f"{target}: cannot be written: {error.strerror or error}",
            "Make room, or name another folder for what is loaded: CLIPLET_CACHE=FOLDER.",
        ) from None
    return target


def downloads_folder() -> Path:
    """Where loaded files are kept."""
    return cache_folder() / "downloads"


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:] or "file"


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Only one process at a time loads a file; the others wait, and find it there. The lock is gone afterwards."""
    if fcntl is None:
        yield
        return
    file = _beside(target, ".lock")
    while True:
        with open(file, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_open_as(file, lock.fileno()):  # who had it before removed it: somebody may have made a new one
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def _is_open_as(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _is_current(target: Path, source: Remote) -> bool:
    stamp = _read_stamp(_beside(target, ".json"))
    if stamp is None or not target.is_file() or target.stat().st_size != stamp.size:
        return False
    now = source.ask()
    return now is None or now.fits(stamp)


def _load(source: Remote, target: Path, tell: Tell) -> None:
    part, stamp_file = _beside(target, ".part"), _beside(target, ".json")
    for wait in (*WAITS, None):
        try:
            _try(source, part, tell)
            break
        except BrokenOff as error:
            if wait is None:
                raise DataError(
                    f"{shown(source.url)}: could not be loaded: {error}",
                    "Look to the network and give the same command again; it goes on where it broke off.",
                ) from None
            time.sleep(wait)
    stamp = _read_stamp(_beside(part, ".json")) or Stamp()
    stamp_file.unlink(missing_ok=True)  # never the new stamp beside the old file
    part.replace(target)
    _beside(part, ".json").unlink(missing_ok=True)
    _write_stamp(stamp_file, Stamp(target.stat().st_size, stamp.etag, stamp.modified))


def _try(source: Remote, part: Path, tell: Tell) -> None:
    """Loads what is missing of the part. Raises BrokenOff where another try may help, DataError where none does."""
    known = _read_stamp(_beside(part, ".json"))
    have = part.stat().st_size if known and part.is_file() else 0
    with source.opened(have, known or Stamp()) as (stamp, start, read):
        _write_stamp(_beside(part, ".json"), stamp)
        with part.open("rb+" if start else "wb") as stream:
            stream.seek(start)
            stream.truncate()
            done = start
            while chunk := read(CHUNK):
                done += stream.write(chunk)
                tell(done, stamp.size or 0)
            stream.flush()
            os.fsync(stream.fileno())
    if stamp.size is not None and done != stamp.size:
        raise BrokenOff(f"it broke off after {done:,} of {stamp.size:,} bytes")


def _read_stamp(file: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_stamp(file: Path, stamp: Stamp) -> None:
    file.write_text(json.dumps(asdict(stamp)), encoding="utf-8")
