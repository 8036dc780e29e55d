"""A data set into a pack: each picture to bytes, the bytes into shards, the shards into a manifest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from cliplet.data import pack_plan
from cliplet.data.images import MAX_BYTES, decode
from cliplet.data.pack_plan import FORMATS, Plan
from cliplet.data.places import file_name, read_bytes
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import ImageText, Problem, writable
from cliplet.data.shards import (
    JOURNAL,
    MANIFEST,
    PART,
    QUARANTINE,
    Manifest,
    Original,
    Packed,
    Settings,
    Shard,
    TarWriter,
    about,
    in_order,
    index_line,
    index_name,
    journal_line,
    original_of,
    read_journal,
    replacing,
    threads,
)
from cliplet.errors import DataError, ImageError

KEPT = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF", "webp"))  # what --size 0 leaves as it is
# Pillow would carry a JPEG's comment over. WebP's usual method, 4, takes twice the time of 2 for files 0.5 % smaller.
ENCODING: dict[str, dict[str, Any]] = {"jpeg": {"comment": b""}, "webp": {"method": 2}}
AHEAD = 32  # pictures for each thread that are under way or wait: threads work on while a shard reaches the disk
AHEAD_WHOLE = 4  # the same for files that stay as they are, which may be large
MOST_WORKERS = 32

Done = dict[str, tuple[Shard, list[Problem]]]
Tell = Callable[[int, int], None]  # of pictures (done, total)


@dataclass(frozen=True, slots=True)
class PackResult:
    """What a pack holds, and what this call did for it."""

    manifest: Manifest
    packed: int  # pictures tried by this call; 0 where all was done before
    seconds: float
    quarantine: Quarantine | None  # None where nothing was to do


# One picture


def pack_picture(settings: Settings, item: tuple[str, ImageText]) -> Packed | Problem:
    """A picture of a split as it is to be stored, or why it cannot be."""
    split, record = item
    try:
        data = read_bytes(record.image, MAX_BYTES)
        # Decoded at twice the size, for a JPEG's decoder reduces more roughly than the filter that comes after it.
        decoded = decode(data, 2 * settings.size or None, record.image)
        original = original_of(record.image) or Original(
            writable(file_name(record.image)), hashlib.sha256(data).hexdigest(), decoded.width, decoded.height
        )
        ending = _ending(data) if settings.size == 0 else ""
        if not ending:
            size = _at_most(decoded.width, decoded.height, settings.size)
            data, ending = _encoded(decoded.image(), size, settings), FORMATS[settings.format]
    except ImageError as error:
        return _problem(record.image, error.message)
    except FileNotFoundError:
        return _problem(record.image, "no such file")
    except OSError as error:
        return _problem(record.image, f"cannot be read: {error.strerror or error}")
    return Packed(data, ending, record.captions, split, original)


def _ending(data: bytes) -> str:
    """The ending of what WebDataset's readers know; "" for other kinds."""
    return next((ending for magic, ending in KEPT if data.startswith(magic)), "")


def _at_most(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with a shorter side of `size`, or as they are where it is no longer, or `size` is 0."""
    shorter = min(width, height)
    if not 0 < size < shorter:
        return width, height
    return max(1, round(width * size / shorter)), max(1, round(height * size / shorter))


def _encoded(image: Image.Image, size: tuple[int, int], settings: Settings) -> bytes:
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    try:
        image.save(stream, settings.format.upper(), quality=settings.quality, **ENCODING[settings.format])
    except (OSError, ValueError) as error:
        raise ImageError(f"{size[0]}x{size[1]} pixels cannot be stored as {settings.format}: {error}") from None
    return stream.getvalue()


def _problem(where: str, reason: str) -> Problem:
    return Problem(writable(where), writable(reason.removeprefix(f"{where}: ")))


# One shard


def write_shard(
    folder: Path, name: str, split: str, pictures: Iterable[Packed | Problem]
) -> tuple[Shard, list[Problem]]:
    """Writes a shard and its index, both whole or not at all; returns it with what is left out of it."""
    count, captions, left_out = 0, 0, []
    digest = hashlib.sha256()
    with replacing(folder / name) as stream, replacing(folder / index_name(name)) as index:
        tar = TarWriter(stream)
        for picture in pictures:
            if isinstance(picture, Problem):
                left_out.append(picture)
                continue
            key = f"{name.removesuffix('.tar')}-{count:06d}"
            member = f"{key}.{picture.ending}"
            line = index_line(key, member, tar.add(member, picture.data), picture)
            tar.add(f"{key}.json", json.dumps(about(picture), ensure_ascii=False).encode())
            tar.add(f"{key}.txt", picture.captions[0].encode())
            index.write(line)
            digest.update(line)
            count += 1
            captions += len(picture.captions)
        sha256 = tar.close()
    return Shard(name, split, count, captions, tar.size, sha256, digest.hexdigest()), left_out


# All of them


def pack(
    data: str,
    out: Path,
    settings: Settings,
    images: Path | None = None,
    workers: int | None = None,
    quarantine: Path | None = None,
    tell: Tell | None = None,
) -> PackResult:
    """Packs a data set into a folder, or goes on with it: the bytes are the same as if it had never been interrupted.

    `data`, `images`: as for `read_source`. `workers`: threads; by itself as many as cores. `quarantine`: where what
    is left out is written down; by itself in the folder. `tell` is called after each picture.

    Raises DataError for data that cannot be read, for a folder that holds anything else or a pack of other settings or
    data, and where it cannot be written; ConfigError for settings that cannot be; Interrupted after Ctrl-C.
    """
    pack_plan.check_settings(settings, workers)
    quarantine = quarantine or out / QUARANTINE
    pack_plan.check_folder(data, images, out, quarantine)
    earlier = Manifest.read(out) if (out / MANIFEST).is_file() else None
    if earlier:
        pack_plan.check_same(out, earlier, settings)  # before the data is read, which may take long
    source = read_source(data, images, settings.samples)
    parts = pack_plan.split_records(source, settings.split)
    plans = pack_plan.plan_shards(parts, settings.shard_pictures)
    manifest = Manifest(pack_plan.source_name(data), pack_plan.fingerprint(parts), settings, len(plans))
    if earlier:
        pack_plan.check_same(out, earlier, settings, manifest.fingerprint)
        if earlier.complete:
            pack_plan.check_there(out, earlier)
            (out / JOURNAL).unlink(missing_ok=True)  # killed at the last moment
            return PackResult(earlier, 0, 0.0, None)
    with pack_plan.explained(out, "packing"):
        out.mkdir(parents=True, exist_ok=True)
        with pack_plan.alone(out):
            book = Quarantine(quarantine, resume=earlier is not None)
            book.extend(source.problems)
            began = time.monotonic()
            packed = _write_all(out, manifest, plans, book, workers or default_workers(), tell)
    return PackResult(Manifest.read(out), packed, time.monotonic() - began, book)


def default_workers() -> int:
    """As many threads as this process may use cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def _write_all(
    out: Path, manifest: Manifest, plans: list[Plan], quarantine: Quarantine, workers: int, tell: Tell | None
) -> int:
    """Writes the shards that are missing and the manifest; returns how many pictures were tried."""
    done = {name: entry for name, entry in read_journal(out).items() if pack_plan.is_there(out, name, entry[0].bytes)}
    manifest.write(out)
    with replacing(out / JOURNAL) as stream:  # without what a kill left in it
        stream.writelines(journal_line(*entry) for entry in done.values())
    for _, left_out in done.values():
        quarantine.extend(left_out)
    missing = [plan for plan in plans if plan.name not in done]
    tried = _write_missing(out, manifest.settings, missing, done, quarantine, workers, tell)
    shards = tuple(done[plan.name][0] for plan in plans)
    left = sum(len(left_out) for _, left_out in done.values())
    if not any(shard.pictures for shard in shards):
        raise DataError(
            f"{out}: not one of {left:,} pictures could be read; {quarantine.summary()}",
            "Put that right (--images names the pictures' folder), remove the folder and pack again.",
        )
    replace(manifest, complete=True, left_out=left, shards=shards).write(out)
    for file in (out / JOURNAL, *out.glob(f"*{PART}")):
        file.unlink(missing_ok=True)
    return tried


def _write_missing(
    out: Path,
    settings: Settings,
    plans: list[Plan],
    done: Done,
    quarantine: Quarantine,
    workers: int,
    tell: Tell | None,
) -> int:
    """Writes shards one after the other while threads prepare the pictures to come; notes each in `done`."""
    before = sum(shard.pictures + len(left_out) for shard, left_out in done.values())
    tried, total = 0, before + sum(plan.stop - plan.start for plan in plans)

    def counted(pictures: Iterable[Packed | Problem]) -> Iterator[Packed | Problem]:
        nonlocal tried
        for picture in pictures:
            tried += 1
            if tell:
                tell(before + tried, total)
            yield picture

    with threads(workers, "pack") as pool, (out / JOURNAL).open("ab") as journal:
        items = ((plan.split, plan.records[row]) for plan in plans for row in range(plan.start, plan.stop))
        ahead = workers * (AHEAD if settings.size else AHEAD_WHOLE)
        pictures = in_order(pool, partial(pack_picture, settings), items, ahead)
        for plan in plans:
            these = counted(islice(pictures, plan.stop - plan.start))
            shard, left_out = done[plan.name] = write_shard(out, plan.name, plan.split, these)
            quarantine.extend(left_out)
            journal.write(journal_line(shard, left_out))
            journal.flush()
            os.fsync(journal.fileno())
    return tried
