"""The verbs that classify pictures: zero-shot and few-shot."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cliplet.cli.options import parse, refuse_below

if TYPE_CHECKING:
    from rich.table import Table

    from cliplet.evaluation.class_scores import Figure
    from cliplet.evaluation.few_shot import FewShot
    from cliplet.evaluation.zero_shot import ZeroShot

SHOWN_CLASSES = 30  # in a table on a terminal, those with the lowest recall


def zero_shot(words: list[str]) -> None:
    """Classify pictures by sentences about their classes: recall with intervals, and what is confused with what."""
    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        """Model or run folder, or open_clip:ARCHITECTURE/PRETRAINED."""
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
        """Folder of DATA/CLASS/x.jpg or DATA/SPLIT/CLASS/x.jpg, or a CSV or TSV with columns image and label."""
        split: str | None = None
        """Split to classify; by itself test, or everything where the data names no splits. all takes every picture."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the CSV or TSV."""
        classes: Path | None = None
        """File that says what classes are called in the prompts: lines `CLASS: words | other words`, JSON or CSV."""
        templates: str = "photo"
        """Prompts: words, simple, photo, a file with one a line, or a single one such as "a photo of a {}"."""
        confusion: Path | None = None
        """Draw the confusion matrix into this picture file."""
        json: bool = False
        """Print JSON instead of tables (docs/json.md)."""
        quarantine: Path = Path("quarantine.jsonl")
        """Where pictures that had to be left out are written down, if there are any, as JSON lines."""

    options: Options = parse(Options, "zero-shot", words, zero_shot.__doc__ or "")

    from cliplet.console import progress_bar
    from cliplet.data.labelled import read_labelled
    from cliplet.data.quarantine import Quarantine
    from cliplet.drawing import refuse_bad_target
    from cliplet.evaluation.classes import class_words, templates_of
    from cliplet.evaluation.confusion import write_confusion
    from cliplet.evaluation.zero_shot import zero_shot as classify
    from cliplet.files import refuse_unwritable
    from cliplet.runtime.encoder import load

    templates = templates_of(options.templates)
    if options.confusion:
        refuse_bad_target(options.confusion)
        refuse_unwritable(options.confusion)
    found = read_labelled(options.data, options.images)
    split = options.split or found.usual_split
    pictures = found.select(split)
    called, notes = class_words(found.classes, options.classes)
    quarantine = Quarantine(options.quarantine)
    with progress_bar("embedding") as progress:
        result = classify(
            load(options.model),
            pictures,
            called,
            templates,
            model=options.model,
            split=split,
            quarantine=quarantine,
            progress=progress,
            notes=[*found.notes, *notes],
        )
    _tell(result.notes)
    if options.confusion:
        title = f"{result.model} on {result.data}, split {split}: top-1 {_figure(result.top1)}"
        write_confusion(result.confusion, [one.name for one in result.classes], options.confusion, title)
    if options.json:
        print(result.to_json())
        return
    from rich import print as show

    _say_title(result.model, result.data, result.split)
    show(_zero_shot_table(result))
    show(_class_table(result))
    if quarantine:
        print(quarantine.summary())
    if options.confusion:
        print(f"confusion: {options.confusion}")


def few_shot(words: list[str]) -> None:
    """Classify pictures after a few examples of each class: nearest class mean and linear probe, with intervals."""
    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        """Model or run folder, or open_clip:ARCHITECTURE/PRETRAINED."""
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
        """Folder of DATA/CLASS/x.jpg or DATA/SPLIT/CLASS/x.jpg, or a CSV or TSV with columns image and label."""
        shots: tuple[int, ...] = (1, 2, 4, 8, 16)
        """Examples of each class; one row of figures for each number."""
        repeats: int = 5
        """Draws of the examples, over which figures are means."""
        seed: int = 0
        """Of the draws, and of what is held out for testing."""
        split: str | None = None
        """Split to test on; by itself test. Without a split train, half of each class is held out for testing."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the CSV or TSV."""
        classes: Path | None = None
        """For the zero-shot row: file that says what classes are called, as of cliplet zero-shot."""
        templates: str = "photo"
        """For the zero-shot row: prompts, as of cliplet zero-shot."""
        json: bool = False
        """Print JSON instead of a table (docs/json.md)."""
        quarantine: Path = Path("quarantine.jsonl")
        """Where pictures that had to be left out are written down, if there are any, as JSON lines."""

    options: Options = parse(Options, "few-shot", words, few_shot.__doc__ or "")
    least = min(options.shots, default=None)
    refuse_below(shots=(least, 1), repeats=(options.repeats, 1), seed=(options.seed, 0))

    from cliplet.console import progress_bar
    from cliplet.data.labelled import read_labelled
    from cliplet.data.quarantine import Quarantine
    from cliplet.evaluation.classes import are_words, class_words, templates_of
    from cliplet.evaluation.few_shot import few_shot as learn
    from cliplet.evaluation.few_shot import ready
    from cliplet.runtime.encoder import load

    templates = templates_of(options.templates)
    found = read_labelled(options.data, options.images)
    ready(found, options.split, options.shots, options.repeats, options.seed)
    called, notes = class_words(found.classes, options.classes)
    quarantine = Quarantine(options.quarantine)
    with progress_bar("embedding, then learning") as progress:
        result = learn(
            load(options.model),
            found,
            called if are_words(called) else None,
            templates,
            options.shots,
            model=options.model,
            split=options.split,
            repeats=options.repeats,
            seed=options.seed,
            quarantine=quarantine,
            progress=progress,
            notes=[*found.notes, *notes],
        )
    _tell(result.notes)
    if options.json:
        print(result.to_json())
        return
    from rich import print as show

    _say_title(result.model, result.data, result.test_split)
    show(_few_shot_table(result))
    if quarantine:
        print(quarantine.summary())


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _figure(figure: "Figure") -> str:
    return f"{figure.value:.1f} % [{figure.low:.1f}, {figure.high:.1f}]"


def _say_title(model: str, data: str, split: str) -> None:
    """A line of its own above the table, for within one it would be broken at the table's width."""
    from rich import get_console

    from cliplet.console import say

    say(get_console(), f"{model} on {data}, split {split}")


def _zero_shot_table(result: "ZeroShot") -> "Table":
    from cliplet.console import counted

    table = _table(("", "percent", "95 % interval"))
    for name, figure in (
        ("top-1", result.top1),
        ("top-5", result.top5),
        ("mean class recall", result.mean_class_recall),
    ):
        if figure is not None:
            table.add_row(name, f"{figure.value:.1f}", f"{figure.low:.1f} to {figure.high:.1f}")
    table.caption = (
        f"{counted(result.pictures, 'picture')}, {counted(len(result.templates), 'template')}, "
        f"{len(result.classes):,} classes, guessing: {result.chance:.1f} %; ties count against the model"
    )
    return table


def _class_table(result: "ZeroShot") -> "Table":
    from rich.text import Text

    shown = result.classes
    table = _table(("class", "recall", "pictures", "most often taken for"))
    if len(shown) > SHOWN_CLASSES:
        there = [one for one in shown if one.recall is not None]
        shown = sorted(there, key=lambda one: one.recall or 0.0)[:SHOWN_CLASSES]
        table.caption = f"the {len(shown)} classes with the lowest recall of {len(result.classes):,}; --json gives all"
    for one in shown:
        recall = "-" if one.recall is None else f"{one.recall:.1f}"
        confused = Text(f"{one.confused_with} ({one.confused:,})") if one.confused_with is not None else "-"
        table.add_row(Text(one.name), recall, f"{one.pictures:,}", confused)
    return table


def _few_shot_table(result: "FewShot") -> "Table":
    from cliplet.console import counted

    table = _table(("", "examples of each class", "top-1", "95 % interval", "C"))
    for row in result.rows:
        interval = "-" if row.low is None or row.high is None else f"{row.low:.1f} to {row.high:.1f}"
        strength = "" if row.strength is None else f"{row.strength:g}"
        table.add_row(row.method.replace("_", " "), f"{row.shots}", f"{row.top1:.1f}", interval, strength)
    source = f" in split {result.train_split}" if result.train_split else ""
    other = "" if result.train_split else "other "
    table.caption = (
        f"{len(result.classes):,} classes, guessing: {result.chance:.1f} %; "
        f"mean of {counted(result.repeats, 'draw')} of examples from "
        f"{counted(result.train_pictures, 'picture')}{source}; "
        f"all rows are tested on the same {counted(result.test_pictures, other + 'picture')}"
    )
    return table


def _table(columns: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 0 and column != "most often taken for" else "left")
    return table
