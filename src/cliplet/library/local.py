"""A library in a folder: records in SQLite, vectors in append-only matrices, an approximate index beside them.

LIBRARY/
  library.json             what this is
  records.sqlite           pictures, captions, which row is whose
  vectors-G.f16 .rows      features of pictures of generation G, a model's
  captions-G.f16 .rows     features of captions
  vectors-G.usearch .json  the approximate index, once there are many; it can always be made again
  background-G.npy         features of everyday queries, by which scores are judged
  thumbnails/              what the service made, by content
  writer.lock              held by whoever writes
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cliplet.errors import DataError
from cliplet.files import written_beside
from cliplet.library.database import BESIDE, Database, has_log
from cliplet.library.local_reading import Reading, picture_of
from cliplet.library.local_view import View
from cliplet.library.locks import ASK_EVERY, LOCK, Busy, only_writer
from cliplet.library.records import Identity, Picture
from cliplet.library.store import CREATE_HINT, Calibration, ChangedError, Found, FoundCaption, Writer
from cliplet.library.where import Where

ABOUT, RECORDS = "library.json", "records.sqlite"
FORMAT, FORMAT_VERSION = "cliplet-library", 1
MEND_HINT = "Mend it with: cliplet index --library LIBRARY --repair."
CREATING_SECONDS = 10.0  # that another process may need to make the same library
TRIES = 3  # at a view that stays as it is while it is asked

T = TypeVar("T")


class LocalStore:
    """A library's folder, for reading. See `store.Store`."""

    def __init__(self, folder: Path):
        """Opens it. Raises DataError where it is none, is damaged or of another version."""
        self.folder, self.place = folder, str(folder)
        self._refreshing = threading.Lock()
        self._database = Database(folder / RECORDS)
        self._seen = self._database.version()
        self._view = View.of(folder, self._database)

    @classmethod
    def open(cls, folder: Path) -> LocalStore:
        """Raises DataError where there is no library, or one that this cliplet does not read."""
        read_about(folder)
        return cls(folder)

    @classmethod
    def open_or_create(cls, folder: Path) -> LocalStore:
        """The library of the folder, made where there is nothing. Raises DataError where something else is."""
        try:
            _create_if_none(folder)
        except (FileExistsError, NotADirectoryError):
            raise DataError(f"{folder}: is no folder", "Name a folder for the library.") from None
        return cls.open(folder)

    @property
    def identity(self) -> Identity | None:
        return self._view.identity

    @property
    def calibration(self) -> Calibration:
        return self._view.calibration

    def refresh(self) -> None:
        with self._refreshing:
            version = self._database.version()
            if version != self._seen:
                self._view = View.of(self.folder, self._database)
                self._seen = version

    def __len__(self) -> int:
        return self._view.pictures

    def captions_count(self) -> int:
        return len(self._view.text_MD)

    def count(self, where: Where) -> int:
        return self._reading.count(where)

    def nearest(
        self, query_D: np.ndarray, k: int, where: Where | None = None, of: Identity | None = None
    ) -> list[Found]:
        return self._steady(lambda reading: reading.nearest(query_D, k, where), of)

    def nearest_captions(
        self, query_D: np.ndarray, k: int, where: Where | None = None, of: Identity | None = None
    ) -> list[FoundCaption]:
        return self._steady(lambda reading: reading.nearest_captions(query_D, k, where), of)

    def captioned(self, texts: Sequence[str], where: Where | None = None) -> dict[str, list[tuple[str, int]]]:
        return self._reading.captioned(texts, where)

    def alike(self, ids: Sequence[int], where: Where | None = None) -> list[list[Picture]]:
        return self._reading.alike(ids, where)

    def picture(self, id: int) -> Picture:
        return picture_of(self._reading.row_of(id))

    def content(self, id: int) -> str:
        return bytes(self._reading.row_of(id)["content"]).hex()

    def changed(self, id: int) -> int:
        return int(self._reading.row_of(id)["changed"])

    def newest(self, k: int, offset: int = 0, where: Where | None = None) -> list[Picture]:
        return self._reading.newest(k, offset, where)

    def features(self, ids: Sequence[int], of: Identity | None = None) -> np.ndarray:
        return self._steady(lambda reading: reading.features(ids), of)

    def sample(self, n: int) -> np.ndarray:
        return self._steady(lambda reading: reading.sample(n))

    def features_in_blocks(self) -> Iterator[tuple[list[list[Picture]], np.ndarray]]:
        reading = self._reading
        for block in reading.blocks():
            if not reading.is_current:
                self.refresh()
                raise ChangedError(self.place)
            yield block

    @property
    def _reading(self) -> Reading:
        return Reading(self._database, self._view)

    def _steady(self, ask: Callable[[Reading], T], of: Identity | None = None) -> T:
        """What one view says; of the next one where its vectors were replaced meanwhile, and records of it are gone.

        Raises ChangedError where they are not those of the model `of`.
        """
        for _ in range(TRIES):
            reading = self._reading
            if of is not None and reading.view.identity is not None and not reading.view.identity.same_vectors(of):
                raise ChangedError(self.place)
            try:
                found = ask(reading)
            except DataError:
                if reading.is_current:
                    raise
            else:
                if reading.is_current:
                    return found
            self.refresh()
        raise ChangedError(self.place)

    def close(self) -> None:
        self._database.close()

    def writing(self, say: Any, wait: bool = False) -> AbstractContextManager[Writer]:
        from cliplet.library.local_writer import writing

        return writing(self.folder, say, wait)


def read_about(folder: Path) -> dict[str, Any]:
    """library.json. Raises DataError where it is not there, or another version's."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"it is of the format {about['format']}")
        version = about["format_version"]
    except FileNotFoundError:
        raise _without_about(folder) from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file; a library is a folder", CREATE_HINT) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / ABOUT}: cannot be read: {error}",
            MEND_HINT,
        ) from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder}: is a library of version {version}; this cliplet reads {FORMAT_VERSION}",
            "Upgrade cliplet, or index the pictures anew into another library.",
        )
    return dict(about)


def _create_if_none(folder: Path) -> None:
    """Makes an empty library where there is nothing, or only what such a try left that failed or was killed. Of several
    processes one makes it, and the others find it made."""
    end = time.monotonic() + CREATING_SECONDS
    while not (folder / ABOUT).exists():
        if folder.exists() and not all(_is_of_creation(file.name) for file in folder.iterdir()):
            if (folder / ABOUT).exists():
                return  # somebody made it meanwhile, and writes into it already
            if (folder / RECORDS).exists():
                raise _without_about(folder)
            raise DataError(
                f"{folder}: is there, and no library of cliplet", "Name an empty folder, or one that is not there yet."
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with only_writer(folder, lambda message: None, wait=False):
                if not (folder / ABOUT).exists():
                    _create(folder)
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(ASK_EVERY)


def _create(folder: Path) -> None:
    for pattern in (f".{RECORDS}.*", f".{Path(ABOUT).stem}.*"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)
    records = folder / RECORDS
    if records.exists() and records.stat().st_size:
        with closing(Database(records)) as database:
            if any(database.rows(f"SELECT 1 FROM {table} LIMIT 1") for table in ("pictures", "roots", "generations")):
                raise _without_about(folder)
    elif has_log(records):
        raise _without_about(folder)
    else:
        Database.create(records).close()
    with written_beside(folder / ABOUT) as beside:
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "roots": []}
        beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _is_of_creation(name: str) -> bool:
    """Whether a file may be there while a library is made, or after that failed."""
    mine = (LOCK, RECORDS, *(f"{RECORDS}{ending}" for ending in BESIDE))
    return name in mine or name.startswith((f".{RECORDS}.", f".{Path(ABOUT).stem}."))


def _without_about(folder: Path) -> DataError:
    """For a folder without library.json."""
    if (folder / RECORDS).exists():
        return DataError(f"{folder / ABOUT}: is missing", MEND_HINT)
    return DataError(f"{folder}: is no library", CREATE_HINT)
