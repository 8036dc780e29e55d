"""The form of a pack: tar shards, an index beside each, and a manifest that says what all of them hold.

manifest.json                    settings, counts, each shard's size and sha256
train-000000.tar                 KEY.jpg, KEY.json, KEY.txt for each picture
train-000000.jsonl               a line for each picture: where its bytes are, their sha256, its captions
unfinished.jsonl                 the shards that are done, while packing goes on
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cliplet.data.places import TAR_MEMBER
from cliplet.data.records import Problem
from cliplet.errors import DataError

FORMAT, VERSION = "cliplet-pack", 1
TEACHERS = "cliplet-teacher-store"  # what stores of teachers' embeddings have in that place
MANIFEST, JOURNAL, QUARANTINE = "manifest.json", "unfinished.jsonl", "quarantine.jsonl"
VERIFIED = ".verified.json"  # what each shard looked like when its sha256 was last seen to fit
SHARD = re.compile(r"[^/\\\0]+-\d{6,}\.tar")
RECORD = tarfile.RECORDSIZE  # tar files end at a multiple of it
MAX_ABOUT = 2**22  # bytes of a KEY.json
PART = ".part"  # ending of files that are being written

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Original:
    """The picture that was packed, as it was before."""

    name: str
    sha256: str  # of its file's bytes
    width: int  # pixels, upright
    height: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A picture as a shard holds it."""

    data: bytes
    ending: str  # jpg, png or webp
    captions: tuple[str, ...]
    split: str
    original: Original


@dataclass(frozen=True)
class Settings:
    """What decides which bytes a pack holds."""

    split: str = "all"
    size: int = 256  # pixels of the shorter side at most; 0 keeps the files as they are
    format: str = "jpeg"
    quality: int = 90
    shard_pictures: int = 1000
    samples: int | None = None


@dataclass(frozen=True)
class Shard:
    """One shard that is done."""

    name: str
    split: str
    pictures: int
    captions: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """Name of its index."""
        return index_name(self.name)


@dataclass(frozen=True)
class Manifest:
    """What a pack holds, or is to hold."""

    source: str  # name of the data set it was made from
    fingerprint: str  # of that data set's pictures, captions and splits
    settings: Settings
    planned_shards: int
    complete: bool = False
    left_out: int = 0  # pictures that could not be read
    shards: tuple[Shard, ...] = ()

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """Pictures and captions of each split."""
        result: dict[str, dict[str, int]] = {}
        for shard in self.shards:
            counts = result.setdefault(shard.split, {"pictures": 0, "captions": 0})
            counts["pictures"] += shard.pictures
            counts["captions"] += shard.captions
        return result

    def write(self, folder: Path) -> None:
        """Writes manifest.json, whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self), "splits": self.splits}
        content["shards"] = content.pop("shards")  # last, for it is long
        with replacing(folder / MANIFEST) as stream:
            stream.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a pack. Raises DataError where it is missing, damaged or of a newer version."""
        file = folder / MANIFEST
        try:
            content = json.loads(file.read_bytes())
            if content["format"] == TEACHERS:
                raise DataError(
                    f"{folder}: is a store of teachers' embeddings and no data set",
                    "Name it with --distil.store, and the data that it was made from with --data.path.",
                )
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r} and not {FORMAT!r}")
            if content["version"] != VERSION:
                raise DataError(
                    f"{file}: the pack is of version {content['version']}; this cliplet reads {VERSION}",
                    "Update cliplet, or pack the data again.",
                )
            shards = tuple(_shard(entry) for entry in content["shards"])
            manifest = _made(cls, {**content, "settings": _made(Settings, content["settings"]), "shards": shards})
            if content["splits"] != manifest.splits:
                raise ValueError("its shards do not add up to its splits")
            if manifest.complete and len(shards) != manifest.planned_shards:
                raise ValueError(f"it names {len(shards):,} of {manifest.planned_shards:,} shards")
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{file}: the manifest is damaged: {reason}",
                "Pack the data again; or move the manifest away: the shards are then read as any tars, unchecked.",
            ) from None
        return manifest


_KINDS: dict[str, Any] = {"str": str, "int": int, "bool": bool, "int | None": (int, type(None))}


def _made(kind: type[Item], entry: dict[str, Any]) -> Item:
    """A dataclass from JSON. Raises ValueError, KeyError or TypeError for what does not fit."""
    values = {one.name: entry[one.name] for one in fields(kind)}  # type: ignore[arg-type]
    for one in fields(kind):  # type: ignore[arg-type]
        if not isinstance(values[one.name], _KINDS.get(str(one.type), object)):
            raise ValueError(f"{one.name} is {values[one.name]!r}")
    return kind(**values)


def _shard(entry: dict[str, Any]) -> Shard:
    shard = _made(Shard, entry)
    if not SHARD.fullmatch(shard.name):  # it shall not lead elsewhere
        raise ValueError(f"{shard.name!r} is no name of a shard")
    return shard


def is_pack(folder: Path) -> bool:
    """Whether the folder has a pack's manifest, be it damaged."""
    try:
        with (folder / MANIFEST).open("rb") as stream:
            head = stream.read(4096)
    except (OSError, ValueError):
        return False
    return FORMAT.encode() in head or any(index.with_suffix(".tar").is_file() for index in folder.glob("*-*.jsonl"))


def index_name(shard: str) -> str:
    """Name of a shard's index."""
    return shard.removesuffix(".tar") + ".jsonl"


def index_line(key: str, name: str, offset: int, picture: Packed) -> bytes:
    """A picture in a shard's index: where its bytes are, and all that is known of it."""
    place = {"key": key, "name": name, "offset": offset, "size": len(picture.data)}
    digest = hashlib.sha256(picture.data).hexdigest()
    return _line({**place, "sha256": digest, **about(picture)})


def about(picture: Packed) -> dict[str, Any]:
    """What KEY.json says of a picture."""
    return {"captions": picture.captions, "split": picture.split, "original": asdict(picture.original)}


def original_of(place: str) -> Original | None:
    """What a picture in a pack's shard was before, by the KEY.json that stands behind it; None for other pictures."""
    member = TAR_MEMBER.fullmatch(place) if "?" in place else None
    if not member or not SHARD.fullmatch(Path(member["file"]).name):
        return None
    end = int(member["offset"]) + int(member["size"])
    bad = (OSError, ValueError, KeyError, TypeError, RecursionError, tarfile.TarError)  # it may be anybody's tar
    with suppress(*bad), open(member["file"], "rb") as stream:
        stream.seek(end + -end % tarfile.BLOCKSIZE)
        info = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        if info.name == member["name"].rpartition(".")[0] + ".json" and info.size <= MAX_ABOUT:
            return _made(Original, json.loads(stream.read(info.size))["original"])
    return None


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def journal_line(shard: Shard, left_out: Iterable[Problem]) -> bytes:
    """A shard that is done, as unfinished.jsonl has it."""
    return _line({"shard": asdict(shard), "left_out": [[one.where, one.reason] for one in left_out]})


def read_journal(folder: Path) -> dict[str, tuple[Shard, list[Problem]]]:
    """The shards that are done, by name, with what was left out of each. A line torn by a kill is passed over."""
    result = {}
    with suppress(FileNotFoundError):
        for line in (folder / JOURNAL).read_bytes().split(b"\n"):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                shard = _shard(entry["shard"])
                result[shard.name] = shard, [Problem(where, reason) for where, reason in entry["left_out"]]
    return result


class TarWriter:
    """A tar that is the same whoever writes it and when. `sha256` is that of all written so far."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._digest = stream, hashlib.sha256()
        self.size = 0

    def add(self, name: str, data: bytes) -> int:
        """Writes one member; returns the byte at which its content begins."""
        info = tarfile.TarInfo(name)  # time, user and group are zero
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        start = self.size
        self._write(data)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return start

    def close(self) -> str:
        """Ends the tar; returns its sha256. The stream stays open."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % RECORD))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.size += len(data)


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """A file that is written beside, and takes its name when it is whole and on the disk."""
    part = file.with_name(file.name + PART)
    try:
        with part.open("wb", buffering=2**20) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
        _sync_folder(file.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Puts a change of names on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def threads(workers: int, name: str) -> Iterator[Executor]:
    """A pool whose end, be it by an error or Ctrl-C, does not wait for work that has not begun."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """The function's results in the order of the items, `ahead` of which at most are under way or waiting."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
