"""Records to training batches: seeded order, augmented views, K captions a picture, in threads.

The order of an epoch is a function of (seed, epoch), and everything random about a batch one of (seed, epoch, step).
So the loader has no state to save: a run resumed at step n of an epoch sees exactly what
the uninterrupted run saw, whatever the number of threads. Threads do, where processes are usual: decoding and
resizing release the interpreter's lock, and nothing is pickled, copied or left behind by a kill.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import numpy as np
import torch

from cliplet.config import AugmentConfig, DataConfig
from cliplet.data.images import MAX_BYTES, decode
from cliplet.data.places import read_bytes
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText, Records
from cliplet.data.tokens import TokenizedCaptions
from cliplet.data.transforms import DRAWS_A_VIEW, apply_view, draw_view
from cliplet.errors import DataError, ImageError
from cliplet.runtime.tokenizer import Tokenizer

BATCHES_AHEAD = 3
PICTURES_A_TASK = 8
SUBSTITUTES_TRIED = 20
TRAIN_SIDES = 1.5  # times the pixels needed to which a JPEG is decoded at least, so that small crops stay sharp


@dataclass(frozen=True)
class Batch:
    """B pictures and their C captions. The captions of a picture stand together, in the pictures' order."""

    pixels_B3HW: torch.Tensor  # uint8, channels last in memory
    input_ids_CL: torch.Tensor  # int64, padded to the longest of the batch
    attention_mask_CL: torch.Tensor  # int64, 1 at real tokens
    caption_image_C: torch.Tensor  # int64, the row of pixels that each caption belongs to

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the copy does not block where memory is pinned."""
        pin = device.type == "cuda"
        move = lambda tensor: (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)  # noqa: E731
        return Batch(
            *(move(t) for t in (self.pixels_B3HW, self.input_ids_CL, self.attention_mask_CL, self.caption_image_C))
        )


class TrainLoader:
    """Batches of an epoch, made ahead by threads, in an order that depends on seed and epoch alone.

    With `ranks`, each batch is shared out: rank r of them makes the pictures r, r + ranks, ... of every batch, so
    that together they see what one alone would. A picture that cannot be read goes into the quarantine with the
    reason, and another of the same epoch takes its place: no run stops, no row shifts, and every rank makes the same
    number of steps.
    """

    def __init__(
        self,
        records: Sequence[ImageText],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size: int,
        data: DataConfig,
        augment: AugmentConfig,
        seed: int,
        quarantine: Quarantine,
        rank: int = 0,
        ranks: int = 1,
    ):
        """`batch_size` is of all ranks together. Raises DataError where it cannot be shared out evenly, and for fewer
        than two pictures."""
        self.records = records if isinstance(records, Records) else Records.of(records)
        if len(records) < 2:
            raise DataError(
                "training needs at least two pictures", "Contrastive learning compares pictures in a batch."
            )
        self.batch_size = min(batch_size, len(records))
        if ranks > 1:
            self.batch_size -= self.batch_size % ranks
            if batch_size % ranks or not self.batch_size:
                raise DataError(f"a batch of {batch_size} of {len(records)} pictures cannot be shared by {ranks} ranks")
        self.tokenizer = tokenizer
        self.tokens = TokenizedCaptions(self.records.captions(), tokenizer)
        self._first_caption = np.concatenate([[0], np.cumsum(self.records.caption_counts())]).tolist()
        self.image_size = image_size
        self.captions_per_image = data.captions_per_image
        self.augment = augment
        self.seed = seed
        self.quarantine = quarantine
        self.rank, self.ranks = rank, ranks
        self.workers = data.workers or default_workers()
        self.times = StageTimes()
        self._buffers = Buffers((self.batch_size // ranks, image_size, image_size, 3))

    def __len__(self) -> int:
        """Steps an epoch; pictures beyond the last whole batch sit out, others each epoch."""
        return len(self.records) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            steps = iter(range(start, len(self)))
            begin = lambda step: self._begin(pool, epoch, step, order)  # noqa: E731
            ahead = deque(begin(step) for step in islice(steps, BATCHES_AHEAD))
            while ahead:
                batch = self._finish(ahead.popleft())
                ahead.extend(begin(step) for step in islice(steps, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, epoch: int, step: int, order: np.ndarray) -> Unfinished:
        """Sets the threads to work on this rank's part of a batch."""
        whole = order[step * self.batch_size : (step + 1) * self.batch_size]
        rows = whole[self.rank :: self.ranks].tolist()
        # All at once: one generator a picture would take longer than the view it draws.
        draws = (
            np.random.default_rng((self.seed, epoch, step))
            .random((len(whole), DRAWS_A_VIEW + self.captions_per_image))[self.rank :: self.ranks]
            .tolist()
        )
        pixels = self._buffers.take()
        parts = [slice(at, at + PICTURES_A_TASK) for at in range(0, len(rows), PICTURES_A_TASK)]
        tasks = [pool.submit(self._samples, rows[part], draws[part], pixels[part]) for part in parts]
        return Unfinished(epoch, step, whole, draws, pixels, tasks)

    def _samples(self, rows: list[int], draws: list[list[float]], pixels: torch.Tensor) -> list[list[int] | None]:
        return [self._sample(*one) for one in zip(rows, draws, pixels, strict=True)]

    def _sample(self, row: int, draws: list[float], out_HW3: torch.Tensor) -> list[int] | None:
        """Writes one picture's view and gives the rows of its captions drawn; None where the picture is bad."""
        image = self.records.image(row)
        if image in self.quarantine:
            return None
        began = perf_counter()
        try:
            data = read_bytes(image, MAX_BYTES)
            read = perf_counter()
            picture = decode(data, int(self.image_size * TRAIN_SIDES), image)
        except ImageError as error:
            self.quarantine.add(image, error.message)
            return None
        decoded = perf_counter()
        view = draw_view(self.augment, draws[:DRAWS_A_VIEW])
        out_HW3.copy_(apply_view(picture.array(), view, self.image_size))
        self.times.add(picture.width, picture.height, read - began, decoded - read, perf_counter() - decoded)
        captions = range(self._first_caption[row], self._first_caption[row + 1])
        return drawn_without_repeat(captions, draws[DRAWS_A_VIEW:])

    def _finish(self, batch: Unfinished) -> Batch:
        """The batch, others in the places of bad pictures."""
        captions = [sample for task in batch.tasks for sample in task.result()]
        if any(sample is None for sample in captions):
            self._substitute(batch, captions)
        good = [at for at, sample in enumerate(captions) if sample is not None]
        if len(good) < 2 and len(good) < len(captions):
            raise DataError(
                f"of {len(captions)} pictures not two could be read: {self.quarantine.summary()}",
                "cliplet inspect DATA says what is wrong with the pictures.",
            )
        pixels = batch.pixels if len(good) == len(captions) else batch.pixels[good]
        drawn = [sample for sample in captions if sample is not None]
        ids, mask = self.tokenizer.padded([self.tokens[row] for sample in drawn for row in sample])
        owners = np.repeat(np.arange(len(drawn)), [len(sample) for sample in drawn])
        return Batch(
            pixels.permute(0, 3, 1, 2), torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(owners)
        )

    def _substitute(self, batch: Unfinished, captions: list[list[int] | None]) -> None:
        """Puts good pictures of the source that are not in the batch in the places of bad ones, as far as there are.

        Which ones depends on seed, epoch and step, so that a resumed run takes the same; each rank has its own.
        """
        random = np.random.default_rng((self.seed, batch.epoch, batch.step, len(self.records)))
        missing = sum(sample is None for sample in captions)
        count = min(len(self.records), len(batch.whole) + SUBSTITUTES_TRIED * self.ranks * missing)
        drawn = random.choice(len(self.records), count, replace=False)
        others = iter(drawn[~np.isin(drawn, batch.whole)][self.rank :: self.ranks].tolist())
        for at, sample in enumerate(captions):
            if sample is None:
                tried = (self._sample(row, batch.draws[at], batch.pixels[at]) for row in others)
                captions[at] = next((found for found in tried if found is not None), None)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A batch that threads are working on."""

    epoch: int
    step: int
    whole: np.ndarray  # rows of all ranks
    draws: list[list[float]]  # what is random about each picture of this rank
    pixels: torch.Tensor  # (B, S, S, 3) uint8, being filled
    tasks: list[Future[list[list[int] | None]]]


class Buffers:
    """Memory for batches, which is used again when nobody holds the batch any more.

    The system clears fresh memory page by page when it is first written to, which takes a quarter of the time of the
    resampling that fills it.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._free: list[np.ndarray] = []

    def take(self) -> torch.Tensor:
        """A tensor of bytes, its values whatever they were."""
        buffer = self._free.pop() if self._free else np.empty(self._shape, np.uint8)
        lent = buffer[:]  # lives as long as any tensor on this memory
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent)


def drawn_without_repeat(items: range, draws: Sequence[float]) -> list[int]:
    """As many of the items as there are draws, uniform in [0, 1), or all of them if they are fewer; in random order."""
    left = list(items)
    return [left.pop(int(draw * len(left))) for draw in draws[: len(left)]]


class StageTimes:
    """Seconds that threads spent in each stage of a picture's way, how many pictures went it, and their sizes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pictures = 0
        self.seconds = {"disk": 0.0, "decode": 0.0, "transform": 0.0}
        self._width = self._height = 0

    def add(self, width: int, height: int, disk: float, decode: float, transform: float) -> None:
        """One picture's size in pixels, and its seconds."""
        with self._lock:
            self.pictures += 1
            self._width += width
            self._height += height
            self.seconds["disk"] += disk
            self.seconds["decode"] += decode
            self.seconds["transform"] += transform

    def mean_size(self) -> tuple[float, float]:
        """Mean width and height of the pictures, in pixels."""
        count = max(1, self.pictures)
        return self._width / count, self._height / count


def default_workers() -> int:
    """Decoding threads: half the processor's cores, for the other half computes; at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2))
