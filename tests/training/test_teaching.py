"""Whole runs with teachers, live and from a store; what a run refuses of them; and that both ways teach the same."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path

import pytest
import torch
from engine import assert_equal_gradients, gradients_of
from rich.console import Console
from runs import tiny_model, tiny_run
from safetensors.torch import load_file
from torch import nn

from cliplet.config import (
    AugmentConfig,
    DataConfig,
    DistilConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    StageConfig,
    StageLossConfig,
)
from cliplet.data.loader import TrainLoader
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.scenes import render_scenes
from cliplet.data.teacher_store import StoreSettings, TeacherStore
from cliplet.errors import ClipletError, DataError, ModelError, TrainingError
from cliplet.models import DualEncoder
from cliplet.training import train, trainer
from cliplet.training.distillation import Distillation
from cliplet.training.optim import build_optimizer, choose_precision
from cliplet.training.profile import profile_data
from cliplet.training.step import Stepper
from cliplet.training.store_making import make_store
from cliplet.training.teachers import LiveTeachers

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), flip=0.5, brightness=0.2, saturation=0.3)


def student(embed_dim=32, size=32, width=32) -> ModelConfig:
    config = tiny_model(size, embed_dim, width=width)
    return config.model_copy(update={"preprocess": PreprocessConfig(image_size=size, mean=(0.4, 0.5, 0.6))})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_scenes(folder, 24, 6, 0, seed=1, image_size=64)
    return folder


@pytest.fixture(scope="module")
def teachers(scenes, tmp_path_factory) -> list[str]:
    """Two model folders: of other widths, picture sizes and tokenizers than the student."""
    folder = tmp_path_factory.mktemp("teachers")
    captions = list(read_source(str(scenes)).records.captions())
    for seed, (name, config) in enumerate({"wide": student(40, 48, 64), "even": student(32, 32)}.items()):
        torch.manual_seed(seed)
        model = DualEncoder.build(config, captions[seed::2])
        with torch.no_grad():  # else all that a network says before it has learnt is nearly the same
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    return [str(folder / "wide"), str(folder / "even")]


def make(scenes, out, teachers, storage="float16", augment=AUGMENT, whole=True, augmentations=3) -> Path:
    settings = StoreSettings(augmentations, whole, augment, storage, "train", 0, None)
    make_store(str(scenes), out, teachers, settings, precision="fp32", workers=1, command="cliplet distil-store ...")
    return out


@pytest.fixture(scope="module")
def store(scenes, teachers, tmp_path_factory) -> Path:
    return make(scenes, tmp_path_factory.mktemp("stores") / "store", teachers)


TWO_EPOCHS = (StageConfig(epochs=2),)
LOSS = {"feature": 0.5, "logit": 0.7, "affinity": 0.2}


def config_of(scenes, output, *, distil, loss=LOSS, stages=TWO_EPOCHS, **settings) -> RunConfig:
    settings = {"output": str(output), "stages": stages, "log_every": 1, **settings}
    config = tiny_run(scenes, student(), **settings)
    return config.model_copy(update={"augment": AUGMENT, "loss": LossConfig(**loss), "distil": distil})


def quietly(config, **more):
    told = StringIO()
    run = train(config, console=Console(file=told, width=500), **more)
    return run, told.getvalue()


def train_lines(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def loader_of(records, tokenizer, augment=AUGMENT) -> TrainLoader:
    return TrainLoader(
        records,
        tokenizer,
        batch_size=8,
        image_size=32,
        data=DataConfig(captions_per_image=2, workers=1),
        augment=augment,
        seed=0,
        quarantine=Quarantine(),
    )


# Both ways teach the same


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 1e-3), ("int8", 3e-2)])
def test_stored_and_live_teachers_give_the_same_losses_and_gradients(scenes, teachers, tmp_path, storage, tolerance):
    records = read_source(str(scenes)).select("train")
    targets = TeacherStore.open(make(scenes, tmp_path / "store", teachers, storage)).aligned(records)
    live = LiveTeachers(teachers, records, CPU, "fp32")
    torch.manual_seed(0)
    model = DualEncoder.build(student(), records.captions()).eval()  # dropout has no part in this
    loader = loader_of(records, model.tokenizer)
    found = {}
    for augmented in (True, False):
        for stored in loader.epoch(0, augmented=augmented, targets=targets, teacher_sizes=live.sizes):
            for way, batch in (("stored", stored), ("live", live.taught(stored))):
                torch.manual_seed(5)
                distillation = Distillation(DistilConfig(teachers=("a",)), live.infos, 32)
                both = nn.ModuleList([model, distillation])
                stepper = Stepper(
                    model, build_optimizer(model, OptimConfig(), distillation.parameters()), distillation=distillation
                )
                found[way] = stepper.step([batch], LossConfig(**LOSS)), gradients_of(both)
                assert found[way][0].loss.isfinite()
            for name, value in found["live"][0].terms.items():
                torch.testing.assert_close(found["stored"][0].terms[name], value, rtol=tolerance, atol=tolerance / 10)
            assert_equal_gradients(found["stored"][1], found["live"][1], tolerance)


def test_a_store_shows_its_own_views_and_all_of_them(scenes, teachers, store):
    """The student sees what the teachers saw: at a teacher's size and by its own features, found again by hand."""
    records = read_source(str(scenes)).select("train")
    targets = TeacherStore.open(store).aligned(records)
    model = DualEncoder.build(student(), records.captions())
    loader = loader_of(records, model.tokenizer, AugmentConfig(crop_scale=(0.1, 0.2)))  # not these
    even = LiveTeachers(teachers[1:], records, CPU, "fp32").teachers[0]
    seen = set()
    for epoch in range(6):
        for batch in loader.epoch(epoch, targets=targets):
            torch.testing.assert_close(even.image_features(batch.pixels_B3HW), batch.teachers[1][0], atol=1e-3, rtol=0)
            for row, feature in zip(batch.rows_B.tolist(), batch.teachers[1][0], strict=True):
                seen.add((row, feature.numpy().tobytes()))
    assert len({row for row, _ in seen}) == 24 and 60 <= len(seen) <= 72  # of 24 times 3 views


# Whole runs


def test_a_run_learns_from_a_store_whose_teachers_are_gone(scenes, teachers, tmp_path):
    copies = [shutil.copytree(folder, tmp_path / Path(folder).name) for folder in teachers]
    store = make(scenes, tmp_path / "store", [str(folder) for folder in copies])
    for folder in copies:
        shutil.rmtree(folder)
    stages = (
        StageConfig(epochs=1, image_blocks=0, text_blocks=0, loss=StageLossConfig(feature=2.0, logit=0.0)),
        StageConfig(epochs=2),
    )
    config = config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store)), stages=stages)
    run, told = quietly(config)
    assert "teachers from" in told and "4 views a picture" in told and "40 wide, 48 pixels" in told
    lines = train_lines(config.output)
    assert {"loss_feature", "loss_affinity", "loss_info_nce"} <= lines[0].keys() and "loss_logit" not in lines[0]
    assert "loss_logit" in lines[-1] and lines[-1]["loss_feature"] < lines[0]["loss_feature"]
    first = lines[0]
    weighed = first["loss_info_nce"] + 2 * first["loss_feature"] + 0.2 * first["loss_affinity"]
    assert first["loss"] == pytest.approx(weighed, rel=1e-5)
    assert f"| taught by | {copies[0]}, {copies[1]} |" in (run.model_folder / "README.md").read_text()
    saved = load_file(run.model_folder / "model.safetensors")
    assert set(saved) == set(DualEncoder.from_pretrained(run.model_folder).state_dict())
    assert not any("projection" in name for name in saved)


def test_teachers_are_in_no_optimiser_and_no_checkpoint(scenes, teachers, tmp_path):
    config = config_of(
        scenes, tmp_path / "run", distil=DistilConfig(teachers=tuple(teachers)), stages=(StageConfig(epochs=1),)
    )
    before = [(Path(folder) / "model.safetensors").read_bytes() for folder in teachers]
    _, told = quietly(config)
    assert f"teachers in every step, in {choose_precision('auto', CPU)}" in told
    assert [(Path(folder) / "model.safetensors").read_bytes() for folder in teachers] == before
    (newest,) = sorted((config.output / "checkpoints").glob("*.pt"))[-1:]
    checkpoint = torch.load(newest, weights_only=True)
    model = DualEncoder.from_pretrained(config.output / "last")
    assert set(checkpoint["model"]) == set(model.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in checkpoint["distillation"].items()} == {
        "projections.0.weight": (40, 32),
        "projections.1.weight": (32, 32),
    }
    own = sum(1 for _ in model.parameters())
    assert len(checkpoint["optimizer"]["state"]) == own + 2


@contextmanager
def stopped_after(steps):
    """Runs are asked to stop after so many steps."""
    between = trainer.Trainer._between_steps

    def stopping(self, last, place, log, stop):
        if self.global_step == steps:
            stop.set()
        return between(self, last, place, log, stop)

    trainer.Trainer._between_steps = stopping
    try:
        yield
    finally:
        trainer.Trainer._between_steps = between


@pytest.mark.parametrize("way", ["store", "live"])
def test_resumed_is_as_if_it_had_never_stopped(scenes, teachers, store, tmp_path, way):
    distil = DistilConfig(store=str(store)) if way == "store" else DistilConfig(teachers=tuple(teachers))
    whole, broken = (config_of(scenes, tmp_path / name, distil=distil) for name in ("whole", "broken"))
    quietly(whole)
    with stopped_after(4), pytest.raises(ClipletError, match="stopped at step 4"):
        quietly(broken)
    quietly(broken, resume=True)
    one, other = (load_file(config.output / "last" / "model.safetensors") for config in (whole, broken))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    ends = [sorted((config.output / "checkpoints").glob("*.pt"))[-1] for config in (whole, broken)]
    one, other = (torch.load(file, weights_only=True)["distillation"] for file in ends)
    assert one.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_is_resumed_with_its_own_teachers_only(scenes, teachers, store, tmp_path):
    config = config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store)))
    with stopped_after(1), pytest.raises(ClipletError, match="stopped"):
        quietly(config)
    other = make(scenes, tmp_path / "other", teachers, augmentations=2)
    with pytest.raises(TrainingError, match=r"teachers: store \w+ -> store \w+"):
        quietly(config.model_copy(update={"distil": DistilConfig(store=str(other))}), resume=True)
    moved = shutil.copytree(store, tmp_path / "moved")
    quietly(config.model_copy(update={"distil": DistilConfig(store=str(moved))}), resume=True)


def test_a_live_teacher_that_takes_other_pictures_by_now_is_another(scenes, teachers, tmp_path):
    copy = shutil.copytree(teachers[0], tmp_path / "copy")
    config = config_of(scenes, tmp_path / "run", distil=DistilConfig(teachers=(str(copy),)))
    with stopped_after(1), pytest.raises(ClipletError, match="stopped"):
        quietly(config)
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace("0.4,", "0.3,", 1))
    with pytest.raises(TrainingError, match="other circumstances:\n  teachers: "):
        quietly(config, resume=True)


def test_switched_off_a_teacher_leaves_no_trace(scenes, teachers, store, tmp_path):
    distil = DistilConfig(teachers=tuple(teachers), store=str(store), enabled=False)
    off = config_of(scenes, tmp_path / "off", distil=distil)
    plain = config_of(scenes, tmp_path / "plain", distil=DistilConfig(), loss={})
    for config in (off, plain):
        quietly(config)
    one, other = (load_file(config.output / "last" / "model.safetensors") for config in (off, plain))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_stage_of_heads_on_kept_features_takes_the_whole_pictures_targets(scenes, store, tmp_path):
    stages = (StageConfig(epochs=1, image_blocks=0, text_blocks=0, augment=False), StageConfig(epochs=1))
    _, told = quietly(config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store)), stages=stages))
    assert "computed once" in told


def test_teachers_alone_can_teach(scenes, store, tmp_path):
    loss = {"info_nce": 0.0, "logit": 1.0}
    config = config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store)), loss=loss)
    _, told = quietly(config)
    assert "no better than chance" not in told
    assert train_lines(config.output)[0].keys() >= {"loss", "logit_scale"}


def test_a_profile_has_the_teachers_in_it(scenes, teachers, store, tmp_path, monkeypatch):
    monkeypatch.setattr("cliplet.training.profile.SECONDS", 0.2)
    for distil in (DistilConfig(store=str(store)), DistilConfig(teachers=tuple(teachers))):
        assert profile_data(config_of(scenes, tmp_path / "run", distil=distil)).model_pictures_per_second > 0


def test_a_picture_that_the_teachers_could_not_read_is_left_out(scenes, teachers, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    records = read_source(str(data)).select("train")
    bad = Path(records.image(5))
    good = bad.read_bytes()
    bad.write_bytes(good[:200])
    store = make(data, tmp_path / "store", teachers)
    bad.write_bytes(good)  # readable by now, but no teacher has seen it
    config = config_of(data, tmp_path / "run", distil=DistilConfig(store=str(store)))
    run, _ = quietly(config)
    assert [problem.where for problem in run.quarantine.problems()] == [str(bad)]


# What is refused


def refused(config, error=DataError):
    with pytest.raises(error) as caught:
        quietly(config)
    assert not config.output.exists() or not list(config.output.iterdir())  # nothing was begun
    return f"{caught.value.message}\n{caught.value.hint}"


def test_a_store_for_other_views_is_refused_by_name(scenes, store, tmp_path):
    config = config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store)))
    told = refused(config.model_copy(update={"augment": AUGMENT.model_copy(update={"flip": 0.0})}))
    assert "augment.flip: 0.5 in the store -> 0.0 in the run" in told and "crop_scale" not in told


def test_a_store_of_other_teachers_is_refused_by_name(scenes, teachers, store, saved_model, tmp_path):
    distil = DistilConfig(store=str(store), teachers=(teachers[0], str(saved_model)))
    told = refused(config_of(scenes, tmp_path / "run", distil=distil))
    assert str(saved_model) in told and teachers[1] in told
    right = DistilConfig(store=str(store), teachers=tuple(reversed(teachers)))
    quietly(config_of(scenes, tmp_path / "run", distil=right, stages=(StageConfig(epochs=1),)))
    shutil.copy(Path(teachers[1]) / "tokenizer.json", tmp_path)
    other = shutil.copytree(teachers[0], tmp_path / "other")
    shutil.copy(tmp_path / "tokenizer.json", other)
    distil = DistilConfig(store=str(store), teachers=(str(other), teachers[1]))
    assert f"teacher {other}: tokenizer: " in refused(config_of(scenes, tmp_path / "again", distil=distil))


def test_a_teacher_that_takes_other_pictures_by_now_is_refused_by_name(scenes, teachers, store, tmp_path):
    changed = shutil.copytree(teachers[0], tmp_path / "changed")
    text = (changed / "config.json").read_text()
    (changed / "config.json").write_text(text.replace('"mean": [\n        0.4,', '"mean": [\n        0.3,', 1))
    assert (changed / "config.json").read_text() != text
    told = refused(
        config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store), teachers=(str(changed), teachers[1])))
    )
    assert "mean: (0.4, 0.5, 0.6) in the store -> (0.3, 0.5, 0.6) by now" in told and "has other weights" not in told


def test_a_store_of_another_data_set_is_refused(store, tmp_path):
    render_scenes(tmp_path / "other", 24, 6, 0, seed=2, image_size=64)
    told = refused(config_of(tmp_path / "other", tmp_path / "run", distil=DistilConfig(store=str(store))))
    assert str(store) in told


def test_a_caption_without_an_embedding_is_named(scenes, store, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    captions = list(read_source(str(data)).select("train").captions())
    for file in data.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".tsv", ".csv", ".txt"):
            file.write_text(file.read_text().replace(captions[7], "a zebra among the squares"))
    told = refused(config_of(data, tmp_path / "run", distil=DistilConfig(store=str(store))))
    assert "a zebra among the squares" in told


def test_an_unfinished_store_is_not_used(scenes, store, tmp_path):
    half = shutil.copytree(store, tmp_path / "half")
    manifest = json.loads((half / "manifest.json").read_text())
    manifest |= {"complete": False, "shards": []}
    (half / "manifest.json").write_text(json.dumps(manifest))
    told = refused(config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(half))))
    assert "unfinished" in told and "cliplet distil-store" in told


def test_views_that_the_store_has_none_of_are_refused(scenes, teachers, tmp_path):
    store = make(scenes, tmp_path / "store", teachers, whole=False)
    stages = (StageConfig(epochs=1, augment=False), StageConfig(epochs=1))
    told = refused(
        config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(store)), stages=stages), TrainingError
    )
    assert "--whole" in told
    only_whole = make(scenes, tmp_path / "whole", teachers, augmentations=0)
    told = refused(config_of(scenes, tmp_path / "run", distil=DistilConfig(store=str(only_whole))), TrainingError)
    assert "--augmentations" in told


def test_a_picture_that_is_another_by_now_ends_the_run(scenes, teachers, tmp_path):
    """It may be one that is not among those looked at in the beginning."""
    data = shutil.copytree(scenes, tmp_path / "data")
    store = make(data, tmp_path / "store", teachers)
    records = read_source(str(data)).select("train")
    targets = TeacherStore.open(store).aligned(records)
    shutil.copy(records.image(3), records.image(4))
    loader = loader_of(records, DualEncoder.build(student(), records.captions()).tokenizer)
    with pytest.raises(DataError, match="is another picture than the one of that name"):
        list(islice(loader.epoch(0, targets=targets), 3))


def test_a_teacher_that_is_not_there_is_said_before_anything_begins(scenes, tmp_path):
    distil = DistilConfig(teachers=(str(tmp_path / "nowhere"),))
    told = refused(config_of(scenes, tmp_path / "run", distil=distil), ModelError)
    assert "nowhere" in told


def test_terms_without_teachers_and_teachers_without_terms_are_refused(scenes, teachers, tmp_path):
    told = refused(config_of(scenes, tmp_path / "run", distil=DistilConfig()), TrainingError)
    assert "there is no teacher" in told
    distil = DistilConfig(teachers=tuple(teachers))
    assert "gives no weight" in refused(config_of(scenes, tmp_path / "run", distil=distil, loss={}), TrainingError)
    loss = {"interactive": 1.0}
    told = refused(config_of(scenes, tmp_path / "run", distil=distil, loss=loss), TrainingError)
    assert "40 wide" in told and "32 wide" in told


def test_a_batch_of_frozen_features_still_brings_pixels_for_live_teachers(scenes, teachers, tmp_path):
    stages = (StageConfig(epochs=1, image_blocks=0, text_blocks=0, augment=False),)
    config = config_of(scenes, tmp_path / "run", distil=DistilConfig(teachers=tuple(teachers)), stages=stages)
    _, told = quietly(config)
    assert "computed once" in told and train_lines(config.output)[-1]["loss_feature"] > 0


def test_batches_hold_nothing_of_teachers_without_any(scenes):
    records = read_source(str(scenes)).select("train")
    model = DualEncoder.build(student(), records.captions())
    loader = loader_of(records, model.tokenizer)
    batch = next(loader.epoch(0))
    assert batch.teachers == () and batch.teacher_pixels == {} and replace(batch).teachers == ()
