"""Recall and ranks by Karpathy's protocol, in blocks. N images, M captions, D embed_dim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cliplet.errors import DataError

BLOCK_BYTES = 64 * 2**20  # of the similarity matrix, which is never held whole


def retrieval_metrics(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Retrieval in both directions, of all captions of a set from its pictures and the other way.

    `caption_image_M`: for each caption the row of its picture. Returns `image_to_text_R@k` and
    `text_to_image_R@k` in percent, `..._median_rank` and `..._mean_rank` (1 is best), `rsum` (the sum of all
    recalls), and the numbers of `images` and `captions`.

    All captions of a picture are right answers to it (Karpathy and Fei-Fei 2015, arXiv:1412.2306): a picture
    is right at k when any of its captions is among the first k. Ties count against the model.
    Raises DataError for features that are not finite, a caption that belongs to no picture and a picture without
    captions, naming the row.
    """
    image_rank_N, text_rank_M = retrieval_ranks(image_ND, text_MD, caption_image_M)
    metrics: dict[str, float] = {}
    for direction, ranks in (("image_to_text", image_rank_N), ("text_to_image", text_rank_M)):
        for k in ks:
            metrics[f"{direction}_R@{k}"] = 100.0 * float(np.mean(ranks <= k))
        metrics[f"{direction}_median_rank"] = float(np.median(ranks))
        metrics[f"{direction}_mean_rank"] = float(np.mean(ranks))
    metrics["rsum"] = sum(value for name, value in metrics.items() if "_R@" in name)
    metrics["images"], metrics["captions"] = len(image_ND), len(text_MD)
    return metrics


def retrieval_ranks(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each picture's best own caption among all captions (N,), and of each caption's picture among all
    pictures (M,); 1 is best. A picture's rank counts the captions of others that score at least as high."""
    image_ND, text_MD, caption_image_M = _checked(image_ND, text_MD, caption_image_M)
    margin = _rounding(image_ND, text_MD)
    own_M = np.einsum("md,md->m", image_ND[caption_image_M], text_MD)
    best_N = np.full(len(image_ND), -np.inf, dtype=own_M.dtype)
    np.maximum.at(best_N, caption_image_M, own_M)

    image_rank_N = np.ones(len(image_ND), dtype=np.int64)
    text_rank_M = np.ones(len(text_MD), dtype=np.int64)
    rows = max(1, BLOCK_BYTES // (len(text_MD) * image_ND.itemsize))
    for start in range(0, len(image_ND), rows):
        block = slice(start, start + rows)
        scores_BM = image_ND[block] @ text_MD.T
        owned_BM = caption_image_M == np.arange(start, start + len(scores_BM))[:, None]
        scores_BM[owned_BM] = -np.inf  # a picture's own captions are never wrong answers, nor a caption's own picture
        image_rank_N[block] += (scores_BM >= best_N[block, None] - margin).sum(1)
        text_rank_M += (scores_BM >= own_M - margin).sum(0)
    return image_rank_N, text_rank_M


def _rounding(image_ND: np.ndarray, text_MD: np.ndarray) -> float:
    """The difference below which two scores are a tie.

    A matrix product rounds equal scores differently from place to place, so an exact comparison would let a
    constant encoder win some of its ties. For unit float32 features this is 1e-6.
    """
    largest = np.linalg.norm(image_ND, axis=1).max() * np.linalg.norm(text_MD, axis=1).max()
    return float(8 * np.finfo(image_ND.dtype).eps * largest)


def _checked(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    caption_image_M = np.asarray(caption_image_M)
    dtype = np.float64 if image_ND.dtype == text_MD.dtype == np.float64 else np.float32
    image_ND, text_MD = np.asarray(image_ND, dtype), np.asarray(text_MD, dtype)
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
