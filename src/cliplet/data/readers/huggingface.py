"""Hugging Face data sets to records: from the hub, saved to disk, Parquet, Arrow, image folders."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from cliplet.data.readers.arrow_rows import SPLIT_NAMES, RowReader, find_columns
from cliplet.data.readers.collector import LOOKED_AT, Collector, is_file
from cliplet.data.readers.folders import SPLITS
from cliplet.data.readers.hub import NAME_FORM, NOT_HERE, from_hub, library, one_line, prepared, spoken_by_us
from cliplet.data.readers.json_files import read_json_lines
from cliplet.data.readers.tables import read_table
from cliplet.data.records import ImageTextSource
from cliplet.errors import DataError

NO_NAME = r"(?!\S*(--|\.\.))"  # the hub allows neither in a name
HUB_NAME = re.compile(NO_NAME + r"(?P<repo>([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(:(?P<config>[^:/\\]+))?")
BARE_NAME = re.compile(NO_NAME + r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".token", ".tar", ".zip", ".parquet", ".arrow")
ARROW, PARQUET, SAVED, IMAGE_FOLDER = "Arrow", "Parquet", "saved to disk", "image folder"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
OTHER_FORM = re.compile(r"captions_.*\.json|dataset_(?!infos?\.json|dict\.json).*\.json|.*\.tar|(?!metadata\.).*\.csv")
FOLDERS_LOOKED_INTO = 1000


def is_hub_name(path: str) -> bool:
    """Whether this can name a data set on the hub: `hf:` with anything, or `owner/name` that ends like no file."""
    bare = BARE_NAME.fullmatch(path) is not None and not path.lower().endswith(FILE_ENDINGS)
    return bare or path.startswith("hf:")


def is_data_set(path: Path) -> bool:
    """Whether a file or folder is a data set as `datasets` writes or reads it. Nothing is opened."""
    return _form(path) is not None


def read_hub(name: str, samples: int | None = None) -> ImageTextSource:
    """A data set from the hub, downloaded into the cache of `datasets`.

    `samples`: only the first so many rows of each split are downloaded, and kept for the next time. No code from the
    hub is run. Raises DataError for a name that is not there, a hub out of reach, and columns that are not understood.
    """
    match = HUB_NAME.fullmatch(name.removeprefix("hf:"))
    if match is None:
        raise DataError(f"{name}: cannot be the name of a data set on the Hugging Face hub", NAME_FORM)
    datasets = library("datasets", f"{name}: {NOT_HERE}, and to read it from the Hugging Face hub")
    with spoken_by_us(datasets, name, bars=True):
        splits = from_hub(datasets, name, match["repo"], match["config"], samples)
    form = "hub" if samples is None else f"hub, the first {samples:,} of each split"
    return _source(name, name, form, splits, [Path.cwd()], samples)


def read_local(path: Path, samples: int | None = None) -> ImageTextSource:
    """A data set on this machine; of Parquet, `datasets` makes an Arrow copy in its cache.

    `samples`: read the first so many rows of each split. Raises DataError for damaged files, columns that are not
    understood and pictures that are not there.
    """
    form = _form(path)
    if form == IMAGE_FOLDER:
        return _read_image_folder(path, samples)
    library("pyarrow", f"{path}: to read it")
    if form == ARROW:
        splits = {"": [str(path)]}
    elif form == SAVED:
        splits = _saved(path)
    else:
        splits = _from_parquet(path)
    folders = [path, path.parent, Path.cwd()] if path.is_dir() else [path.parent, Path.cwd()]
    return _source(str(path), path.name, form or PARQUET, splits, folders, samples)


def _source(
    path: str, name: str, form: str, splits: Mapping[str, list[str]], folders: Sequence[Path], samples: int | None
) -> ImageTextSource:
    """The records of each split's Arrow files. A data set with nothing but `train` names no splits: so `datasets`
    calls all that has no other name."""
    files = [file for files in splits.values() for file in files]
    root = os.path.commonpath([Path(file).parent for file in files]) if files else ""
    collector = Collector(name)
    reader = RowReader(collector, Path(root), folders)
    for split, its_files in splits.items():
        named = "" if list(splits) == ["train"] else SPLIT_NAMES.get(split, split)
        reader.read_files(its_files, f"{name} {split}".strip(), named, samples)
    return ImageTextSource(path, f"Hugging Face data set ({form})", collector.records(Path(root)), collector.problems)


def _form(path: Path) -> str | None:
    """What kind of data set it is, by the names of files."""
    if path.is_file():
        return {".arrow": ARROW, ".parquet": PARQUET}.get(path.suffix.lower())
    names: set[str] = set()  # of files that tell; a folder of pictures may hold millions of others
    folders: set[str] = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith((".json", ".tar", ".csv", ".parquet", *METADATA)):
                    names.add(entry.name)
                elif entry.is_dir():
                    folders.add(entry.name)
    except OSError:
        return None
    if "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names:
        return SAVED
    if any(OTHER_FORM.fullmatch(name) for name in names):
        return None
    looked_into = sorted(folders)[:FOLDERS_LOOKED_INTO]
    if not names.isdisjoint(METADATA) or any(is_file(path / f / name) for f in looked_into for name in METADATA):
        return IMAGE_FOLDER
    # img2dataset puts a table without pictures beside each folder of them: 00000.parquet, 00000/
    tables = any(name.lower().endswith(".parquet") and name[: -len(".parquet")] not in folders for name in names)
    return PARQUET if tables or ("data" in folders and _parquet_files(path / "data")) else None


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.parquet") if file.is_file() and not file.name.startswith("."))


def _saved(folder: Path) -> dict[str, list[str]]:
    """The Arrow files of each split that `save_to_disk` wrote. `datasets` would refuse all if one split is empty."""
    try:
        if not (folder / "dataset_dict.json").is_file():
            return dict([_saved_split(folder)])
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return {name: _saved_split(folder / name)[1] for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: what save_to_disk wrote about it cannot be read: {error}",
            "If it was copied or downloaded, files may be missing.",
        ) from None


def _saved_split(folder: Path) -> tuple[str, list[str]]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    split = state.get("_split") or ""  # may be an expression: train[:10%]
    return split if split.isidentifier() else "", [str(folder / file["filename"]) for file in state["_data_files"]]


def _from_parquet(path: Path) -> dict[str, list[str]]:
    """The Arrow files that `datasets` makes of one Parquet file, or of a folder of them with their splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [path] if path.is_file() else _parquet_files(path) + _parquet_files(path / "data")
    for number, file in enumerate(files):
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DataError(
                f"{file}: cannot be read as Parquet: {one_line(error)}",
                "If it was copied or downloaded, it may be cut short.",
            ) from None
        if number == 0:
            find_columns(schema, str(path))  # before a copy is made
    datasets = library("datasets", f"{path}: to read it")
    place = str(path.resolve())
    with spoken_by_us(datasets, str(path), bars=False):
        if path.is_file():
            builder = datasets.load_dataset_builder("parquet", data_files={"train": glob.escape(place)})
        else:
            builder = datasets.load_dataset_builder(place)
        return prepared(builder)


def _read_image_folder(folder: Path, samples: int | None) -> ImageTextSource:
    """Pictures with their captions in metadata.jsonl, .csv or .parquet beside them, or in folders of one level.

    Read line by line: `datasets` would refuse all for one bad line. The split is what a line says or, as in other
    folders of pictures, the first folder's name where that is train, val, test or the like.
    """
    whole, taken = Collector(folder.name), Counter[str]()
    for file in _metadata_files(folder):
        part = Collector(str(file.relative_to(folder)))
        _read_metadata(part, file)
        try:
            records = part.records(file.parent)
        except DataError:  # nothing in this one; its problems say why
            continue
        finally:
            whole.problems += part.problems
        for record in records:
            image = os.path.relpath(record.image, folder)
            parts = Path(image).parts
            split = record.split or (SPLITS.get(parts[0].lower(), "") if len(parts) > 1 else "")
            split = SPLIT_NAMES.get(split, split)
            taken[split] += 1
            if samples is not None and taken[split] > samples:
                continue
            for caption in record.captions:
                whole.add(image, image, caption, split)
    form = f"Hugging Face data set ({IMAGE_FOLDER})"
    source = ImageTextSource(str(folder), form, whole.records(folder), whole.problems)
    first = list(islice(whole.pictures(), LOOKED_AT))
    if not any(is_file(folder / image) for image in first):
        raise DataError(
            f"{folder}: its pictures are not there, {first[0]} for example",
            "The names in metadata files start from the folder that the file is in.",
        )
    return source


def _metadata_files(folder: Path) -> Iterator[Path]:
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    for parent in [folder, *below]:
        yield from (parent / name for name in METADATA if is_file(parent / name))


def _read_metadata(collector: Collector, file: Path) -> None:
    if file.suffix == ".jsonl":
        read_json_lines(collector, file)
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            first_line = stream.readline()
        read_table(collector, file, first_line)
    else:
        library("pyarrow", f"{file}: to read it")
        import pyarrow as pa
        import pyarrow.parquet as pq

        reader, number = RowReader(collector, file.parent, [file.parent]), 0
        try:
            for batch in pq.ParquetFile(file).iter_batches():
                reader.read_batch(batch, collector.name, number, "")
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: cannot be read as Parquet: {one_line(error)}") from None
