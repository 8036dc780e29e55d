"""Vectors in a file that only grows."""

import os

import numpy as np
import pytest

from cliplet.errors import DataError
from cliplet.library.matrix import ROW, Matrix, are_whole


def contents(count, start=0):
    return [bytes([start + number]) * 16 for number in range(count)]


def features(count, dims=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32) * 7


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_rows_come_back_as_unit_vectors_in_half_precision(tmp_path):
    matrix = Matrix(tmp_path / "m", 5)
    assert matrix.vectors(0).shape == (0, 5)
    matrix.append(0, features(3), contents(3))
    matrix.append(3, features(2, seed=1), contents(2, 3))
    stored = matrix.vectors(5)
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, unit(np.concatenate([features(3), features(2, seed=1)])), atol=1e-3)
    assert [one.tobytes() for one in matrix.contents(5)["content"]] == contents(5)
    assert matrix.whole_rows() == 5 and len(matrix.damaged(5)) == 0


def test_what_nobody_speaks_of_is_written_over(tmp_path):
    matrix = Matrix(tmp_path / "m", 5)
    matrix.append(0, features(4), contents(4))
    matrix.append(2, features(1, seed=2), contents(1, 9))
    np.testing.assert_allclose(matrix.vectors(3)[2], unit(features(1, seed=2))[0], atol=1e-3)
    matrix.cut(3)
    assert matrix.whole_rows() == 3
    assert matrix.vectors_file.stat().st_size == 3 * 5 * 2 and matrix.rows_file.stat().st_size == 3 * ROW.itemsize


@pytest.mark.parametrize("cut_off", ["vectors_file", "rows_file"])
def test_a_file_that_is_too_short_is_refused(tmp_path, cut_off):
    matrix = Matrix(tmp_path / "m", 5)
    matrix.append(0, features(4), contents(4))
    file = getattr(matrix, cut_off)
    os.truncate(file, file.stat().st_size - 1)
    assert matrix.whole_rows() == 3
    with pytest.raises(DataError, match="does not hold the 4 rows"):
        matrix.vectors(4), matrix.contents(4)
    assert matrix.damaged(4).tolist() == [3]


def test_a_flipped_bit_is_found(tmp_path):
    matrix = Matrix(tmp_path / "m", 5)
    matrix.append(0, features(20), contents(20))
    with open(matrix.vectors_file, "r+b") as stream:
        stream.seek(7 * 10 + 3)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    assert matrix.damaged(20).tolist() == [7]


def test_readers_keep_what_they_mapped_while_it_grows(tmp_path):
    matrix = Matrix(tmp_path / "m", 5)
    matrix.append(0, features(3), contents(3))
    mapped = matrix.vectors(3)
    before = np.array(mapped)
    matrix.append(3, features(100, seed=4), [bytes(16)] * 100)
    np.testing.assert_array_equal(mapped, before)


def test_rows_are_copied_as_they_are(tmp_path):
    matrix, copy = Matrix(tmp_path / "m", 5), Matrix(tmp_path / "copy", 5)
    matrix.append(0, features(20), contents(20))
    with open(matrix.vectors_file, "r+b") as stream:
        stream.seek(7 * 10)
        stream.write(b"\x55\x55")
    copy.put(0, matrix.vectors(20)[4:10], matrix.contents(20)[4:10])
    assert copy.vectors(6).tobytes() == matrix.vectors(20)[4:10].tobytes()
    assert copy.damaged(6).tolist() == [3]
    assert are_whole(copy.vectors(6), copy.contents(6)).tolist() == [True] * 3 + [False] + [True] * 2


def test_rows_that_are_blanked_are_zeros_and_stay_known_as_damaged(tmp_path):
    matrix = Matrix(tmp_path / "m", 5)
    matrix.append(0, features(20), contents(20))
    mapped, before = matrix.vectors(20), np.array(matrix.vectors(20))
    for _ in range(2):
        matrix.blank([3, 4, 5, 19])
        assert matrix.damaged(20).tolist() == [3, 4, 5, 19] and matrix.whole_rows() == 20
    others = np.setdiff1d(np.arange(20), [3, 4, 5, 19])
    np.testing.assert_array_equal(mapped[others], before[others])
    assert not mapped[[3, 4, 5, 19]].any()
    matrix.blank([])
