"""An Encoder over records: embed, leave out what cannot be read, measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError, ImageError
from cliplet.evaluation.retrieval import retrieval_metrics
from cliplet.runtime.encoder import Encoder


@dataclass(frozen=True)
class Evaluation:
    """What was measured and the features it was measured on. N images, M captions."""

    metrics: dict[str, float]
    records: list[ImageText]  # those whose picture could be read; row i of image_ND is records[i]
    captions: list[str]
    image_ND: np.ndarray
    text_MD: np.ndarray
    caption_image_M: np.ndarray

    def top_images(self, queries: Sequence[int], k: int = 6) -> list[tuple[str, list[tuple[Path, float, bool]]]]:
        """For each caption row: its text and its k best pictures as (file, cosine, is its own)."""
        answers = []
        for row in queries:
            scores_N = self.image_ND @ self.text_MD[row]
            best = np.argsort(-scores_N, kind="stable")[:k]
            own = self.caption_image_M[row]
            hits = [(Path(self.records[i].image), float(scores_N[i]), bool(i == own)) for i in best]
            answers.append((self.captions[row], hits))
        return answers


def evaluate(
    encoder: Encoder,
    records: Sequence[ImageText],
    quarantine: Quarantine | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Retrieval over all pictures and captions of `records`.

    A picture that cannot be read is left out together with its captions and goes into the `quarantine`; without
    one, it raises ImageError. `progress` hears (done, total) of pictures and captions together.
    """
    captions = [caption for record in records for caption in record.captions]
    total = len(records) + len(captions)
    tell = progress or (lambda done, total: None)
    failed: dict[int, ImageError] = {}
    image_ND = encoder.encode_image(
        [record.image for record in records],
        failed=failed if quarantine is not None else None,
        progress=lambda done, _: tell(done, total),
    )
    if quarantine is not None:
        for row, error in failed.items():
            quarantine.add(records[row].image, error.message)
    good = [row for row in range(len(records)) if row not in failed]
    if not good:
        raise DataError(
            f"none of {len(records)} pictures could be read", next(iter(failed.values())).message if failed else ""
        )
    kept = [records[row] for row in good]
    captions = [caption for record in kept for caption in record.captions]
    text_MD = encoder.encode_text(captions, progress=lambda done, _: tell(len(records) + done, total))
    caption_image_M = np.repeat(np.arange(len(kept)), [len(record.captions) for record in kept])
    image_ND = image_ND[good]
    metrics = retrieval_metrics(image_ND, text_MD, caption_image_M)
    return Evaluation(metrics, kept, captions, image_ND, text_MD, caption_image_M)
