"""The contract between workshop and runtime: a folder that says all there is to know of a model. No torch.

config.json         format version, the model's configuration, what it does not say of the towers
model.safetensors   weights
tokenizer.json      the tokenizer, whole
metrics.json        what was measured, on which data
README.md           the model card
modules.json        that sentence-transformers opens it by cliplet's own module
onnx/               exported graphs, if there are any; a folder that has them may lack the weights
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError, safe_open

from cliplet.config import Config, ModelConfig, validated
from cliplet.errors import ConfigError, ModelError
from cliplet.files import flush
from cliplet.runtime.tokenizer import Tokenizer

FORMAT_VERSION = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
METRICS, CARD = "metrics.json", "README.md"
MODULES = "modules.json"
# What sentence-transformers reads first: which class opens the folder.
MODULES_TEXT = [{"idx": 0, "name": "0", "path": "", "type": "cliplet.sentence_transformer.ClipletModule"}]
# What is part of a model and goes wherever it goes: no program, and nothing that is unpickled when it is opened.
_OWN = {CONFIG, WEIGHTS, TOKENIZER, METRICS, CARD, MODULES, "config_sentence_transformers.json"}
_LICENCES = {"LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE"}
_GRAPHS = re.compile(r"onnx/\w[\w.-]*\.(?:onnx|onnx\.data|onnx_data|json|npz)", re.ASCII)
GRAPHS, PARITY = "onnx", "parity.json"  # what `cliplet export` adds; runtime/exported.py reads it


class Description(Config):
    """config.json."""

    format: str = "cliplet"
    format_version: int = FORMAT_VERSION
    model: ModelConfig
    tokenizer_entries: int | None = None
    image_architecture: dict[str, Any] | None = Field(default=None)
    text_architecture: dict[str, Any] | None = Field(default=None)


def is_model_folder(folder: str | Path) -> bool:
    """Whether a path looks like a model folder, good or damaged."""
    return (Path(folder) / CONFIG).is_file()


def is_run_folder(folder: str | Path) -> bool:
    """Whether a path is the folder of a run, which holds model folders."""
    return any((Path(folder) / name / CONFIG).is_file() for name in ("model", "last"))


def belongs(name: str) -> bool:
    """Whether a file of this name, with / between folders, is part of a model; everything else is somebody's own."""
    return name in _OWN or name in _LICENCES or _GRAPHS.fullmatch(name) is not None


def is_licence(name: str) -> bool:
    """Whether a file that belongs to a model says what may be done with it."""
    return name in _LICENCES


def contents(folder: str | Path) -> tuple[list[str], list[str]]:
    """The files of a model folder that are part of the model, and what else lies there, folders with a / at their end.
    Names are relative and in order. Raises OSError."""
    folder = Path(folder)
    found = [path for path in folder.iterdir() if path.name != GRAPHS] + list((folder / GRAPHS).glob("*"))
    names = {path.relative_to(folder).as_posix() + "/" * path.is_dir() for path in found}
    own = {name for name in names if belongs(name)}
    return sorted(own), sorted(names - own)


def read_description(folder: str | Path) -> Description:
    """What a model folder says of its model. Raises ModelError naming what is wrong with the folder."""
    folder = Path(folder)
    if folder.is_file():
        hint = "Stored embeddings can be measured and compared, and nothing else: FILE.npz, or IMAGES.npy+TEXTS.npy."
        embeddings = folder.suffix.lower() in (".npz", ".npy")
        raise ModelError(f"{folder}: is a file, and no model folder", hint if embeddings else "")
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder")
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if name == WEIGHTS and (folder / GRAPHS / PARITY).is_file():
            continue  # exported to be used, and not to be trained
        if not (folder / name).is_file():
            inside = next((sub for sub in ("model", "last") if (folder / sub / CONFIG).is_file()), None)
            hint = f"The model is in {folder / inside}." if inside else "Train one: cliplet train RECIPE."
            raise ModelError(f"{folder}: is no model folder, for it has no {name}", hint)
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder / CONFIG}: is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != "cliplet":
        raise ModelError(f"{folder}: is a model folder of another tool", "cliplet opens folders that cliplet wrote.")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise ModelError(
            f"{folder}: is of format version {version}; this cliplet reads version {FORMAT_VERSION}",
            "Upgrade cliplet." if newer else "Train or export the model again with this cliplet.",
        )
    try:
        return validated(Description, data, str(folder / CONFIG))
    except ConfigError as error:
        raise ModelError(error.message, error.hint) from None


def refuse_other_tokenizer(folder: str | Path, description: Description, tokenizer: Tokenizer) -> None:
    """Raises ModelError where tokenizer.json is another model's."""
    entries = description.tokenizer_entries
    if entries is not None and not tokenizer.ends_at(entries):
        raise ModelError(
            f"{folder}: its tokenizer.json is another model's: it has {tokenizer.vocab_size:,} entries, but was "
            f"saved with {entries:,}"
        )


def summarize(folder: str | Path) -> dict[str, Any]:
    """What `cliplet inspect` shows: `model` (ModelConfig), `parameters`, `bytes` of weights, `metrics`.

    Reads the headers of the weights only. Raises ModelError.
    """
    description = read_description(folder)
    weights = Path(folder) / WEIGHTS
    if not weights.is_file():
        return {"model": description.model, **_summary_of_graphs(Path(folder))}
    try:
        with safe_open(weights, framework="numpy") as tensors:
            counts = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
        metrics = json.loads((Path(folder) / METRICS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        metrics = {}
    except Exception as error:  # safetensors raises its own kind, json another
        raise ModelError(f"{folder}: is damaged: {error}") from None
    return {"model": description.model, "parameters": sum(counts), "bytes": weights.stat().st_size, "metrics": metrics}


def _summary_of_graphs(folder: Path) -> dict[str, Any]:
    """What `summarize` tells of a folder without weights."""
    try:
        export = json.loads((folder / GRAPHS / PARITY).read_text(encoding="utf-8"))
        size = sum(graph["bytes"] for graph in export["graphs"].values())
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if (folder / METRICS).is_file() else {}
        return {"parameters": export["parameters"], "bytes": size, "metrics": metrics}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: is damaged: {error}") from None


def write(
    folder: str | Path,
    description: Description,
    weights: dict[str, Any] | None,
    tokenizer: Tokenizer,
    *,
    card: str = "",
    metrics: dict[str, Any] | None = None,
    add: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes a model folder beside its place and moves it there, so that no reader ever sees half of one.

    `weights`: named torch tensors, contiguous and on the CPU; None for a folder that is there to be used only, which
    `add` gives its exported graphs. An earlier model folder there is replaced. Anything else there, but for an empty
    folder, is left alone and ModelError raised, as it is when the disk is full.
    """
    folder = Path(folder).resolve()  # of a link, what it leads to is replaced, and the link stays
    refuse_occupied(folder)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        if weights is not None:
            from safetensors.torch import save_file  # only the workshop writes weights

            save_file(weights, fresh / WEIGHTS, metadata={"format": "pt"})
        tokenizer.save(fresh / TOKENIZER)
        (fresh / CONFIG).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (fresh / METRICS).write_text(json.dumps(metrics or {}, indent=2) + "\n", encoding="utf-8")
        (fresh / CARD).write_text(card, encoding="utf-8")
        (fresh / MODULES).write_text(json.dumps(MODULES_TEXT, indent=2) + "\n", encoding="utf-8")
        add(fresh)
        if weights is not None:  # safetensors keeps its files from everybody else
            (fresh / WEIGHTS).chmod((fresh / CARD).stat().st_mode)
        for file in fresh.iterdir():
            flush(file)
        flush(fresh)
        _replace(folder, fresh)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def recover(folder: str | Path) -> None:
    """Mends what a killed `write` of this folder left; for the start of a run, before anything writes there.

    Killed between its two renames it left no folder, and the earlier one is put back. Killed elsewhere it left folders
    beside; those of processes that are no longer alive are removed. Raises ModelError when nothing can be put back.
    """
    folder = Path(folder).resolve()
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(\d{{1,9}})\.(?:writing|old)")
    names = [(path, pattern.fullmatch(path.name)) for path in folder.parent.glob(".*")]
    left = {path: int(name[1]) for path, name in names if name}
    earlier = [path for path in left if path.suffix == ".old" and _is_whole(path)]
    if earlier and not folder.exists():
        latest = max(earlier, key=lambda path: path.stat().st_mtime)
        try:
            latest.rename(folder)
        except OSError as error:
            raise ModelError(f"{folder}: cannot be put back from {latest.name}: {error}") from None
        flush(folder.parent)
    for path, process in left.items():
        if not is_alive(process):
            shutil.rmtree(path, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether all is there that a model is opened from; folders half removed are not whole."""
    return all((folder / name).is_file() for name in (CONFIG, WEIGHTS, TOKENIZER))


def is_alive(process: int) -> bool:
    """Whether a process other than this one has that number."""
    if process == os.getpid():
        return False
    if os.name == "nt":
        return True  # this question would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def refuse_occupied(folder: str | Path) -> None:
    """Raises ModelError where something stands that a model folder must not replace: anything but another one."""
    folder = Path(folder)
    if folder.exists() and not _may_be_replaced(folder):
        raise ModelError(f"{folder}: is there already and is no model folder of cliplet", "Name another place.")


def _may_be_replaced(folder: Path) -> bool:
    """Whether it is an empty folder or one that says that cliplet wrote it: other tools have a config.json too."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(data, dict) and data.get("format") == "cliplet"


def _replace(folder: Path, fresh: Path) -> None:
    """`fresh` in the place of `folder`. Folders cannot be swapped in one step everywhere, so the old steps aside."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a process of this number that was killed
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
