"""The training loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cliplet.config import LossConfig, RunConfig
from cliplet.data.batch import Batch
from cliplet.data.loader import TrainLoader
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import Records
from cliplet.errors import TrainingError
from cliplet.evaluation import Evaluation, evaluate
from cliplet.model_card import model_card
from cliplet.models import DualEncoder
from cliplet.training.averages import WeightAverage
from cliplet.training.chance import warning_at_chance
from cliplet.training.checkpoint import Checkpoint, Checkpoints
from cliplet.training.chunk_size import out_of_memory_answer
from cliplet.training.distillation import Distillation
from cliplet.training.distributed import Ranks
from cliplet.training.features import FrozenFeatures
from cliplet.training.memory import out_of_memory
from cliplet.training.meter import RECENT, Meter, Scalars
from cliplet.training.objective import loss_in_stage
from cliplet.training.optim import learning_rate, set_learning_rate
from cliplet.training.run_log import RunLog
from cliplet.training.sam import Sam
from cliplet.training.skips import LOWER_RATES, Skips
from cliplet.training.stages import Place, peak_rates, set_trainable, stage_at
from cliplet.training.step import Stepper
from cliplet.training.teaching import Teaching

CHECKPOINTS = "checkpoints"  # in the run folder
TRAINED_SHARE = "trained_share"  # in metrics.json of a model whose weights are mixed with its start's


class Interrupted(TrainingError):
    """The user, or the system, asked the run to stop; a checkpoint is written."""


@dataclass
class State:
    """What changes while a run goes on."""

    model: DualEncoder
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # switched off but for fp16
    average: WeightAverage | None = None
    distillation: Distillation | None = None  # what a student with teachers has beside itself
    epoch: int = 0
    step: int = 0  # within the epoch
    skipped: int = 0  # steps since the run began whose loss was no number
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step on its way. What came of it is read when the next one has been sent to the device, so that none waits."""

    number: int  # since the run began, from 1
    scalars: Scalars
    batches: list[Batch]
    rates: dict[str, float]


class Trainer:
    """The loop. Everything it needs is given to it; it reads no files but those of the records."""

    def __init__(
        self,
        config: RunConfig,
        state: State,
        device: torch.device,
        precision: str,
        circumstances: dict[str, str],
        train_records: Records,
        val_records: Records,
        quarantine: Quarantine,
        ranks: Ranks | None = None,
        chunk_size: int | None = None,
        teaching: Teaching | None = None,
    ):
        """`chunk_size`: pictures of this rank that are embedded at once; None: all of its part of the batch.
        `teaching`: the run's teachers, if it has any."""
        self.config, self.state, self.device, self.precision = config, state, device, precision
        self.circumstances, self.ranks, self.chunk_size = circumstances, ranks or Ranks(), chunk_size
        self.teaching = teaching
        self.train_records, self.val_records, self.quarantine = train_records, val_records, quarantine
        self.loader = TrainLoader(
            train_records,
            state.model.tokenizer,
            batch_size=config.train.batch_size,
            image_size=config.model.preprocess.image_size,
            augmented_size=config.train.image_size,
            data=config.data,
            augment=config.augment,
            seed=config.train.seed,
            quarantine=quarantine,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )
        self.epochs = config.train.epochs
        self.accumulate = min(config.train.accumulate, len(self.loader))
        self.steps_an_epoch = len(self.loader) // self.accumulate
        self.total_steps = self.epochs * self.steps_an_epoch
        self.meter = Meter(self.accumulate * self.loader.batch_size)
        self.skips = Skips(
            config.train.max_skipped,
            state.scaler.is_enabled(),
            config.output,
            train_records,
            state.skipped,
            self.ranks.rank,
        )
        self.warned = False
        self.frozen = FrozenFeatures(self)
        self.checkpoints = Checkpoints(config.output / CHECKPOINTS, config.train.keep_checkpoints)

    @property
    def global_step(self) -> int:
        """Steps made since the run began."""
        return self.state.epoch * self.steps_an_epoch + self.state.step

    def fit(self, log: RunLog, stop: threading.Event) -> None:
        """Trains to the last epoch, or until nothing has become better for too long."""
        state, config = self.state, self.config
        stepper, place = None, None
        while state.epoch < self.epochs and not self._out_of_patience(log):
            if stepper is None or place is None or stage_at(config.train.stages, state.epoch) != place:
                place = stage_at(config.train.stages, state.epoch)
                stepper = self._begin_stage(place, log)
            state.model.train()
            self.meter.start()
            last = None
            for batches in self._batches(place):
                self.meter.data_arrived()
                step = self._step(stepper, batches, place)
                self.meter.step_done()
                self._settle(last, place, log)
                log.advance(self.global_step)
                last = self._between_steps(step, place, log, stop)
                self.meter.waiting()
            self._settle(last, place, log)
            self._end_epoch(log)

    def _begin_stage(self, place: Place, log: RunLog) -> Stepper:
        """Frees and freezes what the stage says, and computes what frozen towers give, if that can be kept."""
        config, state = self.config, self.state
        trained = set_trainable(state.model, place.stage)
        if state.step == 0 and state.epoch == place.first_epoch:
            log.say(f"stage {place.number + 1}/{len(config.train.stages)} trains {trained}")
            self.meter.losses.clear()  # they may have been of another loss
        self.frozen = FrozenFeatures.of_stage(self, place.stage, log.say)
        return self.stepper()

    def stepper(self) -> Stepper:
        """What makes steps of the parameters that are trainable now."""
        state, optim = self.state, self.config.optim
        climbing = nn.ModuleList([state.model, *([state.distillation] if state.distillation else [])])
        return Stepper(
            state.model,
            state.optimizer,
            state.scaler,
            precision=self.precision,
            chunk_size=self.chunk_size,
            sam=Sam(climbing, optim.sam.rho, optim.sam.per_layer) if optim.sam.rho else None,
            clip_norm=optim.clip_norm,
            ranks=self.ranks,
            sync_batch_norm=self.config.train.sync_batch_norm,
            average=state.average,
            distillation=state.distillation,
        )

    def first_batch(self) -> Batch:
        """This rank's part of the run's first batch."""
        return next(self.loader.epoch(0))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch as the last stage has them, frozen towers' features left aside."""
        teaching, stage = self.teaching, self.config.train.stages[-1]
        for_teachers = teaching.for_loader(loss_in_stage(self.config, stage)) if teaching else {}
        return self.loader.epoch(epoch, augmented=stage.augment, **for_teachers)

    def _batches(self, place: Place) -> Iterator[list[Batch]]:
        """The batches of each step that the epoch still has; what is left over of the epoch at its end sits out."""
        batches = self.loader.epoch(
            self.state.epoch,
            self.state.step * self.accumulate,
            augmented=place.stage.augment,
            image_features=self.frozen.image,
            text_features=self.frozen.text,
            **(self.teaching.for_loader(self._loss(place)) if self.teaching else {}),
        )
        for _ in range(self.state.step, self.steps_an_epoch):
            yield list(islice(batches, self.accumulate))

    def _loss(self, place: Place) -> LossConfig:
        return loss_in_stage(self.config, place.stage)

    def _step(self, stepper: Stepper, batches: list[Batch], place: Place) -> Step:
        """One step at the rates and weights of its stage."""
        config, state = self.config, self.state
        stage_start = place.first_epoch * self.steps_an_epoch
        share = learning_rate(self.global_step, self.total_steps, stage_start, config.optim)
        set_learning_rate(state.optimizer, peak_rates(place.stage, config.optim), share)
        loss = self._loss(place)
        if self.teaching:
            batches = [self._taught(batch, loss) for batch in batches]
        try:
            result = stepper.step(batches, loss, (config.train.seed, self.global_step))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            answer = out_of_memory_answer(self, error, batches[0])
            raise answer from None
        state.step += 1
        rates = {f"lr_{group['part']}": group["lr"] for group in state.optimizer.param_groups}
        return Step(self.global_step, Scalars(result), batches, rates)

    def _taught(self, batch: Batch, loss: LossConfig) -> Batch:
        """A batch with what the teachers make of it."""
        assert self.teaching is not None
        try:
            return self.teaching.taught(batch, loss)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise TrainingError(
                "out of memory while the teachers computed",
                "Store what they say (cliplet distil-store), which takes no memory in training; or name a smaller "
                "teacher, or a smaller --train.batch-size.",
            ) from None

    def _settle(self, step: Step | None, place: Place, log: RunLog) -> None:
        """Reads what came of a step, which waits until it is done: counts it, logs it, warns."""
        if step is None:
            return
        values = step.scalars.read()
        skipped = bool(values.pop("skipped"))
        if skipped:
            self._skipped(step, values, log)
        else:
            self.skips.passed()
            self.meter.losses.append(values["loss"])
        last_of_epoch = step.number % self.steps_an_epoch == 0
        if (step.number % self.config.train.log_every == 0 or last_of_epoch) and not skipped:
            epoch = step.number / self.steps_an_epoch
            total = {"skipped": self.skips.total} if self.skips.total else {}
            log.train(step.number, epoch, self.epochs, **values, **step.rates, **total, **self.meter.read())
        if step.number % RECENT == 0 or last_of_epoch:
            self._warn_at_chance(step.number, place, log)

    def _skipped(self, step: Step, values: dict[str, float], log: RunLog) -> None:
        what = f"loss {values['loss']}, norm of the gradient {values['grad_norm']}"
        if values["loss"] - values["loss"] != 0 or not self.state.scaler.is_enabled():  # not finite
            log.warning(step.number, f"step {step.number} changed nothing, for it gave no numbers: {what}")
        self.skips.skipped(step.number, what, step.batches)
        self.state.skipped = self.skips.total

    def _between_steps(self, last: Step, place: Place, log: RunLog, stop: threading.Event) -> Step | None:
        """Writes a checkpoint where one is due, and ends the run where that is asked for; gives the step that is still
        to be settled."""
        every, step = self.config.train.checkpoint_every, self.global_step
        stopping = any(asked for (asked,) in self.ranks.exchange(int(stop.is_set())))
        if not stopping and not (every and step % every == 0):
            return last
        self._settle(last, place, log)
        self.save()
        if stopping:
            raise Interrupted(
                f"stopped at step {step} of {self.total_steps}; the checkpoint is written",
                "The same command with --resume goes on from here.",
            )
        return None

    def _end_epoch(self, log: RunLog) -> None:
        state, train = self.state, self.config.train
        self._share_quarantine()
        done = state.epoch + 1
        if done % train.validate_every == 0 or done == self.epochs:
            self.save()  # before the validation, so that whatever happens in it can be resumed from
            state.epoch, state.step = done, 0
            self._validate(log)
        state.epoch, state.step = done, 0
        self.save()

    def _out_of_patience(self, log: RunLog) -> bool:
        """Whether so many validations in a row brought no new best that the run is to end early. Only the last stage
        ends early, for the ones before it prepare it, and heads on frozen towers are soon as good as they get."""
        train, best = self.config.train, self.state.best
        patience, last_stage = train.patience, self.epochs - train.stages[-1].epochs
        if patience is None or not best:
            return False
        if self.state.epoch - max(best["epoch"], last_stage) < patience * train.validate_every:
            return False
        best_epoch = best["epoch"]
        log.say(
            f"stopped early: no new best for {patience} validations; the best is epoch {best_epoch}'s (train.patience)"
        )
        return True

    def _warn_at_chance(self, step: int, place: Place, log: RunLog) -> None:
        enough = min(RECENT, self.total_steps // 2)
        warming_up = step < self.config.optim.warmup * self.total_steps
        if self.warned or warming_up or len(self.meter.losses) < max(1, enough):
            return
        captions = self.config.data.captions_per_image
        warning = warning_at_chance(self._loss(place), self.meter.mean_loss(), self.loader.batch_size, captions)
        if warning:
            self.warned = True
            log.warning(step, f"After {step} steps the loss is still {warning}")

    def _validate(self, log: RunLog) -> None:
        with self.averaged():
            evaluation = self.evaluate(self.state.model, self.precision)
            # One word for all: ranks that disagreed on which epoch is best would part ways.
            metrics = self.ranks.from_first(lambda: evaluation.metrics)
            best = not self.state.best or metrics["rsum"] > self.state.best["metrics"]["rsum"]
            if best:
                self.state.best = {"epoch": self.state.epoch, "metrics": metrics}
                if self.ranks.first:
                    self.save_best(self.state.model, metrics)
        log.validation(self.global_step, self.state.epoch, self.epochs, metrics, best)

    def averaged(self) -> AbstractContextManager:
        """The model with its average weights, where an average is kept."""
        return nullcontext() if self.state.average is None else self.state.average.swapped()

    def evaluate(self, model: DualEncoder, precision: str) -> Evaluation:
        """Retrieval of a model on the validation records, through the same Encoder that users have."""
        return evaluate(self.frozen.encoder(model, precision), self.val_records, self.quarantine, ranks=self.ranks)

    def _share_quarantine(self) -> None:
        """Rank 0 hears of what is bad on other ranks, for it alone writes it down."""
        for problems in self.ranks.gather_objects(self.quarantine.problems()):
            if self.ranks.first:
                self.quarantine.extend(problems)

    def save(self) -> None:
        """Writes the checkpoint. Raises TrainingError rather than save weights that are no numbers."""
        state, model = self.state, self.state.model
        if not self.ranks.first:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise TrainingError(f"weights became infinite or no numbers by step {self.global_step}", LOWER_RATES)
        checkpoint = Checkpoint(
            config=self.config,
            epoch=state.epoch,
            step=state.step,
            model=model.state_dict(),
            tokenizer=model.tokenizer.to_json(),
            image_architecture=model.image_tower.architecture,
            text_architecture=model.text_tower.architecture,
            optimizer=state.optimizer.state_dict(),
            scaler=state.scaler.state_dict(),
            averages=state.average.state_dict() if state.average else {},
            distillation=state.distillation.state_dict() if state.distillation else {},
            skipped=state.skipped,
            circumstances=self.circumstances,
            best=state.best,
        )
        self.checkpoints.save(checkpoint, self.global_step)

    def save_best(
        self, model: DualEncoder, metrics: dict[str, float], command: str = "", trained_share: float | None = None
    ) -> None:
        """Writes the run's best model with its card and what was measured. `trained_share`: of its weights, the rest
        being the starting model's, where they are a mixture."""
        config, split = self.config, self.config.data.val_split
        epoch = self.state.best["epoch"]
        measured = {"data": Path(config.data.path).name, "split": split, "epoch": epoch, "retrieval": metrics}
        if trained_share is not None:
            measured[TRAINED_SHARE] = trained_share
        card = model_card(config, model.count_parameters(), metrics, command, self.taught_by)
        model.save_pretrained(config.output / "model", card, measured)

    @property
    def taught_by(self) -> list[str]:
        """The names of the run's teachers."""
        return [teacher.name for teacher in self.teaching.teachers] if self.teaching else []
