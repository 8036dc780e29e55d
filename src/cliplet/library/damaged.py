"""Damaged records, read as far as they can be.

A table is read from its begin until damage, and from its end back to it; what lies between two damaged places is asked
for row by row. Where not even the first page can be read, which says where the tables are, another one takes its place:
they are always where they are in a new file.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cliplet.library.database import BESIDE, Database, has_log, uri_of

KEYS = {  # the columns by which a table is ordered
    "meta": ("key",),
    "roots": ("path",),
    "generations": ("id",),
    "pictures": ("id",),
    "captions": ("picture", "place"),
    "vectors": ("generation", "kind", "content"),
    "problems": ("path",),
}
GARBLED = object()  # a text that is none


class Damaged:
    """Damaged records."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection
        self.damaged: set[str] = set()  # tables and indexes that could not be read from one end to the other

    def readable(
        self, table: str, columns: str, index: str = "", keys: Sequence[str] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """What is read from the begin until damage, and from the end until damage or what was read before; of the table
        itself, or of an index of it: one may be whole where the other is not."""
        keys, what = keys or KEYS[table], index or table
        width, order = len(keys), ", ".join(keys)
        select = f"SELECT {order}, {columns} FROM {table} {f'INDEXED BY {index}' if index else 'NOT INDEXED'}"
        last: tuple[Any, ...] = ()
        for row in self._walk(select, keys, what):
            last = row[:width]
            yield row[width:]
        if what in self.damaged:
            beyond = f"({order}) > ({_marks(keys)})" if last and GARBLED not in last else "1"
            for row in self._walk(select, keys, what, beyond, last if beyond != "1" else (), back=True):
                yield row[width:]

    def one_by_one(self, table: str, columns: str, pictures: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """Rows of these pictures."""
        keys = KEYS[table]
        select = f"SELECT {', '.join(keys)}, {columns} FROM {table} NOT INDEXED"
        for id in sorted(pictures):
            for back in (False, True):
                for row in self._walk(select, keys, table, f"{keys[0]} = ?", (id,), back):
                    yield row[len(keys) :]

    def _walk(
        self,
        select: str,
        keys: Sequence[str],
        what: str,
        where: str = "1",
        values: Sequence[Any] = (),
        back: bool = False,
    ) -> Iterator[tuple[Any, ...]]:
        """Rows in their order, which begin with their keys, until damage."""
        order = ", ".join(f"{key} DESC" if back else key for key in keys)
        last: tuple[Any, ...] = ()
        try:
            for row in self.connection.execute(f"{select} WHERE {where} ORDER BY {order}", values):
                last = row[: len(keys)]
                yield row
        except sqlite3.Error:
            self.damaged.add(what)
            # Python asks for the next row before it gives one, so the last one before damage is still to come.
            beyond = f"({', '.join(keys)}) {'<' if back else '>'} ({_marks(keys)})" if last else "1"
            with suppress(sqlite3.Error):
                statement = f"{select} WHERE {where} AND {beyond} ORDER BY {order} LIMIT 1"
                yield from self.connection.execute(statement, (*values, *last))


def _marks(keys: Sequence[str]) -> str:
    return ", ".join("?" * len(keys))


@contextmanager
def opened_damaged(file: Path, beside: Path) -> Iterator[Damaged]:
    """The damaged file, with what its log holds; where not even its tables are known, a copy with another first page.
    Their places are always the same."""
    copy = Path(f"{beside}.copy")
    with _removed(copy):
        old = None
        if file.exists() and file.stat().st_size:
            old = connected(f"{uri_of(file)}?mode=rw")
            with suppress(sqlite3.Error):
                old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if old is None or not _knows_its_tables(old):
            if old is not None:
                old.close()
            _copy_with_first_page(file, copy)
            old = connected(f"{uri_of(copy)}?mode=rw")
        with closing(old):
            yield Damaged(old)


def _knows_its_tables(old: sqlite3.Connection) -> bool:
    with suppress(sqlite3.Error):
        found = {row[0] for row in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return found >= set(KEYS)
    return False


def _copy_with_first_page(file: Path, copy: Path) -> None:
    empty = Path(f"{copy}.empty")
    with _removed(empty):
        Database.create(empty).close()
        head = bytearray(empty.read_bytes())
    page = int.from_bytes(head[16:18], "big")
    del head[page:]
    if file.exists():
        shutil.copyfile(file, copy)
    if has_log(file):
        shutil.copyfile(f"{file}-wal", f"{copy}-wal")
    size = copy.stat().st_size if copy.exists() else 0
    head[28:32] = max(1, -(-size // page)).to_bytes(4, "big")  # pages in all
    head[32:40] = bytes(8)  # none of them known to be free
    with open(copy, "r+b" if copy.exists() else "wb") as stream:
        stream.write(head)


@contextmanager
def _removed(file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for ending in ("", *BESIDE):
            Path(f"{file}{ending}").unlink(missing_ok=True)


def connected(place: str) -> sqlite3.Connection:
    connection = sqlite3.connect(place, uri=True, isolation_level=None)
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> Any:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return GARBLED
