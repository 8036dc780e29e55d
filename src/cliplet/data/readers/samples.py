"""Pictures and captions of a tar of the WebDataset kind, read in one pass."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from cliplet.data.places import tar_member
from cliplet.data.readers.collector import clean_caption
from cliplet.data.readers.tars import BUFFER, CAPTIONS, MAX_TEXT, PICTURES, Damage, Member, members
from cliplet.data.records import Problem, Records, RecordsBuilder, writable
from cliplet.errors import DataError

MAX_SPLIT = 40  # characters of a split's name
MAX_SPLITS = 900  # somebody's own field `split` may hold anything; records take 1,000, the shards' own among them


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture in a shard, with its captions."""

    name: str  # of its member
    offset: int  # bytes
    size: int
    captions: tuple[str, ...]
    split: str | None = None  # None where the sample itself names none


@dataclass
class ShardScan:
    """What a shard holds, in its order, and what is wrong with the rest."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    advice: str = ""  # what to do where no tar could be read at all

    def problem(self, where: str, reason: str) -> None:
        """Writes a fault down. `where` is made one that can be written in UTF-8."""
        self.problems.append(Problem(writable(where), reason))


def gather(
    path: str, root: str, scans: Iterable[tuple[str, str, ShardScan]], problems: list[Problem], hint: str
) -> Records:
    """The records of shards, each with its file's name below `root` and the split that it has where its samples name
    none; their problems are put to the others. Raises DataError where no picture is found, with the hint, or with the
    advice of the first shard if none could be read."""
    builder = RecordsBuilder()
    splits: set[str] = set()
    advice: list[str] = []
    for file, shards_split, scan in scans:
        problems += scan.problems
        advice.append(scan.advice)
        for sample in scan.samples:
            name = sample.name.replace("?", "%3F")  # no name shall look like a place
            place = tar_member(file, name, sample.offset, sample.size)
            split = sample.split
            if split is None or (len(splits) >= MAX_SPLITS and split not in splits):
                split = shards_split
            splits.add(split)
            number = builder.new_picture(place, split)
            for caption in sample.captions:
                builder.caption(number, caption)
    records = builder.build(root)
    if len(splits) >= MAX_SPLITS:
        problems.append(Problem(path, f"names {MAX_SPLITS:,} splits; what comes after has its shard's"))
    if not records:
        first = f" The first problem: {problems[0].where} {problems[0].reason}." if problems else ""
        hint = advice[0] if advice and all(advice) else hint
        raise DataError(f"{path}: holds no picture with a caption.{first}", hint)
    return records


def scan_tar(file: str | Path, label: str) -> ShardScan:
    """Every picture of a tar that has a caption. `label`: what the shard is called in problems.

    Nothing is raised for a bad tar: what stands before the damage is kept, and the damage is a problem.
    """
    scan = ShardScan()
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
            raise OSError("it is a folder, or no file of another kind")
        with open(file, "rb", buffering=BUFFER) as stream:
            _scan(stream, scan, label)
    except OSError as error:
        scan.problem(label, f"cannot be read: {error.strerror or error}")
        scan.advice = "Check the path, and that the file may be read."
    return scan


def has_captions(file: str | Path, looked_at: int = 60) -> bool:
    """Whether a caption is among the first members; True also where they cannot be read, which is then a problem."""
    try:
        with open(file, "rb", buffering=BUFFER) as stream:
            for number, member in enumerate(members(stream, lambda name, reason: None)):
                if member.ending not in PICTURES:
                    return True
                if number >= looked_at:
                    break
    except (OSError, Damage):
        return True
    return False


def _scan(stream: BinaryIO, scan: ShardScan, label: str) -> None:
    """Samples are runs of members with one key, as WebDataset has it; a key that comes again is left out."""
    keys: set[str] = set()
    before: dict[str, Member] = {}
    fields: dict[str, Member] = {}
    key = ""

    def name_fault(name: str, reason: str) -> None:
        scan.problem(f"{label}: {name}", reason)

    at: int | None = 0
    while at is not None:
        beside_a_gap, fields, key = at > 0, {}, ""
        try:
            for key, run in groupby(members(stream, name_fault, at), attrgetter("key")):
                fields = {}
                for member in run:
                    if member.ending in fields:
                        scan.problem(f"{label}: {member.name}", "stands twice in the shard; the first is taken")
                    else:
                        fields[member.ending] = member
                first_after_gap, beside_a_gap = beside_a_gap, False
                if key in keys:
                    scan.problem(f"{label}: {key}", "its key stands earlier in the shard; the first is taken")
                    continue
                keys.add(key)
                if first_after_gap and before and fields.keys() != before.keys():
                    scan.problem(f"{label}: {key}", "may have lost a part to the damage before it; it is left out")
                    continue
                _add_sample(key, fields, scan, label)
                before, fields = fields, {}
            at = None
        except Damage as damage:
            # A part of the last sample may be lost, its split for one. It is whole if the break is in another one, or
            # if it holds what the one before holds.
            whole = damage.key is not None or not before or fields.keys() == before.keys()
            kept = bool(fields) and key not in keys and damage.key != key and whole
            lost = damage.key or (key if fields and not kept else "")
            scan.problem(label, damage.reason + (f"; its last picture, {lost}, is left out" if lost else ""))
            if kept:
                keys.add(key)
                _add_sample(key, fields, scan, label)
            if at == 0 and not key and damage.resume is None:
                scan.advice = "Look at what the file holds: it should be an uncompressed tar."
            at = damage.resume


def _add_sample(key: str, fields: dict[str, Member], scan: ShardScan, label: str) -> None:
    pictures = [member for ending, member in fields.items() if ending in PICTURES]
    if not pictures:
        scan.problem(f"{label}: {key}", "has no picture")
        return
    picture = pictures[0]
    for second in pictures[1:]:
        scan.problem(f"{label}: {second.name}", f"is a second picture of its key; {picture.name} is taken")
    if picture.size == 0:
        scan.problem(f"{label}: {picture.name}", "is empty")
        return
    captions, split = _captions(fields, scan, label)
    if not captions:
        scan.problem(f"{label}: {picture.name}", "has no usable caption")
        return
    scan.samples.append(Sample(writable(picture.name), picture.offset, picture.size, tuple(captions), split))


def _captions(fields: dict[str, Member], scan: ShardScan, label: str) -> tuple[list[str], str | None]:
    """The captions of the JSON if it holds any, else those of a text file; and the split that the JSON names."""
    captions: list[str] = []
    split = None
    if "json" in fields:
        where = f"{label}: {fields['json'].name}"
        item = _json(fields["json"], scan, where)
        named = item.get("split")
        if isinstance(named, str) and len(named) <= MAX_SPLIT:
            split = writable(named.strip())
        given = item.get("captions") or item.get("caption")
        captions = _cleaned(given if isinstance(given, list) else [given] if given is not None else [], scan, where)
    for ending in CAPTIONS:
        if not captions and ending in fields:
            where = f"{label}: {fields[ending].name}"
            captions = _cleaned(_lines(fields[ending], scan, where), scan, where)
    return captions, split


def _json(member: Member, scan: ShardScan, where: str) -> dict[str, Any]:
    """The object that a .json holds; an empty one, and a problem, where it holds none."""
    if reason := _no_text(member):
        scan.problem(where, reason)
        return {}
    try:
        item = json.loads(member.text or b"")
    except (ValueError, RecursionError):
        item = None
    if isinstance(item, dict):
        return item
    scan.problem(where, "is not JSON, or no JSON object")
    return {}


def _lines(member: Member, scan: ShardScan, where: str) -> list[str]:
    if reason := _no_text(member):
        scan.problem(where, reason)
        return []
    try:
        text = (member.text or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        scan.problem(where, f"is not UTF-8 at byte {error.start + 1}")
        return []
    return [line for line in text.splitlines() if line.strip()]


def _no_text(member: Member) -> str:
    if member.size == 0:
        return "is empty"
    return "" if member.text is not None else f"is larger than {MAX_TEXT / 2**20:.0f} MB, which no caption is"


def _cleaned(captions: Iterable[Any], scan: ShardScan, where: str) -> list[str]:
    result = []
    for caption in captions:
        try:
            result.append(clean_caption(caption))
        except ValueError as error:
            scan.problem(where, str(error))
    return result
