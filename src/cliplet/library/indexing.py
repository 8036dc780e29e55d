"""One run of `cliplet index`: what is new or changed is read and embedded, and committed in batches.

The workers that decode and embed (`runtime/pictures.py`) also read, hash and take the metadata; so a file is read once,
and one whose content is in the library already is not decoded at all.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from cliplet.data.endings import HEIC_ENDINGS
from cliplet.data.images import MAX_BYTES
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import Problem, writable
from cliplet.errors import DataError, ImageError
from cliplet.library.batch import Batch, Counts, FileRead
from cliplet.library.exchange import Exchange, exchanged, name_aside
from cliplet.library.metadata import Metadata, date_parts, read_metadata
from cliplet.library.run_messages import say_looked, say_missing, say_same
from cliplet.library.same_folders import merged, other_names
from cliplet.library.scan import Scan, Seen, look
from cliplet.library.store import Entry, Known, Writer

if TYPE_CHECKING:
    from cliplet.runtime.encoder import Encoder

COMMIT_SECONDS = 2.0
TEXTS_AT_ONCE = 4096

Tell = Callable[[int, int], None]  # of files (done, total)
Say = Callable[[str], None]


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
    committed: Callable[[int], None] = lambda added: None  # hears how many pictures are new so far, on the way
    failures: dict[str, str] = field(default_factory=dict)  # why files could not be read, by path
    unused_captions: set[str] = field(default_factory=set)  # pictures (real paths) that are not in the library
    _claims: dict[str, int] = field(default_factory=dict)  # pictures that were found under other names, by path

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
        names = other_names(roots)
        known = self._merged(roots, names)
        roots = [root for root in roots if root not in names]
        scan = look(roots, known, self.writer.problems(), follow_links)
        self.counts.unchanged, self.counts.hidden = scan.unchanged, scan.hidden
        away = set(scan.away)
        say_looked(scan, self.say)
        self.quarantine.extend(scan.problems)
        may_be_moved = any(seen.id is None for seen in scan.to_read)
        if not may_be_moved:
            say_missing(scan, known, set(), self.say)
        gone = set(scan.gone)
        self._set_aside(exchanged(scan, known, self.writer, content_of_file), scan, gone)
        if scan.to_read:
            self._read(scan, gone, captions or {})
            refuse_vanished([root for root in roots if root not in scan.missing])
        if may_be_moved:
            # Not before: of a folder that was renamed all pictures may be found, and --forget would remove them.
            say_missing(scan, known, away - scan.away.keys(), self.say)
        self.writer.remove(sorted(gone), scan.gone_problems)
        self.counts.removed += len(gone)
        if self.counts.unread:
            self.say(
                f"{self.counts.unread:,} pictures of the library cannot be read now; what is known of them is kept, "
                "and they are tried again the next time (--quarantine FILE names them)"
            )
        self._caption(captions or {})
        self._embed_captions()
        return self.counts

    def _merged(self, roots: Sequence[str], names: Mapping[str, str]) -> dict[str, Known]:
        """All pictures by path, each file once, though some of the folders are the same."""
        known = self.writer.known()
        if not names:
            return known
        say_same(names, self.say)
        result = merged(known, roots, names)
        if result.doubles:
            self.writer.remove(result.doubles)
        self.writer.rename(result.names)
        self.counts.removed, self.counts.moved = len(result.doubles), len(result.names)
        return result.known

    def _set_aside(self, exchange: Exchange, scan: Scan, gone: set[int]) -> None:
        """Pictures that are under other names now become such whose files are gone, and theirs new ones."""
        if exchange.aside:
            self.writer.rename({id: name_aside(path, id) for id, path in sorted(exchange.aside.items())})
            gone.update(exchange.aside)
            scan.to_read = [one._replace(id=None) if one.id in exchange.aside else one for one in scan.to_read]
        self._claims = exchange.claims

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
        batch = Batch(self.writer, self.counts, gone, scan.away)
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
                        self.committed(self.counts.added)
                        committed = time.monotonic()
            batch.commit()
            self._embed_lost(batch)
        finally:
            batch.commit()
            self.counts.seconds = time.monotonic() - began

    def _embed_lost(self, batch: Batch) -> None:
        """Reads those again whose content had a vector when they were read, and none any more when they were written:
        the last file that had it was changed meanwhile."""
        lost, batch.lost = batch.lost, []

        def read(entry: Entry) -> bytes:
            data, about = read_file(entry.path)
            if about.content != entry.content:
                raise ImageError(f"{entry.path}: changes all the time")
            return data

        if lost:
            done = 0
            for features_BD, failed in self.encoder().encode_image_blocks(lost, batch_size=self.batch_size, read=read):
                for row, entry in enumerate(lost[done : done + len(features_BD)]):
                    if row not in failed:  # else the next run reads it
                        entry.features_D = features_BD[row].copy()
                        self.counts.embedded += 1
                        batch.entries.append(entry)
                done += len(features_BD)
                batch.commit()

    def _failed(self, batch: Batch, seen: Seen, about: FileRead | None, error: ImageError) -> None:
        """A file that gave no picture. One that could not even be read is tried again the next time."""
        if about is None and not os.path.lexists(seen.path):
            self.counts.unread += self._kept(batch, seen)
            return  # it vanished since; the next run sees whether it is gone
        reason = error.message.removeprefix("picture given as bytes: ").removeprefix(f"{seen.path}: ")
        if seen.path.lower().endswith(HEIC_ENDINGS) and "not a picture" in reason:
            reason += "; HEIC needs a decoder: pip install -e '.[heic]' in cliplet's folder"
            about = None
        self.counts.failed += 1
        self.failures[seen.path] = reason
        self.quarantine.extend([Problem(writable(seen.path), writable(reason))])
        # A file that gave a picture once, and is as it was, is not to blame either.
        as_it_was = about and seen.id is not None and self.writer.moved(about.content, {seen.id}) is not None
        if (about is None or as_it_was) and self._kept(batch, seen):
            self.counts.unread += 1
        else:
            batch.problems.append((seen.path, seen.bytes, about.changed if about else -1, reason))

    def _kept(self, batch: Batch, seen: Seen) -> bool:
        """Whether a file that cannot be read now is a picture of the library, which stays then as it is."""
        id = self._claims.get(seen.path, seen.id)
        if id is not None:
            batch.gone.discard(id)
        return id is not None

    def _caption(self, captions: Mapping[str, tuple[str, ...]]) -> None:
        """Captions for pictures that were there before, too."""
        if captions:
            given = [(one.id, os.path.realpath(path)) for path, one in self.writer.known().items()]
            self.writer.caption([(id, captions[path]) for id, path in given if path in captions])
            self.unused_captions = captions.keys() - {path for _, path in given}

    def _embed_captions(self) -> None:
        while texts := self.writer.captions_without_vectors(TEXTS_AT_ONCE):
            self.writer.write_captions(texts, self.encoder().encode_text(texts))
            self.counts.captions += len(texts)


def read_file(path: str) -> tuple[bytes, FileRead]:
    """A file, and what is to be known of it. Raises ImageError where it cannot be read."""
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            before = os.fstat(stream.fileno())
            _refuse(path, before)
            data = stream.read(MAX_BYTES + 1)
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and len(data) == after.st_size
    columns = columns_of(read_metadata(data), path)
    # A file that changed while it was read is read again the next time.
    return data, FileRead(_content(data), len(data), before.st_mtime_ns if same else -1, columns)


def content_of_file(path: str) -> bytes | None:
    """What a file is known by; None where it cannot be read."""
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            _refuse(path, os.fstat(stream.fileno()))
            return _content(stream.read(MAX_BYTES + 1))
    except (OSError, ImageError):
        return None


def _content(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe at whose other end is nobody, too, which else would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse(path: str, status: os.stat_result) -> None:
    """Raises ImageError for what is not to be read."""
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is no file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{path}: {status.st_size:,} bytes, over the limit of {MAX_BYTES:,}")


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
