"""What a library is kept in, behind one small interface: files on this machine, or a LanceDB table anywhere.

D is the size of a feature. Reading is safe from many threads; one process writes at a time.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cliplet.errors import DataError
from cliplet.library.records import Identity, Picture
from cliplet.library.where import Where

LANCE = "lance:"  # begins the place of a table, where a folder might stand
CREATE_HINT = "Make one: cliplet index FOLDER --library LIBRARY -m MODEL."


class ChangedError(DataError):
    """The library's vectors were replaced while it was asked: by those of another model, or put in another order."""

    def __init__(self, place: str):
        super().__init__(f"{place}: its vectors were replaced meanwhile", "Ask again.")


class Found(NamedTuple):
    """A picture that is near to a query."""

    picture: Picture
    copies: tuple[str, ...]  # paths of further files with the same content
    score: float


class FoundCaption(NamedTuple):
    """A caption that is near to a query, and one picture that has it."""

    text: str
    id: int
    path: str
    score: float


class Known(NamedTuple):
    """A file as it was when it was last read."""

    id: int
    bytes: int
    changed: int  # its time, in nanoseconds
    embedded: bool  # whether it has a vector


@dataclass
class Entry:
    """A picture to be written. `features_D` is None where its content has a vector already."""

    path: str
    bytes: int
    changed: int
    content: builtins.bytes  # 16 of a hash of the file
    columns: dict[str, Any]  # format, width, height, taken, ..., tags, own_captions; see Picture
    captions: tuple[str, ...] | None = None  # None: as they are, or those of the file itself
    features_D: np.ndarray | None = None
    id: int | None = None  # of the picture whose place it takes; None is a new one


@dataclass
class Calibration:
    """What scores are judged by: everyday queries (Q), and how far cosines spread."""

    background_QD: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))  # their features
    text_spread: float = 1.0  # deviation of cosines between sentences and pictures
    image_spread: float = 1.0  # between pictures and pictures
    least_fit: float = -1.0  # how close pictures come to most sentences that no photograph shows
    rows: int = 0  # pictures of the library when it was taken
    tops: list[float] = field(default_factory=list)  # each everyday query's score with its best picture, ascending


class Store(Protocol):
    """A library for reading."""

    place: str

    @property
    def identity(self) -> Identity | None:
        """Of the model of its vectors; None while there are none."""
        ...

    def refresh(self) -> None:
        """Sees what others have written since. Costs next to nothing where that is nothing."""
        ...

    def __len__(self) -> int:
        """How many pictures."""
        ...

    def captions_count(self) -> int:
        """How many captions have a vector."""
        ...

    def count(self, where: Where) -> int:
        """How many pictures pass."""
        ...

    def nearest(
        self, query_D: np.ndarray, k: int, where: Where | None = None, of: Identity | None = None
    ) -> list[Found]:
        """The k pictures whose features have the largest products with the query, the best first; files with the same
        content are one. `of`: the query's model; ChangedError where the vectors are another's by now."""
        ...

    def nearest_captions(
        self, query_D: np.ndarray, k: int, where: Where | None = None, of: Identity | None = None
    ) -> list[FoundCaption]:
        """The k captions, likewise, of pictures that pass; captions of the same words are one."""
        ...

    def captioned(self, texts: Sequence[str], where: Where | None = None) -> dict[str, list[tuple[str, int]]]:
        """Of each caption, if there are any, the pictures that have exactly it: what names their content, and their
        numbers, ascending."""
        ...

    def alike(self, ids: Sequence[int], where: Where | None = None) -> list[list[Picture]]:
        """For each of the pictures that is there and passes, in the order of their numbers as given, it and those with
        the same content that pass, by their numbers."""
        ...

    def picture(self, id: int) -> Picture:
        """Raises DataError where there is none."""
        ...

    def content(self, id: int) -> str:
        """What names the file's content, in hexadecimal digits. Raises DataError."""
        ...

    def changed(self, id: int) -> int:
        """Time of the file, in nanoseconds, when it was last read. Raises DataError."""
        ...

    def newest(self, k: int, offset: int = 0, where: Where | None = None) -> list[Picture]:
        """Pictures, the last that were added first."""
        ...

    def features(self, ids: Sequence[int], of: Identity | None = None) -> np.ndarray:
        """(N, D) float32 of unit length. Raises DataError where a picture is not there; ChangedError as `nearest`."""
        ...

    def sample(self, n: int) -> np.ndarray:
        """Features of at most n pictures of the library, spread over all; (N, D) float32, all of them numbers."""
        ...

    def features_in_blocks(self) -> Iterator[tuple[list[list[Picture]], np.ndarray]]:
        """All pictures with their features (B, D) float32; those of the same content together, as one row. Raises
        ChangedError where the vectors are replaced meanwhile."""
        ...

    @property
    def calibration(self) -> Calibration:
        """As it was last taken."""
        ...

    def close(self) -> None:
        """Closes files."""
        ...

    def writing(self, say: Any, wait: bool = False) -> AbstractContextManager[Writer]:
        """The one who writes. Raises DataError where somebody else does, unless it is to `wait` for their end."""
        ...


class Writer(Protocol):
    """A library for writing. What a call wrote is there for good when it returns."""

    def begin(self, identity: Identity, upgrade: bool = False) -> None:
        """Vectors of this model come. With `upgrade` they are put beside the old ones until `switch`.

        Raises DataError where the library's vectors are another model's.
        """
        ...

    def roots(self) -> list[str]:
        """Folders that were indexed before."""
        ...

    def add_roots(self, roots: Sequence[str]) -> None:
        """Remembers folders."""
        ...

    def forget(self, root: str) -> int:
        """Removes a folder and its pictures from the library; returns how many pictures. Raises DataError."""
        ...

    def known(self) -> dict[str, Known]:
        """All files, by path."""
        ...

    def problems(self) -> dict[str, tuple[int, int]]:
        """Size and time of the files that could not be read, by path."""
        ...

    def refusal(self, path: str) -> str:
        """Why a file of this name cannot be in the library; empty if it can."""
        ...

    def has_vector(self, content: bytes) -> bool:
        """Whether some picture with this content was embedded. Safe from many threads."""
        ...

    def reasons(self) -> dict[str, str]:
        """Why they could not be read, by path."""
        ...

    def moved(self, content: bytes, gone: Container[int]) -> int | None:
        """One of the pictures `gone` that has this content."""
        ...

    def rename(self, names: Mapping[int, str]) -> None:
        """Gives pictures, by number, other paths, which no picture has; their files are not looked at."""
        ...

    def write(self, entries: Sequence[Entry], problems: Sequence[tuple[str, int, int, str]]) -> None:
        """Pictures, and files that could not be read (path, size, time, reason): all of them or none."""
        ...

    def remove(self, ids: Sequence[int], problems: Sequence[str] = ()) -> None:
        """Pictures, and problems by their path, that are gone."""
        ...

    def caption(self, captions: Sequence[tuple[int, tuple[str, ...]]]) -> None:
        """New captions for pictures (id, captions) that had others."""
        ...

    def captions_without_vectors(self, at_most: int) -> list[str]:
        """Captions that are to be embedded."""
        ...

    def write_captions(self, texts: Sequence[str], features_CD: np.ndarray) -> None:
        """Their features."""
        ...

    def set_calibration(self, calibration: Calibration) -> None:
        """What scores are judged by from now on."""
        ...

    def finish(self, queries: Callable[[], np.ndarray]) -> None:
        """What is to be done when all is written: an upgrade's vectors become the library's, the approximate index
        learns the new rows, where there are so many. `queries` gives features of sentences (Q, D) to tune it on."""
        ...


def open_store(place: str | Path) -> Store:
    """The library at a place: a folder, or `lance:URI`. Raises DataError where there is none."""
    if str(place).startswith(LANCE):
        from cliplet.library.lance import LanceStore

        return LanceStore.open(str(place))
    from cliplet.library.local import LocalStore

    return LocalStore.open(Path(place))


def create_store(place: str | Path) -> Store:
    """The same, made if it is not there; an empty folder is made one. Raises DataError where something else is."""
    if str(place).startswith(LANCE):
        from cliplet.library.lance import LanceStore

        return LanceStore.open_or_create(str(place))
    from cliplet.library.local import LocalStore

    return LocalStore.open_or_create(Path(place))


def no_picture(id: Any) -> DataError:
    """For a number that no picture has."""
    return DataError(f"there is no picture {id} in the library")
