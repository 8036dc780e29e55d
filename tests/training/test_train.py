"""Whole runs on a few scenes: learning, stopping, being killed, resuming, and what can go wrong."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cliplet
from cliplet.config import (
    AugmentConfig,
    DataConfig,
    ImageTowerConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    StageConfig,
    TextTowerConfig,
    TrainConfig,
    from_yaml,
    to_yaml,
)
from cliplet.data.scenes import render_scenes
from cliplet.errors import ClipletError, DataError, TrainingError
from cliplet.training import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_scenes(folder, 32, 8, 0, seed=1, image_size=48)
    return folder


def tiny(scenes: Path, output: Path, **train_settings) -> RunConfig:
    """A run of seconds: 0.4 M parameters, pictures of 48 pixels, and dropout so that randomness counts."""
    settings = {
        "batch_size": 8,
        "stages": (StageConfig(epochs=3),),
        "precision": "fp32",
        "log_every": 2,
        "device": "cpu",
    }
    return RunConfig(
        name="tiny",
        data=DataConfig(path=str(scenes), captions_per_image=2, workers=2),
        augment=AugmentConfig(flip=0.0),
        model=ModelConfig(
            embed_dim=32,
            image=ImageTowerConfig(name="test_resnet", train_batch_norm=True),
            text=TextTowerConfig(width=32, layers=1, heads=2, context_length=32, vocab_size=400, dropout=0.1),
            preprocess=PreprocessConfig(image_size=48),
        ),
        optim=OptimConfig(image_lr=2e-3, text_lr=2e-3, head_lr=2e-3, weight_decay=0.0),
        train=TrainConfig(output=str(output), **{**settings, **train_settings}),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs"


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(scenes, output), command="cliplet train tiny")
    return output


def test_overfits_32_scenes_to_a_recall_of_100(scenes: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "run", batch_size=32, stages=(StageConfig(epochs=80),), validate_every=80)
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"val_split": "train", "captions_per_image": 5}),
            "augment": AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0),
            "model": config.model.model_copy(
                update={"text": config.model.text.model_copy(update={"dropout": 0.0, "width": 64})}
            ),
        }
    )
    metrics = train(config).evaluation.metrics
    assert metrics["image_to_text_R@1"] == 100
    assert metrics["text_to_image_R@1"] == 100


def test_a_run_leaves_all_that_it_promises(finished: Path):
    assert (finished / "config.yaml").is_file() and (finished / "report.html").is_file()
    assert from_yaml((finished / "config.yaml").read_text()).name == "tiny"
    assert list((finished / "tensorboard").glob("events*"))
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12]
    assert all(0 <= line["data_wait"] <= 1 and line["images_per_second"] > 0 for line in steps)
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [1, 2, 3]
    for name in ("model", "last"):
        encoder = cliplet.load(finished / name)
        assert encoder.encode_text(["a red circle"]).shape == (1, 32)
    card = (finished / "model" / "README.md").read_text()
    assert "cliplet train tiny" in card and "image→text" in card and "embed_dim: 32" in card
    metrics = json.loads((finished / "model" / "metrics.json").read_text())
    assert metrics["split"] == "val" and metrics["retrieval"]["images"] == 8
    assert f"{metrics['retrieval']['image_to_text_R@1']:.2f}" in card


def test_the_same_configuration_gives_the_same_weights(scenes: Path, finished: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "again")
    train(config.model_copy(update={"data": config.data.model_copy(update={"workers": 1})}))
    assert_same_weights(finished / "last", tmp_path / "again" / "last")


def start(config: RunConfig, folder: Path, *flags: str) -> subprocess.Popen:
    """The command line on a configuration, in a process that can be killed."""
    file = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "cliplet", "train", "--config", str(file), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = output / "log.jsonl"
        if log.is_file() and f'"step": {step},' in log.read_text() and (output / "checkpoint.pt").is_file():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[0]}")


def test_killed_and_resumed_gives_the_weights_of_no_kill(scenes: Path, finished: Path, tmp_path: Path):
    output = tmp_path / "killed"
    config = tiny(scenes, output, checkpoint_every=3)
    process = start(config, tmp_path / "settings")
    wait_for_step(output, 4, process)  # beyond the checkpoint of step 3, in the middle of an epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "last").exists()
    train(config, resume=True)
    assert_same_weights(finished / "last", output / "last")
    assert_same_weights(finished / "model", output / "model")
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 4, 6, 8, 10, 12]


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(scenes: Path, tmp_path: Path):
    output = tmp_path / "stopped"
    config = tiny(scenes, output, stages=(StageConfig(epochs=40),), validate_every=40, log_every=1, checkpoint_every=1)
    process = start(config, tmp_path / "settings")
    wait_for_step(output, 2, process)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "--resume" in text and "Traceback" not in text
    content = torch.load(output / "checkpoint.pt", weights_only=True)
    assert 0 < content["epoch"] * 4 + content["step"] < 160


def test_stopped_at_the_end_of_an_epoch_is_validated_after_resuming(scenes: Path, finished: Path, tmp_path: Path):
    from cliplet.training import trainer

    output = tmp_path / "run"
    config = tiny(scenes, output)
    original = trainer.Trainer._after_step

    def stop_at_step_four(self, result, log, stop):
        if self.global_step == 4:
            stop.set()
        original(self, result, log, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_after_step", stop_at_step_four)
        with pytest.raises(trainer.Interrupted):
            train(config)
    train(config, resume=True)
    assert_same_weights(finished / "model", output / "model")
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [1, 2, 3]


def test_a_finished_run_can_be_resumed_and_is_only_measured_again(scenes: Path, finished: Path, tmp_path: Path):
    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    before = weights(output / "last")
    run = train(tiny(scenes, output), resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(output / "last").items())
    assert run.evaluation.metrics["images"] == 8


def test_a_folder_with_a_run_is_not_overwritten(scenes: Path, finished: Path):
    with pytest.raises(TrainingError, match="--resume"):
        train(tiny(scenes, finished))


def test_resuming_another_configuration_names_what_differs(scenes: Path, finished: Path):
    with pytest.raises(TrainingError, match=r"train.batch_size: 8 -> 4"):
        train(tiny(scenes, finished, batch_size=4), resume=True)


def test_resuming_without_a_checkpoint(scenes: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(tiny(scenes, tmp_path / "none"), resume=True)


def test_a_damaged_checkpoint_is_noticed(scenes: Path, finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TrainingError, match="damaged"):
        train(tiny(scenes, tmp_path / "run"), resume=True)


def test_a_full_disk_leaves_the_earlier_checkpoint(scenes: Path, finished: Path, tmp_path: Path):
    """The limit on file sizes makes the kernel refuse the write, as a full disk does."""
    from cliplet.training.checkpoint import Checkpoint

    file = tmp_path / "checkpoint.pt"
    shutil.copy(finished / "checkpoint.pt", file)
    before = file.read_bytes()
    checkpoint = Checkpoint.load(file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(TrainingError, match="could not be written"):
            checkpoint.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_bad_pictures_go_into_the_quarantine_and_nothing_stops(scenes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    names = sorted((data / "images").glob("train_*.png"))
    names[3].write_bytes(names[3].read_bytes()[:200])
    names[5].unlink()
    next((data / "images").glob("val_*.png")).write_bytes(b"")
    run = train(tiny(data, tmp_path / "run"))
    entries = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert len(entries) == len(run.quarantine) == 3
    assert {Path(entry["where"]).name for entry in entries} >= {names[3].name, names[5].name}
    assert run.evaluation.metrics["images"] == 7 and run.evaluation.metrics["captions"] == 35


def test_a_loss_at_chance_is_said_with_the_usual_causes(scenes: Path, tmp_path: Path, capsys):
    config = tiny(scenes, tmp_path / "run", stages=(StageConfig(epochs=2),))
    still = config.optim.model_copy(update={"image_lr": 0.0, "text_lr": 0.0, "head_lr": 0.0})
    # A tiny factor makes every similarity nearly equal, as features that are all alike would.
    flat = config.model.temperature.model_copy(update={"init": 0.01, "minimum": 0.001})
    train(config.model_copy(update={"optim": still, "model": config.model.model_copy(update={"temperature": flat})}))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{math.log(8):.2f}" in printed and "Usual causes" in printed
    assert '"kind": "warning"' in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_loss_that_is_no_number_ends_the_run(scenes: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "run", log_every=1)
    wild = config.optim.model_copy(update={"head_lr": 1e38, "image_lr": 1e38, "text_lr": 1e38})
    with pytest.raises(TrainingError, match="became"):
        train(config.model_copy(update={"optim": wild}))


def test_stages_freeze_and_free(scenes: Path, tmp_path: Path):
    heads_only = tiny(scenes, tmp_path / "heads", stages=(StageConfig(epochs=1, image_blocks=0, text_blocks=0),))
    train(heads_only)
    torch.manual_seed(heads_only.train.seed)
    trained = weights(tmp_path / "heads" / "last")
    both = tiny(
        scenes,
        tmp_path / "both",
        stages=(StageConfig(epochs=1, image_blocks=0, text_blocks=0), StageConfig(epochs=1, image_blocks=1)),
    )
    train(both)
    changed = {
        name for name, tensor in weights(tmp_path / "both" / "last").items() if not torch.equal(tensor, trained[name])
    }
    assert any(name.startswith("text_tower") for name in changed)
    assert any(name.startswith("image_tower.model.layer4") for name in changed)
    assert not any(name.startswith(("image_tower.model.conv1", "image_tower.model.layer1")) for name in changed)


@pytest.mark.parametrize(
    ("part", "update", "error", "says"),
    [
        ("data", {"path": "nowhere"}, DataError, "no such file"),
        ("data", {"train_split": "trian"}, DataError, "no split 'trian'"),
        ("data", {"val_split": "test"}, DataError, r"train \(32\), val \(8\)"),
        ("data", {"images": "nowhere"}, DataError, "does not exist"),
        ("train", {"device": "cuda:99"}, TrainingError, "cannot be used"),
        ("train", {"stages": (StageConfig(image_blocks=99),)}, TrainingError, "99"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(scenes, tmp_path, part, update, error, says):
    config = tiny(scenes, tmp_path / "run")
    config = config.model_copy(update={part: getattr(config, part).model_copy(update=update)})
    with pytest.raises(error, match=says) as caught:
        train(config)
    assert isinstance(caught.value, ClipletError)


def test_sigterm_is_treated_like_ctrl_c(scenes: Path, tmp_path: Path):
    output = tmp_path / "stopped"
    config = tiny(scenes, output, stages=(StageConfig(epochs=40),), validate_every=40, log_every=1, checkpoint_every=1)
    process = start(config, tmp_path / "settings")
    wait_for_step(output, 2, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_resuming_on_other_data_names_it(scenes: Path, tmp_path: Path):
    data, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    train(tiny(data, output))
    annotations = data / "dataset_scenes.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["sentences"][0]["raw"] = "another caption"
    annotations.write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"training data: 32 pictures, checksum \w+ -> 32 pictures, checksum"):
        train(tiny(data, output), resume=True)


def test_a_run_that_left_no_checkpoint_begins_anew_without_its_quarantine(scenes: Path, tmp_path: Path):
    data, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    pictures = sorted((data / "images").glob("train_*.png"))
    whole = {picture: picture.read_bytes() for picture in pictures}
    for picture in pictures:
        picture.write_bytes(b"")
    with pytest.raises(DataError, match="could be read"):
        train(tiny(data, output))
    for picture, content in whole.items():
        picture.write_bytes(content)
    assert not train(tiny(data, output)).quarantine
    assert not (output / "quarantine.jsonl").exists()


def test_killed_during_the_first_validation_can_be_resumed(scenes: Path, finished: Path, tmp_path: Path, monkeypatch):
    from cliplet.training import trainer

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tiny(scenes, output))
    train(tiny(scenes, output), resume=True)
    assert_same_weights(finished / "model", output / "model")
    assert_same_weights(finished / "last", output / "last")


def test_nothing_that_is_no_number_is_ever_saved(scenes: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "run", log_every=100, checkpoint_every=1)
    wild = config.optim.model_copy(update={"head_lr": 1e38, "image_lr": 1e38, "text_lr": 1e38})
    with pytest.raises(TrainingError, match="became"):
        train(config.model_copy(update={"optim": wild}))
    file = tmp_path / "run" / "checkpoint.pt"
    if file.exists():
        model = torch.load(file, weights_only=True)["model"]
        assert not any(torch.isnan(tensor).any() for tensor in model.values())
