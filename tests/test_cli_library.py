"""The verbs index, search and duplicates on the command line."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cliplet.cli import main
from cliplet.cli.library import _told, plain_options
from cliplet.library.records import Hit, Hits
from cliplet.library.telling import search_text
from cliplet.results import IndexSummary

PROMPT = """
import sys
before = set(sys.modules)
from cliplet.cli import main
status = main(sys.argv[1:])
heavy = {"tyro", "rich", "torch", "PIL", "fastapi", "lancedb", "pyarrow", "cliplet.data.readers", "usearch"}
print(heavy & (set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def library(exported_model, tmp_path_factory):
    """A library made by the command itself; to be read only."""
    folder = tmp_path_factory.mktemp("library")
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(8):
        pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64 + number, 48)).save(folder / "photos" / f"{number}.png")
    (folder / "captions.tsv").write_text("".join(f"{number}.png\tpicture {number}\n" for number in range(8)))
    words = ["--library", str(folder / "l.library"), "-m", str(exported_model), "--captions"]
    assert main(["index", str(folder / "photos"), *words, str(folder / "captions.tsv"), "--engine", "onnxruntime"]) == 0
    return folder / "l.library"


def printed(capsys, *words):
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_searching_prints_score_fit_and_path(library, capsys):
    lines = printed(capsys, "search", library, "a", "red", "boat", "-k", "3").splitlines()
    assert len([line for line in lines if ".png" in line]) == 3
    found = json.loads(printed(capsys, "search", library, "a red boat", "-k", "3", "--json"))
    assert found["format"] == "cliplet-search" and found["query"] == ["+ a red boat"] and found["total"] is None
    assert [hit["path"] in "\n".join(lines) for hit in found["hits"]] == [True] * 3
    assert found["hits"][0]["score"] >= found["hits"][1]["score"] and found["hits"][0]["caption"].startswith("picture")


def test_pictures_sums_and_filters(library, capsys, tmp_path, monkeypatch):
    shutil.copy(library.parent / "photos" / "3.png", tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    found = json.loads(printed(capsys, "search", library, "--image", "x.png", "--json", "--where", "width > 64"))
    assert found["hits"][0]["path"].endswith("3.png") and found["total"] == 7
    found = json.loads(printed(capsys, "search", library, "boat", "+", "2", "x.png", "-", "people", "--json"))
    assert found["query"] == ["+ boat", "+ 2 x.png", "- people"]


def test_captions_of_a_picture_and_pictures_by_captions(library, capsys):
    picture = str(library.parent / "photos" / "5.png")
    found = json.loads(printed(capsys, "search", library, "--image", picture, "--captions", "--json"))
    assert found["format"] == "cliplet-search-captions" and len(found["captions"]) == 8
    assert "picture" in printed(capsys, "search", library, "--image", picture, "--captions")
    hits = json.loads(printed(capsys, "search", library, "picture 6", "--by", "captions", "--json"))["hits"]
    assert hits[0]["path"].endswith("6.png") and hits[0]["caption"] == "picture 6"


def test_a_sheet_of_what_was_found(library, capsys, tmp_path):
    printed(capsys, "search", library, "boat", "-k", "4", "--sheet", tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.width > 600 and sheet.height > 200


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
def test_a_sheet_takes_the_place_of_a_sheet_and_of_nothing_else(library, capsys, tmp_path, ending):
    out = tmp_path / f"found.{ending}"
    for _ in range(2):
        printed(capsys, "search", library, "boat", "-k", "2", "--sheet", out)
    original = library.parent / "photos" / "5.png"
    before = original.read_bytes()
    assert main(["search", str(library), "boat", "--sheet", str(original)]) == 1
    assert "was not drawn by cliplet" in capsys.readouterr().err
    assert original.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["beach + x - people"], True),
        (["beach", "+x"], True),
        (["a t-shirt", "-", "red"], False),
        (["+1", "more"], False),
        (['"a" - "b"'], False),
    ],
)
def test_what_looks_like_a_sum_and_is_none_is_said(library, capsys, words, said):
    assert main(["search", str(library), *words]) == 0
    assert ("taken as one sentence" in capsys.readouterr().err) == said


def test_captions_keep_to_the_pictures_that_pass(library, capsys):
    found = printed(capsys, "search", library, "picture", "--captions", "--where", "name = '5.png'")
    assert "picture 5" in found and "picture 6" not in found
    assert "no caption of a picture" in printed(capsys, "search", library, "x", "--captions", "--where", "width = 1")


def test_again_there_is_nothing_to_do(library, capsys):
    done = json.loads(printed(capsys, "index", "--library", library, "--json"))
    assert (done["unchanged"], done["added"], done["embedded"], done["pictures"]) == (8, 0, 0, 8)
    assert "8 pictures; nothing new" in printed(capsys, "index", "--library", library)


def test_copies(library, capsys):
    assert printed(capsys, "duplicates", library).strip() == "no two pictures are copies of one another"
    found = json.loads(printed(capsys, "duplicates", library, "--alike", "0.001", "--json"))
    assert found["pictures"] >= 2


def test_a_query_does_not_wait_for_what_it_does_not_need(library, run_python, tmp_path):
    done = run_python(PROMPT, tmp_path, "search", library, "a", "boat")
    assert done.returncode == 0 and ".png" in done.stdout
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["l", "a", "dog"], {"library": "l", "query": ["a", "dog"], "k": 10, "json": False}),
        (["l", "a", "-", "b", "-k", "3", "--json"], {"library": "l", "query": ["a", "-", "b"], "k": 3, "json": True}),
        (["l"], {}),
        (["l", "a", "-k", "x"], {}),
        (["l", "a", "-k"], {}),
        (["l", "a", "--where", "x"], {}),
        (["--help"], {}),
    ],
)
def test_plain_searches(words, plain):
    assert plain_options(words) == plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "LIB"], "say what to search for"),
        (["search", "LIB", "--image", "nowhere.png"], "no such picture"),
        (["search", "LIB", "boat", "--where", "size > 3"], "no column"),
        (["search", "LIB", "boat", "-k", "0"], "at least 1"),
        (["search", "LIB", "boat", "-k", "100000"], "between 1 and 1,000"),
        (["search", "LIB", "boat", "--sheet", "x.txt"], "x.txt"),
        (["search", "LIB", "boat", "--captions", "--sheet", "x.png"], "are for pictures"),
        (["search", "LIB", "boat", "--captions", "--where", "((("], "filter"),
        (["search", "nowhere.library", "boat"], "is no library"),
        (["index", "nowhere", "--library", "LIB"], "is not there"),
        (["index", "--library", "new.library"], "no model yet"),
        (["index", "--library", "new.library", "--repair"], "nothing of a library"),
        (["index", "", "--library", "LIB"], "named by nothing"),
        (["index", "--library", ""], "named by nothing"),
        (["duplicates", "LIB", "--alike", "2"], "--alike"),
    ],
)
def test_what_cannot_be(library, capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(library) if word == "LIB" else word for word in words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and "Traceback" not in said


@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
@pytest.mark.parametrize("place", ["over/new.library", "lance:over/new"])
@pytest.mark.parametrize(
    "words",
    [
        ["PHOTOS"],
        ["nowhere", "-m", "MODEL"],
        ["PHOTOS", "-m", "nowhere"],
        ["PHOTOS", "-m", "MODEL", "--engine", "nothing"],
        ["PHOTOS", "-m", "MODEL", "--captions", "nowhere.tsv"],
        ["-m", "MODEL"],
    ],
    ids=["no model", "no folder", "wrong model", "wrong engine", "no captions", "no folders"],
)
def test_an_index_that_fails_leaves_nothing_behind(
    library, exported_model, capsys, tmp_path, monkeypatch, words, place, before
):
    monkeypatch.chdir(tmp_path)
    if before != "nothing":
        (tmp_path / place.removeprefix("lance:")).mkdir(parents=True)
    there = sorted(tmp_path.rglob("*"))
    meant = {"PHOTOS": str(library.parent / "photos"), "MODEL": str(exported_model)}
    assert main(["index", "--library", place, *(meant.get(word, word) for word in words)]) == 1
    assert capsys.readouterr().err.startswith("error: ") and sorted(tmp_path.rglob("*")) == there


def test_a_library_with_pictures_stays_when_an_index_fails(library, capsys):
    assert main(["index", str(library.parent / "photos"), "--library", str(library), "--captions", "nowhere.tsv"]) == 1
    assert "nowhere.tsv" in capsys.readouterr().err
    assert {"records.sqlite", "library.json", "vectors-1.f16"} <= {file.name for file in library.iterdir()}


def summary(**values):
    counts = dict.fromkeys(IndexSummary.model_fields, 0) | {"library": "l", "model": "m", "engine": ""}
    return IndexSummary(**{name: counts[name] for name in counts if not name.startswith("format")} | values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"added": 60, "embedded": 1, "pictures_per_second": 1.0}, "l: 60 pictures; 60 new; 0.0 s"),
        ({"added": 60, "embedded": 60, "pictures_per_second": 9.0}, "l: 60 pictures; 60 new; 0.0 s, 9 a second"),
        ({"moved": 60, "pictures_per_second": None}, "l: 60 pictures; 60 moved; 0.0 s"),
    ],
)
def test_the_rate_is_that_of_embedding(values, said):
    assert _told(summary(pictures=60, **values)) == said


def test_files_of_earlier_runs_that_could_not_be_read(library, capsys, tmp_path):
    copy = tmp_path / "copy.library"
    shutil.copytree(library, copy)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.png").write_text("no picture")
    assert main(["index", str(tmp_path / "more"), "--library", str(copy)]) == 0
    said = capsys.readouterr()
    assert "bad.png: " in said.err and "1 file could not be read (" in said.out
    assert main(["index", "--library", str(copy), "--quarantine", str(tmp_path / "q.jsonl")]) == 0
    assert "1 file of earlier runs could not be read, and has not changed" in capsys.readouterr().out
    assert "bad.png" in (tmp_path / "q.jsonl").read_text()


def test_a_picture_that_is_none_is_named_as_it_was(library, capsys, tmp_path):
    (tmp_path / "notpic.jpg").write_text("no picture")
    for words in ([], ["--captions"]):
        assert main(["search", str(library), "--image", str(tmp_path / "notpic.jpg"), *words]) == 1
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'notpic.jpg'}: ")


def test_one_copy_is_a_copy(library):
    picture = SimpleNamespace(captions=())
    hits = [Hit(1, "x.png", 0.5, 50.0, picture, copies=("a",) * count) for count in (0, 1, 2)]
    lines = search_text(Hits(hits, False, None), "").splitlines()
    assert [line.partition("x.png")[2] for line in lines] == ["", "  (and 1 copy)", "  (and 2 copies)"]


def test_help_shows_no_empty_defaults(capsys):
    for verb in ("index", "search"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert "default: )" not in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_names_that_are_several_lines_are_shown_on_one(library, tmp_path, capsys):
    copy = tmp_path / "copy.library"
    shutil.copytree(library, copy)
    (tmp_path / "more").mkdir()
    Image.effect_noise((40, 40), 80).save(tmp_path / "more" / "x.png")
    (tmp_path / "more" / "x.png").rename(tmp_path / "more" / "two\nlines.png")
    assert main(["index", str(tmp_path / "more"), "--library", str(copy)]) == 0
    capsys.readouterr()
    assert "two\\nlines.png" in printed(capsys, "search", copy, "boat", "-k", "20")


@pytest.mark.skipif(sys.platform == "win32", reason="no xdg-open")
def test_opening_where_nothing_opens_pictures(library, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["search", str(library), "boat", "--open"]) == 1
    assert "--sheet" in capsys.readouterr().err
