"""What the benchmarks of distillation share: teachers, stores, and students that learn as `cliplet train` lets them."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from training_parts import SEED, configured

from cliplet.config import DistilConfig, ImageTowerConfig, ModelConfig, PreprocessConfig, RunConfig, TextTowerConfig
from cliplet.console import progress_bar
from cliplet.data.batch import Batch
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import Records
from cliplet.data.teacher_shards import Storage, StoreSettings
from cliplet.models import DualEncoder
from cliplet.recipes import recipe
from cliplet.training.chunk_size import choose_chunk_size
from cliplet.training.cpu import keep_memory
from cliplet.training.features import silent
from cliplet.training.meter import Scalars
from cliplet.training.objective import loss_in_stage
from cliplet.training.optim import choose_device, choose_precision, set_learning_rate
from cliplet.training.run import begin
from cliplet.training.stages import peak_rates, set_trainable
from cliplet.training.step import StepResult
from cliplet.training.store_making import make_store
from cliplet.training.teaching import Teaching
from cliplet.training.trainer import Trainer

RECIPE = "tinyvit-minilm-convffn"
SPLIT = "train"
WARM_UP = 2  # steps of each round
EPOCHS_A_ROUND = 1000  # at most: each round begins with an epoch of its own
RANDOM = "open_clip's ViT-B-32 with random weights"


@dataclass(frozen=True)
class Setup:
    """Where everything is measured, and on what."""

    data: str  # a Flickr8k, or any data set with a split train
    pictures: int  # the first of them
    teacher: str  # a model folder; none: random
    device: torch.device
    scratch: Path

    @classmethod
    def of(cls, data: str, pictures: int, teacher: str, device: str, scratch: str) -> Setup:
        """With the device of that name."""
        chosen = choose_device(device)
        if chosen.type == "cpu":
            keep_memory()
        return cls(data, pictures, teacher, chosen, Path(scratch))

    @property
    def precision(self) -> str:
        """In which `cliplet train` would compute here."""
        return choose_precision("auto", self.device)

    @property
    def about(self) -> str:
        """Teacher and place, for the heading."""
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        return f"{card}, threads: {torch.get_num_threads()}\n{self.data}\nteacher: {self.teacher or RANDOM}"

    def records(self) -> Records:
        """What there is to train on; SystemExit where there are not so many pictures."""
        records = read_source(self.data, None, self.pictures).select(SPLIT)
        if len(records) < self.pictures:
            raise SystemExit(f"{self.data}: {len(records):,} pictures are too few, {self.pictures:,} are wanted")
        return records

    def opened_teacher(self) -> str:
        """The folder of the teacher, which is made where none is named."""
        return self.teacher or saved(recipe("clip-finetune").model, self.scratch / "random")

    def stored(self, teacher: str, settings: StoreSettings, precision: str, name: str) -> Path:
        """A store of what the teacher says, made as `cliplet distil-store` makes it."""
        out = self.scratch / name
        began = time.perf_counter()
        with progress_bar(name) as tell:
            result = make_store(
                self.data, out, [teacher], settings, device=str(self.device), precision=precision, tell=tell
            )
        print(
            f"store {name}: {result.computed:,} pictures, {settings.views} views each, {result.bytes / 1e6:.1f} MB, "
            f"{result.manifest.left_out} left out; {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        return out

    def settings(self, config: RunConfig, augmentations: int, storage: Storage) -> StoreSettings:
        """Of a store for these pictures and a run's augmentation."""
        return StoreSettings(augmentations, False, config.augment, storage, SPLIT, SEED, self.pictures)


def saved(config: ModelConfig, folder: Path) -> str:
    """A folder with a model of random weights, the same each time, where pretrained ones are not named."""
    torch.manual_seed(SEED)
    DualEncoder.build(config, ["a dog runs over the wet grass"] * 3).eval().save_pretrained(folder)
    return str(folder)


def tiny(width: int) -> ModelConfig:
    """A model that gives features of that width in next to no time, of pictures of 32 pixels."""
    return ModelConfig(
        embed_dim=width,
        image=ImageTowerConfig(name="test_resnet"),
        text=TextTowerConfig(width=32, layers=1),
        preprocess=PreprocessConfig(image_size=32),
    )


def taught_by(config: RunConfig, **distil: object) -> RunConfig:
    """The run with these settings of its teachers over the recipe's."""
    asked = recipe(RECIPE).distil.model_copy(update={"teachers": (), **distil})
    return config.model_copy(update={"distil": DistilConfig.model_validate(asked.model_dump())})


def small_student(width: int, batch: int) -> RunConfig:
    """The recipe with all terms of teachers, and a student as small as ViT-Tiny and as wide as its teacher."""
    config = configured(RECIPE, batch)
    small = configured("vittiny-minilm", batch).model
    return config.model_copy(
        update={
            "model": small.model_copy(update={"embed_dim": width}),
            "loss": config.loss.model_copy(update={"interactive": 1.0}),
            "optim": config.optim.model_copy(update={"clip_norm": None}),
        }
    )


class Student:
    """A recipe's last stage by the parts that `cliplet train` puts together, with teachers or without."""

    def __init__(
        self, config: RunConfig, records: Records, setup: Setup, precision: str, teaching: Teaching | None, rates: float
    ):
        """`rates`: share of the peak learning rates at which it trains."""
        stage, device = config.train.stages[-1], setup.device
        torch.manual_seed(SEED)
        state = begin(config, records, device, precision, silent, teaching)
        self.trainer = Trainer(config, state, device, precision, {}, records, records, Quarantine(), teaching=teaching)
        self.trainer.chunk_size = choose_chunk_size(self.trainer, silent)
        self.teaching, self.loss = teaching, loss_in_stage(config, stage)
        set_trainable(state.model, stage)
        state.model.train()
        set_learning_rate(state.optimizer, peak_rates(stage, config.optim), rates)
        self.stepper = self.trainer.stepper()

    def batches(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of an epoch and of those after it; threads end when it is closed."""
        for number in count(epoch):
            yield from self.trainer.batches(number)

    def step(self, batch: Batch) -> StepResult:
        """Asks the teachers and makes a step."""
        if self.teaching:
            batch = self.teaching.taught(batch, self.loss)
        return self.stepper.step([batch], self.loss)


@dataclass(frozen=True)
class Round:
    """What came of some seconds of training."""

    seconds: float
    waited: float  # of these, for batches
    pictures: int
    loss: float  # of the last step

    @property
    def pictures_per_second(self) -> float:
        """Loader, teachers and steps together."""
        return self.pictures / self.seconds


def trained(student: Student, number: int, seconds: float) -> Round:
    """A round: steps for so many seconds, and before them some that are not counted.

    As in training, threads make the next batches during each step, and the host is one step ahead of the device.
    """
    batches = student.batches(number * EPOCHS_A_ROUND)
    for _ in range(WARM_UP):
        Scalars(student.step(next(batches))).read()  # waits until it is done
    start, waited, pictures = time.perf_counter(), 0.0, 0
    before: Scalars | None = None
    while time.perf_counter() - start < seconds or before is None:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        now = Scalars(student.step(batch))
        if before is not None:
            before.read()
        before, pictures = now, pictures + len(batch)
    loss = before.read()["loss"]
    elapsed = time.perf_counter() - start
    batches.close()  # what made them ends, so that another's turn is its alone
    return Round(elapsed, waited, pictures, loss)
