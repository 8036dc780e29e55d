"""Captions from a file: each picture is looked for by itself, and what is not found is said."""

import json

import pytest

from cliplet.errors import DataError
from cliplet.library import Library
from cliplet.library.given_captions import read_captions

from .conftest import paint
from .quick import few_sentences


@pytest.fixture
def folders(tmp_path):
    """Two folders of two pictures."""
    for number in range(4):
        paint(tmp_path / "pictures" / ("a" if number < 2 else "b") / f"{number}.png", number)
    return tmp_path / "pictures" / "a", tmp_path / "pictures" / "b"


@pytest.fixture
def library(tmp_path, encoder, monkeypatch):
    few_sentences(monkeypatch)
    with Library.create(tmp_path / "l", encoder) as library:
        yield library


def table(file, *rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{name}\t{caption}\n" for name, caption in rows))
    return file


def captions(library):
    return {one.name: one.captions for one in library.newest(50) if one.captions}


def test_names_are_looked_for_in_all_folders(library, folders, tmp_path):
    file = table(tmp_path / "c" / "c.tsv", ("0.png", "the first"), ("3.png", "the last"))
    summary = library.add(*folders, captions=file)
    assert captions(library) == {"0.png": ("the first",), "3.png": ("the last",)}
    assert (summary.captions_without_picture, summary.captions_unreadable) == (0, 0)


def test_names_are_looked_for_in_earlier_folders(library, folders, tmp_path):
    library.add(folders[0])
    library.add(folders[1], captions=table(tmp_path / "c" / "c.tsv", ("0.png", "the first"), ("3.png", "the last")))
    assert captions(library) == {"0.png": ("the first",), "3.png": ("the last",)}


def test_each_row_is_looked_for_by_itself(library, folders, tmp_path, monkeypatch):
    """One with its whole path, one from the current folder on, one beside the file, one by its name alone."""
    monkeypatch.chdir(tmp_path)
    rows = [(str(folders[0] / "0.png"), "whole"), ("a/1.png", "beside"), ("pictures/b/2.png", "current")]
    file = table(tmp_path / "pictures" / "c.tsv", *rows, ("3.png", "by name"), ("b/2.png", "again"))
    summary = library.add(*folders, captions=file)
    assert captions(library) == {
        "0.png": ("whole",),
        "1.png": ("beside",),
        "2.png": ("current", "again"),
        "3.png": ("by name",),
    }
    assert summary.captions_without_picture == 0


def test_a_file_in_the_library_goes_before_one_beside_the_captions(library, folders, tmp_path):
    paint(tmp_path / "c" / "0.png", 9)
    library.add(folders[0], captions=table(tmp_path / "c" / "c.tsv", ("0.png", "the first")))
    assert captions(library) == {"0.png": ("the first",)}


def test_what_is_not_in_the_library_is_said(library, folders, tmp_path):
    said = []
    long = " ".join(["word"] * 1001)
    names = ("0.PNG", "nowhere.jpg", "sub/1.png", "c.png")
    file = table(tmp_path / "c.tsv", ("1.png", "good"), *((name, "lost") for name in names), ("0.png", long))
    summary = library.add(*folders, captions=file, say=said.append, quarantine=tmp_path / "q.jsonl")
    assert captions(library) == {"1.png": ("good",)}
    assert (summary.captions_without_picture, summary.captions_unreadable) == (4, 2)
    assert said[0] == "c.tsv: 4 of its 5 pictures are not in the library: 0.PNG, nowhere.jpg, sub/1.png, ..."
    assert said[1].startswith("c.tsv: 2 captions or lines could not be used; the first: c.tsv:6 (0.png): ")
    assert "1,001 words" in said[1] and "1,001 words" in (tmp_path / "q.jsonl").read_text()


def test_captions_by_path_of_pictures_that_are_not_there(library, folders):
    said = []
    given = {str(folders[0] / "0.png"): ["good"], "nowhere.png": ["lost"]}
    assert library.add(folders[0], captions=given, say=said.append).captions_without_picture == 1
    assert "1 of its 2 pictures is not in the library" in said[0] and "nowhere.png" in said[0]
    assert library.add(captions=given).captions_without_picture == 1 and captions(library) == {"0.png": ("good",)}


def test_a_file_none_of_whose_pictures_is_there(library, folders, tmp_path):
    file = table(tmp_path / "c.tsv", ("x.png", "one"), ("y.png", "two"))
    with pytest.raises(DataError, match=r"its pictures are not there, x\.png for example") as error:
        library.add(*folders, captions=file)
    assert "--images" not in error.value.hint and "folders of the library" in error.value.hint
    with pytest.raises(DataError, match="no such file"):
        library.add(*folders, captions=tmp_path / "nothing.tsv")


def test_data_sets_of_other_kinds(folders, tmp_path):
    file = tmp_path / "captions.json"
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(4)]
    annotations = [{"id": number, "image_id": number, "caption": f"number {number}"} for number in range(4)]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    given = read_captions(file, [str(one) for one in folders])
    assert given.by_path == {str(folders[number // 2] / f"{number}.png"): (f"number {number}",) for number in range(4)}
