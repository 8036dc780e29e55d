"""Pictures as rows of a table in LanceDB, made alike by the writer and by workers on other machines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np

from cliplet.library.lance_tables import pictures_schema, sound, vectors_column
from cliplet.library.records import joined
from cliplet.library.store import Entry

PLAIN = ("format", "width", "height", "taken", "year", "month", "day", "hour", "latitude", "longitude", "camera")


class Before(NamedTuple):
    """What a picture that is read again had."""

    captions: tuple[str, ...]
    own: tuple[str, ...]  # of them, those that the file itself carried
    added: str


def now() -> str:
    """As it is written into the column `added`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def picture_row(entry: Entry, id: int, before: Before | None) -> dict[str, Any]:
    """All columns of a picture but the vector. `before`: of the picture that had this number."""
    own = tuple(map(sound, entry.columns.get("own_captions", ())))
    folder, name = os.path.split(entry.path)
    row = {column: entry.columns.get(column) for column in PLAIN}
    row |= {column: sound(value) for column, value in row.items() if isinstance(value, str)}
    row |= {"id": id, "path": entry.path, "name": name, "folder": folder, "bytes": entry.bytes}
    row |= {"changed": entry.changed, "content": entry.content, "own_captions": joined(own)}
    row["tags"] = joined(tuple(map(sound, entry.columns.get("tags", ()))))
    row["captions"] = joined(_captions(entry, own, before))
    row["added"] = before.added if before else now()
    return row


def _captions(entry: Entry, own: tuple[str, ...], before: Before | None) -> tuple[str, ...]:
    """Those that are given, or those that were there with the file's own ones renewed."""
    if entry.captions is not None:
        return tuple(map(sound, entry.captions))
    if before is None:
        return own
    if before.own == own:
        return before.captions
    return tuple(dict.fromkeys((*(one for one in before.captions if one not in before.own), *own)))


def pictures_table(rows: Sequence[Mapping[str, Any]], features_ND: np.ndarray) -> Any:
    """Rows and their vectors as a pyarrow table."""
    import pyarrow as pa

    schema = pictures_schema(features_ND.shape[1])
    fields = [field for field in schema if field.name != "vector"]
    columns = [pa.array([row[field.name] for row in rows], type=field.type) for field in fields]
    return pa.table([*columns, vectors_column(features_ND)], schema=schema)


class Contents:
    """Which pictures have which content. Reading is safe while another thread writes."""

    def __init__(self, rows: Any):
        """From a table with `id` and `content`."""
        self._ids: dict[bytes, tuple[int, ...]] = {}
        for id, content in zip(rows["id"].to_pylist(), rows["content"].to_pylist(), strict=True):
            self.add(content, id)

    def __contains__(self, content: bytes) -> bool:
        return content in self._ids

    def ids(self, content: bytes) -> tuple[int, ...]:
        """Of the pictures that have it."""
        return self._ids.get(content, ())

    def add(self, content: bytes, id: int) -> None:
        """A picture more."""
        self._ids[content] = (*self._ids.get(content, ()), id)

    def remove(self, content: bytes, id: int) -> None:
        """A picture less."""
        left = tuple(one for one in self._ids.get(content, ()) if one != id)
        if left:
            self._ids[content] = left
        else:
            self._ids.pop(content, None)
