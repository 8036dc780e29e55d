"""What a teacher costs a run, how near stored features come to live ones, and how much room a store takes.

    python benchmarks/distillation.py step --data path/to/flickr8k     pictures/s without, from a store, with it live
    python benchmarks/distillation.py exact --data ...                 losses and gradients, stored beside live
    python benchmarks/distillation.py size --data ...                  bytes a picture

Teachers are model folders (`--teacher FOLDER`); by itself, the teacher has the shape of OpenCLIP's ViT-B/32 and random
weights: it takes the time of a real one, but finds pictures and captions more alike than that would; `exact` prints how
much. Stores are made as `cliplet distil-store` makes them, and students train by the parts that `cliplet train` puts
together, on pictures that are read from their files.

`step`: three students of the recipe tinyvit-minilm-convffn, in its last stage with batches of 64, train in turn, one
without a teacher, one from a store with two views a picture, one with the teacher in every step. All are in one process
and see the same pictures, in rounds of some seconds that begin with an epoch of their own, whose first steps are not
counted; the loader's time is in it. Ratios are those of neighbouring rounds. Beyond a few steps a second, name more
`--pictures`, for an epoch begins with a wait.

`exact`: batches whose views are those of the store bring both the stored features and the pictures for the live
teacher. The student, in fp32, is ViT-Tiny with MiniLM at its beginning, as wide as its teacher, with the recipe's loss
and the interactive term beside it; distil.affinity_scale is 10, or else that term would be the logit term. Relative
differences from the live teacher: of each term's value, and of the whole gradient (the length of the difference over
that of the gradient), also of the teachers' terms alone, where the contrastive term adds nothing. The worst of all
batches counts. `live, in halves` is the live teacher asked for one half of a batch and then for the other: by so much
its answers depend on what else it is asked.

`size`: stores of the first pictures of the data set, by teachers that are tiny but as wide as real ones.

Exit status 1 if a step of `step` takes more than 1.10 times as long from a store as without a teacher; if in `exact`
float16 differs by more than 1e-3 with a teacher in fp32, in a term or in the gradient of all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from distillation_parts import RECIPE, Round, Setup, Student, saved, small_student, taught_by, tiny, trained
from training_parts import configured, heading

from cliplet.config import LossConfig
from cliplet.data.batch import Batch
from cliplet.data.records import Records
from cliplet.data.teacher_shards import Storage
from cliplet.data.teacher_store import TeacherStore
from cliplet.training.objective import TAUGHT_TERMS, TERMS
from cliplet.training.teachers import LiveTeachers
from cliplet.training.teaching import Teaching, open_teaching

LONGER, EXACT = 1.10, 1e-3  # what is aimed at
AUGMENTATIONS = 2  # views of `step` and `exact`
STORAGES: tuple[Storage, ...] = ("float16", "int8")
AFFINITY_SCALE = 10.0
ALL, TAUGHT = "gradient", "gradient of the teachers' terms"
WIDTHS, VIEWS = (512, 768), (5, 10)


# Speed


def step(setup: Setup, batch: int, rounds: int, seconds: float) -> bool:
    """Trains with and without teachers and prints the table; whether a store costs no more than is aimed at."""
    heading(f"{RECIPE}, batch {batch}, {setup.precision}, {setup.about}")
    config, records = configured(RECIPE, batch), setup.records()
    teacher = setup.opened_teacher()
    store = setup.stored(teacher, setup.settings(config, AUGMENTATIONS, "float16"), setup.precision, "float16")
    configs = {
        "none": config,
        "stored": taught_by(config, store=str(store)),
        "live": taught_by(config, teachers=(teacher,)),
    }
    students = {}
    for name, one in configs.items():
        teaching = open_teaching(one, records, setup.device, print)
        students[name] = Student(one, records, setup, setup.precision, teaching, 1.0)
    found: dict[str, list[Round]] = {name: [] for name in students}
    names = list(students)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(trained(students[name], number, seconds))
    workers = students["none"].trainer.loader.workers
    print(
        f"\nMedians of {rounds} rounds of {seconds:g} s; {len(records):,} pictures; threads of the loader: {workers}."
    )
    print("Times are those of a picture, by the same round's without a teacher.\n")
    print("| teacher | pictures/s | from, to | time | from, to | waiting for data | steps | last loss |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, all_rounds in found.items():
        speeds, times = [one.pictures_per_second for one in all_rounds], ratios(all_rounds, found["none"])
        waiting = sum(one.waited for one in all_rounds) / sum(one.seconds for one in all_rounds)
        print(
            f"| {name} | {statistics.median(speeds):.1f} | {min(speeds):.1f}, {max(speeds):.1f} "
            f"| {statistics.median(times):.3f} | {min(times):.3f}, {max(times):.3f} | {waiting:.1%} "
            f"| {sum(one.pictures for one in all_rounds) // batch} | {all_rounds[-1].loss:.3f} |"
        )
    longer, live = (
        statistics.median(ratios(found[one], found[two])) for one, two in (("stored", "none"), ("live", "stored"))
    )
    print(f"\nStored beside none: {longer:.3f} times the time; aimed at: at most {LONGER:.2f}.")
    print(f"Live beside stored: {live:.3f} times.")
    return longer <= LONGER


def ratios(some: list[Round], others: list[Round]) -> list[float]:
    """Time a picture of each round by that of the others'."""
    return [b.pictures_per_second / a.pictures_per_second for a, b in zip(some, others, strict=True)]


# Exactness


@dataclass(frozen=True)
class Taught:
    """What a student makes of a lesson."""

    terms: dict[str, float]
    gradient: torch.Tensor  # of all that trains

    def differences(self, right: Taught) -> Iterator[tuple[str, float]]:
        """Of the terms and of the gradient, relative."""
        for name in self.terms:
            yield name, abs(self.terms[name] - right.terms[name]) / abs(right.terms[name])
        yield ALL, float((self.gradient - right.gradient).norm() / right.gradient.norm())


def exact(setup: Setup, batch: int) -> bool:
    """Prints how far stored features lead a student from where live ones do; whether float16 is as near as is aimed
    at."""
    heading(f"ViT-Tiny and MiniLM in fp32, the losses of {RECIPE}, batch {batch}, {setup.about}")
    records, teacher = setup.records(), setup.opened_teacher()
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        for (kind, name), difference in compared(setup, records, teacher, precision, batch):
            row = rows.setdefault((precision, kind), defaultdict(float))
            row[name] = max(row[name], difference)
    columns = [*(name for name in TAUGHT_TERMS), ALL, TAUGHT]
    print(f"\nRelative differences from the live teacher, the largest of {setup.pictures // batch} batches.\n")
    print(f"| teacher in | its features | {' | '.join(columns)} |\n|---|---|{'--:|' * len(columns)}")
    for (precision, kind), row in rows.items():
        print(f"| {precision} | {kind} | {' | '.join(f'{row[name]:.1e}' for name in columns)} |")
    row = rows["fp32", "float16"]
    worst = max(difference for name, difference in row.items() if name != TAUGHT)
    print(f"\nfloat16 with a teacher in fp32: {worst:.1e}; aimed at: at most {EXACT:.0e}.")
    return worst <= EXACT


def compared(
    setup: Setup, records: Records, teacher: str, precision: str, batch: int
) -> Iterator[tuple[tuple[str, str], float]]:
    """For each kind of features and each figure: by how much it differs, batch by batch."""
    live = LiveTeachers([teacher], records, setup.device, precision)
    config = small_student(live.infos[0].embed_dim, batch)
    # A teacher whose temperature depends on the batch has no scale of its own.
    scale = None if live.infos[0].logit_scale else 1 / 0.07
    config = taught_by(config, teachers=(teacher,), affinity_scale=AFFINITY_SCALE, teacher_scale=scale)
    student = Student(config, records, setup, "fp32", Teaching(live.infos, precision, live=live), 0.0)
    epochs = []
    for storage in STORAGES:
        store = setup.stored(
            teacher, setup.settings(config, AUGMENTATIONS, storage), precision, f"{storage}-{precision}"
        )
        targets = TeacherStore.open(store).aligned(records)
        epochs.append(student.trainer.loader.epoch(0, targets=targets, teacher_sizes=live.sizes))
    taught_alone = student.loss.model_copy(update=dict.fromkeys(TERMS, 0.0))
    for number, batches in enumerate(zip(*epochs, strict=True)):
        if not all(map(torch.equal, *(one.teacher_pixels.values() for one in batches))):
            raise SystemExit("the stores show different views")
        right = live.taught(batches[0])
        if not number:
            print(
                f"{precision}: mean cosines among the live teacher's pictures and captions {alike(right)}", flush=True
            )
        kinds = {"live, in halves": in_halves(live, batches[0]), **dict(zip(STORAGES, batches, strict=True))}
        for loss in (student.loss, taught_alone):
            aim = learnt(student, right, loss)
            for kind, one in kinds.items():
                for name, difference in learnt(student, one, loss).differences(aim):
                    if loss is student.loss and name not in TERMS:
                        yield (kind, name), difference
                    elif name == ALL:
                        yield (kind, TAUGHT), difference


def in_halves(live: LiveTeachers, batch: Batch) -> Batch:
    """The batch with what the first teacher makes of one half of its pictures and captions, and then of the other."""
    pictures, captions, parts = len(batch) // 2, len(batch.caption_rows_C) // 2, []
    for some, texts in ((slice(pictures), slice(captions)), (slice(pictures, None), slice(captions, None))):
        pixels = {size: pixels_B3SS[some] for size, pixels_B3SS in batch.teacher_pixels.items()}
        half = replace(batch, teacher_pixels=pixels, caption_rows_C=batch.caption_rows_C[texts])
        parts.append(live.taught(half).teachers[0])
    image_BT, text_CT = (torch.cat(features) for features in zip(*parts, strict=True))
    return replace(batch, teachers=((image_BT, text_CT),), teacher_pixels={})


def learnt(student: Student, batch: Batch, loss: LossConfig) -> Taught:
    """Terms and gradient of a batch with its teachers' features, by a step at the learning rate 0."""
    result = student.stepper.step([batch], loss)
    gradients = [parameter.grad.flatten() for parameter in student.stepper.parameters if parameter.grad is not None]
    return Taught({name: value.item() for name, value in result.terms.items()}, torch.cat(gradients))


def alike(batch: Batch) -> str:
    """Means of the cosines among different pictures, and among different captions."""
    means = []
    for features_NT in batch.teachers[0]:
        count = len(features_NT)
        means.append((float(features_NT.sum(0).square().sum()) - count) / (count * (count - 1)))
    return ", ".join(f"{mean:.4f}" for mean in means)


# Size


def size(setup: Setup) -> bool:
    """Prints what stores take."""
    heading(f"the first {setup.pictures:,} pictures of {setup.data}")
    captions = int(setup.records().caption_counts().sum())
    teachers = {width: saved(tiny(width), setup.scratch / f"tiny-{width}") for width in WIDTHS}
    lines = []
    for width, teacher in teachers.items():
        for views in VIEWS:
            for storage in STORAGES:
                settings = setup.settings(configured(RECIPE, 64), views, storage)
                folder = setup.stored(teacher, settings, "fp32", f"{storage}-{width}-{views}")
                tars, indexes = (counted(folder, ending) / setup.pictures for ending in ("tar", "jsonl"))
                lines.append(
                    f"| {width} | {views} | {storage} | {tars:,.0f} | {indexes:,.0f} | {tars / 1e3:.2f} "
                    f"| {(tars + indexes) / 1e3:.2f} |"
                )
    print(
        f"\n{setup.pictures:,} pictures with {captions / setup.pictures:.2f} captions each. The last columns: GB of a "
    )
    print("million such pictures.\n")
    print("| width | views | storage | bytes a picture | and of the index | GB a million pictures | with the index |")
    print("|--:|--:|---|--:|--:|--:|--:|", *lines, sep="\n")
    return True


def counted(folder: Path, ending: str) -> int:
    """Bytes of a store's files with that ending."""
    return sum(file.stat().st_size for file in folder.glob(f"teacher-*.{ending}"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(name: str, what: str, pictures: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what)
        one.add_argument("--data", required=True, help="a Flickr8k, or any data set with a split train")
        one.add_argument("--pictures", type=int, help=f"the first of them; by itself {pictures}")
        one.add_argument("--device", default="auto")
        return one

    one = command("step", "pictures/s without a teacher, from a store, with it live", "1,024")
    one.add_argument("--teacher", default="", metavar="FOLDER", help="a trained model; by itself, one that is random")
    one.add_argument("--batch", type=int, default=64)
    one.add_argument("--rounds", type=int, default=5, help="of each student")
    one.add_argument("--seconds", type=float, default=30, help="of a round")
    one = command("exact", "losses and gradients from stored features beside live ones", "three batches")
    one.add_argument("--teacher", default="", metavar="FOLDER", help="a trained model; by itself, one that is random")
    one.add_argument("--batch", type=int, default=64)
    command("size", "bytes a picture", "1,000")
    return parser


def main() -> int:
    given = parser().parse_args()
    batch = getattr(given, "batch", 2)
    usual = {"step": 1024, "exact": 3 * batch, "size": 1000}
    pictures = max(given.pictures or usual[given.what], batch)
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup.of(given.data, pictures, getattr(given, "teacher", ""), given.device, scratch)
        if given.what == "step":
            good = step(setup, batch, given.rounds, given.seconds)
        elif given.what == "exact":
            good = exact(setup, batch)
        else:
            good = size(setup)
    return int(not good)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
