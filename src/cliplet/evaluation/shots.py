"""Which pictures a few-shot classifier learns from, and which it is tested on. N pictures, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cliplet.console import counted
from cliplet.data.labelled import LabelledPictures
from cliplet.errors import DataError

TRAIN = "train"  # the split that is learned from, where there is one
TEST_SHARE = 0.5  # of each class's pictures, where there is none
POOL = 10  # times the largest number of shots: pictures of each class that draws are made from, at most


@dataclass(frozen=True)
class Division:
    """Which pictures may be learned from, and which are tested on; labels count the classes that are kept."""

    kept: list[int]  # classes, as places among all of them
    train: np.ndarray  # rows
    test: np.ndarray  # rows
    left_out: list[int]  # classes with too few pictures


def split_up(pictures: LabelledPictures, split: str | None) -> tuple[LabelledPictures, str, str]:
    """The pictures that are needed, the split to learn from and the one to test on.

    Where there is no split `train` beside the one to test on, the first is empty, and a part of the second must be held
    out. `split`: the one to test on; by itself test, or everything where no splits are named. Raises DataError for
    one that is not there.
    """
    split = split or pictures.usual_split
    chosen = pictures.select(split)
    if TRAIN not in pictures.splits or split == "all" or TRAIN in split.split("+"):
        return chosen, "", split
    return pictures.select(f"{TRAIN}+{split}"), TRAIN, split


def divided(label_N: np.ndarray, classes: int, train_N: np.ndarray | None, most_shots: int, seed: int) -> Division:
    """Parts pictures into those to learn from and those to test on.

    `train_N`: whether each picture is of the split to train on, the others being tested on. Where it is None, half of
    each class is held out for testing, or as many as `most_shots` leave, chosen by `seed`; the part is the same for
    every number of shots up to `most_shots`. A class with fewer than `most_shots` pictures to train on, or none to test
    on, is left out. Raises DataError where fewer than two classes are left, naming the largest number that works.
    """
    random = np.random.default_rng([seed, 0])
    kept, left_out, train, test, possible = [], [], [], [], []
    for label in range(classes):
        rows = np.flatnonzero(label_N == label)
        if train_N is not None:
            learned, tested = rows[train_N[rows]], rows[~train_N[rows]]
        else:
            held_out = min(round(TEST_SHARE * len(rows)), len(rows) - most_shots)
            mixed = random.permutation(rows)
            learned, tested = mixed[max(held_out, 0) :], mixed[: max(held_out, 0)]
        possible.append(max(len(rows) - 1, 0) if train_N is None else len(learned) if len(tested) else 0)
        if len(learned) < most_shots or not len(tested):
            left_out.append(label)
            continue
        kept.append(label)
        train.append(learned)
        test.append(tested)
    if len(kept) < 2:
        raise _too_few(len(kept), most_shots, possible, train_N is not None)
    return Division(kept, np.sort(np.concatenate(train)), np.sort(np.concatenate(test)), left_out)


def _too_few(kept: int, most_shots: int, possible: list[int], splits: bool) -> DataError:
    """`possible`: the largest number of shots of each class; of two classes it must be enough."""
    needed = f"{counted(most_shots, 'picture')} to learn from and one {'' if splits else 'more '}to test on"
    message = f"only {kept} of {len(possible)} classes {'has' if kept == 1 else 'have'} {needed}"
    most = sorted([0, *possible])[-2]
    if not most and splits:
        return DataError(message, "Few-shot needs a picture to learn from and one to test on in two classes at least.")
    if not most:
        return DataError(message, "Few-shot needs at least 2 pictures of each class: to learn from, and to test on.")
    everywhere = f", with all classes --shots {min(possible)}" if 0 < min(possible) < most else ""
    return DataError(message, f"The largest number that works is --shots {most}{everywhere}.")


def pooled(pictures: LabelledPictures, train_split: str, most_shots: int, seed: int) -> LabelledPictures:
    """The pictures without those to learn from that are more than draws need, chosen by `seed`, so that of a million
    not all are embedded. What is tested on stays."""
    random = np.random.default_rng([seed, 1])
    learned_N = np.array([bool(train_split) and name == train_split for name in pictures.split_of])
    keep_N = ~learned_N
    for label in range(len(pictures.classes)):
        rows = np.flatnonzero(learned_N & (pictures.label_N == label))
        keep_N[random.permutation(rows)[: POOL * most_shots]] = True
    return pictures.picked(np.flatnonzero(keep_N))


def drawn(train: np.ndarray, label_N: np.ndarray, shots: int, random: np.random.Generator) -> np.ndarray:
    """Rows: `shots` of each class, in the order of classes."""
    label_T = label_N[train]
    return np.concatenate(
        [random.choice(train[label_T == label], shots, replace=False) for label in np.unique(label_T)]
    )
