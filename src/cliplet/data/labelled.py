"""Pictures with one label each: a folder for every class, or a table of picture and label. No torch."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cliplet.console import counted
from cliplet.data.labelled_looks import CAPTIONS_HINT, LABEL_COLUMNS, LAYOUT, caption_notes, label_notes
from cliplet.data.readers.collector import IMAGE_FOLDERS
from cliplet.data.readers.columns import (
    IMAGE_COLUMNS,
    LIKELY_IMAGE_COLUMNS,
    PICTURE_NAME,
    names_both,
    written_on_windows,
)
from cliplet.data.readers.folders import ENDINGS
from cliplet.data.records import USUAL_SPLITS, Problem
from cliplet.data.table_rows import TABLE_ENDINGS, TableRow, small, table_rows
from cliplet.errors import DataError

LOOKED_AT = 50  # rows that tell what the columns are, and names tried when looking for the folder of the pictures
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class LabelledPictures:
    """N pictures, each of one of K classes."""

    path: str
    classes: tuple[str, ...]  # as the folders or the labels are called, in order; each has a picture in some split
    images: tuple[str, ...]
    label_N: np.ndarray  # int64, places in `classes`
    split_of: tuple[str, ...]  # the split of each picture, "" where none is named
    problems: tuple[Problem, ...] = ()  # rows and pictures that are left out
    notes: tuple[str, ...] = ()  # what one should know, such as classes without pictures

    @property
    def splits(self) -> Counter[str]:
        """Pictures in each split, under "" those without one."""
        return Counter(self.split_of)

    @property
    def names_splits(self) -> bool:
        """Whether any picture has a split."""
        return any(self.split_of)

    @property
    def usual_split(self) -> str:
        """The split to measure on where none is asked for: test, or everything where none is named."""
        return "test" if self.names_splits else "all"

    def picked(self, rows: Sequence[int] | np.ndarray) -> LabelledPictures:
        """The pictures of `rows`, in that order; the classes stay."""
        images, splits = (tuple(column[row] for row in rows) for column in (self.images, self.split_of))
        return replace(self, images=images, split_of=splits, label_N=self.label_N[np.asarray(rows, dtype=np.int64)])

    def select(self, split: str) -> LabelledPictures:
        """Pictures of one split, or of several joined by `+`; `all` gives every picture.

        Raises DataError for a split that is not there, naming those that are.
        """
        if split == "all":
            return self
        names = split.split("+")
        unknown = next((name for name in names if not name or name not in self.splits), None)
        if unknown is not None:
            have = ", ".join(f"{name or '(none named)'} ({count:,})" for name, count in self.splits.items())
            hint = f"It has: {have}. Name one with --split, or several joined by +; all takes every picture."
            if not self.names_splits:
                hint = "It names no splits; --split all takes every picture."
            raise DataError(f"{self.path}: there is no split {unknown!r}", hint)
        return self.picked([row for row, name in enumerate(self.split_of) if name in names])


def read_labelled(path: str | Path, images: Path | None = None) -> LabelledPictures:
    """All pictures of a data set with the class of each, and what was wrong with the others.

    `path`: a folder of classes, a folder of splits of classes, or a CSV or TSV with columns for picture, label and
    perhaps split. `images`: the folder that a table's file names start from, where it is not found beside the table.
    Whether a picture can be decoded is not tried here. Raises DataError for what is none of these, for what is plainly
    a data set of captions, and where there are not at least two classes.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        found = _read_folder(file)
    elif file.is_file() and file.suffix.lower() in TABLE_ENDINGS:
        found = _read_table(file, images)
    elif file.exists():
        raise DataError(f"{file}: holds no labelled pictures, as far as can be told", LAYOUT)
    else:
        raise DataError(f"{file}: no such file or folder")
    if len(found.classes) < 2:
        name = found.classes[0]
        inside = f" Perhaps {file / name} is the folder that is meant." if file.is_dir() else ""
        raise DataError(f"{file}: there is one class only, {name!r}, where nothing can be confused", LAYOUT + inside)
    doubts = label_notes(file, found.classes, len(found.images), file.is_dir())
    return replace(found, notes=(*doubts, *found.notes))


def _read_folder(root: Path) -> LabelledPictures:
    problems: list[Problem] = []
    files = _picture_files(root, problems)
    if not files:
        raise DataError(f"{root}: holds no pictures", LAYOUT)
    below: defaultdict[str, list[int]] = defaultdict(list)  # depths of the pictures in each folder of the first level
    for parts in files:
        if len(parts) > 1:
            below[parts[0]].append(len(parts))
    splits = {
        top
        for top, depths in below.items()
        if top.lower() in USUAL_SPLITS and 2 * sum(d > 2 for d in depths) > len(depths)
    }
    if below and not splits and all(top.lower() in USUAL_SPLITS for top in below):
        raise DataError(f"{root}: {', '.join(below)} hold pictures, and no folders of classes", LAYOUT)
    depth = 1 if splits else 0  # of the class's folder
    images, labels, split_of = [], [], []
    for parts in files:
        where = str(root.joinpath(*parts))
        if len(parts) < depth + 2:
            problems.append(Problem(where, "lies in no folder of a class"))
        elif splits and parts[0] not in splits:
            problems.append(Problem(where, f"lies beside the splits, which are {', '.join(sorted(splits))}"))
        else:
            images.append(where)
            labels.append(parts[depth])
            split_of.append(USUAL_SPLITS[parts[0].lower()] if splits else "")
    if not images:
        raise DataError(f"{root}: no picture lies in a folder of a class", LAYOUT)
    empty = sorted(_class_folders(root, splits) - set(labels))
    notes = caption_notes(root, images, labels)
    if empty:
        notes.append(f"left out, for no pictures lie in them: {some_of(empty)}")
    return _labelled(root, images, labels, split_of, problems, notes)


def _picture_files(root: Path, problems: list[Problem]) -> list[tuple[str, ...]]:
    """The parts of the path below the root of every picture, in the order of names. Links to folders are followed."""

    def unlisted(error: OSError) -> None:
        problems.append(Problem(str(error.filename), f"cannot be listed: {error.strerror}"))

    found: list[tuple[str, ...]] = []
    seen: set[tuple[int, int]] = set()  # folders, by device and number: links may lead in circles
    for parent, names, files in os.walk(root, followlinks=True, onerror=unlisted):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        above = Path(parent).relative_to(root).parts
        for name in sorted(files):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                found.append((*above, name))
    return found


def _class_folders(root: Path, splits: set[str]) -> set[str]:
    parents = [root / split for split in splits] if splits else [root]
    return {
        entry.name for parent in parents for entry in os.scandir(parent) if entry.is_dir() and entry.name[:1] != "."
    }


def _read_table(file: Path, images: Path | None) -> LabelledPictures:
    problems: list[Problem] = []
    rows = table_rows(file, problems)
    if not rows:
        raise DataError(f"{file}: is empty", LAYOUT)
    image_at, label_at, split_at, headed = _columns(file, rows)
    rows = rows[headed:]
    windows = written_on_windows(file, (row.cells[image_at] for row in rows if len(row.cells) > image_at))
    kept: dict[tuple[str, str, str], None] = {}
    width = max(image_at, label_at, -1 if split_at is None else split_at) + 1
    for number, cells in rows:
        where = f"{file.name}:{number}"
        if len(cells) < width:
            problems.append(Problem(where, f"has {counted(len(cells), 'column')} where {width} are expected"))
            continue
        name, label = cells[image_at].strip(), cells[label_at].strip()
        if not name or not label:
            problems.append(Problem(where, "names no picture" if not name else f"names no class of {name}"))
            continue
        split = cells[split_at].strip() if split_at is not None else ""
        one = name.replace("\\", "/") if windows else name, label, USUAL_SPLITS.get(split.lower(), split)
        if one in kept:
            problems.append(Problem(where, f"names {name} of {label} again"))
        kept[one] = None
    if not kept:
        raise DataError(f"{file}: names no picture with its class", LAYOUT)
    names, labels, split_of = (list(column) for column in zip(*kept, strict=True))
    root = _picture_folder(file, images, names)
    return _labelled(file, [os.path.join(root, name) for name in names], labels, split_of, problems, [])


def _columns(file: Path, rows: Sequence[TableRow]) -> tuple[int, int, int | None, bool]:
    """Where picture, label and split stand, and whether the first row is a header that says so."""
    names = small(rows[0].cells)
    image = next((names.index(name) for name in (*IMAGE_COLUMNS, *LIKELY_IMAGE_COLUMNS) if name in names), None)
    label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    if image is not None and label is not None:
        return image, label, names.index("split") if "split" in names else None, True
    looked = [row.cells for row in rows[:LOOKED_AT] if len(row.cells) == 2]
    pictures = [sum(PICTURE_NAME.fullmatch(cells[at].strip()) is not None for cells in looked) for at in (0, 1)]
    found = 0 if pictures[0] >= pictures[1] else 1
    headless = len(names) == 2 and image is None and label is None and 2 * max(pictures) > len(looked)
    if not headless or not PICTURE_NAME.fullmatch(names[found]):
        captions = f"It looks like captions. {CAPTIONS_HINT} " if names_both(names) else ""
        raise DataError(
            f"{file}:{rows[0].number}: no columns of pictures and of classes, as far as can be told; "
            f"its columns are {some_of(rows[0].cells)}",
            f"{captions}Begin the file with a header line that names them, as in image,label or image,label,split.",
        )
    return found, 1 - found, None, False


def _picture_folder(file: Path, images: Path | None, names: Sequence[str]) -> Path:
    folders = [images] if images else [file.parent / name for name in IMAGE_FOLDERS]
    for folder in folders:
        if any(os.path.isfile(folder / name) for name in names[:LOOKED_AT]):
            return folder
    raise DataError(
        f"{file}: none of its first pictures is there ({names[0]} in {folders[0]})",
        "Name the folder that the names start from: --images FOLDER.",
    )


def _labelled(
    path: Path,
    images: list[str],
    labels: list[str],
    split_of: list[str],
    problems: list[Problem],
    notes: list[str],
) -> LabelledPictures:
    numbers = all(label.isdecimal() for label in labels)
    classes = sorted(set(labels), key=lambda label: (int(label) if numbers else 0, label))
    place = {name: number for number, name in enumerate(classes)}
    label_N = np.array([place[label] for label in labels], dtype=np.int64)
    found = tuple(classes), tuple(images), label_N, tuple(split_of), tuple(problems), tuple(notes)
    return LabelledPictures(str(path), *found)


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(name.strip() for name in names[:SHOWN]) + more
