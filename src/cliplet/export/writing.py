"""An export on the disk: whole or not at all, in a model folder or as a new one without weights."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cliplet import hub, model_folder
from cliplet.card_metadata import read_metadata, without
from cliplet.errors import ModelError
from cliplet.files import file_sha256, flush
from cliplet.model_card import exported_section, imported_card
from cliplet.model_folder import GRAPHS, PARITY
from cliplet.models import DualEncoder
from cliplet.runtime.engines import best_model_folder
from cliplet.runtime.exported import PROBE, Export, Tower

LEFT = re.compile(
    rf"\.{GRAPHS}\.(\d{{1,9}})\.(?:writing|old)"
)  # what a killed export leaves; the number is its process


class Made(NamedTuple):
    """All that an export writes."""

    graphs: dict[Tower, bytes]
    probe: dict[str, np.ndarray]
    export: Export


class Before(NamedTuple):
    """What a new folder takes over from the model's own."""

    card: str
    metrics: dict[str, Any]
    licences: list[Path]


def before(source: str | Path, model: DualEncoder, folder: Path) -> Before:
    """What `folder`, which is to be made, takes over from `source`. Raises ModelError for a card or metrics that cannot
    be read."""
    own = hub.fetched(str(source)) if hub.is_hub_name(source) else best_model_folder(source)
    if not model_folder.is_model_folder(own):
        command = f"cliplet export {source} --out {folder}"
        card = imported_card(model.config, folder.name, str(source), model.count_parameters(), command)
        return Before(card, {}, [])
    file, metrics = own / model_folder.CARD, own / model_folder.METRICS
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        measured = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        read_metadata(text, str(file))
    except (OSError, ValueError) as error:
        raise ModelError(f"{own}: its card or metrics cannot be read: {error}", "Put the file right.") from None
    licences = [file for file in own.iterdir() if model_folder.is_licence(file.name)]
    return Before(text, measured if isinstance(measured, dict) else {}, licences)


def write_new(folder: Path, model: DualEncoder, made: Made, taken: Before) -> None:
    """A new folder with all that using the model takes. Of a model in 8 bits, what was measured of the original is not
    passed off as its own."""
    card, metrics = taken.card, taken.metrics
    if made.export.precision == "int8":
        card, metrics = without("model-index", card, model_folder.CARD), {}

    def add(fresh: Path) -> None:
        _write_graphs(fresh / GRAPHS, fresh, made)
        for file in taken.licences:
            shutil.copy(file, fresh / file.name)

    text = card + exported_section(made.export)
    model_folder.write(folder, model.description(), None, model.tokenizer, card=text, metrics=metrics, add=add)


def write_into(folder: Path, made: Made) -> None:
    """The graphs into a model's own folder, whole or not at all, in the place of earlier ones."""
    fresh, old = (folder / f".{GRAPHS}.{os.getpid()}.{what}" for what in ("writing", "old"))
    try:
        sweep(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        _write_graphs(fresh, folder, made)
        if (folder / GRAPHS).exists():
            (folder / GRAPHS).rename(old)
        fresh.rename(folder / GRAPHS)
        for file in old.iterdir() if old.exists() else ():
            if not (folder / GRAPHS / file.name).exists():  # somebody else's
                file.rename(folder / GRAPHS / file.name)
        flush(folder)
    except OSError as error:
        if old.exists() and not (folder / GRAPHS).exists():
            old.rename(folder / GRAPHS)
        raise ModelError(f"{folder / GRAPHS}: cannot be written: {error}") from None
    finally:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Mends what an export left that was killed: graphs that were not put in place, or not put back."""
    for left in folder.glob(f".{GRAPHS}.*"):
        name = LEFT.fullmatch(left.name)
        if name is None or model_folder.is_alive(int(name[1])):
            continue
        if left.suffix == ".old" and not (folder / GRAPHS).exists():
            left.rename(folder / GRAPHS)
        shutil.rmtree(left, ignore_errors=True)


def refuse_unwritable(folder: Path) -> None:
    """Raises ModelError where a folder could not be written, before the work for it is done."""
    place = folder
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK)):
        what = "may not be written to" if place.is_dir() else "is a file"
        raise ModelError(f"{folder}: cannot be written: {place} {what}", "Name another folder with --out.")


def _write_graphs(folder: Path, model: Path, made: Made) -> None:
    """The folder of graphs; `model` is the model folder, whose tokenizer.json is there already."""
    folder.mkdir(parents=True)
    for tower, data in made.graphs.items():
        (folder / f"{tower}.onnx").write_bytes(data)
    with (folder / PROBE).open("wb") as stream:
        np.savez_compressed(stream, **made.probe)  # type: ignore[arg-type]
    export = made.export.model_copy(update={"tokenizer": file_sha256(model / model_folder.TOKENIZER)})
    (folder / PARITY).write_text(export.to_json() + "\n", encoding="utf-8")
    for file in folder.iterdir():
        flush(file)
