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
from cliplet.runtime.engines import OPEN_CLIP, Engine, TorchEngine, best_model_folder
from cliplet.runtime.preprocess import preprocess_image
from cliplet.runtime.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # sentences to ids and mask, both (N, L) int64


def load(source: str | Path, say: Callable[[str], None] = lambda message: None) -> Encoder:
    """Opens a model folder: `load("runs/demo/model").encode_text(["a red boat"])`; the best model of a run folder; or
    any OpenCLIP model for square pictures by `open_clip:ARCHITECTURE/PRETRAINED`, where the second is a name of
    OpenCLIP's or a file of weights.

    `say` hears which model of a run was taken; `Encoder.source` tells it too. Raises ModelError for a folder that is no
    good, or when nothing installed can run it.
    """
    if str(source).startswith(OPEN_CLIP):
        engine = TorchEngine.open(source)
        model = engine.model
        return Encoder(engine, model.tokenizer, model.config.preprocess, model.config.embed_dim, str(source))
    folder = best_model_folder(source)
    description = model_folder.read_description(folder)
    if folder != Path(source):
        say(f"{source} is a run: its best model is taken, {folder}")
    tokenizer = Tokenizer.from_file(folder / model_folder.TOKENIZER, description.model.text.context_length)
    engine, config = TorchEngine.open(folder), description.model
    return Encoder(engine, tokenizer, config.preprocess, config.embed_dim, str(folder))


class Encoder:
    """Pictures and sentences to unit vectors in one space. N inputs, D embed_dim."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenize, preprocess: PreprocessConfig, embed_dim: int, source: str = ""
    ):
        """`source`: the model folder that was opened, or `open_clip:...`; nothing for a model that was not opened."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.embed_dim = embed_dim
        self.source = source

    @property
    def logit_scale(self) -> float | None:
        """What the model multiplies cosines by, the inverse of its temperature; None where that is unknown, or depends
        on the batch."""
        return self.engine.logit_scale

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
