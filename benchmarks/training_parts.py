"""What the benchmarks of training share: cliplet's own steps, pictures, processes that take turns, and the heading.

Everything that trains here goes the way of `cliplet train`: its Trainer's loader and steps, and the features that it
keeps of frozen towers. Weights are the same in every process: the image tower's are random unless a file is named, and
MiniLM's those of the installed package if there is one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cliplet.config import DistilConfig, RunConfig
from cliplet.data.batch import Batch
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import Records
from cliplet.recipes import recipe
from cliplet.training.batch_norm import normalise_over_ranks
from cliplet.training.chunk_size import choose_chunk_size
from cliplet.training.cpu import keep_memory
from cliplet.training.distributed import Ranks
from cliplet.training.features import FrozenFeatures, silent
from cliplet.training.objective import loss_in_stage
from cliplet.training.optim import choose_precision, set_learning_rate
from cliplet.training.run import begin
from cliplet.training.stages import peak_rates, set_trainable
from cliplet.training.trainer import Trainer

SEED = 0
WARM_UP = 2  # steps of each block
STATUS = Path("/proc/self/status")  # Linux


@dataclass(frozen=True)
class Source:
    """Where pictures and captions are from."""

    data: str  # a Flickr8k, or any data set with a split train
    pictures: int | None = None  # the first of them only

    def records(self, steps: int, batch: int) -> Records:
        """What there is to train on; SystemExit where it is not enough for so many steps of an epoch."""
        records = read_source(self.data).select("train")[: self.pictures]
        if len(records) < steps * batch:
            raise SystemExit(f"{self.data}: {len(records)} pictures are too few for {steps} steps of {batch}")
        return records


class Ours:
    """A recipe's last stage by the parts that `cliplet train` puts together."""

    def __init__(
        self, config: RunConfig, records: Records, ranks: Ranks | None = None, say: Callable[[str], None] = silent
    ):
        keep_memory()
        stage, device, ranks = config.train.stages[-1], torch.device("cpu"), ranks or Ranks()
        self.precision = choose_precision(config.train.precision, device)
        torch.manual_seed(SEED)
        state = begin(config, records, device, self.precision, silent)
        self.trainer = Trainer(config, state, device, self.precision, {}, records, records, Quarantine(), ranks)
        self.trainer.chunk_size = choose_chunk_size(self.trainer, silent)
        self.model, self.optimizer, self.stage = state.model.train(), state.optimizer, stage
        ranks.as_first_(self.model.state_dict().values())
        if config.train.sync_batch_norm and ranks.size > 1:
            normalise_over_ranks(self.model)
        set_trainable(self.model, stage)
        start = time.perf_counter()
        self.trainer.frozen = FrozenFeatures.of_stage(self.trainer, stage, say)
        self.computing = time.perf_counter() - start  # seconds for the features of frozen towers
        set_learning_rate(self.optimizer, peak_rates(stage, config.optim), 1.0)
        self.loss = loss_in_stage(config, stage)
        self.stepper = self.trainer.stepper()
        self.module = self.stepper.embedder
        self.about = (
            f"cliplet: {self.precision}, {torch.get_num_threads()} threads, {self.trainer.loader.workers} of the loader"
        )

    def batches(self, epoch: int) -> Generator[Batch, None, None]:
        """An epoch's batches; where only the first are asked for, threads end when it is closed."""
        frozen = self.trainer.frozen
        yield from self.trainer.loader.epoch(
            epoch, augmented=self.stage.augment, image_features=frozen.image, text_features=frozen.text
        )

    def step(self, batch: Batch) -> float:
        """Makes a step; gives its loss."""
        return float(self.stepper.step([batch], self.loss).loss)


@dataclass(frozen=True)
class Block:
    """What came of some steps."""

    seconds: float
    pictures: int  # of all ranks
    loss: float  # of the last step
    peak: float  # GB, the most that this process ever had

    @property
    def images_per_second(self) -> float:
        """Of all ranks together."""
        return self.pictures / self.seconds


def block(ours: Ours, epoch: int, steps: int, warm_up: int = WARM_UP) -> Block:
    """Some steps of an epoch, and before them some that are not counted.

    As training does it, threads make the next batches during each step, whose time that is. The first batch is waited
    for before the time begins.
    """
    batches = ours.batches(epoch)
    batch = next(batches)
    for _ in range(warm_up):
        ours.step(batch)
        batch = next(batches)
    ours.trainer.ranks.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        loss = ours.step(batch)
        batch = next(batches)
    seconds = time.perf_counter() - start
    batches.close()  # what made them ends, so that another's turn is its alone
    return Block(seconds, steps * ours.trainer.loader.batch_size, loss, in_memory("VmHWM"))


class Turns:
    """Processes that take turns: each works when it is asked, and waits otherwise."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._pipes: dict[str, Connection] = {}
        self._processes: list[Any] = []

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, error: object, *more: object) -> None:
        for pipe in self._pipes.values():
            if error is None:
                pipe.send(None)
            pipe.close()  # one that still waits, after an error of another, ends by it
        for process in self._processes:
            process.join()

    def start(self, name: str, work: Callable[..., None], *arguments: object, **environment: str) -> None:
        """A process of that name, in which `work` gets its end of a pipe, for `serve`, and the arguments."""
        self._pipes[name], theirs = self._context.Pipe()
        self._processes.append(self._context.Process(target=work, args=(theirs, *arguments)))
        before = dict(os.environ)
        os.environ.update(environment)  # of a process that spawns another, the other has it from its first moment
        self._processes[-1].start()
        os.environ.clear()
        os.environ.update(before)
        theirs.close()

    def ask(self, number: int, *names: str) -> list[Any]:
        """What the processes of those names, at work together, make of the number."""
        for name in names:
            self._pipes[name].send(number)
        return [self.told(name) for name in names]

    def told(self, name: str) -> Any:
        """What a process says next."""
        try:
            return self._pipes[name].recv()
        except EOFError:
            raise SystemExit(f"{name}: the process ended; why stands above") from None


def serve(pipe: Connection, about: Any, work: Callable[[int], Any]) -> None:
    """What a process of `Turns` does once it is ready: tells about itself, and works until it is told to end."""
    pipe.send(about)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        if number is None:
            return
        pipe.send(work(number))


def configured(name: str, batch: int, weights: tuple[str, ...] = (), **train: Any) -> RunConfig:
    """The recipe with what weights lie on this machine, without a teacher, one batch a step. `weights`: of the image
    tower; `train`: settings of that section."""
    config = recipe(name)
    model = config.model
    packages = [source for source in model.text.sources if source.startswith("pkg:")]
    found = tuple(one for one in packages if importlib.util.find_spec(one.removeprefix("pkg:").split("/")[0]))
    image = model.image.model_copy(update={"weights": weights})
    text = model.text.model_copy(update={"sources": found})
    settings = {"batch_size": batch, "accumulate": 1, "seed": SEED, **train}
    return config.model_copy(
        update={
            "model": model.model_copy(update={"image": image, "text": text}),
            "train": config.train.model_copy(update=settings),
            "distil": DistilConfig(enabled=False),
        }
    )


def in_memory(name: str) -> float:
    """GB of this process under a name of /proc/self/status: VmRSS has it now, VmHWM is the most it had."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1]) / 1e9


def heading(what: str) -> None:
    """Where, how and what is measured."""
    print(f"{machine()}\n{shlex.join(['python', *sys.argv])}\nseed {SEED}, {what}\n", flush=True)


def machine() -> str:
    """What it was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    versions = (
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "timm", "transformers")
    )
    return ", ".join([f"{processor}, {os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])
