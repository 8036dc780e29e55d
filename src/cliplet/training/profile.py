"""Where a run's time would go: reading, decoding, transforming, tokenizing, or the model; and what would help."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from cliplet.config import RunConfig
from cliplet.data.batch import Batch
from cliplet.data.loader import default_workers
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.training.chunk_size import choose_chunk_size
from cliplet.training.cpu import keep_memory
from cliplet.training.distillation import refuse_bad_lessons
from cliplet.training.objective import loss_in_stage
from cliplet.training.optim import choose_device, choose_precision
from cliplet.training.run import begin
from cliplet.training.stages import set_trainable
from cliplet.training.teaching import open_teaching
from cliplet.training.trainer import State, Trainer

SECONDS = 10.0  # for each of the measurements
STEPS = 200  # at most, in each of them
WARM_UP = 1  # steps not counted: memory is claimed and code is compiled in them
ENOUGH = 1.2  # times the model's speed at which a loader does not hold it up
STAGES = ("disk", "decode", "transform")


@dataclass(frozen=True)
class DataProfile:
    """Speeds of a run's parts, each alone, and of all together. Times are a thread's milliseconds a picture."""

    device: str
    batch_size: int
    workers: int
    picture_width: float  # pixels, mean of the pictures as they are stored
    picture_height: float
    milliseconds: dict[str, float]  # disk, decode, transform: a picture's; tokenize: its captions', once a run
    loader_pictures_per_second: float  # alone
    model_pictures_per_second: float  # alone, on batches that are there
    training_pictures_per_second: float  # both together
    data_wait: float  # share of the training time spent waiting for data
    bottleneck: str  # disk, decode, transform, tokenize or model
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=f"Where the time goes ({self.device}, batch {self.batch_size}, {_workers(self.workers)})")
        for heading in ("", "ms a picture", "pictures/s"):
            table.add_column(heading, justify="left" if not heading else "right")
        for stage, value in self.milliseconds.items():
            note = " (once, before the first epoch)" if stage == "tokenize" else " (a worker)"
            table.add_row(f"{stage}{note}", f"{value:.3f}", f"{1000 / value:,.0f}" if value else "")
        table.add_section()
        for name, rate in (
            (f"loader, {_workers(self.workers)}", self.loader_pictures_per_second),
            ("model", self.model_pictures_per_second),
            ("training", self.training_pictures_per_second),
        ):
            table.add_row(name, f"{1000 / rate:.3f}", f"{rate:,.0f}")
        return table


def profile_data(config: RunConfig, say: Callable[[str], None] = lambda message: None) -> DataProfile:
    """Runs the loader alone, the model alone and both together, some seconds each, and names what is slowest.

    The model is trained in the run's last stage, in which most of it learns. Nothing is written. Raises ClipletError.
    """
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    if device.type == "cpu":
        keep_memory()
    source = read_source(config.data.path, config.data.images, config.data.samples)
    records = source.select(config.data.train_split)[: config.data.max_images]
    torch.manual_seed(config.train.seed)
    refuse_bad_lessons(config)
    teaching = open_teaching(config, records, device, say)
    if teaching:
        refuse_bad_lessons(config, teaching.teachers)
    state = begin(config, records, device, precision, say, teaching)
    say(f"measuring: three times up to {SECONDS:.0f} s")
    start = time.perf_counter()
    trainer = Trainer(config, state, device, precision, {}, records, records, Quarantine(), teaching=teaching)
    trainer.chunk_size = choose_chunk_size(trainer, say)
    tokenize = (time.perf_counter() - start) / len(records)

    loader_rate = _loader_rate(trainer)
    batches = [next(trainer.batches(0))]
    step = _stepper(trainer, state)
    model_rate = _rate(lambda: step(batches), trainer.loader.batch_size, device)
    training_rate, wait = _training_rate(trainer, step, device)
    times, pictures = trainer.loader.times.seconds, max(1, trainer.loader.times.pictures)
    milliseconds = {stage: 1000 * times.get(stage, 0.0) / pictures for stage in STAGES}
    epochs_worth = tokenize / trainer.epochs
    slowest = max(STAGES, key=lambda stage: milliseconds[stage])
    if loader_rate > ENOUGH * model_rate:
        slowest = "model"
    if epochs_worth > max(1 / loader_rate, 1 / model_rate):
        slowest = "tokenize"
    width, height = trainer.loader.times.mean_size()
    return DataProfile(
        device=f"{device}, {precision}",
        batch_size=trainer.loader.batch_size,
        workers=trainer.loader.workers,
        picture_width=width,
        picture_height=height,
        milliseconds={**milliseconds, "tokenize": 1000 * tokenize},
        loader_pictures_per_second=loader_rate,
        model_pictures_per_second=model_rate,
        training_pictures_per_second=training_rate,
        data_wait=wait,
        bottleneck=slowest,
        advice=_advice(slowest, trainer, loader_rate / model_rate, min(width, height)),
    )


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _stepper(trainer: Trainer, state: State) -> Callable[[list[Batch]], Any]:
    config, place = trainer.config, trainer.config.train.stages[-1]
    set_trainable(state.model, place)
    state.model.train()
    weights, teaching, stepper = loss_in_stage(config, place), trainer.teaching, trainer.stepper()
    return lambda batches: stepper.step(
        [teaching.taught(batch, weights) if teaching else batch for batch in batches], weights
    )


def _rate(work: Callable[[], Any], pictures: int, device: torch.device) -> float:
    """Pictures a second of work that does `pictures` at a time."""
    for _ in range(WARM_UP):
        work()
    _wait(device)
    start, done = time.perf_counter(), 0
    while done < STEPS and (not done or time.perf_counter() - start < SECONDS):
        work()
        done += 1
    _wait(device)
    return done * pictures / (time.perf_counter() - start)


def _loader_rate(trainer: Trainer) -> float:
    """Pictures a second of the loader alone."""
    batches = _endless(trainer)
    try:
        return _rate(lambda: next(batches), trainer.loader.batch_size, torch.device("cpu"))
    finally:
        batches.close()


def _training_rate(trainer: Trainer, step: Callable[[list[Batch]], Any], device: torch.device) -> tuple[float, float]:
    """Pictures a second of loader and model together, and the share of the time spent waiting for the loader."""
    batches = _endless(trainer)
    waited = 0.0

    def work() -> None:
        nonlocal waited
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        step([batch])
        _wait(device)

    try:
        for _ in range(WARM_UP):
            work()
        waited, start, done = 0.0, time.perf_counter(), 0
        while done < STEPS and (not done or time.perf_counter() - start < SECONDS):
            work()
            done += 1
        elapsed = time.perf_counter() - start
    finally:
        batches.close()
    return done * trainer.loader.batch_size / elapsed, waited / elapsed


def _endless(trainer: Trainer) -> Generator[Batch, None, None]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        yield from trainer.batches(epoch)
        epoch += 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _advice(bottleneck: str, trainer: Trainer, ratio: float, shorter_side: float) -> str:
    """What would help, in the order in which to try it."""
    size, workers = trainer.loader.augmented_size, trainer.loader.workers
    if bottleneck == "model" and trainer.teaching and trainer.teaching.live:
        return (
            "Teachers run in every step, and the model's time is theirs too: cliplet distil-store keeps what they say "
            "once and for all."
        )
    if bottleneck == "model":
        return (
            f"The loader is {ratio:.1f} times as fast as the model, so the data hold nothing up. A faster device, a "
            "smaller tower or fewer pixels (train.image_size) would help."
        )
    if bottleneck == "tokenize":
        return "Tokenizing is done once; with so few epochs it counts. Fewer captions a picture would help."
    help_ = [f"The loader makes {ratio:.1f} times the pictures that the model takes."]
    packs = shorter_side > 1.3 * size
    if bottleneck == "disk":
        help_.append("cliplet pack DATA OUT makes few large files of many small ones; a local disk helps too.")
    elif bottleneck == "decode" and packs:
        help_.append(
            f"The pictures' shorter side is {shorter_side:.0f} pixels where the model takes {size}: cliplet pack DATA "
            f"OUT --size {round(size * 8 / 7)} stores them smaller, once."
        )
    if workers < (cores := 2 * default_workers()):
        help_.append(f"More threads: --data.workers {cores}, at most as many as cores.")
    else:
        help_.append("All cores decode already; a machine with more of them would help.")
    return " ".join(help_)
