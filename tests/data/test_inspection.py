"""A data set with one of each fault: every count is exact, every fault is named, nothing is raised."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cliplet.data.inspection import inspect_source, inspection_table, write_contact_sheet
from cliplet.data.records import ImageText, ImageTextSource, Problem
from cliplet.errors import DataError


def photograph(file, size=(60, 40), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return str(file)


@pytest.fixture
def source(tmp_path):
    """Nine records of eight paths: three faults, a copy across splits, a copy within one, a file in two splits."""
    good = photograph(tmp_path / "good.jpg", (60, 40), seed=1)
    tall = photograph(tmp_path / "tall.jpg", (30, 90), seed=2)
    sixteen = str(tmp_path / "sixteen.png")
    Image.fromarray(np.full((20, 10), 40_000, np.uint16)).save(sixteen)
    whole = Path(photograph(tmp_path / "cut.jpg", (64, 64), seed=3)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    leaked = shutil.copy(good, tmp_path / "leaked.jpg")
    twin = shutil.copy(tall, tmp_path / "twin.jpg")
    records = [
        ImageText(good, ("a dog runs", "a brown dog"), "train"),
        ImageText(tall, ("a tower",), "train"),
        ImageText(str(twin), ("the same tower again",), "train"),
        ImageText(sixteen, ("grey",), "train"),
        ImageText(str(tmp_path / "cut.jpg"), ("half",), "train"),
        ImageText(str(tmp_path / "gone.jpg"), ("nothing to see",), "val"),
        ImageText(str(tmp_path / "page.jpg"), ("an error page",), "val"),
        ImageText(str(leaked), ("a dog in the test",), "test"),
        ImageText(sixteen, ("grey", "very grey", "a grey wall in the fog"), "test"),
    ]
    return ImageTextSource("set.json", "made here", records, [Problem("set.json: image 9", "has no filename")])


def test_counts_are_exact(source):
    found = inspect_source(source, workers=2)
    assert (found.pictures, found.captions, found.files, found.readable) == (9, 12, 8, 5)
    assert {name: (s.pictures, s.captions) for name, s in found.splits.items()} == {
        "train": (5, 6),
        "val": (2, 2),
        "test": (2, 4),
    }
    assert found.captions_per_picture == {1: 7, 2: 1, 3: 1}
    assert found.captions_mean == pytest.approx(12 / 9)
    assert found.words_max == 6
    assert found.words_mean == pytest.approx((3 + 3 + 2 + 4 + 1 + 1 + 3 + 3 + 5 + 1 + 2 + 6) / 12)
    assert not found.made_splits
    assert not found.sound


def test_sizes_are_those_of_readable_files(source):
    found = inspect_source(source)
    # widths 60, 60 (its copy), 30, 30 (its copy), 10; the truncated 64 is not among them
    assert (found.width.minimum, found.width.median, found.width.maximum) == (10, 30, 60)
    assert (found.height.minimum, found.height.median, found.height.maximum) == (20, 40, 90)


def test_every_fault_is_named_with_its_reason(source, tmp_path):
    found = inspect_source(source)
    assert [problem.where for problem in found.missing] == [str(tmp_path / "gone.jpg")]
    reasons = {problem.where: problem.reason for problem in found.unreadable}
    assert set(reasons) == {str(tmp_path / "cut.jpg"), str(tmp_path / "page.jpg")}
    assert "truncated" in reasons[str(tmp_path / "cut.jpg")]
    assert "not a picture" in reasons[str(tmp_path / "page.jpg")]
    assert not any(reason.startswith(str(tmp_path)) for reason in reasons.values()), "the path is not said twice"
    assert found.problems == (Problem("set.json: image 9", "has no filename"),)


def test_leaks_between_splits_are_told_from_copies_within_one(source, tmp_path):
    found = inspect_source(source)

    def places(groups):
        return {tuple((place.path, place.split) for place in group.places) for group in groups}

    def name(file):
        return str(tmp_path / file)

    assert places(found.duplicates_across) == {
        ((name("good.jpg"), "train"), (name("leaked.jpg"), "test")),
        ((name("sixteen.png"), "train"), (name("sixteen.png"), "test")),
    }
    assert places(found.duplicates_within) == {((name("tall.jpg"), "train"), (name("twin.jpg"), "train"))}
    assert dict(found.shared_by_splits) == {("test", "train"): 2}


def test_broken_files_with_equal_bytes_are_no_duplicates(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    records = [ImageText(str(tmp_path / "a.jpg"), ("a",), "train"), ImageText(str(tmp_path / "b.jpg"), ("b",), "test")]
    found = inspect_source(ImageTextSource("x", "made here", records))
    assert len(found.unreadable) == 2
    assert not found.duplicates_across
    assert found.width is None


def test_a_decoder_that_raises_anything_is_one_unreadable_file(source, monkeypatch, tmp_path):
    from cliplet.data import inspection

    real = inspection.load_image

    def broken(path, **options):
        if path.endswith("good.jpg"):
            raise ZeroDivisionError("in a plug-in")
        return real(path, **options)

    monkeypatch.setattr(inspection, "load_image", broken)
    found = inspect_source(source)
    assert Problem(str(tmp_path / "good.jpg"), "in a plug-in") in found.unreadable
    assert found.readable == 4


def test_a_source_without_splits_is_checked_by_the_splits_that_training_makes(tmp_path):
    first = photograph(tmp_path / "0.png", seed=0)
    records = [ImageText(shutil.copy(first, tmp_path / f"{n}.png") if n else first, ("same",)) for n in range(40)]
    source = ImageTextSource("x", "made here", [ImageText(str(r.image), r.captions) for r in records])
    found = inspect_source(source)
    assert found.made_splits
    assert {name: s.pictures for name, s in found.splits.items()} == {
        "train": len(source.select("train")),
        "val": len(source.select("val")),
    }
    assert [group.splits for group in found.duplicates_across] == [("train", "val")]


def test_progress_counts_each_file_once(source):
    calls = []
    inspect_source(source, workers=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 8) for n in range(1, 9)]


def test_an_empty_source():
    found = inspect_source(ImageTextSource("x", "made here", []))
    assert (found.pictures, found.captions, found.files) == (0, 0, 0)
    json.dumps(found.as_dict())
    Console(record=True, width=80).print(inspection_table(found))


def test_as_dict_is_plain_json(source):
    data = inspect_source(source).as_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["captions_per_picture"] == {
        "min": 1,
        "mean": pytest.approx(12 / 9),
        "max": 3,
        "histogram": {"1": 7, "2": 1, "3": 1},
    }
    assert data["duplicates_across"][0]["places"][1]["split"] == "test"
    assert data["shared_by_splits"] == [{"splits": ["test", "train"], "pictures": 2}]


def printed(found) -> str:
    console = Console(record=True, width=300, file=io.StringIO())
    console.print(inspection_table(found))
    return console.export_text()


def test_the_table_names_each_kind_of_fault_with_its_count(source):
    text = printed(inspect_source(source))
    for line in (
        "Missing files: 1\n",
        "Unreadable files: 2\n",
        "Bad records in the annotations, left out: 1\n",
        "Pictures that stand in several splits (the same bytes): 2\n",
        "Pictures that stand more than once in a split (the same bytes): 1\n",
    ):
        assert line in text
    assert "gone.jpg: no such file" in text
    assert "test and train share 2" in text
    assert "Nothing is wrong" not in text


def test_the_table_shows_the_first_examples_and_takes_no_name_for_markup(tmp_path):
    records = [ImageText(str(tmp_path / f"[red]{n}[/nothing].jpg"), ("a",), "train") for n in range(8)]
    text = printed(inspect_source(ImageTextSource("x", "made here", records)))
    assert "[red]4[/nothing].jpg" in text
    assert "[red]5[/nothing].jpg" not in text
    assert "and 3 more" in text


def test_a_sound_source_is_said_to_be(tmp_path):
    records = [ImageText(photograph(tmp_path / f"{n}.png", seed=n), ("a",), "train") for n in range(3)]
    found = inspect_source(ImageTextSource("x", "made here", records))
    assert found.sound
    assert "Nothing is wrong" in printed(found)


def test_the_contact_sheet_shows_readable_pictures_and_is_the_same_again(source, tmp_path):
    write_contact_sheet(source, tmp_path / "a" / "sheet.png", per_split=3)
    write_contact_sheet(source, tmp_path / "again.png", per_split=3)
    first, again = Image.open(tmp_path / "a" / "sheet.png"), Image.open(tmp_path / "again.png")
    assert np.array_equal(np.asarray(first), np.asarray(again))
    grey = (np.asarray(first) == (0xD3, 0xD6, 0xD9)).all(axis=2)
    assert not grey.any(), "no cell of an unreadable picture"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["sheet.png"], "nothing is left beside it"


def test_no_contact_sheet_without_pictures_or_of_no_format(source, tmp_path):
    with pytest.raises(DataError, match="no picture to draw"):
        gone = ImageTextSource("x", "made here", [ImageText("gone.jpg", ("a",), "train")])
        write_contact_sheet(gone, tmp_path / "sheet.png")
    with pytest.raises(DataError, match="no picture format"):
        write_contact_sheet(source, tmp_path / "sheet.txt")
    assert not list(tmp_path.glob("*sheet*"))
