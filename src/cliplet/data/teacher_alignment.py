"""Finds the pictures and captions of a run's records in a store of teachers' embeddings. No torch.

Shapes: N records, M captions of all records.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from cliplet.data.places import ARROW_ROW, TAR_MEMBER
from cliplet.data.records import Records
from cliplet.data.teacher_shards import StoreManifest, distinct_captions, read_index
from cliplet.errors import DataError


def picture_names(records: Records) -> tuple[list[str], int]:
    """The names of pictures in a store, and of how many last parts of their places they are made: as few as tell
    pictures at different places apart."""
    different = len(set(map(_path, records.images())))
    for name_parts in count(1):
        names = names_with(records, name_parts)
        if len(set(names)) == different:
            break
    return names, name_parts


def names_with(records: Records, name_parts: int) -> list[str]:
    """The names of pictures, made of so many last parts of their places; of all where there are fewer."""
    return ["/".join(path.rsplit("/", name_parts)[-name_parts:]) for path in map(_path, records.images())]


def _path(place: str) -> str:
    """A place as a whole path without offsets, which change when a tar is made again: a member stands below its tar, a
    row below its Arrow file. However the data were named, `./a.jpg` or `../photos/a.jpg`, it is the same."""
    if "?" in place:
        if member := TAR_MEMBER.fullmatch(place):
            return f"{_whole(member['file'])}/{member['name']}"
        if cell := ARROW_ROW.fullmatch(place):
            return f"{_whole(cell['file'])}/{cell['row']}"
    return _whole(place)


def _whole(file: str) -> str:
    file = os.path.abspath(file)  # a Path takes ten times as long
    return file if os.sep == "/" else file.replace(os.sep, "/")


# The search


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the store has the pictures and captions of some records, and which bytes it was made from."""

    shard_N: np.ndarray  # int32
    row_N: np.ndarray  # int32, among the pictures of the shard
    size_N: np.ndarray  # int64, bytes
    crc32_N: np.ndarray  # uint32
    shard_M: np.ndarray  # int32
    row_M: np.ndarray  # int32, among the different captions of the shard
    reasons: dict[int, str]  # of records whose pictures have no embeddings


class Search:
    """Looks through a store's indexes, one after the other, for the pictures and captions of some records."""

    def __init__(self, folder: Path, manifest: StoreManifest, records: Records):
        self.folder, self.manifest, self.records = folder, manifest, records
        pictures, captions = len(records), int(records.caption_counts().sum())
        self.first = np.concatenate([[0], np.cumsum(records.caption_counts())])  # of each picture, among all captions
        self.at = Alignment(
            np.full(pictures, -1, np.int32),
            np.zeros(pictures, np.int32),
            np.zeros(pictures, np.int64),
            np.zeros(pictures, np.uint32),
            np.full(captions, -1, np.int32),
            np.zeros(captions, np.int32),
            {},
        )
        self.rows: dict[str, int] = {}  # by name, the first record of that name
        self.others: defaultdict[int, list[int]] = defaultdict(list)  # by that record, those that have the same picture

    def alignment(self) -> Alignment:
        """Where everything is. Raises DataError where something is not there."""
        self._name_rows()
        for number in range(len(self.manifest.shards)):
            self._take(number)
        self._check_pictures()
        self._check_captions()
        return self.at

    def _name_rows(self) -> None:
        for row, name in enumerate(names_with(self.records, self.manifest.name_parts)):
            first = self.rows.setdefault(name, row)
            # The store tells its pictures apart by these names, so of two others that share one it lacks one.
            if first != row and self.records.image(first) == self.records.image(row):
                self.others[first].append(row)

    def _take(self, number: int) -> None:
        """What a shard has of the records."""
        file = self.folder / self.manifest.shards[number].index
        try:
            lines = list(read_index(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        places = {text: place for place, text in enumerate(distinct_captions(line.captions for line in lines))}
        at = self.at
        for place, line in enumerate(lines):
            first = self.rows.get(line.name)
            if first is None:
                continue
            for row in (first, *self.others.get(first, ())):
                if at.shard_N[row] < 0:
                    at.shard_N[row], at.row_N[row] = number, place
                    at.size_N[row], at.crc32_N[row] = line.size, line.crc32
                    if line.reason is not None:
                        at.reasons[row] = line.reason
                # A picture that stands in several lines has its captions in all of them.
                for caption, text in enumerate(self.records[row].captions, int(self.first[row])):
                    if text in line.captions:
                        at.shard_M[caption], at.row_M[caption] = number, places[text]

    def _check_pictures(self) -> None:
        missing = np.flatnonzero(self.at.shard_N < 0)
        if not len(missing):
            return
        folder, total = self.folder, len(self.records)
        if len(missing) == total:
            raise DataError(
                f"{folder}: is a store of other pictures: not one of {total:,} is in it",
                self._hint(),
            )
        raise DataError(
            f"{folder}: {len(missing):,} of {total:,} pictures are not in the store, the first "
            f"{self.records.image(int(missing[0]))}",
            self._hint(),
        )

    def _check_captions(self) -> None:
        missing = np.flatnonzero(self.at.shard_M < 0)
        if not len(missing):
            return
        row = int(np.searchsorted(self.first, missing[0], "right")) - 1
        text = self.records[row].captions[int(missing[0] - self.first[row])]
        raise DataError(
            f"{self.folder}: {len(missing):,} captions are not in the store, the first {text!r} of "
            f"{self.records.image(row)}",
            self._hint(),
        )

    def _hint(self) -> str:
        settings = self.manifest.settings
        samples = f" --data.samples {settings.samples}" if settings.samples else ""
        first = ", the first of its pictures" if samples else ""
        return (
            f"It was made from split {settings.split} of {self.manifest.source}{first}: "
            f"train on that (--data.train-split {settings.split}{samples}), or make a store of what you train on, in "
            "another folder."
        )
