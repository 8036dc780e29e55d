"""Which layers compute in 8 bits: as many as the recall allows. N pictures, M captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from cliplet.errors import ModelError
from cliplet.export.judge import Bench, Features, Sample, cosines
from cliplet.export.quantize import Layer, calibrated, layers_of, quantized
from cliplet.runtime.choice import Candidate
from cliplet.runtime.exported import Tower

BATCH = {"image": 8, "text": 32}
LOOKED_AT = {"image": 16, "text": 64}  # inputs by which layers are ranked
Say = Callable[[str], None]
Loss = Callable[[onnx.ModelProto], float]  # points of R@1 that a graph costs


@dataclass(frozen=True)
class EightBits:
    """A graph, and what it became of."""

    graph: onnx.ModelProto
    layers: int
    int8: int
    kept: tuple[str, ...]  # layers whose inputs stay floats for the recall's sake


def fit(
    bench: Bench,
    graph: onnx.ModelProto,
    tower: Tower,
    calibration: Sample,
    expected: Features,
    loss: Loss,
    allowed: float,
    say: Say,
) -> EightBits:
    """The graph in 8 bits, with those layers put back to float inputs that hurt most, until `loss` is allowed.

    `expected` are PyTorch's features of `calibration`. Raises ModelError where weights in 8 bits alone cost too much.
    """
    layers = layers_of(graph)
    ranges = calibrated(graph, layers, _batches(bench, tower, calibration))
    may = [layer.name for layer in layers if not layer.depthwise and all(np.isfinite(ranges[layer.inputs]))]
    candidate = quantized(graph, may, ranges)
    found = loss(candidate)
    say(f"{tower}: {len(may)} of {len(layers)} layers in 8 bits cost {found:.2f} points of R@1")
    if found <= allowed:
        return EightBits(candidate, len(layers), len(may), ())
    damage = _damage(bench, graph, tower, layers, may, ranges, calibration, expected)
    order = sorted(may, key=damage.__getitem__, reverse=True)
    for back in _numbers(len(order)):
        kept, rest = order[:back], order[back:]
        candidate = quantized(graph, rest, ranges)
        found = loss(candidate)
        say(f"{tower}: with {len(rest)}, {back} put back to floats, {found:.2f}")
        if found <= allowed:
            return EightBits(candidate, len(layers), len(rest), tuple(kept))
    raise ModelError(
        f"8 bits cost {found:.2f} points of R@1 in the {tower} tower even where only its weights have them, more than "
        f"the {allowed:.2f} allowed",
        "Allow more with --max-loss, give more calibration data, or export without --int8.",
    )


def _numbers(count: int) -> Iterator[int]:
    """How many layers to put back, one try after the other: 1, 2, 4, ..., all."""
    number = 1
    while number < count:
        yield number
        number *= 2
    yield count


def _damage(
    bench: Bench,
    graph: onnx.ModelProto,
    tower: Tower,
    layers: Sequence[Layer],
    may: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
    calibration: Sample,
    expected: Features,
) -> dict[str, float]:
    """What each layer costs in cosine when it alone computes in 8 bits."""
    count = LOOKED_AT[tower]
    few = Sample(calibration.pixels_NSS3[:count], calibration.texts[:count])
    towards = Features(expected.image_ND[:count], expected.text_MD[:count])
    damage = {}
    for name in may:
        alone = bench.open(quantized(graph, [name], ranges), tower, Candidate("onnxruntime", "fp32"))  # type: ignore[arg-type]
        damage[name] = 1 - float(cosines(alone, tower, few, bench.model.tokenizer, towards).mean())
    return damage


def _batches(bench: Bench, tower: Tower, sample: Sample) -> Iterator[dict[str, np.ndarray]]:
    size = BATCH[tower]
    if tower == "image":
        for at in range(0, len(sample.pixels_NSS3), size):
            yield {"pixels": sample.pixels_NSS3[at : at + size]}
        return
    texts = sorted(sample.texts, key=len)  # so that padding is no part of what is seen
    for at in range(0, len(texts), size):
        ids, mask = bench.model.tokenizer(texts[at : at + size])
        yield {"input_ids": ids, "attention_mask": mask}
