"""Adding to a library: what `cliplet index` and `Library.add` do around one run of `indexing.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import writable
from cliplet.errors import ConfigError, DataError, nearest
from cliplet.library.background import everyday_queries
from cliplet.library.batch import Counts
from cliplet.library.exchange import IndexWriter
from cliplet.library.fit import calibrate, is_stale
from cliplet.library.given_captions import Given, given_captions
from cliplet.library.indexing import Indexing
from cliplet.library.scan import check_folders
from cliplet.library.store import Writer
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
        forgotten = sum(writer.forget(os.path.abspath(os.path.expanduser(root))) for root in forget)
        if new_roots:
            writer.add_roots(new_roots)
        roots = writer.roots()
        if not roots and not forget:
            raise DataError(
                f"{library.store.place}: has no folders yet", "Name one: cliplet index FOLDER --library LIBRARY."
            )
        index_writer = cast(IndexWriter, writer)  # both kinds of writers are
        indexing = _indexing(workers)(index_writer, model_of.encoder, Quarantine(quarantine), tell, say, batch_size)
        counts = indexing.run(roots, given_captions(captions, new_roots or roots), follow_links)
        if upgrade:
            refuse_half(library.store.place, counts)
        _finish(library, writer, model_of, upgrade)
    library.refresh()
    embedded = counts.embedded
    return IndexSummary(
        library=writable(library.store.place),
        model=writable(identity.source),
        engine=f"{identity.engine} in {identity.precision}" if identity.engine else "",
        pictures=len(library),
        added=counts.added,
        changed=counts.changed,
        moved=counts.moved,
        removed=counts.removed + forgotten,
        unchanged=counts.unchanged,
        embedded=embedded,
        failed=counts.failed,
        captions=counts.captions,
        seconds=round(time.monotonic() - began, 3),
        pictures_per_second=round(embedded / counts.seconds, 1) if embedded and counts.seconds else None,
    )


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


def _finish(library: Library, writer: Writer, model_of: _Model, upgrade: bool) -> None:
    """Makes an upgrade's vectors the library's, the approximate index and what scores are judged by. The index may be
    due though nothing is new: a run that was to make it may have been killed."""
    everyday = _Once(lambda: model_of.encoder().encode_text(everyday_queries()))
    writer.finish(everyday)
    library.refresh()
    stale = upgrade or is_stale(library.store.calibration, len(library))
    if len(library) and stale and len(library.store.sample(1)):
        writer.set_calibration(calibrate(library.store, model_of.encoder(), everyday()))


class _Once:
    """Features that are computed when they are first asked for."""

    def __init__(self, compute: Callable[[], np.ndarray]):
        self._compute = compute
        self._features: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._features is None:
            self._features = self._compute()
        return self._features


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
