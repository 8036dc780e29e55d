"""A library in LanceDB as it was at one moment, for reading. N pictures, D dims, K found."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cliplet.library.lance_tables import (
    BACKGROUND,
    CAPTIONS,
    PICTURES,
    About,
    Place,
    conditions,
    explained,
    literal,
    vectors_of,
)
from cliplet.library.records import Picture, joined, listed
from cliplet.library.store import Calibration, no_picture

METRIC = "cosine"  # vectors have unit length, so it orders as the product does
FEW = 20_000  # pictures that pass a filter: so many are compared one by one, though there is an index
IN_BLOCK = 4096  # rows
TEXTS_IN_CONDITION = 64  # captions that are looked for in one pass over the pictures
KEPT = 4096  # pictures in memory: what was found is asked for again at once


class Row(NamedTuple):
    """A picture with all that is known of it."""

    picture: Picture
    content: bytes
    changed: int
    vector_D: np.ndarray


class View:
    """The library at one moment; it does not change."""

    def __init__(self, place: Place, about: About, session: Any, before: View | None):
        self.place, self.about = place, about
        self.dims = about.active.dims if about.active else 1
        self.pictures = self._opened(PICTURES, session, before)
        self.captions = self._opened(CAPTIONS, session, before)
        self.background = self._opened(BACKGROUND, session, before)
        self.calibration = self._calibration()
        self._kept: OrderedDict[int, Row] = OrderedDict()
        self._keeping = threading.Lock()

    def _opened(self, table: str, session: Any, before: View | None) -> Any:
        """A table in the version that belongs here; None before there is one."""
        generation = self.about.active
        if generation is None or table not in generation.versions:
            return None
        uri, version = self.place.table(generation.name(table)), generation.versions[table]
        held = getattr(before, table, None)
        if held is not None and (held.uri, held.version) == (uri, version):
            return held
        return self.place.open(generation.name(table), version, session)

    def _calibration(self) -> Calibration:
        if self.about.active is None or self.background is None:
            return Calibration()
        with explained(self.place.text):
            background_QD = vectors_of(self.background.to_table())
        return Calibration(background_QD=background_QD, **self.about.active.calibration)

    def count(self, condition: str) -> int:
        """Pictures that pass."""
        with explained(self.place.text):
            return int(self.pictures.count_rows(condition)) if self.pictures is not None else 0

    def ids(self, condition: str) -> np.ndarray:
        """Numbers of the pictures that pass, (N,) int64."""
        if self.pictures is None:
            return np.empty(0, dtype=np.int64)
        with explained(self.place.text):
            table = self.pictures.to_table(columns=["id"], filter=condition)
        return np.asarray(table["id"].to_numpy(), dtype=np.int64)

    def rows_of(self, ids: Sequence[int]) -> list[Row]:
        """Pictures in the order of their numbers as given. Raises DataError where one is not there."""
        there = self.there(ids)
        for id in ids:
            if id not in there:
                raise no_picture(id)
        return [there[id] for id in ids]

    def there(self, ids: Sequence[int]) -> dict[int, Row]:
        """Those of the pictures that are there, by their numbers."""
        with self._keeping:
            rows = {id: self._kept[id] for id in ids if id in self._kept}
        missing = [id for id in dict.fromkeys(ids) if id not in rows and abs(id) < 2**63]
        if missing and self.pictures is not None:
            for condition in conditions("id", missing):
                with explained(self.place.text):
                    table = self.pictures.to_table(filter=condition)
                rows |= {row.picture.id: row for row in self._keep(_rows(table))}
        return rows

    def having(self, contents: Collection[bytes], condition: str) -> list[Row]:
        """Pictures that pass and have one of these contents, by their numbers."""
        rows: list[Row] = []
        for one in conditions("content", contents) if self.pictures is not None else ():
            with explained(self.place.text):
                table = self.pictures.to_table(filter=f"{one} AND {condition}" if condition else one)
            rows += self._keep(_rows(table))
        return sorted(rows, key=lambda row: row.picture.id)

    def near(self, query_D: np.ndarray, k: int, condition: str) -> list[tuple[float, Row]]:
        """Pictures with their products with the query, the largest first; of equal ones the lowest number."""
        if self.pictures is None:
            return []
        rows = self._keep(_rows(self._nearest(self.pictures, query_D, k, condition)))
        scores = (_products([row.vector_D for row in rows], query_D)).tolist()
        return sorted(zip(scores, rows, strict=True), key=lambda one: (-one[0], one[1].picture.id))

    def captions_of(self, condition: str) -> set[str]:
        """Captions of the pictures that pass."""
        if self.pictures is None:
            return set()
        with explained(self.place.text):
            table = self.pictures.to_table(columns=["captions"], filter=condition)
        return {text for entries in table["captions"].to_pylist() for text in listed(entries)}

    def captioned(self, texts: Sequence[str], condition: str) -> dict[str, list[Row]]:
        """Of each caption that there is, the pictures that pass and have exactly it, by their numbers."""
        having: dict[str, list[Row]] = {}
        wanted = set(texts)
        for start in range(0, len(texts), TEXTS_IN_CONDITION):
            entries = [literal(joined((text,)) or "") for text in texts[start : start + TEXTS_IN_CONDITION]]
            any_of_them = " OR ".join(f"contains(captions, {entry})" for entry in entries)
            ids = self.ids(f"({any_of_them}) AND {condition}" if condition else any_of_them)
            for id, row in sorted(self.there(ids.tolist()).items()):
                for text in wanted.intersection(row.picture.captions):
                    rows = having.setdefault(text, [])
                    if all(other.picture.id != id for other in rows):
                        rows.append(row)
        return {text: sorted(rows, key=lambda row: row.picture.id) for text, rows in having.items()}

    def near_captions(self, query_D: np.ndarray, k: int, among: set[str] | None = None) -> list[tuple[str, int, float]]:
        """Captions, a picture that had them, and their products with the query, the largest first. `among`: of these
        captions alone, which are compared one by one."""
        if self.captions is None:
            return []
        table = self._nearest(self.captions, query_D, k, "") if among is None else self._captions_among(among)
        scores = _products(list(vectors_of(table)), query_D).tolist()
        columns = (table["text"].to_pylist(), table["picture"].to_pylist(), scores)
        return sorted(zip(*columns, strict=True), key=lambda one: -one[2])[:k]

    def _captions_among(self, texts: set[str]) -> Any:
        """The captions' rows of these texts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted, places, start = pa.array(sorted(texts), pa.string()), [], 0
        with explained(self.place.text):
            for batch in self.captions.to_batches(columns=["text"]):
                here = pc.is_in(batch["text"], value_set=wanted).to_numpy(zero_copy_only=False)
                places.append(start + np.flatnonzero(here))
                start += len(batch)
            return self.captions.take(np.concatenate(places).tolist() if places else [])

    def _nearest(self, table: Any, query_D: np.ndarray, k: int, condition: str) -> Any:
        length = float(np.linalg.norm(query_D)) or 1.0
        unit_D = np.asarray(query_D / length, dtype=np.float32)
        nearest: dict[str, Any] = {"column": "vector", "q": unit_D, "k": k, "metric": METRIC}
        search = (
            self.about.active.search.get(PICTURES if table is self.pictures else CAPTIONS, {})
            if self.about.active
            else {}
        )
        if search and not (condition and self.count(condition) <= FEW):
            nearest |= {name: value for name, value in search.items() if name != "recall"}
        else:
            nearest["use_index"] = False
        with explained(self.place.text):
            columns = list(table.schema.names)
            scanner = table.scanner(
                columns=[*columns, "_distance"], nearest=nearest, filter=condition or None, prefilter=True
            )
            return scanner.to_table().select(columns)

    def contents_of_several(self) -> set[bytes]:
        """Contents that more than one picture has."""
        if self.pictures is None:
            return set()
        with explained(self.place.text):
            contents = self.pictures.to_table(columns=["content"])["content"].value_counts()
        return {one["values"] for one in contents.to_pylist() if one["counts"] > 1}

    def blocks(self) -> Iterator[list[Row]]:
        """All pictures."""
        if self.pictures is None:
            return
        with explained(self.place.text):
            for batch in self.pictures.to_batches(batch_size=IN_BLOCK):
                yield _rows(_table_of(batch))

    def _keep(self, rows: list[Row]) -> list[Row]:
        with self._keeping:
            for row in rows:
                self._kept[row.picture.id] = row
                self._kept.move_to_end(row.picture.id)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return rows


def _table_of(batch: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def _rows(table: Any) -> list[Row]:
    vectors_ND = vectors_of(table)
    return [
        Row(Picture.from_columns(values), values["content"], values["changed"], vector_D)
        for values, vector_D in zip(table.drop_columns(["vector"]).to_pylist(), vectors_ND, strict=True)
    ]


def _products(vectors: Sequence[np.ndarray], query_D: np.ndarray) -> np.ndarray:
    """As `exact.py` computes them: summed in float64, and rounded once."""
    if not len(vectors):
        return np.empty(0, dtype=np.float32)
    products_KD = np.stack(vectors).astype(np.float64) * np.asarray(query_D, dtype=np.float64)
    return products_KD.sum(axis=1).astype(np.float32)
