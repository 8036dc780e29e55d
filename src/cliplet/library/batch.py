"""What a run has read and embedded, on its way into the library; and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cliplet.library.exchange import IndexWriter
from cliplet.library.scan import Seen
from cliplet.library.store import Entry


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

    def __init__(self, writer: IndexWriter, counts: Counts, gone: set[int]):
        self.writer, self.counts, self.gone = writer, counts, gone
        self.entries: list[Entry] = []
        self.lost: list[Entry] = []  # whose vector is there no more
        self.problems: list[tuple[str, int, int, str]] = []

    def add(self, seen: Seen, about: FileRead, features_D: np.ndarray, captions: tuple[str, ...] | None) -> None:
        """One that was read; its features are NaN where its content has a vector already."""
        new = not np.isnan(features_D[0])
        entry = Entry(seen.path, about.bytes, about.changed, about.content, about.columns, captions)
        entry.features_D, entry.id = (features_D.copy() if new else None), seen.id
        if seen.id is None:
            entry.id = self.writer.moved(about.content, self.gone)
            if entry.id is None:
                self.counts.added += 1
            else:
                self.gone.discard(entry.id)
                self.counts.moved += 1
        else:
            self.counts.changed += 1
        self.counts.embedded += new
        self.entries.append(entry)

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
