"""One ONNX graph a tower, by PyTorch's dynamo exporter.

Shapes: B pictures, S image_size, C texts, L tokens, D embed_dim, K a smaller number of dimensions.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim

from cliplet.errors import ModelError
from cliplet.export.attention import PlainAttention
from cliplet.models import DualEncoder
from cliplet.runtime.exported import TOWERS, Tower

OPSET = 20  # the first with GELU as one operator; onnxruntime reads it since 1.17, of early 2024
LARGEST = 2**31 - 1  # bytes that a protobuf file may have
SENTENCES = ("a dog runs in the snow", "two people")  # of different lengths, so that one of them is padded


class _ImageGraph(nn.Module):
    def __init__(self, model: DualEncoder):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(pixels.permute(0, 3, 1, 2))


class _TextGraph(nn.Module):
    def __init__(self, model: DualEncoder):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(input_ids, attention_mask)


def export_graphs(model: DualEncoder, towers: Sequence[Tower] = TOWERS) -> dict[Tower, onnx.ModelProto]:
    """The graphs of the towers, for any number of inputs and texts of any length up to the context; see
    `runtime/exported.py` for their inputs and outputs. The model is in evaluation mode afterwards.

    Raises ModelError for an operator that ONNX has not, and for a tower whose graph would hold for one batch size only
    or be larger than a file of ONNX can be.
    """
    size, context = model.config.preprocess.image_size, model.config.text.context_length
    for tower in (model.image_tower, model.text_tower):
        count = sum(4 * one.numel() for one in tower.parameters())
        if count > LARGEST:
            raise ModelError(f"a tower of {count / 2**30:.1f} GB is larger than one ONNX file can be (2 GB)")
    ids_CL, mask_CL = map(torch.from_numpy, model.tokenizer(SENTENCES))
    if ids_CL.shape[1] < 2:  # of one token, an axis would be taken for a constant
        ids_CL, mask_CL = ids_CL.repeat(1, 2), mask_CL.repeat(1, 2)
    batch = Dim("batch")
    text_axes = {0: batch, 1: Dim("length", max=context)}
    pixels_BSS3 = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    names = ["input_ids", "attention_mask"]
    model.eval()
    of_tower: dict[Tower, Callable[[], onnx.ModelProto]] = {
        "image": lambda: _exported(_ImageGraph(model), (pixels_BSS3,), ({0: batch},), ["pixels"]),
        "text": lambda: _exported(_TextGraph(model), (ids_CL, mask_CL), (text_axes, text_axes), names),
    }
    return {tower: of_tower[tower]() for tower in towers}


def with_dims(model: onnx.ModelProto, dims: tuple[int, ...], projection_DK: np.ndarray) -> onnx.ModelProto:
    """The graph with an output `features_K` for each K of `dims`: the features projected, cut to K numbers, and of unit
    length again."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants: dict[str, np.ndarray] = {
        "dims/projection": projection_DK.astype(np.float32),
        "dims/axis": np.array([1], np.int64),
        "dims/start": np.array([0], np.int64),
        "dims/tiny": np.array(1e-12, np.float32),
    }
    graph.node.append(helper.make_node("MatMul", ["features", "dims/projection"], ["dims/all"], "dims/all"))
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    for size in dims:
        cut, length, name = f"dims/{size}", f"dims/{size}/length", f"features_{size}"
        constants[f"{cut}/end"] = np.array([size], np.int64)
        ends = ["dims/start", f"{cut}/end", "dims/axis"]
        graph.node.append(helper.make_node("Slice", ["dims/all", *ends], [cut], cut))
        graph.node.append(helper.make_node("ReduceL2", [cut, "dims/axis"], [length], length))
        graph.node.append(helper.make_node("Max", [length, "dims/tiny"], [f"{length}/safe"], f"{length}/safe"))
        graph.node.append(helper.make_node("Div", [cut, f"{length}/safe"], [name], name))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch.dim_param, size]))
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    return result


def _exported(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], axes: tuple[Any, ...], names: list[str]
) -> onnx.ModelProto:
    tower = "image" if names == ["pixels"] else "text"
    with _quiet(), torch.no_grad(), PlainAttention():
        try:
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=axes,
                input_names=names,
                output_names=["features"],
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # each stage of the exporter has errors of its own
            raise ModelError(
                f"the {tower} tower cannot be exported: {_reason(error)}",
                "Most towers of timm and transformers can; choose another, or run this one on PyTorch.",
            ) from error
    assert program is not None
    graph = _shared(program.model_proto)
    for one in (*graph.graph.input, *graph.graph.output):
        first = one.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value"):
            raise ModelError(f"the {tower} tower's graph would be for batches of {first.dim_value} alone")
    return graph


def _shared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with one constant for all that are alike: a tower's blocks have the same tables of positions, which can
    be a tenth of an 8-bit file."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    kept = []
    for constant in model.graph.initializer:
        key = constant.data_type, tuple(constant.dims), numpy_helper.to_array(constant).tobytes()
        same[constant.name] = first.setdefault(key, constant.name)
        if same[constant.name] == constant.name:
            kept.append(constant)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _reason(error: BaseException) -> str:
    """What an error of the exporter says: its cause's own words, for its own are about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's prints and warnings: what goes wrong is said in our own words."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
