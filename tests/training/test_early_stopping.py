"""Patience, on runs whose validations are made up: after which epoch they end, and that they stay ended."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from cliplet.config import DataConfig, RunConfig, StageConfig, TrainConfig
from cliplet.training import train, trainer
from cliplet.training.step import StepResult


@pytest.fixture
def config(data_set, tiny_config, tmp_path):
    """A run of up to 8 epochs of 2 steps in two stages."""
    return RunConfig(
        name="tiny",
        data=DataConfig(path=str(data_set), workers=1),
        model=tiny_config,
        train=TrainConfig(
            output=str(tmp_path / "run"),
            batch_size=3,
            stages=(StageConfig(epochs=2, image_blocks=0, text_blocks=0), StageConfig(epochs=6)),
            precision="fp32",
            device="cpu",
            log_every=1,
        ),
    )


def with_train(config, **changes):
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


@pytest.fixture
def scripted(monkeypatch):
    """Makes the validation after epoch n find the sum of recalls that a table has at n - 1."""
    original = trainer.Trainer.evaluate

    def script(rsums):
        found = []

        def evaluate(self, model, precision):
            if not found:  # one is as good as another where the sum is made up
                found.append(original(self, model, precision))
            metrics = {**found[0].metrics, "rsum": float(rsums[self.state.epoch - 1])}
            return dataclasses.replace(found[0], metrics=metrics)

        monkeypatch.setattr(trainer.Trainer, "evaluate", evaluate)

    return script


@pytest.fixture
def without_computing(monkeypatch):
    """Steps that change nothing and take no time."""
    one = torch.tensor(1.0)
    result = StepResult(one, {"info_nce": one}, one, one, torch.tensor(False))
    monkeypatch.setattr(trainer.Stepper, "step", lambda *_, **__: result)


def lines(config):
    return [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]


def validated(config):
    return [line["epoch"] for line in lines(config) if line["kind"] == "validation"]


def trained(config):
    return [line["step"] for line in lines(config) if line["kind"] == "train"]


def best_epoch(config):
    return json.loads((config.output / "model" / "metrics.json").read_text())["epoch"]


# Sums of recalls after epochs 1 to 8 (0: not looked at), patience, epochs between validations; last and best epoch.
TABLE = {
    "two worse ones": ([10, 20, 19, 18, 90, 0, 0, 0], 2, 1, 4, 2),
    "an equal one is no new best": ([10, 10, 10, 10, 90, 0, 0, 0], 2, 1, 4, 1),
    "before the last stage nothing ends": ([10, 9, 11, 10, 90, 0, 0, 0], 1, 1, 4, 3),
    "a new best starts anew": ([10, 9, 11, 10, 9, 90, 0, 0], 2, 1, 5, 3),
    "better than the last is not enough": ([30, 10, 20, 25, 90, 0, 0, 0], 2, 1, 4, 1),
    "at the very end": ([10, 20, 30, 40, 50, 60, 59, 58], 2, 1, 8, 6),
    "no patience": ([8, 7, 6, 5, 4, 3, 2, 1], None, 1, 8, 1),
    "every second epoch, one": ([0, 20, 0, 19, 0, 90, 0, 0], 1, 2, 4, 2),
    "every second epoch, the second": ([0, 20, 0, 19, 0, 18, 0, 90], 2, 2, 6, 2),
    "every third epoch, and the last": ([0, 0, 20, 0, 0, 30, 0, 40], 1, 3, 8, 8),
}


@pytest.mark.usefixtures("without_computing")
@pytest.mark.parametrize(("rsums", "patience", "every", "last", "best"), TABLE.values(), ids=TABLE)
def test_the_epoch_it_stops_after(config, scripted, capsys, rsums, patience, every, last, best):
    scripted(rsums)
    config = with_train(config, patience=patience, validate_every=every)
    train(config)
    expected = [epoch for epoch in range(1, last + 1) if epoch % every == 0 or epoch == 8]
    assert validated(config) == expected
    assert trained(config) == list(range(1, 2 * last + 1))
    assert best_epoch(config) == best
    printed = " ".join(capsys.readouterr().out.split())
    assert ("stopped early" in printed) == (last < 8)
    if last < 8:
        assert f"no new best for {patience} validations; the best is epoch {best}'s (train.patience)" in printed


def refused(*_, **__):
    raise AssertionError("it trains on")


def test_resuming_after_an_early_stop_ends_at_once(config, scripted, monkeypatch):
    scripted([10, 9, 8, 7, 90, 90, 90, 90])
    config = with_train(config, patience=2)
    train(config)
    before, log = load_file(config.output / "last" / "model.safetensors"), lines(config)
    assert trained(config) == list(range(1, 9))
    shutil.rmtree(config.output / "last")
    monkeypatch.setattr(trainer.Stepper, "step", refused)
    run = train(config, resume=True)
    assert lines(config) == log
    after = load_file(config.output / "last" / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert best_epoch(config) == 1 and run.evaluation.metrics["images"] == 3


@pytest.mark.parametrize(("when", "every"), [("in the middle of an epoch", 1), ("during a validation", 2)])
def test_patience_goes_on_where_a_resumed_run_was(config, scripted, monkeypatch, tmp_path, when, every):
    rsums = {1: [10, 20, 19, 18, 90, 90, 90, 90], 2: [0, 20, 0, 19, 0, 18, 0, 90]}[every]
    config = with_train(config, patience=2, validate_every=every)
    whole = with_train(config, output=str(tmp_path / "whole"))
    scripted(rsums)
    train(whole)
    with monkeypatch.context() as patch:
        if when == "during a validation":
            evaluate = trainer.Trainer.evaluate
            patch.setattr(
                trainer.Trainer,
                "evaluate",
                lambda self, *rest: evaluate(self, *rest) if self.state.epoch < 4 else (_ for _ in ()).throw(EOFError),
            )
            with pytest.raises(EOFError):
                train(config)
        else:
            between_steps = trainer.Trainer._between_steps

            def stop_at_step_seven(self, last, place, log, stop):
                if self.global_step == 7:
                    stop.set()
                return between_steps(self, last, place, log, stop)

            patch.setattr(trainer.Trainer, "_between_steps", stop_at_step_seven)
            with pytest.raises(trainer.Interrupted):
                train(config)
    train(config, resume=True)
    assert validated(config) == validated(whole) == {1: [1, 2, 3, 4], 2: [2, 4, 6]}[every]
    assert trained(config) == trained(whole)
    first, second = (load_file(one.output / "last" / "model.safetensors") for one in (config, whole))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
