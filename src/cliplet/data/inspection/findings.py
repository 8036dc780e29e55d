"""What an inspection found, in few words: what the table, the page and --json are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, overload

import numpy as np

Found = TypeVar("Found", covariant=True)


class Listing(Sequence[Found], Generic[Found]):
    """Many findings, kept as numbers; each is made when it is asked for."""

    def __init__(self, rows: np.ndarray, make: Callable[[int], Found]):
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Found: ...
    @overload
    def __getitem__(self, place: slice) -> list[Found]: ...
    def __getitem__(self, place: int | slice) -> Found | list[Found]:
        if isinstance(place, slice):
            return [self._make(int(row)) for row in self._rows[place]]
        return self._make(int(self._rows[place]))


@dataclass(frozen=True, slots=True)
class Spread:
    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, numbers: np.ndarray) -> Spread | None:
        """Of some numbers; None of none."""
        if not len(numbers):
            return None
        return cls(int(numbers.min()), float(np.median(numbers)), int(numbers.max()))


@dataclass(frozen=True)
class Lengths:
    """How often each length occurs."""

    counts: dict[int, int]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Lengths:
        """Of lengths one by one."""
        return cls(dict(sorted(Counter(lengths).items())))

    @cached_property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    @property
    def minimum(self) -> int:
        """0 without any, as are the others."""
        return min(self.counts, default=0)

    @property
    def maximum(self) -> int:
        return max(self.counts, default=0)

    @property
    def mean(self) -> float:
        return sum(length * count for length, count in self.counts.items()) / self.total if self.total else 0.0

    def at(self, share: float) -> int:
        """The length that this share of all does not exceed."""
        passed = 0
        for length, count in sorted(self.counts.items()):
            passed += count
            if passed >= share * self.total:
                return length
        return 0

    def as_dict(self) -> dict[str, Any]:
        """Numbers and all counts."""
        return {
            "min": self.minimum,
            "median": self.at(0.5),
            "mean": self.mean,
            "max": self.maximum,
            "histogram": {str(length): count for length, count in sorted(self.counts.items())},
        }


@dataclass(frozen=True, slots=True)
class Tokens:
    """Captions in tokens, special ones counted in."""

    tokenizer: str
    context_length: int
    lengths: Lengths

    @property
    def cut(self) -> int:
        """Captions that are longer than the context."""
        return sum(count for length, count in self.lengths.counts.items() if length > self.context_length)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {"tokenizer": self.tokenizer, "context_length": self.context_length, "cut": self.cut}
        return {**own, **self.lengths.as_dict()}


@dataclass(frozen=True, slots=True)
class Repeated:
    """A caption that stands under several different pictures, in capitals or not, with a full stop or without."""

    caption: str
    pictures: int


@dataclass(frozen=True)
class CaptionFindings:
    per_picture: Lengths
    words: Lengths  # words of a caption
    tokens: Tokens | None  # where a tokenizer was given
    repeated: int  # captions that stand under more than one picture
    most_repeated: tuple[Repeated, ...]
    twice: np.ndarray  # rows of records that hold a caption twice
    scripts: dict[str, int]  # captions by the script of most of their letters, the most frequent first
    examples: dict[str, tuple[str, ...]]  # the first captions of each script

    @property
    def other_scripts(self) -> dict[str, int]:
        """Captions in other scripts than most; those without a letter are in a script of their own."""
        return dict(list(self.scripts.items())[1:])


@dataclass(frozen=True, slots=True)
class SplitCount:
    pictures: int
    captions: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture is listed: its path and its split."""

    path: str
    split: str


def _splits(places: Sequence[Place]) -> tuple[str, ...]:
    return tuple(sorted({place.split for place in places}))


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Records whose files hold the same bytes, under one name or several."""

    sha256: str
    places: tuple[Place, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold this picture, sorted."""
        return _splits(self.places)


@dataclass(frozen=True, slots=True)
class Copies:
    """Records that show the same picture, not all of them in the same bytes."""

    places: tuple[Place, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold this picture, sorted."""
        return _splits(self.places)


@dataclass(frozen=True, slots=True)
class Leak:
    """How many pictures of a split stand in another one too."""

    split: str  # the one to be protected: test before val before train
    other: str
    pictures: int  # of `split`
    same_bytes: int  # of these, those whose very file is there; the rest was saved anew, resized, ...

    def __str__(self) -> str:
        anew = self.pictures - self.same_bytes
        kinds = [f"{self.same_bytes:,} in the same bytes"] if self.same_bytes else []
        kinds += [f"{anew:,} saved anew, resized or cut"] if anew else []
        stand = "picture of {} also stands" if self.pictures == 1 else "pictures of {} also stand"
        where = f"{stand.format(self.split or '(none)')} in {self.other or '(none)'}"
        return f"{self.pictures:,} {where}: {', '.join(kinds)}"
