"""A data set into a store of teachers' embeddings: views of each picture drawn and kept, the teachers run on each of
them and on every caption, shard by shard.

Views depend on the seed and on a picture's place in the split alone. So a store that was interrupted, or made by
several ranks, is the one that a single run would have made.

Shapes: P pictures and C captions of a shard, A views of a picture, S image_size of a teacher, T its width.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cliplet.console import Tell
from cliplet.data import pack_plan
from cliplet.data.images import MAX_BYTES, decode
from cliplet.data.loader import TRAIN_SIDES, WHOLE, default_workers
from cliplet.data.places import read_bytes
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import ImageTextSource, Records
from cliplet.data.shards import MANIFEST, QUARANTINE, in_order, threads
from cliplet.data.teacher_shards import read_index
from cliplet.data.teacher_store import (
    PictureLine,
    StoreManifest,
    StoreSettings,
    distinct_captions,
    finish,
    is_done,
    names_with,
    picture_names,
    remove_damaged,
    shard_pictures,
    write_shard,
)
from cliplet.data.transforms import COLOURS_A_VIEW, DRAWS_A_VIEW, VIEW_NUMBERS, View, apply_view, draw_view, stored
from cliplet.errors import DataError, ImageError, TrainingError
from cliplet.training import store_checks
from cliplet.training.distributed import joined, place_of_rank
from cliplet.training.features import augments
from cliplet.training.optim import choose_device, choose_precision
from cliplet.training.teachers import Teacher, identity, open_teacher
from cliplet.training.tower_features import PICTURES_AT_ONCE

RANK_TIMEOUT = 6 * 3600.0  # seconds that ranks wait for each other: at the end, as long as a shard takes

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What a store holds, and what this call did for it."""

    manifest: StoreManifest
    computed: int  # pictures that this rank tried; 0 where all was done before
    seconds: float
    quarantine: Quarantine | None  # None where nothing was to do, and on all ranks but the first
    bytes: int  # of all shards
    rank: int = 0


# One picture


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture as the teachers are to see it, or why they cannot."""

    line: PictureLine
    views_AN: np.ndarray  # numbers of the views; zeros of one that cannot be read
    squares: dict[int, np.ndarray]  # (A, S, S, 3) uint8 by S; empty for one that cannot be read


def drawn_views(settings: StoreSettings, row: int) -> list[View]:
    """The A views of the picture at a row of the split, as a store can replay them; the whole picture last."""
    draws = np.random.default_rng((settings.seed, row)).random((settings.augmentations, DRAWS_A_VIEW + COLOURS_A_VIEW))
    views = [draw_view(settings.augment, one[:DRAWS_A_VIEW], one[DRAWS_A_VIEW:]) for one in draws.tolist()]
    return [*map(stored, views), *([WHOLE] * settings.whole)]


def _shown(settings: StoreSettings, sizes: Sequence[int], item: tuple[int, str, str, tuple[str, ...]]) -> _Shown:
    """`item`: a picture's row, name and place, and its captions."""
    row, name, place, captions = item
    try:
        data = read_bytes(place, MAX_BYTES)
        views = drawn_views(settings, row)
        # As the loader does for teachers that run in every step.
        pictures = {size: decode(data, int(size * TRAIN_SIDES), place).array() for size in sizes}
    except ImageError as error:
        reason = error.message.removeprefix(f"{place}: ")
        return _Shown(PictureLine(name, 0, 0, captions, reason), np.zeros((settings.views, VIEW_NUMBERS)), {})
    squares = {
        size: np.stack([apply_view(pixels, view, size).numpy() for view in views]) for size, pixels in pictures.items()
    }
    line = PictureLine(name, len(data), zlib.crc32(data), captions)
    return _Shown(line, np.array([view.numbers() for view in views], dtype=np.float32), squares)


# One shard


def _write(
    out: Path, stem: str, pictures: Iterator[_Shown], count: int, teachers: Sequence[Teacher], settings: StoreSettings
) -> None:
    """Writes a shard of the next `count` pictures; threads work on those behind them meanwhile."""
    lines: list[PictureLine] = []
    views = np.zeros((count, settings.views, VIEW_NUMBERS), np.float32)
    images = [np.zeros((count, settings.views, teacher.info.embed_dim), np.float32) for teacher in teachers]
    for start in range(0, count, at_once := max(1, PICTURES_AT_ONCE // settings.views)):
        block = list(islice(pictures, min(at_once, count - start)))
        lines += [shown.line for shown in block]
        good = [at for at, shown in enumerate(block) if shown.squares]
        if not good:
            continue
        rows = start + np.array(good)
        views[rows] = [block[at].views_AN for at in good]
        for teacher, features in zip(teachers, images, strict=True):
            size = teacher.info.image_size
            pixels_BSS3 = np.concatenate([block[at].squares[size] for at in good])
            found_BT = teacher.image_features(torch.from_numpy(pixels_BSS3).permute(0, 3, 1, 2)).cpu().numpy()
            features[rows] = found_BT.reshape(len(good), settings.views, -1)
    captions = distinct_captions(line.captions for line in lines)
    texts = [teacher.text_features(captions).cpu().numpy() for teacher in teachers]
    write_shard(out, stem, lines, views, images, texts, settings.storage)


# All of them


def make_store(
    data: str,
    out: Path,
    teachers: Sequence[str],
    settings: StoreSettings,
    *,
    images: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    say: Say = lambda message: None,
    tell: Tell | None = None,
    command: str = "",
) -> StoreResult:
    """Stores what teachers make of a split's pictures and captions, or goes on with it. Of several ranks that a
    launcher started, each takes its share of the shards.

    `data`, `images`: as for `read_source`. `teachers`: as for `open_teacher`. `workers`: decoding threads of a rank.
    `tell` is called after each of this rank's pictures. `command` stands in the store, as what goes on with it.

    Raises ConfigError for settings that cannot be; DataError for data that cannot be read, for a folder that holds
    anything else or a store of other settings, teachers or data, and where it cannot be written; ModelError for a
    teacher; TrainingError for the device; Interrupted after Ctrl-C.
    """
    store_checks.check_settings(teachers, settings, workers)
    with pack_plan.explained(out, "storing"), joined(RANK_TIMEOUT) as ranks, ExitStack() as stack:
        place = _device(device)
        computes_in = choose_precision(precision, place)
        store_checks.check_folder(data, images, out)
        identities = [(*identity(source, fetch=True), computes_in) for source in teachers]
        store_checks.refuse_twice([name for name, _, _ in identities])
        earlier = StoreManifest.read(out) if (out / MANIFEST).is_file() else None
        if earlier:
            store_checks.refuse_other(
                out, earlier, settings, identities
            )  # before the data is read, which may take long
        source = read_source(data, images, settings.samples)
        records = source.select(settings.split)
        mark = pack_plan.fingerprint({settings.split: records})
        ranks.refuse_differences(data=mark, teachers=str(identities), settings=str(settings))
        if earlier:
            store_checks.refuse_other(out, earlier, settings, identities, mark)
            if earlier.complete:
                damaged = ranks.from_first(partial(remove_damaged, out, earlier))
                if not damaged:
                    size = sum(shard.bytes for shard in earlier.shards)
                    return StoreResult(earlier, 0, 0.0, None, size, ranks.rank)
                say(f"shards that are made again: {'; '.join(damaged)}")
                earlier = replace(earlier, complete=False, left_out=0, shards=())
        opened = [open_teacher(name, place, computes_in) for name in teachers]
        infos = tuple(teacher.info for teacher in opened)
        if earlier and earlier.teachers != infos:
            raise DataError(
                f"{out}: was begun with teachers that had other tokenizers, picture sizes or temperatures",
                "Name another folder.",
            )
        names, name_parts = picture_names(records)
        if earlier:
            names = names_with(records, earlier.name_parts)
        planned = -(-len(records) // shard_pictures(len(records)))
        manifest = earlier or StoreManifest(
            pack_plan.source_name(data), mark, settings, infos, planned, command, name_parts
        )
        if ranks.first:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(pack_plan.alone(out))
            manifest.write(out)
        missing = ranks.from_first(lambda: [at for at, stem in enumerate(manifest.stems) if not is_done(out, stem)])
        if earlier:
            say(f"{planned - len(missing):,} of {planned:,} shards are there already")
        if settings.views > 1 and not augments(settings.augment):
            say("the views of a picture are all alike, for nothing is augmented: --augmentations 1 would do")
        began = time.monotonic()
        tell = tell if ranks.first else None  # two bars would write over each other
        work = _Work(out, manifest, records, names, opened, workers or default_workers(), tell)
        computed = work.write(missing[ranks.rank :: ranks.size])
        ranks.barrier()
        quarantine = _quarantine(out, source, records, manifest) if ranks.first else None
        manifest = ranks.from_first(lambda: finish(out, manifest))
        size = sum(shard.bytes for shard in manifest.shards)
        return StoreResult(manifest, computed, time.monotonic() - began, quarantine, size, ranks.rank)


@dataclass(frozen=True)
class _Work:
    """What it takes to write shards."""

    out: Path
    manifest: StoreManifest
    records: Records
    names: list[str]
    teachers: list[Teacher]
    workers: int
    tell: Tell | None

    def write(self, numbers: Sequence[int]) -> int:
        """Writes the shards of these numbers one after the other; returns how many pictures were tried."""
        settings, a_shard = self.manifest.settings, shard_pictures(len(self.records))
        shards = [range(n * a_shard, min((n + 1) * a_shard, len(self.records))) for n in numbers]
        sizes = sorted({teacher.info.image_size for teacher in self.teachers})
        total = sum(map(len, shards))
        # Beside those that wait for a teacher, so many that threads work on while it computes.
        ahead = max(1, PICTURES_AT_ONCE // settings.views) + 4 * self.workers
        with threads(self.workers, "views") as pool:
            shown = in_order(pool, partial(_shown, settings, sizes), self._items(shards), ahead)
            pictures = self._told(shown, total)
            for number, rows in zip(numbers, shards, strict=True):
                _write(self.out, self.manifest.stems[number], pictures, len(rows), self.teachers, settings)
        return total

    def _items(self, shards: Iterable[range]) -> Iterator[tuple[int, str, str, tuple[str, ...]]]:
        for rows in shards:
            for row in rows:
                record = self.records[row]
                yield row, self.names[row], record.image, record.captions

    def _told(self, pictures: Iterator[_Shown], total: int) -> Iterator[_Shown]:
        for done, shown in enumerate(pictures, 1):
            if self.tell:
                self.tell(done, total)
            yield shown


def _quarantine(out: Path, source: ImageTextSource, records: Records, manifest: StoreManifest) -> Quarantine:
    """Writes down all that was bad: in the source, and by the indexes of the shards, whoever wrote these."""
    book = Quarantine(out / QUARANTINE)
    book.extend(source.problems)
    row = 0
    for stem in manifest.stems:
        for line in read_index(out / f"{stem}.jsonl"):
            if line.reason is not None:
                book.add(records.image(row), line.reason)
            row += 1
    return book


# Around it


def _device(name: str) -> torch.device:
    try:
        return choose_device(name, *place_of_rank())
    except TrainingError as error:
        raise TrainingError(error.message, error.hint.replace("--train.device", "--device")) from None
