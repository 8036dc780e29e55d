"""The cleaned list reads back, keeps the protected split's pictures, joins captions, and overwrites nothing else's."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliplet.data.inspection import inspect_source, write_cleaned
from cliplet.data.inspection.cleaned import absolute
from cliplet.data.places import arrow_row, tar_member
from cliplet.data.readers import read_source
from cliplet.data.records import ImageText, ImageTextSource, Records, held_out
from cliplet.errors import DataError


def photo(seed, size=(160, 120)):
    """A picture with structure at every scale, as photographs have it."""
    random = np.random.default_rng(seed)
    across, down = np.fft.fftfreq(size[0])[None, :], np.fft.fftfreq(size[1])[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / 160) ** 1.4
    waves = np.exp(2j * np.pi * random.random((size[1], size[0], 3)))
    field = np.fft.ifft2(falling[..., None] * waves, axes=(0, 1)).real
    return Image.fromarray((128 + 50 * (field - field.mean()) / field.std()).clip(0, 255).astype(np.uint8))


def made(records):
    return ImageTextSource("set.json", "made here", Records.of(records))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def add(folder):
    """Saves a picture, or copies a file, under a name and gives its record."""

    def save(name, what, split, *captions, **options):
        if isinstance(what, str):
            shutil.copy(folder / what, folder / name)
        else:
            what.save(folder / name, **options)
        return ImageText(str(folder / name), captions or ("a picture",), split)

    return save


def cleaned(records, tmp_path):
    """What was done, and the list as it is read back: by file name the split and the captions."""
    done = write_cleaned(inspect_source(made(records)), tmp_path / "lists" / "clean.jsonl")
    source = read_source(tmp_path / "lists" / "clean.jsonl")
    assert source.problems == [] and source.form == "JSON lines"
    assert len(source.records) == done.pictures
    assert sum(len(record.captions) for record in source.records) == done.captions
    return done, {Path(record.image).name: (record.split, record.captions) for record in source.records}


def test_what_cannot_be_used_is_left_out_and_all_else_kept(add, folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"broken")
    records = [
        add("a.png", photo(0), "train", "one", "two"),
        ImageText(str(folder / "broken.jpg"), ("no",), "train"),
        ImageText(str(folder / "gone.jpg"), ("no",), "test"),
        add("b.png", photo(1), "test", "été \N{DOG} [x]"),
    ]
    done, read = cleaned(records, tmp_path)
    assert read == {"a.png": ("train", ("one", "two")), "b.png": ("test", ("été \N{DOG} [x]",))}
    assert (done.pictures, done.captions, done.unusable, done.leaked, done.merged, done.repeated) == (2, 3, 2, 0, 0, 0)
    assert sorted(file.name for file in folder.iterdir()) == ["a.png", "b.png", "broken.jpg"], "nothing is deleted"
    assert [file.name for file in (tmp_path / "lists").iterdir()] == ["clean.jsonl"], "nothing is left beside it"


def test_copies_within_a_split_are_merged_into_the_largest_with_all_captions(add, tmp_path):
    records = [
        add("small.jpg", photo(0).resize((80, 60)), "train", "one", "two"),
        add("large.png", photo(0), "train", "Two.", "three"),
        add("other.png", photo(1), "train", "other", "other"),
        add("same.png", "large.png", "train", "four"),
        add("test.png", photo(2), "test", "else"),
    ]
    done, read = cleaned(records, tmp_path)
    assert read == {
        "large.png": ("train", ("one", "two", "three", "four")),
        "other.png": ("train", ("other",)),
        "test.png": ("test", ("else",)),
    }
    assert (done.merged, done.repeated) == (2, 2)


def test_leaks_stay_in_the_most_protected_split_alone(add, tmp_path):
    records = [
        add("a.png", photo(0), "train", "a in train"),
        add("a_test.png", "a.png", "test", "a in test"),
        add("a_val.jpg", photo(0), "val", "a in val", quality=50),
        add("b.png", photo(1), "restval", "b in restval"),
        add("b_train.png", "b.png", "train", "b in train"),
        add("c_val.jpg", photo(2), "val", "c in val", quality=50),
        add("c.png", photo(2), "restval", "c in restval"),
    ]
    records.append(ImageText(records[5].image, ("c in train",), "train"))
    done, read = cleaned(records, tmp_path)
    assert read == {
        "a_test.png": ("test", ("a in test",)),
        "b_train.png": ("train", ("b in train",)),
        "c_val.jpg": ("val", ("c in val",)),
    }
    assert (done.leaked, done.merged) == (5, 0)
    assert "left out: 5 that a more protected split holds too" in str(done)
    again = inspect_source(read_source(tmp_path / "lists" / "clean.jsonl"))
    assert again.sound and not again.leaks


def test_copies_of_copies_are_not_merged(add, folder, tmp_path, monkeypatch):
    """Frames of a film: each is like the next one, the first and the last are not."""
    from cliplet.data.inspection import survey
    from cliplet.data.inspection.copies import CopiesFound

    records = [add(f"{n}.png", photo(n), "train", f"frame {n}") for n in range(4)]
    chain = CopiesFound(np.zeros(4, np.int64), np.array([[0, 1], [1, 2], [2, 3]]), True)
    monkeypatch.setattr(survey, "find_copies", lambda *arguments: chain)
    found = inspect_source(made(records))
    assert len(found.near_within) == 1 and len(found.near_within[0].places) == 4
    write_cleaned(found, tmp_path / "clean.jsonl")
    captions = [record.captions for record in read_source(tmp_path / "clean.jsonl").records]
    assert captions == [("frame 0", "frame 1"), ("frame 2", "frame 3")]


def test_splits_that_cliplet_makes_are_written(add, tmp_path):
    held = next(f"{n}.png" for n in range(1000) if held_out(f"{n}.png"))
    trained, other = [f"{n}.png" for n in range(1000) if not held_out(f"{n}.png")][:2]
    records = [add(trained, photo(0), ""), add(other, photo(1), ""), add(held, trained, "")]
    done, read = cleaned(records, tmp_path)
    assert {name: split for name, (split, _) in read.items()} == {held: "val", other: "train"}
    assert done.leaked == 1


def test_the_list_reads_from_wherever_it_is(add, folder, tmp_path, monkeypatch):
    add("a.png", photo(0), "train")
    monkeypatch.chdir(folder)
    write_cleaned(inspect_source(made([ImageText("./a.png", ("a",), "train")])), Path("../far/away/clean.jsonl"))
    monkeypatch.chdir(tmp_path)
    (record,) = read_source(tmp_path / "far" / "away" / "clean.jsonl").records
    assert Path(record.image).samefile(folder / "a.png")


def test_places_in_shards_and_tables_stay_whole(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute("x/a.png") == f"{tmp_path}/x/a.png"
    assert absolute(tar_member("x/0.tar", "./b/../a.png", 512, 99)) == tar_member(
        f"{tmp_path}/x/0.tar", "a.png", 512, 99
    )
    assert absolute(arrow_row("x/0.arrow", 7, "image")) == arrow_row(f"{tmp_path}/x/0.arrow", 7, "image")


def test_pictures_in_shards_read_back(folder, tmp_path):
    with tarfile.open(folder / "0.tar", "w") as shard:
        for n in range(3):
            buffer = io.BytesIO()
            photo(min(n, 1)).save(buffer, "PNG")
            for name, data in ((f"./{n}.png", buffer.getvalue()), (f"./{n}.txt", f"caption {n}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    source = read_source(folder / "0.tar")
    done = write_cleaned(inspect_source(source), tmp_path / "clean.jsonl")
    assert (done.pictures + done.merged + done.leaked) == 3 and done.merged + done.leaked == 1
    again = inspect_source(read_source(tmp_path / "clean.jsonl"))
    assert again.readable == again.pictures == 2


def test_no_other_file_is_overwritten(add, tmp_path):
    found = inspect_source(made([add("a.png", photo(0), "train")]))
    file = tmp_path / "list.jsonl"
    write_cleaned(found, file)
    write_cleaned(found, file)  # its own
    file.write_text(json.dumps({"image": "mine.png", "captions": ["my own"]}) + "\n")
    with pytest.raises(DataError, match="was not written by"):
        write_cleaned(found, file)
    assert "my own" in file.read_text()
    write_cleaned(found, file, overwrite=True)
    assert "my own" not in file.read_text()
    (tmp_path / "binary").write_bytes(os.urandom(100))
    for other in (tmp_path / "binary", tmp_path):
        with pytest.raises(DataError, match="was not written by"):
            write_cleaned(found, other)


def test_the_list_that_is_read_is_never_overwritten(add, folder):
    add("a.png", photo(0), "train")
    (folder / "list.tsv").write_text("a.png\ta caption\n")
    found = inspect_source(read_source(folder / "list.tsv"))
    with pytest.raises(DataError, match="the list that is read"):
        write_cleaned(found, folder / "list.tsv", overwrite=True)
    assert (folder / "list.tsv").read_text() == "a.png\ta caption\n"


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes on POSIX alone")
def test_a_name_that_is_no_text_is_left_out_and_counted(add, folder, tmp_path):
    add("a.png", photo(0), "train")
    name = os.fsdecode(b"\xff.png")
    try:
        shutil.copy(folder / "a.png", folder / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    photo(1).save(folder / "b.png")
    records = [ImageText(f"{folder}/{name}", ("a",), "train"), ImageText(f"{folder}/b.png", ("b",), "train")]
    done, read = cleaned(records, tmp_path)
    assert list(read) == ["b.png"] and done.unwritable == 1 and "not UTF-8" in str(done)
