"""What people see in a terminal: tables and progress. Without a terminal, progress comes as plain lines."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cliplet.results import DIRECTIONS

SECONDS_BETWEEN_LINES = 10  # where there is no terminal to draw a bar on

Tell = Callable[[int, int], None]  # of (done, total)


def say(console: Console, message: str) -> None:
    """A line for people, as it is: file names are no markup, and a log's lines are not broken at 80 characters."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(what: str, console: Console | None = None) -> Iterator[Tell]:
    """A function to tell progress to, shown on standard error (or the console given) while the block runs."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(what, console)
        return
    columns = TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def speed_bar(what: str, console: Console | None = None) -> Iterator[Tell]:
    """As `progress_bar`, with pictures a second."""
    console, speed = console or Console(stderr=True), _Speed()
    if not console.is_terminal:
        yield _plain_lines(what, console, lambda done: f", {speed(done):,.0f} pictures/s")
        return
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
    columns = (TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), *left)
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(what, total=None, speed="")

    def tell(done: int, total: int) -> None:
        progress.start()  # not before: reading the data set may show a bar of its own
        progress.update(task, completed=done, total=total, speed=f"{speed(done):,.0f} pictures/s")

    try:
        yield tell
    finally:
        progress.stop()


class _Speed:
    """Pictures a second since the first was told of; those of an earlier run do not count."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        return (done - self._first[0]) / max(now - self._first[1], 1e-6)


def _plain_lines(what: str, console: Console, more: Callable[[int], str] = lambda done: "") -> Tell:
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        addition = more(done)
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{what}: {done:,} of {total:,}{addition}", highlight=False)

    return tell


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def recall_table(
    metrics: Mapping[str, float],
    title: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    others: Mapping[str, Any] | None = None,
) -> Table:
    """Recalls and ranks in both directions. `metrics`: from `retrieval_metrics`; `intervals`: of each metric, (low,
    high); `others`: other models' metrics by name, as objects with `metrics` and perhaps `intervals`."""
    table = Table(title=Text(title), title_justify="left")
    for heading in ("", "R@1", "R@5", "R@10", "median rank", "mean rank"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold", no_wrap=bool(heading))
    rows = {"": (metrics, intervals or {})}
    rows |= {name: (one.metrics, getattr(one, "intervals", {})) for name, one in (others or {}).items()}
    for model, (values, ends) in rows.items():
        if model:
            table.add_section()
            table.add_row(Text(model, style="italic"))
        for direction, name in DIRECTIONS.items():
            recalls = [_with_interval(values, ends, f"{direction}_R@{k}") for k in (1, 5, 10)]
            ranks = f"{values[f'{direction}_median_rank']:g}", f"{values[f'{direction}_mean_rank']:.1f}"
            table.add_row(name, *recalls, *ranks)
    counts = f"{counted(int(metrics['images']), 'picture')}, {counted(int(metrics['captions']), 'caption')}"
    table.caption = (
        f"{counts}, rsum {_with_interval(metrics, intervals or {}, 'rsum', ' (', ')')}; "
        "in percent; all captions of a picture are right, ties count against the model"
        + ("; below each, its 95 % interval" if intervals else "")
    )
    return table


def _with_interval(
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    name: str,
    before: str = "\n[dim]",
    after: str = "[/dim]",
) -> str:
    value = f"{metrics[name]:.1f}"
    if name not in intervals:
        return value
    low, high = intervals[name]
    return f"{value}{before}{low:.1f}–{high:.1f}{after}"


def export_table(export: Any) -> Table:
    """What each step of an export cost; `export`: an Export of `runtime/exported.py`."""
    table = Table(title=Text(f"what each step costs, on {export.measured_on}"), title_justify="left")
    measured = any(step.recalls for step in export.steps)
    for heading in ("", "MB", "cosine", *(("engine", "R@1") if measured else ())):
        table.add_column(heading, justify="left" if heading in ("", "engine") else "right", no_wrap=bool(heading))
    for step in export.steps:
        engines = list(dict.fromkeys(name.partition(" ")[2] for name in step.recalls))
        cosines = f"{step.image_cosine:.4f}\n{step.text_cosine:.4f}"
        recalls = [
            " / ".join(f"{step.recalls[f'{direction}_R@1 {engine}']:.2f}" for direction in DIRECTIONS)
            for engine in engines
        ]
        cells = ("\n".join(engines), "\n".join(recalls)) if measured else ()
        table.add_row(Text(step.step), f"{step.bytes / 1e6:.1f}", cosines, *cells)
    if export.dims_recalls:
        table.add_section()
    for size, values in export.dims_recalls.items():
        table.add_row(f"{size} dimensions", "", "", "", " / ".join(f"{value:.2f}" for value in values.values()))
    table.caption = "cosines to the PyTorch model's features, of pictures / sentences" + (
        "; R@1 in percent, image→text / text→image" if any(step.recalls for step in export.steps) else ""
    )
    return table


def recipe_list(recipes: list[dict[str, Any]]) -> str:
    """The recipes as text: a line of sizes for each, what it shows, and figures that others published."""
    lines = []
    for one in recipes:
        lines.append(
            f"{one['name']:<30}{one['parameters_M']:>6.1f} M parameters  {one['image_size']:>4} pixels"
            f"  {one['context_length']:>4} tokens"
        )
        notes = [one["shows"], f"Published: {one['published']}." if one["published"] else ""]
        lines += textwrap.wrap(" ".join(filter(None, notes)), 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
