"""A folder of pictures, each with a .txt file of captions beside it, to records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cliplet.data.readers.collector import Collector, is_file
from cliplet.data.records import ImageTextSource

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
CAPTION_ENDINGS = (".txt", ".TXT", ".caption", ".CAPTION")
LINE_END = re.compile(r"\r\n?|\n")  # and no other kind: a caption may hold one
LOOKED_AT = 1000  # pictures that tell whether a folder is of this form
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test"}


def has_captions(folder: Path) -> bool:
    """Whether a picture among the first ones in the folder or below it has a caption file beside it."""
    return any(captions for _, captions in islice(_pictures(folder, []), LOOKED_AT))


def read_folder(folder: Path) -> ImageTextSource:
    """Pictures in the folder and below it; each line of the .txt file beside a picture is a caption.

    A first folder named train, val or test (or the like) names the split. Links to folders are followed, but none
    twice. What cannot be listed or read is a problem.
    """
    collector = Collector(folder.name or str(folder))
    unlisted: list[OSError] = []
    for picture, captions in _pictures(folder, unlisted):
        name = picture.relative_to(folder)
        split = SPLITS.get(name.parts[0].lower(), "") if len(name.parts) > 1 else ""
        number = collector.file(str(name), split)
        if captions is None:
            continue
        where = str(captions.relative_to(folder))
        try:
            text = captions.read_bytes().decode("utf-8-sig")
        except OSError as error:
            collector.problem(where, f"cannot be read: {error.strerror}")
            continue
        except UnicodeDecodeError as error:
            collector.problem(where, f"is not UTF-8 at byte {error.start + 1}")
            continue
        for line_number, line in enumerate(LINE_END.split(text), start=1):
            if line.strip():
                collector.add_caption(f"{where}:{line_number}", number, line)
    for folder_error in unlisted:
        collector.problem(str(folder_error.filename), f"cannot be listed: {folder_error.strerror}")
    return ImageTextSource(str(folder), "folder of pictures and .txt", collector.records(folder), collector.problems)


def _pictures(folder: Path, unlisted: list[OSError]) -> Iterator[tuple[Path, Path | None]]:
    """Every picture below the folder, in the order of names, and the file of its captions."""
    seen: set[tuple[int, int]] = set()  # folders, by device and number: links may lead in circles
    for parent, names, files in os.walk(folder, followlinks=True, onerror=unlisted.append):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        present = set(files)
        for name in sorted(files):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                beside = [name.rpartition(".")[0] + ending for ending in CAPTION_ENDINGS]
                captions = (Path(parent, other) for other in beside if other in present)
                yield Path(parent, name), next(filter(is_file, captions), None)
