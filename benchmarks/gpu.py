"""How fast a GPU trains, what share of it is used, where a step's time goes, and what memory it takes.

    python benchmarks/gpu.py                         rendered pictures, three recipes, with and without torch.compile
    python benchmarks/gpu.py --pictures FOLDER       photographs (.jpg) instead, which take longer to decode
    python benchmarks/gpu.py --device cpu --quick    the script itself, on a small model; most of it is compiling

Pictures are packed by cliplet and read from the packs. Weights are random and learning rates 0; everything else is the
recipe's last stage, one batch a step. A batch that does not fit is halved. Each recipe is measured four times for some
seconds: the loader alone, the model alone on a batch that is on the device, both as training runs them (the host one
step ahead of the device), and both with a wait after each step, which is where the parts' times are from. Operations
are PyTorch's count of one step; the peak is that of a large matrix product on the same device in the same precision.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from cliplet.config import DistilConfig, RunConfig
from cliplet.data.batch import Batch
from cliplet.data.loader import TrainLoader
from cliplet.data.packing import pack
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import Records
from cliplet.data.scenes import render_scenes
from cliplet.data.shards import Settings
from cliplet.models import DualEncoder
from cliplet.recipes import recipe
from cliplet.training.compiling import compile_towers
from cliplet.training.memory import growth, out_of_memory
from cliplet.training.objective import loss_in_stage
from cliplet.training.optim import build_optimizer, choose_device, choose_precision
from cliplet.training.sam import Sam
from cliplet.training.stages import set_trainable
from cliplet.training.step import DTYPES, Stepper, StepResult

RECIPES = ("tinyvit-minilm-convffn", "vits-minilm-convffn", "clip-finetune")
PARTS = ("loader", "copy", "forward", "loss", "backward", "optimiser")
PER_GB = 4  # pictures of a batch for each GB of the device's memory
WARM_UP = 3  # steps: algorithms are chosen, memory is claimed
COMPILING = 60.0  # seconds that a compiled model is expected to take at least
GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pictures: int
    side: int  # pixels of a rendered picture
    matrix: int  # rows and columns of the matrices that measure the peak
    seconds: float  # of each measurement


FULL, QUICK = Sizes(1024, 256, 8192, 5.0), Sizes(128, 64, 1024, 0.5)


@dataclass(frozen=True)
class Measured:
    """One recipe, compiled or not."""

    name: str
    compiled: str  # seconds that compiling took, "failed", or "no"
    parameters: int
    batch: int
    loader: float  # pictures a second
    model: float
    training: float
    waited: float  # share of the training time spent waiting for the loader
    parts: dict[str, float]  # milliseconds a step
    step: float  # milliseconds, with a wait after each
    operations: int  # a picture
    resting: int  # bytes between two steps
    peak: int  # bytes that a step adds
    reserved: int  # bytes that torch holds at most; 0 where it does not say


class Clock:
    """Milliseconds of named spans: of the device's own time where it is CUDA, else of the host's."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = self._mark()
        yield
        self._spans.append((name, start, self._mark()))

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """The sum of each name's spans since the last call. The device must be done."""
        sums: dict[str, float] = defaultdict(float)
        for name, start, stop in self._spans:
            sums[name] += start.elapsed_time(stop) if self._cuda else 1000 * (stop - start)
        self._spans.clear()
        return sums


class TimedStepper(Stepper):
    """Makes the steps that training makes, and notes how long their parts take."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.clock = Clock(self.device)

    def _parts(self, *args: Any) -> Any:
        with self.clock.span("copy"):
            return super()._parts(*args)

    def _embed(self, *args: Any, **options: Any) -> Any:
        with self.clock.span("forward"):
            return super()._embed(*args, **options)

    def _loss(self, *args: Any) -> Any:
        with self.clock.span("loss"):
            return super()._loss(*args)

    def _backward(self, *args: Any) -> None:
        with self.clock.span("backward"):
            super()._backward(*args)

    def _update(self, *args: Any) -> None:
        with self.clock.span("optimiser"):
            super()._update(*args)


class Bench:
    """One recipe on one device: its model with random weights, its loader, its steps."""

    def __init__(self, name: str, batch: int, records: Records, workers: int | None, device: torch.device):
        self.config, self.device = from_scratch(name, batch, workers), device
        self.precision = choose_precision("auto", device)
        torch.manual_seed(0)
        self.model = DualEncoder.build(self.config.model, records.captions()).to(device)
        self.loader = TrainLoader(
            records,
            self.model.tokenizer,
            batch_size=batch,
            image_size=self.config.model.preprocess.image_size,
            data=self.config.data,
            augment=self.config.augment,
            seed=0,
            quarantine=Quarantine(),
        )
        stage, sam = self.config.train.stages[-1], self.config.optim.sam
        set_trainable(self.model, stage)
        self.model.train()
        self.weights = loss_in_stage(self.config, stage)
        self.stepper = TimedStepper(
            self.model,
            build_optimizer(self.model, self.config.optim),
            precision=self.precision,
            sam=Sam(self.model, sam.rho, sam.per_layer) if sam.rho else None,
            clip_norm=self.config.optim.clip_norm,
        )

    def step(self, batch: Batch) -> StepResult:
        return self.stepper.step([batch], self.weights)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch."""
        epoch = 0
        while True:
            yield from self.loader.epoch(epoch)
            epoch += 1

    def measure(self, name: str, compiled: bool, seconds: float, operations: int | None) -> Measured:
        """All of its figures. `operations`: a picture's, where they are known; compiled code is not counted."""
        batch, note = next(self.loader.epoch(0)).to(self.device), "no"
        if compiled:
            start = time.monotonic()
            worked = compile_towers(self.model, batch, self.device, self.precision, say)
            note = f"{time.monotonic() - start:.0f} s" if worked else "failed"
        for _ in range(WARM_UP):
            self.step(batch)
        self.wait()
        if operations is None:
            with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
                self.step(batch)
            operations = counter.get_total_flops() // len(batch)
        self.model.zero_grad(set_to_none=True)
        resting = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        peak = growth(lambda: self.step(batch), self.device)
        model, _ = self._rate(iter(lambda: batch, None), seconds)
        loader = self._loader_rate(seconds)
        training, waited = self._rate(self.batches(), seconds)
        parts, step = self._parts(seconds)
        return Measured(
            name,
            note,
            self.model.count_parameters(),
            len(batch),
            loader,
            model,
            training,
            waited,
            parts,
            step,
            operations,
            resting,
            peak,
            torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0,
        )

    def _loader_rate(self, seconds: float) -> float:
        """Pictures a second of the loader alone."""
        batches = self.batches()
        for _ in range(WARM_UP):
            next(batches)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            done += len(next(batches))
        return done / (time.perf_counter() - start)

    def _rate(self, batches: Iterator[Batch], seconds: float) -> tuple[float, float]:
        """Pictures a second of steps, the host one step ahead, and the share of the time it waited for batches."""
        for _ in range(WARM_UP):
            self.step(next(batches))
        self.wait()
        start, done, waited, before = time.perf_counter(), 0, 0.0, None
        while time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            result = self.step(batch)
            if before is not None:
                before.loss.item()
            before, done = result, done + len(batch)
        self.wait()
        elapsed = time.perf_counter() - start
        return done / elapsed, waited / elapsed

    def _parts(self, seconds: float) -> tuple[dict[str, float], float]:
        """Milliseconds a step of each part, and of all, with a wait after each step so that nothing overlaps."""
        batches, clock = self.batches(), self.stepper.clock
        for _ in range(WARM_UP):
            self.step(next(batches))
        self.wait()
        clock.read()
        waited, start, steps = 0.0, time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            batch = next(batches)
            waited += 1000 * (time.perf_counter() - asked)
            self.step(batch)
            self.wait()
            steps += 1
        step = 1000 * (time.perf_counter() - start) / steps
        sums = {**clock.read(), "loader": waited}
        return {name: sums.get(name, 0.0) / steps for name in PARTS}, step


def convolution_backward(
    gradient: list[int], inputs: list[int], weight: list[int], *others: Any, out_shape: Any = None
) -> int:
    """Operations of a convolution's backward: as many as of its forward for each gradient that is asked for. PyTorch's
    own count forgets groups, and takes the backward of TinyViT's depthwise ones for 15 times what it is."""
    *_, transposed, _, _, wanted = others
    return conv_flop_count(inputs, weight, gradient, transposed) * sum(wanted[:2])


GROUPED = {torch.ops.aten.convolution_backward: convolution_backward}


def from_scratch(name: str, batch: int, workers: int | None) -> RunConfig:
    """The recipe without pretrained weights and without a teacher, in its last stage, one batch a step."""
    config = recipe(name)
    model = config.model
    image = model.image.model_copy(update={"weights": ()})
    text = model.text.model_copy(update={"sources": ()})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"workers": workers}),
            "model": model.model_copy(update={"image": image, "text": text}),
            "train": config.train.model_copy(
                update={"batch_size": batch, "accumulate": 1, "start_from": "", "stages": config.train.stages[-1:]}
            ),
            "distil": DistilConfig(enabled=False),
        }
    )


def packed(pictures: Path | None, sizes: Sizes, batch: int, scratch: Path) -> Records:
    """Packs of the folder's photographs, or of rendered pictures, at least two batches of them."""
    if pictures:
        files = sorted(pictures.glob("*.jpg"))[: sizes.pictures]
        if len(files) < 2:
            raise SystemExit(f"{pictures}: {len(files)} .jpg files are too few to measure with")
        captions = ("a brown dog runs over the wet grass with a red ball in its mouth", "a dog plays in the garden")
        table = scratch / "pictures.tsv"
        table.write_text("".join(f"{file.resolve()}\t{caption}\ttrain\n" for file in files for caption in captions))
        data = str(table)
    else:
        count = max(sizes.pictures, 2 * batch)
        data = str(render_scenes(scratch / "scenes", count, 0, 0, image_size=sizes.side))
    pack(data, scratch / "packed", Settings())
    return read_source(scratch / "packed").select("all")


def matrix_peak(device: torch.device, size: int, precision: str) -> float:
    """Operations a second of a large square matrix product, the best of some runs."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES.get(precision, torch.float32)) for _ in range(2))
    best = 0.0
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


def measured(options: argparse.Namespace, sizes: Sizes, records: Records, device: torch.device) -> list[Measured]:
    """Every recipe as it is, then every one compiled, as far as the time goes."""
    found: dict[str, Measured] = {}
    compiled: list[Measured] = []

    def once(name: str, compile: bool, batch: int) -> Measured | None:
        """The figures, or None where the batch does not fit into memory."""
        operations = found[name].operations if name in found else None
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            bench = Bench(name, batch, records, options.workers, device)
            return bench.measure(name, compile, options.seconds or sizes.seconds, operations)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or batch < 4:
                raise
            say(f"{name}: {batch} pictures do not fit, half of them are tried")
            return None

    def largest(name: str, compile: bool, batch: int) -> Measured:
        start = time.monotonic()
        while (one := once(name, compile, batch)) is None:
            batch //= 2
        say(f"{name}, compiled: {one.compiled}; {one.training:,.0f} images/s; {time.monotonic() - start:.0f} s")
        return one

    for name in options.recipes:
        found[name] = largest(name, False, min(options.batch, len(records)))
    longest = COMPILING
    for name in [] if options.no_compile else options.recipes:
        start = time.monotonic()
        if start + longest > options.deadline:
            say(f"{name}, compiled: left out, for the {options.minutes:g} minutes are nearly over (--minutes)")
            continue
        compiled.append(largest(name, True, found[name].batch))
        longest = max(longest, time.monotonic() - start)
    return [*found.values(), *compiled]


def report(found: list[Measured], peak: float, precision: str) -> None:
    """A table a question."""
    print("\nHow fast? Pictures a second.\n")
    table(
        ("recipe", "parameters, M", "batch", "compiled", "loader alone", "model alone", "training", "waiting for data"),
        (
            (
                *(one.name, f"{one.parameters / 1e6:.1f}", one.batch, one.compiled),
                *(f"{rate:,.0f}" for rate in (one.loader, one.model, one.training)),
                f"{one.waited:.0%}",
            )
            for one in found
        ),
    )
    print(f"\nWhat share of the matrix units? Their peak here: {peak / 1e12:,.1f} TFLOP/s, {precision}, measured.\n")
    table(
        ("recipe", "compiled", "GFLOP a picture", "TFLOP/s, model alone", "share of the peak", "in training"),
        (
            (
                *(one.name, one.compiled, f"{one.operations / 1e9:.1f}", f"{one.operations * one.model / 1e12:,.2f}"),
                *(f"{one.operations * rate / peak:.1%}" for rate in (one.model, one.training)),
            )
            for one in found
        ),
    )
    print("\nWhere does a step's time go? Milliseconds; the loss with its backward; the rest: norms, clipping, host.\n")
    table(
        ("recipe", "compiled", *PARTS, "rest", "step"),
        (
            (
                *(one.name, one.compiled, *(f"{one.parts[part]:.2f}" for part in PARTS)),
                *(f"{one.step - sum(one.parts.values()):.2f}", f"{one.step:.2f}"),
            )
            for one in found
        ),
    )
    print("\nHow much memory? GB.\n")
    table(
        ("recipe", "compiled", "batch", "weights, optimiser, batch", "a step adds", "MB a picture", "held by torch"),
        (
            (
                *(one.name, one.compiled, one.batch, f"{one.resting / GB:.2f}" if one.resting else ""),
                *(f"{one.peak / GB:.2f}", f"{one.peak / one.batch / 1e6:.1f}"),
                f"{one.reserved / GB:.2f}" if one.reserved else "",
            )
            for one in found
        ),
    )


def table(headings: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> None:
    """Markdown."""
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def machine(device: torch.device) -> str:
    """What it was measured on."""
    lines = [f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        lines += [f"{properties.name}, {properties.total_memory / GB:.0f} GB, CUDA {torch.version.cuda}"]
        lines += [f"cuDNN {torch.backends.cudnn.version()}"]
    lines += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "transformers")]
    return ", ".join(lines)


def memory_of(device: torch.device) -> int:
    """Bytes that a device has; of others than CUDA, what a small one has."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else int(4 * GB)


def say(message: str) -> None:
    """Progress, which is no part of the report."""
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help=f"by itself {', '.join(RECIPES)}; --quick: demo")
    parser.add_argument("--batch", type=int, help=f"pictures a step; by itself {PER_GB} for each GB of the device")
    parser.add_argument("--pictures", type=Path, help="folder of .jpg files; by itself, pictures are rendered")
    parser.add_argument("--workers", type=int, help="decoding threads, as data.workers")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="compiled models that would take longer are left out"
    )
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script, measures nothing of use")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    options.recipes = options.recipes or (["demo"] if options.quick else list(RECIPES))
    options.deadline = began + 60 * options.minutes
    device = choose_device(options.device)
    precision = choose_precision("auto", device)
    if options.batch is None:
        wanted = PER_GB * memory_of(device) / GB
        options.batch = 8 if options.quick else 2 ** int(max(4, wanted)).bit_length() // 2
    with tempfile.TemporaryDirectory() as scratch:
        records = packed(options.pictures, sizes, options.batch, Path(scratch))
        say(f"{len(records):,} pictures packed, {time.monotonic() - began:.0f} s")
        peak = matrix_peak(device, sizes.matrix, precision)
        found = measured(options, sizes, records, device)
    kind = "photographs" if options.pictures else f"rendered pictures of {sizes.side} pixels"
    print(
        f"{machine(device)}\n\n    {shlex.join(['python', *sys.argv])}\n\n{len(records):,} {kind}, packed; {precision}"
    )
    report(found, peak, precision)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
