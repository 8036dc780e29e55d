"""Exported graphs run by OpenVINO or onnxruntime, each tower on one core at a time so that many can run at once.

Shapes: B pictures, C captions, L tokens, D features asked for, S image_size.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cliplet.files import cache_folder
from cliplet.runtime.cores import cores
from cliplet.runtime.exported import Export, Tower

TOGETHER = 4  # pictures in one inference of OpenVINO: more are no faster on one core, and take more memory


class Graph(Protocol):
    """One tower, ready to compute: its inputs to unit features (B or C, D) float32. Safe to call from many threads."""

    name: str  # engine and precision, for people

    def __call__(self, *inputs: np.ndarray) -> np.ndarray: ...


class Open(Protocol):
    """Opens one tower's file, for one of its outputs and a precision of what is not 8 bits. What the engine makes of it
    is kept for the next process under the name `keep`, where there is one."""

    def __call__(self, file: Path, tower: Tower, output: str, precision: str, keep: str = "") -> Graph: ...


class OpenVinoGraph:
    """One tower in OpenVINO: as many streams as cores, a thread each."""

    def __init__(self, file: Path, tower: Tower, output: str, precision: str, keep: str = ""):
        """Compiles the graph, or takes what was compiled of it before on this machine. Raises whatever OpenVINO
        raises."""
        self.name = f"openvino in {precision}"
        self._core = openvino_core()
        self._file = file
        self._output = output
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "NUM_STREAMS": cores(),
            "INFERENCE_NUM_THREADS": cores(),
            # Inputs of layers whose weights alone are 8 bits are rounded to 8 bits too, so many numbers at a time. By
            # itself OpenVINO takes 32, which costs a sixth of the speed and keeps 0.0002 of the cosine (MiniLM-L6).
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64,
            # What is prepared for a shape of texts is kept for so many shapes; by itself for 5,000, and memory grew for
            # thousands of calls.
            "CPU_RUNTIME_CACHE_CAPACITY": 64,
        }
        if keep and (folder := _writable(cache_folder() / "openvino" / keep)):
            self._settings["CACHE_DIR"] = str(folder)
        self._fixed = tower == "image"
        # By pictures in one inference; texts are under 0, for any number. All at once: the file may be another later.
        self._compiled = {batch: self._compile(batch) for batch in ((1, TOGETHER) if self._fixed else (0,))}
        self._free: dict[int, list[Any]] = {batch: [] for batch in self._compiled}  # requests that nobody is using

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        if not self._fixed:
            return self._infer(0, inputs)
        (pixels_BSS3,) = inputs
        whole = len(pixels_BSS3) // TOGETHER * TOGETHER
        parts = [self._infer(TOGETHER, (pixels_BSS3[at : at + TOGETHER],)) for at in range(0, whole, TOGETHER)]
        parts += [self._infer(1, (pixels_BSS3[at : at + 1],)) for at in range(whole, len(pixels_BSS3))]
        return np.concatenate(parts)

    def _infer(self, batch: int, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        try:
            request = self._free[batch].pop()
        except IndexError:
            request = self._compiled[batch].create_infer_request()
        request.infer(dict(enumerate(inputs)))
        features = np.array(request.get_tensor(self._output).data, dtype=np.float32)
        self._free[batch].append(request)
        return features

    def _compile(self, batch: int) -> Any:
        """The graph for so many pictures. Of fixed shape it is a tenth faster than for any number."""
        if not batch:
            return self._core.compile_model(str(self._file), "CPU", self._settings)  # found without reading it again
        model = self._core.read_model(self._file)
        _, *rest = model.inputs[0].partial_shape
        model.reshape({model.inputs[0]: [batch, *rest]})
        return self._core.compile_model(model, "CPU", self._settings)


@cache
def openvino_core() -> Any:
    """One for the process, never given up: each puts a stack of its own under the thread's signal handlers, and takes
    it back when it goes. Where one goes before another that came later, the next Ctrl-C ends in a segmentation fault
    (OpenVINO 2026.4)."""
    import openvino

    # What a tensor is as an array is set up at the first look at one, and two threads that look for the first time wait
    # for each other for ever: one holds the set-up and wants the GIL, the other the reverse. So here, by one thread.
    _ = openvino.Tensor(openvino.Type.f32, [1]).data
    return openvino.Core()


def _writable(folder: Path) -> Path | None:
    """The folder, made; None where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def onnxruntime_module() -> Any:
    """onnxruntime, imported. Its packages report their use to their maker by themselves; here nothing is reported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


class OnnxRuntimeGraph:
    """One tower in onnxruntime: a thread a call."""

    def __init__(self, file: Path, tower: Tower, output: str, precision: str, keep: str = ""):
        """Opens the graph. Raises whatever onnxruntime raises."""
        onnxruntime = onnxruntime_module()
        self.name = f"onnxruntime in {precision}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._output = output

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        (features,) = self._session.run([self._output], dict(zip(self._inputs, inputs, strict=True)))
        return features


OPENERS: dict[str, Open] = {"openvino": OpenVinoGraph, "onnxruntime": OnnxRuntimeGraph}


class GraphEngine:
    """Exported graphs as an engine. Each tower is opened when it is first needed: a text query needs no image tower."""

    image_batch = 16
    text_batch = 64

    def __init__(self, export: Export, open_graph: Callable[[Tower], Graph]):
        """`open_graph` gives the graph of a tower."""
        self.logit_scale = export.logit_scale
        self._open = open_graph
        self._graphs: dict[Tower, Graph] = {}
        self._opening = threading.Lock()

    def image_features(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        return self.graph("image")(pixels_BSS3)

    def text_features(self, input_ids_CL: np.ndarray, attention_mask_CL: np.ndarray) -> np.ndarray:
        return self.graph("text")(input_ids_CL, attention_mask_CL)

    def describe(self, tower: Tower) -> str:
        """What computes a tower's features, which is decided when they are first asked for."""
        return self.graph(tower).name

    def graph(self, tower: Tower) -> Graph:
        """The graph of a tower, opened. Raises ModelError where none can be."""
        if tower not in self._graphs:
            with self._opening:
                if tower not in self._graphs:
                    self._graphs[tower] = self._open(tower)
        return self._graphs[tower]
