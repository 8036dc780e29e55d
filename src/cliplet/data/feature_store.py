"""Features of a frozen tower on the disk: computed once, part by part, and read at random. No torch.

A store is a folder of its own below the one that all share, named by a hash of everything its features depend on:

    features/1f0c.../meta.json       what that is
    features/1f0c.../00000.npy       features of the first rows
    features/1f0c.../00000.json      which of them have none, and why

A part is there whole or not at all, so what a kill leaves is gone on from, and ranks share the parts out.

Shapes: N rows of the store, R of a request, L tokens, W width.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.data.places import ARROW_ROW, TAR_MEMBER
from cliplet.data.records import Records
from cliplet.data.tokens import TokenizedCaptions
from cliplet.files import written_beside

FORMAT = 1  # of what a store depends on and how its parts are laid out
PART_ROWS = 1024  # at least: so much a kill loses
PARTS = 256  # at most: each holds a file open


class FeatureStore:
    """N rows of W features, or of L x W where a row has a feature for each of its L tokens.

    `depends_on` is what JSON can hold and names the store; a store that depends on anything else is another.
    """

    def __init__(
        self, folder: Path, depends_on: Mapping[str, Any], width: int, rows: int, lengths: np.ndarray | None = None
    ):
        """`folder` is the one that stores share; `lengths` (N,): tokens of each row, none for one vector a row."""
        self._meta = json.dumps({"format": FORMAT, **depends_on}, sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(self._meta.encode()).hexdigest()[:24]
        self.width = width
        self.of_tokens = lengths is not None
        self.part_rows = max(PART_ROWS, math.ceil(rows / PARTS))
        self.parts = math.ceil(rows / self.part_rows)
        lengths_N = np.ones(rows, np.int64) if lengths is None else lengths
        self._first = np.concatenate([[0], np.cumsum(lengths_N)])  # of each row, among the features of all
        self._mapped: list[np.ndarray] = []  # the features of each part
        self.reasons: dict[int, str] = {}  # of rows that have no features
        self.good_N = np.ones(rows, dtype=bool)  # those that have

    def __len__(self) -> int:
        return len(self.good_N)

    def rows_of(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.part_rows, min((part + 1) * self.part_rows, len(self)))

    def missing(self, rank: int = 0, ranks: int = 1) -> list[int]:
        """The parts that are not there, or damaged: of every `ranks` parts the one that is a rank's."""
        return [part for part in range(rank, self.parts, ranks) if self._read(part) is None]

    def bytes_of(self, parts: Sequence[int]) -> int:
        """What some parts take on the disk in float32."""
        return sum(map(self._count, parts)) * self.width * 4

    def write(self, part: int, features: np.ndarray, reasons: Mapping[int, str]) -> None:
        """A part's features, those of its rows one after another; `reasons` of rows whose features mean nothing.

        Raises OSError, and leaves no part, where the disk is full.
        """
        if not (self.folder / "meta.json").is_file():
            with written_beside(self.folder / "meta.json") as beside:
                beside.write_text(self._meta, encoding="utf-8")
        with written_beside(self._file(part, "json")) as beside:
            beside.write_text(json.dumps({str(row): reason for row, reason in reasons.items()}), encoding="utf-8")
        with written_beside(self._file(part, "npy")) as beside:  # last: with it the part is there
            np.save(beside, features)

    def open(self) -> bool:
        """Whether all parts are there, to be read from now on. They are mapped, and only what is asked for is read."""
        found = [found for part in range(self.parts) if (found := self._read(part)) is not None]
        if len(found) < self.parts or len({features.dtype for features, _ in found}) > 1:
            return False
        self._mapped = [features for features, _ in found]
        self.reasons = {row: reason for _, reasons in found for row, reason in reasons.items()}
        self.good_N[list(self.reasons)] = False
        return True

    def places(self, rows_R: np.ndarray) -> np.ndarray:
        """Where the features of some rows stand among those of all, one row's after another's."""
        starts_R, lengths_R = self._first[rows_R], self._first[rows_R + 1] - self._first[rows_R]
        return np.arange(lengths_R.sum()) + np.repeat(starts_R - (np.cumsum(lengths_R) - lengths_R), lengths_R)

    def rows(self, rows_R: np.ndarray) -> np.ndarray:
        """(R, W): the features of some rows; where they are of tokens, those of all the rows' tokens."""
        places = self.places(rows_R) if self.of_tokens else rows_R
        starts = self._first[:: self.part_rows][: self.parts]
        part_of = np.searchsorted(starts, places, side="right") - 1
        features = np.empty((len(places), self.width), self._mapped[0].dtype)
        for part in np.unique(part_of).tolist():
            mine = np.flatnonzero(part_of == part)
            features[mine] = self._mapped[part][places[mine] - starts[part]]
        return features

    def states(self, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, L, W) and the mask (R, L) int64, L the most tokens that one of the rows has; zero at padding."""
        lengths_R = self._first[rows_R + 1] - self._first[rows_R]
        mask_RL = np.arange(lengths_R.max(initial=1)) < lengths_R[:, None]
        states = np.zeros((*mask_RL.shape, self.width), self._mapped[0].dtype)
        states[mask_RL] = self.rows(rows_R)
        return states, mask_RL.astype(np.int64)

    def _read(self, part: int) -> tuple[np.ndarray, dict[int, str]] | None:
        """A part's features, mapped, and the reasons why rows of it have none; None where it is not there or not
        whole."""
        try:
            features = np.load(self._file(part, "npy"), mmap_mode="r", allow_pickle=False)
            reasons = {
                int(row): str(reason)
                for row, reason in json.loads(self._file(part, "json").read_text(encoding="utf-8")).items()
            }
        except (OSError, ValueError, EOFError, AttributeError):
            return None
        rows = self.rows_of(part)
        whole = features.shape == (self._count(part), self.width) and all(row in rows for row in reasons)
        return (features, reasons) if whole else None

    def _count(self, part: int) -> int:
        """Features in a part."""
        rows = self.rows_of(part)
        return int(self._first[rows.stop] - self._first[rows.start])

    def _file(self, part: int, ending: str) -> Path:
        return self.folder / f"{part:05d}.{ending}"


def pictures_checksum(records: Records) -> str:
    """Changes when a picture of the records does: their places in order, with the sizes and times of change of the
    files that hold them."""
    checksum, shards = hashlib.sha256(), dict[str, str]()
    for place in records.images():
        match = (TAR_MEMBER.fullmatch(place) or ARROW_ROW.fullmatch(place)) if "?" in place else None
        if match and match["file"] not in shards:
            shards[match["file"]] = _state(match["file"])
        state = shards[match["file"]] if match else _state(place)
        checksum.update(f"{place}\0{state}\0".encode("utf-8", "surrogateescape"))
    return checksum.hexdigest()


def tokens_checksum(tokens: TokenizedCaptions) -> str:
    """Changes when a token of the captions does."""
    checksum = hashlib.sha256()
    for row in range(len(tokens)):
        ids = tokens[row]
        checksum.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return checksum.hexdigest()


def tensors_checksum(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """Changes when the name, type, shape or a value of one of the arrays does."""
    checksum = hashlib.sha256()
    for name, array in tensors:
        checksum.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
        checksum.update(np.ascontiguousarray(array).data)
    return checksum.hexdigest()


def _state(file: str) -> str:
    """Size and time of change."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
