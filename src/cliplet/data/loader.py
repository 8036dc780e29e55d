"""Records to training batches: seeded order, augmented views, K captions a picture, in threads.

The order of an epoch is a function of (seed, epoch), and everything random about a batch one of (seed, epoch, step).
So the loader has no state to save: a run resumed at step n of an epoch sees exactly what
the uninterrupted run saw, whatever the number of threads. Threads do, where processes are usual: decoding and
resizing release the interpreter's lock, and nothing is pickled, copied or left behind by a kill.

Features of frozen towers take the place of pixels or tokens where an epoch is given them; which pictures and captions
stand where is the same with and without. With a store of teachers' features, views are those that the store has of
each picture, and the teachers' features of them come with the batch; for teachers that run in every step, the views
come at their sizes too.

Shapes: B pictures of a batch, C their captions, K captions drawn for each, S image_size.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter

import numpy as np
import torch

from cliplet.config import AugmentConfig, DataConfig
from cliplet.data.batch import Batch, as_tensor, drawn_without_repeat
from cliplet.data.buffers import Buffers
from cliplet.data.feature_store import FeatureStore
from cliplet.data.images import MAX_BYTES, decode
from cliplet.data.places import read_bytes
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText, Records
from cliplet.data.teacher_store import StoredTargets
from cliplet.data.tokens import TokenizedCaptions
from cliplet.data.transforms import COLOURS_A_VIEW, DRAWS_A_VIEW, View, apply_view, draw_view
from cliplet.errors import DataError, ImageError
from cliplet.runtime.tokenizer import Tokenizer

BATCHES_AHEAD = 3  # at most
PICTURES_AHEAD = 512  # beyond so many, one batch ahead is enough: 512 pictures of 224 pixels take 77 MB
PICTURES_A_TASK = 8
SUBSTITUTES_TRIED = 20
TRAIN_SIDES = 1.5  # times the pixels needed to which a JPEG is decoded at least, so that small crops stay sharp
Features = tuple[tuple[torch.Tensor, torch.Tensor], ...]  # of each teacher, (B, T) and (C, T)
WHOLE = View(0.0, 0.0, 1.0, 1.0, flip=False)


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
        augmented_size: int | None = None,
        data: DataConfig,
        augment: AugmentConfig,
        seed: int,
        quarantine: Quarantine,
        rank: int = 0,
        ranks: int = 1,
    ):
        """`batch_size` is of all ranks together; augmented views are of `augmented_size`, if it is given. Raises
        DataError where a batch cannot be shared out evenly, and for fewer than two pictures."""
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
        self._caption_counts = self.records.caption_counts()
        self._first_caption = np.cumsum(self._caption_counts) - self._caption_counts
        self.image_size, self.augmented_size = image_size, augmented_size or image_size
        self.captions_per_image = data.captions_per_image
        self.augment = augment
        self.seed = seed
        self.quarantine = quarantine
        self.rank, self.ranks = rank, ranks
        self.workers = data.workers or default_workers()
        self.times = StageTimes()
        self._buffers: dict[int, Buffers] = {}  # by side length

    def __len__(self) -> int:
        """Steps an epoch; pictures beyond the last whole batch sit out, others each epoch."""
        return len(self.records) // self.batch_size

    def epoch(
        self,
        epoch: int,
        start: int = 0,
        *,
        augmented: bool = True,
        image_features: FeatureStore | None = None,
        text_features: FeatureStore | None = None,
        targets: StoredTargets | None = None,
        teacher_sizes: Sequence[int] = (),
    ) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on.

        Not `augmented`, pictures are whole and unflipped. Features of the records' pictures, or of all their captions,
        stand in the batches instead of pixels or tokens; with the former no picture is read for the student.
        `targets` are teachers' features of the records, whose views are shown; `teacher_sizes` are side lengths at
        which views are wanted for teachers. Raises DataError for a picture that is not the one `targets` are of.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        ahead = max(1, min(BATCHES_AHEAD, PICTURES_AHEAD * self.ranks // self.batch_size))
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        own = self.augmented_size if augmented else self.image_size
        sizes = tuple(sorted({*(() if image_features is not None else (own,)), *teacher_sizes}))
        work = _Work(
            epoch, order, augmented, image_features, text_features, targets, own, tuple(teacher_sizes), sizes, pool
        )
        try:
            steps = iter(range(start, len(self)))
            begun = deque(self._begin(work, step) for step in islice(steps, ahead))
            while begun:
                batch = self._finish(work, begun.popleft())
                begun.extend(self._begin(work, step) for step in islice(steps, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, work: _Work, step: int) -> _Unfinished:
        """Sets the threads to work on this rank's part of a batch."""
        whole = work.order[step * self.batch_size : (step + 1) * self.batch_size]
        rows_B = whole[self.rank :: self.ranks].copy()
        # All at once: one generator a picture would take longer than the view it draws.
        random = np.random.default_rng((self.seed, work.epoch, step))
        draws = random.random((len(whole), DRAWS_A_VIEW + self.captions_per_image))[self.rank :: self.ranks]
        # Drawn last, so that runs without colours are what they were before there were any.
        colours = random.random((len(whole), COLOURS_A_VIEW))[self.rank :: self.ranks]
        view_draws = draws[:, :DRAWS_A_VIEW]
        batch = _Unfinished(step, whole, rows_B, view_draws.tolist(), colours.tolist(), draws[:, DRAWS_A_VIEW:])
        if work.targets is not None:
            batch.numbers_B = work.targets.numbers(view_draws[:, 0], work.augmented)
        for size in work.sizes:
            batch.pixels[size] = self._buffer(size).take()
        if work.sizes:
            for at in range(0, len(rows_B), PICTURES_A_TASK):
                places = range(at, min(at + PICTURES_A_TASK, len(rows_B)))
                batch.tasks.append(work.pool.submit(self._samples, work, batch, places))
        if work.targets is not None:  # read by the threads too: a store may lie on a slow disk
            _, caption_rows_C = self._captions(rows_B, batch.caption_draws_BK)
            batch.taught = work.pool.submit(_taught, work.targets, batch.planned_B, batch.numbers_B, caption_rows_C)
        return batch

    def _buffer(self, size: int) -> Buffers:
        return self._buffers.setdefault(size, Buffers((self.batch_size // self.ranks, size, size, 3)))

    def _samples(self, work: _Work, batch: _Unfinished, places: range) -> list[bool]:
        return [self._sample(work, batch, at, int(batch.rows_B[at])) for at in places]

    def _sample(self, work: _Work, batch: _Unfinished, at: int, row: int) -> bool:
        """Whether a picture is good; its view is written to its place in the batch."""
        image = self.records.image(row)
        if image in self.quarantine:
            return False
        if work.targets is not None and row in work.targets.reasons:
            return False
        if work.image_features is not None and not work.image_features.good_N[row]:
            return False
        if not batch.pixels:
            return True
        began = perf_counter()
        try:
            data = read_bytes(image, MAX_BYTES)
            read = perf_counter()
            pictures = {size: decode(data, int(size * TRAIN_SIDES), image) for size in batch.pixels}
        except ImageError as error:
            self.quarantine.add(image, error.message)
            return False
        decoded = perf_counter()
        if work.targets is not None:
            work.targets.check(row, data)
        view = self._view(work, batch, at, row)
        for size, picture in pictures.items():
            batch.pixels[size][at].copy_(apply_view(picture.array(), view, size))
        self.times.add(picture.width, picture.height, read - began, decoded - read, perf_counter() - decoded)
        return True

    def _view(self, work: _Work, batch: _Unfinished, at: int, row: int) -> View:
        """How a picture is shown in a batch."""
        if work.targets is not None:
            return View.of(work.targets.view(row, int(batch.numbers_B[at])).tolist())
        return draw_view(self.augment, batch.view_draws[at], batch.colour_draws[at]) if work.augmented else WHOLE

    def _good(self, work: _Work, batch: _Unfinished) -> np.ndarray:
        """(B,) which of the batch's pictures can be used."""
        if work.sizes:
            return np.array([good for task in batch.tasks for good in task.result()])
        assert work.image_features is not None  # else there were pictures to read
        good_B = work.image_features.good_N[batch.rows_B]
        if self.quarantine or work.targets is not None:
            good_B &= [self._sample(work, batch, at, row) for at, row in enumerate(batch.rows_B.tolist())]
        return good_B

    def _finish(self, work: _Work, batch: _Unfinished) -> Batch:
        """The batch, others in the places of bad pictures."""
        good_B = self._good(work, batch)
        if not good_B.all():
            self._substitute(work, batch, good_B)
        if good_B.sum() < 2 and not good_B.all():
            raise DataError(
                f"of {len(good_B)} pictures not two could be read: {self.quarantine.summary()}",
                "cliplet inspect DATA says what is wrong with the pictures.",
            )
        rows_B, kept = batch.rows_B[good_B], torch.from_numpy(good_B)
        pixels = {
            size: (views if good_B.all() else views[kept]).permute(0, 3, 1, 2) for size, views in batch.pixels.items()
        }
        owners_C, caption_rows_C = self._captions(rows_B, batch.caption_draws_BK[good_B])
        teachers: Features = ()
        if batch.taught is not None:
            teachers = batch.taught.result()
            if work.targets is not None and not np.array_equal(rows_B, batch.planned_B):
                teachers = _taught(work.targets, rows_B, batch.numbers_B[good_B], caption_rows_C)
        ids, mask, text = self._texts(work.text_features, caption_rows_C)
        image = None if work.image_features is None else as_tensor(work.image_features.rows(rows_B))
        return Batch(
            pixels[work.own_size] if work.image_features is None else None,
            ids,
            mask,
            torch.from_numpy(owners_C),
            image,
            text,
            rows_B,
            caption_rows_C,
            {size: pixels[size] for size in work.teacher_sizes},
            teachers,
        )

    def _captions(self, rows_B: np.ndarray, draws_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which captions of some pictures are shown: each one's picture in the batch, and its row among all: (C,)."""
        chosen_C, owners_C = drawn_without_repeat(self._caption_counts[rows_B], draws_BK)
        return owners_C, self._first_caption[rows_B][owners_C] + chosen_C

    def _texts(self, features: FeatureStore | None, rows_C: np.ndarray) -> tuple[torch.Tensor | None, ...]:
        """Token ids, mask and features of captions, None for what is not needed."""
        if features is None:
            ids, mask = self.tokenizer.padded([self.tokens[row] for row in rows_C.tolist()])
            return torch.from_numpy(ids), torch.from_numpy(mask), None
        if not features.of_tokens:
            return None, None, as_tensor(features.rows(rows_C))
        states, mask = features.states(rows_C)
        return None, torch.from_numpy(mask), as_tensor(states)

    def _substitute(self, work: _Work, batch: _Unfinished, good_B: np.ndarray) -> None:
        """Puts good pictures of the source that are not in the batch in the places of bad ones, as far as there are.

        Which ones depends on seed, epoch and step, so that a resumed run takes the same; each rank has its own.
        """
        random = np.random.default_rng((self.seed, work.epoch, batch.step, len(self.records)))
        missing = int((~good_B).sum())
        count = min(len(self.records), len(batch.whole) + SUBSTITUTES_TRIED * self.ranks * missing)
        drawn = random.choice(len(self.records), count, replace=False)
        others = iter(drawn[~np.isin(drawn, batch.whole)][self.rank :: self.ranks].tolist())
        for at in np.flatnonzero(~good_B).tolist():
            found = next((row for row in others if self._sample(work, batch, at, row)), None)
            if found is not None:
                batch.rows_B[at], good_B[at] = found, True


def _taught(targets: StoredTargets, rows_B: np.ndarray, numbers_B: np.ndarray, caption_rows_C: np.ndarray) -> Features:
    """Each stored teacher's features of a batch's pictures and captions."""
    images, texts = targets.image_features(rows_B, numbers_B), targets.text_features(caption_rows_C)
    return tuple((torch.from_numpy(image), torch.from_numpy(text)) for image, text in zip(images, texts, strict=True))


@dataclass(frozen=True, slots=True)
class _Work:
    """An epoch under way."""

    epoch: int
    order: np.ndarray  # rows
    augmented: bool
    image_features: FeatureStore | None
    text_features: FeatureStore | None
    targets: StoredTargets | None
    own_size: int  # side length of the student's pictures
    teacher_sizes: tuple[int, ...]
    sizes: tuple[int, ...]  # side lengths at which pictures are wanted at all
    pool: ThreadPoolExecutor


@dataclass(slots=True)
class _Unfinished:
    """A batch that threads are working on."""

    step: int
    whole: np.ndarray  # rows of all ranks
    rows_B: np.ndarray  # of this rank
    view_draws: list[list[float]]  # what is random about each picture's view
    colour_draws: list[list[float]]  # about its colours
    caption_draws_BK: np.ndarray  # and about its captions
    numbers_B: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # of stored views
    pixels: dict[int, torch.Tensor] = field(default_factory=dict)  # by side length, (B, S, S, 3) uint8, being filled
    tasks: list[Future[list[bool]]] = field(default_factory=list)
    taught: Future[Features] | None = None  # of stored teachers, for the pictures that were planned
    planned_B: np.ndarray = field(init=False)  # rows_B before others took the places of bad pictures

    def __post_init__(self) -> None:
        self.planned_B = self.rows_B.copy()


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
