"""The test splits that published numbers are of, known by their pictures: whether a data set is what it calls itself.

Recalls depend on the split as much as on the model: COCO val2017 has 5,000 pictures as Karpathy's test has, but others.
Of each split there stand counts and a checksum here, and no picture's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliplet.data.places import file_name
from cliplet.data.records import USUAL_SPLITS, ImageText, Records
from cliplet.errors import ConfigError, nearest

# COCO_val2014_000000391895.jpg, 000000391895.jpg, 391895.jpg; 1000092795.jpg; 1056338697_4f7d7ce270.jpg
NUMBERED = re.compile(r"(?:COCO_[a-z]+20\d\d_)?0*(\d{1,12})(?:_[0-9a-f]{10})?(?:\.\w+)?")
COCO_NAMED = re.compile(r"COCO_(?:train|val)2014_\d{12}\.")
KARPATHYS_KEY = re.compile(rb'"dataset"\s*:\s*"(coco|flickr30k|flickr8k)"')
LAST_PARTS = 3  # of a path, in which a data set's name is looked for
NEAR = 0.05  # a set whose count of pictures differs by no more may be meant to be the benchmark
MOST_RECORDS = 200_000  # no known split is that large, not even with a record for each caption


@dataclass(frozen=True)
class KnownSplit:
    """A split by its counts and its pictures."""

    name: str
    """For people and options: coco-5k."""
    title: str
    """For sentences: COCO 5k (Karpathy's test)."""
    family: str
    """The data set that it is of: coco, flickr30k, flickr8k."""
    benchmark: bool
    """Whether published numbers are of it; the others are what people take for it."""
    pictures: int
    captions: int
    sha256: str
    """Of the pictures' identities, as text in the order of text, joined by newlines."""
    source: str
    """Where the facts are from."""

    @property
    def five_each(self) -> int:
        """Captions where only the first five of each picture are taken."""
        return 5 * self.pictures


KNOWN_SPLITS: tuple[KnownSplit, ...] = (
    KnownSplit(
        name="coco-5k",
        title="COCO 5k (Karpathy's test)",
        family="coco",
        benchmark=True,
        pictures=5_000,
        captions=25_010,
        sha256="b4f15b295a1855a8ae04635e2754c2dec5644ae7b047a9b377edd5defd876a98",
        source="peteanderson80/bottom-up-attention, data/genome/coco_splits/karpathy_test_images.txt",
    ),
    KnownSplit(
        name="flickr30k-1k",
        title="Flickr30k 1k (Karpathy's test)",
        family="flickr30k",
        benchmark=True,
        pictures=1_000,
        captions=5_000,
        sha256="3561ef20c1ce29ad8138e655ad5a6239d8c6bf191c41b495786d9b3a46d895aa",
        source="Karpathy's dataset_flickr30k.json",
    ),
    KnownSplit(
        name="flickr8k-1k",
        title="Flickr8k 1k (its test)",
        family="flickr8k",
        benchmark=True,
        pictures=1_000,
        captions=5_000,
        sha256="52e432a30eece23121ebed0943f14944553da10b9a25a646f5e1c3130ee36788",
        source="Flickr_8k.testImages.txt",
    ),
    KnownSplit(
        name="coco-val2017",
        title="COCO val2017",
        family="coco",
        benchmark=False,
        pictures=5_000,
        captions=25_014,
        sha256="e920c94fbab89c0f03582f6ef8cdc66092097d5ad1b1d240d1f8cb5ccdc1d85d",
        source="captions_val2017.json",
    ),
    KnownSplit(
        name="coco-karpathy-val",
        title="COCO's validation pictures (Karpathy's)",
        family="coco",
        benchmark=False,
        pictures=5_000,
        captions=25_010,
        sha256="88757cdec7ea375cad04d6eb8e01407a227f802a1fb64399114d82d896e3fe95",
        source="kelvinxu/arctic-captions, splits/coco_val.txt",
    ),
    KnownSplit(
        name="flickr30k-train",
        title="Flickr30k's training pictures",
        family="flickr30k",
        benchmark=False,
        pictures=29_000,
        captions=145_000,
        sha256="2d29c870f080e38b100cbb3d54e377ffafc1466d72e2ba7d5799bbc7e400de37",
        source="Karpathy's dataset_flickr30k.json",
    ),
    KnownSplit(
        name="flickr30k-val",
        title="Flickr30k's validation pictures",
        family="flickr30k",
        benchmark=False,
        pictures=1_014,
        captions=5_070,
        sha256="9e4ef6fbb2b9f25bb881c652489a3e206df05780d7a963541e38410f304b023b",
        source="Karpathy's dataset_flickr30k.json",
    ),
    KnownSplit(
        name="flickr8k-train",
        title="Flickr8k's training pictures",
        family="flickr8k",
        benchmark=False,
        pictures=6_000,
        captions=30_000,
        sha256="ba08d7faf7c96251210ac1124def86aecde74790d51c3b18ba8ff6ad7bf7e2bf",
        source="Flickr_8k.trainImages.txt, Karpathy's dataset_flickr8k.json",
    ),
    KnownSplit(
        name="flickr8k-val",
        title="Flickr8k's validation pictures",
        family="flickr8k",
        benchmark=False,
        pictures=1_000,
        captions=5_000,
        sha256="3be0134fc8052ccaddc97cb76c1b632edbd683a7cf5680081b21986bdf480188",
        source="Flickr_8k.devImages.txt, Karpathy's dataset_flickr8k.json",
    ),
)
BENCHMARKS = {split.family: split for split in KNOWN_SPLITS if split.benchmark}
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
        is_it, note = _captions_told(found, _caption_count(records), bool(claim))
        return SplitCheck(name, said, is_it, note)
    if found:
        meant = claim or BENCHMARKS[found.family]
        note = f"These are {found.title}, not {meant.title}."
        if claim and claim.pictures == found.pictures:
            note = f"{_calls_itself(claim)} and has {found.pictures:,} pictures, but not those: they are {found.title}."
        return SplitCheck(name, said, False, note)
    return SplitCheck("", said, False, _difference_told(claim, records, identities) if claim else "")


def _captions_told(split: KnownSplit, captions: int, is_claimed: bool) -> tuple[bool, str]:
    """Whether captions are as they should be, and what there is to say, where the pictures are right."""
    if captions == split.captions:
        return True, "" if is_claimed else f"These are {split.title}."
    if captions == split.five_each:
        return True, f"These are {split.title} with five captions of each picture: {captions:,} of {split.captions:,}."
    why = "some pictures have fewer" if captions < split.captions else "some pictures have more"
    return False, (
        f"The pictures are those of {split.title}, but there are {captions:,} captions instead of {split.captions:,}: "
        f"{why}."
    )


def _difference_told(claim: KnownSplit, records: Sequence[ImageText], identities: set[str] | None) -> str:
    """In what a set differs from the benchmark that it calls itself."""
    if identities is None:
        pictures, captions = len(records), _caption_count(records)
        return (
            f"{_calls_itself(claim)}, but its pictures' names do not tell which they are. It holds {pictures:,} "
            f"pictures with {captions:,} captions; the split has {claim.pictures:,} with {claim.captions:,}."
        )
    if len(identities) == claim.pictures:
        return f"{_calls_itself(claim)} and has {claim.pictures:,} pictures, but not those."
    return f"{_calls_itself(claim)}, but holds {len(identities):,} pictures instead of {claim.pictures:,}."


def _calls_itself(claim: KnownSplit) -> str:
    return f"The data set calls itself {claim.title}"


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
