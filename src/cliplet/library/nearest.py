"""Which vectors are nearest to a query: exactly while there are few, and by an approximate index beyond that.

N rows of unit length in half precision, D dims, K results, A allowed rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cliplet.errors import DataError
from cliplet.library.approximate import Approximate, opened
from cliplet.library.exact import exact

if TYPE_CHECKING:
    from cliplet.library.approximate_making import Say

EXACT_BYTES = 200_000_000  # of vectors: one core looks through them in about 20 ms
TAIL_SHARE = 0.1  # of the rows, that the index may lack before it is extended
GROWN = 2.0  # a matrix for which no index was good enough gets another try when it has grown by so much


class Neighbours:
    """The rows of a matrix, searched. Safe for many threads."""

    def __init__(
        self,
        vectors_ND: np.ndarray,
        file: Path | None = None,
        exact_bytes: int = EXACT_BYTES,
    ):
        """vectors_ND: float16, usually mapped. file: where the approximate index is, if there is one; without it, and
        up to `exact_bytes` of vectors, searching is exact."""
        self.vectors_ND, self.file = np.asarray(vectors_ND), file
        self.exact_bytes = exact_bytes
        self.problem = ""  # why the index is not used, where there should be one
        self._looking = threading.Lock()
        self._index: Approximate | None = None
        self._looked = False

    def search(self, query_D: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (K,) int64 and scores (K,) float32, best first, equal scores by row number.

        allowed: sorted row numbers (A,), of which alone results may be. K is `k`, or less where there are no more.
        Scores are those of the vectors themselves, however rows were found.
        """
        query_D = np.asarray(query_D, np.float32)
        few = allowed is not None and self._bytes(len(allowed)) <= self.exact_bytes // 2
        index = None if few else self.index
        found = index.search(self.vectors_ND, query_D, k, allowed) if index else None
        if index is None or found is None:
            return exact(self.vectors_ND, query_D, k, allowed)
        if index.rows == len(self.vectors_ND):
            return found
        since = np.arange(index.rows, len(self.vectors_ND))
        if allowed is not None:
            since = allowed[np.searchsorted(allowed, index.rows) :]
        later = exact(self.vectors_ND, query_D, k, since)
        rows, scores = (np.concatenate(parts) for parts in zip(found, later, strict=True))
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    @property
    def index(self) -> Approximate | None:
        """The index, opened when it is first asked for; None where searching is exact."""
        with self._looking:
            if not self._looked and self.file is not None and self._bytes(len(self.vectors_ND)) > self.exact_bytes:
                try:
                    found = opened(self.file, self.vectors_ND)
                    self._index = found if found.about.levels else None
                    self.problem = "" if found.about.levels else f"{self.file}: does not find enough"
                except DataError as error:
                    self.problem = error.message
            self._looked = True
            return self._index

    def due(self) -> Literal["build", "extend"] | None:
        """What is to be done about the index: it is missing, damaged or of too few of the rows."""
        rows = len(self.vectors_ND)
        if self.file is None or self._bytes(rows) <= self.exact_bytes:
            return None
        try:
            about = opened(self.file, self.vectors_ND).about
        except DataError:
            return "build"
        if not about.levels:
            return "build" if rows > GROWN * about.rows else None
        tail = rows - about.rows
        return "extend" if tail > TAIL_SHARE * rows or self._bytes(tail) > self.exact_bytes // 4 else None

    def update(self, queries: Callable[[], np.ndarray], say: Say | None = None) -> None:
        """Makes the index or adds rows to it, where that is due; one process at a time.

        `queries` gives features of everyday sentences (Q, D), to find out how far it has to look. Raises DataError
        where it cannot be written; searching stays exact then.
        """
        due = self.due()
        if due is None or self.file is None:
            return
        from cliplet.library.approximate_making import build, extend  # a search makes nothing

        if say:
            what = "making" if due == "build" else "extending"
            say(f"{what} the approximate index of {len(self.vectors_ND):,} vectors")
        make = build if due == "build" else extend
        make(self.vectors_ND, self.file, queries(), say)
        with self._looking:
            self._looked = False

    def _bytes(self, rows: int) -> int:
        return rows * self.vectors_ND.shape[1] * 2
