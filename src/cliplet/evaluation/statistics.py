"""What the features themselves are like, whatever the ranks: how near pairs lie, how spread out the rest; and what
guessing would reach. N images, M captions, D embed_dim, P pairs, R rows of a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cliplet.evaluation.retrieval import DIRECTIONS, KS

ROWS = 2000  # of pictures and of captions that pairs are made of; all pairs of these are four million

# What each figure is called, and what it means.
MEANINGS = {
    "cosine_matching": ("mean cosine of matching pairs", "Of a picture and one of its own captions; 1 is the most."),
    "cosine_random": (
        "mean cosine of random pairs",
        "Of a picture and a caption of another one. What counts is how far it lies below the line above.",
    ),
    "alignment": (
        "alignment",
        "Mean squared distance of matching pairs, from 0 to 4; the smaller, the nearer a caption lies to its picture "
        "(Wang and Isola 2020).",
    ),
    "uniformity_image": (
        "uniformity of pictures",
        "Logarithm of the mean of exp(-2 d²) over pairs of pictures at distance d, from 0, where all lie in one point, "
        "down to about -4, where they are spread over the whole sphere (Wang and Isola 2020).",
    ),
    "uniformity_text": ("uniformity of captions", "The same over pairs of captions."),
    "modality_gap": (
        "modality gap",
        "Distance between the mean of the pictures and the mean of the captions: 0 where both fill the same region "
        "(Liang et al. 2022). A gap alone is no fault, for ranks compare captions with captions.",
    ),
    "effective_rank_image": (
        "effective rank of pictures",
        "How many directions the features make use of, of the {width} there are: the exponential of the entropy of "
        "their singular values (Roy and Vetterli 2007). A small one means that they have collapsed.",
    ),
    "effective_rank_text": ("effective rank of captions", "The same for captions."),
}


def feature_statistics(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """The figures that MEANINGS explains, of unit features.

    Pairs are those of at most ROWS pictures and ROWS captions, drawn by `seed`; alignment, cosine of matching pairs and
    gap are over all. What needs two of a kind, where there is one, is NaN.
    """
    random = np.random.default_rng(seed)
    image_rows, text_rows = _sample(len(image_ND), random), _sample(len(text_MD), random)
    image_RD, text_RD = image_ND[image_rows].astype(np.float64), text_MD[text_rows].astype(np.float64)
    matching = _matching_cosine(image_ND, text_MD, caption_image_M)
    gap_D = image_ND.mean(axis=0, dtype=np.float64) - text_MD.mean(axis=0, dtype=np.float64)
    other_RR = image_rows[:, None] != caption_image_M[text_rows][None, :]
    cosine_RR = image_RD @ text_RD.T
    return {
        "cosine_matching": matching,
        "cosine_random": float(cosine_RR[other_RR].mean()) if other_RR.any() else float("nan"),
        "alignment": 2 - 2 * matching,  # the squared distance of unit vectors
        "uniformity_image": _uniformity(image_RD),
        "uniformity_text": _uniformity(text_RD),
        "modality_gap": float(np.linalg.norm(gap_D)),
        "effective_rank_image": _effective_rank(image_RD),
        "effective_rank_text": _effective_rank(text_RD),
    }


def _sample(rows: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(rows) if rows <= ROWS else np.sort(random.choice(rows, ROWS, replace=False))


def _matching_cosine(image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray) -> float:
    """The mean over all captions, some at a time."""
    total = 0.0
    for start in range(0, len(text_MD), 8 * ROWS):
        own = caption_image_M[start : start + 8 * ROWS]
        total += float(np.einsum("md,md->", image_ND[own], text_MD[start : start + 8 * ROWS], dtype=np.float64))
    return total / len(text_MD)


def _uniformity(features_RD: np.ndarray) -> float:
    """Over all pairs of two different rows."""
    rows = len(features_RD)
    if rows < 2:
        return float("nan")
    squared_RR = np.maximum(2 - 2 * features_RD @ features_RD.T, 0)
    potential = np.exp(-2 * squared_RR)
    np.fill_diagonal(potential, 0)
    return float(np.log(potential.sum() / (rows * (rows - 1))))


def _effective_rank(features_RD: np.ndarray) -> float:
    values = np.linalg.svd(features_RD, compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def chance_metrics(caption_image_M: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """What guessing reaches on average, exactly: the metrics of `metrics_of_ranks` for answers in random order.

    A picture with several captions is found sooner: its rank is that of the first of them.
    """
    counts_N = np.bincount(caption_image_M)
    captions, pictures = len(caption_image_M), len(counts_N)
    share_of_ranks = np.zeros(captions)
    for own, how_often in zip(*np.unique(counts_N, return_counts=True), strict=True):
        share_of_ranks += how_often / pictures * _first_of(int(own), captions)
    metrics: dict[str, float] = {}
    every = zip(DIRECTIONS, (share_of_ranks, np.full(pictures, 1 / pictures)), strict=True)
    for direction, share_Q in every:
        rank_Q = np.arange(1, len(share_Q) + 1)
        cumulated = np.cumsum(share_Q)
        for k in ks:
            metrics[f"{direction}_R@{k}"] = 100 * float(min(cumulated[min(k, len(share_Q)) - 1], 1.0))
        lower, upper = np.searchsorted(cumulated, [0.5 - 1e-9, 0.5 + 1e-9])
        metrics[f"{direction}_median_rank"] = float(rank_Q[lower] + rank_Q[min(upper, len(rank_Q) - 1)]) / 2
        metrics[f"{direction}_mean_rank"] = float(share_Q @ rank_Q)
        metrics[f"{direction}_mrr"] = float(share_Q @ (1 / rank_Q))
    metrics["rsum"] = sum(value for name, value in metrics.items() if "_R@" in name)
    return metrics


def _first_of(own: int, captions: int) -> np.ndarray:
    """How likely each place is for the first of `own` right answers among `captions` in random order."""
    places = np.arange(captions)
    later = np.cumprod(np.maximum(captions - own - places, 0) / (captions - places))  # P(first > place + 1)
    return -np.diff(later, prepend=1.0)
