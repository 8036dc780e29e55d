"""What may be measured, by its name: a model that is opened, or stored embeddings in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError
from cliplet.evaluation.embeddings import evaluation_of, files_of, is_embeddings, open_embeddings
from cliplet.evaluation.measure import Evaluation, evaluate
from cliplet.hub import fetched, is_hub_name
from cliplet.model_folder import read_description
from cliplet.runtime.encoder import load
from cliplet.runtime.engines import OPEN_CLIP, best_model_folder


def refuse_missing(source: str | Path) -> None:
    """Raises ClipletError for a file or folder that is not there, or is no model folder, and for a model that the hub
    does not give: before the hour that measuring another takes."""
    if is_embeddings(source):
        for file in files_of(source):
            if not Path(file).is_file():
                raise DataError(f"{file}: no such file")
    elif not str(source).startswith(OPEN_CLIP):
        read_description(fetched(str(source)) if is_hub_name(source) else best_model_folder(source))


def measured(
    source: str | Path,
    records: Sequence[ImageText],
    quarantine: Quarantine | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evaluation:
    """Retrieval over `records` by a model, which is opened and embeds them, or from stored embeddings.

    `source`: what `cliplet.load` opens, or a name of `is_embeddings`. `quarantine`, `progress`: as of `evaluate`.
    `tell` hears what people should know of the source; by itself, it goes to standard error. Raises ClipletError for
    what cannot be opened or does not fit.
    """
    tell = tell or partial(print, file=sys.stderr)
    if is_embeddings(source):
        return evaluation_of(open_embeddings(source), records, quarantine, tell)
    return evaluate(load(source, tell), records, quarantine, progress)
