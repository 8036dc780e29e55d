"""What a run has read and embedded, on its way into the library; and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cliplet.library.scan import Seen
from cliplet.library.store import Entry, Writer


@dataclass
class Counts:
    """What a run did, in pictures."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0  # of the added and changed ones, those whose content was new
    failed: int = 0
    unread: int = 0  # of them, pictures that are known, and kept as they were
    hidden: int = 0  # pictures without a vector, in places that cannot be looked at now
    captions: int = 0  # embedded
    seconds: float = 0.0  # of reading and embedding pictures


@dataclass
class FileRead:
    """What a worker found in a file."""

    content: bytes
    bytes: int
    changed: int
    columns: dict[str, object]


class Batch:
    """Pictures that are written together."""

    def __init__(self, writer: Writer, counts: Counts, gone: set[int], away: dict[int, bool] | None = None):
        """`gone`: pictures whose files are gone. `away`: those in folders that are not there (`Scan.away`). Who has
        such a one's content is that picture, moved."""
        self.writer, self.counts, self.gone, self.away = writer, counts, gone, {} if away is None else away
        self.entries: list[Entry] = []
        self.lost: list[Entry] = []  # whose vector is there no more
        self.problems: list[tuple[str, int, int, str]] = []

    def add(self, seen: Seen, about: FileRead, features_D: np.ndarray, captions: tuple[str, ...] | None) -> None:
        """One that was read; its features are NaN where its content has a vector already."""
        new = not np.isnan(features_D[0])
        entry = Entry(seen.path, about.bytes, about.changed, about.content, about.columns, captions)
        entry.features_D, entry.id = (features_D.copy() if new else None), seen.id
        if seen.id is None:
            entry.id = self._moved(about.content)
            self.counts.added += entry.id is None
            self.counts.moved += entry.id is not None
        else:
            self.counts.changed += 1
        self.counts.embedded += new
        self.entries.append(entry)

    def _moved(self, content: bytes) -> int | None:
        """The picture that a new file with this content is, if its own file is not there any more.

        A folder that is not there may have been renamed, or be a drive that is away. If two drives with the same
        pictures are plugged in by turns, the records move from one to the other and back, and nothing is lost.
        """
        id = self.writer.moved(content, self.gone) if self.gone else None
        if id is not None:
            self.gone.discard(id)
            return id
        id = self.writer.moved(content, self.away) if self.away else None
        if id is not None:
            self.counts.hidden -= not self.away.pop(id)
        return id

    def commit(self) -> None:
        """Writes them."""
        new = {entry.content for entry in self.entries if entry.features_D is not None}
        entries: list[Entry] = []
        for entry in self.entries:
            there = entry.content in new or self.writer.has_vector(entry.content)
            (entries if there else self.lost).append(entry)
        problems, self.entries, self.problems = self.problems, [], []
        if entries or problems:
            self.writer.write(entries, problems)
