"""Flickr's and Kaggle's tables, and anyone's TSV or CSV: whatever a row suffers, it suffers alone."""

import csv
import io
import json
import os

import pytest

from cliplet.data.readers import read_source
from cliplet.errors import DataError

NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")


@pytest.fixture
def read(tmp_path):
    """Writes a table beside pictures and reads it; gives captions by name, and reasons by place."""
    for name in NAMES:
        (tmp_path / name).write_bytes(b"picture")

    def read(content, name="x.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        read.source = source = read_source(tmp_path / name)
        problems = {problem.where: problem.reason for problem in source.problems}
        assert len(problems) == len(source.problems), "one place, two problems"
        return {os.path.relpath(r.image, tmp_path): r.captions for r in source.records}, problems

    return read


def csv_text(*rows, **options):
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", **options).writerows(rows)
    return stream.getvalue()


# Flickr30k's results.csv, its later CSV, and token files


RESULTS = (
    "image_name| comment_number| comment\n"
    "a.jpg| 0| Two young guys with shaggy hair look at their hands .\n"
    "a.jpg| 1| Two men , one in a | shirt , stand in a yard .\n"
    "b.jpg| 4   A dog runs across the grass .\n"
    "b.jpg| 3| A dog runs on the green grass near a wooden fence .\n"
)


@pytest.mark.parametrize("content", [RESULTS, RESULTS.replace("\n", "\r\n"), "\ufeff" + RESULTS])
def test_results_csv_with_its_broken_row(read, content):
    captions, problems = read(content, "results.csv")
    assert read.source.form == "table with |"
    assert captions == {
        "a.jpg": (
            "Two young guys with shaggy hair look at their hands .",
            "Two men , one in a | shirt , stand in a yard .",
        ),
        "b.jpg": ("A dog runs on the green grass near a wooden fence .",),
    }
    assert problems == {"results.csv:4": "has 2 columns where 3 are expected"}


def test_results_csv_without_its_header(read):
    captions, problems = read(RESULTS.partition("\n")[2], "results.csv")
    assert captions["b.jpg"] == ("A dog runs on the green grass near a wooden fence .",)
    assert captions["a.jpg"][1] == "Two men , one in a | shirt , stand in a yard ."
    assert problems == {"results.csv:3": "has 2 columns where 3 are expected"}


def test_rows_of_picture_number_and_caption(read):
    rows = [("a.jpg", "0", "A dog"), ("b.jpg", "0", "12 boats"), ("a.jpg", "1", "A brown dog")]
    for delimiter in "\t,;|":
        content = "".join(delimiter.join(row) + "\n" for row in rows)
        assert read(content) == ({"a.jpg": ("A dog", "A brown dog"), "b.jpg": ("12 boats",)}, {})


FLICKR30K = [
    (["A dog , running", 'The "big" dog'], [0, 1], "train", "a.jpg", 0),
    (["It's a boat", "the boat's sail"], [2, 3], "val", "b.jpg", 1),
    (["ein 犬", "a\ttab and a\nline"], [4, 5], "test", "c.jpg", 2),
]


@pytest.mark.parametrize("printed", [json.dumps, str, lambda texts: "[" + "\n ".join(map(repr, texts)) + "]"])
def test_captions_as_a_list_by_json_python_or_numpy(read, printed):
    header = ("raw", "sentids", "split", "filename", "img_id")
    rows = [(printed(captions), str(numbers), *others) for captions, numbers, *others in FLICKR30K]
    captions, problems = read(csv_text(header, *rows), "flickr_annotations_30k.csv")
    assert captions == {
        "a.jpg": ("A dog , running", 'The "big" dog'),
        "b.jpg": ("It's a boat", "the boat's sail"),
        "c.jpg": ("ein 犬", "a tab and a line"),
    }
    assert problems == {} and read.source.splits == {"train": 1, "val": 1, "test": 1}


def test_lists_that_are_empty_broken_or_hold_others_than_texts(read):
    cells = ['["A dog", null, 5, ""]', "[]", '["A cat", "cut sho', "['A tree', nan]", "[12]"]
    captions, problems = read(csv_text(("image", "caption"), *zip(NAMES, cells, strict=True)))
    assert captions == {"a.jpg": ("A dog",), "d.jpg": ("A tree",), "e.jpg": ("[12]",)}
    assert problems == {
        "x.csv:2 (a.jpg), caption 1": "its caption is no text but NoneType",
        "x.csv:2 (a.jpg), caption 2": "its caption is no text but int",
        "x.csv:2 (a.jpg), caption 3": "its caption is empty",
        "x.csv:4 (c.jpg)": "its list of captions is broken",
        "x.csv:5 (d.jpg), caption 1": "its caption is no text but NoneType",
        "x.csv: b.jpg": "has no usable caption",
        "x.csv: c.jpg": "has no usable caption",
    }


@pytest.mark.parametrize("text", ["[sic] a dog", "[A] dog", "a [dog]", "[", "[]a", "[[dog]]", "[1] [2]"])
def test_brackets_make_no_list(read, text):
    assert read(csv_text(("image", "caption"), ("a.jpg", text))) == ({"a.jpg": (text,)}, {})


@pytest.mark.parametrize(
    "bomb", ["1+" * 300_000, "[" * 300_000, "'a' " * 100_000, "-" * 300_000, "'" + "\\'" * 300_000]
)
def test_a_list_made_to_harm_costs_itself_alone(read, bomb):
    """Python's own parser can be ended with the whole process by such texts."""
    captions, problems = read(f"image\tcaption\na.jpg\t['a', {bomb}1]\nb.jpg\tA boat\n")
    assert captions == {"b.jpg": ("A boat",)}
    assert problems["x.csv:2 (a.jpg)"] == "its list of captions is broken"


def test_escapes_of_a_list_are_read_by_the_rules_of_its_writer(read):
    captions, _ = read("image\tcaption\na.jpg\t[\"\\ud83d\\ude00 \\/\"]\nb.jpg\t['caf\\xe9', u'it\\'s']\n")
    assert captions == {"a.jpg": ("😀 /",), "b.jpg": ("café", "it's")}


@pytest.mark.parametrize("name", ["results_20130124.token", "Flickr8k.token.txt", "any.csv"])
@pytest.mark.parametrize("bad", ["no tab", "a.jpg#x\tA dog", "a.jpg\tA dog", "#0\tA dog", b"a.jpg#9\t\xff"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_token_line_costs_itself_alone_even_the_first(read, name, bad, place):
    lines = [b"a.jpg#0\tA dog", b"b.jpg#0\tA boat"]
    lines.insert(place, bad if isinstance(bad, bytes) else bad.encode())
    captions, problems = read(b"\n".join(lines), name)
    assert read.source.form == "Flickr token file"
    assert captions == {"a.jpg": ("A dog",), "b.jpg": ("A boat",)}
    assert list(problems) == [f"{name}:{place + 1}"]


# What the columns are


@pytest.mark.parametrize(
    "header",
    [
        "image\tcaption",
        "IMAGE_PATH\tText",
        '"filename"\t"sentence"',
        " file_name \t raw ",
        "image_name\tcaption_0",
    ],
)
def test_headers_in_every_delimiter(read, header):
    for delimiter in "\t,;|":
        content = header.replace("\t", delimiter) + f"\na.jpg{delimiter}A dog\nb.jpg{delimiter}A boat\n"
        assert read(content) == ({"a.jpg": ("A dog",), "b.jpg": ("A boat",)}, {})


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_the_caption_may_stand_first(read, delimiter, count):
    rows = [f"caption {number}{delimiter}{'ab'[number % 2]}.jpg\n" for number in range(count)]
    captions, problems = read("".join(rows))
    expected = {"a.jpg": tuple(f"caption {n}" for n in range(0, count, 2))}
    if count > 1:
        expected["b.jpg"] = tuple(f"caption {n}" for n in range(1, count, 2))
    assert (captions, problems) == (expected, {})


@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [("A caption\t", "names no picture"), ("no delimiter", "has 1 columns where 2 are expected"), ("\t", None)],
)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_one_bad_row_does_not_change_what_the_columns_are(read, delimiter, bad, reason, place):
    rows = ["A dog\ta.jpg", "A boat\tb.jpg", "A cat\tc.jpg"]
    rows.insert(place, bad)
    captions, problems = read("\n".join(rows).replace("\t", delimiter))
    assert captions == {"a.jpg": ("A dog",), "b.jpg": ("A boat",), "c.jpg": ("A cat",)}
    if (place, reason) == (0, "names no picture"):  # a header of unknown names may look like this
        reason = problems[f"x.csv:{place + 1}"]
        assert reason.startswith("names its columns A caption, , none of which is known; column 2 is taken")
    assert problems == ({f"x.csv:{place + 1}": reason} if reason else {})


@pytest.mark.parametrize("bad", ["\tno picture", "", "e.jpg"])
def test_a_header_of_unknown_names_is_told_and_no_record(read, bad):
    captions, problems = read(f"foto\tbildtext\textra\na.jpg\tEin Hund\tx\n{bad}\nb.jpg\tEin Boot\ty\n", "x.tsv")
    assert captions == {"a.jpg": ("Ein Hund",), "b.jpg": ("Ein Boot",)}
    assert problems.pop("x.tsv:1") == (
        "names its columns foto, bildtext, extra, none of which is known; "
        "column 1 is taken for the picture and column 2 for the caption"
    )
    assert set(problems) <= {"x.tsv:3"} and bool(problems) == bool(bad)


def test_numbered_captions_in_the_columns_of_a_row(read):
    rows = [
        ("image", "caption_0", "caption_1", "caption_2", "caption_3", "caption_4", "split"),
        ("a.jpg", "A dog", "A brown dog", "", " ", "A dog, running", "train"),
        ("b.jpg", "", "", "", "", "", "val"),
        ("c.jpg", "word " * 1001, "A cat", "", "", "\x01", "val"),
    ]
    for text in (csv_text(*rows), csv_text(*rows, delimiter=";"), "".join("\t".join(row) + "\n" for row in rows)):
        captions, problems = read(text)
        assert captions == {"a.jpg": ("A dog", "A brown dog", "A dog, running"), "c.jpg": ("A cat",)}
        assert read.source.splits == {"train": 1, "val": 1}
        assert problems == {
            "x.csv:4 (c.jpg), caption 0": "its caption has 1,001 words, more than 1,000",
            "x.csv:4 (c.jpg), caption 2": "its caption is empty",
            "x.csv: b.jpg": "has no usable caption",
        }


def test_as_many_splits_as_pictures(read):
    """A column of that name may hold anything, an id of each row for one."""
    text = csv_text(("image", "caption", "split"), *[("a.jpg", "A dog", f"part {n}") for n in range(33_000)])
    with pytest.raises(DataError, match="33,000 splits are named") as raised:
        read(text)
    assert "another name" in raised.value.hint


def test_what_pandas_writes_with_its_index(read):
    for delimiter in ",\t;":
        text = csv_text(("", "image", "caption"), (0, "a.jpg", "A dog"), (1, "b.jpg", "A, b"), delimiter=delimiter)
        assert read(text) == ({"a.jpg": ("A dog",), "b.jpg": ("A, b",)}, {})


def test_semicolons_among_commas(read):
    for header in ("", "image;caption\n"):
        captions, problems = read(f'{header}a.jpg;A dog, running, fast\nb.jpg;A boat, red\nc.jpg;"A cat; asleep"\n')
        assert captions == {
            "a.jpg": ("A dog, running, fast",),
            "b.jpg": ("A boat, red",),
            "c.jpg": ("A cat; asleep",),
        }
        assert problems == {} and read.source.form == "CSV with ;"


def test_delimiters_of_others_within_captions(read):
    captions = ["one\ttwo; three, four", "a | b, c; d", "x; y"]
    for delimiter in ",;":
        text = csv_text(*zip(NAMES, captions, strict=False), delimiter=delimiter)
        found, problems = read(text)
        assert found == {name: (" ".join(c.split()),) for name, c in zip(NAMES, captions, strict=False)}
        assert problems == {}


# Columns found by what stands in them


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize(
    "row",
    [
        lambda n, picture, caption: (n, picture, caption),
        lambda n, picture, caption: (picture, "train", caption),
        lambda n, picture, caption: (caption, "640", "outdoor scene", picture),
        lambda n, picture, caption: (f"http://x.org/{n}.jpg", picture, "480", caption, "CC BY 2.0"),
    ],
)
def test_columns_without_a_header_are_known_by_what_stands_in_them(read, row, delimiter):
    captions = ["A dog runs far", "Two men on a boat", "A cat that sleeps", "A tall tree", "The bus waits here"]
    rows = [row(n, *pair) for n, pair in enumerate(zip(NAMES, captions, strict=True))]
    expected = {name: (caption,) for name, caption in zip(NAMES, captions, strict=True)}
    assert read(csv_text(*rows, delimiter=delimiter)) == (expected, {})


def test_a_column_of_splits_is_known_by_what_stands_in_it(read):
    read("a.jpg\ttrain\ta dog\nb.jpg\trestval\ta red boat\nc.jpg\ttest\ta cat\n")
    assert sum(read.source.splits.values()) == 3 and read.source.splits["test"] == 1
    read("image,caption,part\na.jpg,dog,train\nb.jpg,boat,val\n")
    assert read.source.splits == {"train": 1, "val": 1}


@pytest.mark.parametrize("rows", [["a.jpg,A dog, running far away"], ["a.jpg,A dog, running", "b.jpg,A boat, red"]])
def test_an_unquoted_comma_begins_no_column(read, rows):
    captions, problems = read("\n".join(rows))
    assert [texts[0] for texts in captions.values()] == [row.partition(",")[2] for row in rows] and problems == {}


def test_unquoted_commas_in_most_captions_behind_a_number(read):
    captions, problems = read("0,a.jpg,A dog, running far\n1,b.jpg,A boat\n2,c.jpg,A cat, asleep, on a bed\n")
    assert captions == {"a.jpg": ("A dog, running far",), "b.jpg": ("A boat",), "c.jpg": ("A cat, asleep, on a bed",)}
    assert problems == {}


@pytest.mark.parametrize(
    "header",
    ["image,width,height,description", "image_id,id,size,Prompt", "img,w,h,alt", "img_path,w,h,caption_text"],
)
def test_more_names_of_pictures_and_captions(read, header):
    captions, problems = read(f"{header}\na.jpg,640,480,A dog\nb.jpg,640,480,A boat\n")
    assert (captions, problems) == ({"a.jpg": ("A dog",), "b.jpg": ("A boat",)}, {})


def test_a_picture_column_with_numbers_is_none(read):
    expected = {"a.jpg": ("A dog",), "b.jpg": ("A boat",)}
    captions, problems = read("image_id,foto,description\n7,a.jpg,A dog\n8,b.jpg,A boat\n")
    assert captions == expected
    assert problems == {
        "x.csv:1": "names its columns image_id, foto, description, not all of which are known; "
        "column 2 is taken for the picture"
    }
    captions, problems = read("id,image,worte\n7,a.jpg,A dog\n8,b.jpg,A boat\n")
    assert captions == expected
    assert list(problems.values()) == [
        "names its columns id, image, worte, not all of which are known; column 3 is taken for the caption"
    ]


def test_a_column_of_ids_is_no_picture_and_no_caption(read):
    with pytest.raises(DataError, match=r"no column holds names of pictures.+ are id, image_id, description") as raised:
        read("id,image_id,description\n1,0017,A dog runs\n2,0018,A red boat\n")
    assert "as in image,caption" in raised.value.hint
    with pytest.raises(DataError, match="no column holds names of pictures"):
        read("image_id,caption\n0017,A dog runs\n0018,A red boat\n")
    captions, _ = read("id,image_id,description\n1,a.jpg,A dog runs\n2,b.jpg,A red boat\n")
    assert captions == {"a.jpg": ("A dog runs",), "b.jpg": ("A red boat",)}


@pytest.mark.parametrize("header", ["", "name\twidth\tkind\n"])
def test_a_table_without_sentences_is_refused(read, header):
    with pytest.raises(DataError, match=r"x\.tsv:1: no column holds captions.+ its columns are") as raised:
        read(f"{header}a.jpg\t640\tRGB\nb.jpg\t480\tRGB\n", "x.tsv")
    assert "image<TAB>caption" in raised.value.hint


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_two_columns_need_neither_sentences_nor_endings(read, delimiter, tmp_path):
    assert read(f"a.jpg{delimiter}dog\nb.jpg{delimiter}cat\n") == ({"a.jpg": ("dog",), "b.jpg": ("cat",)}, {})
    assert read(f"dog{delimiter}a.jpg\ncat{delimiter}b.jpg\n")[0] == {"a.jpg": ("dog",), "b.jpg": ("cat",)}
    (tmp_path / "0017").write_bytes(b"picture")
    assert read(f"0017{delimiter}A dog\n0018{delimiter}A cat\n")[0] == {"0017": ("A dog",), "0018": ("A cat",)}


def test_a_caption_and_numbered_ones_are_all_read(read):
    text = csv_text(("image", "caption", "caption_1", "title"), ("a.jpg", "A dog", "A brown dog", "Rex"))
    assert read(text) == ({"a.jpg": ("A dog", "A brown dog")}, {})
    assert read(text.replace("caption,", "description,"))[0] == {"a.jpg": ("A brown dog",)}


# Line ends, paths and addresses of elsewhere


@pytest.mark.parametrize("rows", ["image,caption\ra.jpg,A dog\rb.jpg,A boat", "a.jpg#0\tA dog\rb.jpg#0\tA boat\r"])
def test_line_ends_of_an_old_mac_are_told(read, rows):
    with pytest.raises(DataError, match="carriage return only, as on an old Mac") as raised:
        read(rows)
    assert r"tr '\r' '\n' < x.csv" in raised.value.hint


@pytest.mark.parametrize("header", ["", "image,caption\n"])
def test_paths_from_windows(read, header, tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"picture")
    captions, problems = read(f"{header}images\\a.jpg,A dog\nimages/sub\\b.jpg,A boat\n")
    assert captions == {"images/a.jpg": ("A dog",), "images/sub/b.jpg": ("A boat",)} and problems == {}


@pytest.mark.skipif(os.name == "nt", reason="a backslash is no part of a name there")
def test_a_backslash_may_be_part_of_a_name(read, tmp_path):
    (tmp_path / "x\\a.jpg").write_bytes(b"picture")
    assert read("x\\a.jpg,A dog\nx\\b.jpg,A boat\n")[0] == {"x\\a.jpg": ("A dog",), "x\\b.jpg": ("A boat",)}


@pytest.mark.parametrize("rows", ["image\tcaption\n{}\tA dog\n", "{}\tA dog\n", "7\t{}\tA dog\n", "url\ttext\n{}\tA\n"])
@pytest.mark.parametrize("address", ["http://x.org/a.jpg", "https://x.org/a?id=7"])
def test_addresses_are_no_pictures(read, rows, address):
    with pytest.raises(DataError, match="holds no pictures but only their addresses: http") as raised:
        read(rows.format(address), "x.tsv")
    assert "img2dataset" in raised.value.hint


# Rows and their faults


def test_rows_without_a_picture_are_each_told_even_the_first(read):
    captions, problems = read(",A dog\n,A cat\na.jpg,A dog\n , A tree\n,A bus\n")
    assert captions == {"a.jpg": ("A dog",)}
    assert problems == {f"x.csv:{line}": "names no picture" for line in (1, 2, 4, 5)}


@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
def test_a_first_row_without_delimiter_costs_itself_alone(read, delimiter):
    rows = [("image", "caption"), ("a.jpg", "A dog"), ("b.jpg", "A boat")]
    for header in (0, 1):
        captions, problems = read("my captions\n" + csv_text(*rows[1 - header :], delimiter=delimiter))
        assert captions == {"a.jpg": ("A dog",), "b.jpg": ("A boat",)}
        assert problems == {"x.csv:1": "has 1 columns where 2 are expected"}


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_forgotten_quote_never_swallows_the_row_below(read, delimiter):
    text = 'image,caption\na.jpg,"A dog\nb.jpg,A boat"\nc.jpg,A cat\n'.replace(",", delimiter)
    captions, problems = read(text)
    assert captions["c.jpg"] == ("A cat",) and "a.jpg" not in captions
    assert problems == {"x.csv:2": "is not CSV: a quote is never closed"}


@pytest.mark.parametrize(
    "caption", ["A dog\rruns, far", 'A dog\rruns, "far"', "A dog\vruns, far", '"A dog\r\rruns, far"']
)
def test_strange_line_ends_within_a_row_end_nothing(read, caption):
    captions, problems = read(f"image,caption\na.jpg,{caption}\nb.jpg,A boat, red\n")
    assert captions["b.jpg"] == ("A boat, red",)
    assert ("a.jpg" in captions) != bool(problems) and set(problems) <= {"x.csv:2"}
    assert not captions.get("a.jpg") or "".join(captions["a.jpg"]).replace('"', "") == "A dog runs, far"


def test_a_quoted_cell_before_an_unquoted_caption(read):
    captions, problems = read(
        "image,author,caption\n"
        'a.jpg, "Smith, J", A dog, running\n'
        'b.jpg,"Smith, J", A boat, red\n'
        "c.jpg,Smith,A cat, asleep,,\n"
        'd.jpg,Smith,"A tree", tall\n'
    )
    assert {name: "".join(texts).replace(" ", "") for name, texts in captions.items()} == {
        "a.jpg": "Adog,running",
        "b.jpg": "Aboat,red",
        "c.jpg": "Acat,asleep",
        "d.jpg": "Atree,tall",
    }
    assert problems == {}


@pytest.mark.parametrize("caption", ["A\0dog", "A \x1b[31mdog", "A\x9fdog", "\0A\0\0dog\0"])
def test_zeros_and_control_characters_in_captions(read, caption):
    for row in (f"a.jpg,{caption}\n", f'a.jpg,"{caption}"\n'):
        captions, problems = read(f"image,caption\n{row}b.jpg,A boat\n")
        assert captions["b.jpg"] == ("A boat",) and problems == {}
        assert captions["a.jpg"][0].replace("[31m", "").split() == ["A", "dog"]


def test_captions_of_any_script(read):
    texts = ("犬が走る", "كلب يجري", "собака", "👩‍👩‍👧 🐕", "नमस्ते")
    expected = {name: (text,) for name, text in zip(NAMES, texts, strict=True)}
    for delimiter in "\t,;":
        for header in ([], [("image", "caption")]):
            assert read(csv_text(*header, *zip(NAMES, texts, strict=True), delimiter=delimiter)) == (expected, {})


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_a_table_of_one_line(read, delimiter):
    assert read(f"a.jpg{delimiter}A dog") == ({"a.jpg": ("A dog",)}, {})


def test_a_table_without_any_delimiter_is_refused(read):
    with pytest.raises(DataError, match=r"x\.csv:2: expected a picture and a caption, found \['a\.jpg'\]"):
        read("\na.jpg\nb.jpg\n")
