"""What is to be packed and whether it may be: the shards to be, the data's fingerprint, the checks before the work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cliplet.data.places import TAR_MEMBER, file_name
from cliplet.data.records import ImageTextSource, Records, held_out, writable
from cliplet.data.remotes import shown
from cliplet.data.shards import JOURNAL, MANIFEST, PART, QUARANTINE, SHARD, Manifest, Settings, index_name
from cliplet.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two commands from writing the same pack
    fcntl = None  # type: ignore[assignment]

FORMATS = {"jpeg": "jpg", "webp": "webp"}  # and their endings
SIZES_TAKEN = 1000  # pictures of a split whose files' sizes go into the fingerprint
PREFIX = 40  # characters of a split's name in a shard's


class Interrupted(DataError):
    """Ctrl-C. What is done stays."""


class Plan(NamedTuple):
    """A shard to be: the pictures of a split from `start` up to `stop`."""

    name: str
    split: str
    records: Records
    start: int
    stop: int


def check_settings(settings: Settings, workers: int | None) -> None:
    """Raises ConfigError for a value that cannot be."""
    rules = (
        (
            settings.size >= 0,
            f"--size is {settings.size}",
            "Pixels of the shorter side, or 0 to keep files as they are.",
        ),
        (settings.format in FORMATS, f"--format is {settings.format!r}", "It is jpeg or webp."),
        (1 <= settings.quality <= 100, f"--quality is {settings.quality}", "It goes from 1 to 100."),
        (settings.shard_pictures >= 1, f"--shard-pictures is {settings.shard_pictures}", "A shard holds one at least."),
        (settings.samples is None or settings.samples >= 1, f"--samples is {settings.samples}", "Take one at least."),
        (workers is None or workers >= 1, f"--workers is {workers}", "It takes one thread at least."),
    )
    refuse_broken(rules)


def refuse_broken(rules: Iterable[tuple[bool, str, str]]) -> None:
    """Raises ConfigError with message and hint of the first rule that does not hold."""
    for holds, message, hint in rules:
        if not holds:
            raise ConfigError(message, hint)


def split_records(source: ImageTextSource, split: str) -> dict[str, Records]:
    """The records of each split that is to be packed.

    Where the source names no splits, or train alone, they get those that training would make: a picture's name decides,
    which is another one in the pack.
    """
    records = source.select(split)
    if not source.makes_splits:
        return {name: records.in_splits([name]) for name in records.splits}
    held = np.fromiter(map(held_out, records.images()), bool, len(records))
    parts = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
    return {name: records.picked(rows) for name, rows in parts.items() if len(rows)}


def plan_shards(parts: dict[str, Records], shard_pictures: int) -> list[Plan]:
    """The shards of each split, `shard_pictures` in each but the last."""
    plans: list[Plan] = []
    prefixes: set[str] = set()
    for split, records in parts.items():
        kept = "".join(c if c.isascii() and c.isalnum() else "_" for c in split)[:PREFIX] or "unnamed"
        # There are file systems that take Train and train for one.
        names = chain([kept], (f"{kept}_{number}" for number in count(2)))
        prefix = next(name for name in names if name.lower() not in prefixes)
        prefixes.add(prefix.lower())
        for number, start in enumerate(range(0, len(records), shard_pictures)):
            stop = min(start + shard_pictures, len(records))
            plans.append(Plan(f"{prefix}-{number:06d}.tar", writable(split), records, start, stop))
    return plans


def fingerprint(parts: dict[str, Records]) -> str:
    """A checksum of the pictures' names, their captions and splits, and of some pictures' sizes in bytes.

    The folder does not count: data that has moved stays the same.
    """
    digest = hashlib.sha256()
    for split, records in parts.items():
        for record in records:
            entry = json.dumps([split, file_name(record.image), record.captions])
            digest.update(entry.encode())
        step = -(-len(records) // SIZES_TAKEN)
        digest.update(json.dumps([_size(records[row].image) for row in range(0, len(records), step)]).encode())
    return digest.hexdigest()


def _size(place: str) -> int:
    """Bytes of a picture; -1 for a missing one, and for rows of Arrow files."""
    member = TAR_MEMBER.fullmatch(place)
    if member:
        return int(member["size"])
    try:
        return Path(place).stat().st_size
    except (OSError, ValueError):
        return -1


def source_name(data: str) -> str:
    """A data set's own name, without where it is."""
    return shown(data) if "://" in data else writable(Path(data).name or Path(data).resolve().name)


def check_folder(data: str, images: Path | None, out: Path, quarantine: Path) -> None:
    """Raises DataError where a pack would get between other files, or into the data itself."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file", "Name a new folder for the pack.")
    folder = out.resolve()
    for name in (data, images):
        place = Path(name).expanduser().resolve() if name and "://" not in str(name) else None
        if place and place.exists() and (place == folder or folder in place.parents):
            raise DataError(f"{out}: holds the data that is to be packed, {name}", "Name a new folder for the pack.")
    others = _others(out, quarantine) if out.is_dir() else []
    if others:
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        raise DataError(f"{out}: holds other files: {', '.join(others[:3])}{more}", "Name a new folder for the pack.")


def _others(out: Path, quarantine: Path) -> list[str]:
    """Names in the folder that are not a pack's. Without a manifest a tar may be anybody's."""
    ours = {MANIFEST, QUARANTINE, quarantine.name if quarantine.parent == out else QUARANTINE, MANIFEST + PART}
    is_pack = (out / MANIFEST).is_file()

    def own(name: str) -> bool:
        bare = name.removesuffix(PART)
        shard = bare.removesuffix(".jsonl") + ".tar" if bare.endswith(".jsonl") else bare
        return name in ours or name.startswith(".") or (is_pack and (bare == JOURNAL or bool(SHARD.fullmatch(shard))))

    return sorted(writable(file.name) for file in out.iterdir() if not own(file.name))


def check_same(out: Path, earlier: Manifest, settings: Settings, mark: str | None = None) -> None:
    """Raises DataError where a pack was begun with other settings, or (if `mark` is given) from other data."""
    before, now = asdict(earlier.settings), asdict(settings)
    differing = [
        f"--{name.replace('_', '-')} was {before[name]} and is {now[name]}" for name in now if before[name] != now[name]
    ]
    if mark is not None and mark != earlier.fingerprint:
        differing.append(f"the data ({earlier.source}) has other pictures, captions or splits")
    if differing:
        raise DataError(
            f"{out}: was begun otherwise: {'; '.join(differing)}",
            "Give the same command to go on with it, or name another folder.",
        )


def check_there(out: Path, earlier: Manifest) -> None:
    """Raises DataError where a pack that is complete lacks a shard by now."""
    missing = [shard.name for shard in earlier.shards if not is_there(out, shard.name, shard.bytes)]
    if missing:
        raise DataError(
            f"{out}: the pack was complete, but {missing[0]} is missing or of another size by now",
            "Remove the folder and pack again, or name another one.",
        )


def is_there(out: Path, name: str, size: int) -> bool:
    """Whether a shard's file and its index are there, the first with the size it should have."""
    try:
        return (out / name).stat().st_size == size and (out / index_name(name)).is_file()
    except OSError:
        return False


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Raises DataError where another process writes into the same folder in this way."""
    if fcntl is None:
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another command is writing there", "Wait for its end.") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


@contextmanager
def explained(out: Path, work: str) -> Iterator[None]:
    """What ends the work, as an error that says how to go on. Finished shards stay, the one begun is gone."""
    again = "Finished shards are kept; the same command goes on after them."
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: {work} was interrupted", again) from None
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written: {error.strerror or error}",
            f"Make room, or see to the rights of the folder. {again}",
        ) from None
