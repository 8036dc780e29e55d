"""What a graph is held against: the PyTorch model's own features of pictures and sentences.

N pictures, M sentences, D embed_dim.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from cliplet.data.images import ImageLike
from cliplet.data.records import ImageText
from cliplet.data.scene_captions import describe
from cliplet.data.scenes import draw_scene, sample_scene
from cliplet.errors import DataError, ImageError, ModelError
from cliplet.models import DualEncoder
from cliplet.runtime.choice import Candidate, reason_of
from cliplet.runtime.encoder import Encoder
from cliplet.runtime.engines import TorchEngine
from cliplet.runtime.exported import Tower
from cliplet.runtime.graphs import OPENERS, Graph, GraphEngine
from cliplet.runtime.preprocess import preprocess_image
from cliplet.runtime.tokenizer import Tokenizer

SCENES, GATE_PICTURES, GATE_SENTENCES = 8, 48, 96
SENTENCES = ("", "dog", "a dog runs in the snow", "Two people, a man and a woman, sit on a bench; it's raining. ☂")
LONG = " ".join(["a long sentence that goes on beyond what a model reads"] * 12)


class Sample(NamedTuple):
    """Pictures and sentences, as a model reads them."""

    pixels_NSS3: np.ndarray
    texts: list[str]


class Features(NamedTuple):
    image_ND: np.ndarray
    text_MD: np.ndarray


def scenes(model: DualEncoder, count: int = SCENES) -> Sample:
    """Rendered pictures with some of their captions and odd sentences: no photograph has to travel with a model."""
    random = np.random.default_rng(0)
    pictures: list[ImageLike] = []
    texts = [*SENTENCES, LONG]
    for _ in range(count):
        scene = sample_scene("train", random)
        pictures.append(draw_scene(scene, random, max(96, model.config.preprocess.image_size)))
        texts += describe(scene, random, count=1)
    return Sample(np.stack([preprocess_image(one, model.config.preprocess) for one in pictures]), texts)


def of_records(records: Sequence[ImageText], model: DualEncoder, pictures: int, captions_each: int = 2) -> Sample:
    """The first pictures that can be read, with some of their captions. Raises DataError where there is none."""
    pixels: list[np.ndarray] = []
    texts: list[str] = []
    for record in records[: 2 * pictures]:
        try:
            pixels.append(preprocess_image(record.image, model.config.preprocess))
        except ImageError:
            continue
        texts += record.captions[:captions_each]
        if len(pixels) == pictures:
            break
    if not pixels:
        raise DataError("none of the first pictures could be read")
    return Sample(np.stack(pixels), texts)


def torch_features(model: DualEncoder, sample: Sample) -> Features:
    """The model's own features of a sample."""
    engine = TorchEngine(model)
    images = [engine.image_features(sample.pixels_NSS3[at : at + 16]) for at in range(0, len(sample.pixels_NSS3), 16)]
    texts = [
        engine.text_features(*model.tokenizer(sample.texts[at : at + 32])) for at in range(0, len(sample.texts), 32)
    ]
    return Features(np.concatenate(images), np.concatenate(texts))


def cosines(graph: Graph, tower: Tower, sample: Sample, tokenizer: Tokenizer, features: Features) -> np.ndarray:
    """Between a graph's features of a sample and the model's: one by one, by threes, and the rest together, so that
    batches and lengths of all kinds are tried."""
    count = len(sample.pixels_NSS3 if tower == "image" else sample.texts)
    edges = [0, 1, min(4, count), count]
    found = []
    for start, end in pairwise(edges):
        if start == end:
            continue
        if tower == "image":
            found.append(graph(sample.pixels_NSS3[start:end]))
        else:
            found.append(graph(*tokenizer(sample.texts[start:end])))
    expected = features.image_ND if tower == "image" else features.text_MD
    return (np.concatenate(found) * expected).sum(axis=1)


class Bench:
    """Opens graphs that are not in a folder yet, on some engine, from files that are gone with it."""

    def __init__(self, model: DualEncoder):
        self.model = model
        self._folder = tempfile.TemporaryDirectory(prefix="cliplet-export-")
        self._count = 0
        self._last: dict[tuple[Tower, Candidate, str], tuple[onnx.ModelProto, Graph]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def open(self, proto: onnx.ModelProto, tower: Tower, candidate: Candidate, output: str = "features") -> Graph:
        """A graph on an engine; the last of each kind is kept, for it is asked for again. Raises ModelError where that
        engine cannot run it, or the disk is full."""
        known = self._last.pop((tower, candidate, output), None)
        if known is None or known[0] is not proto:
            known = None  # before the next one is opened: two would not fit where one does
            known = (proto, self._opened(proto, tower, candidate, output))
        self._last[tower, candidate, output] = known
        return known[1]

    def _opened(self, proto: onnx.ModelProto, tower: Tower, candidate: Candidate, output: str) -> Graph:
        self._count += 1
        file = Path(self._folder.name) / f"{self._count}.onnx"
        try:
            file.write_bytes(proto.SerializeToString())
            return OPENERS[candidate.engine](file, tower, output, candidate.precision)
        except Exception as error:
            raise ModelError(f"{candidate} cannot run the graph of {tower}s: {reason_of(error)}") from None
        finally:
            with contextlib.suppress(OSError):  # Windows keeps what is open; then it goes with the folder
                file.unlink(missing_ok=True)

    def encoder(self, graph: Graph) -> Encoder:
        """A graph of either tower behind the interface that evaluation knows."""
        config = self.model.config
        return Encoder(_Alone(graph), self.model.tokenizer, config.preprocess, config.embed_dim)


class _Alone:
    """One graph as an engine; only its own tower's features may be asked for."""

    image_batch, text_batch = GraphEngine.image_batch, GraphEngine.text_batch
    logit_scale = None

    def __init__(self, graph: Graph):
        self._graph = graph

    def image_features(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        return self._graph(pixels_BSS3)

    def text_features(self, input_ids_CL: np.ndarray, attention_mask_CL: np.ndarray) -> np.ndarray:
        return self._graph(input_ids_CL, attention_mask_CL)
