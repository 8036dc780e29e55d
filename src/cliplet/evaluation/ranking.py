"""How many score at least as high as the right answer: exact counts from products in single precision.

A product in float32 rounds, and every library rounds otherwise. So scores are counted in float32 only where the
rounding cannot matter; the few that lie within its bound of the right answer's score are computed again in float64. The
counts then depend on the features alone, whichever engine multiplied. N images, M captions, B images of a block,
P pairs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cliplet.errors import ClipletError, ConfigError, nearest

BLOCK_SCORES = 8 * 2**20  # of the similarity matrix, which is never held whole
PAIRS_AT_ONCE = 16 * 2**10  # that are computed again one by one
DENSE = 0.02  # share of a block beyond which all of it is computed again by one product
FIRST_NEIGHBOURS = 32  # that FAISS is asked for; for queries whose right answer is not among them, ever more

Pairs = tuple[np.ndarray, np.ndarray]  # places of images and of captions, (P,) each


class Band(NamedTuple):
    """Float32 scores above `high` certainly count, those below `low` certainly do not."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Right:
    """The right answers' scores in float64, less what counts as a tie, and their bands in float32."""

    image_ND: np.ndarray  # as they came
    text_MD: np.ndarray
    image32_ND: np.ndarray
    text32_MD: np.ndarray
    caption_image_M: np.ndarray
    image_floor_N: np.ndarray  # of each picture's best own caption
    text_floor_M: np.ndarray  # of each caption's own picture
    image_band_N: Band
    text_band_M: Band


class Counted(NamedTuple):
    """One block's certain counts, and the pairs whose scores must be computed again for each direction."""

    images: np.ndarray  # (B,) places of the pictures that `image_counts_B` belongs to
    image_counts_B: np.ndarray
    captions: np.ndarray  # likewise for captions
    text_counts_B: np.ndarray
    image_pairs: Pairs
    text_pairs: Pairs


def counts_above(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray, engine: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the captions of others that score at least as high as its best own one, (N,); for each caption
    the other pictures that score at least as high as its own, (M,).

    Scores closer than float32's resolution are ties, and ties count. `engine`: numpy, torch, faiss or auto. Arguments
    must be checked already. Raises ConfigError for another engine, ClipletError for one that is not installed.
    """
    count = ENGINES.get(engine) or _other(engine)
    right = right_scores(image_ND, text_MD, caption_image_M)
    image_counts_N, text_counts_M = np.zeros(len(image_ND), np.int64), np.zeros(len(text_MD), np.int64)
    for block in count(right):
        image_counts_N[block.images] += block.image_counts_B
        text_counts_M[block.captions] += block.text_counts_B
        for pairs, floor, place, counts in (
            (block.image_pairs, right.image_floor_N, 0, image_counts_N),
            (block.text_pairs, right.text_floor_M, 1, text_counts_M),
        ):
            above = exact_scores(right, pairs) >= floor[pairs[place]]
            counts += np.bincount(pairs[place][above], minlength=len(counts))
    return image_counts_N, text_counts_M


def right_scores(image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray) -> Right:
    """The scores of the right answers, and how far from them float32 can be trusted."""
    captions = np.arange(len(text_MD))
    own_M = _pair_scores(image_ND, text_MD, (caption_image_M, captions))
    best_N = np.full(len(image_ND), -np.inf)
    np.maximum.at(best_N, caption_image_M, own_M)
    largest = float(np.linalg.norm(image_ND, axis=1).max()) * float(np.linalg.norm(text_MD, axis=1).max())
    resolution = float(np.finfo(np.float32).eps) * largest
    both64 = image_ND.dtype == text_MD.dtype == np.float64
    tie = 8 * float(np.finfo(np.float64).eps) * largest if both64 else resolution
    # Higham's bound for a dot product of D terms in any order (Accuracy and Stability of Numerical Algorithms, 3.1) is
    # D/2 resolutions; the rest is for rounding features and thresholds themselves to float32.
    rounding = (image_ND.shape[1] / 2 + 4) * resolution

    def band(floor: np.ndarray) -> Band:
        return Band((floor - rounding).astype(np.float32), (floor + rounding).astype(np.float32))

    image_floor_N, text_floor_M = best_N - tie, own_M - tie
    image32_ND, text32_MD = (np.ascontiguousarray(features, np.float32) for features in (image_ND, text_MD))
    return Right(
        image_ND,
        text_MD,
        image32_ND,
        text32_MD,
        caption_image_M,
        image_floor_N,
        text_floor_M,
        band(image_floor_N),
        band(text_floor_M),
    )


def exact_scores(right: Right, pairs: Pairs) -> np.ndarray:
    """(P,) float64 scores of pairs. Where they are most of a block, all of it in one product."""
    images, captions = pairs
    some_images, rows = np.unique(images, return_inverse=True)
    if len(images) <= DENSE * len(some_images) * len(right.text_MD):
        return _pair_scores(right.image_ND, right.text_MD, pairs)
    scores_P = np.empty(len(images))
    images_BD = right.image_ND[some_images].astype(np.float64)
    width = max(1, BLOCK_SCORES // len(some_images))
    for start in range(0, len(right.text_MD), width):
        here = np.flatnonzero((captions >= start) & (captions < start + width))
        scores_BC = images_BD @ right.text_MD[start : start + width].astype(np.float64).T
        scores_P[here] = scores_BC[rows[here], captions[here] - start]
    return scores_P


def _pair_scores(image_ND: np.ndarray, text_MD: np.ndarray, pairs: Pairs) -> np.ndarray:
    scores_P = np.empty(len(pairs[0]))
    for start in range(0, len(scores_P), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        left, other = image_ND[pairs[0][part]].astype(np.float64), text_MD[pairs[1][part]].astype(np.float64)
        scores_P[part] = np.einsum("pd,pd->p", left, other)
    return scores_P


def _blocks(right: Right) -> Iterator[tuple[slice, Pairs]]:
    """Blocks of pictures, each with the pairs within it that belong together: (row of the block, caption)."""
    order = np.argsort(right.caption_image_M, kind="stable")
    first = np.searchsorted(right.caption_image_M[order], np.arange(len(right.image_ND) + 1))
    rows = max(1, BLOCK_SCORES // len(right.text_MD))
    for start in range(0, len(right.image_ND), rows):
        stop = min(start + rows, len(right.image_ND))
        captions = order[first[start] : first[stop]]
        yield slice(start, stop), (right.caption_image_M[captions] - start, captions)


def _numpy(right: Right) -> Iterator[Counted]:
    texts_DM, captions = right.text32_MD.T, np.arange(len(right.text_MD))
    image_low, image_high = right.image_band_N
    for block, own in _blocks(right):
        scores_BM = right.image32_ND[block] @ texts_DM
        scores_BM[own] = -np.inf  # a picture's own captions are never wrong answers, nor a caption's own picture
        # Two comparisons for each direction; where their counts differ, some scores lie in between.
        image_counts_B = (scores_BM > image_high[block, None]).sum(1, dtype=np.int32)
        unsure_B = (scores_BM >= image_low[block, None]).sum(1, dtype=np.int32) != image_counts_B
        text_counts_M = (scores_BM > right.text_band_M.high).sum(0, dtype=np.int32)
        unsure_M = (scores_BM >= right.text_band_M.low).sum(0, dtype=np.int32) != text_counts_M
        rows, columns = np.flatnonzero(unsure_B), np.flatnonzero(unsure_M)
        start = block.start
        image_pairs = _between(scores_BM[rows], image_low[start + rows, None], image_high[start + rows, None])
        low, high = right.text_band_M.low[columns], right.text_band_M.high[columns]
        text_pairs = _between(scores_BM[:, columns], low, high)
        yield Counted(
            np.arange(block.start, block.stop),
            image_counts_B,
            captions,
            text_counts_M,
            (start + rows[image_pairs[0]], image_pairs[1]),
            (start + text_pairs[0], columns[text_pairs[1]]),
        )


def _between(scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> Pairs:
    rows, columns = np.nonzero((scores >= low) & (scores <= high))
    return rows, columns


def _torch(right: Right) -> Iterator[Counted]:
    """The same on the GPU, if there is one."""
    torch = _library("torch", "torch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def moved(array: np.ndarray) -> Any:
        return torch.from_numpy(array).to(device)

    images_ND, texts_MD = moved(right.image32_ND), moved(right.text32_MD)
    image_low, image_high = map(moved, right.image_band_N)
    text_low, text_high = map(moved, right.text_band_M)
    precision = torch.get_float32_matmul_precision()
    captions = np.arange(len(right.text_MD))
    for block, own in _blocks(right):
        torch.set_float32_matmul_precision("highest")  # the bound is float32's; TensorFloat32 rounds more
        try:
            scores_BM = images_ND[block] @ texts_MD.T
        finally:
            torch.set_float32_matmul_precision(precision)
        scores_BM[moved(own[0]), moved(own[1])] = -torch.inf
        over_BM, under_BM = scores_BM > image_high[block, None], scores_BM >= image_low[block, None]
        image_counts_B, (rows, of_rows) = over_BM.sum(1), torch.nonzero(under_BM ^ over_BM).T
        over_BM, under_BM = scores_BM > text_high, scores_BM >= text_low
        text_counts_M, (others, columns) = over_BM.sum(0), torch.nonzero(under_BM ^ over_BM).T
        yield Counted(
            np.arange(block.start, block.stop),
            image_counts_B.cpu().numpy(),
            captions,
            text_counts_M.cpu().numpy(),
            ((block.start + rows).cpu().numpy(), of_rows.cpu().numpy()),
            ((block.start + others).cpu().numpy(), columns.cpu().numpy()),
        )


def _faiss(right: Right) -> Iterator[Counted]:
    """FAISS's flat index of inner products, one direction after the other."""
    faiss = _library("faiss", "faiss-cpu")
    none = np.zeros(0, np.int64)
    for captions, found, counts in _searched(faiss, right.text32_MD, right.image32_ND, right.text_band_M):
        wrong = right.caption_image_M[captions[found[0]]] != found[1]
        pairs = found[1][wrong], captions[found[0][wrong]]
        sure = counts[wrong]
        text_counts = np.bincount(found[0][wrong][sure], minlength=len(captions))
        yield Counted(none, none, captions, text_counts, (none, none), (pairs[0][~sure], pairs[1][~sure]))
    for images, found, counts in _searched(faiss, right.image32_ND, right.text32_MD, right.image_band_N):
        wrong = right.caption_image_M[found[1]] != images[found[0]]
        pairs = images[found[0][wrong]], found[1][wrong]
        sure = counts[wrong]
        image_counts = np.bincount(found[0][wrong][sure], minlength=len(images))
        yield Counted(images, image_counts, none, none, (pairs[0][~sure], pairs[1][~sure]), (none, none))


def _searched(
    faiss: Any, query_QD: np.ndarray, base_KD: np.ndarray, band_Q: Band
) -> Iterator[tuple[np.ndarray, Pairs, np.ndarray]]:
    """Queries, the (place among them, neighbour) that may count, and which of these certainly do.

    A query is done when its last neighbour scores below its band; the others are asked again for four times as many.
    """
    index = faiss.IndexFlatIP(base_KD.shape[1])
    index.add(base_KD)
    waiting, k = np.arange(len(query_QD)), min(FIRST_NEIGHBOURS, len(base_KD))
    while len(waiting):
        again = []
        width = max(1, BLOCK_SCORES // k)
        for start in range(0, len(waiting), width):
            queries = waiting[start : start + width]
            scores_Qk, neighbours_Qk = index.search(query_QD[queries], k)
            done = (scores_Qk[:, -1] < band_Q.low[queries]) | (k == len(base_KD))
            again.append(queries[~done])
            queries, scores_Qk, neighbours_Qk = queries[done], scores_Qk[done], neighbours_Qk[done]
            places = np.nonzero(scores_Qk >= band_Q.low[queries, None])
            sure = scores_Qk[places] > band_Q.high[queries[places[0]]]
            yield queries, (places[0], neighbours_Qk[places]), sure
        waiting, k = np.concatenate(again), min(4 * k, len(base_KD))


def _auto(right: Right) -> Iterator[Counted]:
    """A GPU where torch is in use already and has one, else numpy, which on a processor is the fastest of them."""
    torch = sys.modules.get("torch")
    return _torch(right) if torch is not None and torch.cuda.is_available() else _numpy(right)


ENGINES: dict[str, Callable[[Right], Iterator[Counted]]] = {
    "auto": _auto,
    "numpy": _numpy,
    "torch": _torch,
    "faiss": _faiss,
}


def _other(engine: str) -> Callable[[Right], Iterator[Counted]]:
    raise ConfigError(f"there is no engine {engine!r} for ranks", nearest(engine, ENGINES))


def _library(name: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ClipletError(
            f"ranks by {name} need the package {package}, which is not installed",
            f"pip install {package}; or leave the engine to cliplet.",
        ) from None
