"""How fast a CPU trains: beside the same step written plainly, in chunks, with heads alone, and on two ranks.

    python benchmarks/training.py step --data path/to/flickr8k    cliplet's step beside a plain one
    python benchmarks/training.py chunks --data ...               a batch of 1,024 in chunks of 64 beside batches of 64
    python benchmarks/training.py heads --data ...                an epoch from kept features beside one with the towers
    python benchmarks/training.py ranks --data ...                two processes beside one process with two threads

Each trains a recipe's last stage, towers, heads and temperature (`heads`: heads and temperature), on pictures that are
read from their files, by the parts that `cliplet train` puts together. What is compared takes turns, each in a process
of its own that rests while another works (`heads`: all in one), so that whatever else the machine does hits all. A
block of steps begins with an epoch of its own, whose first steps are not counted: threads start, and their queues fill.
Ratios are those of neighbouring blocks.

`step`: pictures, captions a picture and first weights are the same on both sides, and either has all cores. The plain
peer stands in plain_step.py.

`chunks`: a step of the large batch is measured between blocks of as many pictures in small ones. The peak of memory is
the process's own (VmHWM), whole: code, weights and the optimiser's state are in it.

`heads`: both towers are frozen and nothing is augmented, the stage being long enough for captions to be kept too. An
epoch from kept features is measured whole; of one that runs the towers, some steps, the rest at their pace.

`ranks`: all on the same two cores. The processes are started as torchrun starts them, with a thread each, and share the
batch; the one beside them has two threads.

Exit status 1 if `step` has a ratio below 2, or 5 % of its time went into waiting for data; if `chunks` takes more than
1.5 times as long for a picture, or 1.3 times the memory; if `heads` is not 30 times as fast; if `ranks` has less than
0.9 times the speed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from plain_step import Plain
from training_parts import WARM_UP, Ours, Source, Turns, configured, heading, serve
from training_targets import HEADS, chunks, heads, ranks

from cliplet.training.compiling import compile_towers

RECIPES = ("tinyvit-minilm-convffn", "vittiny-minilm")
PARTS = ("data", "forward", "loss, backward", "optimiser", "rest")
FASTER, WAITING = 2.0, 0.05  # what is aimed at


@dataclass(frozen=True)
class Options:
    """What `step` measures, and how long."""

    source: Source
    recipes: tuple[str, ...]
    batch: int
    steps: int  # counted, of a block
    blocks: int  # of each side
    compile: bool


@dataclass(frozen=True)
class Block:
    """Means over the counted steps of a block."""

    images_per_second: float
    cpu: float  # seconds of processor time a step, of this process: loader threads included, loader processes not
    parts: dict[str, float]  # seconds a step
    loss: float  # of the last step


class Laps:
    """Seconds from one mark to the next, added up by name."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets what was."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        """What passed since the last mark was `name`."""
        now = time.perf_counter()
        self.seconds[name] += now - self._mark
        self._mark = now

    def watch(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Marks where the forward pass of a step begins and ends, and its optimiser."""
        module.register_forward_pre_hook(lambda *_: self.lap("rest"))
        module.register_forward_hook(lambda *_: self.lap("forward"))
        optimizer.register_step_pre_hook(lambda *_: self.lap("loss, backward"))
        optimizer.register_step_post_hook(lambda *_: self.lap("optimiser"))


SIDES: dict[str, Callable[..., Ours | Plain]] = {"plain": Plain, "cliplet": Ours}


def work(pipe: Connection, side: str, name: str, options: Options) -> None:
    """What a side's process does."""
    laps = Laps()
    records = options.source.records(WARM_UP + options.steps, options.batch)
    trained = SIDES[side](configured(name, options.batch), records)
    about = f"{trained.about}; {trained.model.count_parameters() / 1e6:.1f} M parameters"
    if options.compile and isinstance(trained, Ours):
        said: list[str] = []
        batch, device = trained.trainer.first_batch(), trained.trainer.device
        compile_towers(trained.model, batch, device, trained.precision, said.append)
        about += f"; {said[0]}"
    laps.watch(trained.module, trained.optimizer)
    serve(pipe, about, lambda number: block(trained, number, options, laps))


def block(trained: Ours | Plain, number: int, options: Options, laps: Laps) -> Block:
    """Some steps of an epoch, and where their time went."""
    batches = trained.batches(number)
    for _ in range(WARM_UP):
        trained.step(next(batches))
    cpu, start = time.process_time(), time.perf_counter()
    laps.start()
    for _ in range(options.steps):
        batch = next(batches)
        laps.lap("data")
        loss = trained.step(batch)
        laps.lap("rest")
    seconds, cpu = time.perf_counter() - start, (time.process_time() - cpu) / options.steps
    batches.close()  # what made them ends, so that the other's turn is its alone
    return Block(
        options.steps * options.batch / seconds,
        cpu,
        {name: laps.seconds[name] / options.steps for name in PARTS},
        loss,
    )


def measured(name: str, options: Options) -> dict[str, list[Block]]:
    """Blocks of both sides, which took turns."""
    blocks: dict[str, list[Block]] = {side: [] for side in SIDES}
    with Turns() as turns:
        for side in SIDES:
            turns.start(side, work, side, name, options)
        for side in SIDES:
            print(f"{name}, {turns.told(side)}", flush=True)
        for number in range(options.blocks):
            for side in SIDES:
                blocks[side] += turns.ask(number, side)
    return blocks


def step(options: Options) -> bool:
    """Trains each recipe both ways and prints the tables; whether all is as fast as is aimed at."""
    heading(f"batch {options.batch}, {options.source.data}")
    found = {name: measured(name, options) for name in options.recipes}
    print(f"\nMedians of {options.blocks} blocks of {options.steps} steps each; ratios of neighbouring blocks.\n")
    print("| recipe | plain, images/s | cliplet, images/s | ratio | from, to | ratio of CPU s | waiting for data |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    good = True
    for name, blocks in found.items():
        plain, ours = (blocks[side] for side in SIDES)
        ratios = [b.images_per_second / a.images_per_second for a, b in zip(plain, ours, strict=True)]
        cpu = statistics.median(a.cpu / b.cpu for a, b in zip(plain, ours, strict=True))
        waiting = sum(one.parts["data"] for one in ours) / sum(sum(one.parts.values()) for one in ours)
        ratio = statistics.median(ratios)
        good = good and ratio >= FASTER and waiting < WAITING
        speeds = [statistics.median(one.images_per_second for one in blocks[side]) for side in SIDES]
        print(
            f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratio:.2f} | {min(ratios):.2f}, {max(ratios):.2f} "
            f"| {cpu:.2f} | {waiting:.1%} |"
        )
    print("\nMilliseconds a step, and processor time, which in the plain way lacks that of its loader's processes.\n")
    print(f"| recipe | side | {' | '.join(PARTS)} | step | CPU s | last loss |")
    print("|---|---|" + "--:|" * (len(PARTS) + 3))
    for name, blocks in found.items():
        for side, of_side in blocks.items():
            parts = [1000 * statistics.median(one.parts[part] for one in of_side) for part in PARTS]
            figures = " | ".join(f"{value:.0f}" for value in [*parts, sum(parts)])
            cpu = statistics.median(one.cpu for one in of_side)
            print(f"| {name} | {side} | {figures} | {cpu:.2f} | {of_side[-1].loss:.2f} |")
    return good


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(
        name: str, batch: int, steps: int, what: str, counted: str = "counted steps of a block"
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what)
        one.add_argument("--data", required=True, help="a Flickr8k, or any data set with a split train")
        one.add_argument("--pictures", type=int, help="only so many of them")
        one.add_argument("--batch", type=int, default=batch)
        one.add_argument("--steps", type=int, default=steps, help=counted)
        return one

    one = command("step", 64, 5, "images a second beside the plain way")
    one.add_argument("--only", nargs="+", default=RECIPES, choices=RECIPES, metavar="NAME")
    one.add_argument("--blocks", type=int, default=5, help="blocks of each side")
    one.add_argument("--compile", action="store_true", help="cliplet's towers with torch.compile")
    one = command("chunks", 1024, 2, "time and memory of a batch in chunks", counted="counted steps of the batch")
    one.add_argument("--recipe", default="vittiny-minilm", choices=RECIPES)
    one.add_argument("--chunk", type=int, default=64)
    one = command("heads", 128, 3, "an epoch from kept features", counted="counted steps of a block with the towers")
    one.add_argument("--head", default="mlp", choices=HEADS, help="of the texts; convffn reads every token's state")
    one.add_argument("--weights", type=Path, help="MobileNetV2's, which are random by themselves")
    one.add_argument("--blocks", type=int, default=3, help="epochs from features, and blocks with the towers")
    one = command("ranks", 64, 5, "images a second of two processes")
    one.add_argument("--recipe", default="vittiny-minilm", choices=RECIPES)
    one.add_argument("--blocks", type=int, default=5, help="blocks of each side")
    return parser


def main() -> int:
    given = parser().parse_args()
    source = Source(given.data, given.pictures)
    if given.what == "step":
        options = Options(source, tuple(given.only), given.batch, given.steps, given.blocks, given.compile)
        good = step(options)
    elif given.what == "chunks":
        good = chunks(source, given.recipe, given.batch, given.chunk, given.steps)
    elif given.what == "heads":
        good = heads(source, given.head, given.weights, given.batch, given.steps, given.blocks)
    else:
        good = ranks(source, given.recipe, given.batch, given.steps, given.blocks)
    return int(not good)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would not survive the workers' fork
    sys.exit(main())
