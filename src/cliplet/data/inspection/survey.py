"""The work of an inspection: every record, every file, then copies. What it holds of a picture are numbers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from cliplet.data.inspection.captions import CaptionCounter, TokenCounter
from cliplet.data.inspection.copies import find_copies
from cliplet.data.inspection.findings import CaptionFindings
from cliplet.data.inspection.looks import Looks, look_at_all, small_picture, threads
from cliplet.data.records import ImageTextSource

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Survey:
    """N records of F different files. Copies are known after `with_copies`."""

    source: ImageTextSource
    split_names: tuple[str, ...]
    split: np.ndarray  # (N,) place in `split_names`
    made_splits: bool  # the source names none, so train and val are the ones cliplet makes
    file: np.ndarray  # (N,) number of each record's file
    first_row: np.ndarray  # (F,) the first record of each file
    captions: CaptionFindings
    looks: Looks
    same_bytes: np.ndarray  # (F,) the first file with the same bytes; -1 for one that cannot be used
    same_picture: np.ndarray  # (F,) the first file that shows the same picture; -1 for one that cannot be used
    copies: np.ndarray  # (P, 2) files that were seen to show the same picture, first ones of their bytes
    complete: bool  # all that may be copies were looked at

    def place(self, file: int) -> str:
        """Where a file is."""
        return self.source.records[int(self.first_row[file])].image

    def split_of(self, row: int) -> str:
        """The split of a record."""
        return self.split_names[self.split[row]]


def survey_source(
    source: ImageTextSource,
    workers: int | None = None,
    progress: Tell | None = None,
    tokens: TokenCounter | None = None,
) -> Survey:
    """Looks at every record and decodes every file once, however often it is listed.

    `workers`: decoding threads; by itself as many as cores, at most 8. `progress(done, total)` is called in this
    thread after each file. `tokens` counts captions in tokens.
    """
    records = source.records
    keys, split, names = bytearray(), array("i"), dict[str, int]()
    captions = CaptionCounter(tokens)
    for record in records:
        keys += blake2b(record.image.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        split.append(names.setdefault(source.split_of(record), len(names)))
        captions.add(record)
    owner = first_with_same(np.frombuffer(keys, np.uint64).reshape(-1, 2))
    first_row, file = np.unique(owner, return_inverse=True)
    file = file.astype(np.int32)
    looks = look_at_all(lambda number: records[int(first_row[number])].image, len(first_row), workers, progress)
    same_bytes = np.full(len(first_row), -1, np.int64)
    good = np.flatnonzero(looks.good)
    same_bytes[good] = good[first_with_same(looks.sha256[good].view(np.uint64))]
    return Survey(
        source=source,
        split_names=tuple(names),
        split=np.asarray(split, np.int32),
        made_splits=bool(source.makes_splits),
        file=file,
        first_row=first_row,
        captions=captions.found(records, file),
        looks=looks,
        same_bytes=same_bytes,
        same_picture=same_bytes,
        copies=np.zeros((0, 2), np.int64),
        complete=True,
    )


def with_copies(survey: Survey, workers: int | None = None, progress: Tell | None = None) -> Survey:
    """The survey with copies whose bytes differ. `progress(done, total)` tells of pairs that need a second look."""
    numbers = np.arange(len(survey.first_row))
    compared = np.flatnonzero((survey.same_bytes == numbers) & ~survey.looks.blank)
    with ThreadPoolExecutor(threads(workers), thread_name_prefix="inspect") as pool:

        def small_pictures(places: Sequence[int]) -> list[np.ndarray | None]:
            return list(pool.map(small_picture, [survey.place(compared[place]) for place in places]))

        found = find_copies(survey.looks.hash[compared], survey.looks.coarse[compared], small_pictures, progress)
    first = survey.same_bytes.copy()
    first[compared] = compared[found.first]
    good = np.flatnonzero(survey.same_bytes >= 0)
    same_picture = np.full(len(numbers), -1, np.int64)
    same_picture[good] = first[survey.same_bytes[good]]
    return replace(survey, same_picture=same_picture, copies=compared[found.pairs], complete=found.complete)


def first_with_same(keys: np.ndarray) -> np.ndarray:
    """(N,) for each row of `keys` (N, K) the first row that holds the same numbers."""
    if not len(keys):
        return np.zeros(0, np.int64)
    order = np.lexsort(keys.T)  # stable: of rows that are the same the first comes first
    ordered = keys[order]
    new = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    first = np.empty(len(keys), np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first
