"""A library in LanceDB, at `lance:URI`: a folder of this machine or object storage, for any number of machines.

What its tables are stands in `lance_tables.py`; `lance_writer.py` writes them. N pictures, D dims, K found.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.library.lance_tables import LIBRARY, About, Place, explained, lance_module, vectors_of
from cliplet.library.lance_view import FEW, IN_BLOCK, Row, View
from cliplet.library.records import Identity, Picture
from cliplet.library.store import CREATE_HINT, Calibration, ChangedError, Found, FoundCaption, Writer
from cliplet.library.where import Where

ALIKE = 1e-3  # vectors of files with the same content may differ by so much, where two machines computed them
SPARE = 8  # rows that are asked for beyond twice as many as are wanted


class LanceStore:
    """A library in LanceDB, for reading. See `store.Store`."""

    def __init__(self, place: Place):
        """Opens it. Raises DataError where there is none, it cannot be read or is of another version."""
        self.where_it_is, self.place = place, place.text
        self._refreshing = threading.Lock()
        self._session = lance_module().Session()  # what was read of indexes, for all versions
        self._library = place.open(LIBRARY, session=self._session)
        self._view = View(place, About.read(self._library, self.place), self._session, None)

    @classmethod
    def open(cls, text: str) -> LanceStore:
        """The library at `lance:URI`. Raises DataError where there is none; ModelError without LanceDB."""
        place = Place.of(text)
        if not is_there(place):
            raise DataError(f"{text}: is no library", CREATE_HINT)
        return cls(place)

    @classmethod
    def open_or_create(cls, text: str) -> LanceStore:
        """The same, made where nothing is. Raises DataError where something else is."""
        place = Place.of(text)
        if not is_there(place):
            folder = place.folder
            if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise DataError(
                    f"{text}: is there, and no library of cliplet in LanceDB",
                    "Name an empty folder, or one that is not there yet.",
                )
            lance = lance_module()
            with explained(text):
                lance.LanceDataset.commit(
                    place.table(LIBRARY),
                    lance.LanceOperation.Overwrite(About().schema(), []),
                    storage_options=place.options or None,
                )
        return cls(place)

    @property
    def identity(self) -> Identity | None:
        active = self._view.about.active
        return Identity.from_json(active.identity) if active else None

    @property
    def calibration(self) -> Calibration:
        return self._view.calibration

    def refresh(self) -> None:
        with self._refreshing, explained(self.place):
            if self._library.latest_version == self._library.version:
                return
            library = self.where_it_is.open(LIBRARY, session=self._session)
            self._view = View(self.where_it_is, About.read(library, self.place), self._session, self._view)
            self._library = library

    def __len__(self) -> int:
        active = self._view.about.active
        return active.pictures if active else 0

    def captions_count(self) -> int:
        active = self._view.about.active
        return active.captions if active else 0

    def count(self, where: Where) -> int:
        return self._view.count(where.lance())

    def nearest(
        self, query_D: np.ndarray, k: int, where: Where | None = None, of: Identity | None = None
    ) -> list[Found]:
        view = self._view_of(of)
        condition = where.lance() if where else ""
        asked = 2 * k + SPARE
        while k > 0:
            near = view.near(query_D, asked, condition)
            groups: dict[bytes, list[tuple[float, Row]]] = {}
            for score, row in near:
                groups.setdefault(row.content, []).append((score, row))
            # A file with the content of one that is close to the last row may not have been found.
            edge = near[-1][0] + ALIKE if len(near) >= asked else -np.inf
            whole = [group for group in groups.values() if group[0][0] > edge]
            if len(near) < asked or len(whole) >= k:
                return [_found(group) for group in whole[:k]]
            asked *= 4
        return []

    def nearest_captions(
        self, query_D: np.ndarray, k: int, where: Where | None = None, of: Identity | None = None
    ) -> list[FoundCaption]:
        view, condition = self._view_of(of), where.lance() if where else ""
        passing = set(view.ids(condition).tolist()) if where else None
        texts = view.captions_of(condition) if passing is not None and len(passing) <= FEW else None
        asked = k
        while k > 0:
            near = view.near_captions(query_D, asked, texts)
            there = view.there([picture for _, picture, _ in near])
            found, lost = dict[str, FoundCaption](), []
            for text, hint, score in near:
                picture = there[hint].picture if hint in there else None
                if picture is None or text not in picture.captions or (passing is not None and hint not in passing):
                    lost.append(text)
                else:
                    found[text] = FoundCaption(text, hint, picture.path, score)
            others = view.captioned(lost, condition) if lost else {}
            for text, _, score in near:
                if text in others:  # else nothing has it any more, or nothing that passes
                    picture = others[text][0].picture
                    found[text] = FoundCaption(text, picture.id, picture.path, score)
            if len(found) >= k or len(near) < asked:
                return [found[text] for text, *_ in near if text in found][:k]
            asked = asked * 2 + 16
        return []

    def captioned(self, texts: Sequence[str], where: Where | None = None) -> dict[str, list[tuple[str, int]]]:
        having = self._view.captioned(texts, where.lance() if where else "")
        return {text: [(row.content.hex(), row.picture.id) for row in rows] for text, rows in having.items()}

    def alike(self, ids: Sequence[int], where: Where | None = None) -> list[list[Picture]]:
        view = self._view
        contents = {row.content for row in view.there(ids).values()}
        groups: dict[bytes, list[Picture]] = {}
        for row in view.having(contents, where.lance() if where else ""):
            groups.setdefault(row.content, []).append(row.picture)
        group_of = {picture.id: group for group in groups.values() for picture in group}
        return [group_of[id] for id in ids if id in group_of]

    def picture(self, id: int) -> Picture:
        return self._row(id).picture

    def content(self, id: int) -> str:
        return self._row(id).content.hex()

    def changed(self, id: int) -> int:
        return self._row(id).changed

    def _row(self, id: int) -> Row:
        return self._view.rows_of([id])[0]

    def newest(self, k: int, offset: int = 0, where: Where | None = None) -> list[Picture]:
        view = self._view
        span = 4 * (offset + k) + 1024
        while True:  # numbers are given in order, so the newest are the highest
            lowest = view.about.next_id - span
            condition = f"id >= {lowest}" + (f" AND {where.lance()}" if where else "")
            ids = np.sort(view.ids(condition))[::-1]
            if len(ids) >= offset + k or lowest <= 1:
                return [row.picture for row in view.rows_of(ids[offset : offset + k].tolist())]
            span *= 8

    def features(self, ids: Sequence[int], of: Identity | None = None) -> np.ndarray:
        view = self._view_of(of)
        if not len(ids):
            return np.empty((0, view.dims), dtype=np.float32)
        return np.stack([row.vector_D for row in view.rows_of(ids)])

    def sample(self, n: int) -> np.ndarray:
        view, count = self._view, len(self)
        places = np.unique(np.linspace(0, max(count - 1, 0), min(n, count), dtype=np.int64))
        if view.pictures is None or not len(places):
            return np.empty((0, view.dims), dtype=np.float32)
        with explained(self.place):
            return vectors_of(view.pictures.take(places.tolist(), columns=["vector"]))

    def features_in_blocks(self) -> Iterator[tuple[list[list[Picture]], np.ndarray]]:
        view = self._view
        several = view.contents_of_several()
        copies: dict[bytes, list[Row]] = {}
        for rows in view.blocks():
            alone = [row for row in rows if row.content not in several]
            for row in rows:
                if row.content in several:
                    copies.setdefault(row.content, []).append(row)
            if alone:
                yield [[row.picture] for row in alone], np.stack([row.vector_D for row in alone])
        groups = list(copies.values())
        for start in range(0, len(groups), IN_BLOCK):
            block = groups[start : start + IN_BLOCK]
            pictures = [sorted((row.picture for row in group), key=lambda one: one.id) for group in block]
            yield pictures, np.stack([group[0].vector_D for group in block])

    def _view_of(self, model: Identity | None) -> View:
        """The view. Raises ChangedError where its vectors are not that model's."""
        view = self._view
        active = view.about.active
        if model is not None and active and not Identity.from_json(active.identity).same_vectors(model):
            raise ChangedError(self.place)
        return view

    def close(self) -> None:
        """Nothing is open between two calls."""

    def writing(self, say: Any, wait: bool = False) -> AbstractContextManager[Writer]:
        from cliplet.library.lance_writer import writing

        return writing(self.where_it_is, say, wait)


def is_there(place: Place) -> bool:
    """Whether a library is. Raises ModelError without LanceDB, DataError where nobody can tell."""
    if place.folder is not None and not (place.folder / f"{LIBRARY}.lance").is_dir():
        return False
    lance = lance_module()
    try:
        lance.dataset(place.table(LIBRARY), storage_options=place.options or None)
    except ValueError as error:
        if "not found" in str(error):
            return False
        raise DataError(f"{place.text}: cannot be read: {error}") from None
    except OSError:
        with explained(place.text):
            raise
    return True


def _found(group: list[tuple[float, Row]]) -> Found:
    """Files with the same content as one result; the one that was added first stands for them."""
    first, *others = sorted((row.picture for _, row in group), key=lambda one: one.id)
    return Found(first, tuple(one.path for one in others), group[0][0])
