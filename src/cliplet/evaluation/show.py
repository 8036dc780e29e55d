"""One picture and some captions: which of them the model holds to be its own. C captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cliplet.data.images import load_image
from cliplet.drawing import caption_sheet
from cliplet.errors import ConfigError, DataError
from cliplet.results import Result, Strict
from cliplet.runtime.encoder import Encoder

DRAWN = 30  # captions at most; --json has all


class RankedCaption(Strict):
    """One caption and how well it fits."""

    rank: int
    """1 is best; equal cosines stay in the order given."""
    text: str
    """The caption."""
    cosine: float
    """Of its features with the picture's, from -1 to 1."""
    share: float | None
    """Of the softmax over all these captions at the model's temperature, from 0 to 1; null where there is one caption
    only, or the model has no temperature of its own."""


class ShowResult(Result):
    """One picture with captions, ranked."""

    format: str = "cliplet-show"
    """What this object is."""
    model: str
    """The model as it was named."""
    image: str
    """The picture as it was named."""
    logit_scale: float | None
    """What cosines are multiplied by before the softmax, 1 / temperature; null where that depends on the batch."""
    captions: list[RankedCaption]
    """Best first, each once."""


def gather_captions(given: Sequence[str], file: Path | None = None) -> list[str]:
    """The captions given and those of a file, one a line without its empty lines, each once.

    Raises ConfigError for an empty one and where there are none, DataError for a file that is no UTF-8 text.
    """
    for place, caption in enumerate(given, start=1):
        if not caption.strip():
            raise ConfigError(f"caption {place} is empty")
    lines: list[str] = []
    if file:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: is no UTF-8 text: {error.reason} at byte {error.start}") from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    # What the command line could not decode comes as halves of characters, which nothing can write.
    whole = (caption.encode("utf-8", "replace").decode() for caption in [*given, *lines])
    captions = list(dict.fromkeys(caption.strip() for caption in whole if caption.strip()))
    if not captions:
        raise ConfigError("there is no caption", 'Write some behind the picture: "a dog" "a cat", or --captions FILE.')
    return captions


def rank_captions(encoder: Encoder, model: str, image: str, captions: Sequence[str]) -> ShowResult:
    """Ranks the captions by their cosine with the picture. `model` and `image` go into the result as they are named.

    Raises ImageError for a picture that cannot be read.
    """
    image_D = encoder.encode_image([load_image(image)])[0].astype(np.float64)
    cosine_C = encoder.encode_text(list(captions)).astype(np.float64) @ image_D
    scale = encoder.logit_scale
    share_C = _softmax(scale * cosine_C) if scale is not None and len(captions) > 1 else None
    ranked = [
        RankedCaption(
            rank=rank,
            text=captions[row],
            cosine=float(cosine_C[row]),
            share=None if share_C is None else float(share_C[row]),
        )
        for rank, row in enumerate(np.argsort(-cosine_C, kind="stable"), start=1)
    ]
    return ShowResult(model=model, image=image, logit_scale=scale, captions=ranked)


def _softmax(logit_C: np.ndarray) -> np.ndarray:
    power_C = np.exp(logit_C - logit_C.max())
    return power_C / power_C.sum()


def draw(result: ShowResult) -> Image.Image:
    """The picture with its best captions beside it. Raises ImageError if it cannot be read."""
    shown = [(one.text, one.cosine, one.share) for one in result.captions[:DRAWN]]
    return caption_sheet(result.image, shown, " ".join(filter(None, (explained(result), left_out(result)))))


def explained(result: ShowResult) -> str:
    """What the numbers mean, in a sentence."""
    if result.captions[0].share is None:
        return "The number is the cosine. Only cosines of the same model and picture can be compared."
    return (
        "Percent: share of the softmax over these captions alone, at the model's logit scale, "
        f"{result.logit_scale:.1f}; then the cosine. A share says which of them fits best, not whether any does."
    )


def left_out(result: ShowResult) -> str:
    """What is not shown to people, in a sentence; nothing where all is."""
    more = len(result.captions) - DRAWN
    return f"The best {DRAWN} of {len(result.captions):,} captions are shown." if more > 0 else ""
