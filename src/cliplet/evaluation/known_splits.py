"""The test splits that published numbers are of, known by their pictures: whether a data set is what it calls itself.

Recalls depend on the split as much as on the model: COCO val2017 has 5,000 pictures as Karpathy's test has, but others.
Of each split there stand counts and a checksum here, and no picture's name.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    order: str = ""
    """The same of the identities in the benchmark's own order, where folds of it are reported."""

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
        # kelvinxu/arctic-captions, splits/coco_test.txt
        order="da31c1695cfabac7c9ac0176297f05c887cbbccc74d2a241017ece58a0ad2989",
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
