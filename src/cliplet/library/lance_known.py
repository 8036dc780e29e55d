"""What the writer of a library in LanceDB knows of its pictures, with and without a vector of the model.

A table of pictures holds no picture without a vector. So while an upgrade is made, those that are not embedded yet are
known from the tables that answer; and those whose files could not be read until its end stand in a table of their own,
`unread`, with all that is known of them, until they can be read or are gone. Readers do not look into it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cliplet.library.exchange import name_aside
from cliplet.library.identity import given_up
from cliplet.library.lance_changes import Table
from cliplet.library.lance_rows import Before, Contents
from cliplet.library.lance_session import Session
from cliplet.library.lance_tables import Generation, Place, conditions, is_utf8, pictures_schema
from cliplet.library.records import Identity, listed
from cliplet.library.store import Known

UNREAD = "unread"


class KnownPictures(Session):
    """A library open for writing, and what it knows of pictures."""

    def __init__(self, place: Place, say: Callable[[str], None] = lambda message: None):
        super().__init__(place)
        self.say = say
        self._without_vector: list[Table] = []  # tables of pictures that have none of this model, or had none
        self._unread: dict[int, str] = {}  # path of each picture in the table `unread`
        self._gone: set[int] = set()  # pictures that an upgrade is not to take over
        self._begun: dict[str, int] = {}  # versions of the tables at the begin
        self._order: list[str] = []  # captions without a vector, as they are given out; before `_written` all have one
        self._written = 0

    def begin(self, identity: Identity, upgrade: bool = False) -> None:
        made = self.about.made
        super().begin(identity, upgrade)
        if made is not None and self.about.made is not made and made.pictures:
            self.say(given_up(Identity.from_json(made.identity), made.pictures))
        generation = self.generation
        assert generation is not None
        self._begun = dict(generation.versions)
        held = Identity.from_json(generation.identity)
        if identity.source and identity.source != held.source:  # the model was moved
            with self.change():
                generation.identity = replace(held, source=identity.source).to_json()

    def _open(self, generation: Generation) -> None:
        super()._open(generation)
        unread = self.tables[UNREAD] = self._unread_of(generation)
        rows = unread.rows(["id", "path"])
        self._unread = dict(zip(rows["id"].to_pylist(), rows["path"].to_pylist(), strict=True))
        self._without_vector, self._gone = [unread], set()
        active = self.about.active
        if self._active is not None and active is not None and active is not generation:
            self._without_vector += [self._active, self._unread_of(active)]
        self._active_contents = Contents(unread.rows(["id", "content"]))
        for table in self._without_vector[1:]:
            rows = table.rows(["id", "content"])
            for id, content in zip(rows["id"].to_pylist(), rows["content"].to_pylist(), strict=True):
                self._active_contents.add(content, id)

    def _unread_of(self, generation: Generation) -> Table:
        schema = pictures_schema(generation.dims)
        schema = schema.remove(schema.get_field_index("vector"))
        return Table(self.place, generation.name(UNREAD), schema, generation.versions.get(UNREAD, 0))

    def known(self) -> dict[str, Known]:
        known = {path: Known(id, size, changed, True) for path, id, size, changed in _files(self.pictures)}
        there = {one.id for one in known.values()}
        for table in self._without_vector:
            for path, id, size, changed in _files(table):
                if id not in there:  # another picture may have its name by now
                    there.add(id)
                    known[name_aside(path, id) if path in known else path] = Known(id, size, changed, False)
        return known

    def moved(self, content: bytes, gone: Container[int]) -> int | None:
        ids = (*self._contents.ids(content), *self._active_contents.ids(content))
        return next((id for id in ids if id in gone), None)

    def contents_of(self, ids: Collection[int]) -> set[bytes]:
        """What pictures have in their files, with a vector or without."""
        found: set[bytes] = set()
        for table in (*self._without_vector, self.pictures):
            for condition in conditions("id", ids):
                found.update(table.rows(["content"], condition)["content"].to_pylist())
        return found

    def before(self, ids: Sequence[int]) -> dict[int, Before]:
        """What stays of pictures that are read again, by number; at another model's first look at them, what those
        have that answer."""
        found: dict[int, Before] = {}
        for table in (*reversed(self._without_vector), self.pictures):
            for condition in conditions("id", ids):
                for row in table.rows(["id", "captions", "own_captions", "added"], condition).to_pylist():
                    found[row["id"]] = Before(listed(row["captions"]), listed(row["own_captions"]), row["added"])
        return found

    def _not_unread(self, ids: Collection[int], paths: Collection[str] = ()) -> None:
        """Takes pictures out that have a vector now, or are gone; `paths` are of those that are no pictures any more,
        which an upgrade does not take over either."""
        paths = {path for path in paths if is_utf8(path)}
        for table in self._without_vector[1:] if paths else ():
            for condition in conditions("path", paths):
                self._gone.update(table.rows(["id"], condition)["id"].to_pylist())
        gone = {id for id, path in self._unread.items() if path in paths} | self._unread.keys() & set(ids)
        self.tables[UNREAD].delete("id", gone)
        for id in gone:
            del self._unread[id]

    def _take_over(self) -> None:
        """Notes, at an upgrade's end, the pictures that could not be read: all that have not gone."""
        import pyarrow as pa

        unread = self.tables[UNREAD]
        there = {*self.pictures.rows(["id"])["id"].to_pylist(), *self._unread, *self._gone}
        for table in self._without_vector[1:]:
            left = [id for id in table.rows(["id"])["id"].to_pylist() if id not in there]
            there.update(left)
            for condition in conditions("id", left):
                rows = table.rows(unread.schema.names, condition)
                unread.append(pa.table([rows[name] for name in unread.schema.names], schema=unread.schema))
                self._unread |= dict(zip(rows["id"].to_pylist(), rows["path"].to_pylist(), strict=True))


def _files(table: Table) -> Iterator[tuple[Any, ...]]:
    """Path, number, size and time of each picture."""
    rows = table.rows(["path", "id", "bytes", "changed"])
    yield from zip(*(rows[name].to_pylist() for name in ("path", "id", "bytes", "changed")), strict=True)
