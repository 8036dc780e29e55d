"""How the one writer of a library in LanceDB changes its tables."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from cliplet.errors import DataError
from cliplet.library.lance_tables import PROBLEMS, About, Place, conditions, lance_module, problems_schema, sound

Problem = tuple[str, int, int, str]  # path, size, time, reason


class Table:
    """A table as the library's only writer has it open: each change makes the version after the last one."""

    def __init__(self, place: Place, name: str, schema: Any, version: int):
        """Opens it as it was in that version, and takes back what a killed writer did after it; 0 is a table that is
        made when something comes into it. Raises DataError where it cannot be read."""
        self.place, self.name, self.schema = place, name, schema
        self.dataset: Any = None
        self.loose = 0  # changes since files were put together
        if version:
            self.dataset = place.open(name, version)
            if self.dataset.latest_version != version:
                self.dataset.restore()
            self.loose = len(self.dataset.get_fragments())

    @property
    def version(self) -> int:
        """The last one; 0 before there is a table."""
        return int(self.dataset.version) if self.dataset is not None else 0

    def __len__(self) -> int:
        return int(self.dataset.count_rows()) if self.dataset is not None else 0

    def opened(self) -> Any:
        """LanceDB's own object, of a table that is made if need be."""
        if self.dataset is None:
            lance = lance_module()
            self.dataset = lance.LanceDataset.commit(
                self.place.table(self.name),
                lance.LanceOperation.Overwrite(self.schema, []),
                storage_options=self.place.options or None,
            )
        return self.dataset

    def rows(self, columns: Sequence[str] | None = None, condition: str = "") -> Any:
        """Rows as a pyarrow table; none before there is one."""
        if self.dataset is None:
            chosen = self.schema if columns is None else _part(self.schema, columns)
            return chosen.empty_table()
        return self.dataset.to_table(columns=None if columns is None else list(columns), filter=condition or None)

    def append(self, rows: Any) -> None:
        """More rows. Raises OSError where there is no room, DataError where another process writes."""
        if len(rows):
            self.append_fragments(written(rows, self.opened(), self.place))

    def append_fragments(self, fragments: Sequence[Any]) -> None:
        """Rows that were written before, wherever that was."""
        if fragments:
            self._commit(lance_module().LanceOperation.Append(list(fragments)))

    def replace(self, rows: Any) -> None:
        """These rows alone."""
        fragments = written(rows, self.opened(), self.place)
        self._commit(lance_module().LanceOperation.Overwrite(self.schema, fragments))

    def delete(self, column: str, values: Collection[int | str | bytes]) -> None:
        """Rows that have one of the values in a column."""
        for condition in conditions(column, values) if self.dataset is not None else ():
            before = self.version
            self.dataset.delete(condition)
            self._next(self.dataset, before)

    def _commit(self, operation: Any) -> None:
        opened, before = self.opened(), self.version
        self._next(lance_module().LanceDataset.commit(opened, operation, read_version=before, max_retries=0), before)

    def _next(self, dataset: Any, before: int) -> None:
        """LanceDB lets a change follow those of others which it does not contradict; here there must be none."""
        self.dataset = dataset
        self.loose += 1
        if dataset.version > before + 1:
            raise conflict(self.place)


class Problems:
    """The table of files that could not be read."""

    def __init__(self, place: Place, version: int):
        self.table = Table(place, PROBLEMS, problems_schema(), version)
        rows = self.table.rows(["path", "bytes", "changed"]).to_pylist()
        self.known: dict[bytes, tuple[int, int]] = {row["path"]: (row["bytes"], row["changed"]) for row in rows}

    def write(self, problems: Sequence[Problem], solved: Iterable[str] = ()) -> None:
        """More of them, in place of those of the same paths; and without those that are `solved`."""
        import pyarrow as pa

        new = {os.fsencode(path): (size, changed, sound(why)) for path, size, changed, why in problems}
        gone = {*map(os.fsencode, solved), *new} & self.known.keys()
        self.table.delete("path", gone)
        for path in gone:
            del self.known[path]
        if new:
            self.known |= {path: (size, changed) for path, (size, changed, _) in new.items()}
            columns = [list(new), *map(list, zip(*new.values(), strict=True))]
            arrays = [pa.array(one, type=field.type) for one, field in zip(columns, self.table.schema, strict=True)]
            self.table.append(pa.table(arrays, schema=self.table.schema))


def written(rows: Any, dataset: Any, place: Place) -> list[Any]:
    """Rows as files of a table that do not belong to it yet. Raises OSError."""
    from lance.fragment import write_fragments

    return list(write_fragments(rows, dataset, mode="append", storage_options=place.options or None))


def publish(library: Any, about: About, place: Place) -> Any:
    """The next version of the table `library`, made on the one that is given, or on none. Raises DataError."""
    lance = lance_module()
    try:
        return lance.LanceDataset.commit(
            library, lance.LanceOperation.Overwrite(about.schema(), []), read_version=library.version, max_retries=0
        )
    except lance.commit.CommitConflictError:
        raise conflict(place) from None


def conflict(place: Place) -> DataError:
    """For a writer that is not the only one."""
    return DataError(
        f"{place.text}: another process has written to the library meanwhile; this one ends, and nothing is lost",
        "Run the command again when the other one is done.",
    )


def _part(schema: Any, columns: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.schema([schema.field(name) for name in columns])
