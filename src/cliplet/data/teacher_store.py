"""Teachers' embeddings on the disk, read for the records of a run. No torch.

The form and the writing are in `teacher_shards.py`, what is read at each step in `teacher_targets.py`; all names that
others need can be imported from here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from cliplet.config import AugmentConfig
from cliplet.console import progress_bar
from cliplet.data.records import Records
from cliplet.data.shards import PART, VERIFIED, in_order, threads
from cliplet.data.teacher_alignment import Search, names_with, picture_names
from cliplet.data.teacher_shards import (
    VIEW_NUMBERS,
    PictureLine,
    StoredShard,
    StoreManifest,
    StoreSettings,
    TeacherInfo,
    distinct_captions,
    done_shards,
    is_done,
    read_index,
    shard_pictures,
    shard_stem,
    write_shard,
)
from cliplet.data.teacher_targets import StoredTargets
from cliplet.errors import DataError
from cliplet.files import file_sha256, written_beside

__all__ = [
    "VIEW_NUMBERS",
    "PictureLine",
    "StoreManifest",
    "StoreSettings",
    "StoredShard",
    "StoredTargets",
    "TeacherInfo",
    "TeacherStore",
    "distinct_captions",
    "done_shards",
    "finish",
    "is_done",
    "names_with",
    "picture_names",
    "remove_damaged",
    "shard_pictures",
    "shard_stem",
    "write_shard",
]

WORKERS = 4  # hashing waits for the disk, and releases Python's lock
AHEAD = 8  # files read before they are wanted

Stamp = list[int | str]  # size, time of change and sha256 of a file that was seen to be whole


class TeacherStore:
    """A complete store whose files are as they were written."""

    def __init__(self, folder: Path, manifest: StoreManifest):
        """Use `open`, which checks both."""
        self.folder, self.manifest = folder, manifest
        self.settings, self.teachers = manifest.settings, manifest.teachers
        self.bytes = sum(shard.bytes for shard in manifest.shards)

    @classmethod
    def open(cls, folder: Path) -> TeacherStore:
        """The store in a folder. Each file is held against its sha256 once, and again when it has another size or time
        of change.

        Raises DataError for what is no store, for an unfinished one, and where a file is missing or damaged.
        """
        manifest = StoreManifest.read(folder)
        if not manifest.complete:
            done = len(done_shards(folder, manifest))
            raise DataError(
                f"{folder}: the store is unfinished: {done:,} of {manifest.planned_shards:,} shards are there",
                f"This goes on with it: {manifest.command}",
            )
        _check_files(folder, manifest)
        return cls(folder, manifest)

    def refuse_others(
        self,
        teachers: Sequence[tuple[str, str]],
        augment: AugmentConfig | None,
        facts: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Raises DataError, naming every difference, where a run asks for other teachers or views than the store's.

        `teachers`: name and sha256 of the weights ("" where it is not known) of each, in any order; none: whichever
        the store has. `augment`: what the run draws its views from, None where it draws none. `facts`: what is
        known of teachers by now, by name: values of TeacherInfo's fields.
        """
        lines = _other_teachers(self.teachers, teachers, facts or {}) if teachers else []
        hints = (
            [f"Name the store's, or none: --distil.teachers {shlex.join(one.name for one in self.teachers)}."]
            if lines
            else []
        )
        if augment is not None:
            stored, asked = self.settings.augment.model_dump(mode="json"), augment.model_dump(mode="json")
            other = [key for key in asked if stored[key] != asked[key]]
            lines += [f"augment.{key}: {stored[key]} in the store -> {asked[key]} in the run" for key in other]
            if other:
                hints.append("Give the run the store's values of augment, from which its views were drawn.")
        if lines:
            again = f"Or make another store, in a new folder; this one was made by: {self.manifest.command}"
            message = "\n".join([f"{self.folder}: the store is not for this run:", *lines])
            raise DataError(message, " ".join([*hints, again]))

    def aligned(self, records: Records) -> StoredTargets:
        """The store's embeddings for these records, whatever their order and however many of the store's they are.

        Raises DataError for a picture or caption that is not in the store, and for a picture that is another one by
        now as far as some are looked at.
        """
        alignment = Search(self.folder, self.manifest, records).alignment()
        targets = StoredTargets(self.folder, self.manifest, records, alignment)
        targets.check_some()
        return targets


def _check_files(folder: Path, manifest: StoreManifest) -> None:
    """Raises DataError where a file is not what was written."""
    for name, reason in _damaged_files(folder, manifest):
        raise DataError(
            f"{folder / name}: {reason}", f"Copy the store again; or this command mends it: {manifest.command}"
        )


def remove_damaged(folder: Path, manifest: StoreManifest) -> list[str]:
    """Removes the shards of a complete store that are not what was written, so that they can be made again. Gives what
    was wrong with each."""
    found = []
    for name, reason in _damaged_files(folder, manifest):
        found.append(f"{name} {reason}")
        stem = name.partition(".")[0]
        for file in (folder / f"{stem}.tar", folder / f"{stem}.jsonl"):
            file.unlink(missing_ok=True)
    return found


def _damaged_files(folder: Path, manifest: StoreManifest) -> list[tuple[str, str]]:
    """The files that are not what was written, and what is wrong with each."""
    known = _read_stamps(folder)
    files: list[tuple[str, str, int | None]] = [(shard.name, shard.sha256, shard.bytes) for shard in manifest.shards]
    files += [(shard.index, shard.index_sha256, None) for shard in manifest.shards]
    stamps, damaged = {}, []
    with threads(WORKERS, "store") as pool, progress_bar("checking the store") as tell:
        checked = in_order(pool, partial(_checked, folder, known), files, AHEAD)
        for done, ((name, _, _), found) in enumerate(zip(files, checked, strict=True), 1):
            if isinstance(found, str):
                damaged.append((name, found))
            else:
                stamps[name] = found
            tell(done, len(files))
    if stamps != known:
        _write_stamps(folder, stamps)
    return damaged


def _checked(folder: Path, known: dict[str, Stamp], file: tuple[str, str, int | None]) -> Stamp | str:
    """What a file looks like that is whole; of another, what is wrong."""
    name, sha256, size = file
    try:
        now = _stamp(folder / name, sha256)
        if size is not None and now[0] != size:
            return f"has {now[0]:,} bytes and not {size:,}, as it was written with"
        if known.get(name) != now and file_sha256(folder / name) != sha256:
            return "is damaged: its sha256 is not the one it was written with"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return now


def _other_teachers(
    stored: Sequence[TeacherInfo], asked: Sequence[tuple[str, str]], facts: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """What differs between a store's teachers and those that are asked for, a line each."""
    lines, left, unmet = [], list(stored), []
    for name, weights in asked:
        same = [one for one in left if weights and one.weights == weights]
        same += [one for one in left if one.name == name and not (weights and one.weights)]
        if same:
            left.remove(same[0])
            lines += _other_facts(same[0], name, facts.get(name, {}))
        else:
            unmet.append(name)
    for name in unmet:
        earlier = next((one for one in left if one.name == name), None)
        if earlier:
            left.remove(earlier)
            lines.append(f"teacher {name}: has other weights by now than those the store was made with")
        else:
            lines.append(f"teacher {name}: is not in the store")
    return lines + [f"teacher {one.name}: is in the store, and not asked for" for one in left]


def _other_facts(stored: TeacherInfo, name: str, now: Mapping[str, object]) -> list[str]:
    """What differs between a teacher as it was and what is known of it by now, a line each."""
    return [
        f"teacher {name}: {key}: {was} in the store -> {now[key]} by now"
        for key in now
        if (was := getattr(stored, key)) != now[key]
    ]


# Its end


def finish(folder: Path, manifest: StoreManifest) -> StoreManifest:
    """Writes the complete manifest of a store whose shards are all done, and returns it.

    Raises DataError where one is missing, and where not one picture has embeddings.
    """
    missing = manifest.planned_shards - len(done_shards(folder, manifest))
    if missing:
        raise DataError(
            f"{folder}: {missing:,} of {manifest.planned_shards:,} shards are missing",
            f"This goes on with it: {manifest.command}",
        )
    shards, left_out, stamps = [], 0, dict[str, Stamp]()
    for stem in manifest.stems:
        lines = list(read_index(folder / f"{stem}.jsonl"))
        for name in (f"{stem}.tar", f"{stem}.jsonl"):
            stamps[name] = _stamp(folder / name, file_sha256(folder / name))
        captions = len(distinct_captions(line.captions for line in lines))
        size, sha256, index_sha256 = stamps[f"{stem}.tar"][0], stamps[f"{stem}.tar"][2], stamps[f"{stem}.jsonl"][2]
        shards.append(StoredShard(f"{stem}.tar", len(lines), captions, int(size), str(sha256), str(index_sha256)))
        left_out += sum(line.reason is not None for line in lines)
    if left_out == sum(shard.pictures for shard in shards):
        raise DataError(
            f"{folder}: not one of {left_out:,} pictures could be read",
            "cliplet inspect DATA says what is wrong with them. Put that right, remove the folder and start again.",
        )
    finished = replace(manifest, complete=True, left_out=left_out, shards=tuple(shards))
    finished.write(folder)
    _write_stamps(folder, stamps)
    for file in folder.glob(f"*{PART}"):
        file.unlink(missing_ok=True)
    return finished


# What was seen to be whole


def _stamp(file: Path, sha256: str) -> Stamp:
    """What a file of that content looks like from outside. Raises OSError."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, sha256]


def _read_stamps(folder: Path) -> dict[str, Stamp]:
    """What each file looked like when its sha256 was last seen to fit; nothing where that is not known."""
    with suppress(OSError, ValueError):
        stamps = json.loads((folder / VERIFIED).read_bytes())
        if isinstance(stamps, dict):
            return stamps
    return {}


def _write_stamps(folder: Path, stamps: dict[str, Stamp]) -> None:
    """Remembers what files look like that are whole, where the folder can be written to: it only saves time."""
    with suppress(OSError), written_beside(folder / VERIFIED) as beside:
        beside.write_text(json.dumps(stamps), encoding="utf-8")
