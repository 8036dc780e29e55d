"""By what a model's features are known again: hashes of what decides them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from cliplet import model_folder
from cliplet.files import file_sha256
from cliplet.runtime.encoder import Encoder
from cliplet.runtime.engines import OPEN_CLIP, TorchEngine


def model_hashes(encoder: Encoder) -> dict[str, str]:
    """The sha256 of each file that a model's features depend on; of one that was never saved nothing is."""
    if not encoder.source:
        return {"unsaved": uuid4().hex}
    if encoder.source.startswith(OPEN_CLIP):
        weights = Path(encoder.source.removeprefix(OPEN_CLIP).partition("/")[2])
        return {encoder.source: file_sha256(weights) if weights.is_file() else ""}
    parity = f"{model_folder.GRAPHS}/{model_folder.PARITY}"  # it holds the graphs' own hashes
    weights_or_graphs = model_folder.WEIGHTS if isinstance(encoder.engine, TorchEngine) else parity
    names = (model_folder.CONFIG, model_folder.TOKENIZER, weights_or_graphs)
    files = {name: Path(encoder.source, name) for name in names}
    return {name: file_sha256(file) for name, file in files.items() if file.is_file()}


def features_hashes(source: str | Path) -> dict[str, str]:
    """The same for a model folder, alike for the model in torch and its graphs in float32, whose features agree; and
    quick where there are graphs: parity.json holds their hashes, and the weights'.

    Empty for what is no model folder.
    """
    folder = Path(source)
    files = {name: folder / name for name in (model_folder.CONFIG, model_folder.TOKENIZER)}
    if not all(file.is_file() for file in files.values()):
        return {}
    hashes = {name: file_sha256(file) for name, file in files.items()}
    graphs, weights = graphs_of(folder), folder / model_folder.WEIGHTS
    if graphs.get("precision") == "fp32" and graphs.get("weights"):
        return hashes | {model_folder.WEIGHTS: graphs["weights"]}
    if graphs:
        return hashes | {model_folder.PARITY: file_sha256(folder / model_folder.GRAPHS / model_folder.PARITY)}
    return hashes | ({model_folder.WEIGHTS: file_sha256(weights)} if weights.is_file() else {})


def graphs_of(folder: Path) -> dict[str, Any]:
    """What parity.json says; nothing where there are no graphs."""
    with suppress(OSError, ValueError):
        content = json.loads((folder / model_folder.GRAPHS / model_folder.PARITY).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}
