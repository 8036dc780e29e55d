"""Whole runs on a few scenes: learning, stopping, being killed, resuming, and what can go wrong."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import files_no_larger_than, tiny_model, tiny_run
from safetensors.torch import load_file

import cliplet
from cliplet.cli import main
from cliplet.config import (
    AugmentConfig,
    LossConfig,
    RunConfig,
    SamConfig,
    SharedHeadConfig,
    StageConfig,
    StageLossConfig,
    TemperatureConfig,
    from_yaml,
    to_yaml,
)
from cliplet.data.scenes import render_scenes
from cliplet.errors import ClipletError, DataError, TrainingError
from cliplet.training import train, trainer
from cliplet.training.step import StepResult


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_scenes(folder, 32, 8, 0, seed=1, image_size=48)
    return folder


def tiny(scenes: Path, output: Path, **train_settings) -> RunConfig:
    """A run of seconds: 0.4 M parameters, pictures of 48 pixels, and dropout so that randomness counts."""
    settings = {"output": str(output), "stages": (StageConfig(epochs=3),), "log_every": 2, **train_settings}
    config = tiny_run(scenes, tiny_model(), workers=2, weight_decay=0.0, **settings)
    return config.model_copy(update={"augment": AugmentConfig(flip=0.0)})


def with_parts(config: RunConfig, **parts) -> RunConfig:
    """The configuration with `section={key: value}` changed in its sections."""
    return config.model_copy(
        update={part: getattr(config, part).model_copy(update=values) for part, values in parts.items()}
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs"


def log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def train_lines(output: Path) -> list[dict]:
    return [line for line in log_lines(output) if line["kind"] == "train"]


def validated(output: Path) -> list[int]:
    return [line["epoch"] for line in log_lines(output) if line["kind"] == "validation"]


def warnings(output: Path) -> list[str]:
    return [line["message"] for line in log_lines(output) if line["kind"] == "warning"]


def checkpoints(output: Path) -> list[str]:
    return sorted(file.name for file in (output / "checkpoints").iterdir())


def newest_checkpoint(output: Path) -> dict:
    return torch.load(output / "checkpoints" / checkpoints(output)[-1], weights_only=True)


@contextmanager
def at_step(step: int, act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Within it, runs do something after a step, before a checkpoint is due; it gets the event that asks to stop."""
    between_steps = trainer.Trainer._between_steps

    def acting(self, last, place, log, stop):
        if self.global_step == step:
            act(stop)
        return between_steps(self, last, place, log, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_between_steps", acting)
        yield


def stop_at(config: RunConfig, step: int) -> None:
    """Begins the run, or goes on with it, up to a step."""
    resume = (config.output / "checkpoints").exists()
    with at_step(step, threading.Event.set), pytest.raises(trainer.Interrupted, match=f"at step {step} of"):
        train(config, resume=resume)


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(scenes, output), command="cliplet train tiny")
    return output


def test_overfits_32_scenes_to_a_recall_of_100(scenes: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "run", batch_size=32, stages=(StageConfig(epochs=60),), validate_every=60)
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
    assert checkpoints(finished) == ["step-00000008.pt", "step-00000012.pt"]
    lines = train_lines(finished)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert all(0 <= line["data_wait"] <= 1 and line["images_per_second"] > 0 for line in lines)
    assert not any("skipped" in line for line in lines)
    assert validated(finished) == [1, 2, 3]
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


def written(config: RunConfig, file: Path) -> str:
    """The configuration in a file, for the command line."""
    file.write_text(to_yaml(config))
    return str(file)


KILLED_AT = """
import os, signal, sys
from cliplet.cli import main
from cliplet.training.trainer import Trainer

between_steps = Trainer._between_steps

def killed(self, *rest):
    if self.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return between_steps(self, *rest)

Trainer._between_steps = killed
main(["train", "--config", sys.argv[2]])
"""


def test_killed_and_resumed_gives_the_weights_of_no_kill(scenes: Path, finished: Path, tmp_path: Path, run_python):
    """Killed in the middle of an epoch, two steps beyond the newest checkpoint."""
    output = tmp_path / "killed"
    config = tiny(scenes, output, checkpoint_every=5)
    done = run_python(KILLED_AT, tmp_path, 7, written(config, tmp_path / "config.yaml"))
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert checkpoints(output) == ["step-00000004.pt", "step-00000005.pt"] and not (output / "last").exists()
    train(config, resume=True)
    assert_same_weights(finished / "last", output / "last")
    assert_same_weights(finished / "model", output / "model")
    assert [line["step"] for line in train_lines(output)] == [2, 4, 6, 8, 10, 12]


def long(scenes: Path, output: Path) -> RunConfig:
    return tiny(scenes, output, stages=(StageConfig(epochs=40),), validate_every=40, log_every=1)


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(scenes: Path, tmp_path: Path):
    output = tmp_path / "stopped"
    command = ["train", "--config", written(long(scenes, output), tmp_path / "config.yaml")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cliplet", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(output, 2, process)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "--resume" in text and "Traceback" not in text
    content = newest_checkpoint(output)
    assert 0 < content["epoch"] * 4 + content["step"] < 160
    assert f"stopped at step {content['epoch'] * 4 + content['step']} of 160" in text


def wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = output / "log.jsonl"
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[0]}")


def test_sigterm_is_treated_like_ctrl_c(scenes: Path, tmp_path: Path, capsys):
    output = tmp_path / "stopped"
    handler = signal.getsignal(signal.SIGTERM)
    with at_step(2, lambda stop: os.kill(os.getpid(), signal.SIGTERM)):
        assert main(["train", "--config", written(long(scenes, output), tmp_path / "config.yaml")]) == 130
    assert "--resume" in capsys.readouterr().err
    # Python hears of a signal when it is between two of its instructions, which may be those of the step after.
    assert newest_checkpoint(output)["step"] in (2, 3)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_stopped_at_the_end_of_an_epoch_is_validated_after_resuming(scenes: Path, finished: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "run")
    stop_at(config, 4)
    assert validated(config.output) == []
    train(config, resume=True)
    assert_same_weights(finished / "model", config.output / "model")
    assert validated(config.output) == [1, 2, 3]


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


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_of_a_damaged_checkpoint_is_said_that_the_one_before_is_used(scenes, finished, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    cut_in_half(output / "checkpoints" / "step-00000012.pt")
    for name in ("model", "last"):
        shutil.rmtree(output / name)
    train(tiny(scenes, output), resume=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "step-00000012.pt is damaged" in said and "going on from step-00000008.pt, 4 steps earlier" in said
    assert "resumed at step 8 of 12" in said
    assert_same_weights(finished / "last", output / "last")
    assert [line["step"] for line in train_lines(output)] == [2, 4, 6, 8, 10, 12]
    assert checkpoints(output) == ["step-00000008.pt", "step-00000012.pt"]
    assert newest_checkpoint(output)["epoch"] == 3


def test_when_the_only_checkpoint_is_damaged_nothing_is_touched(scenes, finished, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / "checkpoints" / "step-00000008.pt").unlink()
    cut_in_half(output / "checkpoints" / "step-00000012.pt")
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    with pytest.raises(TrainingError, match=r"no checkpoint is good:\n.*step-00000012.pt is damaged"):
        train(tiny(scenes, output), resume=True)
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before


def test_a_full_disk_leaves_the_earlier_checkpoint_to_go_on_from(scenes: Path, finished: Path, tmp_path: Path):
    config = tiny(scenes, tmp_path / "run")
    stop_at(config, 5)
    folder = config.output / "checkpoints"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with (
        files_no_larger_than(len(before["step-00000005.pt"]) // 2),
        pytest.raises(TrainingError, match=r"step-00000008.pt: the checkpoint could not be written"),
    ):
        train(config, resume=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    train(config, resume=True)
    assert_same_weights(finished / "last", config.output / "last")
    assert_same_weights(finished / "model", config.output / "model")


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
    still = config.optim.model_copy(update={"image_lr": 1e-30, "text_lr": 1e-30, "head_lr": 1e-30})
    # A tiny factor makes every similarity nearly equal, as features that are all alike would.
    flat = config.model.temperature.model_copy(update={"init": 0.01, "minimum": 0.001})
    train(config.model_copy(update={"optim": still, "model": config.model.model_copy(update={"temperature": flat})}))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{math.log(8):.2f}" in printed and "Usual causes" in printed
    assert '"kind": "warning"' in (tmp_path / "run" / "log.jsonl").read_text()


def wild(config: RunConfig) -> RunConfig:
    """Rates at which the first step makes infinite weights."""
    return with_parts(config, optim={"head_lr": 1e38, "image_lr": 1e38, "text_lr": 1e38})


def test_weights_that_give_no_numbers_any_more_end_the_run(scenes: Path, tmp_path: Path):
    output = tmp_path / "run"
    with pytest.raises(TrainingError, match="3 steps in a row had no finite loss and gradient, up to step 4") as caught:
        train(wild(tiny(scenes, output, log_every=1, max_skipped=2)))
    assert "--optim.head-lr" in caught.value.hint
    assert [line["step"] for line in train_lines(output)] == [1]
    assert [message.partition(" changed nothing")[0] for message in warnings(output)] == ["step 2", "step 3", "step 4"]
    assert (output / "skipped-batch" / "0-0.safetensors").is_file() and not (output / "checkpoints").exists()


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


IDLE = {"image_blocks": 0, "text_blocks": 0, "heads": False}
NOTHING = StageLossConfig(info_nce=0.0)


@pytest.mark.parametrize(
    ("part", "update", "error", "says"),
    [
        ("data", {"path": "nowhere"}, DataError, "no such file"),
        ("data", {"train_split": "trian"}, DataError, "no split 'trian'"),
        ("data", {"val_split": "test"}, DataError, r"train \(32\), val \(8\)"),
        ("data", {"images": "nowhere"}, DataError, "does not exist"),
        ("train", {"device": "cuda:99"}, TrainingError, "cannot be used"),
        ("train", {"stages": (StageConfig(image_blocks=99),)}, TrainingError, "99"),
        ("train", {"stages": (StageConfig(), StageConfig(text_blocks=99))}, TrainingError, "99"),
        ("train", {"stages": (StageConfig(), StageConfig(**IDLE))}, TrainingError, "trains nothing"),
        ("train", {"stages": (StageConfig(), StageConfig(loss=NOTHING))}, TrainingError, "no term"),
        ("loss", {"info_nce": 0.0}, TrainingError, "no term"),
        ("optim", {"image_lr": 0.0, "text_lr": 0.0, "head_lr": 0.0}, TrainingError, "trains nothing"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(scenes, tmp_path, part, update, error, says):
    config = tiny(scenes, tmp_path / "run")
    config = config.model_copy(update={part: getattr(config, part).model_copy(update=update)})
    with pytest.raises(error, match=says) as caught:
        train(config)
    assert isinstance(caught.value, ClipletError)
    assert not (tmp_path / "run").exists()


def test_resuming_on_other_data_names_it(scenes: Path, tmp_path: Path):
    data, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    short = {"stages": (StageConfig(epochs=1),), "batch_size": 32}
    train(tiny(data, output, **short))
    annotations = data / "dataset_scenes.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["sentences"][0]["raw"] = "another caption"
    annotations.write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"training data: 32 pictures, checksum \w+ -> 32 pictures, checksum"):
        train(tiny(data, output, **short), resume=True)


def test_a_run_that_left_no_checkpoint_begins_anew_without_its_quarantine(scenes: Path, tmp_path: Path):
    data, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    pictures = sorted((data / "images").glob("train_*.png"))
    whole = {picture: picture.read_bytes() for picture in pictures}
    for picture in pictures:
        picture.write_bytes(b"")
    config = tiny(data, output, stages=(StageConfig(epochs=1),))
    with pytest.raises(DataError, match="could be read"):
        train(config)
    for picture, content in whole.items():
        picture.write_bytes(content)
    assert not train(config).quarantine
    assert not (output / "quarantine.jsonl").exists()


def test_killed_during_the_first_validation_can_be_resumed(scenes: Path, finished: Path, tmp_path: Path, monkeypatch):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tiny(scenes, output))
    train(tiny(scenes, output), resume=True)
    assert_same_weights(finished / "model", output / "model")
    assert_same_weights(finished / "last", output / "last")


@pytest.mark.parametrize("every", [0, 1])
def test_nothing_that_is_no_number_is_ever_saved(scenes: Path, tmp_path: Path, every: int):
    with pytest.raises(TrainingError, match=f"weights became infinite or no numbers by step {every or 4}"):
        train(wild(tiny(scenes, tmp_path / "run", log_every=100, checkpoint_every=every)))
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "model").exists()


# What a run may be made of. Each of these is stopped in the middle of an epoch and resumed.


HEADS = {"image_blocks": 0, "text_blocks": 0}
KINDS = {
    "several batches a step, sgd, hard negatives": {
        "train": {"batch_size": 2, "accumulate": 2},
        "optim": {"optimizer": "sgd", "schedule": "constant"},
        "loss": {"hard_negative": 0.5},
    },
    "SAM, several batches a step, towers frozen at first": {
        "train": {
            "batch_size": 2,
            "accumulate": 2,
            "stages": (StageConfig(epochs=1, **HEADS), StageConfig(epochs=1, image_blocks=2)),
        },
        "optim": {"sam": SamConfig(rho=0.1, per_layer=True), "clip_norm": None},
    },
    "fp16": {"train": {"precision": "fp16"}},
    "fp16, which seeks its scale": {"train": {"precision": "fp16"}},
    "siglip, dynamic temperature, shared head, bias": {
        "loss": {"info_nce": 0.0, "siglip": 1.0},
        "model": {
            "temperature": TemperatureConfig(kind="dynamic", init=10.0),
            "shared_head": SharedHeadConfig(kind="residual_mlp"),
            "logit_bias": -10.0,
        },
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_in_the_middle_of_an_epoch_each_kind_of_run_is_the_same(scenes, tmp_path, monkeypatch, kind):
    short = {"batch_size": 4, "stages": (StageConfig(epochs=2),), "log_every": 1, "validate_every": 2}
    whole, stopped = (
        with_parts(tiny(scenes, tmp_path / name, **short), data={"max_images": 8}, **KINDS[kind])
        for name in ("whole", "stopped")
    )
    if kind == "fp16":  # at a scale at which nothing overflows
        monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=256.0))
    train(whole)
    stop_at(stopped, 3)
    train(stopped, resume=True)
    assert_same_weights(whole.output / "last", stopped.output / "last")
    ends = [newest_checkpoint(one.output) for one in (whole, stopped)]
    assert ends[0]["scaler"] == ends[1]["scaler"] and bool(ends[0]["scaler"]) == kind.startswith("fp16")
    skipped = ends[0]["skipped"]
    assert ends[1]["skipped"] == skipped and bool(skipped) == (kind == "fp16, which seeks its scale")
    figures = ("step", "loss", "grad_norm", "logit_scale", "lr_image", "lr_text", "lr_head")
    first, second = (
        [[line.get(name) for name in figures] for line in train_lines(one.output)] for one in (whole, stopped)
    )
    assert first == second and [line[0] for line in first] == [1, 2, 3, 4][skipped:]


def test_a_model_of_all_parts_is_trained_saved_and_opened(scenes: Path, tmp_path: Path):
    config = with_parts(
        tiny(scenes, tmp_path / "run", batch_size=16, stages=(StageConfig(epochs=1),)),
        **KINDS["siglip, dynamic temperature, shared head, bias"],
        optim={"head_lr": 1e-2, "warmup": 0.0},
    )
    train(config)
    ended = weights(config.output / "last")
    assert {"logit_bias", "temperature.mlp.0.weight", "shared_head.fc2.weight"} <= ended.keys()
    assert 0 < abs(float(ended["logit_bias"]) + 10.0) < 0.1
    model = cliplet.models.DualEncoder.from_pretrained(config.output / "last")
    assert float(model.logit_bias.detach()) == float(ended["logit_bias"])
    start = weights_before_training(config)
    for name in ("temperature.mlp.2.bias", "shared_head.fc1.weight", "shared_head.norm.bias", "image_head.1.weight"):
        assert not torch.equal(ended[name], start[name]), name
    features = cliplet.load(config.output / "model").encode_text(["a red circle"])
    assert features.shape == (1, 32) and (features**2).sum() == pytest.approx(1, rel=1e-5)


def weights_before_training(config: RunConfig) -> dict[str, torch.Tensor]:
    from cliplet.data.readers import read_source

    torch.manual_seed(config.train.seed)
    records = read_source(config.data.path, None).select("train")
    captions = (caption for record in records for caption in record.captions)
    return cliplet.models.DualEncoder.build(config.model, captions).state_dict()


def test_stages_name_what_they_train_and_weigh_their_own_loss(scenes: Path, tmp_path: Path, capsys):
    """The loss section itself has no weight, so the run's end must not ask it for its chance either."""
    stages = (
        StageConfig(epochs=1, **HEADS, loss=StageLossConfig(info_nce=1.0)),
        StageConfig(epochs=1, text_blocks=1, loss=StageLossConfig(info_nce=2.0, hard_negative=0.5)),
    )
    config = with_parts(
        tiny(scenes, tmp_path / "run", batch_size=16, stages=stages, log_every=1), loss={"info_nce": 0.0, "margin": 0.3}
    )
    train(config)
    lines = train_lines(config.output)
    terms = [{name for name in line if name.startswith("loss_")} for line in lines]
    assert terms == [set(), set(), {"loss_info_nce", "loss_hard_negative"}, {"loss_info_nce", "loss_hard_negative"}]
    for line in lines[2:]:
        assert line["loss"] == pytest.approx(2 * line["loss_info_nce"] + 0.5 * line["loss_hard_negative"], rel=1e-5)
        assert line["loss_hard_negative"] > 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    start = weights_before_training(config)
    heads = sum(start[name].numel() for name in start if name.startswith(("image_head.", "text_head.", "temperature.")))
    assert printed[0].startswith("stage 1/2 trains image tower: frozen, text tower: frozen, heads and temperature: all")
    assert f"; {heads:,} of " in printed[0]
    assert printed[0].endswith("in 5 tensors: image_head.*, text_head.*, temperature.*")
    assert "stage 2/2 trains image tower: all, text tower: last 1 of 2 blocks" in printed[1]
    assert "image_tower.*, text_tower.layers.*, text_tower.final_norm.*, image_head.*" in printed[1]


# With steps that are made up


@pytest.fixture
def made_up(monkeypatch):
    """Replaces the step: `loss(n)` gives step n's, and what each step was called with is kept."""
    calls = []

    def replace_by(loss=lambda step: 1.0, grad_norm=1.0):
        class MadeUp:
            def __init__(self, model, optimizer, scaler, **settings):
                self.model, self.optimizer, self.settings = model, optimizer, settings

            def step(self, batches, weighed, seed):
                rates = {group["part"]: group["lr"] for group in self.optimizer.param_groups}
                made = {"rates": rates, "batches": batches, "loss": weighed, "seed": seed, "model": self.model}
                calls.append({**self.settings, **made})
                value, norm = torch.tensor(float(loss(len(calls)))), torch.tensor(grad_norm)
                skipped = ~(value.isfinite() & norm.isfinite())
                return StepResult(value, {"info_nce": value}, torch.tensor(1.0), norm, skipped)

        monkeypatch.setattr(trainer, "Stepper", MadeUp)
        return calls

    return replace_by


COSINE = [1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]
RISE = [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("schedule", "shares"), [("cosine", COSINE), ("constant", [1.0] * 8)])
def test_each_step_has_the_rates_of_its_stage(scenes, tmp_path, made_up, schedule, shares):
    calls = made_up()
    first, second = StageConfig(epochs=2, text_lr=8.0), StageConfig(epochs=2, image_lr=4.0, head_lr=0.0)
    config = tiny(scenes, tmp_path / "run", batch_size=16, stages=(first, second), log_every=1, validate_every=4)
    rates = {"image_lr": 1.0, "text_lr": 2.0, "head_lr": 3.0}
    train(with_parts(config, optim={**rates, "schedule": schedule, "warmup": 0.25}))
    peaks = [{"image": 1.0, "text": 8.0, "head": 3.0}] * 4 + [{"image": 4.0, "text": 2.0, "head": 0.0}] * 4
    expected = [
        {part: peak * rise * share for part, peak in of.items()}
        for of, rise, share in zip(peaks, RISE, shares, strict=True)
    ]
    assert [call["rates"] for call in calls] == [pytest.approx(one, abs=1e-4) for one in expected]
    logged = [
        {part: line[f"lr_{part}"] for part in ("image", "text", "head")} for line in train_lines(tmp_path / "run")
    ]
    assert logged == [call["rates"] for call in calls]


@pytest.mark.parametrize(("accumulate", "steps", "batches"), [(1, 4, 1), (2, 2, 2), (3, 1, 3), (9, 1, 4)])
def test_steps_an_epoch_with_several_batches_each(scenes, tmp_path, made_up, capsys, accumulate, steps, batches):
    calls = made_up()
    two = (StageConfig(epochs=2),)
    train(tiny(scenes, tmp_path / "run", accumulate=accumulate, stages=two, validate_every=2, log_every=1))
    assert [len(call["batches"]) for call in calls] == [batches] * 2 * steps
    assert [line["epoch"] for line in train_lines(tmp_path / "run")] == [(n + 1) / steps for n in range(2 * steps)]
    assert f"2 epochs of {steps} steps" in " ".join(capsys.readouterr().out.split())


def test_settings_reach_the_step(scenes, tmp_path, made_up):
    calls = made_up()
    stages = (StageConfig(epochs=1), StageConfig(epochs=1, loss=StageLossConfig(siglip=0.5)))
    config = tiny(
        scenes, tmp_path / "run", batch_size=16, stages=stages, precision="bf16", chunk_size=4, ema=0.5, seed=7
    )
    config = with_parts(
        config, optim={"sam": SamConfig(rho=0.3, per_layer=True), "clip_norm": None}, loss={"margin": 0.7}
    )
    train(config)
    first, second = LossConfig(margin=0.7), LossConfig(margin=0.7, siglip=0.5)
    assert [call["loss"] for call in calls] == [first, first, second, second]
    assert [call["seed"] for call in calls] == [(7, 0), (7, 1), (7, 2), (7, 3)]
    assert all(call["clip_norm"] is None and call["precision"] == "bf16" for call in calls)
    assert all((call["sam"].rho, call["sam"].per_layer) == (0.3, True) for call in calls)
    assert all(call["chunk_size"] == 4 and call["average"].decay == 0.5 for call in calls)


def test_without_sam_average_and_chunks_and_with_clipping(scenes, tmp_path, made_up):
    calls = made_up()
    config = with_parts(tiny(scenes, tmp_path / "run", batch_size=32), optim={"clip_norm": 0.25})
    train(config)
    names = ("sam", "average", "chunk_size", "clip_norm", "precision")
    assert [[call[name] for name in names] for call in calls] == [[None, None, None, 0.25, "fp32"]] * 3


@pytest.mark.parametrize(("second", "warned"), [(1.0, False), (2.07, True)])
def test_chance_is_that_of_the_stage_and_of_its_steps_alone(scenes, tmp_path, made_up, second, warned):
    """A loss of 100 is far below the chance of the first stage, 100 ln 8, and must not spoil the second's mean."""
    made_up(lambda step: 100.0 if step <= 16 else second)
    stages = (StageConfig(epochs=4, loss=StageLossConfig(info_nce=100.0)), StageConfig(epochs=4))
    train(tiny(scenes, tmp_path / "run", stages=stages, validate_every=8))
    said = [line for line in log_lines(tmp_path / "run") if line["kind"] == "warning"]
    assert len(said) == warned
    assert not warned or (f"chance ({math.log(8):.2f}" in said[0]["message"] and said[0]["step"] > 16)
