"""An Encoder that looks up what frozen towers give, and runs heads alone. N inputs, D embed_dim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from cliplet.data.batch import as_tensor
from cliplet.data.feature_store import FeatureStore
from cliplet.data.images import ImageLike
from cliplet.data.records import Records
from cliplet.errors import ImageError
from cliplet.models import DualEncoder
from cliplet.runtime.encoder import Encoder, Progress
from cliplet.training.step import autocast
from cliplet.training.tower_features import evaluating

PROJECTED_AT_ONCE = 512


class Lookup:
    """Stored features by what they are of: pictures by their places, captions by their words."""

    def __init__(self, records: Records, image: FeatureStore | None, text: FeatureStore | None):
        self.image, self.text = image, text
        self._places = {place: row for row, place in enumerate(records.images())} if image is not None else {}
        self._captions = {caption: row for row, caption in enumerate(records.captions())} if text is not None else {}

    def pictures(self, places: Sequence[ImageLike]) -> np.ndarray | None:
        """Rows of the image store; None where one is not in it."""
        return _rows(self._places, places)

    def captions(self, captions: Sequence[str]) -> np.ndarray | None:
        """Rows of the text store; None where one is not in it."""
        return _rows(self._captions, captions)


class LookingUp(Encoder):
    """An Encoder that runs heads alone where it finds what a tower gives for all that is asked."""

    def __init__(self, plain: Encoder, model: DualEncoder, lookup: Lookup, device: torch.device, precision: str):
        super().__init__(plain.engine, plain.tokenizer, plain.preprocess, plain.embed_dim)
        self._model, self._lookup, self._device, self._precision = model, lookup, device, precision

    def encode_image(
        self,
        images: Sequence[ImageLike],
        *,
        batch_size: int | None = None,
        failed: dict[int, ImageError] | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        store = self._lookup.image
        rows = self._lookup.pictures(images) if store is not None else None
        if store is None or rows is None:
            return super().encode_image(images, batch_size=batch_size, failed=failed, progress=progress)

        def project(some: np.ndarray) -> torch.Tensor:
            return self._model.project_image(self._tensor(store.rows(some)))

        features_ND = self._projected(rows, project, progress)
        for at in np.flatnonzero(~store.good_N[rows]).tolist():
            reason = store.reasons[int(rows[at])]
            if failed is None:
                raise ImageError(f"input {at}: {reason}")
            failed[at], features_ND[at] = ImageError(reason), np.nan
        return features_ND

    def encode_text(
        self, texts: Sequence[str], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        store = self._lookup.text
        rows = self._lookup.captions(texts) if store is not None else None
        if store is None or rows is None:
            return super().encode_text(texts, batch_size=batch_size, progress=progress)

        def project(some: np.ndarray) -> torch.Tensor:
            if not store.of_tokens:
                return self._model.project_text(self._tensor(store.rows(some)))
            states, mask = store.states(some)
            return self._model.project_text(self._tensor(states), self._tensor(mask))

        return self._projected(rows, project, progress)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return as_tensor(array).to(self._device)

    def _projected(
        self, rows: np.ndarray, project: Callable[[np.ndarray], torch.Tensor], progress: Progress | None
    ) -> np.ndarray:
        """Unit features of some rows of a store, by the head that reads them."""
        features_ND = np.empty((len(rows), self.embed_dim), np.float32)
        with evaluating(self._model), torch.inference_mode(), autocast(self._device, self._precision):
            for start in range(0, len(rows), PROJECTED_AT_ONCE):
                block = slice(start, start + PROJECTED_AT_ONCE)
                features_ND[block] = project(rows[block]).cpu().numpy()
                if progress:
                    progress(min(start + PROJECTED_AT_ONCE, len(rows)), len(rows))
        return features_ND


def _rows(known: Mapping[str, int], asked: Sequence[object]) -> np.ndarray | None:
    rows = [known.get(one, -1) if isinstance(one, str) else -1 for one in asked]
    return None if -1 in rows else np.asarray(rows, np.int64)
