"""A library's records as what clients are shown."""

from __future__ import annotations

from cliplet.library.records import CaptionHit, Hit, Picture
from cliplet.serve.forms import CaptionAnswer, HitAnswer, PictureAnswer


def printable(text: str) -> str:
    """A text that JSON can hold: what is no letter, in names that are no UTF-8, becomes an escape, as in `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def hit_answer(hit: Hit) -> HitAnswer:
    """As it goes to the client."""
    picture = hit.picture
    return HitAnswer(
        id=str(hit.id),
        path=printable(hit.path),
        name=printable(picture.name),
        score=hit.score,
        fit=hit.fit,
        width=picture.width,
        height=picture.height,
        taken=picture.taken,
        caption=None if hit.caption is None else printable(hit.caption),
        copies=len(hit.copies),
    )


def caption_answer(hit: CaptionHit) -> CaptionAnswer:
    """As it goes to the client."""
    text, path = printable(hit.text), printable(hit.path)
    return CaptionAnswer(text=text, score=hit.score, fit=hit.fit, id=str(hit.id), path=path)


def picture_answer(picture: Picture) -> PictureAnswer:
    """As it goes to the client."""
    known = {name: getattr(picture, name) for name in PictureAnswer.model_fields}
    texts = {name: printable(value) for name, value in known.items() if isinstance(value, str)}
    lists = {name: [printable(one) for one in known[name]] for name in ("captions", "tags")}
    return PictureAnswer(**{**known, **texts, **lists, "id": str(picture.id)})
