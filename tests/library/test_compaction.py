"""Vectors that are copied into another matrix stay what they are, bit for bit. N pictures."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cliplet.library import local_compact
from cliplet.library.matrix import Matrix, checksums

from .stores import DIMS, changed, content_of, entry, filled, identity, reopened, vector

N = 40


@pytest.fixture
def store(tmp_path):
    """Pictures with captions, all embedded."""
    store = filled("local", tmp_path, [entry(number, captions=(f"number {number}",)) for number in range(1, N + 1)])

    def captions(writer):
        texts = writer.captions_without_vectors(1000)
        writer.write_captions(texts, np.stack([vector(int.from_bytes(content_of(one)[:4], "big")) for one in texts]))

    changed(store, captions)
    return store


def rows_by_content(folder, name, rows):
    matrix = Matrix(folder / name, DIMS)
    pairs = zip(matrix.contents(rows), matrix.vectors(rows), strict=True)
    return {about["content"].tobytes(): (about["checksum"], row.tobytes()) for about, row in pairs}


def compacted(store, gone):
    said = []
    with store.writing(said.append) as writer:
        writer.begin(identity())
        writer.remove(gone)
        local_compact.compact(writer)
    return said


def test_rows_and_checksums_stay_as_they_are(store):
    folder = Path(store.place)
    matrix = Matrix(folder / "vectors-1", DIMS)
    longer_1D, about_1 = matrix.vectors(N)[34:35] * np.float16(1.02), np.array(matrix.contents(N)[34:35])
    about_1["checksum"] = checksums(longer_1D)
    matrix.put(34, longer_1D, about_1)  # as rounding may leave them: normalised once more they would be others
    before = [rows_by_content(folder, f"{name}-1", N) for name in ("vectors", "captions")]
    assert compacted(store, list(range(1, 31))) == []
    after = [rows_by_content(folder, f"{name}-2", 10) for name in ("vectors", "captions")]
    assert [len(one) for one in after] == [10, 10]
    for old, new in zip(before, after, strict=True):
        assert new == {content: old[content] for content in new}
    with closing(reopened(store)) as store:
        assert [store.nearest(vector(n), 1)[0].picture.id for n in (31, N)] == [31, N]


def overwritten(file, place, count):
    with open(file, "r+b") as stream:
        stream.seek(place)
        stream.write(b"\x55" * count)


def test_damaged_rows_are_left_out_and_embedded_again_by_the_next_run(store):
    folder = Path(store.place)
    overwritten(folder / "vectors-1.f16", 34 * DIMS * 2 + 4, 2)  # picture 35
    overwritten(folder / "vectors-1.rows", 35 * 20 + 16, 4)  # the checksum of picture 36
    overwritten(folder / "vectors-1.rows", 36 * 20 + 3, 4)  # what picture 37's is of
    overwritten(folder / "vectors-1.f16", 4 * DIMS * 2, 2)  # one that is gone
    said = compacted(store, list(range(1, 31)))
    assert said == ["3 vectors of pictures are damaged and were left out; the next run embeds them again"]
    with closing(reopened(store)) as store:
        assert len(Matrix(folder / "vectors-2", DIMS).damaged(7)) == 0
        assert len(store) == 10 and store.nearest(vector(31), 10)[0].picture.id == 31

        def again(writer):
            known = {one.id for one in writer.known().values() if not one.embedded}
            assert known == {35, 36, 37}
            writer.write([entry(id, id=id) for id in sorted(known)], [])

        changed(store, again)
        assert {store.nearest(vector(n), 1)[0].picture.id for n in range(31, N + 1)} == set(range(31, N + 1))
