"""Recall and ranks by Karpathy's protocol. N images, M captions, D embed_dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cliplet.errors import DataError
from cliplet.evaluation.ranking import counts_above
from cliplet.results import DIRECTIONS

KS = (1, 5, 10)


def retrieval_metrics(
    image_ND: np.ndarray,
    text_MD: np.ndarray,
    caption_image_M: np.ndarray,
    ks: Sequence[int] = KS,
    engine: str = "numpy",
) -> dict[str, float]:
    """Retrieval in both directions, of all captions of a set from its pictures and the other way.

    `caption_image_M`: for each caption the row of its picture. `engine`: as of `retrieval_ranks`. Returns what
    `metrics_of_ranks` does, and the numbers of `images` and `captions`.

    All captions of a picture are right answers to it (Karpathy and Fei-Fei 2015, arXiv:1412.2306): a picture
    is right at k when any of its captions is among the first k. Ties count against the model.
    Raises DataError for features that are not finite, a caption that belongs to no picture and a picture without
    captions, naming the row.
    """
    ranks = retrieval_ranks(image_ND, text_MD, caption_image_M, engine)
    return {**metrics_of_ranks(*ranks, ks=ks), "images": len(image_ND), "captions": len(text_MD)}


def metrics_of_ranks(image_rank_N: np.ndarray, text_rank_M: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """`image_to_text_R@k` and `text_to_image_R@k` in percent, `..._median_rank` and `..._mean_rank` (1 is best),
    `..._mrr` (the mean of 1 / rank) and `rsum`, the sum of all recalls."""
    metrics: dict[str, float] = {}
    for direction, ranks in zip(DIRECTIONS, (image_rank_N, text_rank_M), strict=True):
        for k in ks:
            metrics[f"{direction}_R@{k}"] = 100.0 * float(np.mean(ranks <= k))
        metrics[f"{direction}_median_rank"] = float(np.median(ranks))
        metrics[f"{direction}_mean_rank"] = float(np.mean(ranks))
        # Sorted, for a sum of fractions depends on their order in its last digit.
        metrics[f"{direction}_mrr"] = float(np.mean(1.0 / np.sort(ranks)))
    metrics["rsum"] = sum(value for name, value in metrics.items() if "_R@" in name)
    return metrics


def clip_benchmark_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Recalls under the names, and as the shares from 0 to 1, that LAION's CLIP_benchmark writes them:
    `image_retrieval_recall@k` is text to image, `text_retrieval_recall@k` image to text."""
    theirs = {"text_to_image": "image_retrieval_recall", "image_to_text": "text_retrieval_recall"}
    return {
        f"{theirs[direction]}@{name.partition('_R@')[2]}": value / 100
        for name, value in metrics.items()
        for direction in theirs
        if name.startswith(f"{direction}_R@")
    }


def retrieval_ranks(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray, engine: str = "numpy"
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each picture's best own caption among all captions (N,), and of each caption's picture among all
    pictures (M,); 1 is best. A picture's rank counts the captions of others that score at least as high.

    `engine`: what multiplies, numpy (on a CPU the fastest), torch (on a GPU, if there is one) or faiss; the ranks are
    the same from each. Never holds the whole similarity matrix, nor sorts it. Raises as `retrieval_metrics` does.
    """
    image_ND, text_MD, caption_image_M = _checked(image_ND, text_MD, caption_image_M)
    image_counts_N, text_counts_M = counts_above(image_ND, text_MD, caption_image_M, engine)
    return 1 + image_counts_N, 1 + text_counts_M


def fold_metrics(
    image_ND: np.ndarray,
    text_MD: np.ndarray,
    caption_image_M: np.ndarray,
    folds: int,
    ks: Sequence[int] = KS,
    engine: str = "numpy",
) -> list[dict[str, float]]:
    """Metrics of `folds` runs of neighbouring pictures, each alone with its own captions: five of COCO's 5,000 give
    the field's "COCO 1k", which is their mean. Pictures that are left over at the end are in no fold.

    Raises DataError where there are fewer pictures than folds.
    """
    size = len(image_ND) // folds if folds > 0 else 0
    if not size:
        raise DataError(f"{len(image_ND)} pictures cannot be parted into {folds} folds")
    every = []
    for start in range(0, folds * size, size):
        own_M = (caption_image_M >= start) & (caption_image_M < start + size)
        images_BD = image_ND[start : start + size]
        every.append(retrieval_metrics(images_BD, text_MD[own_M], caption_image_M[own_M] - start, ks, engine))
    return every


def mean_metrics(every: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over several measurements."""
    return {name: float(np.mean([metrics[name] for metrics in every])) for name in every[0]}


def _checked(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    caption_image_M = np.asarray(caption_image_M)
    image_ND, text_MD = _floats(image_ND), _floats(text_MD)
    if (
        image_ND.ndim != 2
        or text_MD.ndim != 2
        or image_ND.shape[1] != text_MD.shape[1]
        or not image_ND.size
        or not text_MD.size
    ):
        raise DataError(f"image features {image_ND.shape} and text features {text_MD.shape} do not fit each other")
    if caption_image_M.shape != (len(text_MD),) or not np.issubdtype(caption_image_M.dtype, np.integer):
        raise DataError(
            f"caption_image must be {len(text_MD)} whole numbers, got {caption_image_M.dtype} {caption_image_M.shape}"
        )
    for name, features in (("image", image_ND), ("text", text_MD)):
        bad = ~np.isfinite(features).all(axis=1)
        if bad.any():
            raise DataError(f"{name} features in row {int(bad.argmax())} are not finite ({int(bad.sum())} such rows)")
    outside = (caption_image_M < 0) | (caption_image_M >= len(image_ND))
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"caption {row} belongs to picture {caption_image_M[row]}, which is none of the {len(image_ND)}"
        )
    lonely = np.bincount(caption_image_M, minlength=len(image_ND)) == 0
    if lonely.any():
        raise DataError(f"picture {int(lonely.argmax())} has no caption ({int(lonely.sum())} such pictures)")
    return image_ND, text_MD, caption_image_M


def _floats(features: np.ndarray) -> np.ndarray:
    """As float64 where it is, else as float32."""
    features = np.asarray(features)
    return features if features.dtype == np.float64 else features.astype(np.float32, copy=False)
