"""Which of many pictures are copies of one another: candidates by their hashes, then a second look at these alone."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cliplet.data.duplicates import LOOKED_AT_ONCE, close_pairs, coarse_alike, same_pictures

ROUNDS = 8  # pictures of one hash that may be different ones
MOST_PAIRS = 4_000_000  # candidates that get a second look
MOST_SMALL = 16_384  # small pictures kept, 3 kB each

SmallPictures = Callable[[Sequence[int]], list[np.ndarray | None]]
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class CopiesFound:
    """`first` (M,): for each picture the first one of those that it is a copy of, over several steps perhaps, itself
    without any. `pairs` (P, 2): those that were seen to be copies. `complete`: all candidates were looked at."""

    first: np.ndarray
    pairs: np.ndarray
    complete: bool


def find_copies(
    hashes: np.ndarray, coarse: np.ndarray, small_pictures: SmallPictures, progress: Tell | None = None
) -> CopiesFound:
    """Copies among M pictures, by `hashes` (M,) and `coarse` squares (M, COARSE, COARSE).

    `small_pictures` gives thumbnails (SIDE, SIDE, 3), or None for what cannot be read. `progress(done, total)` tells of
    candidates.
    """
    look = _SecondLook(len(hashes), small_pictures)
    heads = _heads(hashes, coarse, look)
    pairs, complete = _candidates(hashes, coarse, heads)
    for start in range(0, len(pairs), LOOKED_AT_ONCE):
        look(pairs[start : start + LOOKED_AT_ONCE])
        if progress:
            progress(min(start + LOOKED_AT_ONCE, len(pairs)), len(pairs))
    found = np.asarray(look.pairs, dtype=np.int64).reshape(-1, 2)
    return CopiesFound(look.groups.all(), found, complete)


class _Groups:
    """Pictures joined two by two; a group is known by its first one."""

    def __init__(self, count: int):
        self._parent = array("q", range(count))

    def first(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        a, b = self.first(one), self.first(other)
        self._parent[max(a, b)] = min(a, b)

    def all(self) -> np.ndarray:
        return np.array([self.first(one) for one in range(len(self._parent))], dtype=np.int64)


class _SecondLook:
    """Looks at pairs, joins those that are copies, and keeps the small pictures that it saw last."""

    def __init__(self, count: int, small_pictures: SmallPictures):
        self.groups = _Groups(count)
        self.pairs = array("q")  # one after another
        self._small_pictures = small_pictures
        self._seen: dict[int, np.ndarray | None] = {}

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        """Whether each of the pairs (P, 2) is in one group, now or already."""
        first = self.groups.first
        new = np.array([first(a) != first(b) for a, b in pairs.tolist()], dtype=bool)
        small = self._small(np.unique(pairs[new]).tolist())
        seen = [(a, b) for a, b in pairs[new].tolist() if a in small and b in small]
        if seen:
            same = same_pictures(np.stack([small[a] for a, _ in seen]), np.stack([small[b] for _, b in seen]))
            for a, b in (pair for pair, is_same in zip(seen, same, strict=True) if is_same):
                self.pairs.extend((a, b))
                self.groups.join(a, b)
        return np.array([first(a) == first(b) for a, b in pairs.tolist()], dtype=bool)

    def _small(self, rows: list[int]) -> dict[int, np.ndarray]:
        """Thumbnails of these rows, and of others; not of those that cannot be read."""
        unseen = [row for row in rows if row not in self._seen]
        if len(self._seen) + len(unseen) > MOST_SMALL:
            self._seen = {row: self._seen[row] for row in rows if row in self._seen}
        self._seen.update(zip(unseen, self._small_pictures(unseen), strict=True))
        return {row: small for row in rows if (small := self._seen[row]) is not None}


def _heads(hashes: np.ndarray, coarse: np.ndarray, look: _SecondLook) -> np.ndarray:
    """Pictures that stand for all of their hash: mostly one, more where a hash is shared by chance.

    Each picture is compared with these, not with all of its hash: thousands may share one.
    """
    rest = np.argsort(hashes, kind="stable")
    heads = []
    for _ in range(ROUNDS):
        if not len(rest):
            break
        starts = np.flatnonzero(_changes(hashes[rest]))
        head_of = np.repeat(rest[starts], np.diff(np.append(starts, len(rest))))
        heads.append(rest[starts])
        others = np.flatnonzero(rest != head_of)
        pairs = np.stack([head_of[others], rest[others]], axis=1)
        joined = np.zeros(len(pairs), dtype=bool)
        for start in range(0, len(pairs), LOOKED_AT_ONCE):
            block = slice(start, start + LOOKED_AT_ONCE)
            likely = start + np.flatnonzero(coarse_alike(coarse[pairs[block, 0]], coarse[pairs[block, 1]]))
            joined[likely] = look(pairs[likely])
        rest = rest[others[~joined]]
    return np.concatenate(heads) if heads else np.zeros(0, np.int64)


def _changes(numbers: np.ndarray) -> np.ndarray:
    """Whether each of the sorted numbers differs from the one before it."""
    return np.concatenate([[True], numbers[1:] != numbers[:-1]]) if len(numbers) else np.zeros(0, bool)


def _candidates(hashes: np.ndarray, coarse: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, bool]:
    """Pairs of heads (P, 2) worth a second look, in order, and whether these are all."""
    heads = heads[np.argsort(hashes[heads], kind="stable")]
    starts = np.flatnonzero(_changes(hashes[heads]))
    counts = np.diff(np.append(starts, len(heads)))
    kept: list[np.ndarray] = []
    total = 0
    for close in close_pairs(hashes[heads[starts]]):
        for pairs in _of_heads(close, heads, starts, counts):
            likely = pairs[coarse_alike(coarse[pairs[:, 0]], coarse[pairs[:, 1]])]
            kept.append(np.sort(likely, axis=1).astype(np.int32))
            total += len(likely)
        if total > MOST_PAIRS:
            break
    if not total:
        return np.zeros((0, 2), np.int32), True
    candidates = np.concatenate(kept)
    return candidates[np.lexsort((candidates[:, 1], candidates[:, 0]))], total <= MOST_PAIRS


def _of_heads(close: np.ndarray, heads: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of the heads of pairs of hashes."""
    for one in range(int(counts[close[:, 0]].max())):
        for other in range(int(counts[close[:, 1]].max())):
            there = close[(counts[close] > (one, other)).all(axis=1)]
            yield heads[starts[there] + (one, other)]
