"""A run that is killed again and again, at any moment, ends with the very weights of a run that is not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import tiny_model, tiny_run

from cliplet.config import (
    RunConfig,
    StageConfig,
    to_yaml,
)
from cliplet.data.scenes import render_scenes

STEPS = 15  # three epochs of five
BEGUN = "parameters,"  # said when all is ready for the first step


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_scenes(folder, 40, 8, 0, seed=1, image_size=48)
    return folder


def tiny(scenes: Path, **train_settings) -> RunConfig:
    """Steps of a tenth of a second, in two stages, with dropout, views and batch norm: all that has a state."""
    settings = {"stages": (StageConfig(epochs=1, image_blocks=1), StageConfig(epochs=2)), **train_settings}
    return tiny_run(scenes, tiny_model(layers=2, dropout=0.2), workers=2, log_every=1, **settings)


def start(config: RunConfig, output: Path) -> subprocess.Popen:
    """The command line in a process of its own; it goes on with the run where there is a checkpoint to go on from."""
    file = output.with_suffix(".yaml")
    file.write_text(to_yaml(config))
    resume = ["--resume"] if any(output.glob("checkpoints/step-*.pt")) else []
    command = [sys.executable, "-m", "cliplet", "train", "--config", str(file), "--train.output", str(output), *resume]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def run_to_the_end(config: RunConfig, output: Path) -> str:
    """What it said; fails where it failed."""
    process = start(config, output)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def run_and_kill(config: RunConfig, output: Path, step: int, delay: float) -> bool:
    """Kills a run `delay` seconds after it has logged a step; whether it had not ended yet."""
    process, log = start(config, output), output / "log.jsonl"
    said = ""
    while BEGUN not in said:
        line = process.stdout.readline()
        assert line, f"ended before it began:\n{said}"
        said += line
    while process.poll() is None and not (log.is_file() and f'"step": {step},' in log.read_text()):
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    said += process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), said
    assert "damaged" not in said
    return process.returncode != 0


def results(output: Path) -> dict[str, object]:
    """All that must be equal: weights and tokenizers to the bit, what was measured, and the figures of each step; not
    the warnings, which look back on a number of steps and not beyond a kill."""
    files = {
        f"{folder}/{name}": (output / folder / name).read_bytes()
        for folder in ("last", "model")
        for name in ("model.safetensors", "tokenizer.json", "metrics.json")
    }
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] != "warning"]
    for line in lines:
        for measured in ("images_per_second", "data_wait"):
            line.pop(measured, None)
    return {**files, "log.jsonl": lines}


def assert_same_results(whole: Path, killed: Path) -> None:
    expected, got = results(whole), results(killed)
    for name, content in expected.items():
        assert content == got[name], f"{name} differs"
    steps = [line["step"] for line in got["log.jsonl"] if line["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def killed_and_resumed(config: RunConfig, output: Path, kills: int, at_the_end: int, seed: int) -> None:
    """Kills and resumes so many times on the way, each time some random steps and a random part of one further on than
    the last checkpoint, and so many times after the last step; then lets the run end."""
    draw = random.Random(seed)
    for kill in range(kills):
        last = max((int(file.stem[5:]) for file in output.glob("checkpoints/step-*.pt")), default=0)
        furthest = STEPS * (kill + 1) // kills - last
        step = last + 1 + draw.randrange(max(1, furthest))
        assert run_and_kill(config, output, min(step, STEPS), draw.random() * 0.1), f"{kill} kills, the next came late"
    for _ in range(at_the_end):
        run_and_kill(config, output, STEPS, draw.random() * 0.5)
    run_to_the_end(config, output)
    assert len(list((output / "checkpoints").iterdir())) == config.train.keep_checkpoints
    assert not [file.name for file in output.iterdir() if file.name.startswith(".")]


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_as_never_killed(scenes, tmp_path):
    config = tiny(scenes, checkpoint_every=2, ema=0.9)
    run_to_the_end(config, tmp_path / "whole")
    killed_and_resumed(config, tmp_path / "killed", kills=3, at_the_end=0, seed=1)
    assert_same_results(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(("ema", "seed"), [(None, 0), (0.9, 1)])
def test_killed_many_times_and_resumed_is_as_never_killed(scenes, tmp_path, ema, seed):
    """With a checkpoint at each step, many a kill hits while one is being written."""
    config = tiny(scenes, checkpoint_every=1, ema=ema)
    run_to_the_end(config, tmp_path / "whole")
    killed_and_resumed(config, tmp_path / "killed", kills=9, at_the_end=3, seed=seed)
    assert_same_results(tmp_path / "whole", tmp_path / "killed")
