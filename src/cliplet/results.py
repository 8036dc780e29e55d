"""What verbs print with --json: one object each, of a form that says its name and version."""

from __future__ import annotations

from typing import Any

from cliplet.result import DIRECTIONS, Metrics, Result, Strict

__all__ = ["DIRECTIONS", "Metrics", "Result", "Strict"]  # and what follows


class TrainingSummary(Result):
    """Of `cliplet train`."""

    format: str = "cliplet-training"
    """What this object is."""
    recipe: str
    """The recipe it started from."""
    run: str
    """The run folder."""
    model: str
    """The folder of the best model."""
    report: str
    """The page of the run."""
    data: str
    """The data set."""
    split: str
    """Validation split, on which the best epoch was chosen and this was measured."""
    seed: int
    """Of the run."""
    left_out: int
    """Bad records and pictures."""
    metrics: Metrics
    """Of the best model, in fp32, as in cliplet-evaluation."""


class DemoSummary(Result):
    """Of `cliplet demo`."""

    format: str = "cliplet-demo"
    """What this object is."""
    model: str
    """The folder of the best model."""
    report: str
    """The page of the run."""
    queries: str
    """The picture of some queries and their answers."""
    scenes: str
    """The folder of the rendered pictures."""
    seed: int
    """Of the scenes and of the training."""
    metrics: Metrics
    """On the test split, as in cliplet-evaluation."""


class ModelSummary(Result):
    """Of `cliplet import` and `cliplet interpolate`."""

    format: str = "cliplet-model"
    """What this object is."""
    model: str
    """The folder that was written."""
    sources: list[str]
    """What it was made from."""
    parameters: int
    """How many the model has."""
    preprocess: dict[str, Any]
    """What pictures go through, as in the folder's config.json."""


class PushSummary(Result):
    """Of `cliplet push`."""

    format: str = "cliplet-push"
    """What this object is."""
    model: str
    """The folder that was pushed."""
    name: str
    """Of the model on the hub."""
    url: str
    """The model's page."""
    commit: str
    """The page of the commit."""
    revision: str | None
    """The branch; null for the main one."""
    files: list[str]
    """Pushed."""
    left: list[str]
    """In the folder and no part of a model, so not pushed."""
    removed: list[str]
    """Of an earlier model there, and not of this one."""


class PackSummary(Result):
    """Of `cliplet pack`."""

    format: str = "cliplet-pack"
    """What this object is."""
    out: str
    """The folder of the pack."""
    pictures: int
    """In the pack."""
    captions: int
    """In the pack."""
    left_out: int
    """Pictures that are not, because they were bad."""
    shards: int
    """Tars."""
    bytes: int
    """Of the tars."""
    packed_now: int
    """Pictures that this call packed; the others were there."""
    seconds: float
    """That it took."""


class StoreSummary(Result):
    """Of `cliplet distil-store`."""

    format: str = "cliplet-store"
    """What this object is."""
    out: str
    """The folder of the store."""
    teachers: list[str]
    """By name."""
    pictures: int
    """With embeddings."""
    captions: int
    """With embeddings."""
    views: int
    """Of each picture."""
    left_out: int
    """Pictures that could not be read."""
    shards: int
    """Tars."""
    bytes: int
    """Of the tars."""
    computed_now: int
    """Pictures that this call computed; the others were there."""
    seconds: float
    """That it took."""
    next: str
    """The command that trains from it."""


class EmbedSummary(Result):
    """Of `cliplet embed`."""

    format: str = "cliplet-embed"
    """What this object is."""
    out: str
    """The file, or of .lance the folder, that was written."""
    model: str
    """As it was named."""
    engine: str
    """What computed the vectors, and in which precision; empty where the engine does not say."""
    rows: int
    """Pictures, or texts."""
    embedded: int
    """Rows with a vector."""
    failed: int
    """Rows without one, because the picture could not be read."""
    dims: int
    """Numbers of a vector."""
    seconds: float
    """That this call took."""
    pictures_per_second: float | None
    """Rows, texts too, that this call computed a second; null where all was there."""
    resumed_from: int
    """Rows that were there before this call: of a killed one, or all of them."""


class IndexSummary(Result):
    """Of `cliplet index`."""

    format: str = "cliplet-index"
    """What this object is."""
    library: str
    """Folder, or lance:URI."""
    model: str
    """Whose vectors the library holds."""
    engine: str
    """What computes them, and in which precision."""
    pictures: int
    """In the library now."""
    added: int
    """New ones."""
    changed: int
    """Those whose file was another, or that had no vector of this model."""
    moved: int
    """Those that were found under another name or in another place."""
    removed: int
    """Those whose file was gone."""
    unchanged: int
    """Those that were left alone, by size and time."""
    embedded: int
    """Vectors that this call computed: copies of what is there need none."""
    failed: int
    """Files that this call could not read."""
    unreadable: int
    """Files in the folders that could not be read, by this call or, where they have not changed since, an earlier
    one."""
    captions: int
    """Captions that this call embedded."""
    captions_without_picture: int
    """Pictures that `--captions` names and that are not in the library."""
    captions_unreadable: int
    """Captions or lines of it that could not be used."""
    seconds: float
    """That it took."""
    pictures_per_second: float | None
    """Vectors a second, reading included; null where none was computed."""


class FoundPicture(Strict):
    """A picture that was found."""

    id: str
    """Its number in the library."""
    path: str
    """Where it is."""
    score: float
    """Cosine between it, or its caption, and the query."""
    fit: float
    """0 to 100: the part of everyday queries whose best picture in the library is less close to them."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    taken: str | None
    """When, by the camera's clock."""
    caption: str | None
    """By which it was found, where captions were searched; else its first one."""
    copies: list[str]
    """Files with the same content."""


class SearchResult(Result):
    """Of `cliplet search`."""

    format: str = "cliplet-search"
    """What this object is."""
    library: str
    """Folder, or lance:URI."""
    query: list[str]
    """Its terms, each with its weight."""
    where: str
    """The filter; empty where there is none."""
    nothing_fits: bool
    """Whether what passes the filter comes no closer than the library does to most sentences that no photograph
    shows."""
    total: int | None
    """Pictures that pass the filter; null without one."""
    hits: list[FoundPicture]
    """The best first."""
    seconds: float
    """Of the search, the opening of library and model included."""


class FoundCaption(Strict):
    """A caption that was found."""

    text: str
    """The caption."""
    score: float
    """Cosine between it and the query."""
    fit: float
    """0 to 100: the part of everyday sentences that are less close to the query."""
    path: str
    """A picture that has it."""


class CaptionsResult(Result):
    """Of `cliplet search --captions`."""

    format: str = "cliplet-search-captions"
    """What this object is."""
    library: str
    """Folder, or lance:URI."""
    query: list[str]
    """Its terms, each with its weight."""
    captions: list[FoundCaption]
    """The best first."""
    seconds: float
    """Of the search, the opening of library and model included."""


class DuplicatesResult(Result):
    """Of `cliplet duplicates`."""

    format: str = "cliplet-duplicates"
    """What this object is."""
    library: str
    """Folder, or lance:URI."""
    groups: list[list[str]]
    """Paths of pictures that are copies of one another, the largest first in each group."""
    pictures: int
    """In all groups."""
    seconds: float
    """That it took."""
