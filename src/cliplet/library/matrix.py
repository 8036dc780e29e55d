"""Vectors in a file that only grows: half precision, mapped into memory, each row with a checksum and its content.

NAME.f16    N rows of D numbers, float16, and nothing else
NAME.rows   for each row 20 bytes: what it is a vector of (16 bytes of a hash), and a checksum of the vector

A row is there for good once both files are on the disk and the records say so; what a kill left behind that is cut off
by the next writer. Readers map the rows that the records speak of, and never wait.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError

ROW = np.dtype([("content", "V16"), ("checksum", "<u4")])
VECTORS, ROWS = ".f16", ".rows"
CHECKED_AT_ONCE = 8192  # rows


class Matrix:
    """N rows of D numbers."""

    def __init__(self, name: Path, dims: int):
        """`name`: the path of both files without their endings. They may be missing: then there are no rows."""
        self.name, self.dims = name, dims
        self.vectors_file = name.with_name(name.name + VECTORS)
        self.rows_file = name.with_name(name.name + ROWS)

    def vectors(self, rows: int) -> np.ndarray:
        """The first `rows` vectors, (rows, D) float16, mapped. Raises DataError where they are not all there."""
        if not rows:
            return np.empty((0, self.dims), dtype=np.float16)
        return self._mapped(self.vectors_file, np.dtype(np.float16), (rows, self.dims))

    def contents(self, rows: int) -> np.ndarray:
        """What the first `rows` rows are vectors of, (rows,) of the dtype ROW, mapped. Raises DataError."""
        return self._mapped(self.rows_file, ROW, (rows,)) if rows else np.empty(0, dtype=ROW)

    def append(self, start: int, features_BD: np.ndarray, contents: list[bytes]) -> None:
        """Writes rows from `start` on, over whatever stands there or after, and brings them to the disk.

        `contents`: 16 bytes for each. Vectors are normalised before they are rounded. Raises OSError.
        """
        unit_BD = features_BD / np.linalg.norm(features_BD, axis=1, keepdims=True)
        half_BD = np.ascontiguousarray(unit_BD, dtype=np.float16)
        about_B = np.empty(len(half_BD), dtype=ROW)
        about_B["content"] = [np.void(content) for content in contents]
        about_B["checksum"] = checksums(half_BD)
        self.put(start, half_BD, about_B)

    def put(self, start: int, half_BD: np.ndarray, about_B: np.ndarray) -> None:
        """The same with rows as they are in a matrix, bit for bit: (B, D) float16, and (B,) of the dtype ROW. So what
        is damaged stays known as such. Raises OSError."""
        _write_at(self.vectors_file, start * self.dims * 2, half_BD.tobytes())
        _write_at(self.rows_file, start * ROW.itemsize, about_B.tobytes())

    def blank(self, places: Sequence[int]) -> None:
        """Makes rows zeros that are told from whole ones, for damaged numbers may be none and disturb a search. Rows
        stay where they are, for readers have them mapped. Raises OSError."""
        vectors_ND = self.vectors(self.whole_rows())
        filled = [place for place in places if vectors_ND[place].any()]
        for run in np.split(np.asarray(filled, dtype=np.int64), np.flatnonzero(np.diff(filled) > 1) + 1):
            if len(run):
                zeros_BD = np.zeros((len(run), self.dims), dtype=np.float16)
                self.put(int(run[0]), zeros_BD, np.zeros(len(run), dtype=ROW))

    def cut(self, rows: int) -> None:
        """Takes off what stands after so many rows. Raises OSError."""
        for file, size in ((self.vectors_file, rows * self.dims * 2), (self.rows_file, rows * ROW.itemsize)):
            if file.exists() and file.stat().st_size > size:
                os.truncate(file, size)

    def whole_rows(self) -> int:
        """How many rows both files have room for."""
        sizes = [file.stat().st_size if file.exists() else 0 for file in (self.vectors_file, self.rows_file)]
        return min(sizes[0] // (self.dims * 2), sizes[1] // ROW.itemsize)

    def damaged(self, rows: int) -> np.ndarray:
        """Numbers of those of the first `rows` that are not what was written; of missing ones too."""
        there = min(rows, self.whole_rows())
        vectors_ND, about_N = self.vectors(there), self.contents(there)
        wrong = [np.arange(there, rows)]
        for start in range(0, there, CHECKED_AT_ONCE):
            span = slice(start, min(start + CHECKED_AT_ONCE, there))
            wrong.append(start + np.flatnonzero(~are_whole(vectors_ND[span], about_N[span])))
        return np.sort(np.concatenate(wrong))

    def remove(self) -> None:
        """Removes both files. Raises OSError."""
        for file in (self.vectors_file, self.rows_file):
            file.unlink(missing_ok=True)

    def _mapped(self, file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.memmap(file, dtype=dtype, mode="r", shape=shape)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: does not hold the {shape[0]:,} rows that the library's records speak of ({error})",
                "Mend it with: cliplet index --library LIBRARY --repair.",
            ) from None


def are_whole(half_BD: np.ndarray, about_B: np.ndarray) -> np.ndarray:
    """Of each row whether it is what was written, (B,) bool."""
    return np.asarray(checksums(half_BD) == about_B["checksum"])


def checksums(half_BD: np.ndarray) -> np.ndarray:
    """Of each row, (B,) uint32."""
    return np.fromiter((zlib.crc32(row.tobytes()) for row in half_BD), dtype=np.uint32, count=len(half_BD))


def _write_at(file: Path, place: int, data: bytes) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        view, at = memoryview(data), place
        while view:
            written = os.pwrite(handle, view, at) if hasattr(os, "pwrite") else _seek_and_write(handle, view, at)
            view, at = view[written:], at + written
        os.fsync(handle)
    finally:
        os.close(handle)


def _seek_and_write(handle: int, view: memoryview, place: int) -> int:
    os.lseek(handle, place, os.SEEK_SET)  # Windows
    return os.write(handle, view)
