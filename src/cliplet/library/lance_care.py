"""What keeps a library in LanceDB quick: few large files, indexes, nothing that nobody needs any more. Q queries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np

from cliplet.library.lance_changes import Table
from cliplet.library.lance_tables import (
    CAPTIONS,
    OF_A_MODEL,
    PICTURES,
    About,
    Generation,
    Place,
    lance_module,
    vectors_of,
)

INDEX = "vector_idx"  # as LanceDB names it by itself
KEPT_FOR = timedelta(days=1)  # versions, and tables of the model before: somebody may be reading them
LOOSE = 64  # changes, each of which leaves a small file or more, after which files are put together
SMALL, LARGE = 2**15, 2**20  # rows of files that are put together on the way, and at the end
INDEXED_FROM, REMOTE_INDEXED_FROM = 100_000, 10_000  # rows; from object storage each of them would have to be fetched
ROWS_IN_PARTITION = 1000
SAMPLE, ROUNDS, AT_ONCE = 64, 10, 8192  # rows a partition by which centres are found, rounds, rows at once
ENOUGH = 0.98  # recall of the ten nearest that is aimed for
TESTED = 200  # queries
# Part of the partitions that is looked at, and rows a hit that are looked at again, exactly. Sentences lie apart from
# all pictures, so that their nearest pictures are in many partitions.
LADDER = ((1 / 16, 5), (1 / 8, 5), (1 / 4, 5), (1 / 2, 5), (3 / 4, 10), (1, 20))


def tidy(table: Table, to_the_end: bool = False) -> None:
    """Puts small files together, where there have come to be many."""
    if table.dataset is not None and (table.loose > LOOSE or (to_the_end and table.loose > 1)):
        table.dataset.optimize.compact_files(target_rows_per_fragment=LARGE if to_the_end else SMALL)
        table.loose = 0


def care(tables: Mapping[str, Table], queries: Callable[[], np.ndarray]) -> dict[str, Any]:
    """Files and indexes of a generation's tables, once all is written. Returns how each approximate index is to be
    asked, by table; `recall` says how well it then finds, where that was measured."""
    search = {}
    for name in OF_A_MODEL:
        tidy(tables[name], to_the_end=True)
    for name in (PICTURES, CAPTIONS):
        table = tables[name]
        least = INDEXED_FROM if table.place.folder is not None else REMOTE_INDEXED_FROM
        if len(table) < least:
            continue
        if name == PICTURES:
            _scalar(table, "id", "BTREE")
            _scalar(table, "captions", "NGRAM")
        _approximate(table)
        search[name] = _tuned(table, queries()[:TESTED])
    return search


def _scalar(table: Table, column: str, kind: str) -> None:
    if not _has_index(table, column):
        table.dataset.create_scalar_index(column, kind)


def _has_index(table: Table, column: str) -> bool:
    return any(list(one.field_names) == [column] for one in table.dataset.describe_indices())


def _approximate(table: Table) -> None:
    """Makes the index of vectors, or has it learn the rows that are new; anew where these are more than the old."""
    import pyarrow as pa

    rows = len(table)
    if _has_index(table, "vector"):
        statistics = table.dataset.index_statistics(INDEX)
        if statistics["num_unindexed_rows"] <= statistics["num_indexed_rows"]:
            table.dataset.optimize.optimize_indices()
            return
    partitions = max(1, rows // ROWS_IN_PARTITION)
    halves = _centres(table, partitions).astype(np.float16)
    table.dataset.create_index(
        "vector",
        "IVF_RQ",  # a bit a number, and what is found is looked at again; built in a thirtieth of the time of IVF_PQ
        name=INDEX,
        metric="cosine",
        num_partitions=partitions,
        ivf_centroids=pa.FixedSizeListArray.from_arrays(pa.array(halves.ravel()), halves.shape[1]),
        replace=True,
    )


def _centres(table: Table, count: int) -> np.ndarray:
    """(count, D) of unit length, by k-means of a sample. LanceDB's own takes many times as long in half precision."""
    rows = len(table)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, count * SAMPLE), dtype=np.int64))
    sample_SD = vectors_of(table.dataset.take(chosen.tolist(), columns=["vector"]))
    centres_CD = sample_SD[np.random.default_rng(0).choice(len(sample_SD), count, replace=False)]
    for _ in range(ROUNDS):
        sums_CD = np.zeros_like(centres_CD)
        for start in range(0, len(sample_SD), AT_ONCE):
            block_BD = sample_SD[start : start + AT_ONCE]
            np.add.at(sums_CD, (block_BD @ centres_CD.T).argmax(axis=1), block_BD)
        lengths_C1 = np.linalg.norm(sums_CD, axis=1, keepdims=True)
        centres_CD = np.where(lengths_C1 > 0, sums_CD / np.maximum(lengths_C1, 1e-12), centres_CD)
    return centres_CD


def _tuned(table: Table, queries_QD: np.ndarray) -> dict[str, Any]:
    """The cheapest way to ask the index that finds enough of what the queries should find."""
    partitions = max(1, len(table) // ROWS_IN_PARTITION)
    right = [_nearest(table, query_D, {"use_index": False}) for query_D in queries_QD]
    best: dict[str, Any] = {}
    for part, again in LADDER:
        asked = {"nprobes": math.ceil(part * partitions), "refine_factor": again}
        found = [_nearest(table, query_D, asked) for query_D in queries_QD]
        recall = float(np.mean([len(one & other) / max(len(one), 1) for one, other in zip(right, found, strict=True)]))
        best = asked | {"recall": round(recall, 4)}
        if recall >= ENOUGH:
            break
    return best


def _nearest(table: Table, query_D: np.ndarray, how: Mapping[str, Any]) -> set[int]:
    nearest = {"column": "vector", "q": query_D.astype(np.float32), "k": 10, "metric": "cosine", **how}
    found = table.dataset.scanner(columns=["_distance"], nearest=nearest, with_row_id=True).to_table()
    return set(found["_rowid"].to_pylist())


def retire(about: About, generation: Generation) -> None:
    """Notes the tables of a generation that nobody needs any more, for `sweep`."""
    about.retired += [(generation.name(table), time.time()) for table in generation.versions]


def sweep(about: About, place: Place) -> None:
    """Removes tables that were retired a day ago, from the notes as well."""
    lance = lance_module()
    old = time.time() - KEPT_FOR.total_seconds()
    for name, since in about.retired:
        if since < old:
            with suppress(Exception):  # it may be gone
                lance.LanceDataset.drop(place.table(name), storage_options=place.options or None, ignore_not_found=True)
    about.retired = [(name, since) for name, since in about.retired if since >= old]


def forget_versions(tables: list[str], place: Place) -> None:
    """Removes what belongs to no version of the last day. A table that is not there is passed over."""
    for name in tables:
        with suppress(Exception):  # of a storage that refuses; the next run tries again
            place.open(name).cleanup_old_versions(older_than=KEPT_FOR, delete_unverified=False)
