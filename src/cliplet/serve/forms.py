"""What is asked and answered in JSON. What stands under a field is its description, in /docs too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cliplet.library.library import MAX_DEPTH, MAX_K
from cliplet.library.query import MAX_TERMS, MAX_TEXT, MAX_WEIGHT
from cliplet.serve.settings import MAX_FILTER, MAX_TEXTS

By = Literal["pictures", "captions"]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Sentence = Annotated[Text, Field(json_schema_extra={"pattern": r"\S"})]  # checked where it can be said in words
Filter = Annotated[str, StringConstraints(max_length=MAX_FILTER)]
K = Annotated[int, Field(ge=1, le=MAX_K)]
Offset = Annotated[int, Field(ge=0, le=MAX_DEPTH)]


class Form(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class Asked(Form):
    """What clients send. More fields than there are get one error, not each its own: of those, a body of a few hundred
    kilobytes would give so many that everybody else would wait."""

    @model_validator(mode="before")
    @classmethod
    def _no_more_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > len(cls.model_fields):
            raise ValueError(f"{len(data):,} fields, where there are {', '.join(cls.model_fields)}")
        return data


def _only(name: str) -> dict[str, Any]:
    """That there is a field, in JSON Schema."""
    return {"required": [name], "properties": {name: {"type": "string"}}}


class Problem(Form):
    """An error."""

    error: str
    """What went wrong."""
    hint: str
    """What to do about it; may be empty."""
    about: Literal["where"] | None = None
    """where: the filter is at fault. Else it is left out."""


class SearchTerm(Asked):
    """One part of a query: exactly one of `text`, `id` and `upload`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only(name) for name in ("text", "id", "upload")]})

    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)
    """How much it counts; below 0, what it shows is not wanted."""
    text: Sentence | None = None
    """What is looked for, in words."""
    id: Annotated[str, StringConstraints(max_length=20)] | None = None
    """A picture of the library."""
    upload: Annotated[str, StringConstraints(max_length=64)] | None = None
    """A picture that was sent before; see uploads."""

    @model_validator(mode="after")
    def _one_of_three(self) -> SearchTerm:
        if sum(value is not None for value in (self.text, self.id, self.upload)) != 1:
            raise ValueError("a term has exactly one of text, id and upload")
        return self


class CaptionsRequest(Asked):
    """A query for captions."""

    terms: list[SearchTerm] = Field(min_length=1, max_length=MAX_TERMS)
    """Parts of the query, added up by their weights."""
    k: K = 10
    """How many captions."""
    offset: Offset = 0
    """How many of the best are passed over."""


class SearchRequest(Asked):
    """A query for pictures."""

    terms: list[SearchTerm] = Field(min_length=1, max_length=MAX_TERMS)
    """Parts of the query, added up by their weights."""
    k: K = 10
    """How many pictures."""
    offset: Offset = 0
    """How many of the best are passed over."""
    where: Filter = ""
    """A filter: year = 2024 and width > 2000."""
    by: By = "pictures"
    """Whether pictures are compared with the query, or their captions."""


class SessionRequest(Asked):
    """A browser that is to be remembered."""

    token: Annotated[str, StringConstraints(max_length=500)]
    """The service's token."""


class TextsRequest(Asked):
    """Texts to be turned into vectors."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    """Texts; row i of the answer is text i."""


class Column(Form):
    """A column that filters know."""

    name: str
    """As it is written in filters."""
    type: str
    """text, int, real, or list: of texts."""


class LibraryAnswer(Form):
    """A library that is served."""

    name: str
    """As it stands in addresses."""
    pictures: int
    """How many it holds."""
    captions: bool
    """Whether captions can be searched."""
    model: str
    """Where its model came from."""
    dims: int
    """Numbers in a vector."""
    engine: str
    """What computes the vectors."""
    columns: list[Column]
    """What can be filtered by."""
    examples: list[str]
    """Queries to begin with."""


class HitAnswer(Form):
    """A picture that was found."""

    id: str
    """Its number."""
    path: str
    """Its file; letters that are none stand as escapes."""
    name: str
    """The last part of the path."""
    score: float
    """Cosine with the query; of several terms, the weighted sum of theirs."""
    fit: float
    """From 0 to 100: the part of everyday queries whose best picture in the library is less close to them."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    taken: str | None
    """When, by the camera's clock."""
    caption: str | None
    """The caption by which it was found, where captions were searched."""
    copies: int
    """Further files with the same content."""


class Answer(Form):
    """Pictures that were found."""

    hits: list[HitAnswer]
    """The best first."""
    nothing_fits: bool
    """Whether the library comes no closer than it does to most sentences that no photograph shows."""
    total: int | None
    """Pictures that pass the filter, where there is one."""
    milliseconds: float
    """That the search took here, its vector included."""


class CaptionAnswer(Form):
    """A caption that was found."""

    text: str
    """Its words."""
    score: float
    """Cosine with the query; of several terms, the weighted sum of theirs."""
    fit: float
    """From 0 to 100, as that of pictures."""
    id: str
    """A picture that has it."""
    path: str
    """That picture's file."""


class CaptionsAnswer(Form):
    """Captions that were found."""

    captions: list[CaptionAnswer]
    """The best first."""
    milliseconds: float
    """That the search took here, its vector included."""


class PictureAnswer(Form):
    """All that the library knows of a picture. Null is what is not known."""

    id: str
    path: str
    name: str
    folder: str
    format: str
    """By its content: jpeg, png, webp, ..."""
    bytes: int
    """Size of the file."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    taken: str | None
    """When, by the camera's clock."""
    year: int | None
    month: int | None
    day: int | None
    hour: int | None
    latitude: float | None
    """Degrees; south is negative."""
    longitude: float | None
    """Degrees; west is negative."""
    camera: str | None
    captions: list[str]
    tags: list[str]
    added: str
    """When it came into the library, UTC."""


class GalleryAnswer(Form):
    """Pictures, the newest first."""

    pictures: list[PictureAnswer]
    """No more than were asked for."""
    total: int
    """Pictures that pass the filter."""


class TextScore(Form):
    """How well a text fits a picture."""

    text: str
    """The text."""
    score: float
    """Cosine."""
    fit: float
    """From 0 to 100."""


class ScoresAnswer(Form):
    """How well texts fit a picture."""

    texts: list[TextScore]
    """The texts that were asked for, in their order."""
    captions: list[TextScore]
    """The picture's own captions, in their order."""


class UploadAnswer(Form):
    """A picture that was sent, and is remembered for a while."""

    upload: str
    """What names it in terms."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""


class Vectors(Form):
    """Texts or pictures as vectors."""

    dims: int
    """Numbers in a vector."""
    embeddings: list[list[float]]
    """Of unit length, in the order of what was sent."""


class Health(Form):
    """That the service is there."""

    status: Literal["ok"] = "ok"
    """ok"""
    libraries: int
    """How many are served."""


class SessionAnswer(Form):
    """A browser that is remembered by a cookie, where there is a token."""

    token_needed: bool
    """Whether the service has a token."""
