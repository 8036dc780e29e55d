"""The contract: what is saved opens again, alone and equal; what is damaged is named; nothing good is ever lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import cliplet
from cliplet import model_folder
from cliplet.errors import ModelError
from cliplet.model_card import model_card
from cliplet.models import DualEncoder
from cliplet.recipes import recipe
from cliplet.runtime.encoder import Encoder
from cliplet.runtime.engines import TorchEngine
from cliplet.runtime.tokenizer import Tokenizer

FILES = {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "README.md", "modules.json"}


def features(encoder, captions):
    """What a model makes of some pictures and captions."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 37, 50, 3), dtype=np.uint8))
    return encoder.encode_image(pictures), encoder.encode_text(captions)


def encoder_of(model):
    return Encoder(TorchEngine(model), model.tokenizer, model.config.preprocess, model.config.embed_dim)


@pytest.fixture(params=["tiny_model", "bert_model"])
def model(request):
    """A model with each kind of text tower."""
    return request.getfixturevalue(request.param)


def test_saved_and_opened_features_are_bit_equal(model, captions, tmp_path):
    with torch.no_grad():  # as after training: statistics and temperature are not what they were built with
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "running_var" not in name:
                tensor.add_(0.01 * torch.randn_like(tensor))
    model.save_pretrained(tmp_path / "model", card="a card ünï", metrics={"a": 1})
    assert {file.name for file in (tmp_path / "model").iterdir()} == FILES
    before = features(encoder_of(model), captions)
    after = features(cliplet.load(tmp_path / "model"), captions)
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])
    opened = DualEncoder.from_pretrained(tmp_path / "model")
    assert opened.config == model.config and not opened.training
    assert opened.tokenizer.to_json() == model.tokenizer.to_json()
    weights = opened.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "a card ünï"
    assert json.loads((tmp_path / "model" / "metrics.json").read_text()) == {"a": 1}


def test_opened_with_nothing_else_at_hand(tiny_model, bert_model, captions, run_python, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    expected = []
    for name, model in (("tiny", tiny_model), ("bert", bert_model)):
        model.save_pretrained(tmp_path / "built" / name)
        expected.append(features(encoder_of(model), captions)[1])
    shutil.move(tmp_path / "built", tmp_path / "moved")  # not even its own place
    code = (
        "import json, sys, socket\n"
        "def refuse(*a, **k): raise RuntimeError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import cliplet\n"
        "texts = json.loads(sys.argv[1])\n"
        "print(json.dumps([cliplet.load(f).encode_text(texts).tolist() for f in sys.argv[2:]]))"
    )
    folders = [tmp_path / "moved" / name for name in ("tiny", "bert")]
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = run_python(code, tmp_path / "elsewhere", json.dumps(captions), *folders, **home)
    assert done.returncode == 0, done.stderr
    for got, features_CD in zip(json.loads(done.stdout), expected, strict=True):
        np.testing.assert_allclose(np.array(got), features_CD, atol=1e-6)


@pytest.mark.parametrize(("version", "advice"), [(2, "Upgrade"), (0, "again"), (None, "again"), ("1", "again")])
def test_another_format_version_is_refused_with_both_numbers(model_copy, version, advice):
    file = model_copy / "config.json"
    data = json.loads(file.read_text())
    assert data["format_version"] == 1
    file.write_text(json.dumps({**data, "format_version": version}))
    for opens in (cliplet.load, DualEncoder.from_pretrained, model_folder.summarize):
        with pytest.raises(ModelError) as caught:
            opens(model_copy)
        assert f"format version {version}" in caught.value.message and "reads version 1" in caught.value.message
        assert advice in caught.value.hint


def test_another_tools_folder_is_refused(model_copy):
    (model_copy / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    with pytest.raises(ModelError, match="another tool"):
        cliplet.load(model_copy)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\x00"])
def test_config_that_is_no_json_or_no_table(model_copy, text):
    (model_copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"not JSON|another tool"):
        cliplet.load(model_copy)


def test_config_that_is_not_utf8(model_copy):
    (model_copy / "config.json").write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ModelError, match="not JSON"):
        cliplet.load(model_copy)


def test_an_unknown_key_in_config_is_named(model_copy):
    data = json.loads((model_copy / "config.json").read_text())
    data["model"]["text"]["width_of"] = data["model"]["text"].pop("width")
    (model_copy / "config.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"unknown key model\.text\.width_of"):
        cliplet.load(model_copy)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1], ids=lambda keep: f"{keep} bytes")
def test_truncated_weights(model_copy, keep):
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    for opens in (cliplet.load, model_folder.summarize):
        with pytest.raises(ModelError) as caught:
            opens(model_copy)
        assert str(model_copy) in caught.value.message


def test_weights_of_other_shapes_missing_and_left_over_are_named(model_copy):
    file = model_copy / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["image_head.1.weight"] = weights["image_head.1.weight"][:, 1:].contiguous()
    weights["stranger"] = weights.pop("temperature.log_scale")
    safetensors.torch.save_file(weights, file)
    with pytest.raises(ModelError) as caught:
        cliplet.load(model_copy)
    assert "1 missing (temperature.log_scale)" in caught.value.message
    assert "1 left over (stranger)" in caught.value.message
    assert "1 of another shape (image_head.1.weight is (16, 95), expected (16, 96))" in caught.value.message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(model_copy, name):
    (model_copy / name).unlink()
    with pytest.raises(ModelError, match=f"has no {name}"):
        cliplet.load(model_copy)


def test_a_tokenizer_that_is_none_and_one_of_another_model(model_copy, make_bert, tmp_path):
    (model_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be opened as a tokenizer"):
        cliplet.load(model_copy)
    shutil.copy(make_bert(tmp_path / "bert") / "tokenizer.json", model_copy)
    with pytest.raises(
        ModelError, match=r"its tokenizer\.json is another model's: it has \d+ entries, but was saved with 279"
    ):
        cliplet.load(model_copy)


def test_huggingface_tower_without_its_architecture(bert_model, tmp_path):
    bert_model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    data = json.loads(file.read_text())
    for broken, said in (
        (None, "text_architecture is missing"),
        ({"model_type": "nonsense"}, "'nonsense'"),
        ({}, "text tower"),
    ):
        file.write_text(json.dumps({**data, "text_architecture": broken}))
        with pytest.raises(ModelError, match=said):
            cliplet.load(tmp_path / "model")


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="no such model folder"):
        cliplet.load(tmp_path / "none")
    with pytest.raises(ModelError, match="is a file, and no model folder"):
        cliplet.load(tmp_path / "file")
    (tmp_path / "kept.npz").write_text("")
    with pytest.raises(ModelError) as caught:
        cliplet.load(tmp_path / "kept.npz")
    assert "Stored embeddings can be measured and compared" in caught.value.hint


def test_a_run_folder_without_a_best_model_points_to_the_last(model_copy, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    model_copy.rename(run / "last")
    with pytest.raises(ModelError) as caught:
        cliplet.load(run)
    assert caught.value.hint == f"The model is in {run / 'last'}."
    assert not model_folder.is_model_folder(run) and model_folder.is_model_folder(run / "last")


def test_summary_counts_what_the_model_has(saved_model, tiny_model):
    summary = model_folder.summarize(saved_model)
    assert summary["model"] == tiny_model.config
    assert summary["parameters"] == sum(tensor.numel() for tensor in tiny_model.state_dict().values())
    assert summary["metrics"] == {}


def contents(folder):
    """Every file below a folder and what is in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


FOREIGN = {
    "papers": {"thesis.txt": "years of work"},
    "another model": {"config.json": '{"model_type": "bert"}', "pytorch_model.bin": "weights"},
    "another program": {"config.json": "{ // not even JSON", "photo.jpg": "a wedding"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_model_folder_is_never_replaced(tiny_model, tmp_path, files):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ModelError, match="no model folder"):
        tiny_model.save_pretrained(folder)
    assert contents(tmp_path) == before


def test_a_file_is_never_replaced(tiny_model, tmp_path):
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(ModelError, match="no model folder"):
        tiny_model.save_pretrained(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"years of work"}


def test_an_empty_folder_and_an_older_model_are_replaced(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    tiny_model.save_pretrained(tmp_path / "model", card="first")
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("model", card="second")
    assert (tmp_path / "model" / "README.md").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]  # nothing is left beside it
    cliplet.load("model")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_stays_a_link(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "real", card="first")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tiny_model.save_pretrained(tmp_path / "link", card="second")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "README.md").read_text() == "second"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "real"]


def test_a_full_disk_leaves_the_old_model(tiny_model, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path / "model", card="first")
    before = contents(tmp_path)

    def half(weights, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(ModelError, match="No space left"):
            tiny_model.save_pretrained(tmp_path / "model", card="second")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", lambda self, file: 1 / 0)  # and any other mishap on the way
        with pytest.raises(ZeroDivisionError):
            tiny_model.save_pretrained(tmp_path / "model", card="third")
    assert contents(tmp_path) == before


def test_a_move_that_fails_brings_the_old_model_back(tiny_model, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path / "model", card="first")
    before = contents(tmp_path)
    rename = Path.rename

    def fails_for_the_new(self, target):
        if self.name.endswith(".writing"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    with pytest.raises(ModelError, match="Input/output error"):
        tiny_model.save_pretrained(tmp_path / "model", card="second")
    assert contents(tmp_path) == before


KILLED_WHILE_WRITING = """
import os, signal, sys
from cliplet.models import DualEncoder
from cliplet.runtime.tokenizer import Tokenizer

model = DualEncoder.from_pretrained(sys.argv[1])
Tokenizer.save = lambda self, file: os.kill(os.getpid(), signal.SIGKILL)  # between the weights and the tokenizer
model.save_pretrained(sys.argv[1], card="second")
"""


def test_a_kill_while_writing_leaves_the_old_model(tiny_model, tmp_path, captions):
    tiny_model.save_pretrained(tmp_path / "model", card="first")
    before = contents(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "model")], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert contents(tmp_path / "model") == before
    features(cliplet.load(tmp_path / "model"), captions)
    tiny_model.save_pretrained(tmp_path / "model", card="third")  # and the next one is written as if nothing had been
    assert (tmp_path / "model" / "README.md").read_text() == "third"
    assert len(list(tmp_path.iterdir())) == 2
    model_folder.recover(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


KILLED_WHILE_REPLACING = """
import os, shutil, signal, sys
from pathlib import Path
from safetensors.torch import load_file
from cliplet import model_folder
from cliplet.runtime.tokenizer import Tokenizer

folder, between_the_renames = Path(sys.argv[1]), sys.argv[2] == "between the renames"
owner, name = (Path, "rename") if between_the_renames else (shutil, "rmtree")
ending = ".writing" if between_the_renames else ".old"
original = getattr(owner, name)

def killed(path, *rest, **settings):
    if path.name.endswith(ending) and path.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path, *rest, **settings)

description, weights = model_folder.read_description(folder), load_file(folder / "model.safetensors")
setattr(owner, name, killed)
model_folder.write(folder, description, weights, Tokenizer.from_file(folder / "tokenizer.json", 24), card="second")
"""


@pytest.mark.parametrize(
    ("moment", "left", "card"),
    [
        ("between the renames", {".model.{}.old", ".model.{}.writing"}, "first"),
        ("before the old is removed", {"model", ".model.{}.old"}, "second"),
    ],
)
def test_a_kill_while_replacing_is_recovered_from(tiny_model, tmp_path, captions, moment, left, card):
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder, card="first")
    before = contents(folder)
    process = subprocess.Popen([sys.executable, "-c", KILLED_WHILE_REPLACING, str(folder), moment])
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert {file.name for file in tmp_path.iterdir()} == {name.format(process.pid) for name in left}
    for _ in range(2):  # and what is in order stays so
        model_folder.recover(folder)
        assert [file.name for file in tmp_path.iterdir()] == ["model"]
        assert contents(folder) == {**before, "README.md": card.encode()}
    features(cliplet.load(folder), captions)


NOBODY = 2**22 + 1  # Linux numbers processes up to 2**22


def test_what_living_processes_write_and_what_is_anothers_is_not_touched(model_copy, tmp_path):
    (tmp_path / f".copy.{NOBODY}.writing").mkdir()
    stay = [f".copy.{os.getppid()}.writing", f".copy.5.{NOBODY}.old", f".copies.{NOBODY}.old", f".copy.{NOBODY}.notes"]
    for name in stay:
        (tmp_path / name).mkdir()
    before = contents(model_copy)
    model_folder.recover(model_copy)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*stay, "copy"])
    assert contents(model_copy) == before


def test_of_several_left_the_last_that_is_whole_is_put_back(model_copy, tmp_path):
    """A half removed one is of a process that was killed later, an elder whole one of one killed before."""
    for age, (number, card) in enumerate([(NOBODY, "half"), (NOBODY + 1, "last"), (NOBODY + 2, "elder")]):
        left = tmp_path / f".copy.{number}.old"
        shutil.copytree(model_copy, left)
        (left / "README.md").write_text(card)
        if card == "half":
            (left / "tokenizer.json").unlink()
        os.utime(left, (1e9 - age, 1e9 - age))
    shutil.rmtree(model_copy)
    model_folder.recover(model_copy)
    assert (model_copy / "README.md").read_text() == "last"
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_what_a_link_leads_to_is_put_back_and_no_folder_is_no_trouble(model_copy, tmp_path):
    (tmp_path / "link").symlink_to(model_copy)
    model_copy.rename(tmp_path / f".copy.{NOBODY}.old")
    model_folder.recover(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and model_folder.is_model_folder(model_copy)
    model_folder.recover(tmp_path / "none")
    model_folder.recover(tmp_path / "no" / "parent")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "link"]


def test_leavings_of_a_killed_process_of_the_same_number_do_no_harm(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model", card="first")
    for ending in ("old", "writing"):  # in a container every process may have the same number
        left = tmp_path / f".model.{os.getpid()}.{ending}"
        left.mkdir()
        (left / "config.json").write_text("half")
    tiny_model.save_pretrained(tmp_path / "model", card="second")
    assert (tmp_path / "model" / "README.md").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_tokenizer_settings_of_the_file_do_not_matter(model_copy, captions):
    before = cliplet.load(model_copy).encode_text(captions)
    file = model_copy / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(data), encoding="utf-8")
    np.testing.assert_array_equal(cliplet.load(model_copy).encode_text(captions), before)


def test_card_says_what_the_configuration_and_the_metrics_say():
    sides = {f"{way}_R@{k}": 10.0 * k for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    ranks = {f"{way}_{kind}_rank": 7.0 for way in ("image_to_text", "text_to_image") for kind in ("median", "mean")}
    metrics = {**sides, **ranks, "rsum": 320.0, "images": 1234, "captions": 6170}
    config = recipe("finetune")
    card = model_card(config, 25_120_000, metrics, "cliplet train finetune --name '{x}'")
    assert card.startswith("---\n") and "25.1 M" in card and "mobilenetv2_100, started from hub" in card
    assert "| image→text | 10.00 | 50.00 | 100.00 | 7 | 7.0 |" in card and "1,234 pictures" in card
    assert "--name '{x}'" in card
    yaml = card.split("```yaml\n")[1].split("```")[0]
    from cliplet.config import from_yaml

    assert from_yaml(yaml) == config
    assert "## Results" not in model_card(config, 25_120_000, {}, "")
