"""Labelled pictures that are the same file or the same bytes: in two classes, or to train on and to test on."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cliplet.data.labelled import LabelledPictures

HEAD = 4096  # bytes by which most files of one size are told apart


def same_bytes(images: Sequence[str]) -> list[list[int]]:
    """Rows of pictures that are the same file, or files of the same bytes: one list for each that stands several times.

    Files that cannot be read are like no other.
    """
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        try:
            by_size[os.stat(image).st_size].append(row)
        except (OSError, ValueError):
            continue
    groups: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for size, rows in by_size.items():
        heads: defaultdict[bytes, list[int]] = defaultdict(list)
        for row in rows if len(rows) > 1 else []:
            heads[_digest(images[row], HEAD) or str(row).encode()].append(row)
        for alike in heads.values():
            for row in alike if len(alike) > 1 else []:
                groups[size, _digest(images[row]) or str(row).encode()].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def contradictions(pictures: LabelledPictures) -> str:
    """A sentence on pictures that stand in two classes; empty where there are none."""
    found = [rows for rows in same_bytes(pictures.images) if len({int(pictures.label_N[row]) for row in rows}) > 1]
    if not found:
        return ""
    labels = pictures.label_N
    first, other = found[0][0], next(row for row in found[0] if labels[row] != labels[found[0][0]])
    return (
        f"{_pictures(len(found))} in more than one class, where at most one can be right: the first is "
        f"{pictures.images[first]} of {pictures.classes[labels[first]]}, also {pictures.images[other]} of "
        f"{pictures.classes[labels[other]]}"
    )


def shared(train: LabelledPictures, test: LabelledPictures) -> str:
    """A sentence on pictures of `test` that are in `train` too; empty where there are none."""
    groups = same_bytes((*train.images, *test.images))
    count = len(train.images)
    both = [rows for rows in groups if rows[0] < count <= rows[-1]]
    if not both:
        return ""
    copies = sum(row >= count for rows in both for row in rows)
    example = f"{test.images[both[0][-1] - count]} is {train.images[both[0][0]]}"
    return f"{_pictures(copies)} to test on and to train on: {example}"


def _pictures(count: int) -> str:
    return f"{count:,} {'picture stands' if count == 1 else 'pictures stand'}"


def _digest(image: str, size: int = -1) -> bytes:
    try:
        return hashlib.sha256(Path(image).read_bytes() if size < 0 else _head(image, size)).digest()
    except OSError:
        return b""


def _head(image: str, size: int) -> bytes:
    with open(image, "rb") as stream:
        return stream.read(size)
