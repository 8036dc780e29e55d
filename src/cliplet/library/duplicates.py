"""Pictures of a library that are copies of one another: alike in features, and then looked at. N pictures, D dims.

Features of all are compared with those of all others, which takes half a minute for 50,000 and grows with the square;
they name the candidates. The look that `cliplet inspect` has for copies (`data/duplicates.py`, which says what it finds
and what not) decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cliplet.data.duplicates import LOOKED_AT_ONCE, SIDE, same_pictures
from cliplet.errors import ImageError
from cliplet.library.records import Picture
from cliplet.library.store import ChangedError, Store
from cliplet.runtime.pipeline import in_order

CANDIDATES = 0.85  # least cosine of copies; those that are resized or saved anew stay above 0.9 as a rule
COMPARED_AT_ONCE = 2048  # rows
MOST_NEIGHBOURS = 50  # of one picture: what is closer to more than so many is one of a series

Tell = Callable[[int, int], None]


def find(store: Store, *, alike: float | None = None, tell: Tell = lambda done, total: None) -> list[list[Picture]]:
    """Groups of two and more, the largest picture of each first; the largest groups first.

    `alike`: group all whose features have at least this cosine, without a look at the pictures. `tell` hears how many
    were compared of how many. Files with the same content are always in one group.
    """
    try:
        groups, features_ND = _all_of(store)
    except ChangedError:  # the library's vectors were replaced meanwhile
        groups, features_ND = _all_of(store)
    if not groups:
        return []
    joined = _Groups(len(groups))
    if alike is not None:
        for pairs in _close_pairs(features_ND, alike, tell):
            joined.join(pairs)
    else:
        candidates = [pairs for pairs in _close_pairs(features_ND, CANDIDATES, tell) if len(pairs)]
        if candidates:
            joined.join(_looked_at(np.concatenate(candidates), [group[0] for group in groups]))
    found = [
        sorted((one for place in places for one in groups[place]), key=lambda one: (-one.width * one.height, one.path))
        for places in joined.groups()
    ]
    return sorted((group for group in found if len(group) > 1), key=lambda group: (-len(group), group[0].path))


def _all_of(store: Store) -> tuple[list[list[Picture]], np.ndarray]:
    """All pictures, those of the same content together, and their features (N, D) float16."""
    groups: list[list[Picture]] = []
    blocks = []
    for pictures, features_BD in store.features_in_blocks():
        groups += pictures
        blocks.append(features_BD.astype(np.float16))
    return groups, np.concatenate(blocks) if blocks else np.empty((0, 1), np.float16)


def _close_pairs(features_ND: np.ndarray, least: float, tell: Tell) -> Iterator[np.ndarray]:
    """Pairs (P, 2) of rows whose cosine is at least that, each pair once, in blocks: of each row the MOST_NEIGHBOURS
    nearest of those that follow it."""
    total = len(features_ND)
    for start in range(0, total, COMPARED_AT_ONCE):
        block_BD = features_ND[start : start + COMPARED_AT_ONCE].astype(np.float32)
        pairs, cosine_P = np.empty((0, 2), np.int64), np.empty(0, np.float32)
        for other in range(start, total, COMPARED_AT_ONCE):
            cosine_BB = block_BD @ features_ND[other : other + COMPARED_AT_ONCE].astype(np.float32).T
            rows, columns = np.nonzero(cosine_BB >= least)
            later = rows + start < columns + other
            rows, columns = rows[later], columns[later]
            pairs = np.concatenate([pairs, np.stack([rows + start, columns + other], axis=1)])
            cosine_P = np.concatenate([cosine_P, cosine_BB[rows, columns]])
            kept = _nearest_of_each(pairs[:, 0], cosine_P)
            pairs, cosine_P = pairs[kept], cosine_P[kept]
        yield pairs
        tell(min(start + COMPARED_AT_ONCE, total), total)


def _nearest_of_each(row_P: np.ndarray, cosine_P: np.ndarray) -> np.ndarray:
    """Places of the pairs with the MOST_NEIGHBOURS highest cosines of each row."""
    order = np.lexsort((-cosine_P, row_P))
    starts = np.searchsorted(row_P[order], row_P[order], side="left")
    return order[np.arange(len(order)) - starts < MOST_NEIGHBOURS]


def _looked_at(pairs: np.ndarray, pictures: Sequence[Picture]) -> np.ndarray:
    """Those of the pairs that show the same picture."""
    rows = np.unique(pairs)
    thumbnails = {
        int(row): thumbnail
        for row, thumbnail in zip(rows, in_order(_thumbnail, [pictures[row].path for row in rows]), strict=True)
        if thumbnail is not None
    }
    readable = np.array([a in thumbnails and b in thumbnails for a, b in pairs.tolist()], dtype=bool)
    pairs = pairs[readable]
    same = [
        same_pictures(
            np.stack([thumbnails[row] for row in block[:, 0].tolist()]),
            np.stack([thumbnails[row] for row in block[:, 1].tolist()]),
        )
        for block in (pairs[start : start + LOOKED_AT_ONCE] for start in range(0, len(pairs), LOOKED_AT_ONCE))
    ]
    return pairs[np.concatenate(same)] if same else pairs[:0]


def _thumbnail(path: str) -> np.ndarray | None:
    """(SIDE, SIDE, 3) uint8; None where the file is not there or no picture any more."""
    from PIL import Image

    from cliplet.data.images import load_image

    try:
        return np.asarray(load_image(path, SIDE).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    except ImageError:
        return None


class _Groups:
    """What belongs together, by pairs."""

    def __init__(self, count: int):
        self.parent = list(range(count))

    def join(self, pairs: np.ndarray) -> None:
        for a, b in pairs.tolist():
            one, other = self._top(a), self._top(b)
            self.parent[max(one, other)] = min(one, other)

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for place in range(len(self.parent)):
            found.setdefault(self._top(place), []).append(place)
        return list(found.values())

    def _top(self, place: int) -> int:
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place
