"""Every format and every fault in it: what is good comes out in order, what is bad is named with its line."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from cliplet.data.readers import read_source
from cliplet.data.readers.collector import MAX_WORDS, clean_caption
from cliplet.data.records import ImageText, Records
from cliplet.errors import DataError

FLICKR8K = Path(os.environ.get("CLIPLET_FLICKR8K", Path(__file__).resolve().parents[3] / "shared" / "flickr8k"))
NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")


@pytest.fixture
def folder(tmp_path):
    """Five pictures; a reader opens none of them, so each is a few bytes."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b"picture")
    return folder


@pytest.fixture
def read(folder):
    """Writes a file among the pictures and reads it; gives the records by name, and the problems."""

    def read(content, name="captions.csv", images=None):
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return Found(read_source(folder / name, images), folder)

    return read


class Found:
    def __init__(self, source, folder):
        self.form = source.form
        self.rows = [(str(Path(r.image).relative_to(folder)), r.captions, r.split) for r in source.records]
        self.captions = {image: captions for image, captions, _ in self.rows}
        self.splits = {image: split for image, _, split in self.rows}
        self.problems = {problem.where: problem.reason for problem in source.problems}
        assert len(self.problems) == len(source.problems), "one place, two problems"


def karpathy(*images):
    return json.dumps({"images": list(images), "dataset": "made here"})


def entry(filename="a.jpg", *sentences, **others):
    return {"filename": filename, "sentences": [{"raw": s} for s in sentences], "split": "train", **others}


# Karpathy's JSON


def test_karpathy(read):
    found = read(karpathy(entry("b.jpg", "a boat", "a red boat"), entry("a.jpg", "a dog", split="val")), "x.json")
    assert found.form == "Karpathy JSON"
    assert found.rows == [("b.jpg", ("a boat", "a red boat"), "train"), ("a.jpg", ("a dog",), "val")]
    assert found.problems == {}


def test_karpathy_filepath_is_the_folder(read, folder):
    (folder / "val2014").mkdir()
    (folder / "val2014" / "a.jpg").write_bytes(b"picture")
    found = read(karpathy(entry("a.jpg", "a dog", filepath="val2014", split="restval")), "x.json")
    assert found.rows == [("val2014/a.jpg", ("a dog",), "restval")]


def test_karpathy_tokens_without_raw_and_plain_sentences(read):
    sentences = [{"tokens": ["a", "black", "dog"]}, "a plain text", {"raw": "raw wins", "tokens": ["not", "me"]}]
    found = read(karpathy(entry(sentences=sentences)), "x.json")
    assert found.captions["a.jpg"] == ("a black dog", "a plain text", "raw wins")


def test_karpathy_faults_cost_themselves_alone(read):
    found = read(
        karpathy(
            entry("a.jpg", "good"),
            entry("b.jpg"),  # sentences empty
            {"sentences": [{"raw": "whose?"}], "split": "train"},
            entry(""),
            entry("   ", "blank"),
            entry(7, "a number"),
            entry("a\0b.jpg", "zero"),
            "no object",
            entry("c.jpg", sentences={"raw": "no list"}),
            entry("d.jpg", sentences=[{"raw": None}, {}, 3, None, {"raw": "last"}]),
            entry("e.jpg", split=None),
            entry("  c.jpg ", "with spaces around its name"),
        ),
        "x.json",
    )
    assert found.captions == {"a.jpg": ("good",), "d.jpg": ("last",), "c.jpg": ("with spaces around its name",)}
    assert found.problems == {
        "x.json: b.jpg": "has no usable caption",
        "x.json: image 2": "has no filename",
        "x.json: image 3": "has no filename",
        "x.json: image 4 (   )": "names no picture",
        "x.json: image 5": "has no filename",
        "x.json: image 6 (a\0b.jpg)": "names no picture",
        "x.json: image 7": "has no filename",
        "x.json: image 8 (c.jpg)": "its filepath and split must be texts and its sentences a list",
        "x.json: image 9 (d.jpg), sentence 0": "its caption is no text but NoneType",
        "x.json: image 9 (d.jpg), sentence 1": "its caption is no text but NoneType",
        "x.json: image 9 (d.jpg), sentence 2": "its caption is no text but int",
        "x.json: image 9 (d.jpg), sentence 3": "its caption is no text but NoneType",
        "x.json: image 10 (e.jpg)": "its filepath and split must be texts and its sentences a list",
    }


def test_the_same_file_twice_in_a_split_is_one_picture(read):
    found = read(
        karpathy(entry("a.jpg", "one"), entry("b.jpg", "other"), entry("a.jpg", "two"), entry("./a.jpg", "three")),
        "x.json",
    )
    assert found.rows == [("a.jpg", ("one", "two", "three"), "train"), ("b.jpg", ("other",), "train")]


def test_the_same_file_in_two_splits_stays_in_both(read):
    found = read(karpathy(entry("a.jpg", "one"), entry("a.jpg", "two", split="val")), "x.json")
    assert found.rows == [("a.jpg", ("one",), "train"), ("a.jpg", ("two",), "val")]


def test_json_with_a_byte_order_mark(read):
    assert read(b"\xef\xbb\xbf" + karpathy(entry("a.jpg", "a dog")).encode(), "x.json").captions == {
        "a.jpg": ("a dog",)
    }


def test_json_is_known_by_its_content(read):
    assert read(karpathy(entry("a.jpg", "a dog")), "captions.txt").form == "Karpathy JSON"


@pytest.mark.parametrize(
    "content", ["{", '{"images": [', "[1, 2", '{"a": 1} {"b": 2}', "nonsense", b"{\xff\xff}", "[" * 99_999]
)
def test_not_json(read, content):
    with pytest.raises(DataError, match=r"x\.json: is not JSON"):
        read(content, "x.json")


@pytest.mark.parametrize(
    "content",
    ['"text"', "5", "null", "[]", "{}", '{"images": {}}', '{"images": [1]}', '{"images": [{"id": 1}]}', '[{"a": 1}]'],
)
def test_json_of_another_kind(read, content):
    with pytest.raises(DataError, match=r"of no form that is known|holds no picture with a caption"):
        read(content, "x.json")


def test_json_of_another_kind_names_its_keys(read):
    with pytest.raises(DataError) as raised:
        read('{"info": {"a": {"b": 1}}, "pictures": [{"c": 2}], "d": 3}', "x.json")
    assert "is JSON with the keys info, pictures, d, but of no form" in raised.value.message
    assert '"sentences"' in raised.value.hint and '"annotations"' in raised.value.hint


# Flickr's token file


TOKENS = "a.jpg#0\tA dog .\na.jpg#1\tA brown dog .\nb.jpg#0\tA boat .\n"


def test_token_file(read):
    found = read(TOKENS, "Flickr8k.token.txt")
    assert found.form == "Flickr token file"
    assert found.rows == [("a.jpg", ("A dog .", "A brown dog ."), ""), ("b.jpg", ("A boat .",), "")]


def test_token_file_with_its_lists_of_names(read, folder):
    (folder / "Flickr_8k.trainImages.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nc.jpg\r\n")
    (folder / "Flickr_8k.devImages.txt").write_text("b.jpg\n")
    (folder / "Flickr_8k.testImages.txt").write_text("with space.jpg\n")
    (folder / "with space.jpg").write_bytes(b"picture")
    found = read(TOKENS + "with space.jpg#0\tA gap .\nd.jpg#0\tUnlisted .\n", "Flickr8k.token.txt")
    assert found.splits == {"a.jpg": "train", "b.jpg": "val", "with space.jpg": "test", "d.jpg": ""}


def test_lists_of_names_serve_a_table_too_but_its_own_column_wins(read, folder):
    (folder / "Flickr_8k.devImages.txt").write_text("a.jpg\n")
    assert read("image,caption\na.jpg,A dog\nb.jpg,A boat\n").splits == {"a.jpg": "val", "b.jpg": ""}
    assert read("image,caption,split\na.jpg,A dog,test\n").splits == {"a.jpg": "test"}


def test_token_file_faults(read):
    found = read("a.jpg#0\tA dog\nno tab here\n\nb.jpg#0\t\nc.jpg#x\tbad number\na.jpg#1\tstill a dog\n", "f.token.txt")
    assert found.rows == [("a.jpg", ("A dog", "still a dog"), "")]
    assert found.problems == {
        "f.token.txt:2": "is not of the form image#number<TAB>caption",
        "f.token.txt:4 (b.jpg)": "its caption is empty",
        "f.token.txt:5": "is not of the form image#number<TAB>caption",
        "f.token.txt: b.jpg": "has no usable caption",
    }


def test_token_file_of_a_hash_in_the_name_and_tabs_in_the_caption(read, folder):
    (folder / "x#1.jpg").write_bytes(b"picture")
    assert read("x#1.jpg#0\tone\ttwo\n", "f.token.txt").captions == {"x#1.jpg": ("one two",)}


# Tables


@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize("header", [None, ("image", "caption"), ("FileName", " Text ")])
def test_tables_with_and_without_header(read, delimiter, header):
    rows = [*([header] if header else []), ("a.jpg", "A dog"), ("b.jpg", "A boat"), ("a.jpg", "A brown dog")]
    found = read("".join(delimiter.join(row) + "\n" for row in rows))
    assert found.form == {"\t": "TSV", ",": "CSV"}[delimiter]
    assert found.rows == [("a.jpg", ("A dog", "A brown dog"), ""), ("b.jpg", ("A boat",), "")]
    assert found.problems == {}


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_columns_in_another_order_with_a_split(read, delimiter):
    rows = [
        ("number", "split", "caption", "size", "image"),
        ("0", "train", "A dog", "12", "a.jpg"),
        ("1", " val ", "A boat", "13", "b.jpg"),
        ("2", "", "A cat", "14", "c.jpg"),
    ]
    found = read("".join(delimiter.join(row) + "\n" for row in rows))
    assert found.rows == [("a.jpg", ("A dog",), "train"), ("b.jpg", ("A boat",), "val"), ("c.jpg", ("A cat",), "")]


def test_kaggle_captions(read):
    """Quoted commas, doubled quotes, commas nobody quoted with the spaces after them, and quotes within a caption."""
    found = read(
        "image,caption\n"
        'a.jpg,"A dog , running , fast"\n'
        'a.jpg,"The sign says ""stop"", twice"\n'
        "b.jpg,A boat, a lake,a 1,000 ton ship\n"
        'c.jpg,The sign says "stop" to all\n'
        'c.jpg,He said, "come, now"\n'
        'd.jpg, "a space before, the quote"\n'
        'e.jpg,A 5" nail\n'
        "e.jpg,two trailing commas,,\n",
        "captions.txt",
    )
    assert found.captions == {
        "a.jpg": ("A dog , running , fast", 'The sign says "stop", twice'),
        "b.jpg": ("A boat, a lake,a 1,000 ton ship",),
        "c.jpg": ('The sign says "stop" to all', 'He said, "come, now"'),
        "d.jpg": ("a space before, the quote",),
        "e.jpg": ('A 5" nail', "two trailing commas"),
    }
    assert found.problems == {}


def test_what_a_csv_writer_writes_is_read_back(read, folder):
    """Python's own writer is the reference, with each character that needs care."""
    captions = ['say "no"', "one, two", "first\nsecond", '"', 'a, "b"\n, c', "'", "\\", '""', "#0", " = 1", "é 🐕 中"]
    for number in range(len(captions)):
        (folder / f"{number}.png").write_bytes(b"picture")
    file = folder / "written.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption", "split"])
        writer.writerows([f"{number}.png", caption, "train"] for number, caption in enumerate(captions))
    source = read_source(file)
    assert source.problems == []
    assert [record.captions for record in source.records] == [(" ".join(caption.split()),) for caption in captions]
    assert {record.split for record in source.records} == {"train"}


def test_an_unquoted_comma_never_shifts_a_column(read):
    """Where the caption is not the last column, the row's extra cell cannot be told; it costs the row."""
    found = read("image,caption,split\na.jpg,A dog, running,train\nb.jpg,A boat,train\n")
    assert found.rows == [("b.jpg", ("A boat",), "train")]
    assert found.problems == {"captions.csv:2": "has 4 columns where 3 are expected"}
    found = read("caption,image\nA dog, running,a.jpg\nA boat,b.jpg\n")
    assert found.rows == [("b.jpg", ("A boat",), "")]
    found = read("image\tcaption\tsplit\na.jpg\tA\tdog\ttrain\nb.jpg\tA boat\ttrain\t\n")
    assert found.rows == [("b.jpg", ("A boat",), "train")]


def test_too_few_columns(read):
    found = read("image,caption,split\na.jpg,A dog,train\nb.jpg,A boat\nc.jpg\n")
    assert found.rows == [("a.jpg", ("A dog",), "train")]
    assert found.problems == {
        "captions.csv:3": "has 2 columns where 3 are expected",
        "captions.csv:4": "has 1 columns where 3 are expected",
    }


def test_a_table_of_one_column_is_refused(read):
    with pytest.raises(DataError, match=r"captions\.csv:1: expected a picture and a caption"):
        read("a.jpg\nb.jpg\n")


def test_tsv_quotes(read):
    found = read('a.jpg\tA "big" dog\nb.jpg\t"A ""red"" boat"\nc.jpg\t"never closed\nd.jpg\t5" nail\ne.jpg\t"whole"\n')
    assert found.captions == {
        "a.jpg": ('A "big" dog',),
        "b.jpg": ('A "red" boat',),
        "c.jpg": ('"never closed',),
        "d.jpg": ('5" nail',),
        "e.jpg": ("whole",),
    }


def test_a_cell_of_several_lines(read):
    found = read('image,caption\na.jpg,"A dog\nthat runs,\n\nfar"\nb.jpg,A boat\n')
    assert found.captions == {"a.jpg": ("A dog that runs, far",), "b.jpg": ("A boat",)}
    assert found.problems == {}


def test_line_numbers_hold_after_a_cell_of_several_lines(read):
    found = read('image,caption\na.jpg,"A dog\nthat\nruns"\nb.jpg,\nc.jpg,A cat\n')
    assert found.problems == {
        "captions.csv:5 (b.jpg)": "its caption is empty",
        "captions.csv: b.jpg": "has no usable caption",
    }


@pytest.mark.parametrize(
    "rows",
    [
        ("image,caption", 'a.jpg,"A dog', "b.jpg,A boat", 'c.jpg,"A cat', "d.jpg,A tree", "e.jpg,A bus"),
        (
            '"image","caption"',
            '"a.jpg","A dog',
            '"b.jpg","A boat"',
            '"c.jpg","A cat',
            '"d.jpg","A tree"',
            '"e.jpg","A bus"',
        ),
        ("caption,image", '"A dog,a.jpg', "A boat,b.jpg", '"A cat,c.jpg', "A tree,d.jpg", "A bus,e.jpg"),
        (
            "image,caption,split",
            'a.jpg,"A dog,train',
            "b.jpg,A boat,",
            'c.jpg,"A cat,val',
            "d.jpg,A tree,",
            "e.jpg,A bus,",
        ),
    ],
)
def test_two_broken_quotes_cost_two_lines_and_shift_nothing(read, rows):
    found = read("\n".join(rows) + "\n")
    assert found.captions == {"b.jpg": ("A boat",), "d.jpg": ("A tree",), "e.jpg": ("A bus",)}
    assert set(found.splits.values()) == {""}
    broken = "is not CSV: a quote is never closed"
    assert found.problems == {"captions.csv:2": broken, "captions.csv:4": broken}


@pytest.mark.parametrize("between", [0, 3, 17, 18, 19, 20, 40])
def test_broken_quotes_at_any_distance(read, folder, between):
    """Pictures without an ending, so that no line looks like a row's beginning."""
    for number in range(60):
        (folder / f"p{number}").write_bytes(b"picture")
    lines = ["image,caption"]
    lines += [f"p{number},{chr(34) if number in (5, 6 + between) else ''}picture {number}" for number in range(60)]
    found = read("\n".join(lines))
    assert found.captions == {f"p{n}": (f"picture {n}",) for n in range(60) if n not in (5, 6 + between)}
    assert list(found.problems) == ["captions.csv:7", f"captions.csv:{8 + between}"]


def test_a_broken_quote_in_the_last_line(read):
    found = read('image,caption\na.jpg,A dog\nb.jpg,"A boat')
    assert found.captions == {"a.jpg": ("A dog",)}
    assert list(found.problems) == ["captions.csv:3"]


@pytest.mark.parametrize(
    "content", ["image,caption\na.jpg,A dog\nb.jpg,A boat\n", "a.jpg\tA dog\nb.jpg\tA boat\n", TOKENS]
)
def test_line_ends_marks_and_blank_lines(read, content):
    plain = read(content)
    assert len(plain.rows) == 2
    assert read(content.replace("\n", "\r\n")).rows == plain.rows
    assert read(b"\xef\xbb\xbf" + content.encode()).rows == plain.rows
    assert read("\n \n" + content.replace("\n", "\n\n")).rows == plain.rows
    assert read(content.rstrip("\n")).rows == plain.rows


def test_a_line_that_is_not_utf8(read):
    found = read(b"image,caption\na.jpg,A dog\nb.jpg,caf\xe9\nc.jpg,caf\xc3\xa9\n")
    assert found.captions == {"a.jpg": ("A dog",), "c.jpg": ("café",)}
    assert found.problems == {"captions.csv:3": "is not UTF-8 at byte 10 of the line"}


def test_the_same_picture_on_rows_apart(read):
    found = read("a.jpg,one\nb.jpg,other\na.jpg,two\nc.jpg,third\na.jpg,three\n")
    assert found.rows == [("a.jpg", ("one", "two", "three"), ""), ("b.jpg", ("other",), ""), ("c.jpg", ("third",), "")]


# Captions


def test_long_captions(read):
    found = read(f"a.jpg,{'word ' * 10_000}\nb.jpg,{'word ' * MAX_WORDS}\na.jpg,short\n")
    assert found.captions["a.jpg"] == ("short",)
    assert len(found.captions["b.jpg"][0].split()) == MAX_WORDS
    assert found.problems == {"captions.csv:1 (a.jpg)": "its caption has 10,000 words, more than 1,000"}


def test_a_cell_beyond_what_csv_reads_costs_itself_alone(read):
    found = read(f"image,caption\na.jpg,{'x' * 200_000}\nb.jpg,A boat\n")
    assert found.captions == {"b.jpg": ("A boat",)}
    assert found.problems == {
        "captions.csv:2 (a.jpg)": "its caption has 200,000 characters, more than 20,000",
        "captions.csv: a.jpg": "has no usable caption",
    }


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a   dog\t\nruns\r ", "a dog runs"),
        ("a\0dog\x07runs\x1b[0m", "a dog runs [0m"),
        ("a\x85dog\x9f", "a dog"),
        ("half \ud83d a dog", "half a dog"),
        ("👩‍👩‍👧 café 犬", "👩‍👩‍👧 café 犬"),  # its joiners are no control characters
    ],
)
def test_clean_caption(raw, clean):
    assert clean_caption(raw) == clean
    clean.encode()


@pytest.mark.parametrize("bad", ["", " \t\n", "\0\x01", None, 3, ["a dog"], {"raw": "a dog"}, b"a dog"])
def test_what_is_no_caption(bad):
    with pytest.raises(ValueError, match="its caption"):
        clean_caption(bad)


# Files, folders, pictures


def test_no_path():
    with pytest.raises(DataError, match="no data set was named") as raised:
        read_source("")
    assert "--data.path" in raised.value.hint


@pytest.mark.parametrize("path", ["gone.json", "x" * 5000, "a\0b", "~nobody-of-this-name/x.json"])
def test_path_missing(path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_source(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file(read, content):
    with pytest.raises(DataError, match=r"captions\.csv: is empty"):
        read(content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16(read, encoding):
    with pytest.raises(DataError, match=r"is UTF-16|is not a text file"):
        read("image,caption\na.jpg,A dog\n".encode(encoding))


def test_utf_16_with_a_mark_says_what_to_do(read):
    with pytest.raises(DataError, match="is UTF-16") as raised:
        read("image,caption\na.jpg,A dog\n".encode("utf-16"))
    assert raised.value.hint == "Save it as UTF-8."


def test_binary_file(read, folder):
    Image.new("RGB", (8, 8)).save(folder / "real.png")
    with pytest.raises(DataError, match="is not a text file"):
        read_source(folder / "real.png")


def test_only_a_header(read):
    with pytest.raises(DataError):
        read("image,caption\n")


def test_nothing_usable_names_the_first_problem(read):
    with pytest.raises(DataError, match=r"holds no picture with a caption.*captions\.csv:2"):
        read("image,caption\na.jpg,\nb.jpg,\n")


def test_folder_with_one_annotation_file(folder, read):
    read("a.jpg,A dog\n", "anything.csv")
    assert [r.captions for r in read_source(folder).records] == [("A dog",)]
    assert [r.captions for r in read_source(str(folder)).records] == [("A dog",)]


def test_folder_prefers_karpathys_json(folder, read):
    read("a.jpg,from the table\n", "captions.txt")
    read(karpathy(entry("a.jpg", "from the JSON")), "dataset_x.json")
    assert read_source(folder).records[0].captions == ("from the JSON",)


def test_folder_with_several_annotation_files_of_a_kind(folder, read):
    read("a.jpg,A dog\n", "one.csv")
    read("a.jpg,A dog\n", "two.csv")
    with pytest.raises(DataError, match=r"holds 2 annotation files \(one\.csv, two\.csv\)"):
        read_source(folder)


def test_folder_without_annotations(folder):
    with pytest.raises(DataError, match="holds no annotation file") as raised:
        read_source(folder)
    assert "Karpathy" in raised.value.hint


def test_pictures_beside_and_below(tmp_path):
    for place in ("images", "Flicker8k_Dataset"):
        folder = tmp_path / place.lower()
        (folder / place).mkdir(parents=True)
        (folder / place / "a.jpg").write_bytes(b"picture")
        (folder / "captions.csv").write_text("a.jpg,A dog\n")
        assert read_source(folder).records == [ImageText(str(folder / place / "a.jpg"), ("A dog",))]


def test_pictures_elsewhere(tmp_path, read):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "z.jpg").write_bytes(b"picture")
    with pytest.raises(DataError, match=r"its pictures are not there, z\.jpg for example") as raised:
        read("z.jpg,A dog\n")
    assert "--images" in raised.value.hint
    source = read_source(tmp_path / "set" / "captions.csv", tmp_path / "far")
    assert source.records == [ImageText(str(tmp_path / "far" / "z.jpg"), ("A dog",))]


def test_images_given_but_missing_or_of_another_set(tmp_path, read):
    with pytest.raises(DataError, match="the picture folder does not exist"):
        read("a.jpg,A dog\n", images=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="its pictures are not there"):  # although they stand beside the file
        read("a.jpg,A dog\n", images=tmp_path / "empty")


def test_some_missing_pictures_are_for_the_loader_to_find(read):
    assert [image for image, _, _ in read("gone.jpg,A ghost\na.jpg,A dog\n").rows] == ["gone.jpg", "a.jpg"]


def test_a_name_no_file_system_takes(read):
    assert "a.jpg" in read(f"{'x' * 3000}.jpg,A long name\na.jpg,A dog\n").captions


# One data set in every format


def one_data_set(random):
    """Captions by picture, in the order of pictures, and rows of picture and caption with the pictures mixed."""
    texts = [
        "A dog , running",
        "犬が走る",
        "it's 5\" wide",
        "a; b",
        "a | b",
        "#0 = 1",
        "👩‍👩‍👧 café",
        "[sic] a dog",
        "x" * 300,
    ]
    rows = [(name, f"{random.choice(texts)} {number}") for number, name in enumerate(random.choices(NAMES, k=30))]
    captions: dict[str, list[str]] = {}
    for name, text in rows:
        captions.setdefault(name, []).append(text)
    return captions, rows


def quoted(rows, delimiter):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    return stream.getvalue()


def lines(rows):
    return "".join(row + "\n" for row in rows)


def coco(captions, rows):
    ids = {name: number * 7 for number, name in enumerate(captions)}
    images = [{"id": identity, "file_name": name, "height": 1} for name, identity in ids.items()]
    annotations = [{"id": n, "image_id": ids[name], "caption": text} for n, (name, text) in enumerate(rows)]
    return json.dumps({"info": {}, "images": images, "annotations": annotations}, ensure_ascii=False)


def numbered(captions):
    most = max(map(len, captions.values()))
    header = ["image", *(f"caption_{n}" for n in range(most))]
    return [header, *([name, *texts, *[""] * (most - len(texts))] for name, texts in captions.items())]


FORMATS = {
    "Karpathy": lambda captions, rows: karpathy(*(entry(name, *texts, split="") for name, texts in captions.items())),
    "COCO": coco,
    "JSON list": lambda captions, rows: json.dumps([{"image": name, "caption": text} for name, text in rows], indent=1),
    "JSON list of lists": lambda captions, rows: json.dumps([{"path": n, "captions": t} for n, t in captions.items()]),
    "JSON lines": lambda captions, rows: lines(json.dumps({"file_name": name, "text": text}) for name, text in rows),
    "tokens": lambda captions, rows: lines(f"{name}#{n}\t{text}" for n, (name, text) in enumerate(rows)),
    "results.csv": lambda captions, rows: lines(
        ["image_name| comment_number| comment", *(f"{n}| 0| {t}" for n, t in rows)]
    ),
    "TSV": lambda captions, rows: lines(map("\t".join, rows)),
    "TSV with header": lambda captions, rows: lines(map("\t".join, [("filename", "caption"), *rows])),
    "TSV, caption first": lambda captions, rows: lines(f"{text}\t{name}" for name, text in rows),
    "Kaggle": lambda captions, rows: quoted([("image", "caption"), *rows], ","),
    "CSV": lambda captions, rows: quoted(rows, ","),
    "CSV with ;": lambda captions, rows: quoted(rows, ";"),
    "CSV of JSON lists": lambda captions, rows: quoted(
        [("raw", "image"), *((json.dumps(t), n) for n, t in captions.items())], ","
    ),
    "CSV of Python lists": lambda captions, rows: quoted(
        [("raw", "image"), *((str(t), n) for n, t in captions.items())], ","
    ),
    "CSV, numbered": lambda captions, rows: quoted(numbered(captions), ","),
    "TSV, numbered": lambda captions, rows: lines(map("\t".join, numbered(captions))),
}


@pytest.mark.parametrize("seed", range(5))
def test_one_data_set_in_every_format_gives_the_same_records(folder, seed):
    captions, rows = one_data_set(Random(seed))
    expected = [ImageText(str(folder / name), tuple(texts)) for name, texts in captions.items()]
    for form, write in FORMATS.items():
        (folder / "x.dat").write_text(write(captions, rows), encoding="utf-8", newline="")
        source = read_source(folder / "x.dat")
        assert (source.problems, list(source.records)) == ([], expected), form
        assert source.records == Records.of(expected)
    (folder / "x.dat").unlink()
    for name, texts in captions.items():
        (folder / name).with_suffix(".txt").write_text(lines(texts), encoding="utf-8")
    source = read_source(folder)
    assert source.form == "folder of pictures and .txt"
    in_order = sorted(expected, key=lambda record: record.image)
    assert list(source.records) == in_order


# Faults among good rows, for each format of lines


LONG = "word " * (MAX_WORDS + 1)
TABLE_FAULTS = [
    "a.jpg{0}",
    "{0}whose?",
    "a.jpg",
    "a.jpg{0} \0\x01",
    "a\0.jpg{0}x",
    f"a.jpg{{0}}{LONG}",
    b"a.jpg{0}\xff\xfe",
]
LINE_FORMATS = {
    "tokens": (
        "{}#0\t{}",
        None,
        ["no tab", "a.jpg\tx", "a.jpg#0\t", "a.jpg#zero\tx", b"a.jpg#0\t\xff", f"a.jpg#0\t{LONG}"],
    ),
    "TSV": ("{}\t{}", "\t", TABLE_FAULTS),
    "caption first": ("{1}\t{0}", "\t", ["x{0}", "no picture", "{0}a.jpg", b"\xff{0}a.jpg", f"{LONG}{{0}}a.jpg"]),
    "CSV": ("{},{}", ",", [*TABLE_FAULTS, 'a.jpg,"never closed', '"a.jpg,x']),
    "CSV quoted": ('"{}","{}"', ",", [*TABLE_FAULTS, '"a.jpg","never closed', '"a.jpg","']),
    "CSV with ;": ("{};{}", ";", [*TABLE_FAULTS, 'a.jpg;"never closed']),
    "results.csv": ("{}| 0| {}", None, ["a.jpg| 4   A dog", "a.jpg", "| 0| x", "a.jpg| 0|", b"a.jpg| 0| \xff"]),
    "JSON lines": (
        '{{"image": "{}", "caption": "{}"}}',
        None,
        [
            '{"image": "a.jpg", "capt',
            "x",
            "[]",
            "null",
            '{"image": "a.jpg"}',
            '{"image": 3, "caption": "x"}',
            '{"caption": "x"}',
            '{"image": "a.jpg", "caption": null}',
            '{"image": "", "caption": "x"}',
            b'{"image": "\xff"}',
            "[" * 5000,
        ],
    ),
}
HEADERS = {
    "TSV": "image\tcaption",
    "CSV": "image,caption",
    "CSV quoted": '"image","caption"',
    "CSV with ;": "image;caption",
}
HEADERS |= {"results.csv": "image_name| comment_number| comment"}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", LINE_FORMATS)
def test_faults_anywhere_cost_themselves_alone_and_are_told_by_their_lines(folder, form, seed):
    """Rows without fault give the same records as without the others, and every problem is of a faulty line."""
    random = Random(f"{form} {seed}")
    row, delimiter, faults = LINE_FORMATS[form]
    good = [row.format(random.choice(NAMES), f"picture number {number}").encode() for number in range(60)]
    header = [HEADERS[form].encode()] if form in HEADERS and random.random() < 0.5 else []
    end = random.choice([b"\n", b"\r\n"])
    file = folder / "x.dat"
    file.write_bytes(end.join([*header, *good]))
    expected = read_source(file)
    assert expected.problems == [] and expected.records.caption_counts().sum() == 60

    mixed = list(good)
    for _ in range(random.randint(1, 15)):
        fault = random.choice([*faults, ""])
        data = fault if isinstance(fault, bytes) else fault.encode()
        mixed.insert(random.randint(0, len(mixed)), b"bad:" + data.replace(b"{0}", (delimiter or "").encode()))
    bad_lines = {n for n, line in enumerate(mixed, 1 + len(header)) if line.startswith(b"bad:") and line != b"bad:"}
    file.write_bytes(end.join([*header, *(line.removeprefix(b"bad:") for line in mixed)]))
    source = read_source(file)
    assert {r.image: r.captions for r in source.records} == {r.image: r.captions for r in expected.records}
    told = [re.fullmatch(r"x\.dat:(\d+)( \(.*\))?", problem.where) for problem in source.problems]
    assert all(told), source.problems
    assert sorted(int(place[1]) for place in told if place) == sorted(bad_lines)


# Memory


MEASURE = """
import json, sys
from cliplet.data.readers import read_source
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
read_source(sys.argv[2])  # what is imported late
before = most()
if sys.argv[1] == "read":
    records = read_source(sys.argv[3]).records
elif sys.argv[1] == "json":
    records = json.load(open(sys.argv[3]))["annotations"]
else:
    records = open(sys.argv[3]).read().split("\\n")[:-1]
    records = [line.split("\\t") for line in records]
print(len(records), most() - before)
"""


@pytest.mark.parametrize("form", ["TSV", "COCO"])
def test_a_large_file_takes_a_fraction_of_what_it_would_whole(folder, form):
    """200,000 rows, and 50,000 pictures of two captions with all that COCO says of each."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell the most memory that a process took")
    small, large = folder / "small.tsv", folder / "large"
    if form == "TSV":
        large.write_text(
            lines(["a.jpg\tx", *(f"{n:09d}.jpg\tA dog runs over the wide green field {n}" for n in range(199_999))])
        )
        small.write_text("a.jpg\tx\n")
    else:
        said = {"license": 3, "coco_url": "http://images.cocodataset.org/" + "x" * 30, "height": 427, "width": 640}
        said |= {"flickr_url": "http://farm7.staticflickr.com/" + "x" * 30, "date_captured": "2013-11-14 17:02:52"}
        names = ["a.jpg", *(f"COCO_train2014_{number:012d}.jpg" for number in range(49_999))]
        images = [{"id": number, "file_name": name, **said} for number, name in enumerate(names)]
        captions = [f"A dog runs over the wide green field {number}" for number in range(100_000)]
        annotations = [{"image_id": n % 50_000, "id": n, "caption": caption} for n, caption in enumerate(captions)]
        large.write_text(json.dumps({"images": images, "annotations": annotations}))
        small.write_text(json.dumps({"images": images[:1], "annotations": annotations[:1]}))

    def measured(how):
        command = [sys.executable, "-c", MEASURE, how, small, large]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return map(int, done.stdout.split())

    (count, taken), (_, whole) = measured("read"), measured("json" if form == "COCO" else "list")
    assert count == (200_000 if form == "TSV" else 50_000)
    assert taken < whole * (0.3 if form == "COCO" else 0.7), f"{taken:,} kB, and {whole:,} kB for all at once"


# Flickr8k as its sources give it


@pytest.fixture(scope="module")
def flickr8k():
    if not (FLICKR8K / "dataset_flickr8k.json").is_file():
        pytest.skip("no Flickr8k to read: name its folder in CLIPLET_FLICKR8K")
    names = ("dataset_flickr8k.json", "captions.txt", "Flickr8k.token.txt")
    return {name: read_source(FLICKR8K / name) for name in names}


def test_flickr8k_in_three_formats_is_one_data_set(flickr8k):
    forms = [source.form for source in flickr8k.values()]
    assert forms == ["Karpathy JSON", "CSV", "Flickr token file"]
    sets = [{(r.image, r.captions, r.split) for r in source.records} for source in flickr8k.values()]
    assert sets[0] == sets[1] == sets[2]
    for source in flickr8k.values():
        assert source.problems == []
        assert len(source.records) == len(sets[0]) == 7000
        assert sum(len(record.captions) for record in source.records) == 35_000
        assert source.splits == {"train": 6000, "val": 1000}


def test_flickr8ks_pictures_are_where_the_records_say(flickr8k):
    records = flickr8k["captions.txt"].records
    assert all(Path(record.image).is_file() for record in records[:: len(records) // 50])


def test_the_folder_of_flickr8k_is_read_by_its_json(flickr8k):
    assert read_source(FLICKR8K).records == flickr8k["dataset_flickr8k.json"].records
