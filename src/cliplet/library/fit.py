"""How well a picture fits a query, judged by other queries. Q background queries, K pictures, S pictures of a sample.

A cosine says little by itself: what is high depends on the model, the library and the kind of query. So a score is held
against the best ones of a background of some 500 everyday queries: `fit` is the part of them whose best picture in the
library is less close to them than this picture is to this query. Judging by a bank of other queries is an idea of
Bogolin et al. (Cross Modal Retrieval with Querybank Normalisation, 2022), who use it to rank.

Nothing fits a sentence where pictures come no closer to it than to most sentences that no photograph shows. Of the
ways that were tried to tell the two apart (docs/results.md, Search) the closeness of the nearest pictures was the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cliplet.errors import ConfigError
from cliplet.library.background import unseen_sentences
from cliplet.library.records import Identity
from cliplet.library.store import Calibration, Store

if TYPE_CHECKING:
    from cliplet.runtime.encoder import Encoder

SAMPLE = 1000  # pictures of a library by which spreads are measured, and queries that hold pictures are judged
AT_ONCE = 20_000  # pictures whose vectors are held in memory
LOOKED_AT = 10  # pictures, the nearest, by which it is judged whether anything fits
UNSEEN_SHARE = 0.85  # of sentences that fit nothing, those that are to be told so
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
    model: Identity | None = None  # of the features, where it is known


def combine(parts: Sequence[Part], calibration: Calibration, model: Identity | None = None) -> Combined:
    """The weighted sum of features, each kind divided by how far its cosines spread. Raises ConfigError where the
    terms cancel."""
    total_D = sum(_scaled(part, calibration) * part.feature_D for part in parts)
    length = float(np.linalg.norm(total_D))
    if length < 1e-6:
        raise ConfigError("the terms of the query cancel each other", "Change their weights.")
    return Combined(np.asarray(total_D / length, dtype=np.float32), tuple(parts), model)


def fits(
    query: Combined, score_K: np.ndarray, calibration: Calibration, sample: Callable[[], np.ndarray]
) -> np.ndarray:
    """(K,) from 0 to 100, of pictures with these scores. `sample` gives features of pictures (S, D)."""
    tops = calibration.tops if only_sentences(query) else _tops_of_such(query, calibration, sample())
    if not len(tops):
        return np.zeros(len(score_K))
    return 100.0 * np.searchsorted(tops, score_K) / len(tops)


def closeness(score_K: Sequence[float] | np.ndarray) -> float:
    """How close a library comes to a query, by the scores of its nearest pictures, the best first."""
    nearest = np.asarray(score_K[:LOOKED_AT], dtype=np.float64)
    return float((nearest[0] + nearest.mean()) / 2)


def only_sentences(query: Combined) -> bool:
    """Whether a query is a sentence, or a sum of some, as the everyday queries are."""
    return all(not part.picture and part.weight > 0 for part in query.parts)


def _tops_of_such(query: Combined, calibration: Calibration, sample_SD: np.ndarray) -> np.ndarray:
    """The best scores of queries that are made like this one, of everyday queries and pictures of the library, with
    the pictures of the sample; ascending."""
    only_pictures = all(part.picture for part in query.parts)
    texts_QD = sample_SD if only_pictures else calibration.background_QD
    if not len(texts_QD) or not len(sample_SD):
        return np.empty(0)
    random = np.random.default_rng(0)
    total_QD = np.zeros_like(texts_QD)
    taken = []
    for part in query.parts:
        others = sample_SD if part.picture else texts_QD
        rows = random.integers(0, len(others), len(texts_QD))
        taken += [rows] if part.picture else []
        total_QD += _scaled(part, calibration) * others[rows]
    total_QD /= np.maximum(np.linalg.norm(total_QD, axis=1, keepdims=True), 1e-6)
    score_QS = total_QD @ sample_SD.T
    for rows in taken:
        score_QS[np.arange(len(rows)), rows] = -1.0  # a picture that is in the query itself is no find
    return np.sort(score_QS.max(axis=1))


def _scaled(part: Part, calibration: Calibration) -> float:
    return part.weight / (calibration.image_spread if part.picture else calibration.text_spread)


def is_stale(calibration: Calibration, pictures: int) -> bool:
    """Whether a library has changed so much since that it is to be calibrated anew."""
    return not calibration.tops or not pictures / STALE <= calibration.rows <= pictures * STALE


def unseen_features(encoder: Encoder) -> np.ndarray:
    """Features of the sentences that fit no photograph (U, D)."""
    return encoder.encode_text(unseen_sentences())


def calibrate(store: Store, background_QD: np.ndarray, unseen_UD: np.ndarray) -> Calibration:
    """Measures a library. `background_QD`: features of everyday queries. Where no picture has a vector there is nothing
    to measure, and it is stale at once."""
    sample_SD = store.sample(SAMPLE)
    if not len(sample_SD):
        return Calibration(background_QD=background_QD)
    image_SS = sample_SD @ sample_SD.T
    calibration = Calibration(
        background_QD=background_QD,
        text_spread=_spread(background_QD @ sample_SD.T),
        image_spread=_spread(image_SS[~np.eye(len(sample_SD), dtype=bool)]),
        rows=len(store),
    )
    best_of = _best_of(store)
    calibration.tops = sorted(scores[0] for scores in best_of(background_QD, 1))
    unseen = best_of(unseen_UD, LOOKED_AT)
    calibration.least_fit = float(np.quantile([closeness(scores) for scores in unseen], UNSEEN_SHARE))
    return calibration


def _best_of(store: Store) -> Callable[[np.ndarray, int], list[list[float]]]:
    """What gives the k best scores of each of some queries, as a search would. Of a library that is not large the
    vectors are taken at once, which is many times quicker than hundreds of searches: it is done while a run goes on."""
    if len(store) > AT_ONCE:
        return lambda query_QD, k: [[one.score for one in store.nearest(query_D, k)] for query_D in query_QD]
    all_ND = store.sample(AT_ONCE)
    image_ND = all_ND[list({one_D.tobytes(): row for row, one_D in enumerate(all_ND)}.values())]  # copies are one

    def best_of(query_QD: np.ndarray, k: int) -> list[list[float]]:
        score_QN = query_QD @ image_ND.T
        k = min(k, score_QN.shape[1])
        return np.sort(np.partition(score_QN, -k, axis=1)[:, -k:], axis=1)[:, ::-1].tolist()

    return best_of


def _spread(cosines: np.ndarray) -> float:
    return max(float(cosines.std()), 1e-3) if cosines.size > 1 else 1.0
