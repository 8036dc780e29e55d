"""An Encoder over records: embed, leave out what cannot be read, measure."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cliplet.console import counted
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError, ImageError, TextCutWarning
from cliplet.evaluation.retrieval import metrics_of_ranks, retrieval_ranks
from cliplet.runtime.encoder import Encoder

FEW = 50  # pictures, below which a bootstrap's interval is too narrow
LOST = 0.02  # share of the data that may be left out without a word about it


@dataclass(frozen=True)
class Evaluation:
    """What was measured and the features it was measured on. N images, M captions."""

    metrics: dict[str, float]
    records: list[ImageText]  # those whose picture could be read; row i of image_ND is records[i]
    captions: list[str]
    image_ND: np.ndarray
    text_MD: np.ndarray
    caption_image_M: np.ndarray
    image_rank_N: np.ndarray  # of each picture's best own caption, 1 is best
    text_rank_M: np.ndarray  # of each caption's picture
    logit_scale: float | None = None  # what the model multiplies cosines by, if that is one number


class Ranks(Protocol):
    """Processes that share the work out; row r of it is done by rank r modulo `size`."""

    rank: int
    size: int

    def gather_arrays(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of every rank, by rank."""
        ...

    def gather_objects(self, one: dict[int, ImageError]) -> list[dict[int, ImageError]]:
        """What every rank has, by rank."""
        ...


def evaluate(
    encoder: Encoder,
    records: Sequence[ImageText],
    quarantine: Quarantine | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Retrieval over all pictures and captions of `records`.

    A picture that cannot be read is left out together with its captions and goes into the `quarantine`; without
    one, it raises ImageError. `progress` hears (done, total) of pictures and captions together. Several `ranks` embed
    a share each, and all get the whole result.
    """
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    pictures = range(rank, len(records), size)
    captions = [caption for record in records for caption in record.captions][rank::size]
    total = len(pictures) + len(captions)
    tell = progress or (lambda done, total: None)
    failed: dict[int, ImageError] = {}
    image_ND = encoder.encode_image(
        [records[row].image for row in pictures],
        failed=failed if quarantine is not None else None,
        progress=lambda done, _: tell(done, total),
    )
    failed = {pictures[row]: error for row, error in failed.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextCutWarning)  # `cliplet inspect` tells it of a data set
        text_MD = encoder.encode_text(captions, progress=lambda done, _: tell(len(pictures) + done, total))
    if ranks and size > 1:
        image_ND, text_MD = _dealt(ranks.gather_arrays(image_ND)), _dealt(ranks.gather_arrays(text_MD))
        failed = {row: error for part in ranks.gather_objects(failed) for row, error in part.items()}
    if quarantine is not None:
        for row, error in failed.items():
            quarantine.add(records[row].image, error.message)
    reasons = {row: error.message for row, error in failed.items()}
    return assembled(records, image_ND, text_MD, reasons, encoder.logit_scale)


def assembled(
    records: Sequence[ImageText],
    image_ND: np.ndarray,
    text_MD: np.ndarray,
    failed: Mapping[int, str],
    logit_scale: float | None = None,
) -> Evaluation:
    """Retrieval from the features of all pictures and captions of `records`, leaving out the pictures that `failed`,
    with their captions. Raises DataError where all have, and for features that are no numbers, naming the picture."""
    good = [row for row in range(len(records)) if row not in failed]
    if not good:
        raise DataError(f"none of {len(records)} pictures could be read", next(iter(failed.values()), ""))
    counts = [len(record.captions) for record in records]
    has_picture_M = np.repeat([row not in failed for row in range(len(records))], counts)
    kept = [records[row] for row in good]
    caption_image_M = np.repeat(np.arange(len(kept)), [len(record.captions) for record in kept])
    image_ND, text_MD = image_ND[good], text_MD[has_picture_M]
    _refuse_no_numbers(kept, image_ND, text_MD, caption_image_M)
    ranks = retrieval_ranks(image_ND, text_MD, caption_image_M)
    metrics = {**metrics_of_ranks(*ranks), "images": len(image_ND), "captions": len(text_MD)}
    captions = [caption for record in kept for caption in record.captions]
    return Evaluation(metrics, kept, captions, image_ND, text_MD, caption_image_M, *ranks, logit_scale)


def common(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations of the records that all of them have, in the first one's order, so that their figures compare.

    A record is its picture's place and its captions; one that stands twice is two. Raises DataError where they have
    none in common.
    """
    rows_of: list[dict[ImageText, list[int]]] = []
    for one in evaluations:
        rows: dict[ImageText, list[int]] = {}
        for row, record in enumerate(one.records):
            rows.setdefault(record, []).append(row)
        rows_of.append(rows)
    taken: Counter[ImageText] = Counter()
    picked: list[list[int]] = [[] for _ in evaluations]
    for record in evaluations[0].records:
        if all(taken[record] < len(rows.get(record, ())) for rows in rows_of):
            for some, rows in zip(picked, rows_of, strict=True):
                some.append(rows[record][taken[record]])
            taken[record] += 1
    if not picked[0]:
        raise DataError(
            "the models were measured on different data: no picture with its captions is in all",
            "Measure them on the same split of the same data set.",
        )
    return [_picked(one, some) for one, some in zip(evaluations, picked, strict=True)]


def _picked(evaluation: Evaluation, rows: Sequence[int]) -> Evaluation:
    """The evaluation of some of its records, in that order; the same one where they are all of them."""
    if list(rows) == list(range(len(evaluation.records))):
        return evaluation
    order = np.argsort(evaluation.caption_image_M, kind="stable")
    bounds = np.searchsorted(evaluation.caption_image_M[order], np.arange(len(evaluation.records) + 1))
    captions = np.concatenate([order[bounds[row] : bounds[row + 1]] for row in rows])
    records = [evaluation.records[row] for row in rows]
    image_ND, text_MD = evaluation.image_ND[list(rows)], evaluation.text_MD[captions]
    return assembled(records, image_ND, text_MD, {}, evaluation.logit_scale)


def too_few(images: int) -> list[str]:
    """What is to be said of figures from few pictures; nothing where they are enough."""
    if images >= FEW:
        return []
    return [f"Only {counted(images, 'picture')}: intervals from so few are too narrow, and p too small."]


def many_lost(images: int, lost: int) -> list[str]:
    """What is to be said where much of the data could not be used; nothing where little is lost."""
    if lost <= LOST * (images + lost):
        return []
    return [f"Measured on {counted(images, 'picture')} alone: {lost:,} of the records or files could not be used."]


def _refuse_no_numbers(
    records: Sequence[ImageText], image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray
) -> None:
    for of, features, owners in (
        ("", image_ND, np.arange(len(image_ND))),
        ("a caption of ", text_MD, caption_image_M),
    ):
        bad = ~np.isfinite(features).all(axis=1)
        if bad.any():
            picture = records[int(owners[int(bad.argmax())])].image
            raise DataError(
                f"the features of {of}{picture} are no numbers ({int(bad.sum())} such rows)",
                "The model gives them: its weights may be damaged, or its precision too small.",
            )


def _dealt(parts: list[np.ndarray]) -> np.ndarray:
    """One array of parts whose rows were dealt out in turn."""
    rows = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for rank, part in enumerate(parts):
        rows[rank :: len(parts)] = part
    return rows
