"""A graph in 8 bits: all weights, and in most layers what they are multiplied with.

Weights have a scale for each output channel, embeddings one for each row. What goes into a layer has one scale, found
on calibration pictures or sentences: signed and around zero for matrix products, unsigned with an offset for
convolutions, because OpenVINO computes wrongly with signed inputs of convolutions (2026.4, AVX-512: cosines of 0.75). A
layer may keep its inputs in floats; its weights are 8 bits on the disk all the same. Written as QuantizeLinear and
DequantizeLinear, which OpenVINO and onnxruntime turn into integer kernels (ONNX's QDQ form).

onnxruntime's own quantizer was tried: it takes one type for all inputs, and leaves embeddings in float32, which are
half of a small model. NNCF's was too: it gives convolutions signed inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cliplet.runtime.graphs import onnxruntime_module

SMALLEST = 1024  # numbers in a tensor, below which 8 bits save nothing
SAMPLES = 4096  # numbers of a tensor that are kept of each calibration batch
HALF_LARGEST = 6e4  # what a 16-bit float can hold, nearly
CLIPS = np.linspace(0.3, 1.0, 36)  # shares of the largest number beyond which inputs may be cut


class Layer(NamedTuple):
    """A node that multiplies with weights."""

    name: str  # of the node
    kind: str  # MatMul, Gemm or Conv
    weights: str  # of the initializer
    axis: int  # of its output channels
    inputs: str  # tensor that goes in
    depthwise: bool  # a convolution of each channel by itself, which is no faster in 8 bits


class Range(NamedTuple):
    """What an input's numbers are taken to lie between."""

    low: float
    high: float


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph whose weights are constant, in its order."""
    weights = {one.name: one for one in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.input[1] not in weights or node.input[0] in weights:
            continue
        tensor = weights[node.input[1]]
        if int(np.prod(tensor.dims)) < SMALLEST or tensor.data_type != TensorProto.FLOAT:
            continue
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Gemm" and attributes.get("transA"):
            continue
        first = node.op_type == "Conv" or (node.op_type == "Gemm" and attributes.get("transB"))
        axis = 0 if first else len(tensor.dims) - 1
        depthwise = node.op_type == "Conv" and attributes.get("group", 1) > 1
        found.append(Layer(node.name, node.op_type, node.input[1], axis, node.input[0], depthwise))
    return found


def calibrated(
    model: onnx.ModelProto, layers: Sequence[Layer], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, Range]:
    """The ranges of what goes into the layers, over batches of the graph's inputs.

    Not the largest number decides, but which cut of the tails gives the least squared error after rounding.
    """
    onnxruntime = onnxruntime_module()
    names = sorted({layer.inputs for layer in layers})
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    ends = {name: [0.0, 0.0] for name in names}
    random = np.random.default_rng(0)
    for batch in batches:
        for name, values in zip(names, session.run(names, dict(batch)), strict=True):
            flat = values.reshape(-1)
            samples[name].append(flat if len(flat) <= SAMPLES else random.choice(flat, SAMPLES, replace=False))
            ends[name] = [min(ends[name][0], float(flat.min())), max(ends[name][1], float(flat.max()))]
    signed = {layer.inputs: layer.kind != "Conv" for layer in layers}
    return {name: _range(np.concatenate(samples[name]), Range(*ends[name]), signed[name]) for name in names}


def _range(values: np.ndarray, ends: Range, signed: bool) -> Range:
    """The best range for numbers of which `values` are a sample and that lie between `ends`."""
    low, high = ends.low, max(ends.high, 1e-6)
    largest = max(-low, high)
    if not np.isfinite(largest):
        return ends
    candidates = [
        Range(-share * largest, share * largest) if signed else Range(share * low, share * high) for share in CLIPS
    ]

    def error(one: Range) -> float:
        scale, zero, least, most = _scale(one, signed)
        rounded = np.clip(np.round(values / scale) + zero, least, most)
        return float(np.square((rounded - zero) * scale - values).mean())

    return min(candidates, key=error)


def _scale(span: Range, signed: bool) -> tuple[float, int, int, int]:
    """Scale, offset, least and largest integer for numbers of a range."""
    if signed:
        return max(-span.low, span.high) / 127, 0, -127, 127
    scale = (span.high - span.low) / 255
    return scale, int(np.clip(round(-span.low / scale), 0, 255)), 0, 255


def quantized(model: onnx.ModelProto, in_8_bits: Iterable[str], ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """The graph with weights in 8 bits, and with inputs in 8 bits for the layers of those names. What else is large and
    constant is kept in 16-bit floats, weights of depthwise convolutions too."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, chosen = result.graph, set(in_8_bits)
    layers = {layer.name: layer for layer in layers_of(model)}
    rewriter = _Rewriter(graph)
    for node in model.graph.node:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        layer = layers.get(node.name)
        if layer is not None:
            if layer.name in chosen:
                node.input[0] = rewriter.rounded(layer.inputs, ranges[layer.inputs], signed=layer.kind != "Conv")
            if not layer.depthwise:  # of few weights, each of which matters: they become 16-bit floats
                node.input[1] = rewriter.weights(layer.weights, layer.axis)
        if node.op_type == "Gather" and rewriter.is_table(node.input[0]) and _axis(node) == 0:
            rewriter.rows(node)
        else:
            rewriter.nodes.append(node)
    rewriter.finish()
    return result


def _axis(node: onnx.NodeProto) -> int:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == "axis"), 0)


class _Rewriter:
    """Writes the nodes of a graph anew, and the constants that they read."""

    def __init__(self, graph: onnx.GraphProto):
        self._graph = graph
        self._constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self._added: dict[str, np.ndarray] = {}
        self._done: dict[str, str] = {}  # what stands for what, once it is written
        self.nodes: list[onnx.NodeProto] = []

    def rounded(self, tensor: str, span: Range, signed: bool) -> str:
        """The name of a tensor rounded to 8 bits, and back in floats for what reads it."""
        key = f"{tensor}/{'s8' if signed else 'u8'}"
        if key not in self._done:
            scale, zero, _, _ = _scale(span, signed)
            self._added[f"{key}/scale"] = np.array(scale, np.float32)
            self._added[f"{key}/zero"] = np.array(zero, np.int8 if signed else np.uint8)
            ends = [f"{key}/scale", f"{key}/zero"]
            self._node("QuantizeLinear", [tensor, *ends], f"{key}/rounded")
            self._done[key] = self._node("DequantizeLinear", [f"{key}/rounded", *ends], f"{key}/float")
        return self._done[key]

    def weights(self, name: str, axis: int) -> str:
        """The name of weights that lie in 8 bits, with a scale for each output channel."""
        if name not in self._done:
            values = self._constants[name]
            others = tuple(place for place in range(values.ndim) if place != axis)
            scale = np.maximum(np.abs(values).max(axis=others), 1e-12) / 127
            shape = [-1 if place == axis else 1 for place in range(values.ndim)]
            self._added[f"{name}/int8"] = np.round(values / scale.reshape(shape)).astype(np.int8)
            self._added[f"{name}/scale"] = scale.astype(np.float32)
            inputs = [f"{name}/int8", f"{name}/scale"]
            self._done[name] = self._node("DequantizeLinear", inputs, f"{name}/float", axis=axis)
        return self._done[name]

    def is_table(self, name: str) -> bool:
        """Whether it is a constant table of rows, large enough to matter."""
        values = self._constants.get(name)
        return values is not None and values.dtype == np.float32 and values.ndim == 2 and values.size >= SMALLEST

    def rows(self, node: onnx.NodeProto) -> None:
        """Writes a lookup of rows that lie in 8 bits, with a scale for each row."""
        name, (table, places), (output,) = node.name or node.output[0], node.input, node.output
        values = self._constants[table]
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / 127
        self._added[f"{table}/rows"] = np.round(values / scale).astype(np.int8)
        self._added[f"{table}/scales"] = scale.astype(np.float32)
        self._node("Gather", [f"{table}/rows", places], f"{name}/int8")
        self._node("Cast", [f"{name}/int8"], f"{name}/cast", to=TensorProto.FLOAT)
        self._node("Gather", [f"{table}/scales", places], f"{name}/scale")
        self._node("Mul", [f"{name}/cast", f"{name}/scale"], output)

    def finish(self) -> None:
        """Puts nodes and constants into the graph; what nothing reads any more is left out."""
        used = {name for node in self.nodes for name in node.input}
        casts = []
        for name, values in self._constants.items():
            if name not in used:
                continue
            if values.dtype == np.float32 and values.size >= SMALLEST and np.abs(values).max() < HALF_LARGEST:
                self._added[f"{name}/half"] = values.astype(np.float16)
                casts.append(helper.make_node("Cast", [f"{name}/half"], [name], f"{name}/cast", to=TensorProto.FLOAT))
            else:
                self._added[name] = values
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend([*casts, *self.nodes])
        self._graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in self._added.items())

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output
