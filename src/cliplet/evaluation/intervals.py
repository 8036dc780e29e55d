"""How sure a figure is: bootstrap over pictures. N pictures, M captions, R resamples.

Pictures are drawn anew with replacement, each with its captions, because captions of one picture are not independent.
What is drawn are the queries; the gallery that they search stays whole, so an interval says how the figure would vary
with other pictures like these. Efron and Tibshirani 1993, percentile intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cliplet.evaluation.retrieval import KS
from cliplet.results import DIRECTIONS, Strict

LEVEL = 95.0  # percent of resamples within an interval
WEIGHTS_AT_ONCE = 4 * 2**20  # numbers of a block of resamples

Ranks = tuple[np.ndarray, np.ndarray]  # of pictures (N,) and of captions (M,), as `retrieval_ranks` gives them


class Difference(Strict):
    """One metric of two models on the same pictures."""

    a: float
    """The metric of model A."""
    b: float
    """The metric of model B."""
    difference: float
    """b - a."""
    low: float
    """Lower end of the difference's 95 % interval."""
    high: float
    """Its upper end."""
    p: float
    """Two-sided, of no difference: twice the share of resamples on the rarer side of zero, at least 2 / resamples."""


def bootstrap_intervals(
    image_rank_N: np.ndarray,
    text_rank_M: np.ndarray,
    caption_image_M: np.ndarray,
    ks: Sequence[int] = KS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of all metrics of `metrics_of_ranks`, by name: (low, high)."""
    drawn = _resampled((image_rank_N, text_rank_M), caption_image_M, ks, resamples, seed)
    return {name: _ends(values_R) for name, values_R in drawn.items()}


def paired_bootstrap(
    ranks_a: Ranks,
    ranks_b: Ranks,
    caption_image_M: np.ndarray,
    ks: Sequence[int] = KS,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Two models on the same pictures and captions: every metric's difference with its interval and p.

    Both are measured on the same resampled pictures, so what is hard for both does not widen the interval. Each p is of
    one metric alone; of many that are looked at, one in twenty is below 0.05 by chance.
    """
    drawn_a = _resampled(ranks_a, caption_image_M, ks, resamples, seed)
    drawn_b = _resampled(ranks_b, caption_image_M, ks, resamples, seed)
    observed_a, observed_b = (_observed(ranks, caption_image_M, ks) for ranks in (ranks_a, ranks_b))
    differences = {}
    for name, values_R in drawn_a.items():
        difference_R = drawn_b[name] - values_R
        low, high = _ends(difference_R)
        a, b = observed_a[name], observed_b[name]
        rarer = min((difference_R <= 0).sum(), (difference_R >= 0).sum())
        p = float(min(1, 2 * (rarer + 1) / (resamples + 1)))  # the data themselves are one resample more
        differences[name] = Difference(a=a, b=b, difference=b - a, low=low, high=high, p=p)
    return differences


def _ends(values_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values_R, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)


def _observed(ranks: Ranks, caption_image_M: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    every_once = np.ones((1, len(ranks[0])), dtype=np.float32)
    return {name: float(value[0]) for name, value in _measured(ranks, caption_image_M, ks, every_once).items()}


def _resampled(
    ranks: Ranks, caption_image_M: np.ndarray, ks: Sequence[int], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """(R,) values of each metric, one a resample. The same seed draws the same pictures."""
    parts = [_measured(ranks, caption_image_M, ks, weights) for weights in _weights(len(ranks[0]), resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weights(pictures: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each picture was drawn: (R, N) float32, some resamples at a time."""
    random = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // pictures)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = random.integers(pictures, size=(count, pictures)) + pictures * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * pictures).reshape(count, pictures)
        yield weights.astype(np.float32)


def _measured(
    ranks: Ranks, caption_image_M: np.ndarray, ks: Sequence[int], weights_RN: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of each row of weights: (R,) each."""
    metrics: dict[str, np.ndarray] = {}
    pictures = weights_RN.shape[1]
    owners = (np.arange(pictures), caption_image_M)
    for direction, rank_Q, owner_Q in zip(DIRECTIONS, ranks, owners, strict=True):
        # Sums over each picture's queries: then a resample is one product.
        columns = [rank_Q <= k for k in ks] + [rank_Q, 1.0 / rank_Q, np.ones(len(rank_Q))]
        sums_NF = np.stack([np.bincount(owner_Q, weights=column, minlength=pictures) for column in columns], axis=1)
        sums_RF = weights_RN.astype(np.float64) @ sums_NF
        means_RF = sums_RF[:, :-1] / sums_RF[:, -1:]
        for place, k in enumerate(ks):
            metrics[f"{direction}_R@{k}"] = 100 * means_RF[:, place]
        metrics[f"{direction}_median_rank"] = _medians(rank_Q, owner_Q, weights_RN)
        metrics[f"{direction}_mean_rank"] = means_RF[:, -2]
        metrics[f"{direction}_mrr"] = means_RF[:, -1]
    metrics["rsum"] = np.sum([values for name, values in metrics.items() if "_R@" in name], axis=0)
    return metrics


def _medians(rank_Q: np.ndarray, owner_Q: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """(R,) medians of the ranks, each query as often as its picture was drawn."""
    values, place_Q = np.unique(rank_Q, return_inverse=True)
    # How many queries of each picture have each rank; few ranks and few captions a picture, so a loop over rows of
    # weights is quick.
    medians_R = np.empty(len(weights_RN))
    for row, weights_N in enumerate(weights_RN):
        cumulated = np.cumsum(np.bincount(place_Q, weights=weights_N[owner_Q], minlength=len(values)))
        total = cumulated[-1]
        lower = values[np.searchsorted(cumulated, (total - 1) // 2, side="right")]
        upper = values[np.searchsorted(cumulated, total // 2, side="right")]
        medians_R[row] = (lower + upper) / 2
    return medians_R
