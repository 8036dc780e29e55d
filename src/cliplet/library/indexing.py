"""One run of `cliplet index`: what is new or changed is read and embedded, and committed in batches.

The workers that decode and embed (`runtime/pictures.py`) also read, hash and take the metadata; so a file is read once,
and one whose content is in the library already is not decoded at all.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cliplet.data.endings import HEIC_ENDINGS
from cliplet.data.images import MAX_BYTES
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import Problem, writable
from cliplet.errors import DataError, ImageError
from cliplet.library.metadata import Metadata, date_parts, read_metadata
from cliplet.library.scan import Scan, Seen, look
from cliplet.library.store import Entry, Writer

if TYPE_CHECKING:
    from cliplet.runtime.encoder import Encoder

COMMIT_SECONDS = 2.0
TEXTS_AT_ONCE = 4096

Tell = Callable[[int, int], None]  # of files (done, total)
Say = Callable[[str], None]


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
    captions: int = 0  # embedded
    seconds: float = 0.0  # of reading and embedding pictures


@dataclass
class FileRead:
    """What a worker found in a file."""

    content: bytes
    bytes: int
    changed: int
    columns: dict[str, object]


@dataclass
class Indexing:
    """A run over the folders of a library. `encoder` opens the model, when it is needed."""

    writer: Writer
    encoder: Callable[[], Encoder]
    quarantine: Quarantine
    tell: Tell = lambda done, total: None
    say: Say = lambda message: None
    batch_size: int | None = None
    counts: Counts = field(default_factory=Counts)

    def run(
        self,
        roots: Sequence[str],
        captions: Mapping[str, tuple[str, ...]] | None = None,
        follow_links: bool = False,
    ) -> Counts:
        """Looks through the folders; embeds, moves, removes. `captions`: by real path, for pictures that others have.

        Raises DataError where a folder vanishes meanwhile, and OSError where the disk is full; what was committed until
        then stays.
        """
        known = self.writer.known()
        scan = look(roots, known, self.writer.problems(), follow_links)
        self.counts.unchanged = scan.unchanged
        self._said(scan)
        gone = set(scan.gone)
        if scan.to_read:
            self._read(scan, gone, captions or {})
            refuse_vanished([root for root in roots if root not in scan.missing])
        self.writer.remove(sorted(gone), scan.gone_problems)
        self.counts.removed = len(gone)
        if captions:
            self._caption(captions)
        self._embed_captions()
        return self.counts

    def _said(self, scan: Scan) -> None:
        for root in scan.missing:
            self.say(f"{root}: is not there, or empty now; its pictures are kept (--forget {root} removes them)")
        if scan.links_out:
            self.say(f"{scan.links_out:,} links lead out of the folders and were not followed (--follow-links does)")
        self.quarantine.extend(scan.problems)

    def _read(self, scan: Scan, gone: set[int], captions: Mapping[str, tuple[str, ...]]) -> None:
        """Reads and embeds; takes what was only moved out of `gone`."""
        began = time.monotonic()
        found: dict[str, FileRead] = {}  # by path, of the files that are under way

        def read(seen: Seen) -> bytes | None:
            if why := self.writer.refusal(seen.path):
                raise ImageError(f"{seen.path}: {why}")
            data, about = read_file(seen.path)
            found[seen.path] = about
            return None if self.writer.has_vector(about.content) else data

        blocks = self.encoder().encode_image_blocks(scan.to_read, batch_size=self.batch_size, read=read)
        batch = Batch(self.writer, self.counts, gone)
        done, committed, total = 0, time.monotonic(), len(scan.to_read)
        self.tell(0, total)
        try:
            with closing(blocks):  # type: ignore[type-var]
                for features_BD, failed in blocks:
                    for row, seen in enumerate(scan.to_read[done : done + len(features_BD)]):
                        about = found.pop(seen.path, None)
                        if row in failed:
                            self._failed(batch, seen, about, failed[row])
                        elif about is not None:
                            own = captions.get(os.path.realpath(seen.path)) if captions else None
                            batch.add(seen, about, features_BD[row], own)
                    done += len(features_BD)
                    self.tell(done, total)
                    if time.monotonic() - committed > COMMIT_SECONDS:
                        batch.commit()
                        committed = time.monotonic()
        finally:
            batch.commit()
            self.counts.seconds = time.monotonic() - began

    def _failed(self, batch: Batch, seen: Seen, about: FileRead | None, error: ImageError) -> None:
        """A file that gave no picture. One that could not even be read is tried again the next time."""
        if about is None and not os.path.lexists(seen.path):
            return  # it vanished since; the next run sees that it is gone
        reason = error.message.removeprefix("picture given as bytes: ").removeprefix(f"{seen.path}: ")
        if seen.path.lower().endswith(HEIC_ENDINGS) and "not a picture" in reason:
            reason += "; HEIC needs a decoder: pip install -e '.[heic]' in cliplet's folder"
            about = None
        self.counts.failed += 1
        self.quarantine.extend([Problem(writable(seen.path), writable(reason))])
        batch.problems.append((seen.path, seen.bytes, about.changed if about else -1, reason))

    def _caption(self, captions: Mapping[str, tuple[str, ...]]) -> None:
        """Captions for pictures that were there before, too."""
        given = ((one.id, captions.get(os.path.realpath(path))) for path, one in self.writer.known().items())
        self.writer.caption([(id, texts) for id, texts in given if texts is not None])

    def _embed_captions(self) -> None:
        while texts := self.writer.captions_without_vectors(TEXTS_AT_ONCE):
            self.writer.write_captions(texts, self.encoder().encode_text(texts))
            self.counts.captions += len(texts)


class Batch:
    """Pictures that are written together."""

    def __init__(self, writer: Writer, counts: Counts, gone: set[int]):
        self.writer, self.counts, self.gone = writer, counts, gone
        self.entries: list[Entry] = []
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
        if self.entries or self.problems:
            entries, problems = self.entries, self.problems
            self.entries, self.problems = [], []
            self.writer.write(entries, problems)


def read_file(path: str) -> tuple[bytes, FileRead]:
    """A file, and what is to be known of it. Raises ImageError where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            before = os.fstat(stream.fileno())
            if before.st_size > MAX_BYTES:
                raise ImageError(f"{path}: {before.st_size:,} bytes, over the limit of {MAX_BYTES:,}")
            data = stream.read(MAX_BYTES + 1)
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and len(data) == after.st_size
    columns = columns_of(read_metadata(data), path)
    content = hashlib.blake2b(data, digest_size=16).digest()
    # A file that changed while it was read is read again the next time.
    return data, FileRead(content, len(data), before.st_mtime_ns if same else -1, columns)


def columns_of(metadata: Metadata, path: str) -> dict[str, object]:
    """What a picture's file says of itself, by column."""
    columns: dict[str, object] = dict(asdict(metadata))
    columns["own_captions"] = columns.pop("captions")
    columns["format"] = metadata.format or path.rpartition(".")[2].lower() or "unknown"
    columns["width"], columns["height"] = metadata.width or 0, metadata.height or 0
    columns.update(zip(("year", "month", "day", "hour"), date_parts(metadata.taken), strict=True))
    return columns


def refuse_vanished(roots: Sequence[str]) -> None:
    """Raises DataError for a folder that is not there any more: nothing is removed from the library for that."""
    for root in roots:
        if not os.path.isdir(root):
            raise DataError(
                f"{root}: vanished while it was being indexed; what was embedded until then is kept",
                "Once it is there again, the same command goes on.",
            )


def read_captions(source: str | Path, folders: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Captions by real path from a data set: an annotation file of any kind that cliplet reads.

    Its pictures are looked for where the data set itself would, and else by their names in the first of `folders`,
    those that are indexed. Raises DataError.
    """
    from cliplet.data.readers import read_source

    images = next(iter(folders), None)
    try:
        records = read_source(source).records
    except DataError:
        if images is None:
            raise
        records = read_source(source, images).records
    return {os.path.realpath(record.image): one_line_each(record.captions) for record in records}


def one_line_each(captions: Sequence[str]) -> tuple[str, ...]:
    """Without line breaks, which separate captions in a library, and without repetitions."""
    return tuple(dict.fromkeys(" ".join(caption.split()) for caption in captions))
