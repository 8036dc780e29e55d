"""The form of a store of teachers' embeddings, and the writing of its shards. No torch.

manifest.json                    what it was made from and how, the teachers, each shard's size and sha256
teacher-000000.tar               arrays of NumPy, one row a picture or caption:
    teacher-000000.views.npy         (P, A, 8) float32, the numbers of each picture's views
    teacher-000000.image0.npy        (P, A, T) float16 or int8, what the first teacher makes of them
    teacher-000000.image0.scale.npy  (P, A) float32, with int8 only: what the row is to be multiplied with
    teacher-000000.text0.npy         (C, T), the first teacher's captions; with int8 .text0.scale.npy (C,)
teacher-000000.jsonl             a line for each picture: name, bytes, crc32, captions; or name, reason, captions

Shapes: P pictures of a shard, A views of a picture, C different captions of a shard in the order of their first
appearance, T width of a teacher. A picture without embeddings has a reason, and zeros in the arrays.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from cliplet.config import AugmentConfig
from cliplet.data.shards import MANIFEST, TEACHERS, TarWriter, index_name, replacing
from cliplet.errors import DataError

FORMAT, VERSION = TEACHERS, 1
VIEW_NUMBERS = 8  # as in data/transforms.py, which needs torch
SHARD_PICTURES, SHARDS = 1000, 256  # pictures of a shard at least, shards of a store at most: each holds a file open

Storage = Literal["float16", "int8"]


@dataclass(frozen=True)
class TeacherInfo:
    """A teacher: who it is, what it takes and what it gives."""

    name: str  # as the user gave it: open_clip:ARCHITECTURE/PRETRAINED, or a folder
    weights: str  # sha256 of the weights it was made from; "" where only the name is known
    tokenizer: str  # sha256 of its tokenizer
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embed_dim: Annotated[int, Field(ge=1)]  # T
    logit_scale: float | None  # the factor of its cosines; None where it depends on the batch
    precision: str  # in which its features were computed


@dataclass(frozen=True)
class StoreSettings:
    """What decides which embeddings a store holds, beside the data and the teachers."""

    augmentations: Annotated[int, Field(ge=0)]  # random views of a picture
    whole: bool  # whether one view more, the last one, is the whole picture, unflipped
    augment: AugmentConfig  # what the views were drawn from
    storage: Storage
    split: str
    seed: int
    samples: int | None

    @property
    def views(self) -> int:
        """A, views of a picture."""
        return self.augmentations + self.whole


@dataclass(frozen=True)
class StoredShard:
    """One shard that is done."""

    name: Annotated[str, Field(pattern=r"^teacher-\d{6,}\.tar$")]  # it shall not lead elsewhere
    pictures: Annotated[int, Field(ge=1)]
    captions: Annotated[int, Field(ge=1)]  # different ones
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """Name of its index."""
        return index_name(self.name)


@dataclass(frozen=True)
class StoreManifest:
    """What a store holds, or is to hold."""

    source: str  # name of the data set it was made from
    fingerprint: str  # of that data set's pictures and captions
    settings: StoreSettings
    teachers: Annotated[tuple[TeacherInfo, ...], Field(min_length=1)]
    planned_shards: Annotated[int, Field(ge=1)]
    command: str  # which makes it, and goes on with it
    name_parts: Annotated[int, Field(ge=1)]  # of a picture's place that are its name in the store
    complete: bool = False
    left_out: int = 0  # pictures without embeddings
    shards: tuple[StoredShard, ...] = ()

    @property
    def stems(self) -> list[str]:
        """Names of all planned shards, without ending."""
        return [shard_stem(number) for number in range(self.planned_shards)]

    def write(self, folder: Path) -> None:
        """Writes manifest.json, whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **_MANIFESTS.dump_python(self, mode="json")}
        with replacing(folder / MANIFEST) as stream:
            stream.write((json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> StoreManifest:
        """The manifest of a store. Raises DataError where there is none, or a damaged one, or of a newer version."""
        file, again = folder / MANIFEST, "Make the store again, in a new folder."
        try:
            content = json.loads(file.read_bytes())
            form, version = content["format"], content["version"]
            if form == FORMAT and isinstance(version, int) and version > VERSION:
                raise DataError(
                    f"{file}: the store is of version {version}; this cliplet reads {VERSION}",
                    "Update cliplet, or make the store again.",
                )
            if (form, version) != (FORMAT, VERSION):
                raise ValueError(f"its format is {form!r}, version {version!r}, and not {FORMAT!r}, version {VERSION}")
            manifest = _MANIFESTS.validate_json(json.dumps(content), strict=True)
            if manifest.complete and [shard.name for shard in manifest.shards] != [f"{s}.tar" for s in manifest.stems]:
                raise ValueError(f"it names {len(manifest.shards):,} of {manifest.planned_shards:,} shards")
            if manifest.settings.views < 1:
                raise ValueError("its pictures have no views")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: is no store of teachers' embeddings: there is no "
                + (MANIFEST if folder.is_dir() else "such folder"),
                "cliplet distil-store DATA OUT --teacher TEACHER makes one.",
            ) from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise DataError(f"{file}: the manifest is damaged: {key}: {first['msg']}", again) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file}: the manifest is damaged: {reason}", again) from None
        return manifest


_MANIFESTS = TypeAdapter(StoreManifest)


@dataclass(frozen=True, slots=True)
class PictureLine:
    """A picture as a shard's index has it."""

    name: str
    size: int  # bytes of its file
    crc32: int  # of these bytes
    captions: tuple[str, ...]
    reason: str | None = None  # why it has no embeddings; size and crc32 mean nothing then


def shard_pictures(count: int) -> int:
    """Pictures in each shard, but the last, of a store of `count`."""
    return max(SHARD_PICTURES, math.ceil(count / SHARDS))


def shard_stem(number: int) -> str:
    """Name of a shard without its ending."""
    return f"teacher-{number:06d}"


def distinct_captions(captions: Iterable[Iterable[str]]) -> list[str]:
    """Each caption once, in the order of first appearance: the rows of a shard's arrays of texts."""
    return list(dict.fromkeys(text for texts in captions for text in texts))


# Writing


def write_shard(
    folder: Path,
    stem: str,
    pictures: Sequence[PictureLine],
    views: np.ndarray,
    images: Sequence[np.ndarray],
    texts: Sequence[np.ndarray],
    storage: Storage,
) -> None:
    """Writes a shard, whole or not at all; with its index, which comes last, it is done.

    `views` (P, A, 8); for each teacher, `images` (P, A, T) and `texts` (C, T) float32, the latter for the
    `distinct_captions` of the pictures. Raises DataError for values that are no numbers, ValueError for other shapes.
    """
    count = len(distinct_captions(picture.captions for picture in pictures))
    shape = (len(pictures), views.shape[1])
    if views.shape != (*shape, VIEW_NUMBERS) or any(one.shape[:2] != shape for one in images):
        raise ValueError(f"{stem}: views {views.shape}, images {[one.shape for one in images]} are not of {shape}")
    if len(texts) != len(images) or any(len(one) != count for one in texts):
        raise ValueError(f"{stem}: texts {[one.shape for one in texts]} are not those of {count} captions")
    arrays = {"views": views.astype(np.float32)}
    for teacher, (image, text) in enumerate(zip(images, texts, strict=True)):
        for name, rows in ((f"image{teacher}", image), (f"text{teacher}", text)):
            if not np.isfinite(rows).all():
                raise DataError(
                    f"{stem}: embeddings of teacher {teacher + 1} are not finite numbers",
                    "Compute them in another precision: --precision fp32.",
                )
            arrays |= _stored(name, rows, storage)
    with replacing(folder / f"{stem}.tar") as stream:
        tar = TarWriter(stream)
        for name, array in arrays.items():
            tar.add(f"{stem}.{name}.npy", _npy(array))
        tar.close()
    with replacing(folder / f"{stem}.jsonl") as stream:
        stream.writelines(_line(picture) for picture in pictures)


def _stored(name: str, rows: np.ndarray, storage: Storage) -> dict[str, np.ndarray]:
    """The arrays that hold some rows."""
    if storage == "float16":
        return {name: rows.astype(np.float16)}
    scale = (np.abs(rows).max(-1) / 127).astype(np.float32)
    values = np.rint(rows / np.where(scale > 0, scale, 1)[..., None]).clip(-127, 127)
    return {name: values.astype(np.int8), f"{name}.scale": scale}


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _line(picture: PictureLine) -> bytes:
    state = {"bytes": picture.size, "crc32": picture.crc32} if picture.reason is None else {"reason": picture.reason}
    entry = {"name": picture.name, **state, "captions": picture.captions}
    try:
        return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def read_index(file: Path) -> Iterator[PictureLine]:
    """The pictures of a shard. Raises OSError, and ValueError, KeyError or TypeError where it is damaged."""
    with file.open("rb") as stream:
        for line in stream:
            entry: dict[str, Any] = json.loads(line)
            name, captions = entry["name"], tuple(entry["captions"])
            yield PictureLine(name, entry.get("bytes", 0), entry.get("crc32", 0), captions, entry.get("reason"))


def is_done(folder: Path, stem: str) -> bool:
    """Whether a shard is there."""
    return (folder / f"{stem}.tar").is_file() and (folder / f"{stem}.jsonl").is_file()


def done_shards(folder: Path, manifest: StoreManifest) -> list[str]:
    """The stems of the planned shards that are there."""
    return [stem for stem in manifest.stems if is_done(folder, stem)]
