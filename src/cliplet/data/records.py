"""The one record there is, what a source of records gives, and where bad ones are written down."""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cliplet.errors import DataError

HELD_OUT = 10  # one picture in this many is held out for validation where a source names no splits


@dataclass(frozen=True, slots=True)
class ImageText:
    """One picture and its captions."""

    image: str  # path of the picture's file
    captions: tuple[str, ...]  # at least one, none empty
    split: str = ""  # "" where the source names no splits


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad record, caption or file: where it stands and what is wrong with it."""

    where: str
    reason: str


@dataclass
class ImageTextSource:
    """What a reader found: good records in the source's order, and what was wrong with the others."""

    path: str
    form: str  # the format's name, for people
    records: list[ImageText]
    problems: list[Problem] = field(default_factory=list)

    @property
    def splits(self) -> Counter[str]:
        """Pictures in each split, under "" those without one."""
        return Counter(record.split for record in self.records)

    def select(self, split: str) -> list[ImageText]:
        """Records of one split, in the source's order.

        `all` gives every record. A source that names no splits has two: `val` is a tenth of its pictures,
        chosen by a checksum of the file name, so that it stays the same when pictures are added;
        `train` is the rest. Raises DataError for any other split and for an empty one.
        """
        splits = self.splits
        if split == "all":
            chosen = self.records
        elif set(splits) == {""} and split in ("train", "val"):
            chosen = [record for record in self.records if _held_out(record) == (split == "val")]
        elif split in splits:
            chosen = [record for record in self.records if record.split == split]
        else:
            named = ", ".join(f"{name} ({count:,})" for name, count in splits.items() if name)
            raise DataError(
                f"{self.path}: there is no split {split!r}",
                f"It has: {named or 'no named splits, so train and val are made from it'}; all takes everything.",
            )
        if not chosen:
            raise DataError(
                f"{self.path}: the split {split!r} holds no pictures",
                "Add pictures, or name another split; all takes every picture.",
            )
        return chosen


def _held_out(record: ImageText) -> bool:
    return zlib.crc32(Path(record.image).name.encode()) % HELD_OUT == 0


class Quarantine:
    """Bad records, each written once, as JSON lines of `where` and `reason`; safe to use from many threads.

    The file begins anew, and is not there when nothing is bad; with `resume` it goes on. Raises DataError for a file
    of another kind.
    """

    def __init__(self, file: Path | None = None, resume: bool = False):
        self.file = file
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()
        if file is not None and file.is_file():
            written = _written(file)
            if resume:
                self._seen.update(written)
            elif written or not file.stat().st_size:
                file.unlink()
            else:
                raise DataError(f"{file}: is there and is no quarantine file", "Name another file.")

    def add(self, where: str, reason: str) -> None:
        """Write one bad record down, unless it already stands there."""
        with self._lock:
            if where in self._seen:
                return
            self._seen[where] = reason
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                # A name that is not UTF-8 is written as the escapes that JSON has for it.
                with self.file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                    stream.write(json.dumps({"where": where, "reason": reason}, ensure_ascii=False) + "\n")

    def extend(self, problems: Iterable[Problem]) -> None:
        """Write many down."""
        for problem in problems:
            self.add(problem.where, problem.reason)

    def __contains__(self, where: str) -> bool:
        return where in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def entries(self) -> list[dict[str, str]]:
        """All that was bad, as in the file."""
        return [{"where": where, "reason": reason} for where, reason in self._seen.items()]

    def summary(self) -> str:
        """One line for the end of a command; empty when nothing was bad."""
        if not self._seen:
            return ""
        where, reason = next(iter(self._seen.items()))
        place = f" (all in {self.file})" if self.file else ""
        return f"{len(self._seen):,} bad records or files left out{place}; the first: {where}: {reason}"


def _written(file: Path) -> dict[str, str]:
    """Reasons by place from a quarantine file. A line torn by a kill or a full disk is passed over, and ended."""
    text = file.read_text(encoding="utf-8", errors="replace")
    entries = {}
    for line in text.split("\n"):  # not splitlines: names may hold other kinds of line ends
        try:
            entry = json.loads(line)
            entries[str(entry["where"])] = str(entry["reason"])
        except (ValueError, TypeError, KeyError):
            continue
    if text and not text.endswith("\n"):
        with file.open("a", encoding="utf-8") as stream:
            stream.write("\n")
    return entries
