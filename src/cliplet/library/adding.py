"""Adding to a library: what `cliplet index` and `Library.add` do around one run of `indexing.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import Problem, writable
from cliplet.errors import ConfigError, DataError, nearest
from cliplet.library.background import everyday_queries
from cliplet.library.batch import Counts
from cliplet.library.fit import calibrate, is_stale, unseen_features
from cliplet.library.given_captions import Given, GivenCaptions, given_captions
from cliplet.library.indexing import Indexing
from cliplet.library.run_messages import say_failed
from cliplet.library.scan import check_folders, folder_inside
from cliplet.library.store import Calibration, Writer
from cliplet.results import IndexSummary

if TYPE_CHECKING:
    from cliplet.library.library import Library
    from cliplet.library.records import Identity
    from cliplet.runtime.encoder import Encoder

UNREAD_SHARE, UNREAD_LEAST = 0.1, 10  # pictures that an upgrade can do without, since their files cannot be read

Tell = Callable[[int, int], None]
Say = Callable[[str], None]


def add_to(
    library: Library,
    folders: Sequence[str | os.PathLike[str]],
    captions: Given | None = None,
    *,
    model: str | Path | None = None,
    engine: str = "auto",
    precision: str = "auto",
    dims: int | None = None,
    upgrade: bool = False,
    forget: Sequence[str] = (),
    wait: bool = False,
    follow_links: bool = False,
    quarantine: Path | None = None,
    batch_size: int | None = None,
    workers: str = "local",
    tell: Tell = lambda done, total: None,
    say: Say = lambda message: None,
) -> IndexSummary:
    """Brings a library up to date with its folders and new ones.

    `model`, `engine`, `precision`, `dims`: of the vectors, as for `cliplet.load`; by themselves what the library has.
    `upgrade`: embed all anew with another model; the library answers with the old vectors until the end. `forget`:
    folders that go, with their pictures. `wait` for another process that is writing, instead of saying so.
    `follow_links` that lead out of the folders. `quarantine`: where files that could not be read are written down.
    `workers`: `local`, this process's, or `ray`, on any number of machines (docs/scale.md).
    `tell` hears (done, total) files, `say` what people should know.

    Raises DataError where a folder is not there or vanishes, another process writes, the vectors are another model's,
    or an upgrade has not seen all pictures; ModelError; OSError where the disk is full. What was committed until then
    stays, and the same call goes on.
    """
    began = time.monotonic()
    new_roots = check_folders(folders)
    model_of = _Model(library, model, engine, precision, dims)
    with library.store.writing(say, wait) as writer:
        library.refresh()
        identity = model_of.identity(upgrade)
        writer.begin(identity, upgrade)
        forgotten = sum(_forget(writer, root) for root in _outer_first(forget))
        if new_roots:
            writer.add_roots(new_roots)
        roots = writer.roots()
        if not roots and not forget:
            raise DataError(
                f"{library.store.place}: has no folders yet", "Name one: cliplet index FOLDER --library LIBRARY."
            )
        calibrating = _Calibrating(library, writer, model_of, upgrade)
        bad = Quarantine(quarantine)
        indexing = _indexing(workers)(writer, model_of.encoder, bad, tell, say, batch_size)
        indexing.committed = calibrating.on_the_way
        given = given_captions(captions, new_roots, roots)
        counts = indexing.run(roots, given.by_path if given else None, follow_links)
        reasons = writer.reasons() | indexing.failures
        bad.extend(Problem(writable(path), writable(why)) for path, why in reasons.items())
        _say_bad(indexing, given, bad, say)
        if upgrade:
            refuse_half(library.store.place, counts)
        calibrating.at_the_end()
    library.refresh()
    return _summary(
        library,
        identity,
        counts,
        removed=counts.removed + forgotten,
        unreadable=len(reasons),
        captions_without_picture=len(given.without_picture(indexing.unused_captions)) if given else 0,
        captions_unreadable=len(given.problems) if given else 0,
        seconds=round(time.monotonic() - began, 3),
    )


def _summary(library: Library, identity: Identity, counts: Counts, **more: Any) -> IndexSummary:
    """What a run counted, and `more` that it does not know."""
    return IndexSummary(
        library=writable(library.store.place),
        model=writable(identity.source),
        engine=f"{identity.engine} in {identity.precision}" if identity.engine else "",
        pictures=len(library),
        added=counts.added,
        changed=counts.changed,
        moved=counts.moved,
        unchanged=counts.unchanged,
        embedded=counts.embedded,
        failed=counts.failed,
        captions=counts.captions,
        pictures_per_second=round(counts.embedded / counts.seconds, 1) if counts.embedded and counts.seconds else None,
        **more,
    )


def _outer_first(folders: Sequence[str]) -> list[str]:
    """Whole paths. A folder in another comes after it: it can be forgotten once that is."""
    if not all(folders):
        raise DataError("a folder to forget is named by nothing", "Name one of the library's folders.")
    return sorted({os.path.abspath(os.path.expanduser(folder)) for folder in folders})


def _forget(writer: Writer, folder: str) -> int:
    """Takes a folder out; returns how many pictures went. Raises DataError for one whose pictures would be found again
    at once, since it lies in another folder of the library."""
    roots = writer.roots()
    outer = folder_inside(folder, [root for root in roots if root != folder])
    if outer and (folder not in roots or _holds_anything(folder)):
        raise DataError(
            f"{folder}: lies in {outer}, which is a folder of the library, too: its pictures would be found again",
            f"Forget {outer} and add those of its folders that are to stay, or move {folder} out of it.",
        )
    return writer.forget(folder)


def _holds_anything(folder: str) -> bool:
    """Whether it is there and not empty: else what is known of it goes once it is forgotten, wherever it lies."""
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False


def _say_bad(indexing: Indexing, given: GivenCaptions | None, bad: Quarantine, say: Say) -> None:
    """Of files and captions that could not be used; of a few why, without a look into another file."""
    say_failed(indexing.failures.items(), say)
    if given:
        bad.extend(given.problems)
        for line in given.told(indexing.unused_captions):
            say(line)


def _indexing(workers: str) -> type[Indexing]:
    if workers == "ray":
        from cliplet.library.bulk import RayIndexing

        return RayIndexing
    if workers != "local":
        raise ConfigError(f"there are no workers {workers!r}", nearest(workers, ["local", "ray"]))
    return Indexing


def refuse_half(place: str, counts: Counts) -> None:
    """Raises DataError where an upgrade has not seen all pictures, and so is not to take the old vectors' place: they
    may lie on a drive that is not there. Some files that cannot be read do not hold it up; they have no vector then."""
    kept = "; the old vectors go on answering, and what is embedded is kept"
    if counts.hidden:
        raise DataError(
            f"{place}: the upgrade is not finished: {counts.hidden:,} pictures are in places that are not there now, "
            f"or cannot be looked at{kept}",
            "Plug the drive in and run the same again, or add --forget FOLDER to go on without its pictures.",
        )
    done = counts.unchanged + counts.changed + counts.moved + counts.added
    if counts.unread > max(UNREAD_LEAST, UNREAD_SHARE * done) or (counts.unread and not done):
        raise DataError(
            f"{place}: the upgrade is not finished: {counts.unread:,} pictures cannot be read now{kept}",
            "--quarantine FILE says which, and why. Run the same again when they can be read.",
        )


class _Calibrating:
    """Takes what scores are judged by, and makes what else belongs to the end of a run."""

    def __init__(self, library: Library, writer: Writer, model_of: _Model, upgrade: bool):
        self.library, self.writer, self.upgrade = library, writer, upgrade
        self._everyday = cache(lambda: model_of.encoder().encode_text(everyday_queries()))
        self._unseen = cache(lambda: unseen_features(model_of.encoder()))
        self._pictures = len(library)
        self._last: Calibration = library.store.calibration
        self._early = False

    def on_the_way(self, added: int) -> None:
        """After pictures were committed, so many since the begin: a first run may take hours or be killed, and without
        this every fit would be 0 % until its end. Not in an upgrade: the library answers with its old vectors."""
        if not self.upgrade and is_stale(self._last, self._pictures + added):
            self._early = True
            self._take()

    def at_the_end(self) -> None:
        """Makes an upgrade's vectors the library's, the approximate index and the calibration. The index may be due
        though nothing is new: a run that was to make it may have been killed."""
        self.writer.finish(self._everyday)
        self.library.refresh()
        stale = self.upgrade or self._early or is_stale(self.library.store.calibration, len(self.library))
        if len(self.library) and stale:
            self._take()

    def _take(self) -> None:
        self.library.refresh()
        store = self.library.store
        if len(store.sample(1)):
            self._last = calibrate(store, self._everyday(), self._unseen())
            self.writer.set_calibration(self._last)


class _Model:
    """The model of a run, opened only when something is to be embedded."""

    def __init__(self, library: Library, model: str | Path | None, engine: str, precision: str, dims: int | None):
        self.library, self.model = library, model
        self.engine, self.precision, self.dims = engine, precision, dims
        self._encoder: Encoder | None = None

    def identity(self, upgrade: bool) -> Identity:
        """Of the vectors to come. The model is opened for it where the library has none, or perhaps another."""
        from cliplet.library.identity import identity_of
        from cliplet.runtime.encoder import load

        held = self.library.identity
        if held is not None and not upgrade and self._is(held):
            return self._where_it_is(held)
        source = self.model or (held.source if held else None)
        if source is not None:
            self._encoder = load(source, engine=self.engine, precision=self.precision, dims=self.dims)
        elif self.library.has_encoder:
            self._encoder = self.library.encoder
        else:
            raise DataError(
                f"{self.library.store.place}: has no model yet",
                "Name one: cliplet index FOLDER --library LIBRARY -m MODEL.",
            )
        return identity_of(self._encoder)

    def _is(self, held: Identity) -> bool:
        """Whether what was asked for is what the library has, as far as can be told without opening the model."""
        from cliplet.runtime.engines import best_model_folder
        from cliplet.runtime.identity import features_hashes

        asked = ((self.engine, held.engine), (self.precision, held.precision), (self.dims, held.dims))
        alike = all(one in ("auto", None, other) for one, other in asked)
        return alike and (not self.model or features_hashes(best_model_folder(self.model)) == held.hashes)

    def _where_it_is(self, held: Identity) -> Identity:
        """The same model, in the folder that was named: it may have been moved."""
        from cliplet.runtime.engines import best_model_folder

        return replace(held, source=str(best_model_folder(self.model).absolute())) if self.model else held

    def encoder(self) -> Encoder:
        """The model, open."""
        from cliplet.library.identity import open_again

        if self._encoder is None:
            place, identity = self.library.store.place, self.library.identity
            self._encoder = open_again(place, identity, model=str(self.model)) if self.model else self.library.encoder
        return self._encoder
