"""Which reader a path gets, and where its pictures are looked for: by what is there, not by how it is called."""

import bz2
import gzip
import json
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from cliplet.data.readers import read_source
from cliplet.errors import DataError

KARPATHY = json.dumps({"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog"}]}]})
COCO = json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog"}]})
LINES = '{"image": "a.jpg", "caption": "A dog"}\n{"image": "a.jpg", "caption": "A brown dog"}\n'
CONTENTS = {
    "Karpathy JSON": KARPATHY,
    "COCO captions JSON": COCO,
    "JSON list": '[{"image": "a.jpg", "caption": "A dog"}]',
    "JSON lines": LINES,
    "Flickr token file": "a.jpg#0\tA dog\n",
    "TSV": "a.jpg\tA dog\n",
    "CSV": "a.jpg,A dog\n",
    "CSV with ;": "a.jpg;A dog\n",
    "table with |": "a.jpg| 0| A dog\n",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with one picture in it."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"picture")
    return folder


@pytest.mark.parametrize("form", CONTENTS)
@pytest.mark.parametrize("name", ["captions.txt", "x.csv", "x.tsv", "x.token", "X.TXT", "no ending", "x.dat"])
def test_a_file_is_known_by_its_content(folder, form, name):
    for content in (CONTENTS[form], CONTENTS[form].rstrip("\n") + "\n", "\ufeff\n\n" + CONTENTS[form]):
        (folder / name).write_text(content, encoding="utf-8")
        source = read_source(folder / name)
        assert source.form == form and source.problems == []
        assert source.records[0].captions[0] == "A dog" and source.records[0].image == str(folder / "a.jpg")


def test_the_first_part_of_a_long_file_may_end_within_a_line_or_a_character(folder):
    for shift in range(4):
        rows = "".join(f"a.jpg\t{'x' * shift}{'犬' * 40} {number}\n" for number in range(2000))
        (folder / "x.tsv").write_text(rows, encoding="utf-8")
        source = read_source(folder / "x.tsv")
        assert source.form == "TSV" and len(source.records[0].captions) == 2000 and source.problems == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text file"),
        (b"\0" * 99, "not a text file"),
        (b"PK\x03\x04\x14\0\0\0", "compressed"),
        (gzip.compress(b"a.jpg,A dog\n", mtime=0), "compressed"),
        (bz2.compress(b"a.jpg,A dog\n"), "compressed"),
        (lzma.compress(b"a.jpg,A dog\n"), "compressed"),
    ],
    ids=["png", "zeros", "zip", "gzip", "bzip2", "xz"],
)
def test_what_is_no_text_is_refused(folder, content, what):
    (folder / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.csv: is {what}"):
        read_source(folder / "x.csv")


def test_options_that_make_no_sense_are_refused(folder):
    (folder / "x.csv").write_text("a.jpg,A dog\n")
    for samples in (0, -3):
        with pytest.raises(DataError, match="pictures cannot be read"):
            read_source(folder / "x.csv", samples=samples)
    with pytest.raises(DataError, match="the picture folder does not exist"):
        read_source(folder, folder / "nowhere")


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "x.token.txt"])
@pytest.mark.parametrize("content", [KARPATHY, LINES, "image,caption\na.jpg,A dog\n"])
def test_utf_16_is_refused_with_advice(folder, name, content):
    (folder / name).write_bytes(content.encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16") as raised:
        read_source(folder / name)
    assert raised.value.hint == "Save it as UTF-8."


def test_a_pipe_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "x.csv")
    with pytest.raises(DataError, match=r"x\.csv: is no file"):
        read_source(folder / "x.csv")
    with pytest.raises(DataError, match="is no file"):
        read_source("/dev/null")
    with pytest.raises(DataError, match="holds no annotation file"):
        read_source(folder)


@pytest.mark.parametrize("path", ["loop", "loop/x.csv", "gone.csv", "a.jpg/x.csv", "x" * 300])
def test_what_is_not_there(folder, path):
    (folder / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="no such file or folder"):
        read_source(folder / path)


# Folders


@pytest.mark.parametrize(
    "name",
    [
        "dataset_x.json",
        "captions_train.json",
        "any.json",
        "x.jsonl",
        "results_20130124.token",
        "Flickr8k.token.txt",
        "captions.txt",
        "results.csv",
        "x.tsv",
        "annotations/captions_val2017.json",
    ],
)
def test_a_folder_is_read_by_its_annotation_file(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(COCO if name.endswith(".json") else LINES)
    for junk in ("README.md", "notes.txt", "._" + Path(name).name, ".hidden.json"):
        (folder / name).with_name(junk).write_text("no annotations")
    (folder / "folder.json").mkdir()
    source = read_source(folder)
    assert Path(source.path) == folder / name and source.records[0].captions[0] == "A dog"


def test_karpathys_json_comes_before_all_others(folder):
    for name, content in (
        ("dataset_x.json", KARPATHY),
        ("captions_x.json", COCO),
        ("x.jsonl", LINES),
        ("x.csv", "a.jpg,A"),
    ):
        (folder / name).write_text(content)
    assert read_source(folder).splits == {"train": 1}


def test_captions_beside_pictures_come_before_a_table(folder):
    (folder / "a.txt").write_text("from beside it")
    (folder / "x.tsv").write_text("a.jpg\tfrom the table")
    assert read_source(folder).records[0].captions == ("from beside it",)
    assert read_source(folder / "x.tsv").records[0].captions == ("from the table",)


def test_tars_come_before_all_others(folder):
    (folder / "x.json").write_text("A dog")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        tar.add(folder / "a.jpg", "a.jpg")
        tar.add(folder / "x.json", "a.txt")
    (folder / "x.json").unlink()
    assert read_source(folder).form == "WebDataset tars"


def test_a_folder_that_may_not_be_listed_says_so(folder):
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    (folder / "x.csv").write_text("a.jpg,A dog")
    folder.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed: Permission denied"):
            read_source(folder)
    finally:
        folder.chmod(0o700)


# Lists of the names of each split


def test_lists_of_names_are_read_and_what_is_no_list_is_passed_over(folder):
    (folder / "x.csv").write_text("a.jpg,A dog\nb.jpg,A boat\nsub/c.jpg,A cat\n")
    (folder / "Flickr_8k.trainImages.txt").write_bytes(b"a.jpg\r\n\r\n c.jpg \n")
    (folder / "Flickr_8k.devImages.txt").mkdir()
    (folder / "Flickr_8k.testImages.txt").symlink_to("gone")
    os.mkfifo(folder / "pipe.testImages.txt")
    assert [record.split for record in read_source(folder / "x.csv").records] == ["train", "", "train"]


# Where the pictures are


@pytest.mark.parametrize(
    "images", ["", "images", "Images", "Flickr8k_Dataset", "flickr30k_images", "img", "..", "../images", "../val2014"]
)
def test_pictures_beside_the_annotations_or_beside_their_folder(tmp_path, images):
    place = tmp_path / os.path.normpath(f"annotations/{images}") / "a.jpg"
    place.parent.mkdir(exist_ok=True, parents=True)
    place.write_bytes(b"picture")
    file = tmp_path / "annotations" / "x.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("gone.jpg,A ghost\na.jpg,A dog\n")
    assert [Path(record.image).resolve().name for record in read_source(file).records] == ["gone.jpg", "a.jpg"]
    assert Path(read_source(file).records[1].image).resolve() == place


def test_pictures_are_looked_for_all_over_the_list(folder):
    """Of 100,000 pictures only some at the end are there."""
    rows = [f"{number}.jpg\tA dog\n" for number in range(100_000)]
    (folder / "x.tsv").write_text("".join(rows))
    with pytest.raises(DataError, match=r"its pictures are not there, 0\.jpg for example"):
        read_source(folder / "x.tsv")
    for number in range(99_000, 99_400):
        (folder / f"{number}.jpg").touch()
    assert len(read_source(folder / "x.tsv").records) == 100_000


def test_absolute_names_need_no_folder(folder, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.csv").write_text(f"{folder}/a.jpg,A dog\n")
    assert [record.image for record in read_source(tmp_path / "far" / "x.csv").records] == [f"{folder}/a.jpg"]
    source = read_source(tmp_path / "far" / "x.csv", folder)
    assert [record.image for record in source.records] == [f"{folder}/a.jpg"]


def test_places_within_a_tar_are_pictures_that_are_there(folder, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"\0" * 1024)
    place = f"{tmp_path}/x.tar?offset=512&size=9&name=a.jpg"
    (folder / "x.jsonl").write_text(json.dumps({"image": place, "caption": "A dog"}) + "\n")
    assert [record.image for record in read_source(folder / "x.jsonl").records] == [place]
    (tmp_path / "x.tar").unlink()
    with pytest.raises(DataError, match="its pictures are not there"):
        read_source(folder / "x.jsonl")


def test_one_picture_by_several_spellings_of_its_name(folder):
    (folder / "x.csv").write_text("a.jpg,one\n./a.jpg,two\nb/../a.jpg,three\n.//a.jpg,four\n a.jpg ,five\n")
    assert [r.captions for r in read_source(folder / "x.csv").records] == [("one", "two", "three", "four", "five")]


@pytest.mark.parametrize("samples", [1, 2, 99])
def test_the_first_samples_of_each_split(folder, samples):
    rows = "".join(f"{n}.jpg,A dog,{'train' if n % 3 else 'val'}\n" for n in range(30))
    (folder / "x.csv").write_text("image,caption,split\na.jpg,A dog,test\n" + rows)
    source = read_source(folder / "x.csv", samples=samples)
    assert source.splits == {"test": 1, "val": min(samples, 10), "train": min(samples, 20)}
    names = [Path(record.image).name for record in source.records]
    assert names == [n for n in ["a.jpg", *(f"{n}.jpg" for n in range(30))] if n in names]


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "x.csv").write_text("a.jpg,A dog\n")
    assert read_source("~/x.csv", "~").records[0].image == str(folder / "a.jpg")
