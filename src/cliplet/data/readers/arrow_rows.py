"""Rows of Arrow tables to records: which columns hold pictures and captions, and where each picture's bytes are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cliplet.data.places import arrow_row
from cliplet.data.readers.arrow_files import (
    check_bounds,
    is_caption,
    is_picture,
    is_text,
    pictures,
    values,
    whole_batches,
)
from cliplet.data.readers.collector import LOOKED_AT, Collector, is_file
from cliplet.data.readers.columns import DOWNLOAD_FIRST, IMAGE_COLUMNS, caption_names
from cliplet.errors import DataError

PICTURE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes")
PATH_COLUMNS = tuple(dict.fromkeys((*PICTURE_COLUMNS, *IMAGE_COLUMNS)))
CAPTION_COLUMNS = ("caption", "captions", "sentence", "sentences", "alt_text", "text", "txt", "caption_text")
LATER_COLUMNS = (
    "raw",
    "sentences_raw",
    "title",
    "description",
    "prompt",
    "alt",
)  # taken for captions where there are no numbered ones either
SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
ROWS_AT_ONCE = 1000
TEXT_KEYS = ("raw", "caption", "text", "sentence", "tokens")  # of a caption that is an object


class Columns(NamedTuple):
    """Names of the columns that are read."""

    image: str
    captions: tuple[str, ...]
    split: str | None

    @property
    def all(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys([self.image, *self.captions, *([self.split] if self.split else [])]))


def find_columns(schema: Any, where: str) -> Columns:
    """The columns of pictures and captions, and of splits if there is one.

    The picture's is known by its Hugging Face feature, else by its name. Numbered columns of captions are all read,
    beside one without a number. Raises DataError that names the columns and the names that are understood.
    """
    try:
        columns = _find_columns(schema, where)
    except UnicodeDecodeError:
        raise DataError(f"{where}: is damaged: the name of a column is not UTF-8") from None
    twice = next((name for name in columns.all if schema.names.count(name) > 1), None)
    if twice:
        raise DataError(f"{where}: has two columns with the name {twice}", "Rename one of them.")
    return columns


def _find_columns(schema: Any, where: str) -> Columns:
    there = ", ".join(f"{field.name} ({_type_name(field.type)})" for field in schema)
    names: dict[str, str] = {}
    types: dict[str, Any] = {}
    for field in schema:
        if names.setdefault(field.name.lower(), field.name) == field.name:
            types.setdefault(field.name.lower(), field.type)
    texts = [name for name, kind in types.items() if is_text(kind)]
    image = _image_column(schema, names, types)
    if image is None:
        urls = [names[name] for name in texts if "url" in name]
        if urls:
            raise DataError(f"{where}: holds no pictures but only their addresses, in {urls[0]}", DOWNLOAD_FIRST)
        raise DataError(
            f"{where}: has no column of pictures; its columns are {there}",
            f"Understood are columns of Hugging Face's Image type, and of encoded pictures or paths under the names "
            f"{', '.join(PATH_COLUMNS)}.",
        )
    fitting = [name for name, kind in types.items() if names[name] != image and is_caption(kind, TEXT_KEYS)]
    captions = caption_names(fitting, CAPTION_COLUMNS, LATER_COLUMNS)
    if not captions:
        raise DataError(
            f"{where}: has no column of captions; its columns are {there}",
            f"Understood are columns of texts, or of lists of texts, under the names {', '.join(CAPTION_COLUMNS)}, "
            f"caption_0, caption_1 and so on, {', '.join(LATER_COLUMNS)}. Rename the one that is meant.",
        )
    return Columns(image, tuple(names[name] for name in captions), names["split"] if "split" in texts else None)


class RowReader:
    """Hands rows to a collector: each embedded picture as its place in the Arrow file, each path as a path."""

    def __init__(self, collector: Collector, root: Path, folders: Sequence[Path]):
        """`root`: the folder that the places of embedded pictures start from. `folders`: those in which relative
        paths are looked for."""
        self._collector, self._root = collector, root
        self._folders = [folder.absolute() for folder in folders]  # else the root would be put before them
        self._folder: Path | None = None  # the one in which they were found
        self._embedded = False  # whether a picture was

    def read_files(self, files: Iterable[str], where: str, split: str, limit: int | None) -> None:
        """The rows of the files that make up one split of a data set, the first `limit` of them.

        `where`: what comes before `row 17` in a problem. Raises DataError for a file that is cut short or has no such
        columns, and where all that there is of pictures is addresses or paths to nothing.
        """
        number = 0
        for file in files:
            row_of_file = 0
            for batch in whole_batches(file, self._collector):
                if limit is not None:
                    batch = batch.slice(0, limit - number)
                    if not len(batch):
                        return
                self.read_batch(batch, where, number, split, file, row_of_file)
                number += len(batch)
                row_of_file += len(batch)

    def read_batch(self, batch: Any, where: str, number: int, split: str, file: str = "", row_of_file: int = 0) -> None:
        """Some rows. `number` is the first one's in the split, `row_of_file` in `file`."""
        columns = find_columns(batch.schema, where)
        check_bounds(batch.select(columns.all), file or where)
        place = os.path.relpath(file, self._root) if file else ""
        for start in range(0, len(batch), ROWS_AT_ONCE):  # captions as Python objects take much memory
            rows = batch.slice(start, ROWS_AT_ONCE)
            self._read_rows(rows, columns, where, number + start, split, place, row_of_file + start)

    def _read_rows(
        self, batch: Any, columns: Columns, where: str, number: int, split: str, file: str, row_of_file: int
    ) -> None:
        sizes, paths = pictures(batch.column(columns.image))
        self._look_for(where, paths, sizes)
        captions = [values(batch.column(name)) for name in columns.captions]
        splits = values(batch.column(columns.split)) if columns.split else [None] * len(batch)
        for row, (size, path, named) in enumerate(zip(sizes, paths, splits, strict=True)):
            here = f"{where} row {number + row}"
            if size:
                image: str | None = arrow_row(file, row_of_file + row, columns.image)
            else:
                image = self._path(here, size, path)
            if image is None:
                continue
            texts = [text for column in captions for text in _texts(column[row])]
            if not texts:
                self._collector.problem(here, "has no caption")
                continue
            named = (named.strip() if isinstance(named, str) else "") or split
            picture = self._collector.picture(here, image, SPLIT_NAMES.get(named, named))
            if picture is None:
                continue
            for position, text in enumerate(texts):
                self._collector.add_caption(here if len(texts) == 1 else f"{here}, caption {position}", picture, text)

    def _path(self, where: str, size: int | None, path: str | None) -> str | None:
        """The file of a picture that is not embedded; None, and a problem, where there is none."""
        if size == 0:
            self._collector.problem(where, "its picture has no bytes")
        elif not path:
            self._collector.problem(where, "holds no picture")
        elif "://" in path:
            self._collector.problem(where, f"its picture is not here but at {path}")
        elif self._folder is not None:
            return os.path.join(self._folder, path)
        return None

    def _look_for(self, where: str, paths: list[str | None], sizes: list[int | None]) -> None:
        """Finds the folder that the paths start from. Raises DataError where there is nothing but paths to nowhere."""
        self._embedded = self._embedded or any(sizes)
        if self._folder is not None:
            return
        found = list(islice((p for p, size in zip(paths, sizes, strict=True) if p and size is None), LOOKED_AT))
        files = [path for path in found if "://" not in path]
        self._folder = next((f for f in self._folders if any(is_file(f / path) for path in files)), None)
        if self._folder is None and found and self._embedded:
            self._folder = self._folders[0]  # the rest of the pictures are good
        elif self._folder is None and files:
            looked = ", ".join(map(str, self._folders))
            raise DataError(
                f"{where}: its pictures are not there, {files[0]} for example; looked in {looked}",
                "The data set holds paths and no pictures; put these where the paths say.",
            )
        elif self._folder is None and found:
            raise DataError(f"{where}: holds no pictures but only their addresses: {found[0]}", DOWNLOAD_FIRST)


def _image_column(schema: Any, names: dict[str, str], types: dict[str, Any]) -> str | None:
    features = _image_features(schema)
    for name in PICTURE_COLUMNS:
        if names.get(name) in features:
            return names[name]
    if features:
        return features[0]
    for name in PICTURE_COLUMNS:
        if name in types and is_picture(types[name]):
            return names[name]
    return next((names[name] for name in PATH_COLUMNS if name in types and is_text(types[name])), None)


def _image_features(schema: Any) -> list[str]:
    """The columns that are Hugging Face's Image by what `datasets` wrote into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError):  # written by something else
        return []
    return [name for name in found if name in schema.names]


def _type_name(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 40 else text[:37] + "..."


def _texts(value: Any) -> list[Any]:
    """The captions in a cell: a text, a list, objects with a text under `raw` and the like, a list of tokens."""
    if value is None:
        return []
    if isinstance(value, list):
        return [text for item in value for text in (_texts(item) if isinstance(item, dict) else [item])]
    if not isinstance(value, dict):
        return [value]
    text = next((value[key] for key in TEXT_KEYS if value.get(key) is not None), None)
    if text is not None and text is value.get("tokens"):
        return [" ".join(map(str, text))] if isinstance(text, list) else [text]
    return text if isinstance(text, list) else [text]
