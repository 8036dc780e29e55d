"""A library that a call makes, and that is taken away again where the call comes to nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cliplet.errors import ClipletError, DataError
from cliplet.library.library import Library
from cliplet.library.locks import LOCK, only_writer
from cliplet.library.store import LANCE

# What is in a library that holds nothing yet. The lock goes last, for it is held until then.
RECORDS = ("records.sqlite*", ".records.sqlite.*", "library.json", ".library.*")
PARTS = (*RECORDS, "vectors-*", "captions-*", "background-*", "*.lance", LOCK)


@contextmanager
def opened_or_made(place: str) -> Iterator[Library]:
    """The library of a place, made where nothing is. Where the block fails with a library that it has made, and that
    has no pictures yet, this is removed: a wrong word on the command line leaves nothing behind.

    Raises DataError where something else is there.
    """
    if not place:
        raise DataError("the library is named by nothing", "Name a folder: --library photos.library.")
    folder = _folder(place)
    fresh = folder is not None and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir())))
    absent = [one for one in (folder, *folder.parents) if not one.exists()] if folder is not None and fresh else []
    library = None
    try:
        with Library.open_or_create(place) as library:
            yield library
    except ClipletError:
        if library is not None and folder is not None and fresh:
            with suppress(ClipletError, OSError):  # another process may write to it by now
                _unmake(folder, place, absent)
        raise


def _folder(place: str) -> Path | None:
    """Where it is on this machine; None for object storage."""
    if not place.startswith(LANCE):
        return Path(place).absolute()
    from cliplet.library.lance_tables import Place

    folder = Place.of(place).folder
    return None if folder is None else folder.absolute()


def _unmake(folder: Path, place: str, absent: Sequence[Path]) -> None:
    """Removes an empty library, and the folders that were `absent` before it. Raises ClipletError, OSError."""
    with only_writer(folder, lambda message: None, wait=False):
        with Library.open(place) as library:
            if len(library):
                return
        for pattern in PARTS:
            for part in list(folder.glob(pattern)):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
    for one in absent:
        one.rmdir()
