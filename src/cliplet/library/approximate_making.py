"""Making an approximate index, adding rows to it, and finding out how far it has to look.

Sentences lie outside the cloud of pictures, and a graph made from pictures leads to their neighbours less surely than
to a picture's. So how far to look is measured on features of real sentences, held against the exact neighbours, and on
some pictures of the matrix as well. Q sentences, P pictures, N rows, D dims, L levels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.files import written_beside
from cliplet.library.approximate import (
    About,
    Level,
    about_file,
    candidates,
    checksums,
    matrix_checksum,
    opened,
    vector_bytes,
)
from cliplet.runtime.cores import cores

PRECISION, CONNECTIVITY, EXPANSION_ADD = "i8", 16, 128
WANTED_RECALL, NEARLY_NOTHING = 0.99, 0.001
LEVELS = (10, 50, 250, 1000)  # results for which settings are sought
EXPANSIONS = tuple(round(16 * 2 ** (step / 4)) for step in range(33))  # 16 to 4096
SENTENCES, PICTURES = 400, 100  # that a setting is measured on
FEWER_FROM, FEWER = 250, 4  # results, from which on a part of them does
IN_BLOCK = 8192  # rows
TIE = 1e-6  # scores that are closer than that are equal, as matrix products round

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


def build(
    vectors_ND: np.ndarray,
    file: Path,
    queries_QD: np.ndarray,
    say: Say | None = None,
    progress: Progress | None = None,
) -> About:
    """Makes the index of a matrix, and puts it in its place when it is whole.

    queries_QD: features of everyday sentences. `progress` is told how many rows of how many are done. Where no setting
    finds what is wanted, `levels` is empty. Raises DataError where it cannot be written, or usearch is missing.
    """
    index = _usearch()(
        ndim=vectors_ND.shape[1],
        metric="ip",
        dtype=PRECISION,
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        enable_key_lookups=False,
    )
    return _finished(index, vectors_ND, 0, file, queries_QD, say, progress)


def extend(
    vectors_ND: np.ndarray,
    file: Path,
    queries_QD: np.ndarray,
    say: Say | None = None,
    progress: Progress | None = None,
) -> About:
    """Adds the rows that the matrix has got since, and measures anew. Arguments as for `build`; rows before those are
    left as they are. Raises DataError, also where the index there is damaged or of another matrix."""
    old = opened(file, vectors_ND)
    index = _usearch().restore(old.mapped, enable_key_lookups=False, expansion_add=EXPANSION_ADD)
    return _finished(index, vectors_ND, old.rows, file, queries_QD, say, progress)


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise DataError("an approximate index needs usearch", "Install it: pip install usearch.") from None
    return Index


def _finished(
    index: Any,
    vectors_ND: np.ndarray,
    start: int,
    file: Path,
    queries_QD: np.ndarray,
    say: Say | None,
    progress: Progress | None,
) -> About:
    vectors_ND = np.asarray(vectors_ND)
    rows = np.arange(len(vectors_ND))
    _add(index, vectors_ND, rows[start:], progress)
    began = time.monotonic()
    levels = tuned(index, vectors_ND, rows, queries_QD)
    if say:
        say(_told(levels, len(index), time.monotonic() - began))
    return _placed(index, vectors_ND, levels, file)


def _add(index: Any, vectors_ND: np.ndarray, rows: np.ndarray, progress: Progress | None) -> None:
    """Rows that hold a NaN or an infinity are left out."""
    for start in range(0, len(rows), IN_BLOCK):
        rows_B = rows[start : start + IN_BLOCK]
        block_BD = vectors_ND[rows_B]
        finite_B = np.isfinite(block_BD).all(axis=1)
        if finite_B.any():
            index.add(rows_B[finite_B].astype(np.uint64), block_BD[finite_B].astype(np.float32), threads=cores())
        if progress:
            progress(start + len(rows_B), len(rows))


def _placed(index: Any, vectors_ND: np.ndarray, levels: tuple[Level, ...], file: Path) -> About:
    for left in file.parent.glob(f".{file.stem}.*{file.suffix}"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    try:
        with written_beside(about_file(file)) as about_beside, written_beside(file) as beside:
            index.save(str(beside))
            size = beside.stat().st_size
            if size != index.serialized_length:
                raise OSError(f"{size:,} bytes of {index.serialized_length:,} were written")
            about = About(
                usearch=version("usearch"),
                rows=len(vectors_ND),
                entries=len(index),
                dims=vectors_ND.shape[1],
                matrix=matrix_checksum(vectors_ND, len(vectors_ND)),
                precision=PRECISION,
                connectivity=index.connectivity,
                expansion_add=EXPANSION_ADD,
                wanted_recall=WANTED_RECALL,
                levels=levels,
                bytes=size,
                checksums=(0, 0),
            )
            with beside.open("rb", buffering=0) as stream:
                about = replace(about, checksums=checksums(stream, vector_bytes(about)))
            about.write(about_beside)
    except (OSError, RuntimeError) as error:  # usearch raises the latter for a full disk
        raise DataError(
            f"{file}: the approximate index cannot be written: {getattr(error, 'strerror', None) or error}",
            "Make room, or see to the rights of the folder. Searching is exact meanwhile, and slower.",
        ) from None
    return about


# -- how far to look


def tuned(index: Any, vectors_ND: np.ndarray, rows: np.ndarray, queries_QD: np.ndarray) -> tuple[Level, ...]:
    """For some numbers of results the least that has to be looked at, as far as the wanted recall is reached."""
    random = np.random.default_rng(0)
    texts_QD = queries_QD[np.sort(random.permutation(len(queries_QD))[:SENTENCES])].astype(np.float32)
    pictures_PD = vectors_ND[np.sort(random.permutation(rows)[:PICTURES])].astype(np.float32)
    pictures_PD = pictures_PD[np.isfinite(pictures_PD).all(axis=1)]
    if not len(texts_QD) or not len(pictures_PD):
        return ()
    counts = [k for k in LEVELS if k <= len(index)]
    least_QL, least_PL = (kth_best(vectors_ND, rows, queries, counts) for queries in (texts_QD, pictures_PD))
    levels: list[Level] = []
    for place, k in enumerate(counts):
        part = FEWER if k >= FEWER_FROM else 1
        asked = [
            (queries[::part], least[::part, place])
            for queries, least in ((texts_QD, least_QL), (pictures_PD, least_PL))
        ]
        least_expansion = max(k, levels[-1].expansion_search if levels else 0)
        level = _least(partial(_level, _Measure(index, vectors_ND, k), asked), least_expansion)
        if level is None:
            break
        levels.append(level)
    return tuple(levels)


def _least(level_at: Callable[[int], Level | None], at_least: int) -> Level | None:
    """The level of the smallest expansion that has one: doubled until there is one, then halved between."""
    steps = [expansion for expansion in EXPANSIONS if expansion >= at_least]
    found, low, high, stride = None, -1, 0, 4
    while found is None and low < len(steps) - 1:
        high = min(low + stride, len(steps) - 1)
        found = level_at(steps[high])
        low = low if found else high
    while found and high - low > 1:
        middle = (low + high) // 2
        better = level_at(steps[middle])
        found, low, high = (better, low, middle) if better else (found, middle, high)
    return found


def _level(measure: _Measure, asked: list[tuple[np.ndarray, np.ndarray]], expansion: int) -> Level | None:
    """What sentences and pictures find with an expansion; None where it is too little."""
    recalls, places = [], []
    for queries_QD, least_Q in asked:
        recalls.append(measure.recalls(queries_QD, least_Q, expansion))
        if recalls[-1][-1] < WANTED_RECALL:
            return None
        places.append(_enough(recalls[-1]))
    at, (texts, pictures) = max(places), asked
    found = float(recalls[0][at]), len(texts[0]), float(recalls[1][at]), len(pictures[0])
    return Level(measure.k, expansion, at + 1, *found)


def _enough(recalls_C: np.ndarray) -> int:
    """The first place from which on more candidates find nearly nothing more."""
    return int(np.argmax(recalls_C >= max(WANTED_RECALL, recalls_C[-1] - NEARLY_NOTHING)))


class _Measure:
    """What part of the best k is found."""

    def __init__(self, index: Any, vectors_ND: np.ndarray, k: int):
        self.index, self.vectors_ND, self.k = index, vectors_ND, k

    def recalls(self, queries_QD: np.ndarray, least_Q: np.ndarray, expansion: int) -> np.ndarray:
        """(C,): by how many candidates are ranked again, 1 to `expansion`. A result is right if its exact score is
        that of the k-th best, or better, so that among equal ones each is right."""
        counts_C = np.zeros(expansion)
        for query_D, least in zip(queries_QD, least_Q, strict=True):
            found_C = candidates(self.index, query_D, expansion, expansion)
            right_C = self.vectors_ND[found_C].astype(np.float32) @ query_D >= least - TIE
            counts_C[: len(right_C)] += np.minimum(np.cumsum(right_C), self.k)
            counts_C[len(right_C) :] += min(int(right_C.sum()), self.k)
        return counts_C / (self.k * len(queries_QD))


def kth_best(vectors_ND: np.ndarray, rows: np.ndarray, queries_QD: np.ndarray, counts: list[int]) -> np.ndarray:
    """(Q, L): of each query the score of the k-th best row, for each k in `counts`."""
    most = max(counts, default=1)
    best_QK = np.full((len(queries_QD), most), -np.inf, np.float32)
    for start in range(0, len(rows), IN_BLOCK):
        with np.errstate(invalid="ignore"):  # rows that are no numbers
            scores_QB = queries_QD @ vectors_ND[rows[start : start + IN_BLOCK]].astype(np.float32).T
        scores_QB[~np.isfinite(scores_QB)] = -np.inf
        both = np.concatenate([best_QK, scores_QB], axis=1)
        best_QK = np.partition(both, -most, axis=1)[:, -most:]
    return np.sort(best_QK, axis=1)[:, [most - k for k in counts]]


def _told(levels: tuple[Level, ...], entries: int, seconds: float) -> str:
    if not levels:
        return f"an index of {entries:,} rows does not find {WANTED_RECALL:.0%}; searching stays exact"
    first = levels[0]
    return (
        f"an index of {entries:,} rows finds {first.recall_texts:.1%} of the best {first.k} for sentences and "
        f"{first.recall_pictures:.1%} for pictures (measured in {seconds:.0f} s)"
    )
