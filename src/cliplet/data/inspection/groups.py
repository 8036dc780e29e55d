"""Records that show one picture, and what of it is shared by splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cliplet.data.inspection.findings import Leak

PROTECTED = ("test", "val", "validation", "valid", "dev", "train")  # splits, the one to be protected most first


@dataclass(frozen=True)
class Groups:
    """Groups of at least two records: group i is `rows[starts[i] : stops[i]]`, in the order of the records."""

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> Groups:
        """Of records (N,) with the same label, but for -1."""
        rows = np.flatnonzero(labels >= 0)
        rows = rows[np.argsort(labels[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(labels[rows])) + 1 if len(rows) else np.zeros(0, np.int64)
        starts, stops = np.append(0, edges), np.append(edges, len(rows))
        many = stops - starts > 1
        return cls(rows, starts[many], stops[many])

    def __len__(self) -> int:
        return len(self.starts)

    def group(self, number: int) -> np.ndarray:
        """The rows of one."""
        return self.rows[self.starts[number] : self.stops[number]]

    def differ(self, numbers: np.ndarray) -> np.ndarray:
        """(G,) bool: groups whose records do not all have the same of `numbers` (N,)."""
        changes = np.append(0, np.cumsum(np.diff(numbers[self.rows]) != 0))
        return changes[self.stops - 1] > changes[self.starts]

    def only(self, chosen: np.ndarray) -> Groups:
        """Those of `chosen`, (G,) bool."""
        return Groups(self.rows, self.starts[chosen], self.stops[chosen])

    def counts(self, splits: np.ndarray, names: int) -> np.ndarray:
        """(G, names): records of each split in each group."""
        sizes = self.stops - self.starts
        group = np.repeat(np.arange(len(self)), sizes)
        rows = np.repeat(self.starts - np.append(0, np.cumsum(sizes)[:-1]), sizes) + np.arange(sizes.sum())
        counts = np.zeros((len(self), names), np.int64)
        np.add.at(counts, (group, splits[self.rows[rows]]), 1)
        return counts


def leaks(same_bytes: np.ndarray, same_picture: np.ndarray, names: Sequence[str]) -> tuple[Leak, ...]:
    """What splits share, the most protected ones first.

    `same_bytes`, `same_picture`: (G, names) counts of groups of records with the same bytes, and of those that show
    the same picture.
    """
    order = sorted(range(len(names)), key=lambda number: protection(names[number]))
    found = []
    for place, one in enumerate(order):
        for other in order[place + 1 :]:
            pictures = int(same_picture[same_picture[:, other] > 0, one].sum())
            exact = int(same_bytes[same_bytes[:, other] > 0, one].sum())
            if pictures:
                found.append(Leak(names[one], names[other], pictures, exact))
    return tuple(found)


def protection(split: str) -> int:
    """How much a split has to be protected from what others hold; 0 is most."""
    return PROTECTED.index(split) if split in PROTECTED else len(PROTECTED)


def shared(counts: np.ndarray, names: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How many groups each combination of splits shares, of `counts` (G, names)."""
    kinds, numbers = np.unique(counts > 0, axis=0, return_counts=True)
    found = {}
    for kind, number in zip(kinds.tolist(), numbers.tolist(), strict=True):
        found[tuple(sorted(name for name, there in zip(names, kind, strict=True) if there))] = number
    return Counter(dict(sorted(found.items(), key=lambda item: -item[1])))
