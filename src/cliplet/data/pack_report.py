"""What people see of packing: a bar with its speed, and at the end what the pack holds."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cliplet.console import SECONDS_BETWEEN_LINES, Tell
from cliplet.data.packing import PackResult


@contextmanager
def speed_bar(console: Console | None = None) -> Iterator[Tell]:
    """A function to tell progress to, shown on standard error with pictures a second; as lines where is no terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    speed = _Speed()
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
    columns = (TextColumn("packing"), BarColumn(bar_width=24), MofNCompleteColumn(), *left)
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task("packing", total=None, speed="")

    def tell(done: int, total: int) -> None:
        progress.start()  # not before: reading the data set may show a bar of its own
        progress.update(task, completed=done, total=total, speed=f"{speed(done):,.0f} pictures/s")

    try:
        yield tell
    finally:
        progress.stop()


def _plain_lines(console: Console) -> Tell:
    speed, last = _Speed(), time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        rate = speed(done)
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"packing: {done:,} of {total:,}, {rate:,.0f} pictures/s", highlight=False)

    return tell


class _Speed:
    """Pictures a second since the first was told of; those of an earlier run do not count."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        return (done - self._first[0]) / max(now - self._first[1], 1e-6)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def summary(result: PackResult, out: Path) -> str:
    """What the pack holds, for the end of the command."""
    manifest = result.manifest
    splits = ", ".join(f"{name or '(none)'} {count['pictures']:,}" for name, count in manifest.splits.items())
    pictures = sum(shard.pictures for shard in manifest.shards)
    lines = [
        f"{_counted(pictures, 'picture')} ({splits}), "
        f"{_counted(sum(shard.captions for shard in manifest.shards), 'caption')}, "
        f"{_counted(len(manifest.shards), 'shard')}, {sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB; "
        f"{_counted(manifest.left_out, 'picture')} left out"
    ]
    if result.packed:
        lines.append(
            f"{_counted(result.packed, 'picture')} in {result.seconds:,.1f} s: "
            f"{result.packed / result.seconds:,.0f} pictures/s"
        )
    else:
        lines.append("The pack was complete already; nothing was done.")
    if result.quarantine:
        lines.append(result.quarantine.summary())
    return "\n".join([*lines, f"next: cliplet train RECIPE --data.path {shlex.quote(str(out))}"])
