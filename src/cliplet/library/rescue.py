"""What can be read of damaged records (`damaged.py`) in new ones, and the rest from where it is written twice.

A picture whose row is lost is known by its path and content from the indexes, and keeps its number and
its captions: the next run reads its file again. Captions stand both by themselves and with their pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cliplet.library.damaged import KEYS, connected, opened_damaged
from cliplet.library.database import Database, named, uri_of
from cliplet.library.local_reading import content_of_text
from cliplet.library.records import Identity, joined, listed
from cliplet.library.store import Calibration

TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (float, int), "TEXT": (str, bytes), "BLOB": (bytes,)}
NUMBERS = {"id": 1, "picture": 1, "generation": 1, "row": 0, "image_rows": 0, "text_rows": 0}  # the least of them
WITHOUT_NULS = ("path", "name", "folder", "format", "added")  # what is cut off in a file reads as such
PATHS = "sqlite_autoindex_pictures_1"  # the index that SQLite makes of them
MOST_ID = 2**53  # a larger number is damage
ASKED_AT_MOST = 1_000_000  # numbers between two damaged places
ROWS_AT_ONCE = 5000


class Rescued(NamedTuple):
    """What was kept."""

    rows: int  # that could be read
    by_name: int  # pictures of which only the name, the number and captions are known
    numbers_known: bool  # that were given to pictures


@dataclass(frozen=True)
class Table:
    """One of the tables, as it has to be: (name, type, whether it may be NULL) of its columns."""

    name: str
    columns: tuple[tuple[str, str, bool], ...]

    @classmethod
    def all(cls, database: Database) -> list[Table]:
        """Those of whole records."""
        found = {name: database.rows(f"PRAGMA table_info({name})") for name in KEYS}
        return [
            cls(name, tuple((row["name"], row["type"], not row["notnull"] and not row["pk"]) for row in rows))
            for name, rows in found.items()
        ]

    @property
    def names(self) -> str:
        """Of the columns."""
        return ", ".join(name for name, *_ in self.columns)

    def is_sound(self, row: Sequence[Any]) -> bool:
        """Whether a row is one that cliplet could have written, as far as can be told."""
        for (name, kind, may_be_null), value in zip(self.columns, row, strict=True):
            if value is None and may_be_null:
                continue
            if type(value) not in TYPES[kind] or (name == "content" and len(value) != 16):
                return False
            if name in NUMBERS and not NUMBERS[name] <= value < MOST_ID:
                return False
            if name in WITHOUT_NULS and (b"\0" if isinstance(value, bytes) else "\0") in value:
                return False
        values = dict(zip(self.names.split(", "), row, strict=True))
        if self.name == "captions":
            return content_of_text(named(values["text"])) == values["content"]
        if self.name != "generations":
            return True
        identity = identity_in(values["identity"])
        return identity is not None and identity.dims == values["dims"] and _is_calibration(values["calibration"])


def identity_in(text: Any) -> Identity | None:
    """The model that is described there; None where it is damaged."""
    with suppress(ValueError, TypeError):
        identity = Identity.from_json(text)
        return identity if isinstance(identity.dims, int) and identity.dims > 0 else None
    return None


def _is_calibration(text: Any) -> bool:
    with suppress(ValueError, TypeError):
        Calibration(**json.loads(text))
        return True
    return False


def garbled(file: Path) -> str:
    """Which table of records that SQLite takes for whole holds rows that cannot be; empty if none does."""
    with closing(Database(file, write=True)) as database:
        tables = Table.all(database)
    with closing(connected(f"{uri_of(file)}?mode=rw")) as old:
        for table in tables:
            rows = old.execute(f"SELECT {table.names} FROM {table.name} NOT INDEXED")
            if not all(map(table.is_sound, rows)):
                return f"the table {table.name} holds what cannot be"
    return ""


def rescue(file: Path, database: Database) -> Rescued:
    """Copies every row that can be read from a damaged file into an empty one. Raises OSError on a full disk."""
    tables = {table.name: table for table in Table.all(database)}
    with opened_damaged(file, database.file) as old:
        for table in tables.values():
            _insert(database, table, old.readable(table.name, table.names))
        paths = _by_id(old.readable("pictures", "id, path", PATHS, ("path", "id")))
        contents = _by_id(old.readable("pictures", "id, content", "pictures_by_content", ("content", "id")))
        there = _numbers(database, "SELECT id FROM pictures")
        given = there | set(paths) | set(contents) | _numbers(database, "SELECT DISTINCT picture FROM captions")
        if old.damaged >= {"pictures", PATHS}:
            given |= set(range(1, min(max(given, default=0), ASKED_AT_MOST)))
        if "pictures" in old.damaged:
            _insert(database, tables["pictures"], old.one_by_one("pictures", tables["pictures"].names, given - there))
        if "captions" in old.damaged:
            _insert(database, tables["captions"], old.one_by_one("captions", tables["captions"].names, given))
        rows = sum(int(database.rows(f"SELECT count(*) FROM {name}")[0][0]) for name in KEYS if name != "meta")
        by_name = _write_by_name(database, tables["pictures"], paths, contents)
        known = _set_sequences(database, dict(old.readable("sqlite_sequence", "name, seq", keys=("rowid",))))
        known = known or not (given or old.damaged)
    _reconcile_captions(database)
    return Rescued(rows, by_name, known)


def _numbers(database: Database, statement: str) -> set[int]:
    return {int(row[0]) for row in database.rows(statement)}


def _by_id(rows: Iterable[tuple[Any, ...]]) -> dict[int, Any]:
    return {id: value for id, value in rows if isinstance(id, int) and 0 < id < MOST_ID}


def _insert(database: Database, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    statement = f"INSERT OR IGNORE INTO {table.name} ({table.names}) VALUES ({', '.join('?' * len(table.columns))})"
    sound = filter(table.is_sound, rows)
    while span := list(islice(sound, ROWS_AT_ONCE)):
        with database.transaction():
            database.run_many(statement, span)


def _write_by_name(database: Database, table: Table, paths: Mapping[int, Any], contents: Mapping[int, Any]) -> int:
    """Pictures whose row is lost, with a size and time that no file has: so the next run reads theirs again.

    `paths` and `contents` by number."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    before = int(database.rows("SELECT count(*) FROM pictures")[0][0])
    there = _numbers(database, "SELECT id FROM pictures")
    rows = []
    for id in sorted((set(paths) | set(contents)) - there):
        path = paths.get(id)
        if not isinstance(path, (str, bytes)):
            if id not in contents:
                continue
            path = f"lost-{id}"  # a file that the next run finds to have moved, by its content
        folder, name = os.path.split(named(path))
        values: dict[str, Any] = {"id": id, "path": path, "name": name, "folder": folder, "added": now, "format": ""}
        values |= {"bytes": -1, "changed": -1, "width": 0, "height": 0, "content": contents.get(id, bytes(16))}
        rows.append(tuple(values.get(column) for column, *_ in table.columns))
    _insert(database, table, rows)
    return int(database.rows("SELECT count(*) FROM pictures")[0][0]) - before


def _set_sequences(database: Database, old: Mapping[Any, Any]) -> bool:
    """So that no number is given twice, neither one of a picture that is gone nor one that only captions still have.
    Returns whether it is known which were given to pictures."""
    known = {name: seq for name, seq in old.items() if isinstance(seq, int) and 0 <= seq < MOST_ID}
    for table, more in (("pictures", "SELECT max(picture) FROM captions"), ("generations", "SELECT 0")):
        seen = max(int(database.rows(one)[0][0] or 0) for one in (f"SELECT max(id) FROM {table}", more))
        raise_sequence(database, table, max(seen, known.get(table, 0)))
    return "pictures" in known


def raise_sequence(database: Database, table: str, least: int) -> None:
    """Numbers that are given from now on are larger than `least`."""
    with database.transaction():
        database.run(
            "INSERT INTO sqlite_sequence SELECT ?, 0 WHERE ? NOT IN (SELECT name FROM sqlite_sequence)", [table] * 2
        )
        database.run("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", [least, table])


def _reconcile_captions(database: Database) -> None:
    """Captions stand by themselves, and together with their picture: where there are less, the others are taken."""
    with database.transaction():
        database.run("DELETE FROM captions WHERE picture NOT IN (SELECT id FROM pictures)")
        counted = "SELECT id, captions, (SELECT count(*) FROM captions WHERE picture = id) FROM pictures"
        for id, text, count in database.rows(counted):
            captions = listed(named(text)) if text else ()
            if len(captions) > count:
                rows = [(id, place, caption, content_of_text(caption)) for place, caption in enumerate(captions)]
                database.run("DELETE FROM captions WHERE picture = ?", [id])
                database.run_many("INSERT INTO captions VALUES (?, ?, ?, ?)", rows)
            elif len(captions) < count:
                found = database.rows("SELECT text FROM captions WHERE picture = ? ORDER BY place", [id])
                database.run(
                    "UPDATE pictures SET captions = ? WHERE id = ?", [joined(tuple(named(one[0]) for one in found)), id]
                )
