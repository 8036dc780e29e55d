"""Writing a library in LanceDB: one process at a time, and each call is seen whole or not at all.

A call changes the tables that it concerns and then names their versions in one commit (`lance_tables.py`). Rows that
change are taken out and put in anew, with the same numbers.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.library.lance_care import care, forget_versions, retire, sweep, tidy
from cliplet.library.lance_changes import Problem
from cliplet.library.lance_due import index_is_due
from cliplet.library.lance_known import UNREAD, KnownPictures
from cliplet.library.lance_lease import WRITER, only_writer_of
from cliplet.library.lance_rows import picture_row, pictures_table
from cliplet.library.lance_tables import (
    BACKGROUND,
    CAPTIONS,
    LIBRARY,
    Place,
    conditions,
    is_utf8,
    sound,
    vectors_column,
    vectors_of,
)
from cliplet.library.records import joined, listed
from cliplet.library.store import Calibration, Entry

DEAD_SHARE, DEAD_LEAST = 0.5, 1000  # captions that nobody has, beyond which their vectors are removed
NOT_UTF8 = "its name is not UTF-8, and LanceDB takes no other"


@contextmanager
def writing(place: Place, say: Any, wait: bool) -> Iterator[LanceWriter]:
    """The library's writer. Raises DataError where another process is it, unless it is to `wait`."""
    with only_writer_of(place, say, wait):
        yield LanceWriter(place, say)


class LanceWriter(KnownPictures):
    """See `store.Writer`."""

    def roots(self) -> list[str]:
        return sorted(self.about.roots)

    def add_roots(self, roots: Sequence[str]) -> None:
        with self.change():
            self.about.roots = sorted({*self.about.roots, *roots})

    def forget(self, root: str) -> int:
        if root not in self.about.roots:
            raise DataError(f"{root}: is no folder of the library", f"Its folders: {', '.join(self.roots())}.")
        inside = os.path.join(root, "")
        others = tuple(os.path.join(other, "") for other in self.about.roots if other != root)
        known = self.known().items()
        ids = [one.id for path, one in known if path.startswith(inside) and not path.startswith(others)]
        self.remove(ids, [path for path in self.problems() if path.startswith(inside)])
        with self.change():
            self.about.roots.remove(root)
        return len(ids)

    def problems(self) -> dict[str, tuple[int, int]]:
        return {os.fsdecode(path): about for path, about in self._problems.known.items()}

    def reasons(self) -> dict[str, str]:
        rows = self._problems.table.rows(["path", "reason"]).to_pylist()
        return {os.fsdecode(row["path"]): row["reason"] for row in rows}

    def has_vector(self, content: bytes) -> bool:
        return content in self._contents

    def refusal(self, path: str) -> str:
        """Why a file of this name cannot be in the library; nothing where it can."""
        return "" if is_utf8(path) else NOT_UTF8

    def write(self, entries: Sequence[Entry], problems: Sequence[Problem]) -> None:
        unnamed = [(one.path, one.bytes, one.changed, NOT_UTF8) for one in entries if not is_utf8(one.path)]
        problems, entries = [*problems, *unnamed], [entry for entry in entries if is_utf8(entry.path)]
        held = [entry.id for entry in entries if entry.id is not None]
        with self.change():
            features_ND, before = self._features(entries), self.before(held)
            new = iter(range(self.reserve(len(entries) - len(held)), self.about.next_id))
            rows = []
            for entry in entries:
                id = next(new) if entry.id is None else entry.id
                rows.append(picture_row(entry, id, before.get(id)))
            self._take_out("id", held)
            self._take_out("path", [path for path, *_ in problems if is_utf8(path)])
            self._not_unread(held, [path for path, *_ in problems])
            if rows:
                self.pictures.append(pictures_table(rows, features_ND))
            self._problems.write(problems, [entry.path for entry in entries])
            tidy(self.pictures)
        for row in rows:
            self._contents.add(row["content"], row["id"])
        self._waiting = None

    def _features(self, entries: Sequence[Entry]) -> np.ndarray:
        """Of each entry (N, D), its own, or those of another picture with the same content."""
        of_content = {entry.content: entry.features_D for entry in entries if entry.features_D is not None}
        holders: dict[int, bytes] = {}
        for entry in entries:
            if entry.content not in of_content:
                if entry.content not in self._contents:
                    raise DataError(f"{entry.path}: has no vector, and no picture with the same content has one")
                holders[self._contents.ids(entry.content)[0]] = entry.content
        for condition in conditions("id", holders):
            table = self.pictures.rows(["id", "vector"], condition)
            for id, features_D in zip(table["id"].to_pylist(), vectors_of(table), strict=True):
                of_content[holders[id]] = features_D
        features = [of_content[entry.content] for entry in entries]
        return np.stack(features) if features else np.empty((0, 1), dtype=np.float32)

    def _take_out(self, column: str, values: Sequence[int | str]) -> None:
        """Removes pictures by a column."""
        there: dict[int, bytes] = {}
        for condition in conditions(column, values):
            table = self.pictures.rows(["id", "content"], condition)
            there |= dict(zip(table["id"].to_pylist(), table["content"].to_pylist(), strict=True))
        self.pictures.delete("id", there)
        for id, content in there.items():
            self._contents.remove(content, id)

    def remove(self, ids: Sequence[int], problems: Sequence[str] = ()) -> None:
        if ids or problems:
            with self.change():
                self._take_out("id", ids)
                self._not_unread(ids)
                self._problems.write([], problems)
            self._gone.update(ids)
            self._waiting = None

    def rename(self, names: Mapping[int, str]) -> None:
        changes = {}
        for id, path in names.items():
            folder, name = os.path.split(path)
            changes[id] = {"path": path, "name": name, "folder": folder}
        self._rewrite(changes)

    def caption(self, captions: Sequence[tuple[int, tuple[str, ...]]]) -> None:
        self._rewrite({id: {"captions": joined(tuple(map(sound, texts)))} for id, texts in captions})
        self._waiting = None

    def _rewrite(self, changes: dict[int, dict[str, Any]]) -> None:
        """Gives columns of some pictures other values; those that are not there, or have them, are left alone."""
        import pyarrow as pa

        with self.change():
            for condition in conditions("id", changes):
                table = self.pictures.rows(None, condition)
                rows = table.drop_columns(["vector"]).to_pylist()
                differ = [any(row[key] != value for key, value in changes[row["id"]].items()) for row in rows]
                if any(differ):
                    rows = [row | changes[row["id"]] for row, one in zip(rows, differ, strict=True) if one]
                    features_ND = vectors_of(table.filter(pa.array(differ)))
                    self.pictures.delete("id", [row["id"] for row in rows])
                    self.pictures.append(pictures_table(rows, features_ND))
            tidy(self.pictures)

    def captions_without_vectors(self, at_most: int) -> list[str]:
        if self._waiting is None:
            self._waiting = {text: id for text, id in self._all_captions().items() if text not in self._embedded}
            self._order, self._written = list(self._waiting), 0
        while self._written < len(self._order) and self._order[self._written] not in self._waiting:
            self._written += 1
        rest = itertools.islice(self._order, self._written, None)
        return list(itertools.islice((text for text in rest if text in self._waiting), at_most))

    def _all_captions(self) -> dict[str, int]:
        """Every caption, and a picture that has it."""
        table = self.pictures.rows(["id", "captions"], "captions IS NOT NULL")
        pairs = zip(table["id"].to_pylist(), map(listed, table["captions"].to_pylist()), strict=True)
        return {text: id for id, texts in pairs for text in texts}

    def write_captions(self, texts: Sequence[str], features_CD: np.ndarray) -> None:
        import pyarrow as pa

        waiting = self._waiting or {}
        new = [place for place, text in enumerate(texts) if text not in self._embedded]
        pictures = [waiting.get(texts[place], 0) for place in new]
        table = self.tables[CAPTIONS]
        with self.change():
            if new:
                columns = [pa.array([texts[place] for place in new]), pa.array(pictures, type=pa.int64())]
                table.append(pa.table([*columns, vectors_column(features_CD[new])], schema=table.schema))
            tidy(table)
        self._embedded.update(texts)
        for text in texts:
            waiting.pop(text, None)

    def set_calibration(self, calibration: Calibration) -> None:
        import pyarrow as pa

        numbers = asdict(calibration)
        del numbers["background_QD"]
        table = self.tables[BACKGROUND]
        with self.change():
            table.replace(pa.table([vectors_column(calibration.background_QD)], schema=table.schema))
            assert self.generation is not None
            self.generation.calibration = numbers

    def finish(self, queries: Callable[[], np.ndarray]) -> None:
        generation = self.generation
        assert generation is not None
        with self.change():
            if self.about.made is generation:
                self._take_over()
                if self.about.active:
                    retire(self.about, self.about.active)
                self.about.active, self.about.made, self._active = generation, None, None
                self._without_vector = [self.tables[UNREAD]]
        changed, due = generation.versions != self._begun, index_is_due(self.tables, generation.search)
        with self.change():
            if changed:
                self._forget_captions()
            if due:
                generation.search = care(self.tables, queries)
            elif changed:
                for table in self.tables.values():
                    tidy(table, to_the_end=True)
            retired = len(self.about.retired)
            sweep(self.about, self.place)
        if changed or due or len(self.about.retired) < retired:
            names = [LIBRARY, self._problems.table.name, *(table.name for table in self.tables.values())]
            forget_versions([*names, *([] if self.place.folder else [WRITER])], self.place)

    def _forget_captions(self) -> None:
        """Removes vectors of captions that no picture has, where they are most of them."""
        captions = self.tables[CAPTIONS]
        if len(captions):
            dead = self._embedded - self._all_captions().keys()
            if len(dead) > max(DEAD_LEAST, DEAD_SHARE * len(captions)):
                captions.delete("text", dead)
                self._embedded -= dead

    def reserve(self, count: int) -> int:
        """The first of so many numbers in a row that no picture has had."""
        first, self.about.next_id = self.about.next_id, self.about.next_id + count
        return first

    def adopt(self, fragments: Sequence[Any], contents: Sequence[tuple[int, bytes]]) -> None:
        """New pictures, in files of the table that others wrote, with numbers that were reserved; `contents` by
        number."""
        with self.change():
            self.pictures.append_fragments(fragments)
            self._not_unread([id for id, _ in contents])
            tidy(self.pictures)
        for id, content in contents:
            self._contents.add(content, id)
        self._waiting = None
