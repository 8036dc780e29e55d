"""Pictures with a file of captions beside each: what is there is read by its own name, and only once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cliplet.data.readers import read_source
from cliplet.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set"


@pytest.fixture
def make(folder):
    """Makes files by their names; a picture is one byte. Text is written as it stands."""

    def make(**files):
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return lambda files: make(**files)


def read(folder):
    """Captions and split by name, in order, and reasons by place."""
    source = read_source(folder)
    assert source.form == "folder of pictures and .txt"
    problems = {problem.where: problem.reason for problem in source.problems}
    assert len(problems) == len(source.problems), "one place, two problems"
    assert all(os.path.isfile(record.image) for record in source.records)
    return {os.path.relpath(r.image, folder): (r.captions, r.split) for r in source.records}, problems


def captions(folder):
    return {name: captions for name, (captions, _) in read(folder)[0].items()}


def test_each_line_is_a_caption_and_names_are_in_order(make, folder):
    make(
        {
            "b.jpg": "x",
            "b.txt": "A boat\nA red boat\n",
            "a.png": "x",
            "a.txt": "\ufeffA dog\r\n\r\n  A  brown dog \r\n",
            "deep/down/c.webp": "x",
            "deep/down/c.txt": "A cat",
        }
    )
    found, problems = read(folder)
    assert list(found.items()) == [
        ("a.png", (("A dog", "A brown dog"), "")),
        ("b.jpg", (("A boat", "A red boat"), "")),
        ("deep/down/c.webp", (("A cat",), "")),
    ]
    assert problems == {}


def test_endings_in_capitals_and_other_captions(make, folder):
    make(
        {
            "A.JPG": "x",
            "A.TXT": "A dog",
            "B.Jpeg": "x",
            "B.txt": "A boat",
            "c.tiff": "x",
            "c.caption": "A cat",
            "d.two.dots.gif": "x",
            "d.two.dots.txt": "Dots",
            "e.bmp": "x",
            "e.caption": "passed over",
            "e.txt": "A tree",
            "notes.txt": "no picture",
            "f.pdf": "x",
            "f.txt": "no picture",
        }
    )
    assert captions(folder) == {
        "A.JPG": ("A dog",),
        "B.Jpeg": ("A boat",),
        "c.tiff": ("A cat",),
        "d.two.dots.gif": ("Dots",),
        "e.bmp": ("A tree",),
    }


def test_first_folders_of_the_usual_names_are_splits(make, folder):
    for name in ("train/x/a", "Val/b", "TEST/c", "training/d", "validation/e", "dev/f", "other/train/g", "h"):
        make({f"{name}.jpg": "x", f"{name}.txt": "A dog"})
    found, _ = read(folder)
    assert {name: split for name, (_, split) in found.items()} == {
        "train/x/a.jpg": "train",
        "training/d.jpg": "train",
        "Val/b.jpg": "val",
        "validation/e.jpg": "val",
        "dev/f.jpg": "val",
        "TEST/c.jpg": "test",
        "other/train/g.jpg": "",
        "h.jpg": "",
    }


def test_pictures_of_one_name_in_several_folders_stay_apart(make, folder):
    make(
        {"train/a.jpg": "x", "train/a.txt": "one", "val/a.jpg": "x", "val/a.txt": "two", "a.png": "x", "a.txt": "three"}
    )
    assert captions(folder) == {"a.png": ("three",), "train/a.jpg": ("one",), "val/a.jpg": ("two",)}


def test_missing_and_empty_captions_cost_their_picture_alone(make, folder):
    make(
        {
            "a.jpg": "x",
            "b.jpg": "x",
            "b.txt": "",
            "c.jpg": "x",
            "c.txt": "\n \n\x00\n",
            "d.jpg": "x",
            "d.txt": "A tree\n" + "word " * 1001 + "\nA bush",
            "e.jpg": "x",
            "e.txt": b"caf\xe9",
        }
    )
    (folder / "f.jpg").write_bytes(b"x")
    (folder / "f.txt").mkdir()
    found, problems = read(folder)
    assert found == {"d.jpg": (("A tree", "A bush"), "")}
    assert problems == {
        "c.txt:3": "its caption is empty",
        "d.txt:2": "its caption has 1,001 words, more than 1,000",
        "e.txt": "is not UTF-8 at byte 4",
        **{f"set: {name}.jpg": "has no usable caption" for name in "abcef"},
    }


def test_captions_of_any_script_and_lines_that_end_only_where_files_end_them(make, folder):
    make({"a.jpg": "x", "a.txt": "犬が走る\n👩‍👩‍👧\rone\u2028two\x85three\x0bfour\x1cfive\na\0dog"})
    assert captions(folder) == {"a.jpg": ("犬が走る", "👩‍👩‍👧", "one two three four five", "a dog")}


@pytest.mark.parametrize(
    "name", [" a.jpg", "a?b=1&c.jpg", "é 犬.jpg", "a\nb.jpg", "#0.jpg", "%20.jpg", "-.jpg", "a'\".jpg"]
)
def test_names_are_taken_as_they_stand(make, folder, name):
    make({name: "x", name[:-4] + ".txt": "A dog", "a.jpg": "x", "a.txt": "Another"})
    assert captions(folder) == {name: ("A dog",), "a.jpg": ("Another",)}


def test_a_name_that_is_no_utf8(folder):
    folder.mkdir()
    for ending, content in ((b".jpg", b"x"), (b".txt", b"A dog")):
        try:
            Path(os.fsdecode(bytes(folder) + b"/caf\xe9" + ending)).write_bytes(content)
        except OSError:
            pytest.skip("this file system takes no such name")
    found, problems = read(folder)
    assert found == {"caf\udce9.jpg": (("A dog",), "")} and problems == {}


def test_a_name_as_long_as_can_be(make, folder):
    """Its file of captions could not be called .caption any more."""
    make({"x" * 250 + ".jpg": "x", "a.jpg": "x", "a.txt": "A dog"})
    found, problems = read(folder)
    assert found == {"a.jpg": (("A dog",), "")}
    assert problems == {f"set: {'x' * 250}.jpg": "has no usable caption"}


def test_hidden_files_and_folders_are_passed_over(make, folder):
    make(
        {
            ".a.jpg": "x",
            ".a.txt": "no",
            ".git/b.jpg": "x",
            ".git/b.txt": "no",
            "._c.jpg": "x",
            "c.jpg": "x",
            "c.txt": "A cat",
        }
    )
    assert read(folder) == ({"c.jpg": (("A cat",), "")}, {})


def test_links_are_followed_and_loops_are_not(make, folder, tmp_path):
    make({"in/a.jpg": "x", "in/a.txt": "A dog"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.jpg").write_bytes(b"x")
    (elsewhere / "b.txt").write_text("A boat")
    (folder / "in" / "round").symlink_to(folder)
    (folder / "in" / "self").symlink_to("self")
    (folder / "in" / "self.txt").symlink_to("self.txt")
    (folder / "out").symlink_to(elsewhere)
    (folder / "twice").symlink_to(elsewhere)
    (folder / "gone").symlink_to("nowhere")
    (folder / "link.jpg").symlink_to(elsewhere / "b.jpg")
    (folder / "link.txt").symlink_to(elsewhere / "b.txt")
    found, problems = read(folder)
    assert list(found) == ["link.jpg", "in/a.jpg", "out/b.jpg"]
    assert problems == {}


def test_a_link_that_leads_nowhere_costs_itself_alone(make, folder):
    make({"a.jpg": "x", "a.txt": "A dog", "b.jpg": "x"})
    (folder / "b.txt").symlink_to("b.txt")
    (folder / "c.jpg").symlink_to("gone.jpg")
    found, problems = read(folder)
    assert list(found) == ["a.jpg"]
    assert problems == {"set: b.jpg": "has no usable caption", "set: c.jpg": "has no usable caption"}


def test_a_pipe_in_the_place_of_captions_is_not_waited_for(make, folder):
    make({"a.jpg": "x", "b.jpg": "x", "b.txt": "A boat"})
    os.mkfifo(folder / "a.txt")
    found, problems = read(folder)
    assert list(found) == ["b.jpg"] and problems == {"set: a.jpg": "has no usable caption"}


def test_what_may_not_be_read_is_a_problem(make, folder):
    if os.geteuid() == 0:
        pytest.skip("root may read every file and folder")
    make(
        {"a.jpg": "x", "a.txt": "A dog", "b.jpg": "x", "b.txt": "A boat", "closed/c.jpg": "x", "closed/c.txt": "A cat"}
    )
    (folder / "b.txt").chmod(0)
    (folder / "closed").chmod(0)
    try:
        found, problems = read(folder)
    finally:
        (folder / "closed").chmod(0o700)
    assert found == {"a.jpg": (("A dog",), "")}
    assert problems == {
        "b.txt": "cannot be read: Permission denied",
        "set: b.jpg": "has no usable caption",
        str(folder / "closed"): "cannot be listed: Permission denied",
    }


def test_the_folder_one_stands_in(make, folder, monkeypatch):
    make({"a.jpg": "x", "a.txt": "A dog", "b.jpg": "x"})
    monkeypatch.chdir(folder)
    for name in (".", "../set", "./"):
        source = read_source(name)
        assert [(record.captions, os.path.isfile(record.image)) for record in source.records] == [(("A dog",), True)]
        assert [problem.where for problem in source.problems] in ([".: b.jpg"], ["set: b.jpg"])


def test_a_folder_whose_captions_are_all_empty_is_refused_with_a_reason(make, folder):
    make({"a.jpg": "x", "a.txt": "\x00\n", "b.jpg": "x"})
    with pytest.raises(DataError, match=r"set: holds no picture with a caption\. The first problem: a\.txt:1"):
        read_source(folder)


def test_many_pictures_take_little_memory(folder):
    """1,500 pictures of 40 captions: four megabytes of text, read in a process of its own."""
    folder.mkdir()
    line = "a dog runs over the wide green field in the evening, and nobody sees it\n" * 40
    for number in range(1500):
        (folder / f"{number}.jpg").touch()
        (folder / f"{number}.txt").write_text(line)
    code = (
        "import sys, tracemalloc; from cliplet.data.readers import read_source; tracemalloc.start();"
        "records = read_source(sys.argv[1]).records; print(len(records), tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 1500 and peak < 2.5 * 1500 * len(line)
