"""The demo's own logic; the whole demo runs in test_readme's slow test and by make demo."""

from pathlib import Path

import pytest

from cliplet import demo
from cliplet.errors import TrainingError


def test_right_is_what_the_scene_shows():
    scene = {
        "background": "beach",
        "objects": [
            {"shape": "star", "colour": "blue", "size": "small", "texture": "plain"},
            {"shape": "heart", "colour": "red", "size": "large", "texture": "dotted"},
        ],
    }
    assert demo._shows(scene, {"shape": "star", "colour": "blue"})
    assert demo._shows(scene, {"colour": "red", "background": "beach"})
    assert not demo._shows(scene, {"shape": "star", "colour": "red"})
    assert not demo._shows(scene, {"shape": "star", "background": "snow"})


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TrainingError, match="no earlier demo"):
        demo.run_demo(tmp_path, seed=0)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_every_query_asks_for_something_that_scenes_have():
    from cliplet.data import scene_captions

    known = {
        "shape": scene_captions.SHAPES,
        "colour": scene_captions.COLOURS,
        "size": scene_captions.SIZES,
        "texture": scene_captions.TEXTURES,
        "background": scene_captions.BACKGROUNDS,
    }
    for _, wanted in demo.QUERIES:
        assert all(value in known[key] for key, value in wanted.items())


def test_a_whole_small_demo(tmp_path: Path, monkeypatch, capsys):
    """The same story with few scenes and one epoch, twice: the second replaces the first."""
    monkeypatch.setattr(demo, "TRAIN", 64)
    monkeypatch.setattr(demo, "VAL", 8)
    monkeypatch.setattr(demo, "TEST", 24)
    recipe = demo.recipe("demo")
    stage = recipe.train.stages[0].model_copy(update={"epochs": 1})
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"stages": (stage,), "batch_size": 32})})
    monkeypatch.setattr(demo, "recipe", lambda name: short)
    output = tmp_path / "demo"
    for _ in range(2):
        evaluation = demo.run_demo(output, seed=0)
    assert evaluation.metrics["images"] == 24 and evaluation.metrics["captions"] == 120
    printed = capsys.readouterr().out
    assert "R@1" in printed and str(output / "queries.png") in printed.replace("\n", "")
    for name in ("queries.png", "report.html", "model/model.safetensors", "data/dataset_scenes.json"):
        assert (output / name).is_file()
