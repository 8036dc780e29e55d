"""The verbs that are about data: inspect and pack."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import json as json_module
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from cliplet.cli.options import parse
from cliplet.errors import ConfigError


def inspect(words: list[str]) -> None:
    """Say what a data set or a model folder holds, what is wrong with the data, and write a page that shows it."""
    import tyro

    @dataclasses.dataclass
    class Options:
        path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA_OR_MODEL")]
        """Whatever `cliplet train` reads: annotation file, folder, tar shards, URL; or a model folder."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the annotation file."""
        split: str = "all"
        """Look at this split only, or at several joined by +; all takes every picture."""
        samples: int | None = None
        """Look at the first so many pictures of each split only."""
        model: Path | None = None
        """Model folder or tokenizer.json: captions are counted in its tokens, and those that it would cut."""
        context_length: int | None = None
        """Tokens at which captions are cut; by itself what the model takes."""
        page: Path | None = Path("inspection.html")
        """Where to write the page: numbers, pictures with their captions, copies side by side. None for no page."""
        sheet: Path | None = None
        """Where to draw some pictures of each split with their captions as one picture."""
        fix: Path | None = None
        """Where to write a cleaned list as JSON lines: without what cannot be used, stands twice in a split, or
        stands in a more protected split too. Nothing is deleted."""
        overwrite: bool = False
        """Let --fix overwrite any file."""
        json: bool = False
        """Print JSON instead of tables (docs/json.md)."""

    options: Options = parse(Options, "inspect", words, inspect.__doc__ or "")

    from cliplet import model_folder

    if model_folder.is_model_folder(options.path) or model_folder.is_run_folder(options.path):
        _inspect_model(Path(options.path), options.json)
    else:
        _inspect_data(options)


def _inspect_data(options: Any) -> None:
    from cliplet.console import progress_bar
    from cliplet.data import inspection
    from cliplet.data.readers import read_source

    tokens = _token_counter(options.model, options.context_length)
    source = read_source(options.path, options.images, options.samples)
    source = dataclasses.replace(source, records=source.select(options.split))
    for file in (options.page, options.sheet, options.fix):  # before hours of reading, not after them
        if file and not os.access(file.parent, os.W_OK):
            raise ConfigError(f"{file}: cannot be written there", "Name another place: --page, --sheet, --fix.")
    if options.page:
        inspection.refuse_foreign(options.page)
    if options.fix:
        inspection.refuse_occupied(options.fix, source.path, options.overwrite)
    with progress_bar("reading pictures") as progress:
        survey = inspection.survey_source(source, progress=progress, tokens=tokens)
    with progress_bar("comparing pictures") as progress:
        found = inspection.Inspection(inspection.with_copies(survey, progress=progress))
    if options.json:
        form = {"format": "cliplet-inspection", "format_version": 1}
        print(json_module.dumps({**form, **found.as_dict()}, indent=2))
    else:
        from rich import print as show

        show(inspection.inspection_table(found))
    notes = []
    if options.fix:
        notes.append(f"{options.fix}: {inspection.write_cleaned(found, options.fix, options.overwrite)}")
    if options.page:
        inspection.write_page(found, options.page)
        notes.append(f"page: {options.page}")
    if options.sheet and found.readable:
        inspection.write_contact_sheet(found, options.sheet)
        notes.append(f"contact sheet: {options.sheet}")
    for note in notes:
        print(note, file=sys.stderr if options.json else sys.stdout)


def _token_counter(model: Path | None, context_length: int | None) -> Any:
    """What counts tokens, by a model folder, a folder with a tokenizer.json or such a file; None without one."""
    from cliplet import model_folder
    from cliplet.config import TextTowerConfig
    from cliplet.data.inspection import TokenCounter
    from cliplet.errors import ModelError

    if model is None:
        if context_length is not None:
            raise ConfigError("--context-length needs --model", "Tokens are counted by a model's tokenizer.")
        return None
    folder = next((model / name for name in ("model", "last") if model_folder.is_model_folder(model / name)), model)
    file = folder / model_folder.TOKENIZER if folder.is_dir() else folder
    if context_length is None:
        context_length = TextTowerConfig().context_length
        with suppress(ModelError):  # a tokenizer.json alone, or another tool's folder: what a new model would take
            context_length = model_folder.read_description(folder).model.text.context_length
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no tokenizer can be read there: {error}") from None
    return TokenCounter(text, str(model), context_length)


def _inspect_model(folder: Path, json: bool) -> None:
    from cliplet import model_folder
    from cliplet.config import to_yaml

    summary = model_folder.summarize(folder)
    if json:
        form = {"format": "cliplet-model-folder", "format_version": 1}
        print(json_module.dumps({**form, **summary, "model": summary["model"].model_dump(mode="json")}, indent=2))
        return
    print(f"{folder}: {summary['parameters'] / 1e6:.2f} M parameters, {summary['bytes'] / 1e6:.1f} MB of weights\n")
    print(to_yaml(summary["model"]))
    retrieval = summary["metrics"].get("retrieval")
    if retrieval:
        from rich import print as show

        from cliplet.console import recall_table

        data = summary["metrics"].get("data", "validation")
        show(recall_table(retrieval, f"{data}, split {summary['metrics'].get('split')}"))


def pack(words: list[str]) -> None:
    """Pack a data set into tar shards that load fast: pictures made small once, checked, with all their captions."""
    import tyro

    @dataclasses.dataclass
    class Options:
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
        """Whatever `cliplet train` reads: annotation file, folder, tar shards, URL."""
        out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
        """Folder to write; an unfinished pack of the same data and settings is gone on with."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the annotation file."""
        split: str = "all"
        """Split to pack, or several joined by +; all takes every picture."""
        size: int = 256
        """Pixels of the shorter side at most; 0 keeps JPEG, PNG and WebP files as they are."""
        format: Literal["jpeg", "webp"] = "jpeg"
        """How pictures are stored."""
        quality: int = 90
        """From 1 to 100."""
        shard_pictures: int = 1000
        """Pictures a shard."""
        workers: int | None = None
        """Threads; by itself as many as cores."""
        samples: int | None = None
        """Pack the first so many pictures of each split only."""
        quarantine: Path | None = None
        """Where pictures that had to be left out are written down; by itself OUT/quarantine.jsonl."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Options = parse(Options, "pack", words, pack.__doc__ or "")

    from cliplet.console import speed_bar
    from cliplet.data.pack_report import packed, summary
    from cliplet.data.packing import pack as pack_data
    from cliplet.data.shards import Settings

    settings = Settings(
        options.split, options.size, options.format, options.quality, options.shard_pictures, options.samples
    )
    with speed_bar("packing") as tell:
        result = pack_data(
            options.data, options.out, settings, options.images, options.workers, options.quarantine, tell
        )
    if options.json:
        print(packed(result, options.out).to_json())
    else:
        print(summary(result, options.out))
