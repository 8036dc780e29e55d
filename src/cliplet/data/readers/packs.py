"""cliplet's own packs to records: by their indexes, once their shards are seen to be what was packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from cliplet.console import progress_bar
from cliplet.data.readers.samples import Sample, ShardScan, gather, scan_tar
from cliplet.data.records import ImageTextSource, Problem
from cliplet.data.shards import (
    JOURNAL,
    VERIFIED,
    Manifest,
    Shard,
    in_order,
    read_journal,
    replacing,
    threads,
)
from cliplet.errors import DataError
from cliplet.files import file_sha256

WORKERS = 4  # hashing waits for the disk, and releases Python's lock
AHEAD = 8  # shards read before they are wanted

Stamps = dict[str, list[int | str]]  # size, time of change and sha256 of each shard that was seen to be whole


def read_pack(folder: Path) -> ImageTextSource:
    """Records of a pack, in its order. Each shard is held against the manifest's sha256 once, and again when its file
    has another size or time of change.

    A shard that is missing or changed is a problem; of a changed one the pictures are kept that still fit their own
    sha256. An unfinished pack is read as far as it goes. Raises DataError for a damaged manifest and where nothing is
    left.
    """
    manifest = Manifest.read(folder)
    shards, problems = list(manifest.shards), []
    if not manifest.complete:
        shards = [shard for shard, _ in read_journal(folder).values()]
        missing = f"{manifest.planned_shards - len(shards):,} of {manifest.planned_shards:,} shards are missing"
        problems.append(Problem(str(folder), f"the pack is unfinished: {missing}; the command that began it goes on"))
        if not shards:
            raise DataError(f"{folder}: {problems[0].reason}", f"There is nothing in {JOURNAL} yet.")
    known = _read_stamps(folder)
    stamps: Stamps = {}
    with threads(WORKERS, "pack") as pool, progress_bar("checking shards") as tell:

        def scans() -> Iterator[tuple[str, str, ShardScan]]:
            read = in_order(pool, partial(_read_shard, folder, known), shards, AHEAD)
            for done, (shard, (scan, stamp)) in enumerate(zip(shards, read, strict=True), 1):
                if stamp:
                    stamps[shard.name] = stamp
                tell(done, len(shards))
                yield shard.name, shard.split, scan

        records = gather(str(folder), str(folder), scans(), problems, "Copy the pack again, or pack the data again.")
    if stamps != known:
        with suppress(OSError), replacing(folder / VERIFIED) as stream:  # it only saves time
            stream.write(json.dumps(stamps).encode())
    return ImageTextSource(str(folder), "cliplet's pack", records, problems)


def _read_stamps(folder: Path) -> Stamps:
    with suppress(OSError, ValueError):
        stamps = json.loads((folder / VERIFIED).read_bytes())
        if isinstance(stamps, dict):
            return stamps
    return {}


def _read_shard(folder: Path, known: Stamps, shard: Shard) -> tuple[ShardScan, list[int | str] | None]:
    """What a shard holds, and what its file looks like if it is whole."""
    scan, file, label = ShardScan(), folder / shard.name, shard.name
    try:
        status = file.stat()
        stamp: list[int | str] = [status.st_size, status.st_mtime_ns, shard.sha256]
        whole = known.get(shard.name) == stamp or (status.st_size == shard.bytes and file_sha256(file) == shard.sha256)
    except OSError as error:
        scan.problem(label, f"cannot be read: {error.strerror}; its {shard.pictures:,} pictures are left out")
        return scan, None
    try:
        index = list(_index(folder, shard))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"its index cannot be used: {getattr(error, 'strerror', None) or error}"
        if not whole:
            scan.problem(label, f"has been changed, and {reason}; its {shard.pictures:,} pictures are left out")
            return scan, None
        found = scan_tar(file, label)
        scan.problem(shard.index, f"{reason}; the shard itself was read instead")
        return ShardScan(found.samples, scan.problems + found.problems), stamp
    if whole:
        scan.samples = [sample for sample, _ in index]
        return scan, stamp
    _check_pictures(file, index, scan, label)
    return scan, None


def _check_pictures(file: Path, index: list[tuple[Sample, str]], scan: ShardScan, label: str) -> None:
    """Keeps the pictures of a changed shard that are as they were; the others become problems."""
    changed = []
    with file.open("rb") as stream:
        for sample, sha256 in index:
            stream.seek(sample.offset)
            if hashlib.sha256(stream.read(sample.size)).hexdigest() == sha256:
                scan.samples.append(sample)
            else:
                changed.append(sample)
    kept = f"{len(scan.samples):,} of its {len(index):,} pictures are whole and kept"
    scan.problem(label, f"is not what was packed: its sha256 does not fit; {kept}")
    for sample in changed:
        scan.problem(f"{label}: {sample.name}", "is not what was packed: its sha256 does not fit")


def _index(folder: Path, shard: Shard) -> Iterator[tuple[Sample, str]]:
    """The pictures of a shard by its index, with the sha256 of each. Raises ValueError and the like where it is bad."""
    data = (folder / shard.index).read_bytes()
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise ValueError("its sha256 does not fit")
    lines = data.decode().split("\n")[:-1]  # not splitlines: captions may hold other kinds of line ends
    if len(lines) != shard.pictures:
        raise ValueError(f"it names {len(lines):,} of {shard.pictures:,} pictures")
    for line in lines:
        entry = json.loads(line)
        captions, offset, size = tuple(entry["captions"]), entry["offset"], entry["size"]
        if not (0 <= offset <= offset + size <= shard.bytes and "".join(captions)):  # raises where these are no texts
            raise ValueError("it leads out of the shard")
        yield Sample(entry["name"], offset, size, captions), entry["sha256"]
