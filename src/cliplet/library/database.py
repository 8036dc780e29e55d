"""A library's records in SQLite: one writer, any number of readers, none of whom waits for another (WAL).

pictures     one row a file: what it is called, what it shows, its size and time when it was last read, its content
captions     one row a caption of a picture
generations  one row a model whose vectors are here: the active one, and perhaps one that is being made
vectors      which row of a generation's matrix belongs to which content, of a picture or a caption
problems     files that could not be read, with their size and time then: they are not tried again before they change
roots        folders that were indexed
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cliplet.errors import DataError
from cliplet.library import deadline

FORMAT_VERSION = 1
BUSY_SECONDS = 30.0
CLOSING_SECONDS = 1.0  # that a writer waits for readers, to bring its log into the file
READERS = 8  # connections for reading at the most
STEPS_BETWEEN_LOOKS = 100_000  # of SQLite's machine, between looks at the clock: milliseconds
IMAGE, TEXT = 0, 1  # kinds of vectors

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path TEXT NOT NULL UNIQUE, name TEXT NOT NULL, folder TEXT NOT NULL,
    format TEXT NOT NULL, bytes INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    taken TEXT, year INTEGER, month INTEGER, day INTEGER, hour INTEGER, latitude REAL, longitude REAL, camera TEXT,
    captions TEXT, tags TEXT, added TEXT NOT NULL,
    own_captions TEXT,              -- those that the file itself carries
    changed INTEGER NOT NULL,       -- the file's time, in nanoseconds
    content BLOB NOT NULL           -- 16 bytes of a hash of the file
);
CREATE INDEX pictures_by_content ON pictures (content);
CREATE TABLE captions (picture INTEGER NOT NULL, place INTEGER NOT NULL, text TEXT NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (picture, place)) WITHOUT ROWID;
CREATE INDEX captions_by_content ON captions (content);
CREATE TRIGGER captions_go_with_pictures AFTER DELETE ON pictures
    BEGIN DELETE FROM captions WHERE picture = old.id; END;
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, identity TEXT NOT NULL, dims INTEGER NOT NULL,
    image_rows INTEGER NOT NULL DEFAULT 0, text_rows INTEGER NOT NULL DEFAULT 0,
    active INTEGER NOT NULL DEFAULT 0, calibration TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE vectors (generation INTEGER NOT NULL, kind INTEGER NOT NULL, content BLOB NOT NULL, row INTEGER NOT NULL,
    PRIMARY KEY (generation, kind, content)) WITHOUT ROWID;
CREATE UNIQUE INDEX vectors_by_row ON vectors (generation, kind, row);
CREATE TABLE problems (path TEXT PRIMARY KEY, bytes INTEGER NOT NULL, changed INTEGER NOT NULL,
    reason TEXT NOT NULL) WITHOUT ROWID;
"""

DAMAGED_HINT = "Mend it with: cliplet index --library LIBRARY --repair. The pictures themselves are not touched."
BESIDE = ("-wal", "-shm", "-journal")  # endings of what SQLite writes beside a file


class OtherVersion(DataError):
    """Records that are whole, and that another cliplet wrote."""


class Database:
    """The records, for many threads. Those that read have a connection each, so that nobody waits for a slow query of
    another; one that may write is shared by turns. Text is what Python's `os` gives; see `stored`."""

    def __init__(self, file: Path, *, write: bool = False):
        """Raises DataError where there is none, it is damaged or it is of another version."""
        self.file, self._write = file, write
        self._turn = threading.RLock()
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()  # of those for reading
        self._unopened = threading.Semaphore(READERS)
        self._closed = False
        if not file.is_file():
            raise DataError(f"{file}: there is no such file; a library has one", DAMAGED_HINT)
        if not file.stat().st_size:  # SQLite would take it for a new one, and throw away the log beside it
            raise DataError(f"{file}: is empty", DAMAGED_HINT)
        with _explained(file):
            self._connection = _opened(file, write)
        try:
            version = int(self.value("format_version"))
            if version != FORMAT_VERSION:
                raise OtherVersion(
                    f"{file}: is of format version {version}; this cliplet reads {FORMAT_VERSION}",
                    "Upgrade cliplet, or index the pictures anew into another library.",
                )
        except (ValueError, TypeError) as error:
            self.close()
            raise DataError(f"{file}: cannot be read: {error}", DAMAGED_HINT) from None
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, file: Path) -> Database:
        """Makes an empty one, whole or not at all. Raises OSError."""
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with _explained(file), closing(sqlite3.connect(beside, isolation_level=None)) as connection:
                version = f"INSERT INTO meta VALUES ('format_version', '{FORMAT_VERSION}');"
                connection.executescript(f"BEGIN; {_SCHEMA} {version} COMMIT;")
            beside.replace(file)
        finally:
            for ending in ("", *BESIDE):
                Path(f"{beside}{ending}").unlink(missing_ok=True)
        return cls(file, write=True)

    def value(self, key: str) -> Any:
        """Of the table `meta`; None where there is none."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", [key])
        return found[0][0] if found else None

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query. Raises DataError where the file is damaged; ConfigError beyond the deadline that holds
        (`deadline.within`), for a filter can ask for the work of hours."""
        with _explained(self.file), self._borrowed() as connection:
            return self._rows(connection, statement, values)

    def _rows(self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        until = deadline.current()
        if until is None:
            return connection.execute(statement, [stored(value) for value in values]).fetchall()
        if until.is_over:
            raise deadline.too_late()
        connection.set_progress_handler(lambda: until.is_over, STEPS_BETWEEN_LOOKS)
        try:
            return connection.execute(statement, [stored(value) for value in values]).fetchall()
        finally:
            connection.set_progress_handler(None, 0)

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        if self._write:
            with self._turn:
                yield self._connection
            return
        connection = self._unused()
        try:
            yield connection
        finally:
            if self._closed:
                connection.close()
            else:
                self._idle.put(connection)

    def _unused(self) -> sqlite3.Connection:
        with suppress(queue.Empty):
            return self._idle.get_nowait()
        if self._unopened.acquire(blocking=False):
            try:
                return _opened(self.file, write=False)
            except BaseException:
                self._unopened.release()
                raise
        until = deadline.current()
        try:
            return self._idle.get(timeout=max(0.0, until.end - time.monotonic()) if until else None)
        except queue.Empty:
            raise deadline.too_late() from None

    def run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """One statement that changes something."""
        with self._turn, _explained(self.file):
            return self._connection.execute(statement, [stored(value) for value in values])

    def run_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """The same statement for many rows."""
        with self._turn, _explained(self.file):
            self._connection.executemany(statement, ([stored(value) for value in row] for row in rows))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block, or nothing. It holds the connection."""
        with self._turn, _explained(self.file):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def version(self) -> int:
        """Another number when somebody else has changed something, in the eyes of one and the same connection."""
        with self._turn, _explained(self.file):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def complaint(self) -> str:
        """What is wrong with the file, by SQLite's own check; empty if nothing is."""
        try:
            first = str(self.rows("PRAGMA integrity_check(1)")[0][0])
        except DataError as error:
            return error.message
        return "" if first == "ok" else first.splitlines()[-1]

    def close(self) -> None:
        """Closes it; connections that are in use, when they are not any more. A writer brings its log into the file,
        for whoever closes last may be a reader, which cannot: then all might stay in the log for ever."""
        self._closed = True
        if self._write:
            with suppress(sqlite3.Error):
                self._connection.execute(f"PRAGMA busy_timeout = {int(CLOSING_SECONDS * 1000)}")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._connection.close()
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """SQLite's errors as such that say what to do; a full disk is an OSError as elsewhere."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise OSError(f"{file}: {error}") from None
        if "interrupted" in str(error):
            raise deadline.too_late() from None
        if "no such table" in str(error) or "no such column" in str(error):
            raise DataError(f"{file}: is damaged: {error}", DAMAGED_HINT) from None
        raise DataError(f"{file}: {error}", "Is its disk there, and may it be written to?") from None
    except sqlite3.DatabaseError as error:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise
        raise DataError(f"{file}: is damaged: {error}", DAMAGED_HINT) from None


def _opened(file: Path, write: bool) -> sqlite3.Connection:
    connection = _connected(f"{uri_of(file)}?mode={'rw' if write else 'ro'}")
    try:
        if write:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what is committed survives a power cut
        connection.execute("SELECT 1 FROM meta").fetchone()
    except sqlite3.Error as error:
        connection.close()
        if (
            write
            or not isinstance(error, sqlite3.OperationalError)
            or any(why in str(error) for why in ("no such", "locked"))
        ):
            raise
        if has_log(file):  # without it an older state would be read, or an empty one, without a word
            raise DataError(
                f"{file}: what was written last is in {file.name}-wal, which cannot be read here: {error}",
                "SQLite has to write into the folder for that. Make the folder writable and open the library once, "
                "or copy the folder to where it may be written to.",
            ) from None
        connection = _connected(f"{uri_of(file)}?mode=ro&immutable=1")  # where even readers' marks cannot be written
    return connection


def uri_of(file: Path) -> str:
    """A file's name as SQLite takes it where options follow."""
    return f"file:{quote(str(file.absolute()))}"


def has_log(file: Path) -> bool:
    """Whether something was written that is beside the file only, perhaps."""
    log = Path(f"{file}-wal")
    return log.exists() and log.stat().st_size > 0


def _connected(place: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        place, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.row_factory = sqlite3.Row
    return connection


def stored(value: Any) -> Any:
    """A value as SQLite takes it: names of files that are not UTF-8 as bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return os.fsencode(value)
    return value


def named(value: Any) -> str:
    """A name of a file from what is stored."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
