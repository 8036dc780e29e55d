"""Mending a library's folder: what is damaged is put aside, what can be known is written anew. Pictures are only read.

Vectors carry a checksum and what they are vectors of (`matrix.py`), and library.json the folders and the model. So a
library whose records are lost is made again by looking through its folders, and embeds nothing that is in its matrices;
a vector that is damaged is embedded again, it alone. New records are written beside the old ones and take their place
when they are whole: where the disk is full, all stays as it was.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.files import flush, written_beside
from cliplet.library.database import BESIDE, IMAGE, TEXT, Database, OtherVersion, has_log, named
from cliplet.library.local import ABOUT, FORMAT, FORMAT_VERSION, RECORDS, read_about
from cliplet.library.local_clearing import clear_files
from cliplet.library.local_view import file_names
from cliplet.library.locks import only_writer
from cliplet.library.matrix import ROWS, VECTORS, Matrix
from cliplet.library.rescue import garbled, identity_in, raise_sequence, rescue

Say = Callable[[str], None]
SPARE_IDS = 1000  # numbers that may have been given to pictures, where that is not known any more
KINDS = ((IMAGE, "vectors", "image_rows"), (TEXT, "captions", "text_rows"))


def repair(folder: Path, say: Say) -> None:
    """Looks for damage in a library and mends it. Damaged files stay beside it under another name.

    After it, `cliplet index` has to look through the folders; the command does so by itself. Raises DataError where the
    folder holds nothing of a library or another version's, or where another process is writing to it; OSError where
    the disk is full, with all as it was.
    """
    about = _about(folder)
    of_library = (folder / RECORDS).exists() or has_log(folder / RECORDS) or _matrices(folder)
    if not folder.is_dir() or not (of_library or about.get("format") == FORMAT):
        raise DataError(f"{folder}: holds nothing of a library", "Name the folder of a library.")
    if about.get("format") == FORMAT and isinstance(about.get("format_version"), int):
        read_about(folder)  # raises where the version is another
    with only_writer(folder, say, wait=False):
        for left in folder.glob(f".*{RECORDS}.*"):
            left.unlink()
        lost = _mend_records(folder, say)
        with closing(Database(folder / RECORDS, write=True)) as database:
            for row in database.rows("SELECT * FROM generations"):
                _mend_vectors(folder, database, row, say)
            if lost:
                _say_lost_captions(database, say)
            _mend_about(folder, database, say)


def _mend_records(folder: Path, say: Say) -> bool:
    """A whole table of records: the old one, or a new one with every row of it that can still be read. Returns whether
    it is a new one."""
    file = folder / RECORDS
    complaint = _complaint(file)
    if not complaint:
        say("the records are whole")
        with closing(Database(file, write=True)) as database:
            _mend_generations(folder, database, say)
        return False
    say(f"the records are damaged: {_plain(complaint)}")
    fresh = folder / f".{RECORDS}.new"
    try:
        with closing(Database.create(fresh)) as database:
            rescued = rescue(file, database)
            roots = _roots(_about(folder))
            database.run_many("INSERT OR IGNORE INTO roots VALUES (?)", [[root] for root in roots])
            _mend_generations(folder, database, say, lost=True)
            if not rescued.numbers_known:  # about as many as there are vectors
                raise_sequence(database, "pictures", _most_rows(folder, database) + SPARE_IDS)
        if has_log(fresh):
            raise OSError(f"{file}: the new file could not be written to its end; is the disk full?")
        aside = _put_in_place(fresh, file)
    finally:
        for ending in ("", *BESIDE):
            Path(f"{fresh}{ending}").unlink(missing_ok=True)
    kept = f"; the damaged file is kept as {aside.name}" if aside.exists() else ""
    say(f"{rescued.rows:,} rows of it could be read and were kept{kept}")
    if rescued.by_name:
        say(f"of {rescued.by_name:,} more pictures the number and captions were kept; their files are read again")
    return True


def _complaint(file: Path) -> str:
    """What is wrong with the records; empty if nothing is. Raises DataError where they are another version's."""
    if not file.exists():
        return "they are not there"
    try:
        with closing(Database(file, write=True)) as database:
            complaint = database.complaint()
        return complaint or garbled(file)
    except OtherVersion:
        raise
    except DataError as error:
        return error.message.removeprefix(f"{file}: ").removeprefix("is damaged: ")
    except OSError as error:  # of a disk that is damaged itself; if it is full, so it is for the new file
        return str(error).removeprefix(f"{file}: ")


def _say_lost_captions(database: Database, say: Say) -> None:
    """Vectors of captions hold no words: where the words are lost, only whoever gave them has them."""
    unknown = (
        f"SELECT count(*) FROM vectors WHERE kind = {TEXT} AND content NOT IN (SELECT content FROM captions) "
        "AND generation IN (SELECT id FROM generations WHERE active)"
    )
    if int(database.rows(unknown)[0][0]):
        some = "some " if database.rows("SELECT 1 FROM captions LIMIT 1") else ""
        say(f"{some}captions that came by --captions are lost; give the file again, with --captions FILE")


def _plain(complaint: str) -> str:
    """SQLite's words, which are about its own insides, behind plain ones."""
    page = re.search(r"\b(?:[Pp]age|[Tt]ree) (\d+)", complaint)
    return f"page {page[1]} of {RECORDS} ({complaint})" if page else complaint


def _put_in_place(fresh: Path, file: Path) -> Path:
    """Gives whole records the place of damaged ones; returns what those are called now.

    These keep their name until the new ones have it, so a kill leaves one of the two there. What stands beside them
    goes first: SQLite would take it for the new file's.
    """
    aside = _unused(file.parent, f"{RECORDS}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for ending in ("-wal", ""):
        old = Path(f"{file}{ending}")
        if old.exists() and (not ending or has_log(file)):
            try:
                os.link(old, f"{aside}{ending}")
            except OSError:  # a file system without links
                old.replace(f"{aside}{ending}")
    for ending in BESIDE:
        Path(f"{file}{ending}").unlink(missing_ok=True)
    fresh.replace(file)
    flush(file.parent)
    return aside


def _unused(folder: Path, name: str) -> Path:
    """A name that nothing has, nor what belongs to it."""
    tries = 1
    while any(folder.glob(f"{name}*")):
        tries += 1
        name = f"{name.partition('_')[0]}_{tries}"
    return folder / name


def _mend_generations(folder: Path, database: Database, say: Say, lost: bool = False) -> None:
    """Sees to it that what is told of generations fits the matrices that are there. `lost`: records of some may be."""
    matrices, active = _matrices(folder), _active(database)
    about = _about(folder)
    generation, identity = about.get("generation"), identity_in(about.get("identity"))
    if identity and generation in matrices and (active is None or active["id"] not in matrices):
        names = file_names(folder, int(generation))
        rows = [Matrix(names[part], identity.dims).whole_rows() for _, part, _ in KINDS]
        with database.transaction():
            database.run("UPDATE generations SET active = 0")
            database.run(
                "INSERT OR REPLACE INTO generations (id, identity, dims, image_rows, text_rows, active) "
                "VALUES (?, ?, ?, ?, ?, 1)",
                [generation, about["identity"], identity.dims, *rows],
            )
    elif active is None and matrices:
        say("nothing is known of the vectors' model any more: index again with -m MODEL")
    given = database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'generations'")
    last = (
        int(given[0][0]) if given and not lost else 0
    )  # those up to here were given up: the next run clears them away
    held = {int(row[0]) for row in database.rows("SELECT id FROM generations")}
    clear_files(folder, held | set(range(1, last + 1)), last, say)
    raise_sequence(database, "generations", max(held, default=0))


def _active(database: Database) -> Any:
    """The generation that answers; None where there is none."""
    rows = database.rows("SELECT * FROM generations WHERE active ORDER BY id DESC")
    if len(rows) > 1:
        database.run("UPDATE generations SET active = (id = ?)", [rows[0]["id"]])
    return rows[0] if rows else None


def _matrices(folder: Path) -> set[int]:
    """The generations of which there are vectors."""
    found = set()
    for file in folder.glob("*-*.*"):
        part, _, number = file.stem.rpartition("-")
        if part in ("vectors", "captions") and number.isdecimal() and file.suffix in (VECTORS, ROWS):
            found.add(int(number))
    return found


def _most_rows(folder: Path, database: Database) -> int:
    """Vectors of pictures."""
    found = database.rows("SELECT id, dims FROM generations")
    return max((Matrix(file_names(folder, id)["vectors"], dims).whole_rows() for id, dims in found), default=0)


def _mend_about(folder: Path, database: Database, say: Say) -> None:
    """Writes folders and model into library.json, if it is damaged or lacks them."""
    about, file = _about(folder), folder / ABOUT
    whole = about.get("format") == FORMAT and about.get("format_version") == FORMAT_VERSION
    if not whole and file.exists() and file.stat().st_size:
        aside = _unused(folder, f"{ABOUT}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        aside.write_bytes(file.read_bytes())
    wanted = (about if whole else {}) | {"format": FORMAT, "format_version": FORMAT_VERSION}
    roots = [named(row[0]) for row in database.rows("SELECT path FROM roots ORDER BY path")]
    wanted |= {"roots": [os.fsencode(root).hex() for root in roots]}
    if (active := _active(database)) is not None:
        wanted |= {"generation": active["id"], "identity": active["identity"]}
    if wanted == about:
        return
    if not whole:
        say(f"{ABOUT} is damaged, and written anew")
    with written_beside(file) as beside:
        beside.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def _about(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about if isinstance(about, dict) else {}
    return {}


def _roots(about: dict[str, Any]) -> list[str]:
    with suppress(ValueError, TypeError):
        return [os.fsdecode(bytes.fromhex(root)) for root in about.get("roots", [])]
    return []


def _mend_vectors(folder: Path, database: Database, row: Any, say: Say) -> None:
    """Forgets vectors that are not what was written, and finds those again that no record speaks of."""
    names = file_names(folder, row["id"])
    for kind, part, column in KINDS:
        matrix, told = Matrix(names[part], row["dims"]), int(row[column])
        there = matrix.whole_rows()
        found = database.rows("SELECT row, content FROM vectors WHERE generation = ? AND kind = ?", [row["id"], kind])
        known = {int(one[0]): bytes(one[1]) for one in found}
        whole_N = np.ones(there, dtype=bool)
        whole_N[matrix.damaged(there)] = False
        contents = [one.tobytes() for one in matrix.contents(there)["content"]]
        for place, content in known.items():  # what a row is of has no checksum, but stands in the records too
            if place < there and contents[place] != content:
                whole_N[place] = False
        right = [(row["id"], kind, contents[place], place) for place in np.flatnonzero(whole_N).tolist()]
        right.sort(key=lambda one: one[3] not in known)  # of several with the same content the one that was used
        rows = max([min(told, there), *(one[3] + 1 for one in right)])
        with database.transaction():
            database.run("DELETE FROM vectors WHERE generation = ? AND kind = ?", [row["id"], kind])
            database.run_many("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?, ?)", right)
            database.run(f"UPDATE generations SET {column} = ? WHERE id = ?", [rows, row["id"]])
        damaged = np.flatnonzero(~whole_N[:rows]).tolist()
        matrix.blank(damaged)
        lost = sum(place >= there or not whole_N[place] for place in known) if known else len(damaged)
        what = "pictures" if kind == IMAGE else "captions"
        if lost:
            say(f"{lost:,} of {lost + len(right):,} vectors of {what} are damaged; they are embedded again")
        elif right and (kind == IMAGE or database.rows("SELECT 1 FROM captions LIMIT 1")):  # else nobody's
            say(f"{len(right):,} vectors of {what} are whole")
    for left in folder.glob(f"{names['index'].name}*"):
        left.unlink()  # it is made again
