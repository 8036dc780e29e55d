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
    LossConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    SamConfig,
    SharedHeadConfig,
    StageConfig,
    StageLossConfig,
    TemperatureConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
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
            text=TextTowerConfig(
                width=32, layers=1, heads=2, context_length=32, tokenizer=TokenizerConfig(vocab_size=400)
            ),
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
    output = tmp_path / "run"
    config = tiny(scenes, output)
    original = trainer.Trainer._after_step

    def stop_at_step_four(self, result, place, log, stop):
        if self.global_step == 4:
            stop.set()
        original(self, result, place, log, stop)

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
    still = config.optim.model_copy(update={"image_lr": 1e-30, "text_lr": 1e-30, "head_lr": 1e-30})
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


# What a run may be made of. Each of these is stopped in the middle of an epoch and resumed.


def with_parts(config: RunConfig, **parts) -> RunConfig:
    """The configuration with `section={key: value}` changed in its sections."""
    return config.model_copy(
        update={part: getattr(config, part).model_copy(update=values) for part, values in parts.items()}
    )


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
    train(whole)
    after_step = trainer.Trainer._after_step

    def stop_at_step_three(self, result, place, log, stop):
        if self.global_step == 3:
            stop.set()
        after_step(self, result, place, log, stop)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_after_step", stop_at_step_three)
        with pytest.raises(trainer.Interrupted, match="step 3 of 4"):
            train(stopped)
    train(stopped, resume=True)
    assert_same_weights(whole.output / "last", stopped.output / "last")
    checkpoints = [torch.load(one.output / "checkpoint.pt", weights_only=True) for one in (whole, stopped)]
    assert checkpoints[0]["scaler"] == checkpoints[1]["scaler"]
    assert bool(checkpoints[0]["scaler"]) == (kind == "fp16")
    figures = ("step", "loss", "grad_norm", "logit_scale", "lr_image", "lr_text", "lr_head")
    first, second = (
        [[line.get(name) for name in figures] for line in train_lines(one.output)] for one in (whole, stopped)
    )
    assert first == second and [line[0] for line in first] == [1, 2, 3, 4]


def train_lines(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


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

    def replace(loss=lambda step: 1.0, grad_norm=1.0):
        def step(model, optimizer, scaler, batches, weighed, **settings):
            rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
            calls.append({"rates": rates, "batches": len(batches), "loss": weighed, **settings})
            value = torch.tensor(float(loss(len(calls))))
            return StepResult(value, {"info_nce": value}, torch.tensor(1.0), torch.tensor(grad_norm))

        monkeypatch.setattr(trainer, "train_step", step)
        return calls

    return replace


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
    assert [call["batches"] for call in calls] == [batches] * 2 * steps
    assert [line["epoch"] for line in train_lines(tmp_path / "run")] == [(n + 1) / steps for n in range(2 * steps)]
    assert f"2 epochs of {steps} steps" in " ".join(capsys.readouterr().out.split())


def test_settings_reach_the_step(scenes, tmp_path, made_up):
    calls = made_up()
    stages = (StageConfig(epochs=1), StageConfig(epochs=1, loss=StageLossConfig(siglip=0.5)))
    config = tiny(scenes, tmp_path / "run", batch_size=32, stages=stages, precision="bf16")
    config = with_parts(
        config, optim={"sam": SamConfig(rho=0.3, per_layer=True), "clip_norm": None}, loss={"margin": 0.7}
    )
    train(config)
    assert [call["loss"] for call in calls] == [LossConfig(margin=0.7), LossConfig(margin=0.7, siglip=0.5)]
    assert all(call["clip_norm"] is None and call["precision"] == "bf16" for call in calls)
    assert all((call["sam"].rho, call["sam"].per_layer) == (0.3, True) for call in calls)


def test_without_sam_and_with_clipping(scenes, tmp_path, made_up):
    calls = made_up()
    config = with_parts(tiny(scenes, tmp_path / "run", batch_size=32), optim={"clip_norm": 0.25})
    train(config)
    assert [(call["sam"], call["clip_norm"], call["precision"]) for call in calls] == [(None, 0.25, "fp32")] * 3


@pytest.mark.parametrize(("second", "warned"), [(1.0, False), (2.07, True)])
def test_chance_is_that_of_the_stage_and_of_its_steps_alone(scenes, tmp_path, made_up, second, warned):
    """A loss of 100 is far below the chance of the first stage, 100 ln 8, and must not spoil the second's mean."""
    made_up(lambda step: 100.0 if step <= 16 else second)
    stages = (StageConfig(epochs=4, loss=StageLossConfig(info_nce=100.0)), StageConfig(epochs=4))
    train(tiny(scenes, tmp_path / "run", stages=stages, validate_every=8))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    warnings = [line for line in lines if line["kind"] == "warning"]
    assert len(warnings) == warned
    assert not warned or (f"chance ({math.log(8):.2f}" in warnings[0]["message"] and warnings[0]["step"] > 16)


def test_a_step_that_the_scaler_skips_does_not_end_the_run(scenes, tmp_path, made_up):
    made_up(grad_norm=math.inf)
    short = {"batch_size": 32, "stages": (StageConfig(epochs=1),), "log_every": 1}
    assert train(tiny(scenes, tmp_path / "fp16", precision="fp16", **short)).report.is_file()
    with pytest.raises(TrainingError, match="gradient's norm became inf"):
        train(tiny(scenes, tmp_path / "fp32", **short))


def test_a_loss_that_is_no_number_ends_a_scaled_run_too(scenes, tmp_path, made_up):
    made_up(lambda step: math.nan)
    with pytest.raises(TrainingError, match="loss became nan"):
        train(tiny(scenes, tmp_path / "run", batch_size=32, precision="fp16", log_every=1))
