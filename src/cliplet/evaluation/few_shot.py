"""Classifying from a few labelled pictures of each class, on frozen features. N pictures, K classes, D embed_dim.

Two classifiers: the nearest class mean by cosine, which has no setting, and multinomial logistic regression. The
intervals say how much the draw of the few pictures matters; the pictures that are tested on are the same throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import numpy as np

from cliplet.console import counted
from cliplet.data.labelled import LabelledPictures
from cliplet.data.labelled_copies import contradictions, shared
from cliplet.data.quarantine import Quarantine
from cliplet.errors import ConfigError
from cliplet.evaluation.class_scores import by_cosine, few_pictures
from cliplet.evaluation.classes import Words
from cliplet.evaluation.intervals import LEVEL
from cliplet.evaluation.probes import (
    MOST_STEPS,
    USUAL_STRENGTH,
    chosen_strength,
    class_means,
    linear_probe,
    require_probe,
)
from cliplet.evaluation.shots import Division, divided, drawn, pooled, split_up
from cliplet.evaluation.zero_shot import class_features, embedded
from cliplet.results import Result, Strict
from cliplet.runtime.encoder import Encoder, Progress

CLASS_MEAN, LINEAR_PROBE, ZERO_SHOT = "nearest_class_mean", "linear_probe", "zero_shot"
FEWEST_REPEATS = 3  # whose interval says something


class FewShotRow(Strict):
    """One classifier with one number of pictures of each class."""

    method: str
    """nearest_class_mean, linear_probe or zero_shot."""
    shots: int
    """Pictures of each class that it learned from; 0 for zero_shot."""
    top1: float
    """Percent of the test pictures that are right, the mean over repeats."""
    low: float | None
    """Lower end of the 95 % t-interval of that mean over repeats, within 0 and 100; null with a single repeat, and for
    zero_shot."""
    high: float | None
    """Its upper end."""
    each: list[float]
    """Top-1 of each repeat."""
    strength: float | None = None
    """C of the logistic regression; null for the other methods."""


class FewShot(Result):
    """What `cliplet few-shot --json` prints."""

    format: str = "cliplet-few-shot"
    """What this object is."""
    model: str
    """As it was named."""
    data: str
    """As it was named."""
    train_split: str
    """The split that the few pictures were drawn from; empty where they and the test pictures came from one."""
    test_split: str
    """The split of the test pictures, or the one that a fixed part was held out of."""
    seed: int
    """Of the draws and of the part that is held out."""
    repeats: int
    """Draws for each number of shots."""
    classes: list[str]
    """The classes that were told apart."""
    classes_left_out: list[str]
    """Classes with too few pictures for the largest number of shots; they are in no row."""
    train_pictures: int
    """Pictures that the few were drawn from: at most ten times the largest number of shots of each class."""
    fewest: int
    """Of them, those of the smallest class."""
    test_pictures: int
    """Pictures that every row was measured on."""
    chance: float
    """The top-1 of guessing, in percent: 100 / classes."""
    templates: list[str]
    """The prompts' templates of the zero_shot row; empty where there is none."""
    rows: list[FewShotRow]
    """The figures: by method, then by shots."""
    left_out: int
    """Pictures and rows of the data that could not be used."""
    problems: list[dict[str, str]]
    """Each of them: where it stands, and the reason."""
    notes: list[str]
    """What one should know to judge the figures."""


def ready(pictures: LabelledPictures, split: str | None, shots: Sequence[int], repeats: int, seed: int) -> list[int]:
    """The numbers of shots in order, each once, where all that `few_shot` needs is there. Else raises as it does,
    but before a model is opened and a picture embedded."""
    shots = checked_shots(shots, repeats, seed)
    require_probe()
    needed, train_split, _ = split_up(pictures, split)
    _divided(needed, train_split, shots[-1], seed)
    return shots


def few_shot(
    encoder: Encoder,
    pictures: LabelledPictures,
    words: Sequence[Words] | None,
    templates: Sequence[str],
    shots: Sequence[int],
    *,
    model: str,
    split: str | None = None,
    repeats: int = 5,
    seed: int = 0,
    quarantine: Quarantine | None = None,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
) -> FewShot:
    """Measures both classifiers, and zero-shot beside them where there are `words` of the classes.

    `split`: as of `split_up`; `model` and `notes` go into the result as they are; `progress` hears (done,
    total) of pictures, then of draws. Each picture is embedded once. Raises ConfigError for numbers that make no sense,
    DataError where there are too few pictures, ModelError without scikit-learn.
    """
    shots = ready(pictures, split, shots, repeats, seed)
    quarantine = quarantine if quarantine is not None else Quarantine()
    pictures, train_split, test_split = split_up(pictures, split)
    pictures = pooled(pictures, train_split, shots[-1], seed)
    class_KD = class_features(encoder, words, templates) if words else None
    pictures, image_ND = embedded(encoder, pictures, quarantine, progress)
    division = _divided(pictures, train_split, shots[-1], seed)
    rows, said = few_shot_rows(image_ND, pictures.label_N, division, shots, repeats, seed, class_KD, progress)
    fewest = int(np.bincount(pictures.label_N[division.train])[division.kept].min())
    left_out = [pictures.classes[label] for label in division.left_out]
    notes = [*notes, *said, *_notes(pictures, division, left_out, shots[-1], fewest), *_few(division, repeats)]
    return FewShot(
        model=model,
        data=pictures.path,
        train_split=train_split,
        test_split=test_split,
        seed=seed,
        repeats=repeats,
        classes=[pictures.classes[label] for label in division.kept],
        classes_left_out=left_out,
        train_pictures=len(division.train),
        fewest=fewest,
        test_pictures=len(division.test),
        chance=100 / len(division.kept),
        templates=list(templates) if words else [],
        rows=rows,
        left_out=len(quarantine),
        problems=quarantine.entries(),
        notes=notes,
    )


def _divided(pictures: LabelledPictures, train_split: str, most_shots: int, seed: int) -> Division:
    train_N = np.array([name == train_split for name in pictures.split_of]) if train_split else None
    return divided(pictures.label_N, len(pictures.classes), train_N, most_shots, seed)


def _notes(
    pictures: LabelledPictures, division: Division, left_out: list[str], most_shots: int, fewest: int
) -> list[str]:
    notes = []
    if left_out:
        notes.append(
            f"left out, for they have too few pictures for {counted(most_shots, 'shot')}: {', '.join(left_out)}"
        )
    if fewest < 2 * most_shots:
        notes.append(
            f"the smallest class has {counted(fewest, 'picture')} to learn from, so draws of {most_shots} are much "
            "alike, and their intervals too narrow"
        )
    copies = shared(pictures.picked(division.train), pictures.picked(division.test))
    return [*notes, *filter(None, [copies, contradictions(pictures)])]


def _few(division: Division, repeats: int) -> list[str]:
    """What is to be said where few test pictures or few draws leave an interval that says little."""
    notes = few_pictures(len(division.test))
    if repeats == 1:
        notes.append("a single draw has no interval; --repeats 5 is usual")
    elif repeats < FEWEST_REPEATS:
        notes.append(f"an interval from {repeats} draws says little; --repeats 5 is usual")
    return notes


def few_shot_rows(
    image_ND: np.ndarray,
    label_N: np.ndarray,
    division: Division,
    shots: Sequence[int],
    repeats: int = 5,
    seed: int = 0,
    class_KD: np.ndarray | None = None,
    progress: Progress | None = None,
) -> tuple[list[FewShotRow], list[str]]:
    """Figures of both classifiers for every number of shots, and what one should know about them.

    `image_ND`: unit features of all pictures; `class_KD`: features of all classes' prompts, for the zero-shot row. A
    draw depends on the seed, the number of shots and the repeat alone. Raises ModelError without scikit-learn.
    """
    labels_N = np.searchsorted(division.kept, label_N)  # of rows that are kept; the others are never looked at
    test_ND, test_N = image_ND[division.test], labels_N[division.test]
    rows, notes = [], []
    if class_KD is not None:
        top1 = by_cosine(test_ND, class_KD[division.kept], test_N).top1
        rows.append(FewShotRow(method=ZERO_SHOT, shots=0, top1=top1, low=None, high=None, each=[top1]))
    means, probes, unfinished = [], [], 0
    for place, count in enumerate(shots):
        of_mean, of_probe, strength = [], [], USUAL_STRENGTH
        for repeat in range(repeats):
            rows_drawn = drawn(division.train, labels_N, count, np.random.default_rng([seed, count, repeat]))
            learned_ND, learned_N = image_ND[rows_drawn], labels_N[rows_drawn]
            of_mean.append(by_cosine(test_ND, class_means(learned_ND, learned_N), test_N).top1)
            if repeat == 0:
                strength = chosen_strength(learned_ND, learned_N)
            classified, ended = linear_probe(learned_ND, learned_N, test_ND, test_N, strength)
            of_probe.append(classified.top1)
            unfinished += not ended
            if progress:
                progress(place * repeats + repeat + 1, len(shots) * repeats)
        means.append(_row(CLASS_MEAN, count, of_mean))
        probes.append(_row(LINEAR_PROBE, count, of_probe, strength))
    if unfinished:
        notes.append(f"{counted(unfinished, 'linear probe')} had not settled after {MOST_STEPS:,} steps")
    return [*rows, *means, *probes], notes


def checked_shots(shots: Sequence[int], repeats: int, seed: int) -> list[int]:
    """Numbers of shots in order, each once. Raises ConfigError for what is no number of pictures or of repeats, and for
    a seed below 0."""
    if not shots or min(shots) < 1:
        raise ConfigError("--shots takes numbers of pictures of each class, from 1", "As in: --shots 1 2 4 8")
    if repeats < 1:
        raise ConfigError(f"--repeats {repeats}: there must be one draw at least", "Five is usual.")
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}")
    return sorted(set(shots))


def _row(method: str, shots: int, each: list[float], strength: float | None = None) -> FewShotRow:
    mean = float(np.mean(each))
    half = _half_interval(each)
    low, high = (None, None) if half is None else (max(mean - half, 0.0), min(mean + half, 100.0))
    return FewShotRow(method=method, shots=shots, top1=mean, low=low, high=high, each=each, strength=strength)


def _half_interval(each: Sequence[float]) -> float | None:
    """Half the t-interval of the mean; None for a single value."""
    if len(each) < 2:
        return None
    quantile = float(import_module("scipy.stats").t.ppf(0.5 + LEVEL / 200, len(each) - 1))
    return quantile * float(np.std(each, ddof=1)) / float(np.sqrt(len(each)))
