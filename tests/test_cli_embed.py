"""cliplet embed on the command line."""

import io
import json
import subprocess
import sys

import embed_stub
import numpy as np
import pyarrow.parquet
import pytest
from embed_stub import write_pictures

import cliplet
from cliplet.cli import main
from cliplet.cli.embed import plain_options
from cliplet.runtime import encoder as encoder_module

# `cliplet.load` gives the stub, and what a prompt must not wait for cannot be imported.
PROMPT = """
import sys
import embed_stub
from cliplet.runtime import encoder
encoder.load = lambda *words, **options: embed_stub.encoder()
before = set(sys.modules)
from cliplet.cli import main
status = main(sys.argv[1:])
print({"tyro", "rich", "pyarrow", "lance", "torch", "cliplet.embedding"} & (set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Where quarantine.jsonl goes by itself."""
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def photos(tmp_path):
    files = write_pictures(tmp_path / "photos", 6)
    files[2].write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The stub in the place of every model; the options that it was opened with."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    opened = []

    def load(source, say, **options):
        opened.append((source, options))
        return embed_stub.encoder(tmp_path / "model")

    monkeypatch.setattr(encoder_module, "load", load)
    monkeypatch.setattr("cliplet.embedding.run.load", load)
    return opened


@pytest.fixture
def told(capsys):
    """Runs a command that must go well; what it printed."""

    def run(*words):
        assert main(["embed", *map(str, words)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def fails(capsys):
    def run(*words):
        assert main(["embed", *map(str, words)]) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.out == ""
        return printed.err

    return run


def standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_real_model_gives_its_own_vectors(told, saved_model, photos, tmp_path):
    out = tmp_path / "out.npy"
    summary = json.loads(told(photos, "-m", saved_model, "-o", out, "--json"))
    assert summary["format"] == "cliplet-embed" and summary["engine"].startswith("torch")
    assert (summary["rows"], summary["embedded"], summary["failed"], summary["dims"]) == (6, 5, 1, 16)
    encoder = cliplet.load(saved_model)
    good = [0, 1, 3, 4, 5]
    expected = encoder.encode_image([photos / f"{number:03d}.png" for number in good])
    np.testing.assert_allclose(np.load(out)[good], expected, atol=1e-5)
    assert "is complete already" in told(photos, "-m", saved_model, "-o", out)
    lines = told("--text", "a red boat", "--text", "", "--model", saved_model).splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a red boat", ""]
    printed = np.array([json.loads(line)["embedding"] for line in lines], np.float32)
    assert np.array_equal(printed, encoder.encode_text(["a red boat", ""]))


def test_the_summary_for_people(told, stub, photos, tmp_path):
    said = told(photos, "-m", "any", "-o", tmp_path / "out.npy")
    assert "out.npy: 6 rows of 4 numbers" in said and "could not be read: 1 picture (" in said
    assert "quarantine.jsonl" in said


def test_options_reach_the_model_and_the_file(told, stub, photos, tmp_path):
    words = ["--engine", "onnxruntime", "--precision", "fp32", "--dims", 4, "--batch-size", 2, "--half"]
    out = tmp_path / "out.npy"
    told(photos, photos / "000.png", "-m", "any", "-o", out, *words, "--quarantine", tmp_path / "bad.jsonl")
    assert stub == [("any", {"engine": "onnxruntime", "precision": "fp32", "dims": 4})]
    vectors = np.load(out)
    assert vectors.dtype == np.float16 and vectors[:, 3].tolist()[3:] == [1, 2, 2, 1] and len(vectors) == 7
    assert "002.png" in (tmp_path / "bad.jsonl").read_text()


def test_a_list_from_standard_input_goes_after_what_is_named(told, stub, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    standard_input(monkeypatch, b"003.png\n\ngone.png\n001.png\n")
    told("000.png", "--list", "-", "-m", "any", "-o", tmp_path / "out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["path"].to_pylist() == ["000.png", "003.png", "gone.png", "001.png"]
    assert table["error"].to_pylist() == [None, None, "no such file", None]


def test_sentences_from_a_file_and_from_words(told, stub, tmp_path, monkeypatch):
    (tmp_path / "texts").write_text("zebra\n\n")
    words = ["--text", "ab", "--texts", tmp_path / "texts", "-m", "any"]
    lines = [json.loads(line) for line in told(*words, "--half").splitlines()]
    assert [line["text"] for line in lines] == ["ab", "zebra", ""]
    assert [line["embedding"][:2] for line in lines] == [[2, 97], [5, 122], [0, 0]]
    standard_input(monkeypatch, "été\n".encode())
    (line,) = told("--texts", "-", "-m", "any").splitlines()
    assert json.loads(line)["text"] == "été"
    told(*words, "-o", tmp_path / "out.npy")
    names = (tmp_path / "out.npy.names.jsonl").read_text().splitlines()
    assert [json.loads(name) for name in names] == [{"text": "ab"}, {"text": "zebra"}, {"text": ""}]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.png", "-m", "any"], "say where the vectors go: --out"),
        (["-m", "any", "-o", "out.npy"], "say what to embed"),
        (["a.png", "--text", "b", "-m", "any", "-o", "out.npy"], "files of their own"),
        (["--text", "b", "-m", "any", "--json"], "--json tells of the file"),
        (["gone", "-m", "any", "-o", "out.npy"], "gone: no such file or folder"),
        (["a.png", "-m", "any", "-o", "out.csv"], ".npy, .parquet or .lance"),
        (["a.png", "-m", "any", "-o", "out.npy", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--list", "gone", "-m", "any", "-o", "out.npy"], "gone: cannot be read: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_words_are_refused(fails, stub, tmp_path, monkeypatch, words, says):
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert says in fails(*words)
    assert not stub and sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "model"]


@pytest.mark.parametrize(
    "words",
    [
        ["--text", "a dog", "-m", "model"],
        ["--model", "model", "--text", "", "--text", "a cat", "--engine", "torch", "--precision", "fp32"],
        ["--text", "a dog", "-m", "model", "--dims", "4"],
    ],
    ids=" ".join,
)
def test_plain_words_mean_what_they_always_mean(words, stub, told, monkeypatch):
    assert plain_options(words)
    quick = told(*words)
    monkeypatch.setattr(sys.modules["cliplet.cli.embed"], "plain_options", lambda words: {})
    assert told(*words) == quick != ""
    opened = [(source, {"engine": "auto", "precision": "auto", "dims": None, **options}) for source, options in stub]
    assert opened[0] == opened[1]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--text", "a"],
        ["--text", "a", "-m"],
        ["--text", "-m", "model", "x"],
        ["--text", "a", "-m", "model", "--dims", "0"],
        ["--text", "a", "-m", "model", "--dims", "four"],
        ["a.jpg", "--text", "a", "-m", "model"],
        ["--text", "a", "-m", "model", "-o", "out.npy"],
    ],
    ids=" ".join,
)
def test_all_other_words_are_for_the_whole_command_line(words):
    assert plain_options(words) == {}


def test_a_sentence_at_the_prompt_waits_for_no_more_than_the_model(run_python, tmp_path):
    tests = embed_stub.__file__.rpartition("/")[0]
    done = run_python(PROMPT, tmp_path, "embed", "--text", "a", "-m", "any", PYTHONPATH=tests)
    assert json.loads(done.stdout)["text"] == "a" and done.stderr == "set()\n"


def test_nothing_is_loaded_before_it_is_needed(run_python, tmp_path):
    done = run_python(
        "import sys, cliplet.embedding; print({'torch', 'pyarrow', 'lance'} & set(sys.modules))", tmp_path
    )
    assert done.stdout == "set()\n", done.stderr


def test_pipes_that_close_early_are_no_error(tmp_path):
    code = PROMPT.replace("print({", "({").replace(", file=sys.stderr)", ")")
    (tmp_path / "texts").write_text("a\n" * 20_000)
    command = [sys.executable, "-c", code, "embed", "--texts", str(tmp_path / "texts"), "-m", "any"]
    tests = embed_stub.__file__.rpartition("/")[0]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0
