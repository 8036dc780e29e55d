"""cliplet evaluate on the command line: one protocol, whoever asks and however."""

import json
import shutil

import numpy as np
import pytest

from cliplet.cli import main as cliplet_main
from cliplet.data.readers import read_source
from cliplet.evaluation import evaluate
from cliplet.evaluation.measure import assembled, common
from cliplet.runtime.encoder import load


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Where quarantine.jsonl goes by itself."""
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def result(capsys):
    """Runs an evaluation that must go well; its JSON, and what it said beside it."""

    def run(*words):
        assert cliplet_main(["evaluate", *map(str, words), "--json"]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out), printed.err  # one object and nothing else

    return run


@pytest.fixture
def fails(capsys):
    def run(*words):
        assert cliplet_main(["evaluate", *map(str, words)]) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.out == ""
        return printed.err

    return run


def test_metrics_intervals_and_the_names_of_others(result, saved_model, data_set):
    told, _ = result(saved_model, data_set, "--split", "all", "--resamples", 100, "--folds", 3)
    expected = evaluate(load(saved_model), read_source(data_set).select("all")).metrics
    assert told["format"] == "cliplet-evaluation" and told["metrics"] == pytest.approx(expected)
    assert told["clip_benchmark"]["image_retrieval_recall@5"] == pytest.approx(expected["text_to_image_R@5"] / 100)
    assert told["clip_benchmark"]["text_retrieval_recall@5"] == pytest.approx(expected["image_to_text_R@5"] / 100)
    for name, (low, high) in told["intervals"].items():
        assert low <= told["metrics"][name] <= high or "rank" in name or "mrr" in name, name
    assert told["folds"]["count"] == 3 and told["folds"]["images_each"] == 4
    assert told["logit_scale"] == pytest.approx(1 / 0.07)
    assert told["statistics"]["modality_gap"] > 0 and told["resamples"] == 100
    assert told["left_out"] == 0 and told["problems"] == [] and told["baselines"] == []
    assert told["benchmark"]["name"] == "" and not told["benchmark"]["is_it"]


def test_without_resamples_there_are_no_intervals(result, saved_model, data_set):
    told, _ = result(saved_model, data_set, "--resamples", 0)
    assert told["intervals"] == {} and told["resamples"] == 0 and told["folds"] is None


def test_saved_embeddings_stand_for_the_model(result, saved_model, data_set, tmp_path):
    first, _ = result(saved_model, data_set, "--save-embeddings", tmp_path / "kept.npz")
    second, _ = result(tmp_path / "kept.npz", data_set)
    for key in first.keys() - {"model"}:
        assert first[key] == second[key], key


def test_baselines_are_measured_on_what_all_could_read(result, saved_model, data_set, tmp_path):
    """The features were kept while a picture could be read that the model cannot read now."""
    kept = tmp_path / "kept.npz"
    whole, _ = result(saved_model, data_set, "--split", "all", "--save-embeddings", kept)
    (data_set / "images" / "4.png").write_bytes(b"torn")
    told, _ = result(saved_model, data_set, "--split", "all", "--baseline", kept)
    (row,) = told["baselines"]
    assert row["model"] == str(kept)
    assert whole["metrics"]["images"] == 12 and told["metrics"]["images"] == row["metrics"]["images"] == 11
    assert row["metrics"] == pytest.approx(told["metrics"]) and row["intervals"].keys() == told["intervals"].keys()
    assert told["left_out"] == 1 and "4.png" in told["problems"][0]["where"]


def test_what_one_should_know_is_said_and_kept(result, fails, saved_model, data_set, tmp_path):
    (data_set / "images" / "1.png").unlink()
    told, said = result(saved_model, data_set, "--split", "all")
    assert told["notes"] == [
        "Measured on 11 pictures alone: 1 of the records or files could not be used.",
        "Only 11 pictures: intervals from so few are too narrow, and p too small.",
    ]
    assert all(note in said for note in told["notes"])
    few, _ = result(saved_model, data_set)
    assert few["notes"][-1] == "R@5 and R@10 say nothing: only 3 answers can be found."
    assert few["chance"]["text_to_image_R@1"] == pytest.approx(100 / 3)
    assert "ends in .npz" in fails(saved_model, data_set, "--save-embeddings", tmp_path / "kept.txt")


def test_a_run_folder_means_its_best_model(result, model_copy, data_set, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.move(model_copy, run / "model")
    told, said = result(run, data_set)
    assert told["model"] == str(run) and f"{run} is a run: its best model is taken, {run / 'model'}" in said


def test_the_table_shows_intervals_and_baselines(saved_model, data_set, capsys, tmp_path):
    report = tmp_path / "report.html"
    words = [saved_model, data_set, "--baseline", saved_model, "--report", report, "--split", "all"]
    assert cliplet_main(["evaluate", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("│ image→text") == 2
        and "interval" in printed
        and f"report: {report}" in " ".join(printed.split())
    )
    page = report.read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "") and page.count("data:image/jpeg") > 5
    assert {file.name for file in tmp_path.iterdir()} >= {"report.html"}


def test_a_benchmark_that_is_asked_for_and_is_not_there(fails, saved_model, data_set):
    said = fails(saved_model, data_set, "--benchmark", "coco-5k")
    assert "is not coco-5k" in said
    assert "flickr8k-1k" in fails(saved_model, data_set, "--benchmark", "flickr8k")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--folds", 7), "3 pictures cannot be parted into 7 folds"),
        (("--report", "."), "is a folder"),
        (("--baseline", "nowhere"), "nowhere: no such model folder"),
        (("--baseline", "nowhere.npz"), "nowhere.npz: no such file"),
        (("--resamples", -1), "--resamples must be at least 100, got -1"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--folds", 1), "--folds must be at least 2"),
        (("--samples", 0), "--samples must be at least 1"),
    ],
)
def test_bad_words_are_refused(fails, saved_model, data_set, words, says):
    assert says in fails(saved_model, data_set, *words)


def test_evaluations_of_different_pictures_are_brought_to_the_common_ones(data_set):
    records = list(read_source(data_set).select("all"))
    random = np.random.default_rng(0)
    image, text = random.normal(size=(12, 6)).astype(np.float32), random.normal(size=(24, 6)).astype(np.float32)
    first, second = assembled(records, image, text, {2: "torn"}), assembled(records, image, text, {5: "torn"}, 7.0)
    one, two = common([first, second])
    assert [record.image for record in one.records] == [record.image for record in two.records]
    assert len(one.records) == 10 and one.metrics == two.metrics and two.logit_scale == 7.0
    assert common([first, first]) == [first, first]


def test_a_benchmark_that_loses_pictures_is_none(fails, result, saved_model, data_set, monkeypatch):
    """Three of Flickr8k's pictures are the benchmark here, until one of them cannot be read."""
    import hashlib
    from dataclasses import replace

    from cliplet.evaluation import split_check

    records = data_set / "three.json"
    told = json.loads((data_set / "dataset.json").read_text())
    told["images"] = told["images"][:3]
    for number, image in enumerate(told["images"]):
        (data_set / "images" / image["filename"]).rename(data_set / "images" / f"{number + 7}_0123456789.jpg")
        image.update(filename=f"{number + 7}_0123456789.jpg", split="test")
    records.write_text(json.dumps(told))
    digest = hashlib.sha256(b"7\n8\n9").hexdigest()
    benchmark = replace(split_check.BENCHMARKS["flickr8k"], pictures=3, captions=6, sha256=digest)
    monkeypatch.setattr(split_check, "KNOWN_SPLITS", (benchmark,))
    monkeypatch.setattr(split_check, "BENCHMARKS", {"flickr8k": benchmark})
    whole, _ = result(saved_model, records, "--benchmark", "flickr8k-1k")
    assert whole["benchmark"]["is_it"] and whole["metrics"]["images"] == 3
    (data_set / "images" / "8_0123456789.jpg").write_bytes(b"torn")
    assert "is not flickr8k-1k" in fails(saved_model, records, "--benchmark", "flickr8k-1k")
    torn, _ = result(saved_model, records)
    assert not torn["benchmark"]["is_it"] and torn["metrics"]["images"] == 2
