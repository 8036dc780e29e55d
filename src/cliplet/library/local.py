"""A library in a folder: records in SQLite, vectors in append-only matrices, an approximate index beside them.

LIBRARY/
  library.json             what this is
  records.sqlite           pictures, captions, which row is whose
  vectors-G.f16 .rows      features of pictures of generation G, a model's
  captions-G.f16 .rows     features of captions
  vectors-G.usearch .json  the approximate index, once there are many; it can always be made again
  background-G.npy         features of everyday queries, by which scores are judged
  thumbnails/              what the service made, by content
  writer.lock              held by whoever writes
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError
from cliplet.files import written_beside
from cliplet.library.database import IMAGE, TEXT, Database, named
from cliplet.library.local_view import View
from cliplet.library.records import Identity, Picture
from cliplet.library.store import CREATE_HINT, Calibration, Found, FoundCaption, Writer, no_picture
from cliplet.library.where import Where

ABOUT, RECORDS = "library.json", "records.sqlite"
FORMAT, FORMAT_VERSION = "cliplet-library", 1
IN_BLOCK = 4096  # rows
ROWS_IN_STATEMENT = 500  # SQLite takes 999 values in its oldest versions


class LocalStore:
    """A library's folder, for reading. See `store.Store`."""

    def __init__(self, folder: Path):
        """Opens it. Raises DataError where it is none, is damaged or of another version."""
        self.folder, self.place = folder, str(folder)
        self._refreshing = threading.Lock()
        self._database = Database(folder / RECORDS)
        self._seen = self._database.version()
        self._view = View.of(folder, self._database)

    @classmethod
    def open(cls, folder: Path) -> LocalStore:
        """Raises DataError where there is no library, or one that this cliplet does not read."""
        read_about(folder)
        return cls(folder)

    @classmethod
    def open_or_create(cls, folder: Path) -> LocalStore:
        """The library of the folder, made where there is nothing. Raises DataError where something else is."""
        if not (folder / ABOUT).exists():
            try:
                if folder.exists() and any(one.name not in (RECORDS, f".{RECORDS}") for one in folder.iterdir()):
                    raise DataError(
                        f"{folder}: is there, and no library of cliplet",
                        "Name an empty folder, or one that is not there yet.",
                    )
                folder.mkdir(parents=True, exist_ok=True)
                Database.create(folder / RECORDS).close()
                with written_beside(folder / ABOUT) as beside:
                    about = {"format": FORMAT, "format_version": FORMAT_VERSION, "roots": []}
                    beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            except (FileExistsError, NotADirectoryError):
                raise DataError(f"{folder}: is no folder", "Name a folder for the library.") from None
        return cls.open(folder)

    @property
    def identity(self) -> Identity | None:
        return self._view.identity

    @property
    def calibration(self) -> Calibration:
        return self._view.calibration

    def refresh(self) -> None:
        with self._refreshing:
            version = self._database.version()
            if version != self._seen:
                self._view = View.of(self.folder, self._database)
                self._seen = version

    def __len__(self) -> int:
        return self._view.pictures

    def captions_count(self) -> int:
        return len(self._view.text_MD)

    def count(self, where: Where) -> int:
        condition, values = where.sqlite()
        return int(self._database.rows(f"SELECT count(*) FROM pictures WHERE {condition}", values)[0][0])

    def nearest(self, query_D: np.ndarray, k: int, where: Where | None = None) -> list[Found]:
        view = self._view
        found = self._nearest(view, query_D, k, where)
        if not found and len(view.image_ND):
            self.refresh()  # an upgrade may have ended just now, and no record speak of these vectors any more
            if self._view.generation != view.generation:
                return self._nearest(self._view, query_D, k, where)
        return found

    def _nearest(self, view: View, query_D: np.ndarray, k: int, where: Where | None) -> list[Found]:
        allowed = None
        condition, values = where.sqlite() if where else ("1", [])
        if where:
            rows = self._database.rows(
                f"SELECT DISTINCT v.row FROM pictures AS pictures JOIN vectors AS v ON v.generation = ? "
                f"AND v.kind = {IMAGE} AND v.content = pictures.content WHERE {condition}",
                [view.generation, *values],
            )
            allowed = sorted_rows(rows, len(view.image_ND))
        asked = k
        while True:  # rows whose pictures are gone are found too, and more have to be asked for then
            near, scores = view.images.search(query_D, asked, allowed)
            by_row = self._pictures_at(view.generation, near.tolist(), condition, values)
            found = [
                Found(by_row[row][0], tuple(one.path for one in by_row[row][1:]), score)
                for row, score in zip(near.tolist(), scores.tolist(), strict=True)
                if row in by_row
            ]
            if len(found) >= k or len(near) < asked:
                return found[:k]
            asked = asked * 2 + 16

    def _pictures_at(
        self, generation: int, near: Sequence[int], condition: str, values: list[Any]
    ) -> dict[int, list[Picture]]:
        """The pictures of these rows of the matrix that pass, by row; several where files have the same content."""
        by_row: dict[int, list[Picture]] = {}
        for span in spans(near):
            for row in self._database.rows(
                f"SELECT v.row AS vector_row, pictures.* FROM vectors AS v JOIN pictures AS pictures "
                f"ON pictures.content = v.content WHERE v.generation = ? AND v.kind = {IMAGE} "
                f"AND v.row IN ({marks(span)}) AND ({condition}) ORDER BY pictures.id",
                [generation, *span, *values],
            ):
                by_row.setdefault(row["vector_row"], []).append(picture_of(row))
        return by_row

    def nearest_captions(self, query_D: np.ndarray, k: int, where: Where | None = None) -> list[FoundCaption]:
        view, allowed = self._view, None
        condition, values = where.sqlite() if where else ("1", [])
        if where:
            rows = self._database.rows(
                # CROSS JOIN keeps their order: the filter is looked at once a picture, not once a caption.
                f"SELECT DISTINCT v.row FROM pictures AS pictures CROSS JOIN captions AS c ON c.picture = pictures.id "
                f"CROSS JOIN vectors AS v ON v.generation = ? AND v.kind = {TEXT} AND v.content = c.content "
                f"WHERE {condition}",
                [view.generation, *values],
            )
            allowed = sorted_rows(rows, len(view.text_MD))
        asked = k
        while True:
            near, scores = view.texts.search(query_D, asked, allowed)
            by_row: dict[int, Any] = {}
            for span in spans(near.tolist()):
                for row in self._database.rows(
                    "SELECT v.row AS vector_row, c.text, min(pictures.id) AS id, pictures.path FROM vectors AS v "
                    "JOIN captions AS c ON c.content = v.content JOIN pictures AS pictures ON pictures.id = c.picture "
                    f"WHERE v.generation = ? AND v.kind = {TEXT} AND v.row IN ({marks(span)}) AND ({condition}) "
                    "GROUP BY v.row",
                    [view.generation, *span, *values],
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

    def captioned(self, texts: Sequence[str], where: Where | None = None) -> dict[str, list[tuple[str, int]]]:
        condition, values = where.sqlite() if where else ("1", [])
        found: dict[str, list[tuple[str, int]]] = {}
        by_content = {content_of_text(text): text for text in texts}
        for span in spans(list(by_content)):
            for row in self._database.rows(
                "SELECT DISTINCT c.content AS text_content, pictures.content, pictures.id FROM captions AS c "
                "JOIN pictures AS pictures ON pictures.id = c.picture "
                f"WHERE c.content IN ({marks(span)}) AND ({condition}) ORDER BY pictures.id",
                [*span, *values],
            ):
                text = by_content[bytes(row["text_content"])]
                found.setdefault(text, []).append((bytes(row["content"]).hex(), row["id"]))
        return found

    def pictures(self, ids: Sequence[int]) -> list[Picture]:
        there: dict[int, Picture] = {}
        for span in spans([id for id in ids if abs(id) < 2**63]):
            for row in self._database.rows(f"SELECT * FROM pictures WHERE id IN ({marks(span)})", span):
                there[row["id"]] = picture_of(row)
        return [there[id] for id in ids if id in there]

    def picture(self, id: int) -> Picture:
        return picture_of(self._row(id))

    def content(self, id: int) -> str:
        return bytes(self._row(id)["content"]).hex()

    def changed(self, id: int) -> int:
        return int(self._row(id)["changed"])

    def _row(self, id: int) -> Any:
        found = self._database.rows("SELECT * FROM pictures WHERE id = ?", [id]) if abs(id) < 2**63 else []
        if not found:
            raise no_picture(id)
        return found[0]

    def newest(self, k: int, offset: int = 0, where: Where | None = None) -> list[Picture]:
        condition, values = where.sqlite() if where else ("1", [])
        rows = self._database.rows(
            f"SELECT * FROM pictures WHERE {condition} ORDER BY id DESC LIMIT ? OFFSET ?",
            [*values, k, offset],
        )
        return list(map(picture_of, rows))

    def features(self, ids: Sequence[int]) -> np.ndarray:
        view, by_id = self._view, dict[int, int]()
        for span in spans([id for id in ids if abs(id) < 2**63]):
            for row in self._database.rows(
                f"SELECT p.id, v.row FROM pictures AS p JOIN vectors AS v ON v.content = p.content "
                f"WHERE v.generation = ? AND v.kind = {IMAGE} AND p.id IN ({marks(span)})",
                [view.generation, *span],
            ):
                by_id[row["id"]] = row["row"]
        for id in ids:
            if by_id.get(id, len(view.image_ND)) >= len(view.image_ND):
                self._row(id)
                raise DataError(f"picture {id} has no vector yet", "Index the library again.")
        return view.image_ND[[by_id[id] for id in ids]].astype(np.float32)

    def sample(self, n: int) -> np.ndarray:
        image_ND = self._view.image_ND
        rows = np.unique(np.linspace(0, max(len(image_ND) - 1, 0), min(n, len(image_ND)), dtype=np.int64))
        return image_ND[rows].astype(np.float32)

    def features_in_blocks(self) -> Iterator[tuple[list[list[Picture]], np.ndarray]]:
        view = self._view
        for start in range(0, len(view.image_ND), IN_BLOCK):
            span = list(range(start, min(start + IN_BLOCK, len(view.image_ND))))
            by_row = self._pictures_at(view.generation, span, "1", [])
            rows = sorted(by_row)
            yield [by_row[row] for row in rows], view.image_ND[rows].astype(np.float32)

    def close(self) -> None:
        self._database.close()

    def writing(self, say: Any, wait: bool = False) -> AbstractContextManager[Writer]:
        from cliplet.library.local_writer import writing

        return writing(self.folder, say, wait)


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


def read_about(folder: Path) -> dict[str, Any]:
    """library.json. Raises DataError where it is not there, or another version's."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"it is of the format {about['format']}")
        version = about["format_version"]
    except FileNotFoundError:
        raise DataError(f"{folder}: is no library", CREATE_HINT) from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file; a library is a folder", CREATE_HINT) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / ABOUT}: cannot be read: {error}",
            "Mend it with: cliplet index --library LIBRARY --repair.",
        ) from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder}: is a library of version {version}; this cliplet reads {FORMAT_VERSION}",
            "Upgrade cliplet, or index the pictures anew into another library.",
        )
    return dict(about)
