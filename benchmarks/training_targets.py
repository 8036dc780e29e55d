"""What `training.py` measures of chunks, of heads on kept features, and of ranks; what is compared stands there."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

from training_parts import WARM_UP, Block, Ours, Source, Turns, block, configured, heading, in_memory, serve

from cliplet.config import HeadConfig, RunConfig, StageConfig
from cliplet.training.distributed import joined

TIME, MEMORY, FASTER, SPEED = 1.5, 1.3, 30.0, 0.9  # what is aimed at
WARM_UP_CHUNKS = 2
HEADS = {
    "mlp": HeadConfig(kind="mlp", hidden=1024, dropout=0.2),
    "convffn": HeadConfig(kind="convffn", hidden=1024, dropout=0.2),
}
FROZEN = StageConfig(epochs=10, image_blocks=0, text_blocks=0, augment=False)
RANKS, TIMEOUT = 2, 600.0


@dataclass(frozen=True)
class Built:
    """What a process says of itself before its first step."""

    about: str
    memory: float  # GB


# Chunks


def chunks(source: Source, name: str, batch: int, chunk: int, steps: int) -> bool:
    """A batch in chunks beside batches of a chunk's size; whether time and memory are within what is aimed at."""
    if batch % chunk:
        raise SystemExit(f"chunks of {chunk} do not divide a batch of {batch}")
    heading(f"{name}, {source.data}")
    with Turns() as turns:
        turns.start("plain", embed_in_chunks, source, configured(name, chunk), batch // chunk, WARM_UP)
        turns.start("chunked", embed_in_chunks, source, configured(name, batch, chunk_size=chunk), 1, 0)
        built = {side: turns.told(side) for side in ("plain", "chunked")}
        plain: list[Block] = turns.ask(0, "plain")
        chunked: list[Block] = []
        for number in range(steps):
            chunked += turns.ask(number, "chunked")
            plain += turns.ask(number + 1, "plain")
    around = [statistics.mean(one.seconds / one.pictures for one in pair) for pair in pairwise(plain)]
    ratios = [one.seconds / one.pictures / usual for one, usual in zip(chunked, around, strict=True)]
    ratio, memory = statistics.median(ratios), chunked[-1].peak / plain[-1].peak
    print(built["plain"].about)
    print(f"\nMedians of {steps} steps of {batch}, each between blocks of {batch // chunk} steps of {chunk}.\n")
    print(
        "| batch | seconds a step | ms a picture | GB before the first step | GB at the peak |\n|---|--:|--:|--:|--:|"
    )
    for side, what, blocks, made in (
        ("plain", str(chunk), plain, batch // chunk),
        ("chunked", f"{batch} in chunks of {chunk}", chunked, 1),
    ):
        seconds = statistics.median(one.seconds / made for one in blocks)
        each = statistics.median(one.seconds / one.pictures for one in blocks)
        print(f"| {what} | {seconds:.2f} | {1000 * each:.1f} | {built[side].memory:.2f} | {blocks[-1].peak:.2f} |")
    print(
        f"\nTime a picture: {ratio:.2f} times (from {min(ratios):.2f} to {max(ratios):.2f}); aimed at: at most {TIME}."
    )
    print(f"Peak of memory: {memory:.2f} times; aimed at: at most {MEMORY}.")
    return ratio <= TIME and memory <= MEMORY


def embed_in_chunks(pipe: Connection, source: Source, config: RunConfig, steps: int, warm_up: int) -> None:
    """A process that trains in blocks of so many steps; its first, if a block has no warm-up, is of some chunks."""
    ours = Ours(config, source.records(warm_up + steps + 1, config.train.batch_size))
    built = Built(ours.about, in_memory("VmRSS"))
    chunk = config.train.chunk_size
    if not warm_up and isinstance(chunk, int):
        ours.step(next(ours.trainer.first_batch().sized(WARM_UP_CHUNKS * chunk)))
    serve(pipe, built, lambda number: block(ours, number, steps, warm_up))


# Heads on kept features


def heads(source: Source, head: str, weights: Path | None, batch: int, steps: int, blocks: int) -> bool:
    """An epoch of heads from kept features beside one that runs the frozen towers; whether it is fast enough."""
    heading(f"flickr8k with {head} for texts, both towers frozen, batch {batch}, {source.data}")
    records = source.records(WARM_UP + steps + 1, batch)
    with tempfile.TemporaryDirectory() as folder:
        config = configured("flickr8k", batch, (str(weights),) if weights else (), stages=(FROZEN,), features=folder)
        model = config.model.model_copy(update={"text_head": HEADS[head]})
        config = config.model_copy(update={"model": model})
        ours = Ours(config, records, say=print)
        if ours.trainer.frozen.image is None or ours.trainer.frozen.text is None:
            raise SystemExit("features could not be kept; why stands above")
        kept = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        running = config.model_copy(update={"train": config.train.model_copy(update={"cache_features": False})})
        towers = Ours(running, records)
        whole_epoch(ours, 0)  # not counted
        epochs, pace = [], []
        for number in range(blocks):
            pace.append(block(towers, number, steps).seconds / steps)
            epochs.append(whole_epoch(ours, number + 1))
    an_epoch = len(ours.trainer.loader)
    ratios = [an_epoch * one / epoch for one, epoch in zip(pace, epochs, strict=True)]
    ratio, once, each = (statistics.median(values) for values in (ratios, epochs, pace))
    print(f"\n{ours.about}; {len(records):,} pictures, {an_epoch} steps an epoch\nMedians of {blocks} blocks.\n")
    print(
        "| features once, s | kept, MB | epoch from them, s | a step with the towers, s | epoch, s | ratio | from, to |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    print(
        f"| {ours.computing:.0f} | {kept / 1e6:,.0f} | {once:.2f} | {each:.2f} | {an_epoch * each:.0f} | {ratio:.1f} "
        f"| {min(ratios):.1f}, {max(ratios):.1f} |\n\nAimed at: at least {FASTER:.0f}."
    )
    return ratio >= FASTER


def whole_epoch(ours: Ours, number: int) -> float:
    """Seconds of an epoch."""
    start = time.perf_counter()
    for batch in ours.batches(number):
        ours.step(batch)
    return time.perf_counter() - start


# Ranks


def ranks(source: Source, name: str, batch: int, steps: int, blocks: int) -> bool:
    """Two processes with a thread each beside one with two; whether they are as fast as is aimed at."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:RANKS])  # those that are started inherit it
    heading(f"{name}, batch {batch}, {source.data}")
    both = [f"rank {rank}" for rank in range(RANKS)]
    alone: list[Block] = []
    together: list[Block] = []
    with Turns() as turns:
        turns.start("alone", train_as_rank, source, name, batch, steps, OMP_NUM_THREADS=str(RANKS), WORLD_SIZE="1")
        shared = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank, process in enumerate(both):
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            turns.start(process, train_as_rank, source, name, batch, steps, **shared, **numbers)
        for process in ("alone", *both):
            print(f"{process}, {turns.told(process)}", flush=True)
        for number in range(blocks):
            alone += turns.ask(number, "alone")
            of_ranks: list[Block] = turns.ask(number, *both)
            together.append(replace(of_ranks[0], seconds=max(one.seconds for one in of_ranks)))
    ratios = [b.images_per_second / a.images_per_second for a, b in zip(alone, together, strict=True)]
    ratio = statistics.median(ratios)
    print(f"\nMedians of {blocks} blocks of {steps} steps each; ratios of neighbouring blocks.\n")
    print("| | images/s | last loss | ratio | from, to |\n|---|--:|--:|--:|--:|")
    print(f"| 1 process, {RANKS} threads | {speed(alone):.1f} | {alone[-1].loss:.4f} | | |")
    print(
        f"| {RANKS} processes, 1 thread each | {speed(together):.1f} | {together[-1].loss:.4f} | {ratio:.2f} "
        f"| {min(ratios):.2f}, {max(ratios):.2f} |\n\nAimed at: at least {SPEED}."
    )
    return ratio >= SPEED


def train_as_rank(pipe: Connection, source: Source, name: str, batch: int, steps: int) -> None:
    """A process that is a rank, as its environment says, or alone."""
    with joined(TIMEOUT) as group:
        ours = Ours(configured(name, batch), source.records(WARM_UP + steps + 1, batch), group)
        serve(pipe, ours.about, lambda number: block(ours, number, steps))


def speed(blocks: list[Block]) -> float:
    """Images a second."""
    return statistics.median(one.images_per_second for one in blocks)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
