"""R@1 of graphs on a data set, on any engine. N pictures, M captions, D embed_dim."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from cliplet.data.records import ImageText
from cliplet.errors import DataError, TextCutWarning
from cliplet.evaluation.retrieval import retrieval_metrics
from cliplet.export.judge import Bench, Features
from cliplet.runtime.choice import Candidate
from cliplet.runtime.exported import Tower

DIRECTIONS = ("image_to_text", "text_to_image")
Graphs = Mapping[Tower, onnx.ModelProto]


class Yardstick:
    """Pictures with captions to measure R@1 on. Pictures that cannot be read are left out with their captions."""

    def __init__(self, bench: Bench, records: Sequence[ImageText]):
        self._bench = bench
        self._images = [record.image for record in records]
        self._captions = [caption for record in records for caption in record.captions]
        self._owner_M = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
        self._known: dict[tuple[Tower, Candidate], tuple[onnx.ModelProto, np.ndarray]] = {}

    def features(self, graphs: Graphs, engine: Candidate) -> Features:
        """Of all pictures and captions; rows of pictures that cannot be read are NaN."""
        return Features(self._rows("image", graphs["image"], engine), self._rows("text", graphs["text"], engine))

    def recalls(self, features: Features) -> dict[str, float]:
        """R@1 in both directions, in percent. Raises DataError where no picture can be read."""
        readable_N = np.isfinite(features.image_ND).all(axis=1)
        if not readable_N.any():
            raise DataError("none of the pictures to measure on could be read")
        readable_M = readable_N[self._owner_M]
        owners = (np.cumsum(readable_N) - 1)[self._owner_M[readable_M]]
        metrics = retrieval_metrics(features.image_ND[readable_N], features.text_MD[readable_M], owners, ks=(1,))
        return {f"{direction}_R@1": round(metrics[f"{direction}_R@1"], 4) for direction in DIRECTIONS}

    def loss(self, before: Mapping[str, float], graphs: Graphs, engine: Candidate) -> float:
        """Points of R@1 that graphs have less than `before`, in the worse direction; below zero where they gain."""
        after = self.recalls(self.features(graphs, engine))
        return max(before[name] - after[name] for name in after)

    def _rows(self, tower: Tower, graph: onnx.ModelProto, engine: Candidate) -> np.ndarray:
        """The features of the last graph of each tower and engine are kept, for the other tower's changes."""
        known = self._known.get((tower, engine))
        if known is None or known[0] is not graph:
            opened = self._bench.open(graph, tower, engine)
            encoder = self._bench.encoder(opened)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TextCutWarning)  # in training it was no secret
                rows = (
                    encoder.encode_image(self._images, failed={})
                    if tower == "image"
                    else encoder.encode_text(self._captions)
                )
            self._known[tower, engine] = known = (graph, rows)
        return known[1]
