"""Which layers compute in 8 bits: as many as may be. N pictures, M captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from cliplet.errors import ModelError
from cliplet.export.judge import Bench, Features, Sample, cosines
from cliplet.export.quantize import Range, calibrated, layers_of, quantized
from cliplet.runtime.choice import Candidate
from cliplet.runtime.exported import Tower

BATCH = {"image": 8, "text": 32}
LOOKED_AT = {"image": 16, "text": 64}  # inputs by which layers are ranked
REFERENCE = Candidate("onnxruntime", "fp32")
Say = Callable[[str], None]


class Cost(NamedTuple):
    """What a graph costs, on the engine on which it costs the most."""

    points: float  # of R@1
    cosine: float  # mean, to PyTorch's features

    def __str__(self) -> str:
        return f"{self.points:.2f} points of R@1, cosine {self.cosine:.5f}"


@dataclass(frozen=True)
class EightBits:
    """A graph, and what it became of."""

    graph: onnx.ModelProto
    layers: int
    int8: int
    kept: tuple[str, ...]  # layers whose inputs stay floats, for else it would cost too much


@dataclass(frozen=True)
class Fitting:
    """What is to be fitted, and by what it is judged."""

    bench: Bench
    graph: onnx.ModelProto
    tower: Tower
    calibration: Sample
    expected: Features  # PyTorch's, of the calibration
    cost: Callable[[onnx.ModelProto], Cost]
    allowed: Cost  # the most points, the least cosine
    say: Say


def fit(task: Fitting) -> EightBits:
    """The graph in 8 bits, with as few layers put back to float inputs as its cost allows, those that hurt most first.

    Raises ModelError where weights in 8 bits alone cost too much.
    """
    layers = layers_of(task.graph)
    ranges = calibrated(task.graph, layers, _batches(task))
    may = [layer.name for layer in layers if not layer.depthwise and all(np.isfinite(ranges[layer.inputs]))]
    order: list[str] = []
    found = Cost(0, 1)

    def tried(back: int) -> onnx.ModelProto | None:
        """The graph with the first of `order` put back; None where it costs too much."""
        nonlocal found
        graph = quantized(task.graph, set(may) - set(order[:back]), ranges)
        found = task.cost(graph)
        task.say(f"{task.tower}: inputs of {len(may) - back} of {len(layers)} layers in 8 bits: {found}")
        fits = round(found.points, 6) <= task.allowed.points and found.cosine >= task.allowed.cosine
        return graph if fits else None

    graph, back = tried(0), 0
    if graph is None:
        damage = _damage(task, may, ranges)
        order = sorted(may, key=damage.__getitem__, reverse=True)
        failed = 0
        for back in _doubling(len(order)):
            graph = tried(back)
            if graph is not None:
                break
            failed = back
        while graph is not None and back - failed > 1:  # fewer may do
            middle = (back + failed) // 2
            better = tried(middle)
            graph, back, failed = (better, middle, failed) if better is not None else (graph, back, middle)
    if graph is None:
        raise ModelError(
            f"8 bits cost {found} in the {task.tower} tower even where only its weights have them; allowed are "
            f"{task.allowed}",
            "Allow more with --max-loss or --min-cosine, or export without --int8.",
        )
    return EightBits(graph, len(layers), len(may) - back, tuple(order[:back]))


def _doubling(count: int) -> Iterator[int]:
    """1, 2, 4, ..., and `count`."""
    number = 1
    while number < count:
        yield number
        number *= 2
    yield count


def _damage(task: Fitting, may: Sequence[str], ranges: Mapping[str, Range]) -> dict[str, float]:
    """What each layer costs in cosine when it alone computes in 8 bits."""
    count = LOOKED_AT[task.tower]
    few = Sample(task.calibration.pixels_NSS3[:count], task.calibration.texts[:count])
    towards = Features(task.expected.image_ND[:count], task.expected.text_MD[:count])
    damage = {}
    for name in may:
        alone = task.bench.open(quantized(task.graph, [name], ranges), task.tower, REFERENCE)
        damage[name] = 1 - float(cosines(alone, task.tower, few, task.bench.model.tokenizer, towards).mean())
    return damage


def _batches(task: Fitting) -> Iterator[dict[str, np.ndarray]]:
    size = BATCH[task.tower]
    if task.tower == "image":
        for at in range(0, len(task.calibration.pixels_NSS3), size):
            yield {"pixels": task.calibration.pixels_NSS3[at : at + size]}
        return
    texts = sorted(task.calibration.texts, key=len)  # so that padding is no part of what is seen
    for at in range(0, len(texts), size):
        ids, mask = task.bench.model.tokenizer(texts[at : at + size])
        yield {"input_ids": ids, "attention_mask": mask}
