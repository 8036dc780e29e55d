"""What a data set holds: its numbers, what is wrong with it, and pictures that stand in two places."""

from __future__ import annotations

from collections.abc import Callable

from cliplet.data.inspection.captions import TokenCounter
from cliplet.data.inspection.cleaned import refuse_occupied, write_cleaned
from cliplet.data.inspection.page import refuse_foreign, write_page
from cliplet.data.inspection.result import Inspection
from cliplet.data.inspection.sheet import write_contact_sheet
from cliplet.data.inspection.survey import survey_source, with_copies
from cliplet.data.inspection.table import inspection_table
from cliplet.data.records import ImageTextSource

__all__ = [
    "Inspection",
    "TokenCounter",
    "inspect_source",
    "inspection_table",
    "refuse_foreign",
    "refuse_occupied",
    "survey_source",
    "with_copies",
    "write_cleaned",
    "write_contact_sheet",
    "write_page",
]


def inspect_source(
    source: ImageTextSource,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tokens: TokenCounter | None = None,
) -> Inspection:
    """Decodes every picture of a source and counts what is there.

    `workers`: decoding threads; by itself as many as cores, at most 8. `progress(done, total)` is called in this
    thread after each file. `tokens` counts captions in tokens. Each file is read and decoded once, however often it is
    listed; only what may be a copy of another is looked at again. A picture that is missing or cannot be decoded is
    counted and named; nothing is raised for it. Duplicates are sought by SHA-256 of the bytes of readable files, copies
    in other bytes as `data/duplicates.py` says.
    """
    return Inspection(with_copies(survey_source(source, workers, progress, tokens), workers))
