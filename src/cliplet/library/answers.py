"""What a library answers, from what its store finds: hits, how well they fit, and pictures by their captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cliplet.library.fit import Combined, closeness, fits, only_sentences
from cliplet.library.records import CaptionHit, Hit, Hits, Picture
from cliplet.library.store import Found, Store
from cliplet.library.where import Where


def judged(store: Store, combined: Combined, found: Sequence[Found], sample: Callable[[], np.ndarray]) -> list[Hit]:
    """What was found, with fits. `sample` gives features of pictures of the library (S, D)."""
    score_K = np.array([one.score for one in found])
    fit_K = fits(combined, score_K, store.calibration, sample)
    return [
        Hit(one.picture.id, one.picture.path, one.score, round(float(fit), 1), one.picture, copies=one.copies)
        for one, fit in zip(found, fit_K, strict=True)
    ]


def nothing_fits(store: Store, combined: Combined, scores: Sequence[float]) -> bool:
    """Whether what was found, with these scores, the best first, is no closer to a sentence than the library is to most
    that no photograph shows. Of other queries nothing is known to that end."""
    return bool(scores) and only_sentences(combined) and closeness(scores) < store.calibration.least_fit


def by_captions(store: Store, combined: Combined, k: int, offset: int, where: Where | None, total: int | None) -> Hits:
    """Pictures by their captions: each with the one that is closest, and files of the same content as one."""
    if total == 0:
        return Hits([], False, total)
    asked, best, looked_at = 2 * (offset + k), dict[str, tuple[int, CaptionHit]](), set[str]()
    while True:
        captions = caption_hits(store, combined, asked, where)
        more = [one for one in captions if one.text not in looked_at]
        having = store.captioned([one.text for one in more], where)
        for one in more:
            for content, id in having.get(one.text, []):
                best.setdefault(content, (id, one))
        if len(best) >= offset + k or len(captions) < asked:
            break
        looked_at.update(one.text for one in more)
        asked = max(2 * asked, round(1.25 * asked * (offset + k) / max(1, len(best))))
    found = dict(list(best.values())[offset : offset + k])
    groups = store.alike(list(found), where)
    by_id = {picture.id: (picture, group) for group in groups for picture in group if picture.id in found}
    return Hits([_by_caption(*by_id[id], found[id]) for id in found if id in by_id], False, total)


def caption_hits(store: Store, combined: Combined, k: int, where: Where | None = None) -> list[CaptionHit]:
    """The k captions that are closest, of the pictures that pass."""
    found = store.nearest_captions(combined.vector_D, k, where, combined.model)
    background_Q = np.sort(store.calibration.background_QD @ combined.vector_D) if found else np.empty(0)
    share_K = np.searchsorted(background_Q, [one.score for one in found]) / max(len(background_Q), 1)
    return [
        CaptionHit(one.text, one.score, round(100 * float(share), 1), one.id, one.path)
        for one, share in zip(found, share_K, strict=True)
    ]


def _by_caption(picture: Picture, group: list[Picture], caption: CaptionHit) -> Hit:
    copies = tuple(one.path for one in group if one.id != picture.id)
    return Hit(picture.id, picture.path, caption.score, caption.fit, picture, caption.text, copies)
