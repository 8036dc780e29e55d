"""The nearest rows of a half-precision matrix, found by looking at all of them.

N rows of unit length, D dims, K results, B rows of a block. A score is the dot product with the query, its products
summed in float64 and rounded to float32 once; so equal rows score equal wherever they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

BLOCK_BYTES = 2**23  # of rows looked at together

Scorer = Callable[[np.ndarray], np.ndarray]


def exact(
    vectors_ND: np.ndarray,
    query_D: np.ndarray,
    k: int,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (K,) int64 and scores (K,) float32, best first, equal scores by row number.

    vectors_ND: float16, no row longer than 1. query_D: float32, of any length. rows: sorted numbers of those that may
    come back, all if None. Rows that hold a NaN or an infinity never come back, so K may be less than `k`.

    A fast kernel finds what may be among the best, with a bound on its error; only that is scored exactly.
    """
    best_K, scores_K = np.empty(0, np.int64), np.empty(0, np.float32)
    query_D = np.ascontiguousarray(query_D, np.float32)
    length = float(np.linalg.norm(query_D.astype(np.float64))) or 1.0
    if k <= 0:
        return best_K, scores_K
    rough, bound = _scorer(query_D / np.float32(length))
    for numbers_B, block_BD in _blocks(np.asarray(vectors_ND), rows):
        rough_B = rough(block_BD)
        rough_B[~np.isfinite(rough_B)] = np.nan
        least = float(scores_K[-1]) / length - bound if len(scores_K) == k else -np.inf
        near = np.flatnonzero(rough_B >= least)  # a NaN is not
        if len(near) > k:
            least = np.partition(rough_B[near], -k)[-k] - 2 * bound
            near = near[rough_B[near] >= least]
        if not len(near):
            continue
        best_K = np.concatenate([best_K, numbers_B[near]])
        scores_K = np.concatenate([scores_K, scores_of(block_BD[near], query_D)])
        order = np.lexsort((best_K, -scores_K))[:k]
        best_K, scores_K = best_K[order], scores_K[order]
    return best_K, scores_K


def scores_of(rows_CD: np.ndarray, query_D: np.ndarray) -> np.ndarray:
    """Dot products (C,) float32 of some rows with a query, the same wherever a row stands."""
    products_CD: np.ndarray = rows_CD.astype(np.float64) * query_D.astype(np.float64)
    return products_CD.sum(axis=1).astype(np.float32)


def _blocks(vectors_ND: np.ndarray, rows: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers (B,) and rows (B, D) of all that is to be looked at; copied only where rows are not side by side."""
    count, size = len(vectors_ND), max(1, BLOCK_BYTES // max(1, 2 * vectors_ND.shape[1]))
    first = 0
    if rows is not None:
        count = len(rows)
        if count and int(rows[-1]) - int(rows[0]) == count - 1:
            first, rows = int(rows[0]), None
    for start in range(0, count, size):
        stop = min(start + size, count)
        if rows is None:
            yield np.arange(first + start, first + stop), vectors_ND[first + start : first + stop]
        else:
            numbers_B = rows[start:stop].astype(np.int64, copy=False)
            yield numbers_B, vectors_ND.take(numbers_B, axis=0)


def _scorer(query_D: np.ndarray) -> tuple[Scorer, float]:
    """A function from rows (B, D) to rough scores (B,), and how far at most from the exact ones it is, for a query of
    unit length."""
    bound = _rounding(len(query_D))
    kernel = _numkong(len(query_D))
    if kernel is None:

        def plain(block_BD: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):  # rows that are no numbers
                return np.asarray(block_BD.astype(np.float32) @ query_D)

        return plain, bound
    half_1D = query_D.astype(np.float16)[None]
    bound += 1.001 * float(np.linalg.norm(query_D - half_1D[0].astype(np.float32)))  # rows are rounded to half as well
    return lambda block_BD: np.asarray(kernel(np.ascontiguousarray(block_BD), half_1D, "inner"))[:, 0], bound


def _rounding(dims: int) -> float:
    """Of a float32 sum of products of two unit vectors, at most, with some to spare."""
    return (dims + 8) * 2.0**-23


@cache
def _numkong(dims: int) -> Any:
    """NumKong's kernel for half precision, 14 times as fast as numpy, which has to convert; None where it is not
    installed or, on this processor, rounds more than float32 does."""
    try:
        from numkong import cdist

        random = np.random.default_rng(0)
        rows_BD = random.standard_normal((64, dims))
        rows_BD = (rows_BD / np.linalg.norm(rows_BD, axis=1, keepdims=True)).astype(np.float16)
        got_B = np.asarray(cdist(rows_BD, rows_BD[:1], "inner"))[:, 0]
        right_B = rows_BD.astype(np.float64) @ rows_BD[0].astype(np.float64)
        return cdist if np.abs(got_B - right_B).max() <= _rounding(dims) else None
    except Exception:  # whatever another version of it does: numpy computes the same
        return None
