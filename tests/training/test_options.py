"""Options of whole runs: chunks found by trying, mixtures with the start, averages, compiled towers."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cliplet.config import AugmentConfig, DataConfig, OptimConfig, RunConfig, StageConfig, TrainConfig, to_yaml
from cliplet.errors import TrainingError
from cliplet.training import train


@pytest.fixture
def tiny(data_set, tiny_config, tmp_path):
    """A run of four steps; any setting of training can be changed."""

    def make(name="run", **settings):
        usual = {"batch_size": 6, "stages": (StageConfig(epochs=4),), "precision": "fp32", "device": "cpu"}
        return RunConfig(
            name="tiny",
            data=DataConfig(path=str(data_set), workers=1),
            augment=AugmentConfig(flip=0.0),
            model=tiny_config,
            optim=OptimConfig(image_lr=1e-3, text_lr=1e-3, head_lr=1e-3),
            train=TrainConfig(output=str(tmp_path / name), **{**usual, **settings}),
        )

    return make


def metrics_of(run):
    return json.loads((run.model_folder / "metrics.json").read_text())


def test_auto_takes_a_chunk_that_fits_and_a_resumed_run_takes_the_same(tiny, capsys):
    config = tiny(chunk_size="auto")
    train(config)
    assert "looking for the largest chunk" in capsys.readouterr().out
    file = sorted((config.output / "checkpoints").iterdir())[-1]
    assert torch.load(file, weights_only=True)["circumstances"]["chunk size"] == "6"  # all of it, of pictures so small
    train(config, resume=True)
    assert "looking for" not in capsys.readouterr().out


def test_wise_ft_keeps_the_best_mixture_and_is_not_mixed_twice(tiny, saved_model):
    run = train(tiny(start_from=str(saved_model), wise_ft=(0.0, 0.5)))
    share = metrics_of(run)["trained_share"]
    assert share in (0.0, 0.5, 1.0)
    start, last = load_file(saved_model / "model.safetensors"), load_file(run.folder / "last" / "model.safetensors")
    mixed = load_file(run.model_folder / "model.safetensors")
    best_is_last = json.loads((run.model_folder / "metrics.json").read_text())["epoch"] == 4
    if best_is_last:
        for name, tensor in mixed.items():
            expected = start[name].lerp(last[name], share) if tensor.is_floating_point() else last[name]
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6, msg=name)
    alone = train(tiny("alone", start_from=str(saved_model)))
    assert run.evaluation.metrics["rsum"] >= alone.evaluation.metrics["rsum"]
    train(tiny(start_from=str(saved_model), wise_ft=(0.0, 0.5)), resume=True)
    for name, tensor in load_file(run.model_folder / "model.safetensors").items():
        assert torch.equal(tensor, mixed[name]), name


def test_wise_ft_without_a_start_is_refused(tiny):
    with pytest.raises(ValueError, match="start_from"):
        tiny(wise_ft=(0.5,))


def test_ema_is_what_is_validated_and_saved(tiny):
    """With a decay that forgets the start as slowly as can be, the average lies between start and end."""
    plain, averaged = train(tiny("plain")), train(tiny("averaged", ema=0.999))
    one, other = (load_file(run.folder / "last" / "model.safetensors") for run in (plain, averaged))
    checkpoint = sorted((averaged.folder / "checkpoints").iterdir())[-1]
    content = torch.load(checkpoint, weights_only=True)
    differs = False
    for name, tensor in content["model"].items():
        assert torch.equal(tensor, one[name]), name  # the average does not touch the training
        if name in content["averages"]["averages"]:
            assert torch.equal(other[name], content["averages"]["averages"][name]), name
            differs |= not torch.equal(other[name], tensor)
    assert differs


@pytest.mark.slow  # half a minute of memory given and refused
def test_out_of_memory_is_answered_with_what_fits(tiny, tmp_path):
    """A limit of the address space under which the batch does not fit, but a part of it does."""
    config = tiny(batch_size=512, stages=(StageConfig(epochs=1),))
    image = config.model.image.model_copy(update={"name": "test_vit"})
    config = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    "image": image,
                    "preprocess": config.model.preprocess.model_copy(update={"image_size": 160}),
                }
            )
        }
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    program = (
        "import sys, resource\n"
        "from rich.console import Console\n"
        "from cliplet.config import from_yaml\n"
        "from cliplet.data.records import ImageText\n"
        "from cliplet.training import trainer, run, train\n"
        "read = run._read\n"
        "def many(config, say):\n"
        "    source, records, val = read(config, say)\n"
        "    rows = [records[row % len(records)] for row in range(512)]\n"
        "    return source, type(records).of(rows), val\n"
        "run._read = many\n"
        "fit = trainer.Trainer.fit\n"
        "def limited(self, log, stop):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 900_000_000,) * 2)\n"
        "    return fit(self, log, stop)\n"
        "trainer.Trainer.fit = limited\n"
        "try:\n"
        "    train(from_yaml(open(sys.argv[1]).read()), console=Console(file=sys.stdout))\n"
        "except run.TrainingError as error:\n"
        "    print('ANSWER', error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "config.yaml")], capture_output=True, text=True, timeout=280
    )
    assert "ANSWER out of memory: a batch of 512 pictures" in done.stdout, done.stdout + done.stderr
    assert "Add --train.chunk-size" in done.stdout and "fits" in done.stdout


@pytest.mark.slow
def test_compiled_towers_learn_and_a_failure_falls_back(tiny, capsys, monkeypatch):
    run = train(tiny("compiled", compile=True))
    assert "towers compiled in" in capsys.readouterr().out
    plain = train(tiny("plain"))
    for (name, one), other in zip(
        load_file(run.folder / "last" / "model.safetensors").items(),
        load_file(plain.folder / "last" / "model.safetensors").values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0.05, atol=5e-3, msg=name)
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("CXX", "no-such-compiler")
    torch._dynamo.reset()
    fallen = train(tiny("fallen", compile=True, seed=0, batch_size=5))
    assert "torch.compile failed, so the towers run as they are" in capsys.readouterr().out
    assert fallen.model_folder.is_dir()


def test_chunks_of_one_picture_are_refused_where_batch_norm_trains(tiny):
    config = tiny(chunk_size=1)
    image = config.model.image.model_copy(update={"train_batch_norm": True})
    config = config.model_copy(update={"model": config.model.model_copy(update={"image": image})})
    with pytest.raises(TrainingError, match="a chunk of one picture"):
        train(config)
