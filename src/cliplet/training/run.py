"""A run from its configuration to its results: opening the folder, resuming, finishing.

A run folder holds config.yaml, log.jsonl, tensorboard/, quarantine.jsonl (if anything was bad), checkpoint.pt,
two model folders, model/ (best on validation) and last/, and report.html.
"""

from __future__ import annotations

import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cliplet.config import RunConfig, to_yaml
from cliplet.console import say as console_say
from cliplet.data.places import file_name
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import Records
from cliplet.errors import TrainingError
from cliplet.evaluation import Evaluation
from cliplet.evaluation.report import write_report
from cliplet.model_card import model_card
from cliplet.models import DualEncoder
from cliplet.runtime.tokenizer import Tokenizer
from cliplet.training.checkpoint import Checkpoint, set_random_state
from cliplet.training.objective import chance_loss, loss_in_stage
from cliplet.training.optim import build_optimizer, choose_device, choose_precision
from cliplet.training.run_log import RunLog, read_log
from cliplet.training.stages import refuse_bad_stages, stage_at
from cliplet.training.start import start_model
from cliplet.training.trainer import CHECKPOINT, State, Trainer, save_best

MANY_CAPTIONS = 200_000  # tokenizing more takes so long that it is announced
QUERIES_SHOWN = 10


@dataclass
class Run:
    """A finished run."""

    folder: Path
    model_folder: Path  # the best model
    evaluation: Evaluation  # of the best model on the validation split, in fp32
    quarantine: Quarantine
    report: Path


def train(config: RunConfig, *, resume: bool = False, command: str = "", console: Console | None = None) -> Run:
    """Trains what `config` says, into its run folder; with `resume`, goes on from the folder's checkpoint.

    Ctrl-C (or SIGTERM) finishes the step, writes a checkpoint and raises Interrupted. The same configuration
    gives, on the same machine's CPU, the same weights, resumed or not. `command` goes into the model card.
    Raises ClipletError, with what to do, for everything that a user can put right.
    """
    console = console or Console()
    folder = config.output
    checkpoint = Checkpoint.load(folder / CHECKPOINT) if resume else None
    if checkpoint:
        checkpoint.refuse_other_config(config)
    else:
        _claim(folder)
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    source = read_source(config.data.path, config.data.images, config.data.samples)
    train_records = source.select(config.data.train_split)[: config.data.max_images]
    val_records = source.select(config.data.val_split)
    unsplit = source.splits.get("", 0)
    if unsplit and not source.makes_splits and "all" not in (config.data.train_split, config.data.val_split):
        console_say(console, f"{unsplit:,} pictures name no split where others do, and are in none (all takes them)")
    circumstances = {"precision": precision, "training data": _fingerprint(train_records)}
    if checkpoint:
        checkpoint.refuse_other_circumstances(circumstances)
    torch.manual_seed(config.train.seed)
    say = partial(console_say, console)
    state = (
        _restore(checkpoint, device, precision) if checkpoint else begin(config, train_records, device, precision, say)
    )
    refuse_bad_stages(state.model, config)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    if not checkpoint:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # of an attempt that came to nothing
    quarantine = Quarantine(folder / "quarantine.jsonl", resume=checkpoint is not None)
    quarantine.extend(source.problems)
    captions = int(train_records.caption_counts().sum())
    if captions > MANY_CAPTIONS:
        say(f"tokenizing {captions:,} captions, once")
    trainer = Trainer(config, state, device, precision, circumstances, train_records, val_records, quarantine)
    _announce(trainer, say, resumed=checkpoint is not None)
    with RunLog(folder, console, trainer.total_steps, trainer.global_step) as log, _asked_to_stop() as stop:
        trainer.fit(log, stop)
    return _finish(config, trainer, command, say)


def _claim(folder: Path) -> None:
    """Refuses a folder in which another run lies. One that ended before its first checkpoint left nothing to lose."""
    if (folder / CHECKPOINT).exists() or (folder / "model").exists():
        raise TrainingError(
            f"{folder}: holds a run already",
            "Add --resume to go on with it, or name another folder with --train.output.",
        )


def _fingerprint(records: Records) -> str:
    """Tells one set of training records from another: their number, and a checksum of names and captions."""
    checksum = 0
    for record in records:
        line = "\0".join((file_name(record.image), *record.captions))
        checksum = zlib.crc32(line.encode("utf-8", "surrogateescape"), checksum)
    return f"{len(records):,} pictures, checksum {checksum:08x}"


def begin(
    config: RunConfig, records: Records, device: torch.device, precision: str, say: Callable[[str], None]
) -> State:
    """The state in which a run on these records begins."""
    if config.train.start_from:
        model = start_model(config.train.start_from, config.model)
        say(f"starts from {config.train.start_from}")
    else:
        model = DualEncoder.build(config.model, records.captions(), say)
    return _on_device(model, config, device, precision)


def _restore(checkpoint: Checkpoint, device: torch.device, precision: str) -> State:
    config = checkpoint.config
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer, config.model.text.context_length)
    model = DualEncoder.skeleton(config.model, tokenizer, checkpoint.image_architecture, checkpoint.text_architecture)
    model.load_state_dict(checkpoint.model)
    state = _on_device(model, config, device, precision)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    state.scaler.load_state_dict(checkpoint.scaler)
    state.epoch, state.step, state.best = checkpoint.epoch, checkpoint.step, checkpoint.best
    set_random_state(checkpoint.random)
    return state


def _on_device(model: DualEncoder, config: RunConfig, device: torch.device, precision: str) -> State:
    model = model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return State(model, build_optimizer(model, config.optim), scaler)


def _announce(trainer: Trainer, say: Callable[[str], None], resumed: bool) -> None:
    config, model, tokenizer = trainer.config, trainer.state.model, trainer.state.model.tokenizer
    tokens = trainer.loader.tokens
    say(
        f"{config.name}: {model.count_parameters() / 1e6:.1f} M parameters, {len(trainer.train_records):,} pictures "
        f"and {len(tokens):,} captions to train on, {len(trainer.val_records):,} pictures to validate on; "
        f"{trainer.device}, {trainer.precision}, {trainer.epochs} epochs of {trainer.steps_an_epoch} steps"
    )
    if tokens.cut:
        say(
            f"{tokens.cut:,} captions are longer than {tokenizer.context_length} tokens and are cut "
            "(model.text.context_length)"
        )
    if trainer.loader.batch_size < config.train.batch_size:
        say(
            f"the batch holds {trainer.loader.batch_size} pictures, all there are, instead of {config.train.batch_size}"
        )
    if config.train.accumulate > 1:
        batches = len(trainer.loader)
        say(
            f"a step averages the gradients of {trainer.accumulate} batches; {batches % trainer.accumulate} of the "
            f"{batches} batches of an epoch sit out"
        )
    if config.loss.siglip and model.logit_bias is None:
        say("SigLIP learns slowly without a bias: set model.logit_bias to -10 (--model.logit-bias -10)")
    if resumed:
        say(f"resumed at step {trainer.global_step} of {trainer.total_steps}")


def _finish(config: RunConfig, trainer: Trainer, command: str, say: Callable[[str], None]) -> Run:
    """Measures the best model again in fp32, as anyone who opens it will, and writes what the run leaves behind."""
    folder, state = config.output, trainer.state
    parameters = state.model.count_parameters()
    state.model.save_pretrained(folder / "last", card=model_card(config, parameters, {}, command))
    best = DualEncoder.from_pretrained(folder / "model").to(trainer.device)
    evaluation = trainer.evaluate(best, "fp32")
    best_folder = save_best(best.cpu(), config, state.best["epoch"], evaluation.metrics, command)
    last_loss = loss_in_stage(config.loss, stage_at(config.train.stages, state.epoch - 1).stage.loss)
    report = folder / "report.html"
    step = max(1, len(evaluation.captions) // QUERIES_SHOWN)
    write_report(
        report,
        title=f"cliplet: {config.name}",
        metrics=evaluation.metrics,
        history=read_log(folder / "log.jsonl"),
        queries=evaluation.top_images(range(0, len(evaluation.captions), step)[:QUERIES_SHOWN]),
        facts={
            "data": f"{config.data.path}: trained on {config.data.train_split} "
            f"({len(trainer.train_records):,} pictures), measured on {config.data.val_split}",
            "model": f"{parameters / 1e6:.1f} M parameters, best epoch {state.best['epoch']} of {trainer.epochs}",
            "computed on": f"{trainer.device}, {trainer.precision}",
            "left out": f"{len(trainer.quarantine):,} bad records or files",
            "command": command or "cliplet.train(config)",
            "seed": str(config.train.seed),
        },
        chance=chance_loss(last_loss, trainer.loader.batch_size, config.data.captions_per_image),
    )
    if trainer.quarantine:
        say(trainer.quarantine.summary())
    return Run(folder, best_folder, evaluation, trainer.quarantine, report)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, once; the second Ctrl-C interrupts at once, as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
