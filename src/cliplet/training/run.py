"""A run from its configuration to its results: opening the folder, resuming, finishing.

A run folder holds config.yaml, log.jsonl, tensorboard/, quarantine.jsonl (if anything was bad), checkpoints/, two model
folders, model/ (best on validation) and last/, and report.html.
"""

from __future__ import annotations

import math
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

from cliplet.config import RunConfig, differences, to_yaml
from cliplet.console import say as console_say
from cliplet.data.places import file_name
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.data.records import ImageTextSource, Records
from cliplet.errors import TrainingError
from cliplet.evaluation import Evaluation
from cliplet.files import written_beside
from cliplet.model_folder import recover
from cliplet.models import DualEncoder
from cliplet.runtime.tokenizer import Tokenizer
from cliplet.training.averages import WeightAverage
from cliplet.training.batch_norm import normalise_over_ranks, running_statistics
from cliplet.training.checkpoint import Checkpoint, Checkpoints
from cliplet.training.chunk_size import CIRCUMSTANCE, choose_chunk_size
from cliplet.training.compiling import compile_towers
from cliplet.training.cpu import keep_memory
from cliplet.training.distillation import Distillation, refuse_bad_lessons
from cliplet.training.distributed import Ranks, joined, place_of_rank, refuse_bad_batch
from cliplet.training.finish import finish
from cliplet.training.optim import build_optimizer, choose_device, choose_precision
from cliplet.training.run_log import RunLog
from cliplet.training.stages import refuse_bad_stages
from cliplet.training.start import refuse_other_size, start_model
from cliplet.training.teaching import Teaching, open_teaching
from cliplet.training.trainer import CHECKPOINTS, State, Trainer

MANY_CAPTIONS = 200_000  # tokenizing more takes so long that it is announced


@dataclass
class Run:
    """A finished run."""

    folder: Path
    model_folder: Path  # the best model
    evaluation: Evaluation  # of the best model on the validation split, in fp32
    quarantine: Quarantine
    report: Path
    rank: int = 0  # of this process among those that trained together; files are rank 0's


def train(config: RunConfig, *, resume: bool = False, command: str = "", console: Console | None = None) -> Run:
    """Trains what `config` says, into its run folder; with `resume`, goes on from the folder's last good checkpoint.

    Ctrl-C (or SIGTERM) finishes the step, writes a checkpoint and raises Interrupted. The same configuration
    gives, on the same machine's CPU, the same weights, resumed or not. Started by torchrun, this process is one of
    several that train one model together: rank 0 alone writes and speaks, and its Run is whole. `command` goes into
    the model card. Raises ClipletError, with what to do, for everything that a user can put right.
    """
    with joined(config.train.rank_timeout) as ranks:
        console = console or Console()
        return _train(config, ranks, resume, command, console if ranks.first else Console(quiet=True))


def _train(config: RunConfig, ranks: Ranks, resume: bool, command: str, console: Console) -> Run:
    say = partial(console_say, console)
    refuse_bad_batch(config, ranks)
    folder = config.output
    device = choose_device(config.train.device, *place_of_rank())
    checkpoint = ranks.from_first(partial(_opened, config, resume, say))
    precision = choose_precision(config.train.precision, device)
    if device.type == "cpu":
        keep_memory()
    source, train_records, val_records = _read(config, say)
    refuse_bad_lessons(config)
    teaching = open_teaching(config, train_records, device, say)
    circumstances = {
        "precision": precision,
        "training data": _fingerprint(train_records),
        "validation data": _fingerprint(val_records),
        "ranks": str(ranks.size),
    }
    if teaching:
        refuse_bad_lessons(config, teaching.teachers)
        circumstances["teachers"] = teaching.circumstance
    if checkpoint:
        for line in checkpoint.refuse_other_config(config) + checkpoint.refuse_other_circumstances(circumstances):
            say(f"resumed with another {line}: rounding and dropout may differ")
        if CIRCUMSTANCE in checkpoint.circumstances:
            circumstances[CIRCUMSTANCE] = checkpoint.circumstances[CIRCUMSTANCE]
    torch.manual_seed(config.train.seed)
    state = (
        _restore(checkpoint, device, precision, teaching)
        if checkpoint
        else begin(config, train_records, device, precision, say, teaching)
    )
    resumed = checkpoint is not None
    del checkpoint  # as large as all that a run keeps
    refuse_bad_stages(state.model, config)
    refuse_other_size(state.model, config)
    _agree(ranks, config, state, circumstances)

    quarantine = _prepared_folder(config, ranks, resumed)
    quarantine.extend(source.problems)
    if teaching and teaching.targets:  # now, for a stage without teachers must not show them first
        for row, reason in teaching.targets.reasons.items():
            quarantine.add(train_records.image(row), reason)
    captions = int(train_records.caption_counts().sum())
    if captions > MANY_CAPTIONS:
        say(f"tokenizing {captions:,} captions, once")
    trainer = Trainer(
        config,
        state,
        device,
        precision,
        circumstances,
        train_records,
        val_records,
        quarantine,
        ranks,
        teaching=teaching,
    )
    trainer.chunk_size = choose_chunk_size(trainer, say)
    if config.train.compile:
        batch = trainer.first_batch()
        compile_towers(state.model, next(batch.sized(trainer.chunk_size or len(batch))), device, precision, say)
    if config.train.sync_batch_norm and ranks.size > 1:
        normalise_over_ranks(state.model)
    _announce(trainer, say, resumed)
    with (
        RunLog(folder, console, trainer.total_steps, trainer.global_step, state.epoch, writes=ranks.first) as log,
        _asked_to_stop() as stop,
    ):
        trainer.fit(log, stop)
    evaluation = finish(trainer, command, say)
    return Run(folder, folder / "model", evaluation, quarantine, folder / "report.html", ranks.rank)


def _read(config: RunConfig, say: Callable[[str], None]) -> tuple[ImageTextSource, Records, Records]:
    """The data set, and of it what is trained and what is validated on."""
    source = read_source(config.data.path, config.data.images, config.data.samples)
    unsplit = source.splits.get("", 0)
    if unsplit and not source.makes_splits and "all" not in (config.data.train_split, config.data.val_split):
        say(f"{unsplit:,} pictures name no split where others do, and are in none (all takes them)")
    train_records = source.select(config.data.train_split)[: config.data.max_images]
    return source, train_records, source.select(config.data.val_split)


def _opened(config: RunConfig, resume: bool, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from, or none for a run that begins; the folder is put in order."""
    for name in ("model", "last"):
        recover(config.output / name)
    checkpoints = Checkpoints(config.output / CHECKPOINTS, config.train.keep_checkpoints)
    if resume:
        return checkpoints.latest(say)
    if checkpoints.exists() or (config.output / "model").exists():
        raise TrainingError(
            f"{config.output}: holds a run already",
            "Add --resume to go on with it, or name another folder with --train.output.",
        )
    return None


def _agree(ranks: Ranks, config: RunConfig, state: State, circumstances: dict[str, str]) -> None:
    """Makes the model of every rank that of rank 0. Raises TrainingError where ranks were given different things."""
    first = ranks.from_first(lambda: config)
    changed = differences(first, config)
    ranks.refuse_differences(
        configuration="as given" if not changed else "with " + ", ".join(changed),
        data=circumstances["training data"],
        precision=circumstances["precision"],
        teachers=circumstances.get("teachers", "none"),
        tokenizer=f"of checksum {zlib.crc32(state.model.tokenizer.to_json().encode()):08x}",
    )
    ranks.as_first_(state.model.state_dict().values())
    if state.average is not None:
        ranks.as_first_(state.average.state_dict()["averages"].values())
    if state.distillation is not None:
        ranks.as_first_(state.distillation.state_dict().values())


def _prepared_folder(config: RunConfig, ranks: Ranks, resumed: bool) -> Quarantine:
    """The run folder, ready to be written to, and the run's quarantine; both on rank 0 only."""
    folder = config.output
    if not ranks.first:
        return Quarantine()
    folder.mkdir(parents=True, exist_ok=True)
    with written_beside(folder / "config.yaml") as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")
    if not resumed:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # of an attempt that came to nothing
    return Quarantine(folder / "quarantine.jsonl", resume=resumed)


def _fingerprint(records: Records) -> str:
    """Tells one set of training records from another: their number, and a checksum of names and captions."""
    checksum = 0
    for record in records:
        line = "\0".join((file_name(record.image), *record.captions))
        checksum = zlib.crc32(line.encode("utf-8", "surrogateescape"), checksum)
    return f"{len(records):,} pictures, checksum {checksum:08x}"


def begin(
    config: RunConfig,
    records: Records,
    device: torch.device,
    precision: str,
    say: Callable[[str], None],
    teaching: Teaching | None = None,
) -> State:
    """The state in which a run on these records begins."""
    if config.train.start_from:
        model = start_model(config.train.start_from, config.model)
        say(f"starts from {config.train.start_from}")
    else:
        model = DualEncoder.build(config.model, records.captions(), say)
    return _on_device(model, config, device, precision, teaching)


def _restore(checkpoint: Checkpoint, device: torch.device, precision: str, teaching: Teaching | None) -> State:
    config = checkpoint.config
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer, config.model.text.context_length)
    model = DualEncoder.skeleton(config.model, tokenizer, checkpoint.image_architecture, checkpoint.text_architecture)
    model.load_state_dict(checkpoint.model)
    state = _on_device(model, config, device, precision, teaching)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    state.scaler.load_state_dict(checkpoint.scaler)
    if state.average is not None:
        state.average.load_state_dict(checkpoint.averages)
    if state.distillation is not None:
        state.distillation.load_state_dict(checkpoint.distillation)
    state.epoch, state.step, state.best = checkpoint.epoch, checkpoint.step, checkpoint.best
    state.skipped = checkpoint.skipped
    return state


def _on_device(
    model: DualEncoder, config: RunConfig, device: torch.device, precision: str, teaching: Teaching | None
) -> State:
    model = model.to(device)
    distillation = None
    if teaching:
        distillation = Distillation(config.distil, teaching.teachers, config.model.embed_dim).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = WeightAverage(model, config.train.ema) if config.train.ema else None
    beside = distillation.parameters() if distillation else ()
    return State(model, build_optimizer(model, config.optim, beside), scaler, average, distillation)


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
    chunk, share = trainer.chunk_size, trainer.loader.batch_size // trainer.ranks.size
    if trainer.ranks.size > 1:
        say(f"{trainer.ranks.size} ranks, each with {share} pictures of the batch")
    if chunk is not None and chunk < share:
        chunk = math.ceil(share / math.ceil(share / chunk))  # as even as can be
        say(f"pictures are embedded in chunks of {chunk}; {trainer.loader.batch_size} compete")
        if running_statistics(model.train()):
            say("batch norm normalises by the chunk: with train_batch_norm, chunks are not exactly the whole batch")
    if config.loss.siglip and model.logit_bias is None:
        say("SigLIP learns slowly without a bias: set model.logit_bias to -10 (--model.logit-bias -10)")
    if resumed:
        say(f"resumed at step {trainer.global_step} of {trainer.total_steps}")


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
