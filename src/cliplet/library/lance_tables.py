"""The tables of a library in LanceDB, and how they change together.

library      what the library is (`About`), all of it in the table's metadata; it has no rows
pictures     a row a file, with its vector
captions     a row a text that pictures have as a caption, with its vector
background   features of everyday queries, by which scores are judged
problems     files that could not be read, with their size and time then

LanceDB keeps versions of each table. A change is made in whichever tables it concerns, and then one new version of
`library` names the versions of all that belong together: readers see the one before or the one after, and what was
written without being named is taken back by the next writer. A version of `library` is only made on the one that its
writer has read, which object storage guarantees too (a conditional put); so of two writers one fails.

The vectors of a model that came by --upgrade are in pictures_2, captions_2 and background_2, and so on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.errors import DataError, ModelError
from cliplet.library.store import LANCE

LIBRARY, PICTURES, CAPTIONS, BACKGROUND, PROBLEMS = "library", "pictures", "captions", "background", "problems"
OF_A_MODEL = (PICTURES, CAPTIONS, BACKGROUND)
FORMAT, FORMAT_VERSION = "cliplet-library", 1
INSTALL = "Install it: pip install -e '.[scale]' in cliplet's folder."
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
IN_CONDITION = 2000  # values in one condition

TEXTS = ("path", "name", "folder", "format", "taken", "camera", "captions", "tags", "added", "own_captions")
NUMBERS = {"id": "int64", "bytes": "int64", "changed": "int64", "width": "int32", "height": "int32"}
NUMBERS |= {"year": "int32", "month": "int32", "day": "int32", "hour": "int32"}
NUMBERS |= {"latitude": "float64", "longitude": "float64"}


@dataclass(frozen=True)
class Place:
    """Where a library's tables are."""

    text: str  # lance:URI, as it was given
    uri: str
    options: dict[str, str] = field(default_factory=dict, repr=False)  # of the storage, with its keys

    @classmethod
    def of(cls, text: str) -> Place:
        """From `lance:URI`. Raises DataError where nothing follows."""
        uri = text.removeprefix(LANCE).rstrip("/")
        if not uri:
            raise DataError(f"{text}: names no place", "Write lance:FOLDER or lance:s3://BUCKET/FOLDER.")
        uri = uri.removeprefix("file://")
        if "://" not in uri:
            uri = os.path.abspath(os.path.expanduser(uri))
        return cls(text, uri, storage_options(uri))

    @property
    def folder(self) -> Path | None:
        """On this machine; None for object storage."""
        return None if "://" in self.uri else Path(self.uri)

    def table(self, name: str) -> str:
        """Where LanceDB keeps a table of this name."""
        return f"{self.uri}/{name}.lance"

    def open(self, name: str, version: int | None = None, session: Any = None) -> Any:
        """A table, as it is now or was. Raises DataError where it is not there or cannot be read."""
        lance = lance_module()
        with explained(self.text):
            return lance.dataset(
                self.table(name), version=version, storage_options=self.options or None, session=session
            )


def storage_options(uri: str) -> dict[str, str]:
    """What LanceDB needs to know of S3, from the usual variables; keys in files and of machines it finds by itself."""
    if not uri.startswith("s3://"):
        return {}
    options = {name.lower(): os.environ[name] for name in AWS if os.environ.get(name)}
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    if endpoint:
        options["aws_endpoint"] = endpoint
    if endpoint.startswith("http://"):
        options["allow_http"] = "true"
    return options


def lance_module() -> Any:
    """Raises ModelError where it is not installed."""
    if importlib.util.find_spec("lance") is None or importlib.util.find_spec("pyarrow") is None:
        raise ModelError("a library at lance:URI needs the package pylance, which is not installed", INSTALL)
    import lance

    return lance


@contextmanager
def explained(place: str) -> Iterator[None]:
    """What LanceDB says of a table that cannot be read, as DataError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{place}: cannot be read: {reason(error)}", "Is the storage there, and may it be read?"
        ) from None


def reason(error: BaseException) -> str:
    """LanceDB's own words, without the places in its source files."""
    first = str(error).strip().split("\n")[0]
    return re.sub(r",? *\S+\.rs:\d+(:\d+)?\S*", "", first) or type(error).__name__


@dataclass
class Generation:
    """The vectors of one model, and the pictures as they were when it made them."""

    number: int
    identity: str  # of the model
    dims: int
    versions: dict[str, int] = field(default_factory=dict)  # of its tables
    pictures: int = 0
    captions: int = 0
    calibration: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)  # how the approximate index is asked; empty without one

    def name(self, table: str) -> str:
        """What one of its tables is called."""
        return table if self.number == 1 else f"{table}_{self.number}"


@dataclass
class About:
    """What the library is, at one moment."""

    roots: list[str] = field(default_factory=list)
    next_id: int = 1
    generations: int = 0  # that were ever made
    problems: int = 0  # version of the table; 0 before there is one
    active: Generation | None = None  # that answers
    made: Generation | None = None  # that is to take its place, by --upgrade
    retired: list[tuple[str, float]] = field(default_factory=list)  # tables that go, and since when

    def to_json(self) -> str:
        """As text."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, table: Any, place: str) -> About:
        """From the metadata of the table `library`. Raises DataError where it is none of cliplet's, or of another
        version."""
        try:
            values = json.loads((table.schema.metadata or {})[b"about"])
            if values.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            version = values.pop("format_version")
            if version == FORMAT_VERSION:
                for part in ("active", "made"):
                    values[part] = Generation(**values[part]) if values[part] else None
                values["retired"] = [(name, float(since)) for name, since in values["retired"]]
                return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{place}: its table {LIBRARY} is none of cliplet's, or damaged: {error}", "Name another place."
            ) from None
        raise DataError(
            f"{place}: is a library of version {version}; this cliplet reads {FORMAT_VERSION}",
            "Upgrade cliplet, or index the pictures anew into another library.",
        )

    def schema(self) -> Any:
        """Of the table `library`, which holds this."""
        import pyarrow as pa

        return pa.schema([pa.field("nothing", pa.bool_())], metadata={b"about": self.to_json().encode()})


def pictures_schema(dims: int) -> Any:
    """Columns of `pictures`: those of `records.Picture` and five more."""
    import pyarrow as pa

    columns = [pa.field(name, getattr(pa, kind)()) for name, kind in NUMBERS.items()]
    columns += [pa.field(name, pa.string()) for name in TEXTS]
    return pa.schema([*columns, pa.field("content", pa.binary(16)), _vector(dims)])


def captions_schema(dims: int) -> Any:
    """Columns of `captions`; `picture` is one that had the text when it was written."""
    import pyarrow as pa

    return pa.schema([pa.field("text", pa.string()), pa.field("picture", pa.int64()), _vector(dims)])


def background_schema(dims: int) -> Any:
    """Columns of `background`."""
    import pyarrow as pa

    return pa.schema([_vector(dims)])


def problems_schema() -> Any:
    """Columns of `problems`. A path is bytes: one that is not UTF-8 can be no text here."""
    import pyarrow as pa

    numbers = [pa.field(name, pa.int64()) for name in ("bytes", "changed")]
    return pa.schema([pa.field("path", pa.binary()), *numbers, pa.field("reason", pa.string())])


def schema_of(table: str, dims: int) -> Any:
    """Of a table by its first name."""
    return {PICTURES: pictures_schema, CAPTIONS: captions_schema, BACKGROUND: background_schema}[table](dims)


def _vector(dims: int) -> Any:
    import pyarrow as pa

    return pa.field("vector", pa.list_(pa.float16(), dims))


def vectors_column(features_ND: np.ndarray) -> Any:
    """(N, D) as a column, in half precision: LanceDB searches it four times as fast as full precision."""
    import pyarrow as pa

    halves = np.ascontiguousarray(features_ND, dtype=np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(halves.ravel()), halves.shape[1])


def vectors_of(table: Any) -> np.ndarray:
    """The column `vector` of a table, (N, D) float32."""
    column = table["vector"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size).astype(np.float32)


def conditions(column: str, values: Collection[int | str | bytes]) -> Iterator[str]:
    """Conditions that together name the rows that have one of the values in a column."""
    literals = [literal(value) for value in values]
    for start in range(0, len(literals), IN_CONDITION):
        yield f"{column} IN ({', '.join(literals[start : start + IN_CONDITION])})"


def literal(value: int | str | bytes) -> str:
    """A value as LanceDB reads it in a condition."""
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(int(value))


def sound(text: str) -> str:
    """A text that is UTF-8 in any case."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_utf8(path: str) -> bool:
    """Whether LanceDB takes a file's name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
