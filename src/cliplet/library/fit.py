"""How well a picture fits a query, judged by how other queries fit it. Q background queries, K pictures, D dims.

A cosine says little by itself: it depends on the model, and some pictures are close to every sentence. So the score of
a picture is held against those that some 500 everyday queries have with the same picture (the bank of queries of
Bogolin et al., Cross Modal Retrieval with Querybank Normalisation, 2022, used to judge instead of to rank). `fit` is
the part of them that it beats. How many deviations it lies above their mean says whether anything fits at all: the best
picture of a sentence that no photograph shows seldom stands out as far as that of one that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cliplet.errors import ConfigError
from cliplet.library.background import unseen_sentences
from cliplet.library.store import Calibration, Store

if TYPE_CHECKING:
    from cliplet.runtime.encoder import Encoder

SAMPLE = 1000  # pictures of a library by which spreads are measured, and queries by picture are judged
LOOKED_AT = 10  # pictures of a query, the nearest, of which the one that stands out most counts
UNSEEN_SHARE = 0.9  # of sentences that fit nothing, those that are to be told so
STALE = 2.0  # a library that has grown by so much is calibrated anew


class Part(NamedTuple):
    """A term of a query as a feature."""

    weight: float
    picture: bool
    feature_D: np.ndarray


class Combined(NamedTuple):
    """A query as one vector, and as what it is made of."""

    vector_D: np.ndarray  # of unit length
    parts: tuple[Part, ...]


def combine(parts: Sequence[Part], calibration: Calibration) -> Combined:
    """The weighted sum of features, each kind divided by how far its cosines spread. Raises ConfigError where the
    terms cancel."""
    total_D = sum(_scaled(part, calibration) * part.feature_D for part in parts)
    length = float(np.linalg.norm(total_D))
    if length < 1e-6:
        raise ConfigError("the terms of the query cancel each other", "Change their weights.")
    return Combined(np.asarray(total_D / length, dtype=np.float32), tuple(parts))


def judge(
    query: Combined, features_KD: np.ndarray, calibration: Calibration, sample_SD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each picture its fit (K,), 0 to 100, and how many deviations its score lies above the background's mean (K,).

    The background of a query of several terms has everyday queries, and pictures of the library (`sample_SD`), in the
    place of its terms.
    """
    background_QD = _background(query, calibration, sample_SD)
    if not len(background_QD) or not len(features_KD):
        return np.zeros(len(features_KD)), np.zeros(len(features_KD))
    others_KQ = features_KD @ background_QD.T
    score_K = features_KD @ query.vector_D
    fit_K = 100.0 * (others_KQ < score_K[:, None]).mean(axis=1)
    return fit_K, (score_K - others_KQ.mean(axis=1)) / np.maximum(others_KQ.std(axis=1), 1e-6)


def _background(query: Combined, calibration: Calibration, sample_SD: np.ndarray) -> np.ndarray:
    texts_QD = calibration.background_QD
    if len(query.parts) == 1 and query.parts[0].weight > 0:
        return sample_SD if query.parts[0].picture else texts_QD
    if not len(texts_QD) or not len(sample_SD):
        return np.empty((0, len(query.vector_D)), dtype=np.float32)
    random = np.random.default_rng(0)
    total_QD = np.zeros_like(texts_QD)
    for part in query.parts:
        others = sample_SD if part.picture else texts_QD
        total_QD += _scaled(part, calibration) * others[random.integers(0, len(others), len(texts_QD))]
    return total_QD / np.maximum(np.linalg.norm(total_QD, axis=1, keepdims=True), 1e-6)


def _scaled(part: Part, calibration: Calibration) -> float:
    return part.weight / (calibration.image_spread if part.picture else calibration.text_spread)


def is_stale(calibration: Calibration, pictures: int) -> bool:
    """Whether a library has changed so much since that it is to be calibrated anew."""
    return not len(calibration.background_QD) or not pictures / STALE <= calibration.rows <= pictures * STALE


def calibrate(store: Store, encoder: Encoder, background_QD: np.ndarray) -> Calibration:
    """Measures a library that holds pictures. `background_QD`: features of everyday queries."""
    sample_SD = store.sample(SAMPLE)
    image_SS = sample_SD @ sample_SD.T
    calibration = Calibration(
        background_QD=background_QD,
        text_spread=_spread(background_QD @ sample_SD.T),
        image_spread=_spread(image_SS[~np.eye(len(sample_SD), dtype=bool)]),
        rows=len(store),
    )
    best = []
    for feature_D in encoder.encode_text(unseen_sentences()):
        query = combine([Part(1.0, False, feature_D)], calibration)
        found = store.nearest(query.vector_D, LOOKED_AT)
        features_KD = store.features([one.picture.id for one in found])
        best.append(float(judge(query, features_KD, calibration, sample_SD)[1].max()))
    calibration.least_fit = float(np.quantile(best, UNSEEN_SHARE))
    return calibration


def _spread(cosines: np.ndarray) -> float:
    return max(float(cosines.std()), 1e-3) if cosines.size > 1 else 1.0
