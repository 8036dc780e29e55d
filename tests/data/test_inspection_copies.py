"""Pictures that stand in two places: told by split, the same bytes from copies saved anew, and never all compared."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliplet.data.duplicates import COARSE, SIDE
from cliplet.data.inspection import Inspection, copies, inspect_source, inspection_table
from cliplet.data.inspection.copies import find_copies
from cliplet.data.inspection.survey import first_with_same
from cliplet.data.records import ImageText, ImageTextSource, Records


@cache
def photo(seed):
    """A picture with structure at every scale, as photographs have it."""
    random = np.random.default_rng(seed)
    across, down = np.fft.fftfreq(160)[None, :], np.fft.fftfreq(120)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / 160) ** 1.4
    field = np.fft.ifft2(falling[..., None] * np.exp(2j * np.pi * random.random((120, 160, 3))), axes=(0, 1)).real
    return Image.fromarray((128 + 50 * (field - field.mean()) / field.std()).clip(0, 255).astype(np.uint8))


def made(records):
    return ImageTextSource("set.json", "made here", Records.of(records))


@pytest.fixture
def record(tmp_path):
    """Saves a picture under a name and gives its record."""

    def save(name, image, split, caption="a picture", **options):
        image.save(tmp_path / name, **options)
        return ImageText(str(tmp_path / name), (caption,), split)

    return save


def places(groups):
    return {tuple((Path(place.path).name, place.split) for place in group.places) for group in groups}


def test_leaks_between_splits_are_told_from_copies_within_one(record, tmp_path):
    records = [
        record("good.png", photo(0), "train"),
        record("tall.png", photo(1), "train"),
        ImageText(shutil.copy(tmp_path / "tall.png", f"{tmp_path}/twin.png"), ("a",), "train"),
        record("both.png", photo(2), "train"),
        ImageText(shutil.copy(tmp_path / "good.png", f"{tmp_path}/leaked.png"), ("a",), "test"),
        ImageText(str(tmp_path / "both.png"), ("a",), "test"),
    ]
    found = inspect_source(made(records))
    assert places(found.duplicates_across) == {
        (("good.png", "train"), ("leaked.png", "test")),
        (("both.png", "train"), ("both.png", "test")),
    }
    assert places(found.duplicates_within) == {(("tall.png", "train"), ("twin.png", "train"))}
    assert dict(found.shared_by_splits) == {("test", "train"): 2}
    assert not found.near_within and not found.near_across
    assert [str(leak) for leak in found.leaks] == ["2 pictures of test also stand in train: 2 in the same bytes"]


def test_copies_saved_anew_are_found_within_and_across_splits(record):
    records = [
        *(record(f"{n}.png", photo(n), "train") for n in range(6)),
        record("small.jpg", photo(1).resize((80, 60)), "train", quality=50),
        record("anew.jpg", photo(2), "test", quality=40),
        record("square.jpg", photo(3).resize((224, 224)), "val"),
        record("other.jpg", photo(9), "test"),
    ]
    found = inspect_source(made(records))
    assert places(found.near_within) == {(("1.png", "train"), ("small.jpg", "train"))}
    assert places(found.near_across) == {
        (("2.png", "train"), ("anew.jpg", "test")),
        (("3.png", "train"), ("square.jpg", "val")),
    }
    assert not found.duplicates_within and not found.duplicates_across and not found.sound
    assert [str(leak) for leak in found.leaks] == [
        "1 picture of test also stands in train: 1 saved anew, resized or cut",
        "1 picture of val also stands in train: 1 saved anew, resized or cut",
    ]


def test_same_bytes_and_copies_of_one_picture_are_one_group(record, tmp_path):
    records = [
        record("a.png", photo(0), "train"),
        ImageText(shutil.copy(tmp_path / "a.png", f"{tmp_path}/b.png"), ("a",), "test"),
        record("c.jpg", photo(0), "test", quality=60),
        ImageText(shutil.copy(tmp_path / "a.png", f"{tmp_path}/d.png"), ("a",), "test"),
    ]
    found = inspect_source(made(records))
    same = ("a.png", "train"), ("b.png", "test"), ("d.png", "test")
    assert places(found.duplicates_across) == {same}
    assert places(found.near_across) == {(*same[:2], ("c.jpg", "test"), same[2])}
    (leak,) = found.leaks
    assert (leak.split, leak.other, leak.pictures, leak.same_bytes) == ("test", "train", 3, 2)


def test_broken_files_with_equal_bytes_are_no_duplicates(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    records = [ImageText(str(tmp_path / "a.jpg"), ("a",), "train"), ImageText(str(tmp_path / "b.jpg"), ("b",), "test")]
    found = inspect_source(made(records))
    assert len(found.unreadable) == 2
    assert not found.duplicates_across
    assert found.width is None


def test_blank_pictures_are_no_copies_of_one_another(record):
    records = [record(f"{n}.png", Image.new("RGB", (40 + n, 40), "white"), "train") for n in range(4)]
    found = inspect_source(made(records))
    assert len(found.blank) == 4 and not found.near_within


def test_a_source_without_splits_is_checked_by_the_splits_that_training_makes(record, tmp_path):
    first = record("0.png", photo(0), "")
    copied = [shutil.copy(first.image, f"{tmp_path}/{n}.png") for n in range(1, 40)]
    source = made([first, *(ImageText(name, ("same",)) for name in copied)])
    found = inspect_source(source)
    assert found.made_splits
    assert {name: s.pictures for name, s in found.splits.items()} == {
        "train": len(source.select("train")),
        "val": len(source.select("val")),
    }
    assert [group.splits for group in found.duplicates_across] == [("train", "val")]


def test_a_picture_that_is_gone_at_the_second_look_is_no_copy(record, monkeypatch):
    from cliplet.data.inspection import survey

    records = [record("a.png", photo(0), "train"), record("b.jpg", photo(0), "train")]
    monkeypatch.setattr(survey, "small_picture", lambda place: None)
    assert not inspect_source(made(records)).near_within


def test_rows_with_the_same_numbers_have_the_same_first_row():
    keys = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(np.uint64)
    first = first_with_same(keys)
    rows = [tuple(row) for row in keys.tolist()]
    assert first.tolist() == [rows.index(row) for row in rows]
    assert first_with_same(np.zeros((0, 2), np.uint64)).tolist() == []


class Pictures:
    """Small pictures by number, and how many were asked for."""

    def __init__(self, pictures):
        self.pictures, self.asked = pictures, 0

    def __call__(self, rows):
        self.asked += len(rows)
        return [self.pictures[row] for row in rows]


def small(seed):
    return np.asarray(photo(seed).resize((SIDE, SIDE)))


def grey(picture):
    return picture.reshape(COARSE, 4, COARSE, 4, 3).mean(axis=(1, 3, 4)).astype(np.uint8)


def groups_of(found):
    return found.first.tolist()


def test_thousands_with_one_hash_are_each_looked_at_once():
    pictures = Pictures([small(0)] * 3000)
    coarse = np.stack([grey(small(0))] * 3000)
    found = find_copies(np.full(3000, 7, np.uint64), coarse, pictures)
    assert set(groups_of(found)) == {0} and len(found.pairs) == 2999
    assert pictures.asked == 3000


def test_different_pictures_with_one_hash_are_told_apart():
    shown = [small(seed) for seed in (0, 1, 0, 2, 1, 0)]
    found = find_copies(np.full(6, 7, np.uint64), np.stack([grey(one) for one in shown]), Pictures(shown))
    assert groups_of(found) == [0, 1, 0, 3, 1, 0]


def test_close_hashes_join_whatever_stands_for_them():
    shown = [small(seed) for seed in (0, 1, 1, 0, 2)]
    hashes = np.array([7, 7, 6, 4, 3], np.uint64)
    calls = []
    found = find_copies(
        hashes, np.stack([grey(one) for one in shown]), Pictures(shown), lambda done, total: calls.append((done, total))
    )
    assert groups_of(found) == [0, 1, 1, 0, 4]
    assert found.complete and calls[-1][0] == calls[-1][1] > 0
    assert {tuple(sorted(pair)) for pair in found.pairs.tolist()} == {(0, 3), (1, 2)}


def test_small_pictures_are_dropped_and_loaded_anew(monkeypatch):
    shown = [small(seed) for seed in (0, 1, 2, 3, 0, 1, 2, 3)]
    hashes = np.array([2**n for n in range(8)], np.uint64)  # each two bits from the others
    monkeypatch.setattr(copies, "LOOKED_AT_ONCE", 1)
    monkeypatch.setattr(copies, "MOST_SMALL", 2)
    found = find_copies(hashes, np.full((8, COARSE, COARSE), np.arange(COARSE), np.uint8), Pictures(shown))
    assert groups_of(found) == [0, 1, 2, 3, 0, 1, 2, 3]


def test_what_cannot_all_be_looked_at_is_said(record, monkeypatch):
    monkeypatch.setattr(copies, "MOST_PAIRS", 0)
    shown = [small(0), small(0)]
    found = find_copies(np.array([1, 2], np.uint64), np.stack([grey(one) for one in shown]), Pictures(shown))
    assert not found.complete
    sound = inspect_source(made([record("a.png", photo(0), "train")]))
    assert sound.as_dict()["all_copies_sought"] is True
    cut = Inspection(replace(sound.survey, complete=False))
    assert cut.as_dict()["all_copies_sought"] is False
    shown = [str(part) for part in inspection_table(cut).renderables]
    assert any("not all of them could be compared" in part for part in shown)


def test_no_pictures_no_copies():
    found = find_copies(np.zeros(0, np.uint64), np.zeros((0, COARSE, COARSE), np.uint8), Pictures([]))
    assert groups_of(found) == [] and found.complete and found.pairs.shape == (0, 2)
