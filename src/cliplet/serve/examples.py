"""Queries that show what a library holds. Q everyday queries, S pictures of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cliplet.library.background import everyday_queries

if TYPE_CHECKING:
    from cliplet.library.store import Store

SAMPLE = 500
SHOWN = 8
FEW = ("a dog", "people at a table", "a street at night", "mountains", "flowers", "a red car")


def examples(store: Store) -> list[str]:
    """Everyday queries that some picture fits much better than others do, each by another picture; common ones where
    the library does not know how everyday queries fit."""
    queries, background_QD = everyday_queries(), store.calibration.background_QD
    sample_SD = store.sample(SAMPLE)
    if not len(sample_SD) or background_QD.shape != (len(queries), sample_SD.shape[1]):
        return list(FEW)
    score_QS = background_QD @ sample_SD.T
    stands_out_QS = (score_QS - score_QS.mean(axis=0)) / np.maximum(score_QS.std(axis=0), 1e-6)
    # Of each query, only with the picture that it fits best; of each picture, only the query that fits it best.
    best_Q = stands_out_QS.argmax(axis=1)
    height_Q = stands_out_QS.max(axis=1)
    chosen: dict[int, str] = {}
    for query in np.argsort(-height_Q):
        chosen.setdefault(int(best_Q[query]), queries[query])
    return list(chosen.values())[:SHOWN]
