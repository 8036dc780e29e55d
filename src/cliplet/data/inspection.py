"""What a data set holds: its numbers, what is wrong with it, and pictures that stand in two places."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from PIL import Image
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cliplet.data.images import load_image
from cliplet.data.records import ImageText, ImageTextSource, Problem
from cliplet.drawing import contact_sheet, save_picture, stacked, thumbnail
from cliplet.errors import DataError

EXAMPLES = 5  # of each kind of problem in the table; --json lists all
BLOCK = 1024  # pictures given to the pool at a time, so that ten million do not wait in memory
CELL = 160  # pixels of a picture in the contact sheet
TRIED = 500  # pictures of a split that are tried when looking for readable ones to draw


@dataclass(frozen=True, slots=True)
class Spread:
    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, slots=True)
class SplitCount:
    pictures: int
    captions: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture is listed: its path and its split."""

    path: str
    split: str


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Records whose files hold the same bytes, under one name or several."""

    sha256: str
    places: tuple[Place, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold this picture, sorted."""
        return tuple(sorted({place.split for place in self.places}))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source holds. A picture is a record: one file listed in two splits counts as two pictures."""

    path: str
    form: str
    splits: dict[str, SplitCount]
    made_splits: bool  # the source names none, so train and val are the ones cliplet makes
    pictures: int
    captions: int
    captions_per_picture: dict[int, int]  # number of captions -> pictures that have so many
    words_mean: float  # words per caption
    words_max: int
    files: int  # different paths
    readable: int  # files that decode
    width: Spread | None  # pixels of the readable files, upright; None without any
    height: Spread | None
    missing: tuple[Problem, ...]
    unreadable: tuple[Problem, ...]
    problems: tuple[Problem, ...]  # of the source: lines and captions left out
    duplicates_within: tuple[Duplicates, ...]  # all places in one split
    duplicates_across: tuple[Duplicates, ...]  # places in several splits: training sees what is tested

    @property
    def sound(self) -> bool:
        """Nothing to report but duplicates within a split."""
        return not (self.missing or self.unreadable or self.problems or self.duplicates_across)

    @property
    def captions_mean(self) -> float:
        """Captions a picture."""
        return self.captions / self.pictures if self.pictures else 0.0

    @property
    def shared_by_splits(self) -> Counter[tuple[str, ...]]:
        """How many different pictures each combination of splits shares."""
        return Counter(group.splits for group in self.duplicates_across)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, strings and numbers, for JSON."""
        counts = self.captions_per_picture
        result = asdict(self)
        result["captions_per_picture"] = {
            "min": min(counts, default=0),
            "mean": self.captions_mean,
            "max": max(counts, default=0),
            "histogram": {str(number): pictures for number, pictures in sorted(counts.items())},
        }
        result["shared_by_splits"] = [{"splits": list(s), "pictures": n} for s, n in self.shared_by_splits.items()]
        result["sound"] = self.sound
        return cast(dict[str, Any], json.loads(json.dumps(result)))  # tuples become lists


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found at one path."""

    reason: str = ""  # why it cannot be used; "" for a good one
    missing: bool = False
    size: tuple[int, int] = (0, 0)
    sha256: str = ""


def inspect_source(
    source: ImageTextSource, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Decodes every picture of a source and counts what is there.

    `workers`: decoding threads; by itself as many as cores, at most 8. `progress(done, total)` is called in this
    thread after each file. Each file is decoded once, however often it is listed. A picture that is missing or cannot
    be decoded is counted and named; nothing is raised for it. Duplicates are sought by SHA-256 of the bytes of
    readable files: the same photograph saved twice with different compression is not found.
    """
    split_of, made = _named_splits(source)
    records = source.records
    looks = _look_at_all(list(dict.fromkeys(record.image for record in records)), workers, progress)
    good = [look for look in looks.values() if not look.reason]
    words = [len(caption.split()) for record in records for caption in record.captions]
    groups = _duplicates(records, split_of, looks)
    return Inspection(
        path=source.path,
        form=source.form,
        splits=_count_splits(records, split_of),
        made_splits=made,
        pictures=len(records),
        captions=len(words),
        captions_per_picture=dict(sorted(Counter(len(record.captions) for record in records).items())),
        words_mean=sum(words) / len(words) if words else 0.0,
        words_max=max(words, default=0),
        files=len(looks),
        readable=len(good),
        width=_spread([look.size[0] for look in good]),
        height=_spread([look.size[1] for look in good]),
        missing=tuple(Problem(path, look.reason) for path, look in looks.items() if look.missing),
        unreadable=tuple(
            Problem(path, look.reason) for path, look in looks.items() if look.reason and not look.missing
        ),
        problems=tuple(source.problems),
        duplicates_within=tuple(group for group in groups if len(group.splits) == 1),
        duplicates_across=tuple(group for group in groups if len(group.splits) > 1),
    )


def _named_splits(source: ImageTextSource) -> tuple[list[str], bool]:
    """Each record's split, and whether it is one that cliplet makes: train and val where the source names none."""
    if set(source.splits) != {""}:
        return [record.split for record in source.records], False
    try:
        held_out = {id(record) for record in source.select("val")}
    except DataError:  # too few pictures to hold any out
        held_out = set()
    return ["val" if id(record) in held_out else "train" for record in source.records], True


def _count_splits(records: Iterable[ImageText], split_of: Iterable[str]) -> dict[str, SplitCount]:
    pictures: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    for record, split in zip(records, split_of, strict=True):
        pictures[split] += 1
        captions[split] += len(record.captions)
    return {split: SplitCount(count, captions[split]) for split, count in pictures.items()}


def _spread(lengths: list[int]) -> Spread | None:
    return Spread(min(lengths), median(lengths), max(lengths)) if lengths else None


def _look_at_all(
    paths: list[str], workers: int | None, progress: Callable[[int, int], None] | None
) -> dict[str, _Look]:
    looks: dict[str, _Look] = {}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="inspect") as pool:
        for start in range(0, len(paths), BLOCK):
            block = paths[start : start + BLOCK]
            for path, look in zip(block, pool.map(_look, block), strict=True):
                looks[path] = look
                if progress:
                    progress(len(looks), len(paths))
    return looks


def _look(path: str) -> _Look:
    try:
        size = load_image(path).size
        with open(path, "rb") as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(2**20):
                digest.update(chunk)
        return _Look(size=size, sha256=digest.hexdigest())
    except Exception as error:
        reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
        return _Look(reason, missing=not os.path.exists(path))


def _duplicates(records: list[ImageText], split_of: list[str], looks: dict[str, _Look]) -> list[Duplicates]:
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for record, split in zip(records, split_of, strict=True):
        if looks[record.image].sha256:
            places[looks[record.image].sha256].append(Place(record.image, split))
    return [Duplicates(sha256, tuple(group)) for sha256, group in places.items() if len(group) > 1]


def inspection_table(inspection: Inspection) -> Group:
    """Everything for the terminal: splits, numbers, then each kind of problem with its first examples."""
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
    counts = inspection.captions_per_picture
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    per_picture = f"{min(counts, default=0)} to {max(counts, default=0)}, mean {inspection.captions_mean:.2f}"
    table.add_row("captions a picture", per_picture)
    if len(counts) > 1:
        shown = sorted(counts.items(), key=lambda item: -item[1])[:8]
        table.add_row("", ", ".join(f"{pictures:,} with {number}" for number, pictures in sorted(shown)))
    table.add_row("words a caption", f"mean {inspection.words_mean:.1f}, at most {inspection.words_max:,}")
    table.add_row("readable files", f"{inspection.readable:,} of {inspection.files:,}")
    for name, spread in (("width", inspection.width), ("height", inspection.height)):
        if spread:
            table.add_row(name, f"{spread.minimum:,} to {spread.maximum:,} pixels, median {spread.median:,.0f}")
    return table


def _findings(inspection: Inspection) -> Iterator[Text]:
    across, within = inspection.duplicates_across, inspection.duplicates_within
    yield from _listed("Missing files", inspection.missing, _describe, "red")
    yield from _listed("Unreadable files", inspection.unreadable, _describe, "red")
    yield from _listed("Bad records in the annotations, left out", inspection.problems, _describe, "yellow")
    yield from _listed("Pictures that stand in several splits (the same bytes)", across, _describe_group, "red")
    for splits, count in inspection.shared_by_splits.items():
        yield Text(f"  {' and '.join(split or '(none)' for split in splits)} share {count:,}")
    yield from _listed(
        "Pictures that stand more than once in a split (the same bytes)", within, _describe_group, "yellow"
    )
    if inspection.sound and not within:
        yield Text("Nothing is wrong: every picture decodes, and none stands twice.", style="green")


def _listed(title: str, items: tuple[Any, ...], describe: Callable[[Any], str], style: str) -> Iterator[Text]:
    if not items:
        return
    yield Text(f"{title}: {len(items):,}", style=f"bold {style}")
    for item in items[:EXAMPLES]:
        yield Text(f"  {describe(item)}")
    if len(items) > EXAMPLES:
        yield Text(f"  and {len(items) - EXAMPLES:,} more (--json lists them all)", style="dim")


def _describe(problem: Problem) -> str:
    return f"{problem.where}: {problem.reason}"


def _describe_group(group: Duplicates) -> str:
    return " = ".join(f"{place.path} ({place.split or '(none)'})" for place in group.places)


def write_contact_sheet(source: ImageTextSource, file: str | Path, per_split: int = 12, seed: int = 0) -> None:
    """Draws readable pictures of each split, chosen by `seed`, with one caption each, into one picture file.

    The format follows the file's name, PNG or JPEG for example. Raises DataError where no picture can be read, or
    the name's ending is of no picture format.
    """
    split_of, _ = _named_splits(source)
    sheets = []
    for split in dict.fromkeys(split_of):
        records = [record for record, own in zip(source.records, split_of, strict=True) if own == split]
        images, captions = _sample(records, per_split, random.Random(f"{seed} {split}"))
        if images:
            title = f"{split or '(no split)'}: {len(images)} of {len(records):,} pictures"
            sheets.append(contact_sheet(images, captions, cell=CELL, title=title))
    if not sheets:
        raise DataError(
            f"{source.path}: no picture to draw could be read", "cliplet inspect says what is wrong with them."
        )
    save_picture(stacked(sheets), Path(file))


def _sample(records: list[ImageText], count: int, choice: random.Random) -> tuple[list[Image.Image], list[str]]:
    """Up to `count` readable pictures, small, and a caption of each."""
    images: list[Image.Image] = []
    captions: list[str] = []
    for record in choice.sample(records, min(len(records), TRIED)):
        if len(images) == count:
            break
        image = _small(record.image)
        if image:
            images.append(image)
            captions.append(choice.choice(record.captions))
    return images, captions


def _small(path: str) -> Image.Image | None:
    try:
        return thumbnail(path, CELL)
    except Exception:
        return None
