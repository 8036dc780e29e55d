"""cliplet export on the command line: what it writes, says and refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import cliplet
from cliplet.cli import main

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A data set of rendered scenes with captions."""
    from cliplet.data.scenes import render_scenes

    folder = tmp_path_factory.mktemp("scenes")
    render_scenes(folder, 24, 16, 1, seed=0, image_size=40)
    return folder


@pytest.fixture(scope="module")
def small(saved_model, scenes, traced_once, tmp_path_factory):
    """The tiny model in 8 bits with fewer dimensions, and what the command printed."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("small") / "model"
    printed, said = io.StringIO(), io.StringIO()
    words = [
        str(saved_model),
        "--out",
        str(out),
        "--int8",
        "--dims",
        "4,8",
        "--data",
        str(scenes),
        "--calibration",
        "16",
    ]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        assert main(["export", *words, "--calibration", "16", "--max-loss", "50"]) == 0
    return out, printed.getvalue(), said.getvalue()


def test_eight_bits(small, saved_model):
    out, printed, said = small
    assert "what each step costs" in printed and "M parameters in" in printed
    made = json.loads((out / "onnx" / "parity.json").read_text())
    assert made["precision"] == "int8" and made["dims"] == [8, 4]
    assert [step["step"].split()[0] for step in made["steps"]] == ["exported", "image", "text"]
    sizes = [step["bytes"] for step in made["steps"]]
    assert sizes[2] < 0.4 * sizes[0]
    assert all(len(step["recalls"]) == 4 for step in made["steps"])  # two directions on two engines
    assert set(made["dims_recalls"]) == {"16", "8", "4"}
    assert made["graphs"]["text"]["int8"] + len(made["graphs"]["text"]["kept"]) == made["graphs"]["text"]["layers"]
    assert not (out / "model.safetensors").exists()
    assert "calibrating on 16 pictures" in said


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_what_is_small_is_still_the_model(small, saved_model, engine, captions):
    out, _, _ = small
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(5)]
    ours, theirs = cliplet.load(out, engine=engine), cliplet.load(saved_model)
    # Sixteen random dimensions: how far a single one moves depends on the processor's way of multiplying 8 bits.
    image_cosines = (ours.encode_image(pictures) * theirs.encode_image(pictures)).sum(axis=1)
    text_cosines = (ours.encode_text(captions) * theirs.encode_text(captions)).sum(axis=1)
    assert image_cosines.mean() > 0.95 and text_cosines.mean() > 0.95
    assert min(image_cosines.min(), text_cosines.min()) > 0.9
    for size in (4, 8):
        rows = cliplet.load(out, engine=engine, dims=size).encode_text(captions)
        assert rows.shape == (len(captions), size)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)


def test_a_folder_without_weights_can_be_looked_at_and_evaluated(small, scenes, capsys):
    out, _, _ = small
    assert main(["inspect", str(out), "--json"]) == 0
    made = json.loads((out / "onnx" / "parity.json").read_text())
    assert json.loads(capsys.readouterr().out)["parameters"] == made["parameters"] > 400_000
    assert main(["evaluate", str(out), str(scenes), "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["images"] == 16


@pytest.mark.slow
def test_eight_bits_that_cost_too_much_are_refused_and_nothing_is_written(
    saved_model, scenes, tmp_path, capsys, monkeypatch
):
    import importlib

    module = importlib.import_module("cliplet.export.yardstick")
    monkeypatch.setattr(module.Yardstick, "loss", lambda *arguments: 1.5)
    words = ["--int8", "--data", str(scenes), "--out", str(tmp_path / "out"), "--calibration", "8"]
    assert main(["export", str(saved_model), *words]) == 1
    said = capsys.readouterr().err
    assert (
        "8 bits cost 1.50 points of R@1, cosine" in said
        and "in the image tower even where" in said
        and "--max-loss" in said
    )
    assert list(tmp_path.iterdir()) == []


def test_json_is_what_was_written(exported_model, tmp_path, capsys):
    assert main(["export", str(exported_model), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "onnx" / "parity.json").read_text())
    assert printed["measured_on"] == "8 rendered scenes" and printed["steps"][0]["recalls"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "8 bits need pictures with captions"),
        (["--dims", "many"], "--dims takes numbers between commas"),
        (["--dims", "16"], "--dims must be between 1 and 15, got 16"),
        (["--dims", "0"], "--dims must be between 1 and 15, got 0"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--int8", "--data", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_makes_no_sense(model_copy, words, message, capsys):
    assert main(["export", str(model_copy), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (model_copy / "onnx").exists()


@pytest.mark.parametrize("place", ["itself", "another"])
def test_a_model_with_weights_is_never_replaced_by_one_without(model_copy, saved_model, place, capsys):
    source = model_copy if place == "itself" else saved_model
    before = sorted(file.name for file in model_copy.iterdir())
    assert main(["export", str(source), "--out", str(model_copy)]) == 1
    assert "holds a model with its weights" in capsys.readouterr().err
    assert sorted(file.name for file in model_copy.iterdir()) == before


@pytest.mark.slow
def test_a_list_without_splits_calibrates_on_what_is_not_measured(saved_model, tmp_path, capsys):
    """Its val is a tenth; ranges and directions come from the rest, and R@1 of fewer dimensions is measured."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(60):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png\tpicture number {number}")
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    seen = {}
    for split in ("val", "all"):
        words = ["--data", str(tmp_path / "list.tsv"), "--split", split, "--dims", "8", "--json"]
        assert main(["export", str(saved_model), "--out", str(tmp_path / split), *words]) == 0
        seen[split] = json.loads(capsys.readouterr().out)
        assert set(seen[split]["dims_recalls"]) == {"16", "8"}
    assert seen["all"]["measured_on"].endswith(": 30 pictures")
    assert int(seen["val"]["measured_on"].rpartition(": ")[2].split()[0]) < 15


def test_what_was_measured_of_the_original_is_not_said_of_8_bits(small):
    out, _, _ = small
    card = (out / "README.md").read_text()
    assert "in 8 bits" in card and "| exported to ONNX, in float32 |" in card and "| 8 dimensions |" in card
    assert json.loads((out / "metrics.json").read_text()) == {}


@pytest.mark.parametrize(
    ("name", "text"), [("README.md", b"caf\xe9"), ("metrics.json", b"{bad"), ("README.md", b"---\na: [\n---\n")]
)
def test_a_card_that_cannot_be_read_is_said_before_the_work(model_copy, name, text, tmp_path, capsys):
    (model_copy / name).write_bytes(text)
    assert main(["export", str(model_copy), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert name in said or "card or metrics" in said
    assert not (tmp_path / "out").exists()


def test_files_of_somebody_else_beside_the_graphs_stay(exported_copy):
    (exported_copy / "onnx" / "mine.txt").write_text("mine")
    assert main(["export", str(exported_copy)]) == 0
    assert (exported_copy / "onnx" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("words", [["--max-loss", "-1"], ["--max-loss", "nan"], ["--min-cosine", "2"]])
def test_bounds_that_cannot_be(model_copy, words, capsys):
    assert main(["export", str(model_copy), *words]) == 1
    assert "--max-loss must be from 0 to 100" in capsys.readouterr().err


def test_an_out_that_cannot_be_made_is_said_before_the_work(saved_model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export", str(saved_model), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "is a file" in capsys.readouterr().err


def test_a_name_that_is_no_folder(capsys):
    assert main(["export", "runs/typo"]) == 1
    assert "runs/typo: is no folder here" in capsys.readouterr().err


def test_licences_come_along(model_copy, tmp_path):
    (model_copy / "LICENSE").write_text("as you like")
    assert main(["export", str(model_copy), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "LICENSE").read_text() == "as you like"


def test_what_a_killed_export_left_is_mended(exported_copy):
    (exported_copy / "onnx").rename(exported_copy / ".onnx.999999999.old")
    (exported_copy / ".onnx.999999998.writing").mkdir()
    (exported_copy / ".onnx.mine").mkdir()
    assert main(["export", str(exported_copy)]) == 0
    assert [file.name for file in exported_copy.glob(".onnx.*")] == [".onnx.mine"] and (
        exported_copy / "onnx" / "text.onnx"
    ).is_file()


def test_openclip_models_have_no_folder_of_their_own(capsys):
    assert main(["export", "open_clip:ViT-B-32/openai"]) == 1
    assert "--out FOLDER" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nothing")]) == 1
    assert "no such model folder" in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(exported_copy, monkeypatch, capsys):
    import importlib

    module = importlib.import_module("cliplet.export.writing")
    before = {file.name: file.read_bytes() for file in (exported_copy / "onnx").iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "flush", full)
    assert main(["export", str(exported_copy)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (exported_copy / "onnx").iterdir()} == before
    assert sorted(file.name for file in exported_copy.iterdir()) == sorted(
        ["README.md", "config.json", "metrics.json", "model.safetensors", "modules.json", "onnx", "tokenizer.json"]
    )


def test_pictures_that_cannot_be_read_are_left_out_of_the_measure(saved_model, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for number in range(12):
        Image.new("RGB", (40, 40), (20 * number, 5, 9)).save(folder / f"{number}.png")
        lines.append(f"{number}.png\tpicture number {number}")
    (folder / "3.png").write_bytes(b"no more")
    (folder / "list.tsv").write_text("\n".join(lines))
    shutil.copytree(saved_model, tmp_path / "model")
    words = ["--data", str(folder / "list.tsv"), "--split", "all", "--json"]
    assert main(["export", str(tmp_path / "model"), *words]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert len(step["recalls"]) == 4
