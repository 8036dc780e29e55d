"""How many score at least as high as the right answer: exact counts from products in single precision.

A product in float32 rounds, and every library rounds otherwise. So scores are counted in float32 only where the
rounding cannot matter; the few that lie within its bound of the right answer's score are computed again in float64. The
counts then depend on the features alone, whichever engine multiplied. N images, M captions, B images of a block,
P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from cliplet.errors import ClipletError, ConfigError, nearest
from cliplet.evaluation import right_answers
from cliplet.evaluation.right_answers import Band, Pairs, Right, blocks_of, pair_scores, right_scores

DENSE = 0.02  # share of a block that is unsure, beyond which all of it is computed again by one product
FIRST_NEIGHBOURS = 32  # that FAISS is asked for; for queries whose right answer is not among them, ever more
NO_PAIRS = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class Counted(NamedTuple):
    """One block's certain counts, and the pairs whose scores must be computed again for each direction."""

    images: np.ndarray  # (B,) places of the pictures that `image_counts_B` belongs to
    image_counts_B: np.ndarray
    captions: np.ndarray  # likewise for captions
    text_counts_B: np.ndarray
    image_pairs: Pairs
    text_pairs: Pairs


def counts_above(
    image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray, engine: str = "numpy"
) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the captions of others that score at least as high as its best own one, (N,); for each caption
    the other pictures that score at least as high as its own, (M,).

    Scores closer than float32's resolution at the right answer's lengths are ties (of float64 features: closer than
    the rounding of their products), and ties count. `engine`: numpy, torch or faiss. Arguments must be checked
    already. Raises ConfigError for another engine, ClipletError for one that is not installed.
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
            above = pair_scores(right.image_ND, right.text_MD, pairs) >= floor[pairs[place]]
            counts += np.bincount(pairs[place][above], minlength=len(counts))
    return image_counts_N, text_counts_M


def _numpy(right: Right) -> Iterator[Counted]:
    texts_DM = right.text32_MD.T
    image_low, image_high = right.image_band_N
    for block, own in blocks_of(right):
        scores_BM = right.image32_ND[block] @ texts_DM
        scores_BM[own] = -np.inf  # a picture's own captions are never wrong answers, nor a caption's own picture
        # Two comparisons for each direction; where their counts differ, some scores lie in between.
        image_counts_B = (scores_BM > image_high[block, None]).sum(1, dtype=np.int32)
        unsure_B = (scores_BM >= image_low[block, None]).sum(1, dtype=np.int32) - image_counts_B
        text_counts_M = (scores_BM > right.text_band_M.high).sum(0, dtype=np.int32)
        unsure_M = (scores_BM >= right.text_band_M.low).sum(0, dtype=np.int32) - text_counts_M
        if max(unsure_B.sum(), unsure_M.sum()) > DENSE * scores_BM.size:
            yield _exact_block(right, block, own)
            continue
        rows, columns = np.flatnonzero(unsure_B), np.flatnonzero(unsure_M)
        some, low, high = block.start + rows, *(band[columns] for band in right.text_band_M)
        of_rows = _between(scores_BM[rows], image_low[some, None], image_high[some, None])
        of_columns = _between(scores_BM[:, columns], low, high)
        yield Counted(
            np.arange(block.start, block.stop),
            image_counts_B,
            np.arange(len(right.text_MD)),
            text_counts_M,
            (some[of_rows[0]], of_rows[1]),
            (block.start + of_columns[0], columns[of_columns[1]]),
        )


def _exact_block(right: Right, block: slice, own: Pairs) -> Counted:
    """A block whose scores are mostly unsure, as a collapsed model's are: all of it in float64."""
    images_BD = right.image_ND[block].astype(np.float64)
    image_counts_B, text_counts = np.zeros(len(images_BD), np.int64), []
    width = max(1, right_answers.BLOCK_SCORES // (2 * len(images_BD)))
    for start in range(0, len(right.text_MD), width):
        stop = min(start + width, len(right.text_MD))
        scores_BC = images_BD @ right.text_MD[start:stop].astype(np.float64).T
        here = (own[1] >= start) & (own[1] < stop)
        scores_BC[own[0][here], own[1][here] - start] = -np.inf
        image_counts_B += (scores_BC >= right.image_floor_N[block, None]).sum(1)
        text_counts.append((scores_BC >= right.text_floor_M[start:stop]).sum(0))
    images, captions = np.arange(block.start, block.stop), np.arange(len(right.text_MD))
    return Counted(images, image_counts_B, captions, np.concatenate(text_counts), NO_PAIRS, NO_PAIRS)


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
    captions = np.arange(len(right.text_MD))
    for block, own in blocks_of(right):
        with _whole_float32(torch):
            scores_BM = images_ND[block] @ texts_MD.T
        scores_BM[moved(own[0]), moved(own[1])] = -torch.inf
        over_BM, under_BM = scores_BM > image_high[block, None], scores_BM >= image_low[block, None]
        between_BM = under_BM ^ over_BM
        if between_BM.sum() > DENSE * between_BM.numel():
            yield _exact_block(right, block, own)
            continue
        image_counts_B, (rows, of_rows) = over_BM.sum(1), torch.nonzero(between_BM).T
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


@contextmanager
def _whole_float32(torch: Any) -> Iterator[None]:
    """Products of float32 in float32: the bound is its, and TensorFloat32 and bfloat16 round more."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody uses the newer settings, which do not mix with this one
        settings = [backend.matmul for backend in (torch.backends.cuda, torch.backends.mkldnn)]
        newer = [setting.fp32_precision for setting in settings]
        for setting in settings:
            setting.fp32_precision = "ieee"
        try:
            yield
        finally:
            for setting, value in zip(settings, newer, strict=True):
                setting.fp32_precision = value
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _faiss(right: Right) -> Iterator[Counted]:
    """FAISS's flat index of inner products, one direction after the other."""
    faiss = _library("faiss", "faiss-cpu")
    none = NO_PAIRS[0]
    for captions, found, counts in _searched(faiss, right.text32_MD, right.image32_ND, right.text_band_M):
        wrong = right.caption_image_M[captions[found[0]]] != found[1]
        pairs = found[1][wrong], captions[found[0][wrong]]
        sure = counts[wrong]
        text_counts = np.bincount(found[0][wrong][sure], minlength=len(captions))
        yield Counted(none, none, captions, text_counts, NO_PAIRS, (pairs[0][~sure], pairs[1][~sure]))
    for images, found, counts in _searched(faiss, right.image32_ND, right.text32_MD, right.image_band_N):
        wrong = right.caption_image_M[found[1]] != images[found[0]]
        pairs = images[found[0][wrong]], found[1][wrong]
        sure = counts[wrong]
        image_counts = np.bincount(found[0][wrong][sure], minlength=len(images))
        yield Counted(images, image_counts, none, none, (pairs[0][~sure], pairs[1][~sure]), NO_PAIRS)


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
        width = max(1, right_answers.BLOCK_SCORES // k)
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


ENGINES: dict[str, Callable[[Right], Iterator[Counted]]] = {
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
