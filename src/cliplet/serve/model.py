"""A model that answers many clients: what they ask at the same time goes through it together. D embed_dim."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from starlette.exceptions import HTTPException

from cliplet.errors import ImageError
from cliplet.serve.batching import Batcher, Remembered
from cliplet.serve.metrics import Metrics
from cliplet.serve.pools import Pools
from cliplet.serve.settings import Settings
from cliplet.serve.uploads import SENT, Upload, upright_size

if TYPE_CHECKING:
    from cliplet.library.records import Identity
    from cliplet.runtime.encoder import Encoder

PICTURES_AT_ONCE = 4  # for which there is memory, whatever their size


class Model:
    """An open model, for one event loop."""

    def __init__(self, encoder: Encoder, identity: Identity, settings: Settings, pools: Pools, metrics: Metrics):
        """`identity`: of the vectors that it makes."""
        self.encoder, self.identity = encoder, identity
        self._pools, self._most_pixels, self._at_once = pools, settings.max_pixels, settings.batch
        self._texts: Batcher[str, np.ndarray] = Batcher(
            self._encode_texts, pools.quick, settings.batch, lambda size: metrics.batch("text", size)
        )
        self._pictures: Batcher[bytes, Upload] = Batcher(
            self._encode_pictures, pools.slow, PICTURES_AT_ONCE, lambda size: metrics.batch("picture", size)
        )
        self._remembered: Remembered[np.ndarray] = Remembered(settings.texts_kept)

    async def text(self, text: str) -> np.ndarray:
        """(D,), of a query: together with those of others, and remembered for the next page of its results."""
        vector_D = self._remembered.get(text)
        if vector_D is None:
            vector_D = await self._texts(text)
            self._remembered.put(text, vector_D)
        return vector_D

    async def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D), of many texts, which let queries pass, and end when nobody waits for them any more."""
        parts = []
        for start in range(0, len(texts), self._at_once):
            span = list(texts[start : start + self._at_once])
            parts.append(np.stack(await self._pools.slow.run(partial(self._encode_texts, span))))
        return np.concatenate(parts)

    async def picture(self, data: bytes) -> Upload:
        """The vector and size of a picture's bytes. Raises ImageError, Refused."""
        return await self._pictures(data)

    def _encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        different = list(dict.fromkeys(texts))
        # As one batch the engine computes them in this very thread.
        rows = dict(zip(different, self.encoder.encode_text(different, batch_size=len(different)), strict=True))
        return [rows[text] for text in texts]

    def _encode_pictures(self, pictures: list[bytes]) -> list[Upload | Exception]:
        """Looks at each before any is decoded; an error belongs to its picture alone."""
        results: list[Upload | Exception | None] = []
        sizes: dict[int, tuple[int, int]] = {}
        for place, data in enumerate(pictures):
            try:
                sizes[place] = upright_size(data, self._most_pixels)
                results.append(None)
            except (HTTPException, ImageError) as error:
                results.append(error)
        good = list(sizes)
        failed: dict[int, ImageError] = {}
        if good:
            sent = [pictures[place] for place in good]
            # As one batch they are decoded and computed in this very thread.
            vectors_ND = self.encoder.encode_image(sent, batch_size=len(sent), failed=failed)
            for row, place in enumerate(good):
                results[place] = _of_sent(failed[row]) if row in failed else Upload(vectors_ND[row], *sizes[place])
        return [result for result in results if result is not None]


def _of_sent(error: ImageError) -> ImageError:
    return ImageError(f"{SENT}: {error.message.partition(': ')[2] or error.message}", error.hint)
