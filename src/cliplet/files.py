"""Files that are found whole or not at all, after a power cut too."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where things are kept that can be made or loaded again: CLIPLET_CACHE, or cliplet in XDG_CACHE_HOME or
    ~/.cache."""
    named = os.environ.get("CLIPLET_CACHE")
    if named:
        return Path(named).expanduser()
    above = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(above) if above else Path.home() / ".cache") / "cliplet"
    except RuntimeError:  # a user without a home, as in containers
        return Path(tempfile.gettempdir()) / f"cliplet-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """A path beside `file`, of the same ending, to write to: it takes the file's name at the end of the block, flushed
    to the disk before that, and is gone if the block fails. The folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
    try:
        yield beside
        flush(beside)
        beside.replace(file)
        flush(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def refuse_unwritable(file: Path) -> None:
    """Raises OSError where a file could not be written, before the work for it is done. The folder is made."""
    if file.is_dir():
        raise IsADirectoryError(f"{file}: is a folder; name a file in it")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=file.parent):
        pass


def flush(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk. Raises OSError when a file cannot be brought there."""
    if path.is_dir():
        # Windows opens no folders and some file systems flush none; then a name comes to the disk when it comes.
        with contextlib.suppress(OSError):
            _flush(path, os.O_RDONLY)
    else:
        _flush(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(file: Path) -> str:
    """Of a file's content, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
