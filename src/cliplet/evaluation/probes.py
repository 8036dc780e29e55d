"""Classifiers learned on frozen features: the nearest class mean, and logistic regression. N pictures, K classes, D
embed_dim."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np

from cliplet.errors import INSTALL_TRAIN, ModelError
from cliplet.evaluation.class_scores import Classified, by_score, unit

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # C of the probe: the larger, the less it is held back
USUAL_STRENGTH = 10.0  # with one picture of each class, where nothing can be held out to choose by
FOLDS = 3  # of the cross-validation that chooses C, at most
MOST_STEPS = 1000  # of the probe's optimiser


def class_means(image_ND: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """(K, D) unit means of unit features, of the classes 0 to K - 1."""
    return unit(np.stack([image_ND[label_N == label].mean(axis=0) for label in range(label_N.max() + 1)]))


def chosen_strength(image_ND: np.ndarray, label_N: np.ndarray) -> float:
    """C of the logistic regression by cross-validation within the pictures that are learned from, each class having as
    many: the smallest of STRENGTHS with the most right answers. With one picture of each class, USUAL_STRENGTH."""
    shots = int(np.bincount(label_N).min())
    if shots < 2:
        return USUAL_STRENGTH
    folds = min(FOLDS, shots)
    fold_N = np.empty(len(label_N), dtype=np.int64)
    for label in range(label_N.max() + 1):
        own = np.flatnonzero(label_N == label)
        fold_N[own] = np.arange(len(own)) % folds
    right = []
    for strength in STRENGTHS:
        count = 0
        for fold in range(folds):
            held = fold_N == fold
            found, _ = linear_probe(image_ND[~held], label_N[~held], image_ND[held], label_N[held], strength)
            count += int((found.rank_N == 1).sum())
        right.append(count)
    return STRENGTHS[int(np.argmax(right))]


def linear_probe(
    learned_ND: np.ndarray, learned_N: np.ndarray, test_ND: np.ndarray, test_N: np.ndarray, strength: float
) -> tuple[Classified, bool]:
    """What multinomial logistic regression on `learned_ND` says of `test_ND`, and whether its optimiser came to an end.

    Labels are 0 to K - 1, and each must be learned. Raises ModelError without scikit-learn.
    """
    probe = require_probe().LogisticRegression(C=strength, max_iter=MOST_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not to have settled is told in the notes, once
        probe.fit(learned_ND, learned_N)
    scores_NK = probe.decision_function(test_ND)
    if scores_NK.ndim == 1:  # of two classes, how far the second is ahead
        scores_NK = np.stack([np.zeros_like(scores_NK), scores_NK], axis=1)
    tie = float(np.finfo(np.float32).eps) * max(1.0, float(np.abs(scores_NK).max()))
    return by_score(scores_NK, test_N, tie), bool(np.max(probe.n_iter_) < MOST_STEPS)


def require_probe() -> Any:
    """scikit-learn's linear models. Raises ModelError where it is not installed."""
    try:
        return import_module("sklearn.linear_model")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the linear probe needs scikit-learn ({error.name} is not installed)", INSTALL_TRAIN
        ) from None
