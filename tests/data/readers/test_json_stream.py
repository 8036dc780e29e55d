"""A document read piece by piece gives what the whole gives, wherever a piece ends."""

import json
import random

import pytest

from cliplet.data.readers import json_stream
from cliplet.data.readers.json_stream import read_lists
from cliplet.errors import DataError


@pytest.fixture(params=[1, 2, 7, 64, 1000, 2**18])
def window(request, monkeypatch):
    monkeypatch.setattr(json_stream, "WINDOW", request.param)


def gathered(file):
    lists = {}
    for key, block in read_lists(file):
        if block is None:
            lists[key] = None
        else:
            lists.setdefault(key, []).extend(block)
    return lists


TRICKY = {
    "info": {"a": [1, {"b": "}, {"}], "c": 1.5e300},
    "images": [{"id": n, "file_name": f"{n}.jpg", "note": '}, {"x": "\\" ]'} for n in range(40)],
    "empty": [],
    "sentences": [{"of": [{"raw": "a } , { b"}, {"raw": "é犬🐕"}]}, {}, {"of": []}],
    "mixed": [1, "two", None, True, [3, [4]], {"five": 5}, -0.25, 1234567890123456789],
    "": [{"a": 1}, {"b": 2}],
    "number": 12345,
}


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_pieces_make_the_whole(tmp_path, options):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(TRICKY, **options), encoding="utf-8")
    expected = {key: value if isinstance(value, list) else None for key, value in TRICKY.items()}
    assert gathered(file) == expected
    file.write_text("\ufeff \n" + json.dumps(TRICKY["mixed"] + TRICKY["images"], **options) + "\n\t ", encoding="utf-8")
    assert gathered(file) == {"": TRICKY["mixed"] + TRICKY["images"]}


@pytest.mark.parametrize("window_", [1, 9, 50])
def test_random_documents(tmp_path, monkeypatch, window_):
    monkeypatch.setattr(json_stream, "WINDOW", window_)
    draw = random.Random(window_)

    def value(depth):
        kind = draw.randrange(6 if depth else 4)
        if kind < 4:
            text = draw.choice(["a", '"', "}, {", "\\", "]"]) * draw.randrange(4)
            return [draw.random() * 10 ** draw.randrange(-9, 9), text, None, draw.randrange(10**6)][kind]
        items = [value(depth - 1) for _ in range(draw.randrange(4))]
        return items if kind == 4 else {str(n): item for n, item in enumerate(items)}

    for _ in range(100):
        document = {str(n): value(3) for n in range(draw.randrange(5))}
        file = tmp_path / "x.json"
        file.write_text(json.dumps(document, indent=draw.choice([None, 2])))
        assert gathered(file) == {key: one if isinstance(one, list) else None for key, one in document.items()}


@pytest.mark.usefixtures("window")
def test_cut_anywhere_it_is_refused(tmp_path):
    whole = json.dumps({"a": [{"b": "c"}, {"d": [1, 2]}], "e": "é"}, ensure_ascii=False).encode()
    file = tmp_path / "x.json"
    for length in range(1, len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not JSON"):
            gathered(file)


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    "content",
    ["[1 2]", '{"a" 1}', "{1: 2}", "[1], [2]", '[{"a": 1},, {"b": 2}]', "[1,]", '{"a": [1],}', '{"a": nul}', "]", "{]"],
)
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="is not JSON"):
        gathered(tmp_path / "x.json")


def test_deep_nesting_is_refused_and_costs_little(tmp_path):
    for opener in ("[", '{"a":', '{"a":['):
        (tmp_path / "x.json").write_text(opener * 200_000)
        with pytest.raises(DataError, match="nested too deeply"):
            gathered(tmp_path / "x.json")


def test_the_place_of_a_fault_is_said(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [' + "1, " * 1000 + "x]}")
    with pytest.raises(DataError, match="about character 3,007"):
        gathered(tmp_path / "x.json")
