"""The training loop."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cliplet.config import RunConfig
from cliplet.data.loader import Batch, TrainLoader
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import Records
from cliplet.errors import TrainingError
from cliplet.evaluation import Evaluation, evaluate
from cliplet.model_card import model_card
from cliplet.models import DualEncoder
from cliplet.runtime.encoder import Encoder
from cliplet.runtime.engines import TorchEngine
from cliplet.training.checkpoint import Checkpoint, random_state
from cliplet.training.objective import chance_loss, loss_in_stage
from cliplet.training.optim import learning_rate, set_learning_rate
from cliplet.training.run_log import RunLog
from cliplet.training.sam import Sam
from cliplet.training.stages import Place, peak_rates, set_trainable, stage_at
from cliplet.training.step import StepResult, train_step

CHECKPOINT = "checkpoint.pt"
CHANCE_STEPS = 50  # so many last losses are held against chance, so often
LOWER_RATES = (
    "Start anew in another folder with lower learning rates (--optim.image-lr, --optim.text-lr, --optim.head-lr), "
    "or with --train.precision fp32."
)
USUAL_CAUSES = (
    "Usual causes: captions that do not belong to their pictures (look with: cliplet inspect DATA); learning rates too "
    "high or too low by a factor of ten (--optim.head-lr, --optim.image-lr, --optim.text-lr); a tower from scratch "
    "with too little data or too few steps; pretrained weights with another mean and deviation than model.preprocess "
    "says."
)
CHANCE_SHARE = 0.97  # a mean loss above this share of chance has learnt nothing


class Interrupted(TrainingError):
    """The user, or the system, asked the run to stop; a checkpoint is written."""


@dataclass
class State:
    """What changes while a run goes on."""

    model: DualEncoder
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # switched off but for fp16
    epoch: int = 0
    step: int = 0  # within the epoch
    best: dict[str, Any] = field(default_factory=dict)


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
    ):
        self.config, self.state, self.device, self.precision = config, state, device, precision
        self.circumstances = circumstances
        self.train_records, self.val_records, self.quarantine = train_records, val_records, quarantine
        self.loader = TrainLoader(
            train_records,
            state.model.tokenizer,
            batch_size=config.train.batch_size,
            image_size=config.model.preprocess.image_size,
            data=config.data,
            augment=config.augment,
            seed=config.train.seed,
            quarantine=quarantine,
        )
        self.epochs = config.train.epochs
        self.accumulate = min(config.train.accumulate, len(self.loader))
        self.steps_an_epoch = len(self.loader) // self.accumulate
        self.total_steps = self.epochs * self.steps_an_epoch
        self.meter = Meter(self.accumulate * self.loader.batch_size)
        self.warned = False
        optim = config.optim
        self.sam = Sam(state.model, optim.sam.rho, optim.sam.per_layer) if optim.sam.rho else None

    @property
    def global_step(self) -> int:
        """Steps made since the run began."""
        return self.state.epoch * self.steps_an_epoch + self.state.step

    def fit(self, log: RunLog, stop: threading.Event) -> None:
        """Trains to the last epoch, or until nothing has become better for too long."""
        state, config = self.state, self.config
        while state.epoch < self.epochs and not self._out_of_patience(log):
            place = stage_at(config.train.stages, state.epoch)
            trained = set_trainable(state.model, place.stage)
            if state.step == 0 and state.epoch == place.first_epoch:
                log.say(f"stage {place.number + 1}/{len(config.train.stages)} trains {trained}")
                self.meter.losses.clear()  # they may have been of another loss
            state.model.train()
            self.meter.start()
            for batches in self._steps():
                self.meter.data_arrived()
                self._after_step(self._step(batches, place), place, log, stop)
            done = state.epoch + 1
            if done % config.train.validate_every == 0 or done == self.epochs:
                self.save()  # before the validation, so that whatever happens in it can be resumed from
                state.epoch, state.step = done, 0
                self._validate(log)
            state.epoch, state.step = done, 0
            self.save()

    def _steps(self) -> Iterator[list[Batch]]:
        """The batches of each step that the epoch still has; what is left over of the epoch at its end sits out."""
        batches = self.loader.epoch(self.state.epoch, self.state.step * self.accumulate)
        for _ in range(self.state.step, self.steps_an_epoch):
            yield [batch.to(self.device) for batch in islice(batches, self.accumulate)]

    def _step(self, batches: list[Batch], place: Place) -> StepResult:
        """One step at the rates and weights of its stage."""
        config, state = self.config, self.state
        stage_start = place.first_epoch * self.steps_an_epoch
        share = learning_rate(self.global_step, self.total_steps, stage_start, config.optim)
        set_learning_rate(state.optimizer, peak_rates(place.stage, config.optim), share)
        result = train_step(
            state.model,
            state.optimizer,
            state.scaler,
            batches,
            loss_in_stage(config.loss, place.stage.loss),
            sam=self.sam,
            clip_norm=config.optim.clip_norm,
            precision=self.precision,
        )
        state.step += 1
        return result

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

    def _after_step(self, result: StepResult, place: Place, log: RunLog, stop: threading.Event) -> None:
        step, config = self.global_step, self.config
        self.meter.step_done(result.loss)
        log.advance(step)
        if step % config.train.log_every == 0 or self.state.step == self.steps_an_epoch:
            self._log(result, log)
        if step % CHANCE_STEPS == 0 or self.state.step == self.steps_an_epoch:
            self._warn_at_chance(place, log)
        if config.train.checkpoint_every and step % config.train.checkpoint_every == 0:
            self.save()
        if stop.is_set():
            self.save()
            raise Interrupted(
                f"stopped at step {step} of {self.total_steps}; the checkpoint is written",
                "The same command with --resume goes on from here.",
            )

    def _log(self, result: StepResult, log: RunLog) -> None:
        self._refuse_non_finite(result)
        step = self.global_step
        rates = {f"lr_{g['part']}": g["lr"] for g in self.state.optimizer.param_groups}
        terms = {f"loss_{name}": float(value) for name, value in result.terms.items()} if len(result.terms) > 1 else {}
        # Scaled gradients overflow now and then; JSON has no word for it, so nothing is said.
        norm = {"grad_norm": float(result.grad_norm)} if result.grad_norm.isfinite() else {}
        log.train(
            step,
            step / self.steps_an_epoch,
            self.epochs,
            loss=float(result.loss),
            **terms,
            logit_scale=float(result.logit_scale),
            **norm,
            **rates,
            **self.meter.read(),
        )

    def _refuse_non_finite(self, result: StepResult) -> None:
        """Ends the run when loss or gradient is no number any more."""
        for name, value in (("loss", float(result.loss)), ("gradient's norm", float(result.grad_norm))):
            # With scaled gradients a norm that is not finite is how the scaler finds its scale; the step was skipped.
            if not math.isfinite(value) and not (name != "loss" and self.state.scaler.is_enabled()):
                raise TrainingError(f"the {name} became {value} by step {self.global_step}", LOWER_RATES)

    def _warn_at_chance(self, place: Place, log: RunLog) -> None:
        enough = min(CHANCE_STEPS, self.total_steps // 2)
        warming_up = self.global_step < self.config.optim.warmup * self.total_steps
        if self.warned or warming_up or len(self.meter.losses) < enough:
            return
        weighed = loss_in_stage(self.config.loss, place.stage.loss)
        chance = chance_loss(weighed, self.loader.batch_size, self.config.data.captions_per_image)
        loss = self.meter.mean_loss()
        if loss > CHANCE_SHARE * chance:
            self.warned = True
            log.warning(
                self.global_step,
                f"After {self.global_step} steps the loss is still {loss:.2f}, no better than chance ({chance:.2f} for "
                f"a batch of {self.loader.batch_size}): the model tells no pair from another. {USUAL_CAUSES}",
            )

    def _validate(self, log: RunLog) -> None:
        metrics = self.evaluate(self.state.model, self.precision).metrics
        best = not self.state.best or metrics["rsum"] > self.state.best["metrics"]["rsum"]
        if best:
            self.state.best = {"epoch": self.state.epoch, "metrics": metrics}
            save_best(self.state.model, self.config, self.state.epoch, metrics)
        log.validation(self.global_step, self.state.epoch, self.epochs, metrics, best)

    def evaluate(self, model: DualEncoder, precision: str) -> Evaluation:
        """Retrieval of a model on the validation records, through the same Encoder that users have."""
        encoder = Encoder(
            TorchEngine(model, precision), model.tokenizer, model.config.preprocess, model.config.embed_dim
        )
        return evaluate(encoder, self.val_records, self.quarantine)

    def save(self) -> None:
        """Writes the checkpoint. Raises TrainingError rather than save weights that are no numbers."""
        state, model = self.state, self.state.model
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise TrainingError(f"weights became infinite or no numbers by step {self.global_step}", LOWER_RATES)
        Checkpoint(
            config=self.config,
            epoch=state.epoch,
            step=state.step,
            model=model.state_dict(),
            tokenizer=model.tokenizer.to_json(),
            image_architecture=model.image_tower.architecture,
            text_architecture=model.text_tower.architecture,
            optimizer=state.optimizer.state_dict(),
            scaler=state.scaler.state_dict(),
            random=random_state(),
            circumstances=self.circumstances,
            best=state.best,
        ).save(self.config.output / CHECKPOINT)


def save_best(model: DualEncoder, config: RunConfig, epoch: int, metrics: dict[str, float], command: str = "") -> Path:
    """Writes the run's best model with its card and what was measured; gives the folder."""
    folder = config.output / "model"
    split = config.data.val_split
    measured = {"data": Path(config.data.path).name, "split": split, "epoch": epoch, "retrieval": metrics}
    model.save_pretrained(folder, model_card(config, model.count_parameters(), metrics, command), measured)
    return folder


class Meter:
    """Speed, share of time waiting for data, and recent losses."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.losses: deque[torch.Tensor] = deque(maxlen=CHANCE_STEPS)
        self.start()

    def start(self) -> None:
        """Begins to measure, at the start of an epoch or after a line of the log."""
        self._since = self._mark = time.monotonic()
        self._waited, self._counted = 0.0, 0

    def data_arrived(self) -> None:
        """A batch is there; what passed since the last step was waiting."""
        self._waited += time.monotonic() - self._mark

    def step_done(self, loss: torch.Tensor) -> None:
        """A step is done, or on its way on a GPU, which is let run one step ahead and no further: so what passes
        until the next batch arrives is waiting for data, and not for the GPU."""
        if self.losses:
            self.losses[-1].item()
        self.losses.append(loss)
        self._counted += 1
        self._mark = time.monotonic()

    def mean_loss(self) -> float:
        """Mean of the last losses, CHANCE_STEPS of them at most."""
        return float(torch.stack(list(self.losses)).mean())

    def read(self) -> dict[str, float]:
        """Images a second and the share of time spent waiting for data, since the last call."""
        elapsed = max(1e-9, time.monotonic() - self._since)
        figures = {
            "images_per_second": self._counted * self.batch_size / elapsed,
            "data_wait": self._waited / elapsed,
        }
        self.start()
        return figures
