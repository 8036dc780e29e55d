"""Several ranks: real processes that train together over gloo, held against one process with the whole batch."""

import json
import os
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from engine import assert_equal_gradients, build
from rank import run
from rich.console import Console
from runs import tiny_model, tiny_run
from safetensors.torch import load_file

from cliplet.config import (
    DistilConfig,
    LossConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
    from_yaml,
    to_yaml,
)
from cliplet.data.scenes import render_scenes
from cliplet.data.teacher_store import StoreSettings
from cliplet.errors import TrainingError
from cliplet.training import train
from cliplet.training.distributed import Ranks, joined, refuse_bad_batch
from cliplet.training.store_making import make_store

HERE = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
CASES = {
    "plain": {},
    "uneven": {"pictures": 11},
    "dynamic": {"temperature": "dynamic", "bias": -5.0, "loss": "siglip"},
    "first-caption": {"loss": "first caption"},
    "negatives": {"loss": "hard negatives", "clip_norm": 0.1},
    "chunks": {"chunk_size": 2, "pictures": 16, "batches": 2},
    "uneven-chunks": {"chunk_size": 2, "pictures": 9},
    "sam": {"sam": True, "chunk_size": 3},
    "frozen": {"frozen": True},
    "batch-norm": {"batch_norm": True, "steps": 3},
    "resumed": {"batch_norm": True, "steps": 3, "resumed_at": 1},
    "taught": {"loss": "all", "teachers": [16, 24], "pictures": 11},
    "taught-in-chunks": {"loss": "interactive", "teachers": [16], "chunk_size": 2, "pictures": 9},
    "taught-twice": {"loss": "all", "teachers": [24], "sam": True, "batches": 2},
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(command, rank, ranks, port, **more):
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ended(request, tmp_path_factory):
    """How many ranks there were, and where each has left what it ended with, in every case."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "cases.json").write_text(json.dumps(CASES))
    groups = json.dumps({request.param: free_port()})
    done = subprocess.run(
        [sys.executable, str(HERE / "rank.py"), str(out), groups],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return request.param, out


@pytest.mark.parametrize("name", CASES)
def test_ranks_give_what_one_process_gives(ended, name):
    ranks, out = ended
    if "chunk_size" in CASES[name]:  # of one process, the whole batch at once
        alone = run(Ranks(), {**CASES[name], "chunk_size": None})
    else:
        alone = run(Ranks(), CASES[name])
    by_rank = [load_file(out / f"{name}-{rank}-of-{ranks}.safetensors") for rank in range(ranks)]
    gradients = {key: tensor for key, tensor in alone.items() if key.startswith("gradient")}
    tolerance = 1e-4 if CASES[name].get("sam") or CASES[name].get("steps") else 1e-5  # steps carry rounding on
    for rank, theirs in enumerate(by_rank):
        assert_equal_gradients({k: t for k, t in theirs.items() if k.startswith("gradient")}, gradients, tolerance)
        torch.testing.assert_close(theirs["loss"], alone["loss"], rtol=1e-5, atol=0)
        for key, tensor in theirs.items():
            assert torch.equal(tensor, by_rank[0][key]), f"{key} of rank {rank} is not rank 0's, bit for bit"
            if key.startswith("state"):
                torch.testing.assert_close(tensor, alone[key], rtol=1e-4, atol=1e-6, msg=key)


def test_ranks_that_are_resumed_end_with_the_same_bits(ended):
    ranks, out = ended
    whole, resumed = (load_file(out / f"{name}-0-of-{ranks}.safetensors") for name in ("batch-norm", "resumed"))
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]), key


# Whole runs, from the command line


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A configuration file of a run of seconds that learns from a store too, one of whose pictures cannot be read."""
    folder = tmp_path_factory.mktemp("run")
    render_scenes(folder / "scenes", 32, 8, 0, seed=1, image_size=48)
    sorted((folder / "scenes" / "images").iterdir())[-1].write_bytes(b"no picture")
    config = tiny_run(
        folder / "scenes",
        tiny_model(dropout=0.0, embedding_dropout=0.0),
        ema=0.9,
        stages=(StageConfig(epochs=1, image_blocks=0, augment=False), StageConfig(epochs=1)),
    )
    teacher = build()
    teacher.save_pretrained(folder / "teacher")
    settings = StoreSettings(2, True, config.augment, "float16", "train", 0, None)
    make_store(config.data.path, folder / "store", [str(folder / "teacher")], settings, device="cpu", precision="fp32")
    config = config.model_copy(
        update={"loss": LossConfig(feature=1.0, logit=0.5), "distil": DistilConfig(store=str(folder / "store"))}
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder / "config.yaml"


def command(recipe, output, *more):
    return ["-m", "cliplet", "train", "--config", recipe, "--train.output", output, *more]


@pytest.mark.slow
def test_torchrun_trains_one_model(recipe, tmp_path):
    """Frozen features, averages, chunks, stored teachers and validation shared out; one folder, written by rank 0; then
    resumed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, *map(str, command(recipe, tmp_path / "two", "--train.chunk-size", "2"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2  validation") == 1  # rank 0 alone speaks
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "validation" for line in log) == 2
    assert all(line["loss_feature"] > 0 and line["loss_logit"] > 0 for line in log if line["kind"] == "train")
    bad = [json.loads(line) for line in (tmp_path / "two" / "quarantine.jsonl").read_text().splitlines()]
    assert len(bad) == 1
    said = Console(file=StringIO(), width=200)
    config = from_yaml((tmp_path / "two" / "config.yaml").read_text())
    alone = config.model_copy(update={"train": config.train.model_copy(update={"chunk_size": None})})
    train(alone, resume=True, console=said)
    assert "ranks: 2 -> 1" in said.file.getvalue() and "train.chunk_size: 2 -> None" in said.file.getvalue()


def ends_with(status, err, *words):
    assert status == 1, err
    for word in words:
        assert word in err
    assert "Traceback" not in err.replace("C++ Traceback", "")


@pytest.mark.slow  # two whole starts; that errors reach the others is tested below too
def test_a_rank_that_fails_ends_the_others_with_its_error(recipe, tmp_path):
    """Rank 0 may write files of a few kilobytes only, as on a full disk."""
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('cliplet', run_name='__main__')"
    )
    port, words = free_port(), command(recipe, tmp_path / "run")
    first = start(["-c", limited, "cliplet", *words[2:]], 0, 2, port)
    second = start(words, 1, 2, port)
    (_, first_err), (_, second_err) = (process.communicate(timeout=200) for process in (first, second))
    ends_with(first.returncode, first_err, "could not be written")
    ends_with(second.returncode, second_err, "rank 0 failed", "could not be written")


MEETING = """
import sys, time
from cliplet.training.distributed import joined
with joined(60) as ranks:
    ranks.refuse_differences(configuration=sys.argv[1 + ranks.rank])
    print("met", flush=True)
    while True:
        ranks.exchange(0)
        time.sleep(0.01)
"""


def test_a_rank_that_is_killed_ends_the_others():
    port = free_port()
    first, second = (start(["-c", MEETING, "same", "same"], rank, 2, port) for rank in range(2))
    assert first.stdout.readline() == second.stdout.readline() == "met\n"
    second.kill()
    _, err = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 1 and "another rank has gone without a word" in err


def test_ranks_that_were_told_different_things():
    port = free_port()
    processes = [start(["-c", MEETING, "seed 0", "seed 3"], rank, 2, port) for rank in range(2)]
    for process in processes:  # each says why, rank 1 in rank 0's words
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "the ranks differ in their configuration: rank 0: seed 0; rank 1: seed 3" in err


def placed(monkeypatch, port):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


def test_a_rank_that_never_comes(monkeypatch):
    placed(monkeypatch, free_port())
    with pytest.raises(TrainingError, match="not all 2 ranks came within 2 s") as caught, joined(2):
        pass
    assert "--nproc-per-node" in caught.value.hint and "train.rank_timeout" in caught.value.hint


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        placed(monkeypatch, port)
        with pytest.raises(TrainingError, match=f"port {port} of 127.0.0.1 is taken") as caught, joined(2):
            pass
    assert "--master-port" in caught.value.hint


@pytest.mark.parametrize(
    ("batch", "chunk", "ranks", "said"),
    [
        (3, None, 4, "Set --train.batch-size 4"),
        (10, None, 4, "Set --train.batch-size 8 or 12"),
        (8, 3, 1, "Set --train.chunk-size to one of 1, 2, 4, 8"),
        (8, 8, 2, "Set --train.chunk-size to one of 1, 2, 4."),
    ],
)
def test_batches_that_cannot_be_shared_out(batch, chunk, ranks, said):
    config = RunConfig(train=TrainConfig(batch_size=batch, chunk_size=chunk))
    with pytest.raises(TrainingError) as caught:
        refuse_bad_batch(config, Ranks(0, ranks))
    assert said in caught.value.hint
    refuse_bad_batch(RunConfig(train=TrainConfig(batch_size=8, chunk_size=2)), Ranks(0, 4))
