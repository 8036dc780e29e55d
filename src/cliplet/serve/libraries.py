"""One library of a service: what a route asks of it, done in threads, by what it holds by now."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from cliplet.errors import ClipletError, ConfigError, DataError
from cliplet.library.deadline import SECONDS, within
from cliplet.library.fit import Combined, Part, combine
from cliplet.library.library import Library
from cliplet.library.records import CaptionHit, Hits, Picture
from cliplet.library.where import COLUMNS, Where, parse
from cliplet.serve.examples import examples
from cliplet.serve.forms import Column, LibraryAnswer, ScoresAnswer, SearchTerm, TextScore
from cliplet.serve.model import Model
from cliplet.serve.originals import Originals
from cliplet.serve.pools import CLIENT, Pools
from cliplet.serve.refusals import FILTER, Refused, log
from cliplet.serve.settings import Settings
from cliplet.serve.shown import printable
from cliplet.serve.thumbnails import Thumbnails, thumbnails_folder
from cliplet.serve.uploads import Receiving, Upload, Uploads, sent_picture

if TYPE_CHECKING:
    from fastapi import Request

TYPES = {str: "text", int: "int", float: "real", list: "list"}
NUMBER = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


class Served:
    """One library."""

    def __init__(
        self,
        name: str,
        library: Library,
        model_of: Callable[[Library], Model],
        pools: Pools,
        settings: Settings,
        receiving: Receiving,
    ):
        """`model_of`: opens the model of a library's vectors. `receiving` counts for all libraries."""
        self.name, self.library = name, library
        folder = thumbnails_folder(library.store.place)
        self.thumbnails = Thumbnails(folder, settings.thumbnail_side, pools, settings.thumbnail_bytes)
        self._originals = Originals()
        self._pools, self._settings, self._receiving = pools, settings, receiving
        self._model_of = model_of
        self._use(model_of(library))
        self._refreshing, self._refreshed = threading.Lock(), time.monotonic()
        self._examples: tuple[int, list[str]] = (-1, [])

    def _use(self, model: Model) -> None:
        self.uploads = Uploads(self._settings.uploads, self._settings.upload_seconds)  # vectors of this model
        self.model = model

    async def search(self, terms: Iterable[SearchTerm], k: int, offset: int, where: str, by: Any) -> Hits:
        """Pictures that fit. Raises as `Library.search`; Refused for an upload that is forgotten, and for a filter."""
        condition = parsed(where)
        combined = await self._combined(terms)
        return await self._filtered(
            condition, lambda: self.library.search(combined, k, offset=offset, where=condition or "", by=by)
        )

    async def search_like(self, upload: Upload, k: int, condition: Where | None) -> Hits:
        """Pictures that are like one that was sent just now."""
        self._refuse_other(self.model)
        combined = combine([Part(1.0, True, upload.vector_D)], self.library.store.calibration, self.model.identity)
        return await self._filtered(condition, lambda: self.library.search(combined, k, where=condition or ""))

    async def captions(self, terms: Iterable[SearchTerm], k: int, offset: int) -> list[CaptionHit]:
        """Captions that fit, likewise."""
        combined = await self._combined(terms)
        return await self._quick(lambda: self.library.captions(combined, k, offset=offset))

    async def newest(self, k: int, offset: int, where: str) -> tuple[list[Picture], int]:
        """Pictures, the newest first, and how many there are."""
        condition = parsed(where)

        def found() -> tuple[list[Picture], int]:
            pictures = self.library.newest(k, offset=offset, where=condition or "")
            return pictures, self.library.store.count(condition) if condition else len(self.library)

        return await self._filtered(condition, found)

    async def picture(self, id: str) -> Picture:
        """Raises Refused where there is none."""
        number = self._number(id)
        return await self._quick(lambda: self._there(lambda: self.library.picture(number)))

    async def content(self, id: str) -> str:
        """The hash of what a picture's file holds. Raises Refused where there is none."""
        number = self._number(id)
        return await self._quick(lambda: self._there(lambda: self.library.thumbnail_key(number)))

    async def file(self, id: str) -> tuple[Picture, str]:
        """A picture, and the hash of what its file holds."""
        number = self._number(id)
        return await self._quick(
            lambda: self._there(lambda: (self.library.picture(number), self.library.thumbnail_key(number)))
        )

    async def original(self, picture: Picture, content: str) -> BinaryIO:
        """The open file. Raises Refused; see `Originals.open`."""
        return await self._pools.files.run(lambda: self._originals.open(picture, content))

    async def read(self, stream: BinaryIO, size: int) -> bytes:
        """So many bytes of an open file."""
        return await self._pools.files.run(lambda: stream.read(size))

    async def scores(self, id: str, texts: list[str]) -> ScoresAnswer:
        """How well texts fit a picture, and its own captions."""
        if not all(map(str.strip, texts)):
            raise _empty()
        picture = await self.picture(id)
        captions = [printable(caption) for caption in picture.captions]
        asked = [*texts, *captions]
        model, calibration = self.model, self.library.store.calibration
        vectors = await asyncio.gather(*map(model.text, asked))
        self._refuse_other(model)
        queries = [combine([Part(1.0, False, vector_D)], calibration, model.identity) for vector_D in vectors]
        found = await self._quick(lambda: self.library.scores(picture.id, queries))
        answers = [
            TextScore(text=text, score=score, fit=round(fit, 1))
            for text, (score, fit) in zip(asked, found, strict=True)
        ]
        return ScoresAnswer(texts=answers[: len(texts)], captions=answers[len(texts) :])

    async def receive(self, request: Request) -> Upload:
        """The picture that comes with a request, as a vector. Raises Refused, ImageError."""
        with self._receiving.one(CLIENT.get()):
            return await self.model.picture(await sent_picture(request))

    async def described(self) -> LibraryAnswer:
        """What a client has to know to begin."""
        return await self._quick(self._described, self._settings.request_seconds)

    async def _combined(self, terms: Iterable[SearchTerm]) -> Combined:
        """A query as a vector."""
        terms = list(terms)
        if any(term.text is not None and not term.text.strip() for term in terms):
            raise _empty()
        model = self.model
        texts = iter(await asyncio.gather(*(model.text(term.text) for term in terms if term.text is not None)))
        uploads = iter([self.uploads.get(term.upload).vector_D for term in terms if term.upload is not None])
        numbers = [self._number(term.id) for term in terms if term.id is not None]
        ids = iter(await self._quick(lambda: self.library.store.features(numbers, model.identity)) if numbers else ())
        parts = []
        for term in terms:
            features = texts if term.text is not None else ids if term.id is not None else uploads
            parts.append(Part(term.weight, term.text is None, next(features)))
        if not any(part.weight for part in parts):
            raise Refused(422, "all weights of the query are 0", "Say what is searched for.")
        self._refuse_other(model)
        return combine([part for part in parts if part.weight], self.library.store.calibration, model.identity)

    async def _filtered(self, condition: Where | None, work: Callable[[], T]) -> T:
        """As `_quick`; what goes wrong with a filter is said to be about it."""
        try:
            return await self._quick(work)
        except ConfigError as error:
            raise Refused(422, error.message, error.hint, about=FILTER if condition else "") from None

    async def _quick(self, work: Callable[[], T], seconds: float = SECONDS) -> T:
        """Runs `work` in a thread, on what the library holds by now, for so many seconds at most, and no longer than
        anybody waits for it."""
        given_up = threading.Event()

        def run() -> T:
            self._refresh()
            with within(seconds, given_up.is_set):
                return work()

        try:
            return await self._pools.quick.run(run)
        except asyncio.CancelledError:
            given_up.set()
            raise

    def _refresh(self) -> None:
        """Sees what others have written, now and then; whoever comes meanwhile does not wait."""
        if time.monotonic() - self._refreshed < self._settings.refresh_seconds:
            return
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            self.library.refresh()
            if not self._made_by(self.model):
                self._use(self._model_of(Library(self.library.store)))
        except ClipletError as error:  # what was read before is still there
            log.error("%s: %s", self.name, error)
        finally:
            self._refreshed = time.monotonic()
            self._refreshing.release()

    def _made_by(self, model: Model) -> bool:
        """Whether the library's vectors are this model's; an upgrade gives it others."""
        identity = self.library.identity
        return identity is not None and model.identity.same_vectors(identity)

    def _refuse_other(self, model: Model) -> None:
        if not self._made_by(model):
            raise Refused(503, "the library's model is being replaced", headers={"retry-after": "5"})

    def _described(self) -> LibraryAnswer:
        library, identity = self.library, self.model.identity
        if self._examples[0] != len(library):
            self._examples = len(library), examples(library.store)
        return LibraryAnswer(
            name=self.name,
            pictures=len(library),
            captions=library.has_captions,
            model=printable(identity.source),
            dims=identity.dims,
            engine=identity.engine,
            columns=[Column(name=name, type=TYPES[kind]) for name, kind in COLUMNS.items()],
            examples=self._examples[1],
        )

    @staticmethod
    def _number(id: str) -> int:
        if not NUMBER.fullmatch(id):
            raise Refused(404, "there is no such picture")
        return int(id)

    @staticmethod
    def _there(work: Callable[[], T]) -> T:
        try:
            return work()
        except DataError as error:
            raise Refused(404, error.message, error.hint) from None


def parsed(where: str) -> Where | None:
    """A filter, None for an empty one. Raises Refused, which says that it is about it."""
    try:
        return parse(where) if where.strip() else None
    except ConfigError as error:
        raise Refused(422, error.message, error.hint, about=FILTER) from None


def _empty() -> Refused:
    return Refused(422, "a text is empty", "Say what is searched for.")
