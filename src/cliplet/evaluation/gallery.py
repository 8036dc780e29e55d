"""Which queries a page shows, and what they found. Nothing is picked by hand, and only the rows that are shown, or
looked at for it, are multiplied. N images, M captions, D embed_dim, Q queries, B queries of a block, K answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cliplet.evaluation.measure import Evaluation
from cliplet.page import GalleryQuery, PictureAnswer, TextAnswer, name_of

PICTURES, CAPTIONS = 5, 5  # answers shown to a text query and to a picture query; a right one beyond them is added
EXAMINED = 2e7  # scores that are looked at for the surest answers of a direction
BLOCK_SCORES = 4 * 2**20

Found = tuple[int, float, bool, int | None]  # a row, its score, whether it is right, its rank where that must be said


def evenly(rows: int, count: int) -> range:
    """About `count` rows, as far apart as each other, from the first on."""
    return range(0, rows, max(1, rows // max(1, count)))[:count]


def text_query(evaluation: Evaluation, caption: int, note: str = "", k: int = PICTURES) -> GalleryQuery:
    """A caption and its k best pictures; its own one with its rank, if it is not among them."""
    own, rank = int(evaluation.caption_image_M[caption]), int(evaluation.text_rank_M[caption])
    scores_N = evaluation.image_ND @ evaluation.text_MD[caption]
    answers = [
        PictureAnswer(evaluation.records[row].image, score, right, place)
        for row, score, right, place in _found(scores_N, np.array([own]), rank, k)
    ]
    if not note and rank > k:
        note = f"The picture that this text belongs to comes at place {rank:,} of {len(scores_N):,}."
    return GalleryQuery(evaluation.captions[caption], None, note, answers)


def picture_query(evaluation: Evaluation, picture: int, note: str = "", k: int = CAPTIONS) -> GalleryQuery:
    """A picture and its k best captions; the best own one with its rank, if none is among them."""
    own_C = np.flatnonzero(evaluation.caption_image_M == picture)
    rank = int(evaluation.image_rank_N[picture])
    scores_M = evaluation.text_MD @ evaluation.image_ND[picture]
    answers = [
        TextAnswer(evaluation.captions[row], score, right, place)
        for row, score, right, place in _found(scores_M, own_C, rank, k)
    ]
    if not note and rank > k:
        note = f"The first caption that belongs to this picture comes at place {rank:,} of {len(scores_M):,}."
    image = evaluation.records[picture].image
    return GalleryQuery(name_of(image), image, note, answers)


def _found(scores_Q: np.ndarray, own: np.ndarray, rank: int, k: int) -> list[Found]:
    """The k best rows, the first right one at the place that `rank` says, and after them if that is beyond k.

    So a page never contradicts the ranks where scores are equal, which count against the model."""
    others_Q = scores_Q.copy()
    others_Q[own] = -np.inf
    most = min(k, len(scores_Q) - len(own))
    best = np.argpartition(-others_Q, most - 1)[:most] if most else np.empty(0, np.int64)
    best = best[np.lexsort((best, -others_Q[best]))]
    own = own[np.argsort(-scores_Q[own], kind="stable")]
    others: list[Found] = [(int(row), float(scores_Q[row]), False, None) for row in best]
    rights: list[Found] = [(int(row), float(scores_Q[row]), True, None) for row in own]
    if rank > k:
        row, score, right, _ = rights[0]
        return [*others, (row, score, right, rank)]
    after = sorted([*others[rank - 1 :], *rights[1:]], key=lambda found: -found[1])
    return [*others[: rank - 1], rights[0], *after][:k]


def surest_texts(evaluation: Evaluation, count: int) -> list[GalleryQuery]:
    """Captions that find their picture first, by the largest lead over the next picture; one a picture."""
    margins = _margins(
        evaluation.text_MD,
        evaluation.image_ND,
        _first(evaluation.text_rank_M, len(evaluation.image_ND)),
        lambda rows: evaluation.caption_image_M[rows][:, None] == np.arange(len(evaluation.image_ND)),
    )
    chosen = _one_a_picture(margins, evaluation.caption_image_M, count)
    return [text_query(evaluation, row, f"Ahead of the next by {lead:.3f}.", CAPTIONS) for row, lead in chosen]


def surest_pictures(evaluation: Evaluation, count: int) -> list[GalleryQuery]:
    """Pictures that find a caption of their own first, by the largest lead over the best caption of another one."""
    margins = _margins(
        evaluation.image_ND,
        evaluation.text_MD,
        _first(evaluation.image_rank_N, len(evaluation.text_MD)),
        lambda rows: rows[:, None] == evaluation.caption_image_M,
    )
    chosen = _one_a_picture(margins, np.arange(len(evaluation.image_ND)), count)
    return [picture_query(evaluation, row, f"Ahead of the next by {lead:.3f}.") for row, lead in chosen]


def _first(rank_Q: np.ndarray, answers: int) -> np.ndarray:
    """Queries whose right answer comes first; evenly chosen ones, where all would be too much work."""
    rows = np.flatnonzero(rank_Q == 1)
    return rows[:: max(1, -(-len(rows) * answers // int(EXAMINED)))]


def _margins(
    query_QD: np.ndarray, answer_AD: np.ndarray, rows: np.ndarray, is_own: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[int, float]]:
    """For each of the rows its best right score less its best wrong one, largest first."""
    leads = [np.empty(0)]
    at_once = max(1, BLOCK_SCORES // len(answer_AD))
    for start in range(0, len(rows), at_once):
        block = rows[start : start + at_once]
        scores_BA, own_BA = query_QD[block] @ answer_AD.T, is_own(block)
        right_B = np.where(own_BA, scores_BA, -np.inf).max(axis=1)
        leads.append(right_B - np.where(own_BA, -np.inf, scores_BA).max(axis=1))
    lead_Q = np.concatenate(leads)
    for place in np.argsort(-lead_Q, kind="stable"):
        if np.isfinite(lead_Q[place]):  # it is not where there are no others
            yield int(rows[place]), float(lead_Q[place])


def _one_a_picture(
    ordered: Iterator[tuple[int, float]], picture_Q: np.ndarray, count: int
) -> Sequence[tuple[int, float]]:
    seen: dict[int, tuple[int, float]] = {}
    for row, value in ordered:
        if len(seen) == count:
            break
        seen.setdefault(int(picture_Q[row]), (row, value))
    return list(seen.values())


def worst_texts(evaluation: Evaluation, count: int) -> list[GalleryQuery]:
    """Captions whose picture comes last, one a picture; none that come first."""
    return [
        text_query(evaluation, row, k=CAPTIONS - 1)
        for row in _worst(evaluation.text_rank_M, evaluation.caption_image_M, count)
    ]


def worst_pictures(evaluation: Evaluation, count: int) -> list[GalleryQuery]:
    """Pictures whose first own caption comes last; none where it comes first."""
    return [
        picture_query(evaluation, row, k=3)
        for row in _worst(evaluation.image_rank_N, np.arange(len(evaluation.image_ND)), count)
    ]


def _worst(rank_Q: np.ndarray, picture_Q: np.ndarray, count: int) -> list[int]:
    ordered = ((int(row), float(rank_Q[row])) for row in np.argsort(-rank_Q, kind="stable") if rank_Q[row] > 1)
    return [row for row, _ in _one_a_picture(ordered, picture_Q, count)]


def some_pairs(evaluation: Evaluation, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some pictures, evenly chosen, with the first caption of each: rows of pictures (P,), rows of captions (P,), and
    the cosines of all of them (P captions, P pictures)."""
    pictures = np.array(evenly(len(evaluation.image_ND), count))
    first_N = np.full(len(evaluation.image_ND), -1)
    first_N[evaluation.caption_image_M[::-1]] = np.arange(len(evaluation.text_MD))[::-1]  # the last one written stays
    captions = first_N[pictures]
    return pictures, captions, evaluation.text_MD[captions] @ evaluation.image_ND[pictures].T
