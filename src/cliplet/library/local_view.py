"""What a reader of a library's folder holds at a time: one generation's vectors, and what belongs to them.

A reader takes one view at the begin of each call and keeps to it, while `refresh` puts another in its place.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliplet.errors import DataError
from cliplet.library.database import Database
from cliplet.library.matrix import Matrix
from cliplet.library.nearest import Neighbours
from cliplet.library.records import Identity
from cliplet.library.store import Calibration

SEEN_TWICE = 2  # tries: an upgrade may end between a look at the records and one at the files


def file_names(folder: Path, generation: int) -> dict[str, Path]:
    """Where the parts of a generation are: the names of matrices without endings, and whole names of files."""
    names = {"vectors": f"vectors-{generation}", "captions": f"captions-{generation}"}
    names |= {"index": f"vectors-{generation}.usearch", "background": f"background-{generation}.npy"}
    return {part: folder / name for part, name in names.items()}


@dataclass(frozen=True)
class View:
    """One state of a library. N rows of pictures' vectors, M of captions', D numbers each."""

    generation: int
    pictures: int  # how many the library holds
    identity: Identity | None
    calibration: Calibration
    image_ND: np.ndarray
    text_MD: np.ndarray
    images: Neighbours
    texts: Neighbours

    @classmethod
    def of(cls, folder: Path, database: Database) -> View:
        """As it is now. Raises DataError where vectors are missing."""
        for _ in range(SEEN_TWICE - 1):
            with suppress(DataError):
                return cls._of(folder, database)
        return cls._of(folder, database)

    @classmethod
    def _of(cls, folder: Path, database: Database) -> View:
        rows = database.rows("SELECT * FROM generations WHERE active")
        pictures = int(database.rows("SELECT count(*) FROM pictures")[0][0])
        if not rows:
            none_ND = np.empty((0, 1), dtype=np.float16)
            return cls(0, pictures, None, Calibration(), none_ND, none_ND, Neighbours(none_ND), Neighbours(none_ND))
        row = rows[0]
        names = file_names(folder, row["id"])
        image_ND = Matrix(names["vectors"], row["dims"]).vectors(row["image_rows"])
        text_MD = Matrix(names["captions"], row["dims"]).vectors(row["text_rows"])
        return cls(
            generation=int(row["id"]),
            pictures=pictures,
            identity=Identity.from_json(row["identity"]),
            calibration=read_calibration(names["background"], row["calibration"]),
            image_ND=image_ND,
            text_MD=text_MD,
            images=Neighbours(image_ND, names["index"]),
            texts=Neighbours(text_MD),
        )


def read_calibration(background: Path, text: str) -> Calibration:
    """As it was stored; none where it is not there, damaged or of other dimensions."""
    calibration = Calibration(**json.loads(text))
    with suppress(OSError, ValueError):
        calibration.background_QD = np.load(background, allow_pickle=False).astype(np.float32)
    return calibration
