"""What is asked of a library's folder, all of it of one view: records in SQLite, and vectors of one generation.

Names of queries: `pictures` is the table that filters are about, `v` vectors, `c` captions. Q query, N rows, D dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.library.database import IMAGE, TEXT, Database, named
from cliplet.library.local_view import View
from cliplet.library.records import Picture
from cliplet.library.store import Found, FoundCaption, no_picture
from cliplet.library.where import Where

IN_BLOCK = 4096  # rows
ROWS_IN_STATEMENT = 500  # SQLite takes 999 values in its oldest versions
SPARE = 4  # times as many rows as a sample has are looked at, for some may be nobody's


@dataclass(frozen=True)
class Reading:
    """One view, and the records. See `store.Store` for what is asked."""

    database: Database
    view: View

    @property
    def is_current(self) -> bool:
        """Whether the records still speak of these vectors, and not of others that have taken their place."""
        active = "SELECT 1 FROM generations WHERE id = ? AND active"
        return not self.view.generation or bool(self.database.rows(active, [self.view.generation]))

    def count(self, where: Where) -> int:
        condition, values = where.sqlite()
        return int(self.database.rows(f"SELECT count(*) FROM pictures WHERE {condition}", values)[0][0])

    def nearest(self, query_D: np.ndarray, k: int, where: Where | None) -> list[Found]:
        condition, values = condition_of(where)
        allowed = None
        if where:
            rows = self.database.rows(
                f"SELECT DISTINCT v.row FROM pictures AS pictures JOIN vectors AS v ON v.generation = ? "
                f"AND v.kind = {IMAGE} AND v.content = pictures.content WHERE {condition}",
                [self.view.generation, *values],
            )
            allowed = sorted_rows(rows, len(self.view.image_ND))
        asked = k
        while True:  # rows whose pictures are gone are found too, and more have to be asked for then
            near, scores = self.view.images.search(query_D, asked, allowed)
            by_row = self._pictures_at(near.tolist(), condition, values)
            found = [
                Found(by_row[row][0], tuple(one.path for one in by_row[row][1:]), score)
                for row, score in zip(near.tolist(), scores.tolist(), strict=True)
                if row in by_row
            ]
            if len(found) >= k or len(near) < asked:
                return found[:k]
            asked = asked * 2 + 16

    def _pictures_at(self, near: Sequence[int], condition: str, values: Sequence[Any]) -> dict[int, list[Picture]]:
        """The pictures of these rows of the matrix that pass, by row; several where files have the same content."""
        by_row: dict[int, list[Picture]] = {}
        for span in spans(near):
            for row in self.database.rows(
                f"SELECT v.row AS vector_row, pictures.* FROM vectors AS v JOIN pictures AS pictures "
                f"ON pictures.content = v.content WHERE v.generation = ? AND v.kind = {IMAGE} "
                f"AND v.row IN ({marks(span)}) AND ({condition}) ORDER BY pictures.id",
                [self.view.generation, *span, *values],
            ):
                by_row.setdefault(row["vector_row"], []).append(picture_of(row))
        return by_row

    def nearest_captions(self, query_D: np.ndarray, k: int, where: Where | None) -> list[FoundCaption]:
        condition, values = condition_of(where)
        allowed = None
        if where:
            rows = self.database.rows(
                # CROSS JOIN keeps their order: the filter is looked at once a picture, not once a caption.
                f"SELECT DISTINCT v.row FROM pictures AS pictures CROSS JOIN captions AS c ON c.picture = pictures.id "
                f"CROSS JOIN vectors AS v ON v.generation = ? AND v.kind = {TEXT} AND v.content = c.content "
                f"WHERE {condition}",
                [self.view.generation, *values],
            )
            allowed = sorted_rows(rows, len(self.view.text_MD))
        asked = k
        while True:
            near, scores = self.view.texts.search(query_D, asked, allowed)
            by_row: dict[int, Any] = {}
            for span in spans(near.tolist()):
                for row in self.database.rows(
                    "SELECT v.row AS vector_row, c.text, min(pictures.id) AS id, pictures.path FROM vectors AS v "
                    "JOIN captions AS c ON c.content = v.content JOIN pictures AS pictures ON pictures.id = c.picture "
                    f"WHERE v.generation = ? AND v.kind = {TEXT} AND v.row IN ({marks(span)}) AND ({condition}) "
                    "GROUP BY v.row",
                    [self.view.generation, *span, *values],
                ):
                    by_row[row["vector_row"]] = row
            found = [
                FoundCaption(by_row[row]["text"], by_row[row]["id"], named(by_row[row]["path"]), score)
                for row, score in zip(near.tolist(), scores.tolist(), strict=True)
                if row in by_row
            ]
            if len(found) >= k or len(near) < asked:
                return found[:k]
            asked = asked * 2 + 16

    def captioned(self, texts: Sequence[str], where: Where | None) -> dict[str, list[tuple[str, int]]]:
        condition, values = condition_of(where)
        found: dict[str, list[tuple[str, int]]] = {}
        by_content = {content_of_text(text): text for text in texts}
        for span in spans(list(by_content)):
            for row in self.database.rows(
                "SELECT DISTINCT c.content AS text_content, pictures.content, pictures.id FROM captions AS c "
                "JOIN pictures AS pictures ON pictures.id = c.picture "
                f"WHERE c.content IN ({marks(span)}) AND ({condition}) ORDER BY pictures.id",
                [*span, *values],
            ):
                text = by_content[bytes(row["text_content"])]
                found.setdefault(text, []).append((bytes(row["content"]).hex(), row["id"]))
        return found

    def alike(self, ids: Sequence[int], where: Where | None) -> list[list[Picture]]:
        condition, values = condition_of(where)
        groups: dict[bytes, list[Picture]] = {}
        content_of: dict[int, bytes] = {}
        for span in spans([id for id in ids if abs(id) < 2**63]):
            for row in self.database.rows(
                f"SELECT * FROM pictures WHERE content IN (SELECT content FROM pictures WHERE id IN ({marks(span)})) "
                f"AND ({condition}) ORDER BY id",
                [*span, *values],
            ):
                if row["id"] not in content_of:
                    content_of[row["id"]] = bytes(row["content"])
                    groups.setdefault(bytes(row["content"]), []).append(picture_of(row))
        return [groups[content_of[id]] for id in ids if id in content_of]

    def row_of(self, id: int) -> Any:
        """A picture's, of the table. Raises DataError where there is none."""
        found = self.database.rows("SELECT * FROM pictures WHERE id = ?", [id]) if abs(id) < 2**63 else []
        if not found:
            raise no_picture(id)
        return found[0]

    def newest(self, k: int, offset: int, where: Where | None) -> list[Picture]:
        condition, values = condition_of(where)
        rows = self.database.rows(
            f"SELECT * FROM pictures WHERE {condition} ORDER BY id DESC LIMIT ? OFFSET ?", [*values, k, offset]
        )
        return list(map(picture_of, rows))

    def features(self, ids: Sequence[int]) -> np.ndarray:
        image_ND, by_id = self.view.image_ND, dict[int, int]()
        for span in spans([id for id in ids if abs(id) < 2**63]):
            for row in self.database.rows(
                f"SELECT p.id, v.row FROM pictures AS p JOIN vectors AS v ON v.content = p.content "
                f"WHERE v.generation = ? AND v.kind = {IMAGE} AND p.id IN ({marks(span)})",
                [self.view.generation, *span],
            ):
                by_id[row["id"]] = row["row"]
        for id in ids:
            if by_id.get(id, len(image_ND)) >= len(image_ND):
                self.row_of(id)
                raise DataError(f"picture {id} has no vector yet", "Index the library again.")
        return image_ND[[by_id[id] for id in ids]].astype(np.float32)

    def sample(self, n: int) -> np.ndarray:
        image_ND = self.view.image_ND
        alive: list[int] = []
        for span in spans(spread(np.arange(len(image_ND)), SPARE * n).tolist()):
            alive += (
                row[0]
                for row in self.database.rows(
                    f"SELECT v.row FROM vectors AS v WHERE v.generation = ? AND v.kind = {IMAGE} "
                    f"AND v.row IN ({marks(span)}) AND EXISTS (SELECT 1 FROM pictures WHERE content = v.content)",
                    [self.view.generation, *span],
                )
            )
        alive_SD = image_ND[sorted(alive)]
        alive_SD = alive_SD[np.isfinite(alive_SD).all(axis=1)]
        return spread(alive_SD, n).astype(np.float32)

    def block(self, start: int) -> tuple[list[list[Picture]], np.ndarray]:
        """Those at IN_BLOCK rows from `start` on, with their features (B, D)."""
        image_ND = self.view.image_ND
        by_row = self._pictures_at(range(start, min(start + IN_BLOCK, len(image_ND))), "1", [])
        rows = sorted(by_row)
        return [by_row[row] for row in rows], image_ND[rows].astype(np.float32)

    def blocks(self) -> Iterator[tuple[list[list[Picture]], np.ndarray]]:
        """All of them."""
        return map(self.block, range(0, len(self.view.image_ND), IN_BLOCK))


def condition_of(where: Where | None) -> tuple[str, list[Any]]:
    """A filter in SQLite's words, and the values of its question marks."""
    return where.sqlite() if where else ("1", [])


def spread(rows: np.ndarray, n: int) -> np.ndarray:
    """At most n of them, evenly spread."""
    return rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), min(n, len(rows)), dtype=np.int64))]


def spans(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many at a time as go into a statement."""
    for start in range(0, len(values), ROWS_IN_STATEMENT):
        yield values[start : start + ROWS_IN_STATEMENT]


def marks(values: Sequence[Any]) -> str:
    """Their places in a statement."""
    return ",".join("?" * len(values))


def sorted_rows(found: Sequence[Any], end: int) -> np.ndarray:
    """Numbers of a matrix's rows from the first column of what was found, those before `end`."""
    rows = np.sort(np.fromiter((row[0] for row in found), dtype=np.int64, count=len(found)))
    return rows[rows < end]


def picture_of(row: Any) -> Picture:
    """From a row of the table."""
    values = dict(row)
    return Picture.from_columns(values | {name: named(values[name]) for name in ("path", "name", "folder")})


def content_of_text(text: str) -> bytes:
    """By which a caption's vector is known."""
    import hashlib

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
