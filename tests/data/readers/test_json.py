"""Lists and lines of JSON with an image and a caption or several: what is good comes out, what is bad is named."""

import gzip
import json
import os
from pathlib import Path

import pytest

from cliplet.data.readers import read_source
from cliplet.errors import DataError

SHARED = Path(os.environ.get("CLIPLET_SHARED", Path(__file__).resolve().parents[4] / "shared"))


@pytest.fixture
def read(tmp_path):
    """Writes a file beside pictures and reads it; gives captions by name, and reasons by place."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"picture")

    def read(content, name="x.json"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        read.source = source = read_source(tmp_path / name)
        problems = {problem.where: problem.reason for problem in source.problems}
        assert len(problems) == len(source.problems), "one place, two problems"
        return {os.path.relpath(r.image, tmp_path): r.captions for r in source.records}, problems

    return read


def as_list(*items):
    return json.dumps(items), "x.json"


def as_lines(*items):
    return "".join(json.dumps(item) + "\n" for item in items), "x.jsonl"


FORMS = {"list": (as_list, "x.json: item {}", "JSON list"), "lines": (as_lines, "x.jsonl:{}", "JSON lines")}


@pytest.fixture(params=FORMS)
def written(request, read):
    """Reads objects written in either form; places are those of the form, for the objects' numbers from 0."""
    write, place, form = FORMS[request.param]

    def of(*items):
        captions, problems = read(*write(*items))
        assert read.source.form == form
        return captions, problems

    of.place = lambda number: place.format(number + (form == "JSON lines"))
    of.name = write()[1]
    return of


# Lists and lines alike


def test_one_caption_or_many(written):
    captions, problems = written(
        {"image": "b.jpg", "caption": "A boat"},
        {"image": "a.jpg", "captions": ["A dog", "A brown dog"]},
        {"image": "b.jpg", "caption": "A red boat"},
        {"image": "c.jpg", "caption": ["A cat"]},
    )
    assert list(captions.items()) == [
        ("b.jpg", ("A boat", "A red boat")),
        ("a.jpg", ("A dog", "A brown dog")),
        ("c.jpg", ("A cat",)),
    ]
    assert problems == {}


@pytest.mark.parametrize("image", ["image", "file_name", "filename", "filepath", "Image_Path", "path"])
@pytest.mark.parametrize("caption", ["caption", "captions", "TEXT", "sentence", "sentences", "raw"])
def test_the_usual_names_of_keys(written, image, caption):
    captions, problems = written({"id": 1, image: "a.jpg", "url": "http://x", caption: "A dog", "score": 0.5})
    assert (captions, problems) == ({"a.jpg": ("A dog",)}, {})


def test_sentences_as_karpathy_has_them(written):
    sentences = [{"raw": "A dog", "tokens": ["no"]}, {"tokens": ["a", "brown", "dog"]}, "A big dog"]
    assert written({"filename": "a.jpg", "sentences": sentences})[0] == {"a.jpg": ("A dog", "a brown dog", "A big dog")}


def test_splits_are_named_or_not(written, read):
    written(
        {"image": "a.jpg", "caption": "A dog", "split": "train"}, {"image": "b.jpg", "caption": "x", "split": "val"}
    )
    assert read.source.splits == {"train": 1, "val": 1}
    written({"image": "a.jpg", "caption": "A dog"}, {"image": "b.jpg", "caption": "x", "split": None})
    assert read.source.splits == {"": 2}


def test_numbered_captions_of_which_some_are_not_there(written):
    captions, problems = written(
        {"image": "a.jpg", "caption_0": "A dog", "caption_1": "", "caption_2": None, "caption_3": "A brown dog"},
        {"image": "b.jpg", "caption_0": None, "caption_1": ""},
        {"image": "c.jpg", "caption_0": 5, "caption_1": "A cat", "caption_2": " "},
    )
    assert captions == {"a.jpg": ("A dog", "A brown dog"), "c.jpg": ("A cat",)}
    assert problems == {
        f"{written.name}: b.jpg": "has no usable caption",
        f"{written.place(2)} (c.jpg), caption 0": "its caption is no text but int",
        f"{written.place(2)} (c.jpg), caption 2": "its caption is empty",
    }


def test_each_bad_caption_of_a_list_has_a_place_of_its_own(written):
    captions, problems = written(
        {"image": "a.jpg", "captions": ["", "A dog", None, ["A cat"], {"text": "?"}, "\n"]},
        {"image": "b.jpg", "captions": []},
        {"image": "c.jpg", "captions": {"0": "A cat"}},
    )
    assert captions == {"a.jpg": ("A dog",)}
    assert problems == {
        f"{written.place(0)} (a.jpg), caption 0": "its caption is empty",
        f"{written.place(0)} (a.jpg), caption 2": "its caption is no text but NoneType",
        f"{written.place(0)} (a.jpg), caption 3": "its caption is no text but list",
        f"{written.place(0)} (a.jpg), caption 4": "its caption is no text but NoneType",
        f"{written.place(0)} (a.jpg), caption 5": "its caption is empty",
        f"{written.place(2)} (c.jpg)": "its caption is no text but NoneType",
        f"{written.name}: b.jpg": "has no usable caption",
        f"{written.name}: c.jpg": "has no usable caption",
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "is no object with image and caption"),
        ("a.jpg", "is no object with image and caption"),
        (["a.jpg", "A dog"], "is no object with image and caption"),
        ({}, "has none of image, image_name, image_path, image_file, file, ..."),
        ({"caption": "A dog"}, "has none of image, image_name, image_path, image_file, file, ..."),
        ({"image": 5, "caption": "A dog"}, "its image is no text"),
        ({"Image": {"path": "a.jpg"}, "caption": "A dog"}, "its Image is no text"),
        ({"image": "", "caption": "A dog"}, "names no picture"),
        ({"image": "a\0.jpg", "caption": "A dog"}, "names no picture"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_object_costs_itself_alone_even_the_first(written, bad, reason, place):
    items = [{"image": "a.jpg", "caption": "A dog"}, {"image": "b.jpg", "caption": "A boat"}]
    items.insert(place, bad)
    assert written(*items) == ({"a.jpg": ("A dog",), "b.jpg": ("A boat",)}, {written.place(place): reason})


def test_a_caption_under_an_unknown_key_is_told_though_the_picture_has_others(written):
    captions, problems = written({"image": "a.jpg", "caption": "A dog"}, {"image": "a.jpg", "capton": "A brown dog"})
    assert captions == {"a.jpg": ("A dog",)}
    assert problems == {f"{written.place(1)} (a.jpg)": "has none of caption, captions, caption_text, ..."}


def test_pictures_without_names_in_a_row_are_each_told(written):
    _, problems = written(
        *[{"image": " ", "caption": str(n)} for n in range(3)], {"image": "a.jpg", "caption": "A dog"}
    )
    assert problems == {written.place(number): "names no picture" for number in range(3)}


def test_captions_of_any_script_and_with_control_characters(written):
    captions, problems = written(
        {
            "image": "a.jpg",
            "captions": ["犬が走る", "كلب", "собака", "👩‍👩‍👧 🐕", "a\u2028dog", "a\x00dog\x1f", "[1] a dog"],
        }
    )
    assert captions == {"a.jpg": ("犬が走る", "كلب", "собака", "👩‍👩‍👧 🐕", "a dog", "a dog", "[1] a dog")}
    assert problems == {}


def test_numbers_larger_than_any_machine_number_stand_in_nobodys_way(written):
    item = {"id": 10**40, "score": 1e300, "image": "a.jpg", "caption": "A dog"}
    assert written(item) == ({"a.jpg": ("A dog",)}, {})


def test_a_caption_and_numbered_ones_are_all_read(written):
    captions, problems = written(
        {"image": "a.jpg", "caption": "A dog", "caption_1": "A brown dog", "title": "Rex"},
        {"image": "b.jpg", "caption": ["A boat", "A red boat"], "caption_1": "A ship"},
    )
    assert captions == {"a.jpg": ("A dog", "A brown dog"), "b.jpg": ("A boat", "A red boat", "A ship")}
    assert problems == {}


def test_keys_that_mean_the_picture_where_they_hold_its_name(written):
    captions, problems = written(
        {"image_id": "a.jpg", "description": "A dog"},
        {"image_id": 17, "img_path": "b.jpg", "prompt": "A boat"},
        {"image_id": "c.jpg", "image": "c.jpg", "alt": "A cat"},
        {"image_id": "000017", "caption": "A tree"},
    )
    assert captions == {"a.jpg": ("A dog",), "b.jpg": ("A boat",), "c.jpg": ("A cat",)}
    assert list(problems) == [written.place(3)]


def test_paths_from_windows(written, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(b"picture")
    expected = {f"sub/{name}.jpg": ("A dog",) for name in "ab"}
    assert written(*[{"image": f"sub\\{name}.jpg", "caption": "A dog"} for name in "ab"]) == (expected, {})
    if os.name != "nt":
        (tmp_path / "sub\\a.jpg").write_bytes(b"picture")
        assert list(written({"image": "sub\\a.jpg", "caption": "A dog"})[0]) == ["sub\\a.jpg"]


@pytest.mark.parametrize("of", ["coco", "karpathy"])
def test_paths_from_windows_in_other_forms(read, tmp_path, of):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(b"picture")
    coco = {
        "images": [{"id": 1, "file_name": "sub\\a.jpg"}],
        "annotations": [{"image_id": 1, "caption": "A dog"}],
    }
    karpathy = {"images": [{"filename": "sub\\a.jpg", "split": "train", "sentences": [{"raw": "A dog"}]}]}
    assert read(json.dumps(coco if of == "coco" else karpathy)) == ({"sub/a.jpg": ("A dog",)}, {})


def test_addresses_are_no_pictures(written):
    with pytest.raises(DataError, match=r"only their addresses: http://x\.org/0\.jpg") as raised:
        written(*[{"image": f"http://x.org/{n}.jpg", "caption": "A dog"} for n in range(3)])
    assert "img2dataset" in raised.value.hint


# Lines


@pytest.mark.parametrize("ending", ["x.json", "x.jsonl", "x.ndjson", "captions.txt"])
def test_json_lines_are_known_by_what_they_hold(read, ending):
    content = as_lines({"image": "a.jpg", "caption": "A dog"}, {"image": "b.jpg", "caption": "A boat"})[0]
    for variant in (content, content.replace("\n", "\r\n"), "\ufeff" + content, content.replace("\n", "\n\n")):
        assert read(variant, ending) == ({"a.jpg": ("A dog",), "b.jpg": ("A boat",)}, {})
        assert read.source.form == "JSON lines"


@pytest.mark.parametrize(
    "bad",
    ['{"image": "c.jpg", "capt', "no JSON", "{}{}", "[1, 2", b'{"image": "\xff"}', '"' + "[" * 20_000, "[" * 20_000],
)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("ending", ["x.json", "x.jsonl"])
def test_a_bad_line_costs_itself_alone_even_the_first(read, bad, place, ending):
    lines = [b'{"image": "a.jpg", "caption": "A dog"}', b'{"image": "b.jpg", "caption": "A boat"}']
    lines.insert(place, bad if isinstance(bad, bytes) else bad.encode())
    captions, problems = read(b"\n".join(lines) + b"\n", ending)
    assert captions == {"a.jpg": ("A dog",), "b.jpg": ("A boat",)}
    assert list(problems) == [f"{ending}:{place + 1}"]
    assert problems[f"{ending}:{place + 1}"].startswith("is not JSON: ")


def test_a_last_line_cut_short_at_any_byte(read):
    first, last = b'{"image": "a.jpg", "caption": "A dog"}\n', '{"image": "b.jpg", "caption": "é"}'.encode()
    for length in range(1, len(last)):
        captions, problems = read(first + last[:length], "x.jsonl")
        assert captions == {"a.jpg": ("A dog",)} and list(problems) == ["x.jsonl:2"]
    assert read(first + last, "x.jsonl") == ({"a.jpg": ("A dog",), "b.jpg": ("é",)}, {})


def test_a_line_longer_than_what_is_looked_at(read):
    captions = [f"caption {number}" for number in range(10_000)]
    content = as_lines({"image": "a.jpg", "captions": captions}, {"image": "b.jpg", "caption": "A boat"})[0]
    assert read(content, "x.jsonl") == ({"a.jpg": tuple(captions), "b.jpg": ("A boat",)}, {})


def test_line_separators_within_a_text_end_no_line(read):
    item = {"image": "a.jpg", "caption": "one\u2028two\x85three\u2029four"}
    content = "".join(json.dumps(item, ensure_ascii=False) + "\n" for _ in range(2))
    assert read(content, "x.json") == ({"a.jpg": ("one two three four",) * 2}, {})
    assert read.source.form == "JSON lines"


# Lists


@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_lists_in_any_layout(read, layout):
    items = [{"image": "a.jpg", "captions": ["A dog", "Ein Hund äugt"]}, {"image": "b.jpg", "caption": "A boat"}]
    for content in (json.dumps(items, **layout), "\n " + json.dumps(items, **layout) + "\n\n"):
        assert read(content) == ({"a.jpg": ("A dog", "Ein Hund äugt"), "b.jpg": ("A boat",)}, {})
        assert read.source.form == "JSON list"


@pytest.mark.parametrize("content", ['[{"image": "a.jpg"},]', "[1] [2]", b'["caf\xe9"]', "['a.jpg']"])
def test_a_list_that_is_no_json_is_refused_with_the_place(read, content):
    with pytest.raises(DataError, match=r"x\.json: is not JSON: .+(about character \d|at byte 5)") as raised:
        read(content)
    assert "\\n" not in raised.value.message and "b'" not in raised.value.message


def test_half_a_character_costs_no_other_record(read):
    captions, _ = read(
        '[{"image": "a.jpg", "caption": "A \\ud83d dog"}, {"image": "b.jpg", "caption": "\\ud83d\\ude00"}]'
    )
    assert captions["b.jpg"] == ("😀",) and set(captions) == {"a.jpg", "b.jpg"}
    captions, problems = read(
        '{"image": "a\\ud83d.jpg", "caption": "A dog"}\n{"image": "b.jpg", "caption": "\\udc00 A boat"}\n', "x.jsonl"
    )
    assert captions == {"b.jpg": ("A boat",)}
    assert problems == {"x.jsonl:1": "names no picture"}


# Flickr30k as a list


def test_all_of_flickr30k_comes_out(tmp_path):
    packed = SHARED / "flickr30k_captions.json.gz"
    if not packed.is_file():
        pytest.skip("no Flickr30k to read: name the folder that holds flickr30k_captions.json.gz in CLIPLET_SHARED")
    file, images = tmp_path / "flickr30k.json", tmp_path / "pictures"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    expected = json.loads(file.read_bytes())
    images.mkdir()
    (images / expected[0]["filename"]).write_bytes(b"picture")
    source = read_source(file, images)
    assert source.form == "JSON list" and source.problems == [] and len(source.records) == 31_014
    for record, item in zip(source.records, expected, strict=True):
        assert record.image == f"{images}/{item['filename']}" and record.split == item["split"]
        assert record.captions == tuple(" ".join(caption.split()) for caption in item["captions"])
