"""Mending a library's folder: what is damaged is put aside, what can be known is written anew. Pictures are only read.

Vectors carry a checksum and what they are vectors of (`matrix.py`), and library.json the folders. So a library whose
records are lost is made again by looking through its folders, and embeds nothing that is in its matrices; a vector that
is damaged is embedded again, it alone.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cliplet.errors import DataError
from cliplet.files import written_beside
from cliplet.library.database import IMAGE, TEXT, Database
from cliplet.library.local import ABOUT, FORMAT, FORMAT_VERSION, RECORDS
from cliplet.library.local_view import file_names
from cliplet.library.locks import only_writer
from cliplet.library.matrix import Matrix

Say = Callable[[str], None]
SAVED_TABLES = ("meta", "roots", "pictures", "captions", "generations", "vectors", "problems")


def repair(folder: Path, say: Say) -> None:
    """Looks for damage in a library and mends it. Damaged files stay beside it under another name.

    After it, `cliplet index` has to look through the folders; the command does so by itself. Raises DataError where the
    folder holds nothing of a library, or where another process is writing to it.
    """
    if not folder.is_dir() or not any((folder / name).exists() for name in (ABOUT, RECORDS)):
        raise DataError(f"{folder}: holds nothing of a library", "Name the folder of a library.")
    with only_writer(folder, say, wait=False):
        _mend_records(folder, say)
        _mend_about(folder, say)
        with closing(Database(folder / RECORDS, write=True)) as database:
            for row in database.rows("SELECT * FROM generations"):
                _mend_vectors(folder, database, row, say)


def _mend_records(folder: Path, say: Say) -> None:
    """A whole table of records: the old one, or a new one with every row of it that can still be read."""
    file = folder / RECORDS
    complaint = "it is not there"
    if file.exists():
        try:
            with closing(Database(file, write=True)) as database:
                complaint = database.complaint()
        except DataError as error:
            complaint = error.message.removeprefix(f"{file}: ")
    if not complaint:
        say("the records are whole")
        return
    say(f"the records are damaged: {complaint}")
    aside = folder / f"{RECORDS}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{file}{ending}", f"{aside}{ending}")
    with closing(Database.create(file)) as database:
        rows = _saved(aside, database) if aside.exists() else 0
        if not database.rows("SELECT 1 FROM generations WHERE active"):
            _new_generation(folder, database, say)
    kept = f"; the damaged file is kept as {aside.name}" if aside.exists() else ""
    say(f"{rows:,} rows of it could be read and were kept{kept}")


def _saved(aside: Path, database: Database) -> int:
    """Copies every row that can be read from the damaged file."""
    saved = 0
    try:
        old = sqlite3.connect(f"file:{aside}?mode=ro&immutable=1", uri=True)
    except sqlite3.Error:
        return 0
    with closing(old):
        for table in SAVED_TABLES:
            with suppress(sqlite3.Error, DataError):
                columns = [row["name"] for row in database.rows(f"PRAGMA table_info({table})")]
                marks = ", ".join("?" * len(columns))
                cursor = old.execute(f"SELECT {', '.join(columns)} FROM {table}")
                while (row := cursor.fetchone()) is not None:
                    with suppress(sqlite3.Error):
                        database.run(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)
                        saved += 1
    return saved


def _new_generation(folder: Path, database: Database, say: Say) -> None:
    """Records of the matrices, from what stands in them, where no records of them are left."""
    about = _about(folder)
    identity, generation = about.get("identity"), about.get("generation")
    if not identity or not isinstance(generation, int):
        say("nothing is known of the vectors' model any more: index again with -m MODEL")
        return
    dims = int(json.loads(identity)["dims"])
    names = file_names(folder, generation)
    rows = {kind: Matrix(names[part], dims).whole_rows() for kind, part in ((IMAGE, "vectors"), (TEXT, "captions"))}
    database.run(
        "INSERT INTO generations (id, identity, dims, image_rows, text_rows, active) VALUES (?, ?, ?, ?, ?, 1)",
        [generation, identity, dims, rows[IMAGE], rows[TEXT]],
    )


def _mend_about(folder: Path, say: Say) -> None:
    about = _about(folder)
    if about.get("format") == FORMAT and about.get("format_version") == FORMAT_VERSION:
        roots = [os.fsdecode(bytes.fromhex(root)) for root in about.get("roots", [])]
        with closing(Database(folder / RECORDS, write=True)) as database:
            database.run_many("INSERT OR IGNORE INTO roots VALUES (?)", [[root] for root in roots])
        return
    say(f"{ABOUT} is damaged, and written anew")
    with closing(Database(folder / RECORDS)) as database:
        roots = [row[0] for row in database.rows("SELECT path FROM roots")]
    with written_beside(folder / ABOUT) as beside:
        content = {"format": FORMAT, "format_version": FORMAT_VERSION}
        content_roots = {"roots": [os.fsencode(root).hex() for root in roots]}
        beside.write_text(json.dumps(content | content_roots, indent=1) + "\n", encoding="utf-8")


def _about(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about if isinstance(about, dict) else {}
    return {}


def _mend_vectors(folder: Path, database: Database, row: Any, say: Say) -> None:
    """Forgets vectors that are not what was written, and finds those again that no record speaks of."""
    names = file_names(folder, row["id"])
    for kind, part, column in ((IMAGE, "vectors", "image_rows"), (TEXT, "captions", "text_rows")):
        matrix, rows = Matrix(names[part], row["dims"]), int(row[column])
        damaged = set(matrix.damaged(rows).tolist())
        there = min(rows, matrix.whole_rows())
        contents = matrix.contents(there)["content"]
        right = [(row["id"], kind, contents[place].tobytes(), place) for place in range(there) if place not in damaged]
        with database.transaction():
            database.run("DELETE FROM vectors WHERE generation = ? AND kind = ?", [row["id"], kind])
            database.run_many("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?, ?)", right)
            database.run(f"UPDATE generations SET {column} = ? WHERE id = ?", [there, row["id"]])
        what = "pictures" if kind == IMAGE else "captions"
        if damaged:
            say(f"{len(damaged):,} of {rows:,} vectors of {what} are damaged; they are embedded again")
        elif rows:
            say(f"{rows:,} vectors of {what} are whole")
    for left in folder.glob(f"{names['index'].name}*"):
        left.unlink()  # it is made again
