"""The one thing that evaluation, library and service know of a model: pictures and sentences to arrays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cliplet import hub, model_folder
from cliplet.config import PreprocessConfig
from cliplet.errors import ImageError, ModelError, TextCutWarning
from cliplet.runtime.choice import graph_engine, refuse_unknown
from cliplet.runtime.cores import cores
from cliplet.runtime.engines import OPEN_CLIP, Engine, TorchEngine, best_model_folder
from cliplet.runtime.exported import is_exported
from cliplet.runtime.pipeline import in_order
from cliplet.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cliplet.data.images import ImageLike
    from cliplet.runtime.pictures import Block

Progress = Callable[[int, int], None]
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # sentences to ids and mask, both (N, L) int64

TEXTS_AT_ONCE = 16_384  # tokenized and sorted together; of millions the tokens would fill the memory


def load(
    source: str | Path,
    say: Callable[[str], None] = lambda message: None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    dims: int | None = None,
) -> Encoder:
    """Opens a model: `load("runs/demo/model").encode_text(["a red boat"])`.

    `source`: a model folder; a run folder, of which the best model is taken; a name on the Hugging Face hub,
    `owner/name` or `owner/name@revision`; or any OpenCLIP model for square pictures by
    `open_clip:ARCHITECTURE/PRETRAINED`, where the second is a name of OpenCLIP's or a file of weights.

    `engine`: `openvino`, `onnxruntime` or `torch`; `auto` takes the fastest that is installed and whose features are
    right on this processor. The first two need a folder with exported graphs (`cliplet export`). `precision`: `fp32`,
    `bf16` (OpenVINO, twice as fast where the processor has it), or `auto`, which takes bf16 only where no feature moves
    by more than a cosine of 0.9999 allows. `dims`: give features of fewer dimensions, one of those exported.

    `say` hears which model of a run was taken; `Encoder.source` tells it too. Raises ModelError for a folder that is no
    good, a model that cannot be fetched, graphs that were changed, or when nothing installed can run it.
    """
    refuse_unknown(engine, precision)
    if str(source).startswith(OPEN_CLIP):
        if engine not in ("auto", "torch") or dims:
            raise ModelError(
                f"{source}: OpenCLIP's models run on torch, in all their dimensions",
                f"Export it first: cliplet export {source} --out FOLDER.",
            )
        torch_engine = TorchEngine.open(source, precision)
        model = torch_engine.model
        return Encoder(torch_engine, model.tokenizer, model.config.preprocess, model.config.embed_dim, str(source))
    if hub.is_hub_name(source):
        folder = hub.fetched(str(source), weights=engine == "torch")
    else:
        folder = best_model_folder(source)
        if folder != Path(source) and model_folder.is_model_folder(folder):
            say(f"{source} is a run: its best model is taken, {folder}")
    description = model_folder.read_description(folder)
    config = description.model
    tokenizer = Tokenizer.from_file(folder / model_folder.TOKENIZER, config.text.context_length)
    model_folder.refuse_other_tokenizer(folder, description, tokenizer)
    opened: Engine
    if engine != "torch" and is_exported(folder):
        opened = graph_engine(folder, config, engine, precision, dims)
    elif engine in ("auto", "torch"):
        if dims not in (None, config.embed_dim):
            raise ModelError(f"{folder}: only exported graphs give fewer dimensions", "Load it without dims.")
        opened = TorchEngine.open(folder, precision)
    else:
        raise ModelError(
            f"{folder}: holds no exported graphs, which {engine} runs", f"Export the model: cliplet export {folder}"
        )
    return Encoder(opened, tokenizer, config.preprocess, dims or config.embed_dim, str(folder))


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
        self._image_batch: int = getattr(engine, "image_batch", 64)
        self._text_batch: int = getattr(engine, "text_batch", 256)
        self._said_cut = False

    @property
    def logit_scale(self) -> float | None:
        """What the model multiplies cosines by, the inverse of its temperature; None where that is unknown, or depends
        on the batch."""
        return self.engine.logit_scale

    def encode_image(
        self,
        images: Sequence[ImageLike],
        *,
        batch_size: int | None = None,
        failed: dict[int, ImageError] | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(N, D) float32 of unit length; row i is input i. Inputs are paths, Pillow images, arrays or encoded bytes.

        A picture that cannot be read raises ImageError naming it; with a dict for `failed`, it is put there
        under its row instead, and the row is NaN. Pictures are decoded and computed on all cores; `batch_size` is how
        many the engine gets at once, by itself what suits it. `progress` hears (done, N) after each batch.
        """
        if isinstance(images, (str, bytes, Path)) or not isinstance(images, Sequence):
            raise TypeError("encode_image takes a list of pictures; put a single one in brackets")
        features_ND = np.empty((len(images), self.embed_dim), dtype=np.float32)
        size = batch_size or min(self._image_batch, math.ceil(len(images) / cores()) or 1)
        done = 0
        for block in self.encode_image_blocks(images, batch_size=size):
            for row, error in block.failed.items():
                if failed is None:
                    raise ImageError(f"input {done + row}: {error.message}", error.hint)
                failed[done + row] = error
            features_ND[done : done + len(block.features_BD)] = block.features_BD
            done += len(block.features_BD)
            if progress:
                progress(done, len(images))
        return features_ND

    def encode_image_blocks(
        self,
        images: Iterable[Any],
        *,
        batch_size: int | None = None,
        read: Callable[[Any], ImageLike | None] | None = None,
    ) -> Iterator[Block]:
        """The same for any number of pictures, in blocks of `batch_size` rows and in order; memory stays flat.

        Pictures that cannot be read are rows of NaN, named in `Block.failed`. `read`, where it is given, makes a
        picture of each of `images`, or raises ImageError; it is called by the workers. Where it gives None the row is
        NaN.
        """
        from cliplet.runtime.pictures import encode_blocks  # a text query needs no decoder of pictures

        size = batch_size or self._image_batch
        return encode_blocks(self.engine, self.preprocess, images, size, self.embed_dim, read)

    def encode_text(
        self, texts: Sequence[str], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """(N, D) float32 of unit length; row i is text i. A text beyond the context length is cut, of which an
        Encoder warns once.

        `batch_size`: how many the engine gets at once, by itself what suits it. `progress` hears (done, N) after each
        batch.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError("encode_text takes a list of sentences; put a single one in brackets")
        features_ND = np.empty((len(texts), self.embed_dim), dtype=np.float32)
        done = 0
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            span = texts[start : start + TEXTS_AT_ONCE]
            for rows, features in self._text_batches(span, batch_size or self._text_batch):
                features_ND[[start + row for row in rows]] = features
                done += len(rows)
                if progress:
                    progress(done, len(texts))
        return features_ND

    def _text_batches(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Rows of `texts` and their features. Texts of like length go together: a batch is as wide as its longest."""
        if isinstance(self.tokenizer, Tokenizer):
            tokenizer = self.tokenizer
            ids, cut = tokenizer.encode(texts)
            if cut and not self._said_cut:
                self._said_cut = True
                warnings.warn(
                    f"texts of more than {tokenizer.context_length} tokens are cut to that many "
                    f"(here {cut:,} of {len(texts):,}); this is said once",
                    TextCutWarning,
                    stacklevel=3,
                )
            lengths = [len(one) for one in ids]

            def tokens(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
                return tokenizer.padded([ids[row] for row in rows])

        else:
            lengths = [len(text) for text in texts]

            def tokens(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
                return self.tokenizer([texts[row] for row in rows])

        order = sorted(range(len(texts)), key=lengths.__getitem__)
        # The longest first: the last batches, when some threads have nothing left to do, are then the shortest.
        groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)][::-1]
        features = in_order(lambda rows: self.engine.text_features(*tokens(rows)), groups)
        yield from zip(groups, features, strict=True)
