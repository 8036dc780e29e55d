"""WebDataset tar shards to records: files, folders, braces, URLs, and cliplet's own packs. Nothing is extracted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from threading import Event
from urllib.parse import unquote, urlsplit

from cliplet.console import Tell, progress_bar
from cliplet.data.downloads import fetch
from cliplet.data.readers.folders import SPLITS
from cliplet.data.readers.packs import read_pack
from cliplet.data.readers.samples import ShardScan, gather, has_captions, scan_tar
from cliplet.data.records import ImageTextSource, Problem
from cliplet.data.remotes import shown
from cliplet.data.shards import MANIFEST, in_order, is_pack, threads
from cliplet.errors import DataError

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 1_000_000  # of a pattern; more is a slip of the finger
WORKERS = 4  # shards loaded or scanned at a time
AHEAD = 8  # shards scanned before they are wanted
ANNOTATIONS = (".json", ".jsonl", ".ndjson", ".txt", ".token", ".tsv", ".csv")
ORDER = "A picture's KEY.jpg and its KEY.json or KEY.txt must stand one after the other in an uncompressed tar."
STATISTICS = "_stats.json"  # img2dataset writes one for each shard


@dataclass(frozen=True, slots=True)
class _Shard:
    place: str  # file or URL
    label: str  # what problems call it
    split: str


def is_shards(path: str) -> bool:
    """Whether a path or URL means tar shards, or a pack of cliplet's own; also compressed ones, which are refused."""
    file = _expanded(path)
    try:
        if "://" in path:
            return _is_tar(_url_path(path))
        if file.is_dir():
            return is_pack(file) or _are_shards(file)
        if file.name == MANIFEST:
            return is_pack(file.parent)
    except (OSError, ValueError):  # no address, a name too long, a folder that may not be listed
        return False
    return _is_tar(file.name) and "\0" not in path


def read_shards(path: str) -> ImageTextSource:
    """Every picture with a caption in WebDataset's tars; each record is a place in a tar.

    Captions are KEY.json's `captions` or `caption`, else the lines of KEY.txt or KEY.caption. The split is KEY.json's
    `split`, else train, val or test as the folder's or the file's name says it. Shards at a URL are first loaded into
    the cache. What is wrong with a shard or a sample is a problem and stops nothing. Raises DataError for compressed
    tars and where no picture is found.
    """
    if "://" in path:
        return _read(path, "", _of_pattern(path))
    file = _expanded(path)
    folder = file.parent if file.name == MANIFEST else file
    if is_pack(folder):
        return read_pack(folder)
    if folder.is_dir():
        return _read(path, str(folder), _in_folder(folder))
    return _read(path, "", _of_pattern(str(file)))


def _read(path: str, root: str, shards: list[_Shard]) -> ImageTextSource:
    for shard in shards:
        if not _url_path(shard.place).lower().endswith(TAR):
            raise DataError(
                f"{shard.label}: is compressed, and pictures are read from the middle of a shard",
                "Decompress it first (gunzip FILE.tar.gz); the pictures in it are compressed anyway.",
            )
    problems: list[Problem] = []
    with threads(WORKERS, "shards") as pool, _telling(shards) as (tell_shards, tell_bytes):

        def scans() -> Iterator[tuple[str, str, ShardScan]]:
            found = in_order(pool, partial(_scan, root, tell_bytes), shards, AHEAD)
            for done, (shard, (file, scan)) in enumerate(zip(shards, found, strict=True), 1):
                tell_shards(done, len(shards))
                yield file, shard.split, scan

        records = gather(path, root, scans(), problems, ORDER)
    return ImageTextSource(path, "WebDataset tars", records, problems)


def _scan(root: str, tell: Tell, shard: _Shard) -> tuple[str, ShardScan]:
    """A shard's file, below `root`, and what it holds."""
    if "://" not in shard.place:
        return shard.place, scan_tar(Path(root, shard.place), shard.label)
    try:
        file = fetch(shard.place, tell)
    except DataError as error:
        problem = Problem(shard.label, error.message.removeprefix(f"{shard.label}: "))
        return shard.place, ShardScan(problems=[problem], advice=error.hint)
    return str(file), scan_tar(file, shard.label)


@contextmanager
def _telling(shards: list[_Shard]) -> Iterator[tuple[Tell, Tell]]:
    """What is told of shards that are read, and of bytes that are loaded. After an error or Ctrl-C loading stops."""
    stopped = Event()
    one = len(shards) == 1 and "://" in shards[0].place
    with progress_bar("loading, in MB" if one else "reading shards") as tell:

        def tell_bytes(done: int, total: int) -> None:
            if stopped.is_set():
                raise DataError("loading was stopped")
            if one:
                tell(done >> 20, total >> 20)

        try:
            yield (lambda done, total: None) if one else tell, tell_bytes
        finally:
            stopped.set()


def _are_shards(folder: Path) -> bool:
    """Whether the tars in a folder are its data. Beside annotations they may be the archive that pictures came in."""
    shards = _in_folder(folder)
    names = [name.lower() for name in os.listdir(folder)] if shards else []
    annotated = any(name.endswith(ANNOTATIONS) and not name.endswith(STATISTICS) for name in names)
    files = (folder / shard.place for shard in shards)
    return bool(shards) and (not annotated or has_captions(next(file for file in files if file.is_file())))


def _in_folder(folder: Path) -> list[_Shard]:
    """The tars in a folder and in its folders train, val, test; compressed ones if there are no others.

    Beside a tar, links that lead nowhere and folders with a tar's name are taken too, so that reading names them.
    """
    names = os.listdir(folder)  # of a million pictures maybe: what is no tar is passed over quickly
    files = sorted(filter(_is_tar, names))
    for name in sorted(name for name in names if name.lower() in SPLITS and (folder / name).is_dir()):
        files += [f"{name}/{file}" for file in sorted(filter(_is_tar, os.listdir(folder / name)))]
    there = [file for file in files if (folder / file).is_file()]
    if any(file.lower().endswith(TAR) for file in there):
        shards = [file for file in files if file.lower().endswith(TAR)]
    else:
        shards = [file for file in there if re.search(r"\d\.t[^/]*$", file)]  # archives have no number
    return [_Shard(file, file, _split(file)) for file in shards]


def _is_tar(name: str) -> bool:
    return name.lower().endswith((TAR, *COMPRESSED)) and not name.startswith(".")


def _of_pattern(pattern: str) -> list[_Shard]:
    """The shards that a path or URL names, each once; braces stand for many. A file of that very name comes first."""
    literal = "{" not in pattern or ("://" not in pattern and Path(pattern).exists())
    places = [pattern] if literal else list(dict.fromkeys(_expand(pattern)))
    return [_Shard(place, shown(place) if "://" in place else place, _split(_url_path(place))) for place in places]


def _expand(pattern: str) -> Iterator[str]:
    """Every text of a pattern with {00000..00099} and {a,b}."""
    pieces = BRACES.split(pattern)  # texts, and between them what stands in braces
    choices = [_choices(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    count = prod(map(len, choices))
    if not 0 < count <= MAX_SHARDS:
        raise DataError(f"{pattern}: names {count:,} shards", f"Name at least one and at most {MAX_SHARDS:,}.")
    return map("".join, product(*choices))


def _choices(inside: str) -> Sequence[str]:
    match = RANGE.fullmatch(inside)
    if not match:
        return inside.split(",")
    numbers = range(int(match[1]), min(int(match[2]), int(match[1]) + MAX_SHARDS) + 1)
    return [str(number).zfill(len(match[1])) for number in numbers]


def _split(path: str) -> str:
    """The split that a shard's folder is named for, or a word in its file name (cc3m-train-0001.tar)."""
    folder, _, name = path.rpartition("/")
    words = [folder.rpartition("/")[2].lower(), *re.split(r"[^a-z]+", name.lower())]
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _url_path(place: str) -> str:
    return unquote(urlsplit(place).path) if "://" in place else place


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name where there is no such user
        return Path(path)
