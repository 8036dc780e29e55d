"""The one record there is, many of them in little memory, and what a source of records gives."""

from __future__ import annotations

import os
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import overload

import numpy as np

from cliplet.data.places import file_name
from cliplet.errors import DataError

MAX_SPLITS = 1000
USUAL_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val"}
USUAL_SPLITS |= {"validation": "val", "dev": "val"}
HELD_OUT = 10  # one picture in this many is held out for validation where a source names no splits


@dataclass(frozen=True, slots=True)
class ImageText:
    """One picture and its captions."""

    image: str  # path of the picture's file, or its place inside a larger one (`data/places.py`)
    captions: tuple[str, ...]  # at least one, none empty
    split: str = ""  # "" where the source names no splits


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad record, caption or file: where it stands and what is wrong with it."""

    where: str
    reason: str


def writable(text: str) -> str:
    """The text with what cannot be written in UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


class Texts(Sequence[str]):
    """Many short texts as one run of UTF-8 with two numbers each, where a list of str would take 50 bytes more apiece.

    Texts are appended; `picked` gives a view in another order. File names that are no UTF-8 survive.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._bounds = array("q", [0])  # text i lies from bounds[i] to bounds[i + 1]
        self._view: tuple[np.ndarray, np.ndarray] | None = None  # of a view, where each text begins and ends

    def append(self, text: str) -> None:
        """Adds one at the end. Not for views."""
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._bounds.append(len(self._bytes))

    def extend(self, texts: list[str]) -> None:
        """Adds many at the end, in a fifth of the time. Not for views."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bounds.extend(islice(accumulate(map(len, encoded), initial=len(self._bytes)), 1, None))
        self._bytes += b"".join(encoded)

    def picked(self, rows: np.ndarray) -> Texts:
        """The texts of `rows`, in that order; the text itself is shared."""
        bounds = np.frombuffer(self._bounds, dtype=np.int64)
        starts, ends = self._view or (bounds[:-1], bounds[1:])
        view = Texts()
        view._bytes = self._bytes
        view._view = (starts[rows], ends[rows])
        return view

    def __len__(self) -> int:
        return len(self._view[0]) if self._view else len(self._bounds) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if self._view:
            start, end = self._view[0][row], self._view[1][row]
        else:
            row = range(len(self))[row]  # also from the end
            start, end = self._bounds[row], self._bounds[row + 1]
        return self._bytes[start:end].decode("utf-8", "surrogateescape")


class Records(Sequence[ImageText]):
    """Many ImageText in little memory: a million pictures with a caption each take some 150 MB, not a gigabyte.

    Read only. An item is made when it is asked for; a slice, and `picked`, share what they are taken from.
    """

    def __init__(
        self, root: str, images: Texts, splits: np.ndarray, split_names: list[str], captions: Texts, first: np.ndarray
    ):
        """`root` is the folder of N `images`; `splits` (N,) are places in `split_names`; the captions of picture i
        are `captions[first[i]:first[i + 1]]`, `first` being (N + 1,)."""
        self._root, self._images, self._splits, self._split_names = root, images, splits, split_names
        self._captions, self._first = captions, first
        self._rows: np.ndarray | range = range(len(images))

    @classmethod
    def of(cls, records: Iterable[ImageText]) -> Records:
        """From records one by one. Records with the same picture stay apart."""
        builder = RecordsBuilder()
        for record in records:
            number = builder.new_picture(record.image, record.split)
            for caption in record.captions:
                builder.caption(number, caption)
        return builder.build()

    def picked(self, rows: np.ndarray | range) -> Records:
        """The records of `rows`, places in this sequence, in that order."""
        view = Records(self._root, self._images, self._splits, self._split_names, self._captions, self._first)
        if isinstance(rows, range):
            stop = rows.stop if rows.stop >= 0 else None  # a backward one ends at -1, which a slice takes for the last
            view._rows = self._rows[rows.start : stop : rows.step] if rows else range(0)
        else:
            view._rows = self._of_all()[rows]
        return view

    def _of_all(self) -> np.ndarray:
        return np.asarray(self._rows, dtype=np.int64)

    @property
    def splits(self) -> Counter[str]:
        """Pictures in each split in the order of the source's naming them, under "" those without one."""
        counts = np.bincount(self._splits[self._of_all()], minlength=len(self._split_names))
        return Counter({name: int(n) for name, n in zip(self._split_names, counts, strict=True) if n})

    def in_splits(self, names: Iterable[str]) -> Records:
        """The records of some splits, in order."""
        codes = [self._split_names.index(name) for name in names if name in self._split_names]
        return self.picked(np.flatnonzero(np.isin(self._splits[self._of_all()], codes)))

    def first_of_each_split(self, count: int) -> Records:
        """The first `count` records of each split, in order."""
        splits = self._splits[self._of_all()]
        taken = np.zeros(len(self), dtype=bool)
        for code in range(len(self._split_names)):
            taken[np.flatnonzero(splits == code)[:count]] = True
        return self.picked(np.flatnonzero(taken))

    def images(self) -> Iterator[str]:
        """Where every picture is."""
        return map(self.image, range(len(self)))

    def captions(self) -> Iterator[str]:
        """Every caption, picture by picture."""
        return (caption for record in self for caption in record.captions)

    def image(self, row: int) -> str:
        """Where one picture is."""
        return os.path.join(self._root, self._images[self._rows[row]])

    def caption_counts(self) -> np.ndarray:
        """(N,) captions of each picture."""
        return np.diff(self._first)[self._of_all()]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> ImageText: ...
    @overload
    def __getitem__(self, row: slice) -> Records: ...
    def __getitem__(self, row: int | slice) -> ImageText | Records:
        if isinstance(row, slice):
            return self.picked(range(*row.indices(len(self))))
        place = self._rows[row]
        captions = tuple(self._captions[self._first[place] : self._first[place + 1]])
        return ImageText(
            os.path.join(self._root, self._images[place]), captions, self._split_names[self._splits[place]]
        )

    def __iter__(self) -> Iterator[ImageText]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} records>"


class RecordsBuilder:
    """Gathers captions by picture, however far apart they stand; pictures keep the order of their first appearance."""

    def __init__(self) -> None:
        self._images, self._captions = Texts(), Texts()
        self._splits: array[int] = array("i")
        self._split_codes: dict[str, int] = {}
        self._owners: array[int] = array("q")  # the picture of each caption
        self._numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)  # by split and name

    def picture(self, image: str, split: str = "") -> int:
        """The number of a picture in a split, which is new or known."""
        numbers = self._numbers[split]
        number = numbers.get(image)
        if number is None:
            number = numbers[image] = self.new_picture(image, split)
        return number

    def new_picture(self, image: str, split: str = "") -> int:
        """The number of a picture that is known to be new, or to stand apart though it is the same file."""
        self._images.append(image)
        self._splits.append(self._split_codes.setdefault(split, len(self._split_codes)))
        return len(self._splits) - 1

    def caption(self, number: int, text: str) -> None:
        """One caption of a picture."""
        self._owners.append(number)
        self._captions.append(text)

    def captions(self, numbers: list[int], texts: list[str]) -> None:
        """Many captions at once, each of the picture whose number stands at its place."""
        self._owners.extend(numbers)
        self._captions.extend(texts)

    def rename(self, name: Callable[[str], str]) -> None:
        """Gives every picture another name."""
        images = Texts()
        images.extend([name(image) for image in self._images])
        self._images = images

    def names(self) -> Sequence[str]:
        """The pictures as they were named."""
        return self._images

    def without_caption(self) -> Iterator[str]:
        """Pictures that got no caption."""
        counts = np.bincount(np.asarray(self._owners, dtype=np.int64), minlength=len(self._images))
        return (self._images[int(number)] for number in np.flatnonzero(counts == 0))

    def build(self, root: str = "") -> Records:
        """The records, those without a caption left out. The builder is of no use afterwards."""
        owners = np.asarray(self._owners, dtype=np.int64)
        counts = np.bincount(owners, minlength=len(self._images))
        captions = self._captions
        if len(owners) and (np.diff(owners) < 0).any():
            captions = captions.picked(np.argsort(owners, kind="stable"))
        first = np.concatenate([[0], np.cumsum(counts)])
        splits, names = np.asarray(self._splits, dtype=np.int32), _usual_names(list(self._split_codes))
        self._numbers.clear()
        records = Records(root, self._images, splits, names, captions, first)
        return records if counts.all() else records.picked(np.flatnonzero(counts))


def _usual_names(splits: list[str]) -> list[str]:
    """The splits' names, those that mean train, val or test by these. Raises DataError for what are no splits."""
    if len(splits) > MAX_SPLITS:
        some = ", ".join(splits[:3])
        raise DataError(
            f"{len(splits):,} splits are named ({some}, ...), which are none",
            "Give the column or key `split` another name; splits are such as train, val and test.",
        )
    usual = [USUAL_SPLITS.get(name.lower(), name) for name in splits]
    # Where two of them would become one, both are meant.
    return [name if usual.count(new) > 1 and new != name else new for name, new in zip(splits, usual, strict=True)]


@dataclass
class ImageTextSource:
    """What a reader found: good records in the source's order, and what was wrong with the others."""

    path: str
    form: str  # the format's name, for people
    records: Records
    problems: list[Problem] = field(default_factory=list)
    makes_splits: bool | None = None  # whether it names none, or train alone, so that cliplet makes train and val

    def __post_init__(self) -> None:
        if self.makes_splits is None:
            self.makes_splits = set(self.splits) in ({""}, {"train"})

    @property
    def splits(self) -> Counter[str]:
        """Pictures in each split, under "" those without one."""
        return self.records.splits

    def select(self, split: str) -> Records:
        """Records of one split, or of several joined by `+` (`train+restval`), in the source's order.

        `all` gives every record. A source that names no splits, or `train` alone, has two: `val` is a tenth of its
        pictures, chosen by a checksum of the file name, so that it stays the same when pictures are added;
        `train` is the rest. Raises DataError for any other split and for an empty one.
        """
        splits, names = self.splits, split.split("+")
        if split == "all":
            chosen = self.records
        elif self.makes_splits and set(names) <= {"train", "val"}:
            held = np.fromiter(map(held_out, self.records.images()), bool, len(self.records))
            taken = ("val" in names) * held + ("train" in names) * ~held
            chosen = self.records.picked(np.flatnonzero(taken))
        elif all(name in splits for name in names):
            chosen = self.records.in_splits(names)
        else:
            unknown = next((name for name in names if name not in splits), split)
            named = ", ".join(f"{name} ({count:,})" for name, count in splits.items() if name)
            made = " and val, which is made from it" if named else "no named splits, so train and val are made from it"
            raise DataError(
                f"{self.path}: there is no split {unknown!r}",
                f"It has: {named}{made if self.makes_splits else ''}; all takes everything.",
            )
        if not chosen:
            raise DataError(
                f"{self.path}: the split {split!r} holds no pictures",
                "Add pictures, or name another split; all takes every picture.",
            )
        return chosen

    def split_of(self, record: ImageText) -> str:
        """The split of one of its records: its own, or the one that is made."""
        if not self.makes_splits:
            return record.split
        return "val" if held_out(record.image) else "train"


def held_out(image: str) -> bool:
    """Whether a picture of a source without splits is held out for validation."""
    return zlib.crc32(file_name(image).encode("utf-8", "surrogateescape")) % HELD_OUT == 0
