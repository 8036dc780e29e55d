"""Classes that are none: folders of a data set of captions, captions or names of pictures in the place of labels.

Where that is plain it is an error, where it may be so it is said."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cliplet.data.readers.collector import COCO_FOLDERS, IMAGE_FOLDERS
from cliplet.data.readers.columns import ENDING, names_both
from cliplet.data.readers.detect import ANNOTATIONS, COCO_ANNOTATIONS
from cliplet.data.readers.tables import is_token_line
from cliplet.data.table_rows import small
from cliplet.errors import DataError

LABEL_COLUMNS = ("class_name", "label_name", "category_name", "class", "category", "label", "target")
LAYOUT = "Read are folders DATA/CLASS/x.jpg and DATA/SPLIT/CLASS/x.jpg, and a CSV or TSV with columns image and label."
PICTURE_FOLDERS = {name.lower() for name in (*IMAGE_FOLDERS, *COCO_FOLDERS, "fullres") if name}
ANNOTATION_FILES = 20  # that are looked into, of each kind of name
PART = 2**16  # bytes at either end of one
NAMES = 100  # of pictures, from either end
MOST = 0.9  # of these, that one folder holds where it holds them all: some files may be lost
CAPTION_KEY = re.compile(r'"(captions?|sentences)"\s*:\s*["\[{]')
NAMED_PICTURE = re.compile(rf"[^\"'\t,;|#\n]{{1,200}}?{ENDING}", re.IGNORECASE)
MOST_WORDS = 4  # of a class's name in the mean; of more, they are sentences
FEWEST_PICTURES = 10  # that tell whether nearly every one has a class of its own
CAPTIONS_HINT = "cliplet evaluate and cliplet compare measure a model on captions."


def caption_notes(root: Path, images: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What is to be said of files of captions beside the folders of classes; nothing where there are none.

    `labels`: the folder of each of `images`. Raises DataError where a folder is called as those of pictures are, or
    where one alone holds all the pictures that the captions are of: they then are of a data set of captions.
    """
    annotations = _caption_files(root)
    if not annotations:
        return []
    names = ", ".join(str(file.relative_to(root)) for file in annotations)
    hold = f"{names} {'holds' if len(annotations) == 1 else 'hold'} captions"
    folder = next((name for name in sorted(set(labels)) if name.lower() in PICTURE_FOLDERS), None)
    folder = folder or _holds_all([name for texts in annotations.values() for name in _named(texts)], images, labels)
    if folder is not None:
        raise DataError(
            f"{root}: looks like a data set of captions, not of classes: {hold}, and {folder} is a folder of pictures",
            f"{CAPTIONS_HINT} {LAYOUT}",
        )
    return [f"{hold}: if {root} is a data set of captions, its folders are no classes, and the figures mean nothing"]


def label_notes(path: Path, classes: Sequence[str], pictures: int, folders: bool) -> list[str]:
    """What is to be said of classes that look like captions, or of which nearly every picture has its own.

    Raises DataError for such labels of a table. Folders, and sentences that several pictures share, may be meant.
    """
    words = sum(len(name.split()) for name in classes) / len(classes)
    if words > MOST_WORDS:
        said = f"the classes look like sentences, such as {_short(classes[0])!r}, of {words:.0f} words on average"
        plain = 3 * len(classes) > pictures
    elif pictures >= FEWEST_PICTURES and 2 * len(classes) > pictures:
        said = f"{len(classes):,} classes of {pictures:,} pictures, such as {_short(classes[0])!r}, look like captions "
        said += "or numbers of pictures"
        plain = True
    else:
        return []
    if folders or not plain:
        return [f"{said}: if they are no classes, the figures mean nothing"]
    hint = f"{CAPTIONS_HINT} Where these are classes all the same, lay them out as folders: DATA/CLASS/x.jpg."
    raise DataError(f"{path}: {said}, not like classes", hint)


def _caption_files(root: Path) -> dict[Path, list[str]]:
    """The files with captions in a folder, by the look of both their ends, which are given with them."""
    found: dict[Path, list[str]] = {}
    for pattern in (*ANNOTATIONS, *COCO_ANNOTATIONS):
        for file in islice(sorted(root.glob(pattern)), ANNOTATION_FILES):
            try:
                texts = _ends(file) if file.is_file() and file not in found else []
            except OSError:
                continue
            if texts and (any(map(CAPTION_KEY.search, texts)) or _is_table_of_captions(texts[0])):
                found[file] = texts
    return dict(sorted(found.items()))


def _ends(file: Path) -> list[str]:
    with file.open("rb") as stream:
        parts = [stream.read(PART)]
        size = file.stat().st_size
        if size > PART:
            stream.seek(max(PART, size - PART))
            parts.append(stream.read(PART))
    return [part.decode("utf-8-sig", errors="replace").replace("\\/", "/") for part in parts]


def _is_table_of_captions(text: str) -> bool:
    lines = [line for line in text.split("\n", 50)[:50] if line.strip()]
    if not lines:
        return False
    if 2 * sum(map(is_token_line, lines)) > len(lines):
        return True
    columns = small(re.split(r"[\t|,;]", lines[0]))
    if names_both(columns):
        return not set(columns).intersection(LABEL_COLUMNS)
    cells = [line.split("\t") for line in lines]  # without a header: a picture and a sentence
    pairs = [pair for pair in cells if len(pair) == 2 and NAMED_PICTURE.fullmatch(pair[0].strip())]
    words = sum(len(pair[1].split()) for pair in pairs)
    return 2 * len(pairs) > len(lines) and words > MOST_WORDS * len(pairs)


def _named(texts: Sequence[str]) -> list[str]:
    return [match[0].strip() for text in texts for match in islice(NAMED_PICTURE.finditer(text), NAMES)]


def _holds_all(named: Sequence[str], images: Sequence[str], labels: Sequence[str]) -> str | None:
    """The one folder that holds the pictures that are named; None where they lie in several, or cannot be found."""
    files: defaultdict[str, set[str]] = defaultdict(set)
    for image, label in zip(images, labels, strict=True):
        files[label].add(Path(image).name)
    paths = [name.replace("\\", "/").split("/") for name in dict.fromkeys(named)]
    holding = []
    for label, names in files.items():
        others = files.keys() - {label}
        inside = sum(path[-1] in names and not others.intersection(path[:-1]) for path in paths)
        if paths and inside >= MOST * len(paths):
            holding.append(label)
    return holding[0] if len(holding) == 1 else None


def _short(name: str) -> str:
    return name if len(name) <= 50 else name[:47].rstrip() + "..."
