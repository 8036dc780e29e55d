"""An approximate index over a matrix of vectors: a graph of usearch's (HNSW) in a file, and what it is worth in JSON.

FILE         the graph, and the vectors in less precision; mapped into memory when it is opened
FILE.json    which matrix it belongs to, how it was made, how far to look for K results and what that found when it was
             measured, and checksums

It can always be made again from the matrix, see `approximate_making.py`. N rows, D dims, K results, C candidates.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import queue
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.library.exact import exact
from cliplet.runtime.cores import cores

FORMAT, FORMAT_VERSION = "cliplet-nearest", 1
MAKE_AGAIN = "Remove it and index the library again; it is made anew."
HEAD = 8  # bytes in front of the vectors of usearch's file
SAMPLES, SAMPLE_BYTES = 256, 4096  # of the vectors, which checksums cover in part
MATRIX_SAMPLES = 64  # rows by which the matrix is known again
ITEM_BYTES = {"i8": 1, "f16": 2, "f32": 4}
REPLACED_SECONDS = 0.05  # that a writer needs at most to put the second file in its place
KEPT_OPEN = 4
MOST = 2**20  # that may be looked at for a query


@dataclass(frozen=True)
class Level:
    """How far to look for up to k results, and what part of the right ones that found when it was measured."""

    k: int
    expansion_search: int
    candidates: int  # that are ranked again by the exact vectors
    recall_texts: float
    texts: int
    recall_pictures: float
    pictures: int


@dataclass(frozen=True)
class About:
    """What FILE.json holds beside format and version."""

    usearch: str  # its version
    rows: int  # of the matrix, that are in the index or will never be
    entries: int  # rows that are in the index
    dims: int
    matrix: int  # checksum of some of these rows
    precision: str
    connectivity: int
    expansion_add: int
    wanted_recall: float
    levels: tuple[Level, ...]  # none where no setting reaches the recall: then the index is not to be used
    bytes: int
    checksums: tuple[int, int]  # of the graph; of samples of the vectors

    @classmethod
    def read(cls, file: Path) -> About:
        """Raises DataError where there is none, it is damaged or of another version."""
        try:
            content = json.loads(about_file(file).read_text(encoding="utf-8"))
            if (content.pop("format"), content.pop("format_version")) != (FORMAT, FORMAT_VERSION):
                raise ValueError("it is of another format or version")
            levels = tuple(Level(**level) for level in content.pop("levels"))
            about = cls(**content | {"checksums": tuple(content["checksums"])}, levels=levels)
            numbers = [about.rows, about.entries, about.dims, about.matrix, about.bytes, *about.checksums]
            settings = [(0, level.k, level.candidates, level.expansion_search, MOST) for level in levels]
            if len(about.checksums) != 2 or any(type(number) is not int or number < 0 for number in numbers):
                raise ValueError("its numbers are none")
            if any(list(one) != sorted(one) or not one[1] or type(one[3]) is not int for one in settings):
                raise ValueError("its settings are none")
            hash(about)
        except FileNotFoundError:
            raise DataError(f"{file}: there is no approximate index", "") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{about_file(file)}: cannot be read: {error}", MAKE_AGAIN) from None
        return about

    def write(self, place: Path) -> None:
        """Raises OSError."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Approximate:
    """An index that is open. Safe for many threads, of which as many search at once as there are cores."""

    def __init__(self, mapped: Any, about: About):
        """mapped: the file, looked at and mapped into memory; `opened` does both. Raises DataError."""
        self.mapped, self.about = mapped, about
        self._views: queue.LifoQueue[Any] = queue.LifoQueue()
        self._more = cores() - 1  # views that may still be opened; one view does one search at a time
        self._opening = threading.Lock()
        self._views.put(self._view())

    @property
    def rows(self) -> int:
        """Rows of the matrix, the first, for which it speaks."""
        return self.about.rows

    def search(
        self,
        vectors_ND: np.ndarray,
        query_D: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Row numbers and exact scores as `exact` gives them, of nearly all the best `k` among the first `rows`.

        allowed: sorted row numbers, of which alone results may be. None where the
        index does not know how to find so many: more than was measured, or too few of as many as that may be results.
        """
        k = max(k, 0)
        share = 1.0 if allowed is None else np.searchsorted(allowed, self.rows) / max(1, self.rows)
        for level in self.about.levels:
            if level.k * share < k:
                continue
            rows, scores = self._at(level, vectors_ND, query_D)
            if allowed is not None:
                passes = _in(rows, allowed)
                rows, scores = rows[passes], scores[passes]
            if len(rows) >= k:
                return rows[:k], scores[:k]
        return None

    def _at(self, level: Level, vectors_ND: np.ndarray, query_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._borrowed() as view:
            keys_C = candidates(view, query_D, level.expansion_search, level.candidates)
        return exact(vectors_ND, query_D, level.k, np.sort(keys_C[keys_C < self.rows]))

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        """A view that nobody else searches meanwhile; usearch lets one search at a time into each."""
        try:
            view = self._views.get_nowait()
        except queue.Empty:
            with self._opening:
                more, self._more = self._more, max(0, self._more - 1)
            view = self._view() if more else self._views.get()
        try:
            yield view
        finally:
            self._views.put(view)

    def _view(self) -> Any:
        try:
            from usearch.index import Index

            view: Any = Index.restore(self.mapped, view=True, enable_key_lookups=False)
            if (len(view), view.ndim) != (self.about.entries, self.about.dims):
                raise ValueError("it is not what its description says")
        except Exception as error:  # whatever usearch says of a file that it does not read
            raise DataError(f"the approximate index cannot be opened: {error}", MAKE_AGAIN) from None
        view.mapped = self.mapped  # which has to stay as long as the view
        return view


def candidates(index: Any, query_D: np.ndarray, expansion: int, count: int) -> np.ndarray:
    """Row numbers (C,) of the `count` entries that seem nearest, the best first."""
    index.expansion_search = expansion
    length = float(np.linalg.norm(query_D)) or 1.0  # 8 bits hold what is no longer than 1
    found = index.search(np.ascontiguousarray(query_D / length, np.float32), count, threads=1)
    return np.asarray(found.keys).astype(np.int64)


def _in(rows: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(allowed, rows), len(allowed) - 1)
    return np.asarray(allowed[places] == rows)


# -- opening

_open: OrderedDict[tuple[Any, ...], Approximate] = OrderedDict()
_guard = threading.Lock()


def opened(file: Path, vectors_ND: np.ndarray) -> Approximate:
    """The index of a matrix, looked at and mapped; kept open, so that the next call costs next to nothing.

    Raises DataError where there is none, it is damaged, or of another matrix. What is looked at: all of the graph, in
    which a wrong bit could end the process; of the vectors, in which it could only lead the search astray, the file's
    size and 256 blocks of 4 kB, evenly spread; and 64 rows of the matrix.
    """
    while True:
        seen = _identity(file)
        try:
            return _opened(file, vectors_ND)
        except DataError:
            if seen is None:
                raise
            time.sleep(REPLACED_SECONDS)
            if _identity(file) == seen:
                raise


def _identity(file: Path) -> Any:
    """What changes when one of the two files is replaced; None where one is not there."""
    try:
        return [(one.stat().st_mtime_ns, one.stat().st_ino) for one in (file, about_file(file))]
    except OSError:
        return None


def _opened(file: Path, vectors_ND: np.ndarray) -> Approximate:
    about = About.read(file)
    if about.dims != vectors_ND.shape[1]:
        raise DataError(f"{file}: is of {about.dims} dims, the vectors of {vectors_ND.shape[1]}", MAKE_AGAIN)
    if about.rows > len(vectors_ND) or about.matrix != matrix_checksum(vectors_ND, about.rows):
        raise DataError(f"{file}: is the index of other vectors", MAKE_AGAIN)
    try:
        with file.open("rb", buffering=0) as stream, _guard:
            state = os.fstat(stream.fileno())
            key = (file.absolute(), about, state.st_mtime_ns, state.st_size, state.st_ino)
            if key not in _open:
                if state.st_size != about.bytes or checksums(stream, vector_bytes(about)) != about.checksums:
                    raise DataError(f"{file}: is damaged", MAKE_AGAIN)
                _open[key] = Approximate(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), about)
            _open.move_to_end(key)
            while len(_open) > KEPT_OPEN:
                _open.popitem(last=False)
            return _open[key]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}", MAKE_AGAIN) from None


def about_file(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def vector_bytes(about: About) -> int:
    """How much of the file, at its beginning, is vectors."""
    return HEAD + about.entries * about.dims * ITEM_BYTES.get(about.precision, 1)


def checksums(stream: io.FileIO, vectors: int) -> tuple[int, int]:
    """Of all that follows the first `vectors` bytes, and of samples of these. Raises OSError."""
    if hasattr(os, "posix_fadvise"):  # all of it is needed soon, and a disk reads it faster in one go
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    sampled = graph = 0
    for place in np.linspace(0, max(0, vectors - SAMPLE_BYTES), SAMPLES, dtype=np.int64).tolist():
        stream.seek(place)
        sampled = zlib.crc32(stream.read(min(SAMPLE_BYTES, vectors)), sampled)
    stream.seek(vectors)
    while block := stream.read(2**20):
        graph = zlib.crc32(block, graph)
    return graph, sampled


def matrix_checksum(vectors_ND: np.ndarray, rows: int) -> int:
    """By which the first `rows` rows are known again."""
    places = np.unique(np.linspace(0, max(rows - 1, 0), min(rows, MATRIX_SAMPLES), dtype=np.int64))
    return zlib.crc32(np.ascontiguousarray(vectors_ND[places]).tobytes())
