"""Steps whose loss or gradient is no number: they change nothing, are counted, and too many in a row end the run."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cliplet.config import AugmentConfig, DataConfig, OptimConfig, RunConfig, SamConfig, StageConfig, TrainConfig
from cliplet.errors import TrainingError
from cliplet.runtime.tokenizer import Tokenizer
from cliplet.training import skips, train, trainer
from cliplet.training.step import Stepper, StepResult


@pytest.fixture
def config(data_set, tiny_config, tmp_path):
    """A run of 8 steps, 2 an epoch, of a model with batch norm that learns."""
    image = tiny_config.image.model_copy(update={"train_batch_norm": True})
    return RunConfig(
        name="tiny",
        data=DataConfig(path=str(data_set), workers=1),
        augment=AugmentConfig(flip=0.0),
        model=tiny_config.model_copy(update={"image": image}),
        optim=OptimConfig(image_lr=1e-3, text_lr=1e-3, head_lr=1e-3),
        train=TrainConfig(
            output=str(tmp_path / "run"),
            batch_size=3,
            stages=(StageConfig(epochs=4),),
            precision="fp32",
            device="cpu",
            log_every=1,
            validate_every=4,
        ),
    )


def with_train(config, **changes):
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def lines(config, kind):
    found = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def said_of_steps(config):
    """What was said of steps that changed nothing, by step."""
    return {line["step"]: line["message"] for line in lines(config, "warning") if "changed nothing" in line["message"]}


def newest_checkpoint(config):
    return torch.load(sorted((config.output / "checkpoints").iterdir())[-1], weights_only=True)


# With real steps, some of them spoilt


def state_of(stepper):
    """Copies of all that a step may change, by what it is: weights, batch norm's statistics, averages, momenta."""
    names = {name for name, _ in stepper.model.named_parameters()}
    state = stepper.model.state_dict()
    parts = {
        "weights": [state[name] for name in state if name in names],
        "statistics": [state[name] for name in state if name not in names],
        "momenta": [value for of in stepper.optimizer.state.values() for value in of.values()],
    }
    if stepper.average is not None:
        average = stepper.average.state_dict()
        parts["averages"] = [average["steps"], *average["averages"].values()]
    return {name: [tensor.clone() for tensor in tensors] for name, tensors in parts.items()}


def a_picture(stepper, batches):
    """One pixel of the step's last batch is no number, and batch norm spreads it over the batch."""
    pixels = batches[-1].pixels_B3HW.float()
    pixels[0, 0, 0, 0] = math.nan
    return [*batches[:-1], dataclasses.replace(batches[-1], pixels_B3HW=pixels)]


def a_gradient(stepper, batches):
    """The loss is finite, one part of the gradient is not."""
    weight = next(parameter for parameter in stepper.model.image_head.parameters() if parameter.ndim == 2)
    handle = weight.register_hook(lambda gradient: (handle.remove(), gradient + math.inf)[1])
    return batches


@pytest.fixture
def spoilt(monkeypatch):
    """Spoils real steps: `{number: how}`, from 1; gives by number which parts of the state each step changed."""

    def spoil(bad):
        changed = {}

        class Spoilt(Stepper):
            def step(self, batches, loss, seed=(0,)):
                number, before = seed[1] + 1, state_of(self)
                result = super().step(bad[number](self, batches) if number in bad else batches, loss, seed)
                changed[number] = {
                    name
                    for name, now in state_of(self).items()
                    if len(now) != len(before[name]) or not all(map(torch.equal, now, before[name]))
                }
                return result

        monkeypatch.setattr(trainer, "Stepper", Spoilt)
        return changed

    return spoil


SCALE = 256.0  # at which nothing overflows by itself
ALL = {"weights", "statistics", "momenta", "averages"}
SETTINGS = {
    "plain": {},
    "in chunks": {"chunk_size": 3, "batch_size": 6, "stages": (StageConfig(epochs=8),), "validate_every": 8},
    "SAM, two batches a step": {"accumulate": 2, "stages": (StageConfig(epochs=8),), "validate_every": 8},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("how", [a_picture, a_gradient])
def test_one_bad_step_among_good_ones_changes_nothing_and_the_run_goes_on(
    config, spoilt, monkeypatch, capsys, kind, how
):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=SCALE))
    changed = spoilt({3: how})
    config = with_train(config, ema=0.5, **SETTINGS[kind])
    if kind.startswith("SAM"):
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"sam": SamConfig(rho=0.05)})})
    assert train(config).report.is_file()
    assert changed == {number: set() if number == 3 else ALL for number in range(1, 9)}
    logged = lines(config, "train")
    assert [line["step"] for line in logged] == [1, 2, 4, 5, 6, 7, 8]
    assert [line.get("skipped") for line in logged] == [None, None, 1, 1, 1, 1, 1]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in logged)
    said = said_of_steps(config)
    if kind == "fp16":
        assert newest_checkpoint(config)["scaler"]["scale"] == SCALE / 2
    if kind == "fp16" and how is a_gradient:
        assert said == {}  # for so fp16 finds its scale
    else:
        # SAM climbs along the first gradient, so that the second is no number where the first was infinite.
        norm = "nan" if how is a_picture or kind.startswith("SAM") else "inf"
        figures = f"{'loss nan, ' if how is a_picture else ''}norm of the gradient {norm}"
        assert said.keys() == {3} and said[3].startswith("step 3 changed nothing") and figures in said[3]
        assert said[3] in capsys.readouterr().out
    assert newest_checkpoint(config)["skipped"] == 1
    for name in ("model", "last"):
        weights = load_file(config.output / name / "model.safetensors").values()
        assert all(weight.isfinite().all() for weight in weights if weight.is_floating_point())


def test_the_count_survives_stopping_at_the_bad_step_itself(config, spoilt, tmp_path, monkeypatch):
    """Skipped before and after: resumed, it is the run that was never stopped, to the bit and to the count."""
    spoilt({3: a_picture, 6: a_gradient})
    whole = with_train(config, output=str(tmp_path / "whole"))
    train(whole)
    between_steps = trainer.Trainer._between_steps

    def stopping(self, last, place, log, stop):
        if self.global_step == 3:
            stop.set()
        return between_steps(self, last, place, log, stop)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_between_steps", stopping)
        with pytest.raises(trainer.Interrupted, match="step 3 of 8"):
            train(config)
    assert newest_checkpoint(config)["skipped"] == 1
    train(config, resume=True)
    for one in (whole, config):
        assert [line.get("skipped") for line in lines(one, "train")] == [None, None, 1, 1, 2, 2]
        assert list(said_of_steps(one)) == [3, 6]
        assert newest_checkpoint(one)["skipped"] == 2
    first, second = (load_file(one.output / "last" / "model.safetensors") for one in (whole, config))
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# With steps that are made up


@pytest.fixture
def made_up(monkeypatch):
    """Replaces the step: `loss(n)` and `grad_norm(n)` give the n-th made step's; the batches of each are kept."""
    made = []

    def replace_by(loss=lambda step: 1.0, grad_norm=lambda step: 1.0):
        class MadeUp:
            def __init__(self, model, *rest, **settings):
                self.model = model

            def step(self, batches, weighed, seed):
                made.append(batches)
                value, norm = torch.tensor(float(loss(len(made)))), torch.tensor(float(grad_norm(len(made))))
                skipped = ~(value.isfinite() & norm.isfinite())
                return StepResult(value, {"info_nce": value}, torch.tensor(1.0), norm, skipped)

        monkeypatch.setattr(trainer, "Stepper", MadeUp)
        return made

    return replace_by


def test_only_bad_steps_in_a_row_end_a_run(config, made_up):
    """Two are allowed: in 8 steps there may be 6 bad ones if a good one comes after each two."""
    made_up(lambda step: 1.0 if step in (3, 6) else math.nan)
    config = with_train(config, max_skipped=2)
    assert train(config).report.is_file()
    assert list(said_of_steps(config)) == [1, 2, 4, 5, 7, 8]
    assert [(line["step"], line["skipped"]) for line in lines(config, "train")] == [(3, 2), (6, 4)]
    assert newest_checkpoint(config)["skipped"] == 6 and not (config.output / skips.FOLDER).exists()


@pytest.mark.parametrize(("bad", "what"), [(math.nan, "loss nan"), (math.inf, "loss inf"), (-math.inf, "loss -inf")])
def test_one_bad_loss_too_many_ends_a_run_which_can_be_resumed(config, made_up, bad, what):
    """Over the end of an epoch; the steps that follow the newest checkpoint are made again."""
    made = made_up(lambda step: bad if step > 3 else 1.0)
    config = with_train(config, max_skipped=2)
    with pytest.raises(TrainingError, match=f"3 steps in a row .* up to step 6: {what}") as caught:
        train(config)
    assert str(config.output / skips.FOLDER) in str(caught.value) and "--optim.head-lr" in caught.value.hint
    assert len(made) == 6 and list(said_of_steps(config)) == [4, 5, 6]
    assert newest_checkpoint(config)["skipped"] == 1
    made.clear()
    made_up()
    assert train(config, resume=True).report.is_file()
    assert len(made) == 4
    assert [(line["step"], line["skipped"]) for line in lines(config, "train")[3:]] == [(5, 1), (6, 1), (7, 1), (8, 1)]


@pytest.mark.parametrize(("precision", "last"), [("fp32", 3), ("fp16", 27)])
def test_gradients_that_overflow_are_allowed_to_fp16_until_it_has_its_scale(config, made_up, precision, last):
    made = made_up(grad_norm=lambda step: math.inf)
    config = with_train(config, precision=precision, max_skipped=2, stages=(StageConfig(epochs=20),), validate_every=20)
    with pytest.raises(TrainingError, match=f"{last} steps in a row .* loss 1.0, norm of the gradient inf"):
        train(config)
    # A step more may be on its way, unless an epoch has ended between.
    assert last <= len(made) <= last + 1
    assert len(said_of_steps(config)) == (0 if precision == "fp16" else last)


def test_fp16_that_finds_its_scale_goes_on_silently(config, made_up):
    made_up(grad_norm=lambda step: math.inf if step < 5 else 1.0)
    config = with_train(config, precision="fp16", max_skipped=1)
    assert train(config).report.is_file()
    assert said_of_steps(config) == {}
    assert [(line["step"], line["skipped"]) for line in lines(config, "train")] == [(5, 4), (6, 4), (7, 4), (8, 4)]


def test_a_loss_that_is_no_number_is_said_in_fp16_too(config, made_up):
    made_up(lambda step: math.nan if step == 2 else 1.0)
    config = with_train(config, precision="fp16")
    train(config)
    assert list(said_of_steps(config)) == [2]


def test_a_skipped_step_is_no_part_of_the_mean_loss(config, made_up):
    """Which would be no number then, and no run would ever be said to be at chance."""
    made_up(lambda step: math.nan if step == 2 else 1.5)
    train(config)
    said = [line["message"] for line in lines(config, "warning")]
    assert len(said) == 2 and f"still 1.50, no better than chance ({math.log(3):.2f}" in said[1]


@pytest.fixture
def colours(data_set):
    """Makes each picture one colour, so that any view of it tells which it is; the colours by file name."""
    found = {}
    for number, file in enumerate(sorted((data_set / "images").iterdir())):
        found[file.name] = (20 * number, 255 - 20 * number, 7)
        Image.new("RGB", (48, 40), found[file.name]).save(file)
    return found


@pytest.mark.usefixtures("colours")
def test_the_batch_at_which_a_run_ended_is_written_down(config, made_up, data_set, colours):
    made = made_up(lambda step: math.nan if step > 2 else 1.0)
    with pytest.raises(TrainingError, match=r"2 steps in a row .* up to step 4"):
        train(with_train(config, max_skipped=1))
    folder = config.output / skips.FOLDER
    batch, saved = made[3][0], load_file(folder / "0-0.safetensors")
    names = ("pixels_B3HW", "input_ids_CL", "attention_mask_CL", "caption_image_C")
    assert saved.keys() == set(names) and all(torch.equal(saved[name], getattr(batch, name)) for name in names)
    listed = [json.loads(line) for line in (folder / "0-0.jsonl").read_text().splitlines()]
    known = {
        entry["filename"]: [sentence["raw"] for sentence in entry["sentences"]]
        for entry in json.loads((data_set / "dataset.json").read_text())["images"]
        if entry["split"] == "train"
    }
    assert len(listed) == len(saved["pixels_B3HW"]) == 3
    for place, entry in enumerate(listed):
        name = entry["image"].rpartition("/")[2]
        assert entry["image"] == str(data_set / "images" / name)
        shown = saved["pixels_B3HW"][place].permute(1, 2, 0).reshape(-1, 3).unique(dim=0)
        assert [tuple(colour) for colour in shown.tolist()] == [colours[name]]
        assert entry["captions"] and set(entry["captions"]) <= set(known[name])
    drawn = [caption for entry in listed for caption in entry["captions"]]
    assert [len(entry["captions"]) for entry in listed] == np.bincount(saved["caption_image_C"]).tolist()
    kept = torch.load(config.output / "checkpoints" / "step-00000002.pt", weights_only=True)
    ids_CL, mask_CL = Tokenizer.from_json(kept["tokenizer"], 24)(drawn)
    assert torch.equal(torch.from_numpy(ids_CL), saved["input_ids_CL"])
    assert torch.equal(torch.from_numpy(mask_CL), saved["attention_mask_CL"])
