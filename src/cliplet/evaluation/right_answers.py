"""The right answers' scores, exactly, and how far from them float32 can be trusted.

N images, M captions, D their width, B images of a block, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BLOCK_SCORES = 8 * 2**20  # of the similarity matrix, which is never held whole
PAIRS_AT_ONCE = 16 * 2**10  # that are computed again one by one

Pairs = tuple[np.ndarray, np.ndarray]  # places of images and of captions, (P,) each


class Band(NamedTuple):
    """Float32 scores above `high` certainly count, those below `low` certainly do not."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Right:
    """The right answers' scores in float64, less what counts as a tie, and their bands in float32."""

    image_ND: np.ndarray  # as they came, but for a power of two
    text_MD: np.ndarray
    image32_ND: np.ndarray
    text32_MD: np.ndarray
    caption_image_M: np.ndarray
    image_floor_N: np.ndarray  # of each picture's best own caption
    text_floor_M: np.ndarray  # of each caption's own picture
    image_band_N: Band
    text_band_M: Band


def right_scores(image_ND: np.ndarray, text_MD: np.ndarray, caption_image_M: np.ndarray) -> Right:
    """The scores of the right answers, and how far from them float32 can be trusted."""
    image_ND, text_MD = _scaled(image_ND), _scaled(text_MD)
    own_M = pair_scores(image_ND, text_MD, (caption_image_M, np.arange(len(text_MD))))
    image_norm_N, text_norm_M = (np.linalg.norm(features, axis=1) for features in (image_ND, text_MD))
    # What a tie is depends on the two that belong together, not on how long other rows are.
    dimensions, both64 = image_ND.shape[1], image_ND.dtype == text_MD.dtype == np.float64
    resolution = (dimensions + 8) * np.finfo(np.float64).eps if both64 else np.finfo(np.float32).eps
    tie_M = resolution * image_norm_N.astype(np.float64)[caption_image_M] * text_norm_M
    image_floor_N = np.full(len(image_ND), -np.inf)
    np.maximum.at(image_floor_N, caption_image_M, own_M - tie_M)
    # Higham's bound for a dot product of D terms in any order (Accuracy and Stability of Numerical Algorithms, 3.1) is
    # D/2 resolutions; the rest is for rounding features and thresholds themselves to float32.
    largest = float(image_norm_N.max()) * float(text_norm_M.max())
    rounding = (dimensions / 2 + 4) * float(np.finfo(np.float32).eps) * largest

    def band(floor: np.ndarray) -> Band:
        return Band((floor - rounding).astype(np.float32), (floor + rounding).astype(np.float32))

    text_floor_M = own_M - tie_M
    image32_ND, text32_MD = (np.ascontiguousarray(features, np.float32) for features in (image_ND, text_MD))
    floors = image_floor_N, text_floor_M
    return Right(image_ND, text_MD, image32_ND, text32_MD, caption_image_M, *floors, *map(band, floors))


def _scaled(features: np.ndarray) -> np.ndarray:
    """The rows, all times one power of two, with the largest number between 1 and 2: products neither overflow nor
    vanish, and no digit changes. As they are where that is so, or nearly."""
    _, exponent = np.frexp(np.abs(features).max())
    return features if -10 <= exponent <= 10 else np.ldexp(features, 1 - exponent)


def pair_scores(image_ND: np.ndarray, text_MD: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) scores in float64."""
    scores_P = np.empty(len(pairs[0]))
    for start in range(0, len(scores_P), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        left, other = image_ND[pairs[0][part]].astype(np.float64), text_MD[pairs[1][part]].astype(np.float64)
        scores_P[part] = np.einsum("pd,pd->p", left, other)
    return scores_P


def blocks_of(right: Right) -> Iterator[tuple[slice, Pairs]]:
    """Blocks of pictures, each with the pairs within it that belong together: (row of the block, caption)."""
    order = np.argsort(right.caption_image_M, kind="stable")
    first = np.searchsorted(right.caption_image_M[order], np.arange(len(right.image_ND) + 1))
    rows = max(1, BLOCK_SCORES // len(right.text_MD))
    for start in range(0, len(right.image_ND), rows):
        stop = min(start + rows, len(right.image_ND))
        captions = order[first[start] : first[stop]]
        yield slice(start, stop), (right.caption_image_M[captions] - start, captions)
