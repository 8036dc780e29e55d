"""An inspection for the terminal: splits, numbers, then each kind of finding with its first examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cliplet.data.inspection.captions import NO_LETTERS
from cliplet.data.inspection.files import SMALL, STRETCHED
from cliplet.data.inspection.findings import Copies, Duplicates, Lengths, Place, Spread
from cliplet.data.inspection.result import Inspection
from cliplet.data.records import Problem

EXAMPLES = 5  # of each kind of finding; --json lists all
SHOWN_PLACES = 4  # of a group of copies
TOKENS_HINT = "--model MODEL_FOLDER or tokenizer.json tells how many captions a model would cut"
NOT_ALL_SOUGHT = "So many pictures look alike that not all of them could be compared: there may be more copies."


def inspection_table(inspection: Inspection) -> Group:
    """Everything for the terminal."""
    title = Text(f"{inspection.path} ({inspection.form})", style="bold")
    return Group(title, _split_table(inspection), _number_table(inspection), *_findings(inspection))


def _split_table(inspection: Inspection) -> Table:
    table = Table()
    table.add_column("split")
    table.add_column("pictures", justify="right")
    table.add_column("captions", justify="right")
    for split, count in inspection.splits.items():
        name = (split or "(none)") + (" (made by cliplet)" if inspection.made_splits else "")
        table.add_row(Text(name), f"{count.pictures:,}", f"{count.captions:,}")
    table.add_section()
    table.add_row("all", f"{inspection.pictures:,}", f"{inspection.captions:,}")
    return table


def _number_table(inspection: Inspection) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in numbers(inspection).items():
        table.add_row(name, Text(value))
    return table


def numbers(inspection: Inspection) -> dict[str, str]:
    """The figures in words, by name; what there is nothing to say of is left out."""
    texts, tokens = inspection.texts, inspection.texts.tokens
    facts = {
        "captions a picture": _lengths(texts.per_picture) + _most_frequent(texts.per_picture),
        "words a caption": _lengths(texts.words),
        "tokens a caption": f"{_lengths(tokens.lengths)}, by {tokens.tokenizer}" if tokens else TOKENS_HINT,
    }
    if tokens:
        facts["captions cut"] = f"{part(tokens.cut, inspection.captions)} at {tokens.context_length} tokens"
    if len(texts.scripts) > 1:
        facts["scripts"] = ", ".join(f"{name} {share(n, inspection.captions)}" for name, n in texts.scripts.items())
    facts["readable files"] = f"{inspection.readable:,} of {inspection.files:,}"
    spreads = {"width": (inspection.width, "pixels"), "height": (inspection.height, "pixels")}
    for name, (spread, unit) in {**spreads, "file size": (inspection.file_size, "bytes")}.items():
        if spread:
            facts[name] = _spread(spread, unit)
    for name, counts in (("formats", inspection.formats), ("colours", inspection.colours)):
        facts[name] = _counts(counts)
    if inspection.animated:
        facts["animated"] = f"{inspection.animated:,}, of which the first frame is taken"
    return {name: value for name, value in facts.items() if value}


def share(part: int, whole: int) -> str:
    """As a percentage that is 0 or 100 only where it is exactly."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return f"{round(min(percent, 99.9), 1) if part < whole else percent:g} %"


def part(count: int, whole: int) -> str:
    """A count and its percentage."""
    return f"{count:,} of {whole:,} ({share(count, whole)})"


def _lengths(lengths: Lengths) -> str:
    if lengths.minimum == lengths.maximum:
        return f"{lengths.minimum:,}"
    return f"{lengths.minimum:,} to {lengths.maximum:,}, median {lengths.at(0.5):,}, mean {lengths.mean:.2f}"


def _spread(spread: Spread, unit: str) -> str:
    if spread.minimum == spread.maximum:
        return f"{spread.minimum:,} {unit}"
    return f"{spread.minimum:,} to {spread.maximum:,} {unit}, median {spread.median:,.0f}"


def _most_frequent(lengths: Lengths) -> str:
    if len(lengths.counts) < 2:
        return ""
    shown = sorted(lengths.counts.items(), key=lambda item: -item[1])[:8]
    return ": " + ", ".join(f"{pictures:,} with {number}" for number, pictures in sorted(shown))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _findings(inspection: Inspection) -> Iterator[Text]:
    for leak in inspection.leaks:
        yield Text(str(leak), style="bold red")
    for title, items, describe, style in kinds(inspection):
        yield from _listed(title, items, describe, style)
    if not inspection.survey.complete:
        yield Text(NOT_ALL_SOUGHT, style="yellow")
    yield from _caption_findings(inspection)
    if inspection.sound and not inspection.duplicates_within and not inspection.near_within:
        yield Text("Nothing is wrong: every picture decodes, and none stands twice.", style="green")


Kind = tuple[str, Sequence[Any], Callable[[Any], str], str]


def kinds(inspection: Inspection) -> list[Kind]:
    """Each kind of finding about files: its title, the findings, what describes one, and its colour."""
    copies: list[Kind] = [
        ("Pictures that stand in several splits (the same bytes)", inspection.duplicates_across, describe_group, "red"),
        ("Pictures that stand in several splits, saved anew", inspection.near_across, describe_group, "red"),
        (
            "Pictures that stand more than once in a split (the same bytes)",
            inspection.duplicates_within,
            describe_group,
            "yellow",
        ),
        ("Pictures that stand more than once in a split, saved anew", inspection.near_within, describe_group, "yellow"),
    ]
    return [
        ("Missing files", inspection.missing, describe, "red"),
        ("Unreadable files", inspection.unreadable, describe, "red"),
        ("Bad records in the annotations, left out", inspection.problems, describe, "yellow"),
        *copies,
        ("Files whose name says another format than their bytes (they are read)", inspection.mislabelled, describe, ""),
        (f"Pictures with a side under {SMALL} pixels", inspection.small, describe, ""),
        (
            f"Pictures more than {STRETCHED:g} times as long as wide, or as wide as long",
            inspection.stretched,
            describe,
            "",
        ),
        ("Pictures with hardly anything on them", inspection.blank, describe, ""),
        ("Pictures in inks, palettes or 16 bits, or animated (they are converted)", inspection.unusual, describe, ""),
        ("Pictures that have a caption twice", inspection.twice, describe, ""),
    ]


def _listed(title: str, items: Sequence[Any], describe: Callable[[Any], str], style: str) -> Iterator[Text]:
    if not items:
        return
    yield Text(f"{title}: {len(items):,}", style=f"bold {style}".strip())
    for item in items[:EXAMPLES]:
        yield Text(f"  {describe(item)}")
    if len(items) > EXAMPLES:
        yield Text(f"  and {len(items) - EXAMPLES:,} more (--json lists them all)", style="dim")


def _caption_findings(inspection: Inspection) -> Iterator[Text]:
    texts = inspection.texts
    if texts.most_repeated:
        yield Text(f"Captions that stand under several pictures: {texts.repeated:,}", style="bold")
        for one in texts.most_repeated[:EXAMPLES]:
            yield Text(f"  under {one.pictures:,}: {one.caption}")
    for script, count in texts.other_scripts.items():
        yield Text(f"{in_script(script)}: {count:,} captions, such as: {texts.examples[script][0]}", style="bold")


def in_script(script: str) -> str:
    """What captions of a script are called."""
    return "Without a letter" if script == NO_LETTERS else f"In {script} letters"


def describe(problem: Problem) -> str:
    """One problem on a line."""
    return f"{problem.where}: {problem.reason}"


def describe_group(group: Duplicates | Copies) -> str:
    """The first places of a group on a line."""
    shown = " = ".join(map(describe_place, group.places[:SHOWN_PLACES]))
    more = len(group.places) - SHOWN_PLACES
    return f"{shown} = {more:,} more" if more > 0 else shown


def describe_place(place: Place) -> str:
    """A place and its split."""
    return f"{place.path} ({place.split or '(none)'})"
