"""From scores to ranks, hits and a confusion matrix. N pictures, K classes, D embed_dim, R resamples.

A picture is right where its own class scores higher than every other one. Ties count against the model: else one that
gives every class the same score would always be right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cliplet.console import counted
from cliplet.errors import ModelError
from cliplet.evaluation.intervals import LEVEL
from cliplet.evaluation.measure import FEW
from cliplet.results import Strict

RESAMPLES = 1000
TOP = 5
BLOCK_SCORES = 8 * 2**20  # that are held at once


def few_pictures(pictures: int) -> list[str]:
    """What is to be said of intervals from few test pictures; nothing where they are enough."""
    if pictures >= FEW:
        return []
    return [f"only {counted(pictures, 'picture')} to test on: intervals from so few are too narrow"]


class Figure(Strict):
    """A share in percent, and how sure it is."""

    value: float
    """In percent, of the pictures as they are."""
    low: float
    """Lower end of the 95 % interval, by bootstrap over pictures."""
    high: float
    """Its upper end."""


@dataclass(frozen=True)
class Classified:
    """What a classifier said of N pictures."""

    label_N: np.ndarray  # the true class
    said_N: np.ndarray  # the class with the highest score, the own one only where it is ahead of all others
    rank_N: np.ndarray  # of the own class, 1 is best

    @property
    def top1(self) -> float:
        """Percent of the pictures that are right."""
        return 100 * float(np.mean(self.rank_N == 1))

    def confusion(self, classes: int) -> np.ndarray:
        """(K, K) int64 numbers of pictures: row the true class, column what was said."""
        return np.bincount(self.label_N * classes + self.said_N, minlength=classes**2).reshape(classes, classes)


def by_cosine(image_ND: np.ndarray, class_KD: np.ndarray, label_N: np.ndarray) -> Classified:
    """Classifies unit features by the nearest class. Scores closer than float32's resolution are ties."""
    tie = float(np.finfo(np.float32).eps)
    rows = max(1, BLOCK_SCORES // len(class_KD))
    class_DK = class_KD.astype(np.float64).T
    parts = []
    for start in range(0, len(image_ND), rows):
        block = slice(start, start + rows)
        parts.append(by_score(image_ND[block].astype(np.float64) @ class_DK, label_N[block], tie))
    said_N, rank_N = (np.concatenate([getattr(part, name) for part in parts]) for name in ("said_N", "rank_N"))
    return Classified(label_N, said_N, rank_N)


def by_score(scores_NK: np.ndarray, label_N: np.ndarray, tie: float = 0.0) -> Classified:
    """Classifies by the highest score; scores no further than `tie` below the own class's best rival are ties."""
    rows = np.arange(len(label_N))
    floor_N = scores_NK[rows, label_N] - tie
    others_NK = scores_NK.copy()
    others_NK[rows, label_N] = -np.inf
    rank_N = 1 + (others_NK >= floor_N[:, None]).sum(axis=1)
    return Classified(label_N, np.where(rank_N == 1, label_N, others_NK.argmax(axis=1)), rank_N)


def unit(rows_ND: np.ndarray) -> np.ndarray:
    """Rows of unit length, in float64; a row of zeros stays one. Raises ModelError for what is not finite."""
    rows_ND = np.asarray(rows_ND, dtype=np.float64)
    if not np.isfinite(rows_ND).all():
        raise ModelError("the model gives features that are not finite", "Its weights may be broken, or its training.")
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def figures(classified: Classified, classes: int, seed: int = 0) -> tuple[Figure, Figure | None, Figure]:
    """Top-1, top-5 and mean recall of the classes, with intervals. Top-5 is None where there are five classes or fewer.

    Classes without pictures have no part in the mean recall. A resample is as many pictures drawn with replacement;
    of each it matters only which class it is of and how it was ranked, so these counts are what is drawn.
    """
    outcome_N = np.digitize(classified.rank_N, [2, TOP + 1])  # right, right within five, wrong
    cells = np.bincount(classified.label_N * 3 + outcome_N, minlength=3 * classes)
    random = np.random.default_rng(seed)
    drawn_RF = np.concatenate(
        [
            _shares(random.multinomial(len(outcome_N), cells / cells.sum(), size=size), classes)
            for size in _sizes(classes)
        ]
    )
    observed = _shares(cells[None], classes)[0]
    low, high = np.percentile(drawn_RF, [50 - LEVEL / 2, 50 + LEVEL / 2], axis=0)
    top1, top5, recall = (
        Figure(value=value, low=least, high=most) for value, least, most in zip(observed, low, high, strict=True)
    )
    return top1, top5 if classes > TOP else None, recall


def _sizes(classes: int) -> list[int]:
    """Resamples at a time, so that many classes do not fill the memory."""
    at_once = max(1, BLOCK_SCORES // (3 * classes))
    return [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]


def _shares(cells_RF: np.ndarray, classes: int) -> np.ndarray:
    """(R, 3) percentages: top-1, top-5, mean recall, from counts by class and outcome."""
    counts_RK3 = cells_RF.reshape(len(cells_RF), classes, 3)
    of_class_RK = counts_RK3.sum(axis=2)
    there_RK = of_class_RK > 0
    recall_RK = counts_RK3[:, :, 0] / np.maximum(of_class_RK, 1)
    mean_R = recall_RK.sum(axis=1) / there_RK.sum(axis=1)
    total_R = of_class_RK.sum(axis=1)
    right_R, within_R = counts_RK3[:, :, 0].sum(axis=1), counts_RK3[:, :, :2].sum(axis=(1, 2))
    return 100 * np.stack([right_R / total_R, within_R / total_R, mean_R], axis=1)
