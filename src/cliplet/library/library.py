"""A library of pictures as people and the service use it: add folders, search, captions, duplicates."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from cliplet.errors import ClipletError, ConfigError, DataError
from cliplet.library.deadline import within
from cliplet.library.query import Query
from cliplet.library.records import CaptionHit, Hits, Identity, Picture
from cliplet.library.store import ChangedError, Store, create_store, open_store
from cliplet.library.where import Where
from cliplet.library.where import parse as parse_where

if TYPE_CHECKING:
    from cliplet.library.fit import Combined
    from cliplet.results import IndexSummary
    from cliplet.runtime.encoder import Encoder

MAX_K, MAX_DEPTH = 1000, 100_000  # hits at once, and hits that may be passed over before them

T = TypeVar("T")
Tell = Callable[[int, int], None]
Say = Callable[[str], None]


class Library:
    """Pictures that can be searched: `Library.open("photos.library").search("a dog in the snow")`.

    Threads may search at the same time.
    """

    def __init__(self, store: Store, encoder: Encoder | None = None, engine: str = "auto"):
        """Use `open` or `create`. Raises DataError where the encoder is not the model of the store's vectors."""
        self.store = store
        self._encoder = encoder
        self._engine = engine
        self._opening = threading.Lock()
        self._sample: tuple[int, np.ndarray] | None = None
        self._model: tuple[dict[str, str], int] = ({}, 0)  # hashes and dims of the encoder
        if encoder is not None:
            from cliplet.library.identity import hashes_of, refuse_other

            try:
                held = store.identity
                hashes = refuse_other(store.place, held, encoder) if held else hashes_of(encoder)
                self._model = hashes, encoder.embed_dim
            except ClipletError:
                store.close()
                raise

    @classmethod
    def open(cls, place: str | os.PathLike[str], encoder: Encoder | None = None, *, engine: str = "auto") -> Library:
        """A library that is there: a folder, or `lance:URI`. `encoder`: the model, if it is open already; `engine`:
        what is to compute it, by itself what computed the vectors.

        Raises DataError where there is no library, or the encoder is another model's.
        """
        return cls(open_store(os.fspath(place)), encoder, engine)

    @classmethod
    def open_or_create(cls, place: str | os.PathLike[str]) -> Library:
        """The same, made where nothing is; then `add` has to be told the model. Raises DataError where something else
        is."""
        return cls(create_store(os.fspath(place)))

    @classmethod
    def create(cls, place: str | os.PathLike[str], model: Encoder | str | Path, *, engine: str = "auto") -> Library:
        """A library, made where there is none yet, for the vectors of a model. Raises DataError where there is
        something else, or vectors of another model; ModelError."""
        from cliplet.runtime.encoder import Encoder, load

        encoder = model if isinstance(model, Encoder) else load(model, engine=engine)
        return cls(create_store(os.fspath(place)), encoder, engine)

    @property
    def identity(self) -> Identity | None:
        """The model of the vectors; None before the first picture."""
        return self.store.identity

    @property
    def has_encoder(self) -> bool:
        """Whether the model is open."""
        return self._encoder is not None

    @property
    def encoder(self) -> Encoder:
        """The model, opened when it is first needed, and anew once the library's vectors are another's. Raises
        ModelError; DataError where the model itself is another by now."""
        with self._opening:
            identity = self.identity
            if self._encoder is None or (identity and (identity.hashes, identity.dims) != self._model):
                from cliplet.library.identity import open_again

                self._encoder = open_again(self.store.place, identity, self._engine)
                self._model = (identity.hashes, identity.dims) if identity else ({}, 0)
            return self._encoder

    def __len__(self) -> int:
        return len(self.store)

    @property
    def has_captions(self) -> bool:
        """Whether pictures have captions, which can be searched too."""
        return self.store.captions_count() > 0

    def add(
        self,
        *folders: str | os.PathLike[str],
        captions: str | Path | Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> IndexSummary:
        """Finds pictures in the folders and all that were added before, and embeds what is new or changed.

        `captions`: a data set's annotation file, or captions by path. Further options: see `adding.add_to`. Raises
        DataError, ModelError.
        """
        from cliplet.library.adding import add_to

        summary = add_to(self, folders, captions, **options)
        self.refresh()
        return summary

    def search(
        self,
        query: str | Query | Combined,
        k: int = 10,
        *,
        offset: int = 0,
        where: str | Where = "",
        by: Literal["pictures", "captions"] = "pictures",
    ) -> Hits:
        """The k pictures that fit best, from the `offset`-th on; each once, however many captions or copies it has.

        `query`: a sentence, taken as it is, or a `Query`. `where`: a filter (docs/library.md). `by`: what is compared
        with the query, pictures or their captions. Raises ConfigError for a query or filter that cannot be or takes
        too long, DataError where the library has no vectors or no such picture, ImageError for a picture that cannot
        be read, ChangedError where a `Combined` is of a model that is not the library's any more.
        """
        self._check(k, offset)
        if by not in ("pictures", "captions"):
            raise ConfigError(f"by = {by!r}: searched are pictures or captions")
        condition = _condition(where)

        from cliplet.library.answers import by_captions, judged, nothing_fits
        from cliplet.library.fit import LOOKED_AT

        def ask(combined: Combined) -> Hits:
            total = self.store.count(condition) if condition else None
            if by == "captions":
                return by_captions(self.store, combined, k, offset, condition, total)
            found = self.store.nearest(combined.vector_D, max(offset + k, LOOKED_AT), condition, combined.model)
            hits = judged(self.store, combined, found[offset : offset + k], self._pictures_sample)
            return Hits(hits, nothing_fits(self.store, combined, [one.score for one in found]), total)

        return self._asked(query, ask)

    def captions(
        self, query: str | Query | Combined, k: int = 10, *, offset: int = 0, where: str | Where = ""
    ) -> list[CaptionHit]:
        """The k captions that fit a query best, most often a picture's, of the pictures that pass. Raises as
        `search`."""
        self._check(k, offset)
        condition = _condition(where)
        from cliplet.library.answers import caption_hits

        return self._asked(query, lambda combined: caption_hits(self.store, combined, offset + k, condition)[offset:])

    def scores(self, id: int, texts: Sequence[str | Combined]) -> list[tuple[float, float]]:
        """How close a picture is to each text, and how well it fits it. Raises DataError where there is no picture."""
        from cliplet.library.fit import fits

        def ask(combined: Combined) -> tuple[float, float]:
            (feature_D,) = self.store.features([id], combined.model)
            score = float(feature_D @ combined.vector_D)
            (fit,) = fits(combined, np.array([score]), self.store.calibration, self._pictures_sample)
            return score, float(fit)

        return [self._asked(text, ask) for text in texts]

    def _asked(self, query: str | Query | Combined, ask: Callable[[Combined], T]) -> T:
        """What the library says to a query. It is asked anew where its vectors become another model's meanwhile."""

        def once() -> T:
            combined = self.combined(query)
            with within():
                return ask(combined)

        try:
            return once()
        except ChangedError:
            if not isinstance(query, (str, Query)):
                raise
            self.refresh()
            return once()

    def picture(self, id: int) -> Picture:
        """What is known of one. Raises DataError where there is none."""
        return self.store.picture(id)

    def newest(self, k: int = 10, *, offset: int = 0, where: str | Where = "") -> list[Picture]:
        """Pictures, the last that were added first. Raises ConfigError for a bad filter."""
        self._check(k, offset)
        with within():
            return self.store.newest(k, offset, _condition(where))

    def thumbnail_key(self, id: int) -> str:
        """What names a picture's content, in hexadecimal digits. Raises DataError where there is no picture."""
        return self.store.content(id)

    def duplicates(self, **options: Any) -> list[list[Picture]]:
        """Groups of pictures that are copies of each other or nearly; see `duplicates.find`."""
        from cliplet.library.duplicates import find

        return find(self.store, **options)

    def combined(self, query: str | Query | Combined) -> Combined:
        """A query as a vector, which may be asked for in its place. Raises as `search`."""
        from cliplet.library.fit import Combined, Part, combine

        if isinstance(query, Combined):
            return query

        if not len(self):
            raise DataError(
                f"{self.store.place}: holds no pictures yet", "Add some: cliplet index FOLDER --library LIBRARY."
            )
        query = Query.of_text(query) if isinstance(query, str) else query
        model = self.identity
        texts = [str(term.value) for term in query.terms if term.kind == "text"]
        pictures = [term.value for term in query.terms if term.kind == "picture"]
        features: dict[str, list[np.ndarray]] = {"text": [], "picture": [], "id": []}
        if texts:
            features["text"] = list(self.encoder.encode_text(texts))
        if pictures:
            features["picture"] = list(self.encoder.encode_image(pictures))
        ids = [term.value for term in query.terms if term.kind == "id"]
        if ids:
            features["id"] = list(self.store.features([int(id) for id in ids], model))
        parts = [Part(term.weight, term.kind != "text", features[term.kind].pop(0)) for term in query.terms]
        return combine([part for part in parts if part.weight], self.store.calibration, model)

    def refresh(self) -> None:
        """Sees what other processes have written since. Costs next to nothing where that is nothing."""
        self.store.refresh()

    def close(self) -> None:
        """Closes files."""
        self.store.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _check(self, k: int, offset: int) -> None:
        if not 1 <= k <= MAX_K:
            raise ConfigError(f"between 1 and {MAX_K:,} hits can be asked for at once, got {k:,}")
        if not 0 <= offset <= MAX_DEPTH:
            raise ConfigError(f"at most {MAX_DEPTH:,} hits can be passed over, got {offset:,}")

    def _pictures_sample(self) -> np.ndarray:
        from cliplet.library.fit import SAMPLE

        if self._sample is None or self._sample[0] != len(self):
            self._sample = len(self), self.store.sample(SAMPLE)
        return self._sample[1]


def _condition(where: str | Where) -> Where | None:
    """A filter, read; None where there is none."""
    return where if isinstance(where, Where) else parse_where(where) if where.strip() else None
