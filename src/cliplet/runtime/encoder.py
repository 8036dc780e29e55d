"""The one thing that evaluation, library and service know of a model: pictures and sentences to arrays."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from cliplet import model_folder
from cliplet.config import PreprocessConfig
from cliplet.data.images import ImageLike
from cliplet.errors import ImageError
from cliplet.runtime.engines import OPEN_CLIP, Engine, TorchEngine
from cliplet.runtime.preprocess import preprocess_image
from cliplet.runtime.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


def load(source: str | Path) -> Encoder:
    """Opens a model folder: `load("runs/demo/model").encode_text(["a red boat"])`, or an OpenCLIP model by
    `open_clip:ARCHITECTURE/PRETRAINED`, where the second is a name of OpenCLIP's or a file of weights.

    Raises ModelError for a folder that is no good, or when nothing installed can run it.
    """
    if str(source).startswith(OPEN_CLIP):
        engine = TorchEngine.open(source)
        return Encoder(engine, engine.model.tokenizer, engine.model.config.preprocess, engine.model.config.embed_dim)
    description = model_folder.read_description(source)
    tokenizer = Tokenizer.from_file(Path(source) / model_folder.TOKENIZER, description.model.text.context_length)
    return Encoder(TorchEngine.open(source), tokenizer, description.model.preprocess, description.model.embed_dim)


class Encoder:
    """Pictures and sentences to unit vectors in one space. N inputs, D embed_dim."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, preprocess: PreprocessConfig, embed_dim: int):
        self.engine = engine
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.embed_dim = embed_dim

    def encode_image(
        self,
        images: Sequence[ImageLike],
        *,
        batch_size: int = 64,
        failed: dict[int, ImageError] | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(N, D) float32 of unit length; row i is input i. Inputs are paths, Pillow images, arrays or encoded bytes.

        A picture that cannot be read raises ImageError naming it; with a dict for `failed`, it is put there
        under its row instead, and the row is NaN. Pictures are decoded in threads while the engine computes.
        `progress` hears (done, N) after each batch.
        """
        if isinstance(images, (str, bytes, Path)) or not isinstance(images, Sequence):
            raise TypeError("encode_image takes a list of pictures; put a single one in brackets")
        features_ND = np.full((len(images), self.embed_dim), np.nan, dtype=np.float32)
        rows: list[int] = []
        pixels: list[np.ndarray] = []
        for row, result in enumerate(self._decoded(images, ahead=2 * batch_size)):
            if isinstance(result, ImageError):
                if failed is None:
                    raise ImageError(f"input {row}: {result.message}", result.hint)
                failed[row] = result
            else:
                rows.append(row)
                pixels.append(result)
            if pixels and (len(pixels) == batch_size or row == len(images) - 1):
                features_ND[rows] = self.engine.image_features(np.stack(pixels))
                rows, pixels = [], []
                if progress:
                    progress(row + 1, len(images))
        return features_ND

    def encode_text(
        self, texts: Sequence[str], *, batch_size: int = 256, progress: Progress | None = None
    ) -> np.ndarray:
        """(N, D) float32 of unit length; row i is text i. A text beyond the context length is cut.

        `progress` hears (done, N) after each batch.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError("encode_text takes a list of sentences; put a single one in brackets")
        features_ND = np.empty((len(texts), self.embed_dim), dtype=np.float32)
        # Texts of like length together: a batch is as wide as its longest text.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            features_ND[rows] = self.engine.text_features(*self.tokenizer([texts[row] for row in rows]))
            if progress:
                progress(start + len(rows), len(texts))
        return features_ND

    def _decoded(self, images: Sequence[ImageLike], ahead: int) -> Iterator[np.ndarray | ImageError]:
        """Model-ready pixels of each picture in order, or the reason why there are none."""

        def decode(image: ImageLike) -> np.ndarray | ImageError:
            try:
                return preprocess_image(image, self.preprocess)
            except ImageError as error:
                return error

        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        try:
            remaining = iter(images)
            queue = deque(pool.submit(decode, image) for image in islice(remaining, ahead))
            while queue:
                yield queue.popleft().result()
                queue.extend(pool.submit(decode, image) for image in islice(remaining, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
