"""Records to training batches: seeded order, augmented views, K captions a picture, in threads.

Everything random about a sample is a function of (seed, epoch, place in the source), and the order of an epoch is
one of (seed, epoch). So the loader has no state to save: a run resumed at step n of an epoch sees exactly what
the uninterrupted run saw, whatever the number of threads. Threads do, where processes are usual: decoding and
resizing release the interpreter's lock, and nothing is pickled, copied or left behind by a kill.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from cliplet.config import AugmentConfig, DataConfig
from cliplet.data.images import load_image
from cliplet.data.records import ImageText, Quarantine
from cliplet.data.transforms import apply_view, draw_view
from cliplet.errors import DataError, ImageError
from cliplet.runtime.tokenizer import Tokenizer

BATCHES_AHEAD = 3
SUBSTITUTES_TRIED = 20


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

    A picture that cannot be read goes into the quarantine with the reason, and another of the same epoch takes
    its place: no run stops and no row shifts for it.
    """

    def __init__(
        self,
        records: list[ImageText],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size: int,
        data: DataConfig,
        augment: AugmentConfig,
        seed: int,
        quarantine: Quarantine,
    ):
        if len(records) < 2:
            raise DataError(
                "training needs at least two pictures", "Contrastive learning compares pictures in a batch."
            )
        self.records = records
        self.tokenizer = tokenizer
        self.batch_size = min(batch_size, len(records))
        self.image_size = image_size
        self.captions_per_image = data.captions_per_image
        self.augment = augment
        self.seed = seed
        self.quarantine = quarantine
        self.workers = data.workers or default_workers()

    def __len__(self) -> int:
        """Steps an epoch; pictures beyond the last whole batch sit out, others each epoch."""
        return len(self.records) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")

        def submit(step: int) -> list[Future[Sample | None]]:
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            return [pool.submit(self._sample, epoch, int(row)) for row in rows]

        try:
            steps = iter(range(start, len(self)))
            ahead = deque(submit(step) for step in islice(steps, BATCHES_AHEAD))
            while ahead:
                samples = [future.result() for future in ahead.popleft()]
                ahead.extend(submit(step) for step in islice(steps, 1))
                yield self._batch(epoch, samples)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, epoch: int, row: int) -> Sample | None:
        """One picture's view and captions, or None where the picture is bad."""
        record = self.records[row]
        if record.image in self.quarantine:
            return None
        random = np.random.default_rng((self.seed, epoch, row))
        try:
            # Half as much again as the model needs keeps small crops sharp.
            image = load_image(record.image, smallest_side=self.image_size * 3 // 2)
        except ImageError as error:
            self.quarantine.add(record.image, error.message)
            return None
        pixels = apply_view(image, draw_view(image.width, image.height, self.augment, random), self.image_size)
        count = min(self.captions_per_image, len(record.captions))
        drawn = random.choice(len(record.captions), count, replace=False)
        return Sample(row, pixels, [record.captions[i] for i in drawn])

    def _batch(self, epoch: int, samples: list[Sample | None]) -> Batch:
        taken = [sample.row for sample in samples if sample]
        if len(taken) < len(samples):
            # Seeded by the batch itself, so that a resumed run takes the same substitutes.
            random = np.random.default_rng((self.seed, epoch, *taken))
            samples = [sample or self._substitute(epoch, random, taken) for sample in samples]
        good = [sample for sample in samples if sample]
        if len(good) < 2:
            raise DataError(
                f"of {len(samples)} pictures not two could be read: {self.quarantine.summary()}",
                "cliplet inspect DATA says what is wrong with the pictures.",
            )
        ids, mask = self.tokenizer([caption for sample in good for caption in sample.captions])
        owners = np.repeat(np.arange(len(good)), [len(sample.captions) for sample in good])
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in good]))
        return Batch(
            pixels.permute(0, 3, 1, 2), torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(owners)
        )

    def _substitute(self, epoch: int, random: np.random.Generator, taken: list[int]) -> Sample | None:
        """Another good picture of the source that is not in the batch yet; None if none is found."""
        # So many different rows that SUBSTITUTES_TRIED of them, or all that exist, are not in the batch yet.
        count = min(len(self.records), len(taken) + SUBSTITUTES_TRIED)
        for row in random.choice(len(self.records), count, replace=False):
            if int(row) not in taken:
                sample = self._sample(epoch, int(row))
                if sample:
                    taken.append(sample.row)
                    return sample
        return None


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture's part of a batch."""

    row: int  # its place in the source
    pixels: np.ndarray  # (S, S, 3) uint8
    captions: list[str]


def default_workers() -> int:
    """Decoding threads: half the processor's cores, for the other half computes; at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2))
