"""The verbs zero-shot and few-shot on a real model folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliplet.cli.classify import few_shot, zero_shot
from cliplet.errors import ClipletError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def data(tmp_path):
    """Three classes of noise around a colour, six pictures each in test."""
    random = np.random.default_rng(0)
    for name, colour in {"red_boat": (200, 40, 40), "snow": (230, 230, 240), "ball": (40, 60, 200)}.items():
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.normal(colour, 30, (24, 30, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "test" / name / f"{number}.png")
    return tmp_path / "data"


def test_zero_shot_prints_one_object_and_draws(saved_model, data, tmp_path, capsys):
    (data / "test" / "snow" / "bad.jpg").write_bytes(b"no picture")
    (data / "test" / "empty").mkdir()
    picture = tmp_path / "c.png"
    words = [str(saved_model), str(data), "--json", "--confusion", str(picture), "--templates", "simple"]
    zero_shot(words)
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["format"] == "cliplet-zero-shot" and result["format_version"] == 1
    assert result["templates"] == ["a photo of a {}"] and result["split"] == "test"
    assert [one["words"] for one in result["classes"]] == [["ball"], ["red boat"], ["snow"]]
    assert np.sum(result["confusion"]) == result["pictures"] == 18 and result["left_out"] == 1
    assert "note: left out, for no pictures lie in them: empty" in printed.err
    assert Image.open(picture).width > 400
    assert result["problems"][0]["where"].endswith("bad.jpg") and Path("quarantine.jsonl").is_file()
    zero_shot(words[:2])
    printed = capsys.readouterr()
    title, _, table = printed.out.partition("\n")
    assert title == f"{saved_model} on {data}, split test", "in one line"
    assert "top-1" in table and "top-5" not in table and "red_boat" in table
    assert "18 pictures, 8 templates, 3 classes, guessing: 33.3 %;" in " ".join(table.split())
    assert "note: only 18 pictures to test on: intervals" in printed.err


def test_few_shot_prints_one_object_or_a_table(saved_model, data, capsys):
    words = [str(saved_model), str(data), "--shots", "2", "1", "--repeats", "3"]
    few_shot([*words, "--json"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["format"] == "cliplet-few-shot" and result["train_split"] == "" and result["test_pictures"] == 9
    assert [(row["method"], row["shots"]) for row in result["rows"][:2]] == [
        ("zero_shot", 0),
        ("nearest_class_mean", 1),
    ]
    assert result["rows"][-1]["top1"] > 60, "the colours are plain to see"
    few_shot(words)
    title, _, table = capsys.readouterr().out.partition("\n")
    assert title == f"{saved_model} on {data}, split test" and "linear probe" in table
    assert "guessing: 33.3 %; mean of 3 draws of examples from 9 pictures; all rows are tested on the same 9 other" in (
        " ".join(table.split())
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "val"], r"no split 'val'\n.*test \(18\)"),
        (["--templates", "a photo"], "0 places for the class's words"),
        (["--confusion", "c.txt"], "no picture format"),
        (["--classes", "absent.txt"], "names of classes cannot be read"),
    ],
)
def test_zero_shot_says_what_is_wrong_before_a_model_is_opened(data, words, message):
    with pytest.raises(ClipletError, match=message):
        zero_shot(["absent-model", str(data), *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "2", "0"], "--shots must be at least 1, got 0"),
        (["--shots", "6"], r"only 0 of 3 classes(.|\n)*--shots 5\."),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_few_shot_says_what_is_wrong_before_a_model_is_opened(data, words, message):
    with pytest.raises(ClipletError, match=message):
        few_shot(["absent-model", str(data), *words])
