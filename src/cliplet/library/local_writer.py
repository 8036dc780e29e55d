"""Writing into a library's folder: one process at a time, and each call leaves it whole.

Vectors go to the disk first, then the records that speak of them, in one transaction. So a kill leaves rows that nobody
speaks of, which the next writer cuts off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.files import written_beside
from cliplet.library.database import IMAGE, TEXT, Database, named
from cliplet.library.identity import given_up, other_model
from cliplet.library.local import ABOUT, RECORDS, read_about
from cliplet.library.local_clearing import clear_files
from cliplet.library.local_compact import compact_if_worth_it
from cliplet.library.local_pictures import write_captions_of, write_picture
from cliplet.library.local_reading import content_of_text, marks, spans
from cliplet.library.local_view import file_names
from cliplet.library.locks import only_writer
from cliplet.library.matrix import Matrix
from cliplet.library.nearest import Neighbours
from cliplet.library.records import Identity
from cliplet.library.store import Calibration, Entry, Known


@contextmanager
def writing(folder: Path, say: Any, wait: bool) -> Iterator[LocalWriter]:
    """The folder's writer. Raises DataError where another process is it, unless it is to `wait`."""
    with only_writer(folder, say, wait):
        database = Database(folder / RECORDS, write=True)
        try:
            yield LocalWriter(folder, database, say)
        finally:
            database.close()


class LocalWriter:
    """See `store.Writer`."""

    def __init__(self, folder: Path, database: Database, say: Callable[[str], None]):
        """`say` hears what takes long, and what went wrong without loss."""
        self.folder, self.database, self.say = folder, database, say
        self.generation = 0  # that vectors are written to
        self.image: Matrix
        self.text: Matrix
        self.rows = {IMAGE: 0, TEXT: 0}
        self._changed = False  # whether pictures or captions were: rows may be nobody's then
        self._captions_to = b""  # contents of captions up to here have vectors
        self._captions_given: list[str] = []  # without one, as they were last given out

    def begin(self, identity: Identity, upgrade: bool = False) -> None:
        active = self.database.rows("SELECT * FROM generations WHERE active")
        if active and not upgrade:
            held = Identity.from_json(active[0]["identity"])
            if not held.same_vectors(identity):
                raise other_model(self.folder, held, identity)
            self._give_up_unfinished(keep=None)
            self._found_at(active[0], identity)
            self.open(active[0])
            return
        made = [
            row
            for row in self.database.rows("SELECT * FROM generations WHERE NOT active")
            if Identity.from_json(row["identity"]).same_vectors(identity)
        ]
        self._give_up_unfinished(keep=made[0]["id"] if made else None)
        if made:
            self._found_at(made[0], identity)
        else:
            self.database.run(
                "INSERT INTO generations (identity, dims, active) VALUES (?, ?, ?)",
                [identity.to_json(), identity.dims, int(not active)],
            )
            made = self.database.rows("SELECT * FROM generations ORDER BY id DESC LIMIT 1")
        self.open(made[0])

    def open(self, row: Any) -> None:
        """Goes on with a generation."""
        self.generation = int(row["id"])
        names = file_names(self.folder, self.generation)
        self.image, self.text = Matrix(names["vectors"], row["dims"]), Matrix(names["captions"], row["dims"])
        self.rows = {IMAGE: int(row["image_rows"]), TEXT: int(row["text_rows"])}
        for kind, matrix in ((IMAGE, self.image), (TEXT, self.text)):
            if matrix.whole_rows() < self.rows[kind]:
                matrix.vectors(self.rows[kind])  # raises what says so
            matrix.cut(self.rows[kind])

    def _found_at(self, row: Any, identity: Identity) -> None:
        """Remembers where the model of a generation is, which may have been moved."""
        held = Identity.from_json(row["identity"])
        if identity.source and identity.source != held.source:
            there = replace(held, source=identity.source)
            self.database.run("UPDATE generations SET identity = ? WHERE id = ?", [there.to_json(), row["id"]])

    def _give_up_unfinished(self, keep: int | None) -> None:
        """As `clear_unfinished`, and says so of an upgrade that has not come to its end."""
        rows = self.database.rows("SELECT identity FROM generations WHERE active")
        active = [Identity.from_json(row[0]) for row in rows]
        for row in self.database.rows("SELECT * FROM generations WHERE NOT active AND id IS NOT ?", [keep]):
            identity = Identity.from_json(row["identity"])
            if row["image_rows"] and not any(one.same_vectors(identity) for one in active):
                self.say(given_up(identity, int(row["image_rows"])))
        self.clear_unfinished(keep)

    def clear_unfinished(self, keep: int | None) -> None:
        """Removes generations that are neither active nor to be gone on with, and files of any that are no more."""
        self.database.run("DELETE FROM generations WHERE NOT active AND id IS NOT ?", [keep])
        held = {int(row[0]) for row in self.database.rows("SELECT id FROM generations")}
        self.database.run("DELETE FROM vectors WHERE generation NOT IN (SELECT id FROM generations)")
        last = self.database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'generations'")
        clear_files(self.folder, held, int(last[0][0]) if last else 0, self.say)

    def roots(self) -> list[str]:
        return [named(row[0]) for row in self.database.rows("SELECT path FROM roots ORDER BY path")]

    def add_roots(self, roots: Sequence[str]) -> None:
        with self.database.transaction():
            self.database.run_many("INSERT OR IGNORE INTO roots VALUES (?)", [[root] for root in roots])
        self._write_about()

    def forget(self, root: str) -> int:
        if root not in self.roots():
            raise DataError(f"{root}: is no folder of the library", f"Its folders: {', '.join(self.roots())}.")
        inside = os.path.join(root, "")
        others = [os.path.join(other, "") for other in self.roots() if other != root]
        ids = [
            one.id
            for path, one in self.known().items()
            if path.startswith(inside) and not any(path.startswith(other) for other in others)
        ]
        problems = [path for path in self.problems() if path.startswith(inside)]
        self.remove(ids, problems)
        self.database.run("DELETE FROM roots WHERE path = ?", [root])
        self._write_about()
        return len(ids)

    def _write_about(self) -> None:
        """Folders and model stand in library.json as well: with them a library without records can be made again."""
        about = read_about(self.folder) | {"roots": [os.fsencode(root).hex() for root in self.roots()]}
        for row in self.database.rows("SELECT id, identity FROM generations WHERE active"):
            about |= {"generation": row["id"], "identity": row["identity"]}
        if about == read_about(self.folder):
            return
        with written_beside(self.folder / ABOUT) as beside:
            beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def known(self) -> dict[str, Known]:
        rows = self.database.rows(
            "SELECT p.path, p.id, p.bytes, p.changed, v.row IS NOT NULL FROM pictures AS p LEFT JOIN vectors AS v "
            f"ON v.generation = ? AND v.kind = {IMAGE} AND v.content = p.content",
            [self.generation],
        )
        return {named(row[0]): Known(row[1], row[2], row[3], bool(row[4])) for row in rows}

    def problems(self) -> dict[str, tuple[int, int]]:
        return {named(row[0]): (row[1], row[2]) for row in self.database.rows("SELECT * FROM problems")}

    def reasons(self) -> dict[str, str]:
        return {named(row[0]): row[1] for row in self.database.rows("SELECT path, reason FROM problems")}

    def refusal(self, path: str) -> str:
        return ""

    def has_vector(self, content: bytes) -> bool:
        return self._row(IMAGE, content) is not None

    def _row(self, kind: int, content: bytes) -> int | None:
        found = self.database.rows(
            "SELECT row FROM vectors WHERE generation = ? AND kind = ? AND content = ?",
            [self.generation, kind, content],
        )
        return int(found[0][0]) if found else None

    def _held(self, contents: Sequence[bytes]) -> set[bytes]:
        """Those that have a vector."""
        return {
            bytes(row[0])
            for span in spans(contents)
            for row in self.database.rows(
                f"SELECT content FROM vectors WHERE generation = ? AND kind = {IMAGE} AND content IN ({marks(span)})",
                [self.generation, *span],
            )
        }

    def rename(self, names: Mapping[int, str]) -> None:
        rows = [(path, *reversed(os.path.split(path)), id) for id, path in names.items()]
        with self.database.transaction():
            self.database.run_many("UPDATE pictures SET path = ?, name = ?, folder = ? WHERE id = ?", rows)

    def moved(self, content: bytes, gone: Container[int]) -> int | None:
        rows = self.database.rows("SELECT id FROM pictures WHERE content = ?", [content])
        return next((int(row[0]) for row in rows if row[0] in gone), None)

    def write(self, entries: Sequence[Entry], problems: Sequence[tuple[str, int, int, str]]) -> None:
        given = [(entry.content, entry.features_D) for entry in entries if entry.features_D is not None]
        held = self._held([content for content, _ in given])
        new: dict[bytes, np.ndarray] = {}
        for content, features_D in given:
            if content not in held:
                new.setdefault(content, features_D)
        contents = list(new)
        self._append(self.image, IMAGE, contents, list(new.values()))
        with self.database.transaction():
            self.point(IMAGE, contents)
            for entry in entries:
                write_picture(self.database, entry)
            self.database.run_many("INSERT OR REPLACE INTO problems VALUES (?, ?, ?, ?)", problems)
            self.database.run_many("DELETE FROM pictures WHERE path = ?", [[path] for path, *_ in problems])
        self.rows[IMAGE] += len(contents)
        self._captions_to, self._changed = b"", True

    def _append(self, matrix: Matrix, kind: int, contents: list[bytes], features: list[np.ndarray]) -> None:
        if contents:
            matrix.append(self.rows[kind], np.stack(features), contents)

    def point(self, kind: int, contents: list[bytes]) -> None:
        """Says whose the rows are that were just appended."""
        first = self.rows[kind]
        rows = [(self.generation, kind, content, first + place) for place, content in enumerate(contents)]
        self.database.run_many("INSERT INTO vectors VALUES (?, ?, ?, ?)", rows)
        column = "image_rows" if kind == IMAGE else "text_rows"
        self.database.run(f"UPDATE generations SET {column} = ? WHERE id = ?", [first + len(contents), self.generation])

    def remove(self, ids: Sequence[int], problems: Sequence[str] = ()) -> None:
        with self.database.transaction():
            self.database.run_many("DELETE FROM pictures WHERE id = ?", [[id] for id in ids])
            self.database.run_many("DELETE FROM problems WHERE path = ?", [[path] for path in problems])
        self._changed = self._changed or bool(ids)

    def caption(self, captions: Sequence[tuple[int, tuple[str, ...]]]) -> None:
        with self.database.transaction():
            for id, texts in captions:
                write_captions_of(self.database, id, texts)
        self._captions_to, self._changed = b"", True

    def captions_without_vectors(self, at_most: int) -> list[str]:
        # In the order of their contents, so that the next call goes on where this one's are written.
        rows = self.database.rows(
            "SELECT c.text FROM captions AS c WHERE c.content > ? AND NOT EXISTS (SELECT 1 FROM vectors AS v "
            f"WHERE v.generation = ? AND v.kind = {TEXT} AND v.content = c.content) "
            "GROUP BY c.content ORDER BY c.content LIMIT ?",
            [self._captions_to, self.generation, at_most],
        )
        self._captions_given = [row[0] for row in rows]
        return list(self._captions_given)

    def write_captions(self, texts: Sequence[str], features_CD: np.ndarray) -> None:
        contents = [content_of_text(text) for text in texts]
        self._append(self.text, TEXT, contents, list(features_CD))
        with self.database.transaction():
            self.point(TEXT, contents)
        self.rows[TEXT] += len(contents)
        if contents and list(texts) == self._captions_given:
            self._captions_to = contents[-1]

    def set_calibration(self, calibration: Calibration) -> None:
        with written_beside(file_names(self.folder, self.generation)["background"]) as beside:
            np.save(beside, calibration.background_QD.astype(np.float16))
        numbers = asdict(calibration)
        del numbers["background_QD"]
        self.database.run("UPDATE generations SET calibration = ? WHERE id = ?", [json.dumps(numbers), self.generation])

    def finish(self, queries: Callable[[], np.ndarray]) -> None:
        if not self.database.rows("SELECT 1 FROM generations WHERE id = ? AND active", [self.generation]):
            with self.database.transaction():
                self.database.run("UPDATE generations SET active = (id = ?)", [self.generation])
            self.clear_unfinished(keep=None)
            self._changed = True
        if self._changed:
            compact_if_worth_it(self)
        self._write_about()
        names = file_names(self.folder, self.generation)
        neighbours = Neighbours(self.image.vectors(self.rows[IMAGE]), names["index"])
        if neighbours.due() is None:
            return
        try:
            neighbours.update(queries, self.say)
        except DataError as error:
            self.say(f"the approximate index could not be written, and searching stays exact: {error.message}")
        else:  # readers look again when the records change, and nothing else in them tells of an index
            self.database.run("INSERT OR REPLACE INTO meta VALUES ('indexed', ?)", [str(time.time_ns())])
