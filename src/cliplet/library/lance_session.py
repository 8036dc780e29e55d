"""A library in LanceDB open for writing: its tables, and the commit that names what was done to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cliplet.errors import DataError
from cliplet.library.identity import other_model
from cliplet.library.lance_care import retire
from cliplet.library.lance_changes import Problems, Table, publish
from cliplet.library.lance_rows import Contents
from cliplet.library.lance_tables import CAPTIONS, LIBRARY, OF_A_MODEL, PICTURES, About, Generation, Place, schema_of
from cliplet.library.records import Identity


class Session:
    """A library open for writing."""

    def __init__(self, place: Place):
        """Raises DataError where the library cannot be read."""
        self.place = place
        self._library = place.open(LIBRARY)
        self.about = About.read(self._library, place.text)
        self.generation: Generation | None = None  # that vectors are written to
        self.tables: dict[str, Table] = {}  # of that generation
        self._active: Table | None = None  # pictures that answer, while others are made to take their place
        self._problems = Problems(place, self.about.problems)
        self._contents = self._active_contents = Contents(self._no_pictures())
        self._embedded: set[str] = set()  # captions that have a vector
        self._waiting: dict[str, int] | None = None  # captions that have none, with a picture; None is not known
        self._failed = False

    def begin(self, identity: Identity, upgrade: bool = False) -> None:
        active, made = self.about.active, self.about.made
        if active and not upgrade and not Identity.from_json(active.identity).same_vectors(identity):
            raise other_model(self.place.text, Identity.from_json(active.identity), identity)
        go_on = upgrade and made is not None and Identity.from_json(made.identity).same_vectors(identity)
        with self.change():
            if made and not go_on:
                retire(self.about, made)
                made = self.about.made = None
            wanted = made or (None if upgrade else active)
            if wanted is None:
                self.about.generations += 1
                wanted = Generation(self.about.generations, identity.to_json(), identity.dims)
                if active:
                    self.about.made = wanted
                else:
                    self.about.active = wanted
            self._open(wanted)

    def _open(self, generation: Generation) -> None:
        for table in OF_A_MODEL:
            self.tables[table] = self._table(generation, table)
        self._contents = Contents(self.pictures.rows(["id", "content"]))
        active = self.about.active
        if active is not None and active is not generation:
            self._active = self._table(active, PICTURES)
            self._active_contents = Contents(self._active.rows(["id", "content"]))
        self._embedded = set(self.tables[CAPTIONS].rows(["text"])["text"].to_pylist())
        self.generation = generation

    def _table(self, generation: Generation, table: str) -> Table:
        schema = schema_of(table, generation.dims)
        return Table(self.place, generation.name(table), schema, generation.versions.get(table, 0))

    def _no_pictures(self) -> Any:
        return schema_of(PICTURES, 1).empty_table()

    @property
    def pictures(self) -> Table:
        """The table of pictures that is written to."""
        return self.tables[PICTURES]

    @contextmanager
    def change(self) -> Iterator[None]:
        """All of the block at once. After a failure nothing is written any more: what was half done is not named, and
        the next writer takes it back."""
        if self._failed:
            raise DataError(f"{self.place.text}: a change failed before, and nothing can follow it", "Run it again.")
        before = self.about.to_json()
        try:
            yield
            self.about.problems = self._problems.table.version
            if self.generation:
                for table, opened in self.tables.items():
                    if opened.version:
                        self.generation.versions[table] = opened.version
                self.generation.pictures, self.generation.captions = len(self.pictures), len(self.tables[CAPTIONS])
            if self.about.to_json() != before:
                self._library = publish(self._library, self.about, self.place)
        except BaseException:
            self._failed = True
            raise
