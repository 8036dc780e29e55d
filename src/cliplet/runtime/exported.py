"""What `cliplet export` leaves in a model folder, and whether it is still what was measured. No torch.

onnx/image.onnx    pixels (B, S, S, 3) uint8 to features (B, D) float32 of unit length; normalising is inside
onnx/text.onnx     input_ids and attention_mask (C, L) int64 to features (C, D); padding plays no part
onnx/parity.json   what each file is, its hash, how far it is from the PyTorch model, what each step cost
onnx/probe.npz     a few pictures and sentences with the PyTorch model's features, for checks where it runs

With `--dims 256,128` each graph has outputs features_256 and features_128 as well.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from cliplet.config import ModelConfig
from cliplet.errors import ModelError
from cliplet.files import file_sha256
from cliplet.model_folder import GRAPHS, PARITY, TOKENIZER, WEIGHTS
from cliplet.result import Result, Strict
from cliplet.runtime.state import State

PROBE = "probe.npz"
FORMAT, FORMAT_VERSION = "cliplet-export", 1

EXPORT_AGAIN = "Export the model again: cliplet export MODEL."

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")


class Graph(Strict):
    """One tower."""

    file: str
    """In the folder `onnx`."""
    sha256: str
    """Of the file."""
    bytes: int
    """Of the file."""
    cosine: float
    """The least between its features and the PyTorch model's, over the pictures or sentences of the gate."""
    probe_cosine: float
    """The same over those in probe.npz."""
    layers: int
    """Matrix products and convolutions with weights."""
    int8: int
    """Those of them that compute in 8 bits."""
    kept: tuple[str, ...]
    """Those that could and do not, because it costs too much. OpenVINO rounds what goes into them as it goes."""


class Step(Strict):
    """A step of the export, and the model after it."""

    step: str
    """What was done."""
    bytes: int
    """Of both graphs."""
    image_cosine: float
    """Mean over pictures between these features and the PyTorch model's."""
    text_cosine: float
    """Mean over sentences, likewise."""
    recalls: dict[str, float]
    """R@1 by direction and engine, as `image_to_text_R@1 openvino fp32`; empty where no data was given."""


class Export(Result):
    """Of `cliplet export`, and onnx/parity.json."""

    format: str = FORMAT
    """What this object is."""
    cliplet: str
    """Version that exported it."""
    precision: Literal["fp32", "int8"]
    """Of weights and, in most layers, of what is multiplied with them."""
    opset: int
    """Of ONNX."""
    configuration: str
    """SHA-256 of the model's configuration, part of which is inside the graphs."""
    weights: str
    """SHA-256 of the model.safetensors that was exported; empty where there was none."""
    tokenizer: str
    """SHA-256 of the tokenizer.json that belongs to it."""
    logit_scale: float | None
    """What the model multiplies cosines by; null where it depends on the batch."""
    embed_dim: int
    """Size of the features."""
    dims: tuple[int, ...]
    """Smaller sizes that the graphs offer as well."""
    parameters: int
    """How many the model has."""
    graphs: dict[Tower, Graph]
    """image and text."""
    measured_on: str
    """The pictures and sentences of the gate, and of the recalls."""
    steps: tuple[Step, ...]
    """What each step cost."""
    dims_recalls: dict[str, dict[str, float]]
    """R@1 by direction for each of `dims` and for all; empty where no data was given."""


def is_exported(folder: str | Path) -> bool:
    """Whether a model folder holds exported graphs, good or bad."""
    return (Path(folder) / GRAPHS / PARITY).is_file()


def configuration_hash(config: ModelConfig) -> str:
    """Of all that a model's configuration says: graphs have the size, mean and deviation of pictures inside. What is
    as by itself is left out, so that settings of later versions change nothing."""
    said = config.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_export(folder: str | Path, config: ModelConfig) -> Export:
    """onnx/parity.json, with every file it names held against its hash.

    A file's hash is taken once; after that its size and time are trusted. Raises ModelError for a file that is missing,
    damaged or changed since the export, and for a model that was changed.
    """
    folder = Path(folder)
    place = folder / GRAPHS / PARITY
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place}: cannot be read: {error}", EXPORT_AGAIN) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ModelError(f"{place}: does not describe an export of cliplet", EXPORT_AGAIN)
    if data.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{place}: is of format version {data.get('format_version')}; this cliplet reads {FORMAT_VERSION}",
            "Upgrade cliplet, or export the model again with this one.",
        )
    try:
        export = Export.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{place}: is damaged: {where}: {first['msg']}", EXPORT_AGAIN) from None
    if set(export.graphs) != set(TOWERS):
        raise ModelError(f"{place}: is damaged: it names the graphs {', '.join(export.graphs)}", EXPORT_AGAIN)
    if export.configuration != configuration_hash(config):
        raise ModelError(
            f"{folder}: its config.json was changed after the export, and the graphs still compute what it said before",
            EXPORT_AGAIN,
        )
    for graph in export.graphs.values():
        if Path(graph.file).name != graph.file:
            raise ModelError(f"{folder / GRAPHS / graph.file}: lies outside of the folder", EXPORT_AGAIN)
        check_file(folder / GRAPHS / graph.file, graph.sha256)
    check_file(folder / TOKENIZER, export.tokenizer)
    if export.weights and (folder / WEIGHTS).is_file():
        check_file(folder / WEIGHTS, export.weights)
    return export


def check_file(file: Path, sha256: str) -> None:
    """Raises ModelError for a file that is not what it was at the export."""
    try:
        status = file.stat()
        seen = State(f"file {file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
        found = seen.read()
        if not isinstance(found, str):
            found = file_sha256(file)
            seen.write(found)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}", EXPORT_AGAIN) from None
    if found != sha256:
        raise ModelError(f"{file}: was changed since the export: its hash is another", EXPORT_AGAIN)


class Probe:
    """A few inputs, and the features that PyTorch computed of them. P pictures, T sentences."""

    def __init__(self, folder: str | Path):
        """Raises ModelError for a file that is missing or damaged."""
        place = Path(folder) / GRAPHS / PROBE
        try:
            with np.load(place, allow_pickle=False) as arrays:
                self.pixels_PSS3 = arrays["pixels"]
                self.input_ids_TL = arrays["input_ids"]
                self.attention_mask_TL = arrays["attention_mask"]
                self.features = {"image": arrays["image_features"], "text": arrays["text_features"]}
        except Exception as error:  # zip files fail in many ways
            raise ModelError(f"{place}: cannot be read: {error}", EXPORT_AGAIN) from None
