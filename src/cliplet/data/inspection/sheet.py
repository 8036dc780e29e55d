"""Pictures of each split with their captions, chosen by chance, and a sheet of them as one picture."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from cliplet.data.inspection.result import Inspection
from cliplet.drawing import contact_sheet, save_picture, stacked
from cliplet.errors import DataError

CELL = 160  # pixels of a picture


def sampled_rows(inspection: Inspection, per_split: int, seed: int = 0) -> dict[str, list[int]]:
    """Records of each split whose pictures can be read, chosen by `seed`; splits without any are left out."""
    survey = inspection.survey
    readable = survey.looks.good[survey.file]
    found = {}
    for number, split in enumerate(survey.split_names):
        rows = np.flatnonzero((survey.split == number) & readable)
        if len(rows):
            chosen = random.Random(f"{seed} {split}").sample(range(len(rows)), min(per_split, len(rows)))
            found[split] = [int(rows[place]) for place in chosen]
    return found


def write_contact_sheet(inspection: Inspection, file: str | Path, per_split: int = 12, seed: int = 0) -> None:
    """Draws readable pictures of each split, chosen by `seed`, with one caption each, into one picture file.

    The format follows the file's name, PNG or JPEG for example. Raises DataError where no picture can be read, or
    the name's ending is of no picture format.
    """
    records, sheets = inspection.survey.source.records, []
    for split, rows in sampled_rows(inspection, per_split, seed).items():
        choice = random.Random(f"{seed} {split} captions")
        shown = [records[row] for row in rows]
        title = f"{split or '(no split)'}: {len(rows)} of {inspection.splits[split].pictures:,} pictures"
        captions = [choice.choice(record.captions) for record in shown]
        sheets.append(contact_sheet([record.image for record in shown], captions, cell=CELL, title=title))
    if not sheets:
        raise DataError(
            f"{inspection.path}: no picture to draw could be read", "cliplet inspect says what is wrong with them."
        )
    save_picture(stacked(sheets), Path(file))
