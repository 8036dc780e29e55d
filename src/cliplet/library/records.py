"""What a library knows of pictures, captions and its model: plain records that all its parts hand around."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Picture:
    """One picture of a library, as it was when it was last looked at. None is what is not known."""

    id: int
    path: str  # absolute
    name: str
    folder: str
    format: str  # by its content: jpeg, png, webp, ...
    bytes: int
    width: int  # pixels, upright
    height: int
    taken: str | None = None  # "2024-07-01T12:30:05", by the camera's clock
    year: int | None = None
    month: int | None = None
    day: int | None = None
    hour: int | None = None
    latitude: float | None = None  # degrees; south and west are negative
    longitude: float | None = None
    camera: str | None = None
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    added: str = ""  # "2024-07-01T10:30:05", UTC

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> Picture:
        """From a row of a table, whatever else stands in it."""
        values = {one.name: row[one.name] for one in fields(cls)}
        return cls(**{**values, "captions": listed(values["captions"]), "tags": listed(values["tags"])})


def joined(entries: tuple[str, ...]) -> str | None:
    """Entries as one text, in which each stands between two newlines; none is None."""
    return "\n" + "\n".join(entries) + "\n" if entries else None


def listed(text: str | None) -> tuple[str, ...]:
    """The entries of such a text."""
    return tuple(text[1:-1].split("\n")) if text else ()


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    id: int
    path: str
    score: float  # cosine; of a sum of terms, the weighted sum of theirs
    fit: float  # 0 to 100: the part of everyday queries whose best picture is less close to them than this one
    picture: Picture
    caption: str | None = None  # by which it was found, where captions were searched
    copies: tuple[str, ...] = ()  # paths of further files with the same content


class Hits(list[Hit]):
    """Pictures that were found, the best first."""

    def __init__(self, hits: list[Hit] | None = None, nothing_fits: bool = False, total: int | None = None):
        """`nothing_fits`: they are no closer to the query than pictures are to sentences that no photograph shows.
        `total`: pictures that pass the filter, where there is one."""
        super().__init__(hits or [])
        self.nothing_fits = nothing_fits
        self.total = total


@dataclass(frozen=True)
class CaptionHit:
    """A caption that was found."""

    text: str
    score: float  # cosine
    fit: float  # 0 to 100: the part of everyday queries that the picture, or the text, is less close to
    id: int  # of a picture that has it
    path: str


@dataclass(frozen=True)
class Identity:
    """The model that made a library's vectors, and what computed them."""

    source: str  # folder or name, as it was given
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of the files that decide its features
    dims: int = 0
    engine: str = ""  # openvino, onnxruntime or torch
    precision: str = ""  # fp32 or bf16
    exact: bool = True  # whether all engines give the same vectors, as they do not in 8 bits

    def same_vectors(self, other: Identity) -> bool:
        """Whether the two's vectors may stand in one library."""
        alike = self.hashes == other.hashes and self.dims == other.dims
        return alike and (self.exact or (self.engine, self.precision) == (other.engine, other.precision))

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """From such text."""
        return cls(**json.loads(text))
