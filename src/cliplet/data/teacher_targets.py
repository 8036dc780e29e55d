"""What a store of teachers' embeddings holds for the records of a run: read at random, row by row. No torch.

Shapes: N records, M captions of all records, B pictures and C captions of a request, A views, P pictures and Q
different captions of a shard, T width of a teacher.
"""

from __future__ import annotations

import io
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np

from cliplet.data.images import MAX_BYTES
from cliplet.data.places import read_bytes
from cliplet.data.records import Records
from cliplet.data.teacher_alignment import Alignment
from cliplet.data.teacher_shards import VIEW_NUMBERS, StoredShard, StoreManifest
from cliplet.errors import DataError, ImageError

HEADER = 1024  # bytes of an array's header at most
CHECKED = 64  # pictures held against the store before anything else is done


class StoredTargets:
    """The teachers' embeddings for N records, in their order. Shards are mapped when something of them is asked for."""

    def __init__(self, folder: Path, manifest: StoreManifest, records: Records, alignment: Alignment):
        settings = manifest.settings
        self.views = settings.views  # A
        self.whole = settings.views - 1 if settings.whole else None  # number of the view that is the whole picture
        self._folder, self._manifest, self._records, self._at = folder, manifest, records, alignment
        self._mapped: dict[int, dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._at.shard_N)

    @property
    def reasons(self) -> dict[int, str]:
        """By row, why pictures have no embeddings."""
        return self._at.reasons

    def numbers(self, draws_B: np.ndarray, augmented: bool) -> np.ndarray:
        """(B,) which of its views each of some pictures shows, by a uniform number in [0, 1); not `augmented`, whole
        pictures. Raises DataError where the store has none of that kind."""
        random = self.views if self.whole is None else self.views - 1
        if augmented and random:
            return (draws_B * random).astype(np.int64)
        if augmented or self.whole is None:
            kind = "augmented" if augmented else "whole"
            raise DataError(f"{self._folder}: {kind} pictures are wanted, of which the store has none")
        return np.full(len(draws_B), self.whole, np.int64)

    def view(self, row: int, number: int) -> np.ndarray:
        """(8,) float32: the numbers of a picture's view."""
        return self._arrays(int(self._at.shard_N[row]))["views"][self._at.row_N[row], number]

    def check(self, row: int, data: bytes) -> None:
        """Raises DataError where these are not the bytes of the picture that the teachers saw.

        A picture that has no embeddings may be any.
        """
        if row in self._at.reasons:
            return
        if len(data) != self._at.size_N[row] or zlib.crc32(data) != self._at.crc32_N[row]:
            raise DataError(
                f"{self._records.image(row)}: is another picture than the one of that name from which "
                f"{self._folder} was made",
                f"Put the old picture back, or make the store again: {self._manifest.command}",
            )

    def check_some(self) -> None:
        """Raises DataError where one of some pictures, evenly spaced, is another one than that of the store.

        What cannot be read is passed over.
        """
        rows = np.linspace(0, len(self) - 1, min(len(self), CHECKED)).astype(int)
        for row in rows.tolist():
            try:
                data = read_bytes(self._records.image(row), MAX_BYTES)
            except ImageError:
                continue
            self.check(row, data)

    def image_features(self, rows_B: np.ndarray, numbers_B: np.ndarray) -> list[np.ndarray]:
        """(B, T) float32 for each teacher: the unit embeddings of some pictures' views.

        `rows_B` are records, `numbers_B` which of a picture's views. Zeros where there are none.
        """
        shard_B, row_B = self._at.shard_N[rows_B], self._at.row_N[rows_B]
        return self._gathered("image", shard_B, row_B, np.asarray(numbers_B))

    def text_features(self, caption_rows_C: np.ndarray) -> list[np.ndarray]:
        """(C, T) float32 for each teacher: the unit embeddings of some captions, rows among all captions of the
        records, picture by picture."""
        return self._gathered("text", self._at.shard_M[caption_rows_C], self._at.row_M[caption_rows_C])

    def _gathered(self, kind: str, shards: np.ndarray, *places: np.ndarray) -> list[np.ndarray]:
        """For each teacher, the rows at some places of shards' arrays.

        The scales of int8 are not read: they are common to a row, and rows are made unit length anyway.
        """
        order = np.argsort(shards, kind="stable")
        starts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        found = [np.empty((len(shards), teacher.embed_dim), np.float32) for teacher in self._manifest.teachers]
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            mine = order[start:stop]
            arrays = self._arrays(int(shards[mine[0]]))
            at = tuple(place[mine] for place in places)
            for teacher, rows in enumerate(found):
                rows[mine] = arrays[f"{kind}{teacher}"][at]
        return [_unit(rows) for rows in found]

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a shard."""
        arrays = self._mapped.get(number)
        if arrays is None:
            with self._lock:
                arrays = self._mapped.get(number)
                if arrays is None:
                    arrays = self._mapped[number] = _mapped(self._folder, self._manifest, number)
        return arrays


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay so."""
    lengths = np.sqrt(np.einsum("nt,nt->n", rows, rows))
    rows /= np.where(lengths > 0, lengths, 1)[:, None]
    return rows


def _mapped(folder: Path, manifest: StoreManifest, number: int) -> dict[str, np.ndarray]:
    """A shard's arrays by name. The shard is mapped once for all of them, for each map holds a file open."""
    shard = manifest.shards[number]
    file = folder / shard.name
    arrays = {}
    try:
        # A plain array: an index into np.memmap takes ten times as long.
        content = np.asarray(np.memmap(file, np.uint8, "r"))
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix(f"{file.stem}.").removesuffix(".npy")
                arrays[name] = _array(content[member.offset_data : member.offset_data + member.size])
        for name, (shape, kind) in _forms(manifest, shard).items():
            if arrays[name].shape != shape or arrays[name].dtype != kind:
                raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape} and not {kind} {shape}")
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or (f"it lacks {error}" if isinstance(error, KeyError) else error)
        raise DataError(
            f"{file}: cannot be used: {reason}", f"Make the store again, in a new folder: {manifest.command}"
        ) from None
    return arrays


def _forms(manifest: StoreManifest, shard: StoredShard) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array that is read of a shard."""
    views, storage = manifest.settings.views, manifest.settings.storage
    forms: dict[str, tuple[tuple[int, ...], str]] = {"views": ((shard.pictures, views, VIEW_NUMBERS), "float32")}
    for number, teacher in enumerate(manifest.teachers):
        forms[f"image{number}"] = (shard.pictures, views, teacher.embed_dim), storage
        forms[f"text{number}"] = (shard.captions, teacher.embed_dim), storage
    return forms


def _array(content: np.ndarray) -> np.ndarray:
    """The array of a .npy whose bytes these are, not copied. Raises ValueError for anything else."""
    head = io.BytesIO(content[:HEADER].tobytes())
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError("it holds an array of another version")
    shape, by_columns, kind = np.lib.format.read_array_header_1_0(head)
    if by_columns or kind.hasobject:
        raise ValueError("it holds an array of another kind")
    return content[head.tell() :].view(kind).reshape(shape)
