"""Classifying pictures by sentences: no picture of a class is ever shown. N pictures, K classes, D embed_dim.

Each class's sentences are embedded, and their mean stands for it (Radford et al. 2021, arXiv:2103.00020, 3.1.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cliplet.console import counted
from cliplet.data.labelled import LabelledPictures
from cliplet.data.labelled_copies import contradictions
from cliplet.data.quarantine import Quarantine
from cliplet.errors import DataError, ImageError
from cliplet.evaluation.class_scores import Classified, Figure, by_cosine, few_pictures, figures, unit
from cliplet.evaluation.classes import Words, prompts
from cliplet.results import Result, Strict
from cliplet.runtime.encoder import Encoder, Progress

SHOWN = 5  # names in a note


class ClassResult(Strict):
    """One class's part in a zero-shot result."""

    name: str
    """The folder's or the label's name."""
    words: list[str]
    """What it was called in the prompts: one or more synonyms."""
    pictures: int
    """Pictures of this class that were classified."""
    right: int
    """How many of them were right."""
    recall: float | None
    """In percent; null for a class without pictures."""
    confused_with: str | None
    """The other class that its pictures were most often taken for; null where none was."""
    confused: int
    """How many of its pictures were taken for that one."""


class ZeroShot(Result):
    """What `cliplet zero-shot --json` prints."""

    format: str = "cliplet-zero-shot"
    """What this object is."""
    model: str
    """As it was named."""
    data: str
    """As it was named."""
    split: str
    """The split that was classified; all where every picture was taken."""
    templates: list[str]
    """The prompts' templates; {} is where a class's words go."""
    pictures: int
    """Pictures that were classified."""
    chance: float
    """The top-1 of guessing, in percent: 100 / classes."""
    top1: Figure
    """Pictures whose own class scored highest."""
    top5: Figure | None
    """Pictures whose own class was among the five highest; null where there are five classes or fewer."""
    mean_class_recall: Figure
    """The mean over classes of their recall: every class counts alike, however many pictures it has."""
    classes: list[ClassResult]
    """All classes, in the order of the confusion matrix."""
    confusion: list[list[int]]
    """Numbers of pictures: a row for each true class, a column for each class that was said."""
    left_out: int
    """Pictures and rows of the data that could not be used."""
    problems: list[dict[str, str]]
    """Each of them: where it stands, and the reason."""
    notes: list[str]
    """What one should know to judge the figures, such as one picture in two classes."""


def class_features(encoder: Encoder, words: Sequence[Words], templates: Sequence[str]) -> np.ndarray:
    """(K, D) float64 of unit length: the mean of each class's unit prompt features, made unit again."""
    sentences = [prompts(synonyms, templates) for synonyms in words]
    text_MD = unit(encoder.encode_text([sentence for of_class in sentences for sentence in of_class]))
    ends = np.cumsum([len(of_class) for of_class in sentences])
    return unit(np.stack([rows.mean(axis=0) for rows in np.split(text_MD, ends[:-1])]))


def embedded(
    encoder: Encoder, pictures: LabelledPictures, quarantine: Quarantine, progress: Progress | None = None
) -> tuple[LabelledPictures, np.ndarray]:
    """The pictures that can be read and their unit features (N, D) float64; the others go into the quarantine.

    Raises DataError where none can be read.
    """
    quarantine.extend(pictures.problems)
    failed: dict[int, ImageError] = {}
    image_ND = encoder.encode_image(pictures.images, failed=failed, progress=progress)
    for row, error in failed.items():
        quarantine.add(pictures.images[row], error.message)
    good = [row for row in range(len(pictures.images)) if row not in failed]
    if not good:
        reason = next(iter(failed.values())).message if failed else ""
        raise DataError(f"{pictures.path}: none of {counted(len(pictures.images), 'picture')} could be read", reason)
    return pictures.picked(good), unit(image_ND[good])


def zero_shot(
    encoder: Encoder,
    pictures: LabelledPictures,
    words: Sequence[Words],
    templates: Sequence[str],
    *,
    model: str,
    split: str,
    quarantine: Quarantine | None = None,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
) -> ZeroShot:
    """Classifies pictures by prompts of `words`, which are by class. A class without pictures may be said too.

    `model` and `split` go into the result as they are, and so do `notes`, before those on the pictures that could be
    read. Raises DataError where no picture can be read, ModelError for features that are not finite.
    """
    quarantine = quarantine if quarantine is not None else Quarantine()
    class_KD = class_features(encoder, words, templates)
    pictures, image_ND = embedded(encoder, pictures, quarantine, progress)
    classified = by_cosine(image_ND, class_KD, pictures.label_N)
    top1, top5, recall = figures(classified, len(words))
    classes = class_results(classified, pictures.classes, words)
    notes = [*notes, *filter(None, [contradictions(pictures)]), *few_pictures(len(pictures.images))]
    without = [one.name for one in classes if not one.pictures]
    if without:
        more = f" and {len(without) - SHOWN:,} more" if len(without) > SHOWN else ""
        notes.append(f"may be said, but have no pictures here: {', '.join(without[:SHOWN])}{more}")
    return ZeroShot(
        model=model,
        data=pictures.path,
        split=split,
        templates=list(templates),
        pictures=len(pictures.images),
        chance=100 / len(words),
        top1=top1,
        top5=top5,
        mean_class_recall=recall,
        classes=classes,
        confusion=classified.confusion(len(words)).tolist(),
        left_out=len(quarantine),
        problems=quarantine.entries(),
        notes=notes,
    )


def class_results(classified: Classified, names: Sequence[str], words: Sequence[Words]) -> list[ClassResult]:
    """Each class's recall, and what it is most often taken for."""
    confusion_KK = classified.confusion(len(names))
    results = []
    for place, row in enumerate(confusion_KK):
        wrong = row.copy()
        wrong[place] = 0
        pictures, right, worst = int(row.sum()), int(row[place]), int(wrong.argmax())
        results.append(
            ClassResult(
                name=names[place],
                words=list(words[place]),
                pictures=pictures,
                right=right,
                recall=100 * right / pictures if pictures else None,
                confused_with=names[worst] if wrong[worst] else None,
                confused=int(wrong[worst]),
            )
        )
    return results
