"""A cleaned list of a data set: without what cannot be used, stands twice, or stands in a more protected split too."""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliplet.data.inspection.captions import plain
from cliplet.data.inspection.groups import Groups, protection
from cliplet.data.inspection.result import Inspection
from cliplet.data.inspection.survey import Survey
from cliplet.data.places import ARROW_ROW, TAR_MEMBER, arrow_row, tar_member
from cliplet.errors import DataError
from cliplet.files import written_beside

WRITTEN_BY = "cliplet inspect --fix"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was written, in numbers. Pictures are records."""

    pictures: int
    captions: int
    unusable: int  # pictures left out because their files are missing or cannot be read
    leaked: int  # left out because a split that is to be protected more holds them too
    merged: int  # left out because their split holds them already, which got their captions
    repeated: int  # captions left out because their picture has them already
    unwritable: int  # pictures left out because JSON cannot hold their names

    def __str__(self) -> str:
        parts = (
            (self.unusable, "that cannot be used"),
            (self.leaked, "that a more protected split holds too"),
            (self.merged, "merged with the same picture of their split"),
            (self.unwritable, "whose names are not UTF-8"),
        )
        left = ", ".join(f"{count:,} {what}" for count, what in parts if count)
        told = [f"{self.pictures:,} pictures with {self.captions:,} captions", f"left out: {left}" if left else ""]
        told.append(f"captions left out that their picture has already: {self.repeated:,}" if self.repeated else "")
        return "; ".join(filter(None, told))


def refuse_occupied(file: Path, source: str, overwrite: bool = False) -> None:
    """Raises DataError where something stands that must not be overwritten: anything but a list written here, and
    never `source`, the list that is read."""
    if file.exists() and Path(source).exists() and file.samefile(source):
        raise DataError(f"{file}: is the list that is read", "Name another file.")
    if not file.exists() or (overwrite and not file.is_dir()):
        return
    try:
        with file.open(encoding="utf-8") as stream:
            ours = json.loads(stream.readline(2**20)).get("written_by") == WRITTEN_BY
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise DataError(
            f"{file}: is there already and was not written by {WRITTEN_BY}", "Add --overwrite, or name another file."
        )


def write_cleaned(inspection: Inspection, file: Path, overwrite: bool = False) -> Cleaned:
    """Writes JSON lines of {"image", "captions", "split"} that `read_source` reads; nothing is deleted.

    Pictures are named by absolute places. Of those in several splits the copies in the most protected one stay, test
    before val before train before others; of those that stand several times in one split the largest stays, with the
    captions of all, none twice. The file is written beside and renamed. Raises DataError as `refuse_occupied` does.
    """
    survey = inspection.survey
    refuse_occupied(file, survey.source.path, overwrite)
    readable = survey.looks.good[survey.file]
    leaked = _leaked(survey)
    merged = _merged(survey, leaked)
    taken = {row for rows in merged.values() for row in rows}
    writer = _Writer(survey)
    with written_beside(file) as beside, beside.open("w", encoding="utf-8") as stream:
        for row in np.flatnonzero(readable & ~leaked).tolist():
            if row not in taken:
                stream.write(writer.line(row, merged.get(row, [])))
    return Cleaned(
        pictures=writer.pictures,
        captions=writer.captions,
        unusable=int((~readable).sum()),
        leaked=int(leaked.sum()),
        merged=len(taken),
        repeated=writer.repeated,
        unwritable=writer.unwritable,
    )


def _leaked(survey: Survey) -> np.ndarray:
    """(N,) bool: records of pictures that a more protected split holds too."""
    names = survey.split_names
    ranks = np.argsort(np.argsort([protection(name) for name in names], kind="stable"))[survey.split]
    groups = Groups.of(survey.same_picture[survey.file])
    leaked = np.zeros(len(survey.split), bool)
    shared = groups.only(groups.differ(survey.split))
    for rows in map(shared.group, range(len(shared))):
        leaked[rows] = ranks[rows] > ranks[rows].min()
    return leaked


def _merged(survey: Survey, leaked: np.ndarray) -> dict[int, list[int]]:
    """Records that another one of their split stands for, by that record: of each such set the largest picture.

    All of a set were seen to be copies of its first, and are not copies of copies: frames of a film are, step by step,
    all alike.
    """
    copies_of: defaultdict[int, list[int]] = defaultdict(list)
    for one, other in survey.copies.tolist():
        copies_of[one].append(other)
        copies_of[other].append(one)
    pixels = survey.looks.width.astype(np.int64) * survey.looks.height
    groups = Groups.of(np.where(leaked, -1, survey.same_picture[survey.file]))
    merged = {}
    for rows in map(groups.group, range(len(groups))):
        sets: dict[tuple[int, int], list[int]] = {}  # by split and file of their first
        for row in sorted(rows.tolist()):
            split, file = int(survey.split[row]), int(survey.same_bytes[survey.file[row]])
            first = next((one for one in (file, *copies_of[file]) if (split, one) in sets), file)
            sets.setdefault((split, first), []).append(row)
        for one in (one for one in sets.values() if len(one) > 1):
            largest = max(one, key=lambda row: (pixels[survey.file[row]], -row))
            merged[largest] = [row for row in one if row != largest]
    return merged


class _Writer:
    """Makes lines, and counts what is in them."""

    def __init__(self, survey: Survey):
        self._survey = survey
        self.pictures = self.captions = self.repeated = self.unwritable = 0

    def line(self, row: int, merged: list[int]) -> str:
        """One picture with its own captions and those of the records merged with it; "" if it cannot be named."""
        records = self._survey.source.records
        image = absolute(records[row].image)
        every = [caption for one in sorted([row, *merged]) for caption in records[one].captions]
        captions = list({plain(caption): caption for caption in reversed(every)}.values())[::-1]  # the first of each
        item = {"image": image, "captions": captions, "split": self._survey.split_of(row)}
        if not self.pictures:
            item["written_by"] = WRITTEN_BY
        text = json.dumps(item, ensure_ascii=False) + "\n"
        try:
            text.encode()
        except UnicodeEncodeError:
            self.unwritable += 1
            return ""
        self.pictures += 1
        self.captions += len(captions)
        self.repeated += len(every) - len(captions)
        return text


def absolute(place: str) -> str:
    """The place from the root of the file system, so that it is the same wherever a list of such is written."""
    if member := TAR_MEMBER.fullmatch(place):
        # Readers take away what leads up and down again in a path, so it must not stand in a member's name.
        name = posixpath.normpath(member["name"])
        return tar_member(_from_root(member["file"]), name, int(member["offset"]), int(member["size"]))
    if cell := ARROW_ROW.fullmatch(place):
        return arrow_row(_from_root(cell["file"]), int(cell["row"]), cell["column"])
    return _from_root(place)


def _from_root(path: str) -> str:
    return str(Path(path).absolute())
