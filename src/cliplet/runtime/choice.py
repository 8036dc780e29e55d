"""Which engine runs an exported model: the fastest that is installed and computes the right thing on this processor.

Fast kernels are wrong on some processors: 8-bit sums that overflow without VNNI, OpenVINO's signed 8-bit convolutions.
So before an engine is trusted with a graph, its features of the probe are held against PyTorch's, and what came of it
is remembered for this machine, engine, version and file.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cliplet.config import ModelConfig
from cliplet.errors import INSTALL_OPENVINO, ConfigError, ModelError, nearest
from cliplet.model_folder import GRAPHS, WEIGHTS
from cliplet.runtime.engines import Engine, TorchEngine, TorchTower
from cliplet.runtime.exported import Export, Probe, Tower, check_file, read_export
from cliplet.runtime.graphs import OPENERS, Graph, GraphEngine, onnxruntime_module, openvino_core
from cliplet.runtime.state import State

ENGINES = ("auto", "openvino", "onnxruntime", "torch")
PRECISIONS = ("auto", "fp32", "bf16")
INSTALL = {"openvino": INSTALL_OPENVINO, "onnxruntime": "Install it: pip install onnxruntime"}

NVIDIA_DEVICE = Path("/dev/nvidia0")
CHECKED = 2  # what is remembered is of this way to check and of these settings of the engines
CLOSE = 0.9999  # cosine to PyTorch's features at which two engines are the same
CLOSE_BF16 = 0.99995  # it rounds each picture otherwise, so the probe's must pass by a margin
ROUGH = 0.999  # of bf16 for those who ask for it


class _NoneIsRight(ModelError):
    """A tower that no engine on this machine computes rightly."""


class Candidate(NamedTuple):
    engine: str
    precision: str  # of what is not 8 bits

    def __str__(self) -> str:
        return f"{self.engine} {version_of(self.engine)} in {self.precision}"


def refuse_unknown(engine: str, precision: str) -> None:
    """Raises ConfigError for an engine or a precision that does not exist."""
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}", nearest(engine, ENGINES))
    if precision not in PRECISIONS:
        raise ConfigError(f"there is no precision {precision!r}", nearest(precision, PRECISIONS))


def graph_engine(
    folder: Path, config: ModelConfig, engine: str = "auto", precision: str = "auto", dims: int | None = None
) -> Engine:
    """An engine for the exported graphs of a model folder; see `cliplet.load`.

    Raises ModelError for graphs that were changed, for an engine that is not installed, and for `dims` that were not
    exported. Whether an engine computes rightly is looked at when a tower is first used, and raises ModelError then.
    """
    export = read_export(folder, config)
    if dims is not None and dims not in (*export.dims, export.embed_dim):
        offered = ", ".join(map(str, (export.embed_dim, *export.dims)))
        raise ModelError(
            f"{folder}: has no features of {dims} dimensions; there are {offered}", "Export with --dims again."
        )
    torch_may = engine == "auto" and not dims and is_installed("torch") and (folder / WEIGHTS).is_file()
    # An 8-bit model's vectors are its own: they are not PyTorch's.
    if torch_may and export.precision == "fp32" and (on_gpu := _torch_on_gpu(folder, precision)):
        return on_gpu
    candidates = _candidates(engine, precision)
    if not candidates:
        name = "openvino" if precision == "bf16" else engine
        if name == "auto":
            raise ModelError(f"{folder}: nothing is installed that runs it", INSTALL["onnxruntime"])
        if not is_installed(name):
            raise ModelError(f"the engine {name} is not installed", INSTALL[name])
        if engine == "onnxruntime":
            raise ModelError("onnxruntime computes in fp32 here, not in bf16", "Take openvino for bf16.")
        raise ModelError(f"{name} does not compute in bf16 on this processor", "Leave the precision to auto.")
    output = f"features_{dims}" if dims and dims != export.embed_dim else "features"

    def open_graph(tower: Tower) -> Graph:
        try:
            return _first_right(folder, export, tower, output, candidates, asked_for_bf16=precision == "bf16")
        except _NoneIsRight:
            if not torch_may or export.precision != "fp32":
                raise
            return TorchTower(TorchEngine.open(folder), tower)

    return GraphEngine(export, open_graph)


def _candidates(engine: str, precision: str) -> list[Candidate]:
    """What may run the graphs, the fastest first; benchmarks/embedding.py measures that order."""
    installed = [name for name in OPENERS if engine in ("auto", name) and is_installed(name)]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        installed.sort(key=lambda name: name == "openvino")  # elsewhere it has fewer kernels of its own
    found = []
    for name in installed:
        if name == "openvino" and precision != "fp32" and computes_in_bf16():
            found.append(Candidate(name, "bf16"))
        if precision != "bf16":
            found.append(Candidate(name, "fp32"))
    return found


def auto_candidates(exported: str) -> list[Candidate]:
    """What may run graphs of that precision on this machine when nobody asks for anything: one of each engine, in the
    precision that it would be taken in, the fastest first; for float32 in float32."""
    found: dict[str, Candidate] = {}
    for candidate in _candidates("auto", "auto" if exported == "int8" else "fp32"):
        found.setdefault(candidate.engine, candidate)
    return list(found.values())


def _first_right(
    folder: Path, export: Export, tower: Tower, output: str, candidates: list[Candidate], asked_for_bf16: bool
) -> Graph:
    """The tower on the first engine that opens it and is right. Raises ModelError where none is."""
    said = export.graphs[tower]
    file = folder / GRAPHS / said.file
    check_file(file, said.sha256)  # it may be long since the model was opened
    failures = []
    for candidate in candidates:
        least = _least_cosine(export, tower, candidate, asked_for_bf16)
        remembered = State(f"check {CHECKED} {said.sha256} {candidate} {processor()}")
        known = remembered.read()
        if isinstance(known, float) and known < least:
            failures.append(f"{candidate}: cosine {known:.5f} to PyTorch's features, {least:.5f} asked")
            continue
        try:
            graph = OPENERS[candidate.engine](file, tower, output, candidate.precision, keep=said.sha256[:16])
            if not isinstance(known, float):
                whole = (
                    graph
                    if output == "features"
                    else OPENERS[candidate.engine](file, tower, "features", candidate.precision)
                )
                known = probe_cosine(whole, Probe(folder), tower)
                remembered.write(known)
        except ModelError:
            raise
        except Exception as error:  # an operator that it lacks, a file that it cannot read: each says so in its own way
            failures.append(f"{candidate}: {reason_of(error)}")
            continue
        if known >= least:
            return graph
        failures.append(f"{candidate}: cosine {known:.5f} to PyTorch's features, {least:.5f} asked")
    raise _NoneIsRight(
        f"{file}: no engine computes it rightly on this processor:\n" + "\n".join(f"  {one}" for one in failures),
        "Export the model without --int8." if export.precision == "int8" else "Run it with engine torch.",
    )


def _least_cosine(export: Export, tower: Tower, candidate: Candidate, asked_for_bf16: bool) -> float:
    """How near an engine's features of the probe must be to PyTorch's.

    Of 8 bits: not much farther than where the model was exported and its recall measured.
    """
    if export.precision == "int8":
        return 1 - 2 * (1 - export.graphs[tower].probe_cosine) - (1 - ROUGH)
    if candidate.precision == "bf16":
        return ROUGH if asked_for_bf16 else CLOSE_BF16
    return CLOSE


def probe_cosine(graph: Graph, probe: Probe, tower: Tower) -> float:
    """The least cosine between a graph's features of the probe and PyTorch's; -1 where they are no numbers."""
    inputs = (probe.pixels_PSS3,) if tower == "image" else (probe.input_ids_TL, probe.attention_mask_TL)
    # One by itself and the rest together, for which engines have kernels of their own.
    features = np.concatenate([graph(*(rows[part] for rows in inputs)) for part in (slice(0, 1), slice(1, None))])
    cosines = (features * probe.features[tower]).sum(axis=1)
    return float(cosines.min()) if np.isfinite(cosines).all() else -1.0


def reason_of(error: Exception) -> str:
    """What an engine's error says, in a line: OpenVINO's first ones name places in its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check "))), type(error).__name__)


def version_of(engine: str) -> str:
    """An engine's version; packages of other names (onnxruntime-gpu) may hold it."""
    try:
        return version(engine)
    except PackageNotFoundError:
        if engine == "onnxruntime":
            return str(onnxruntime_module().__version__)
        return str(getattr(importlib.import_module(engine), "__version__", "?"))


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@cache
def processor() -> str:
    """This machine's processor, and which instructions it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU ")))


@cache
def computes_in_bf16() -> bool:
    """Whether OpenVINO says that this processor multiplies bf16 by itself."""
    remembered = State(f"bf16 {version_of('openvino')} {processor()}")
    known = remembered.read()
    if not isinstance(known, bool):
        known = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        remembered.write(known)
    return known


def _torch_on_gpu(folder: Path, precision: str) -> TorchEngine | None:
    """The model on PyTorch, where that has a GPU to itself. Its driver's device is looked for first, for importing
    PyTorch to ask takes seconds."""
    if not NVIDIA_DEVICE.exists():
        return None
    try:
        import torch

        return TorchEngine.open(folder, precision) if torch.cuda.is_available() else None
    except (ImportError, ModelError):  # a PyTorch without the other packages that training needs
        return None
