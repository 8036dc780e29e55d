"""cliplet compare on the command line: models and stored embeddings, and what people get wrong."""

import json

import numpy as np
import pytest

from cliplet.cli import main as cliplet_main
from cliplet.cli.compare import compare
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.evaluation.embeddings import save_embeddings
from cliplet.evaluation.measure import assembled
from cliplet.evaluation.sources import measured


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """What a command writes into the current folder by default goes where nobody looks."""
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def main(monkeypatch):
    """The program, with this verb in it."""
    monkeypatch.setitem(cliplet_main.__globals__["VERBS"], "compare", compare)
    return lambda *words: cliplet_main(["compare", *map(str, words)])


@pytest.fixture
def fails(main, capsys):
    """Runs a comparison that must fail; returns what it said."""

    def run(*words):
        assert main(*words) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.out == ""
        return printed.err

    return run


@pytest.fixture
def embeddings(data_set, tmp_path):
    """Stored embeddings of the whole data set: matching pairs with some noise."""
    records = read_source(str(data_set), None, None).select("all")

    def make(name, noise, records=records):
        random = np.random.default_rng(0)
        rows = random.normal(size=(len(records), 6))
        texts = rows.repeat(2, axis=0) + noise * random.normal(size=(2 * len(records), 6))
        save_embeddings(tmp_path / name, assembled(records, *map(unit, (rows, texts)), {}), {})
        return tmp_path / name

    return make


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_model_and_stored_embeddings(main, saved_model, data_set, embeddings, tmp_path, capsys):
    stored = embeddings("good.npz", 0.01)
    words = (saved_model, stored, data_set, "--resamples", 200)
    report = tmp_path / "out" / "comparison.html"
    assert main(*words, "--json", "--split", "all", "--report", report) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)  # one object and nothing else
    assert result["format"] == "cliplet-comparison" and (result["images"], result["captions"]) == (12, 24)
    assert result["metrics_b"]["text_to_image_R@1"] == 100 and result["resamples"] == 200
    expected = measured(saved_model, read_source(str(data_set), None, None).select("all")).metrics
    assert result["metrics_a"] == expected
    one = result["differences"]["rsum"]
    assert one["difference"] == pytest.approx(result["metrics_b"]["rsum"] - expected["rsum"])
    text = report.read_text(encoding="utf-8")
    assert str(saved_model) in text and "Texts whose picture B finds sooner" in text

    assert main(*words, "--split", "test") == 0
    shown = capsys.readouterr().out
    assert "text→image R@1" in shown and "3 pictures, 6 captions" in shown.replace("\n", " ")
    assert "Only 3 pictures" in shown and "--report comparison.html" in shown


def test_the_same_model_twice_is_measured_once_and_does_not_differ(main, embeddings, data_set, capsys):
    stored = embeddings("a.npz", 1.0)
    assert main(stored, stored, data_set, "--split", "all", "--json", "--resamples", 100) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert all(one["difference"] == 0 and one["p"] == 1 for one in result["differences"].values())
    assert main(stored, stored, data_set, "--split", "all", "--resamples", 100) == 0
    shown = capsys.readouterr().out
    assert "a.npz (A)" in shown.replace("\n", "") and "No difference at all" in shown


def test_a_run_folder_is_a_model(main, saved_model, embeddings, data_set, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(saved_model)
    assert main(saved_model, tmp_path / "run", data_set, "--json", "--resamples", 100) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics_a"] == result["metrics_b"]


def test_a_picture_that_cannot_be_read_is_left_out_of_both(main, saved_model, embeddings, data_set, capsys, tmp_path):
    stored = embeddings("a.npz", 1.0)
    (data_set / "images" / "9.png").write_bytes(b"no picture")
    quarantine = tmp_path / "q.jsonl"
    words = (saved_model, stored, data_set, "--resamples", 100, "--quarantine", quarantine)
    assert main(*words, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["captions"], result["left_out"]) == (2, 4, 1)
    assert result["metrics_b"]["images"] == 2 and len(quarantine.read_text().splitlines()) == 1
    assert main(*words) == 0
    assert "1 left out" in capsys.readouterr().out.replace("\n", " ")


def test_a_caption_that_is_missing_leaves_its_picture_out(main, embeddings, data_set, capsys):
    file = data_set / "dataset.json"
    annotations = json.loads(file.read_text())
    annotations["images"][10]["sentences"] = []
    file.write_text(json.dumps(annotations))
    stored = embeddings("a.npz", 1.0)  # of all twelve
    assert main(stored, stored, data_set, "--split", "test", "--json", "--resamples", 100) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 2
    assert "10 pictures and 20 captions more than this data" in printed.err


def test_what_cannot_be_compared(fails, embeddings, data_set, saved_model, tmp_path):
    stored = embeddings("a.npz", 1.0, read_source(str(data_set), None, None).select("test"))
    assert "no such model folder" in fails(stored, tmp_path / "none", data_set)
    assert "none.npz: no such file" in fails(tmp_path / "none.npz", stored, data_set)
    assert "there is no split 'exam'" in fails(stored, stored, data_set, "--split", "exam")
    few = read_source(str(data_set), None, None).select("val")
    part = embeddings("part.npz", 1.0, few)
    assert f"{part}: has no row for the picture 9.png" in fails(stored, part, data_set)
    np.savez(tmp_path / "foreign.npz", image=np.eye(4), text=np.eye(4))
    assert "4 pictures and 4 captions, but the data has 3 pictures and 6" in fails(
        stored, tmp_path / "foreign.npz", data_set
    )
    rows = np.ones((6, 2))
    rows[5, 1] = np.nan
    np.savez(tmp_path / "foreign.npz", image=np.ones((3, 2)), text=rows)
    assert "text: row 5 is not finite" in fails(stored, tmp_path / "foreign.npz", data_set)
    assert "--resamples must be at least 100" in fails(stored, stored, data_set, "--resamples", 5)
    assert "--seed must be at least 0" in fails(stored, stored, data_set, "--seed", -1)
    assert "is a folder" in fails(stored, stored, data_set, "--report", tmp_path)


def test_a_saved_evaluation_stands_for_its_model(main, saved_model, data_set, tmp_path, capsys):
    (data_set / "images" / "11.png").write_bytes(b"no picture")
    records = read_source(str(data_set), None, None).select("test")
    evaluation = measured(saved_model, records, Quarantine())
    save_embeddings(tmp_path / "a.npz", evaluation, {"model": str(saved_model)}, records)
    assert main(saved_model, tmp_path / "a.npz", data_set, "--json", "--resamples", 100) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics_a"] == result["metrics_b"] == evaluation.metrics and result["images"] == 2
