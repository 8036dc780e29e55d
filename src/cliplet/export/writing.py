"""An export on the disk: whole or not at all, in a model folder or as a new one without weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cliplet import hub, model_folder
from cliplet.errors import ModelError
from cliplet.files import flush
from cliplet.model_card import imported_card
from cliplet.model_folder import GRAPHS, PARITY
from cliplet.models import DualEncoder
from cliplet.runtime.engines import best_model_folder
from cliplet.runtime.exported import PROBE, Export, Tower


class Made(NamedTuple):
    """All that an export writes."""

    graphs: dict[Tower, bytes]
    probe: dict[str, np.ndarray]
    export: Export


def write(folder: Path, source: str | Path, model: DualEncoder, made: Made, own: bool) -> None:
    """Puts the graphs into the folder, whole or not at all, and in the place of earlier ones. A new folder gets what a
    model folder has besides, but no weights."""
    if not own:
        before = hub.fetched(str(source)) if hub.is_hub_name(source) else best_model_folder(source)
        local = model_folder.is_model_folder(before)
        model_folder.write(
            folder,
            model.description(),
            None,
            model.tokenizer,
            card=_read(before / model_folder.CARD) if local else _card(model, folder, source),
            metrics=json.loads(_read(before / model_folder.METRICS) or "{}") if local else None,
            add=lambda fresh: _write_new(fresh, made, before if local else None),
        )
        return
    _sweep(folder)
    fresh, old = (folder / f".{GRAPHS}.{os.getpid()}.{what}" for what in ("writing", "old"))
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        _write_graphs(fresh, made)
        if (folder / GRAPHS).exists():
            (folder / GRAPHS).rename(old)
        fresh.rename(folder / GRAPHS)
        flush(folder)
    except OSError as error:
        if old.exists() and not (folder / GRAPHS).exists():
            old.rename(folder / GRAPHS)
        raise ModelError(f"{folder / GRAPHS}: cannot be written: {error}") from None
    finally:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


def _write_new(fresh: Path, made: Made, before: Path | None) -> None:
    """The graphs of a new folder, and what says what may be done with the model."""
    _write_graphs(fresh / GRAPHS, made)
    for file in before.iterdir() if before else ():
        if model_folder.is_licence(file.name):
            shutil.copy(file, fresh / file.name)


def _sweep(folder: Path) -> None:
    """Mends what an export left that was killed: graphs that were not put in place, or not put back."""
    for left in folder.glob(f".{GRAPHS}.*"):
        if model_folder.is_alive(int(left.name.split(".")[2])):
            continue
        if left.suffix == ".old" and not (folder / GRAPHS).exists():
            left.rename(folder / GRAPHS)
        shutil.rmtree(left, ignore_errors=True)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _card(model: DualEncoder, folder: Path, source: str | Path) -> str:
    command = f"cliplet export {source} --out {folder}"
    return imported_card(model.config, folder.name, str(source), model.count_parameters(), command)


def _write_graphs(folder: Path, made: Made) -> None:
    folder.mkdir(parents=True)
    for tower, data in made.graphs.items():
        (folder / f"{tower}.onnx").write_bytes(data)
    with (folder / PROBE).open("wb") as stream:
        np.savez_compressed(stream, **made.probe)  # type: ignore[arg-type]
    (folder / PARITY).write_text(made.export.to_json() + "\n", encoding="utf-8")
    for file in folder.iterdir():
        flush(file)
