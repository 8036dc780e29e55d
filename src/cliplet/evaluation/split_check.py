"""Whether a data set is the benchmark that it calls itself: by its pictures, whatever folders they lie in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliplet.data.places import file_name
from cliplet.data.records import USUAL_SPLITS, ImageText, Records
from cliplet.errors import ConfigError, nearest
from cliplet.evaluation.known_splits import BENCHMARKS, KNOWN_SPLITS, KnownSplit

# COCO_val2014_000000391895.jpg, 000000391895.jpg, 391895.jpg; 1000092795.jpg; 1056338697_4f7d7ce270.jpg
NUMBERED = re.compile(r"(?:COCO_[a-z]+20\d\d_)?0*(\d{1,12})(?:_[0-9a-f]{10})?(?:\.\w+)?")
COCO_NAMED = re.compile(r"COCO_(?:train|val)2014_\d{12}\.")
KARPATHYS_KEY = re.compile(rb'"dataset"\s*:\s*"(coco|flickr30k|flickr8k)"')
LAST_PARTS = 3  # of a path, in which a data set's name is looked for
NEAR = 0.05  # a set whose count of pictures differs by no more may be meant to be the benchmark
MOST_RECORDS = 200_000  # no known split is that large, not even with a record for each caption


FAMILY_NAMES = {
    "coco": re.compile(r"(?<![a-z])(?:ms)?coco(?:captions)?(?![a-z])"),
    "flickr30k": re.compile(r"flickr[-_]?30k|(?<![a-z0-9])f30k"),
    "flickr8k": re.compile(r"flickr[-_]?8k|(?<![a-z0-9])f8k"),
}


@dataclass(frozen=True)
class SplitCheck:
    """What became of the question whether a data set is what it calls itself."""

    name: str
    """Of the known split whose pictures these are; empty: of none."""
    claim: str
    """Name of the benchmark that it calls itself; empty: of none."""
    is_it: bool
    """Whether these are a benchmark's pictures, the claimed one's if one is claimed, with all captions or five each."""
    note: str
    """One or two sentences for people; empty where there is nothing to say."""


def named(benchmark: str) -> KnownSplit:
    """The benchmark of that name: coco-5k, flickr30k-1k, flickr8k-1k. Raises ConfigError for any other."""
    for split in BENCHMARKS.values():
        if split.name == benchmark:
            return split
    known = [split.name for split in BENCHMARKS.values()]
    raise ConfigError(f"there is no benchmark {benchmark!r}", nearest(benchmark, known))


def recognise(records: Sequence[ImageText]) -> KnownSplit | None:
    """The split whose pictures these are, neither more nor fewer, in whatever folders; captions play no part."""
    return _recognised(_identities(records))


def claimed(path: str, split: str, records: Sequence[ImageText]) -> KnownSplit | None:
    """The benchmark that a data set calls itself.

    Its family is told by the last parts of `path`, by a Karpathy JSON's own key, or by COCO's names of pictures; that
    its test is meant, by the name of `split`, or, where it is no training or validation split, by a count of pictures
    near the benchmark's.
    """
    benchmark = BENCHMARKS.get(_family(path, records))
    usual = USUAL_SPLITS.get(split.lower(), "")
    if benchmark is None or usual in ("train", "val"):
        return None
    # A record may hold one caption, and a picture stand in five.
    near = any(abs(len(records) - count) <= NEAR * count for count in (benchmark.pictures, benchmark.captions))
    return benchmark if near or usual == "test" else None


def check(path: str, split: str, records: Sequence[ImageText], benchmark: KnownSplit | None = None) -> SplitCheck:
    """Whether `records`, the `split` of the data set at `path`, are the benchmark that this calls itself, or
    `benchmark`, where one is given."""
    claim = benchmark or claimed(path, split, records)
    identities = _identities(records)
    found = _recognised(identities)
    name, said = found.name if found else "", claim.name if claim else ""
    if found and found.benchmark and claim in (None, found):
        is_it, note = _captions_told(found, records, bool(claim))
        return SplitCheck(name, said, is_it, note)
    if found:
        meant = claim or BENCHMARKS[found.family]
        note = f"These are {found.title}, not {meant.title}."
        if claim and claim.pictures == found.pictures:
            counted = f"has {found.pictures:,} pictures, but not those"
            note = f"{_meant(claim, benchmark)} and {counted}: they are {found.title}."
        return SplitCheck(name, said, False, note)
    note = _difference_told(claim, _meant(claim, benchmark), records, identities) if claim else ""
    return SplitCheck("", said, False, note)


def _captions_told(split: KnownSplit, records: Sequence[ImageText], is_claimed: bool) -> tuple[bool, str]:
    """Whether captions are as they should be, and what there is to say, where the pictures are right."""
    captions = _caption_count(records)
    if len(records) != split.pictures:
        return False, (
            f"The pictures are those of {split.title}, but they stand in {len(records):,} records instead of "
            f"{split.pictures:,}: each counts as a picture of its own, with its copies against it."
        )
    if captions == split.captions:
        return True, "" if is_claimed else f"These are {split.title}."
    if captions == split.five_each:
        return True, f"These are {split.title} with five captions of each picture: {captions:,} of {split.captions:,}."
    why = "some pictures have fewer" if captions < split.captions else "some pictures have more"
    return False, (
        f"The pictures are those of {split.title}, but there are {captions:,} captions instead of {split.captions:,}: "
        f"{why}."
    )


def _meant(claim: KnownSplit, asked: KnownSplit | None) -> str:
    """How a sentence about it begins: the data set says so itself, or somebody asked for it."""
    return f"This was to be {claim.title}" if asked else f"The data set calls itself {claim.title}"


def _difference_told(claim: KnownSplit, meant: str, records: Sequence[ImageText], identities: set[str] | None) -> str:
    """In what a set differs from the benchmark that it was meant to be."""
    if identities is None:
        pictures, captions = len(records), _caption_count(records)
        return (
            f"{meant}, but its pictures' names do not tell which they are. It holds {pictures:,} "
            f"pictures with {captions:,} captions; the split has {claim.pictures:,} with {claim.captions:,}."
        )
    if len(identities) == claim.pictures:
        return f"{meant} and has {claim.pictures:,} pictures, but not those."
    return f"{meant}, but holds {len(identities):,} pictures instead of {claim.pictures:,}."


def _recognised(identities: set[str] | None) -> KnownSplit | None:
    candidates = [split for split in KNOWN_SPLITS if identities and split.pictures == len(identities)]
    if identities is None or not candidates:
        return None
    sha256 = hashlib.sha256("\n".join(sorted(identities)).encode()).hexdigest()
    return next((split for split in candidates if split.sha256 == sha256), None)


def _identities(records: Sequence[ImageText]) -> set[str] | None:
    """What survives other folders and other names of each picture: its number at COCO or Flickr. None where one has
    none, or there are too many records for any known split."""
    if len(records) > MOST_RECORDS:
        return None
    identities = set()
    for image in _images(records):
        number = NUMBERED.fullmatch(_own_name(image))
        if number is None:
            return None
        identities.add(number[1])
    return identities


def _own_name(image: str) -> str:
    return file_name(image) if "?" in image else image.replace("\\", "/").rpartition("/")[2]


def _images(records: Sequence[ImageText]) -> Iterator[str]:
    return records.images() if isinstance(records, Records) else (record.image for record in records)


def in_order(split: KnownSplit, records: Sequence[ImageText]) -> bool:
    """Whether the records of a known split stand in its own order, as far as that is known."""
    numbers = [NUMBERED.fullmatch(_own_name(image)) for image in _images(records)]
    written = "\n".join(number[1] for number in numbers if number)
    return not split.order or hashlib.sha256(written.encode()).hexdigest() == split.order


def _caption_count(records: Sequence[ImageText]) -> int:
    if isinstance(records, Records):
        return int(records.caption_counts().sum())
    return sum(len(record.captions) for record in records)


def _family(path: str, records: Sequence[ImageText]) -> str:
    """coco, flickr30k, flickr8k, or nothing."""
    parts = Path(path).parts[-LAST_PARTS:]
    for part in reversed(parts):  # the file's own name says more than its folders'
        for family, written in FAMILY_NAMES.items():
            if written.search(part.lower()):
                return family
    if family := _karpathys_key(Path(path)):
        return family
    first = next(_images(records), "")
    return "coco" if COCO_NAMED.match(_own_name(first)) else ""


def _karpathys_key(file: Path) -> str:
    """What a Karpathy JSON says that it is, which stands at one of its ends; nothing for any other file."""
    if file.suffix != ".json" or not file.is_file():
        return ""
    try:
        with open(file, "rb") as stream:
            ends = stream.read(200)
            stream.seek(max(0, file.stat().st_size - 200))
            ends += b"\n" + stream.read(200)
    except OSError:
        return ""
    key = KARPATHYS_KEY.search(ends)
    return key[1].decode() if key else ""
