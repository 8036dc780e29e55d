"""Everything a run needs to go on exactly where it was, in one file that is there whole or not at all; the newest few
of a run, so that a damaged one costs some steps and not the run."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cliplet.config import RunConfig, differences, validated
from cliplet.errors import TrainingError
from cliplet.files import written_beside

FORMAT_VERSION = 2
# Keys in which a resumed run may differ: how often it writes, how long it waits.
FREE = (
    "train.output",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.rank_timeout",
    "data.workers",
    # What these come to is among the circumstances: the pictures' names and captions, what teachers said of them, bf16
    # or another.
    "data.path",
    "data.images",
    "distil.store",
    "train.precision",
)
# Keys in which it may differ too, and which are said: the same steps computed otherwise, with another rounding and
# maybe another dropout.
SAID = (
    "train.chunk_size",
    "train.compile",
    "train.cache_features",
    "train.features",
    "train.device",
)
SAID_CIRCUMSTANCES = ("ranks",)
ANEW = "Start anew in another folder (--train.output)."
CHUNK = 1 << 20  # bytes
# torch writes a zip, whose own checksums torch does not check and which miss the zip's directory: one bit of it turned,
# a tensor is memory that was never written. So the whole file has a checksum, in the zip's comment at its very end.
NO_COMMENT = b"\0\0"  # a zip without a comment ends so, with the comment's length
SEAL = b"sha256 "
SEAL_BYTES = len(NO_COMMENT) + len(SEAL) + 64


class DamagedCheckpoint(TrainingError):
    """A checkpoint that is not as it was written."""


@dataclass
class Checkpoint:
    """A run between two steps."""

    config: RunConfig
    epoch: int  # the epoch to go on with
    step: int  # the step of that epoch to go on with
    skipped: int  # steps left out so far because their loss was no number
    model: dict[str, Any]  # state dict
    tokenizer: str  # tokenizer.json
    image_architecture: dict[str, Any] | None
    text_architecture: dict[str, Any] | None
    optimizer: dict[str, Any]  # state dict
    scaler: dict[str, Any]  # state dict
    averages: dict[str, Any]  # state dict of the average of the weights; empty without one
    circumstances: dict[str, str]  # what the configuration leaves open but the result depends on: precision, data
    best: dict[str, Any]  # epoch and metrics of the best validation so far; empty before the first
    distillation: dict[str, Any] = field(default_factory=dict)  # state dict of a student's projections to teachers

    @property
    def progress(self) -> tuple[int, int]:
        """The epoch, and the step of it, to go on with."""
        return self.epoch, self.step

    def save(self, file: Path) -> None:
        """Writes the checkpoint beside its place and moves it there, flushed to the disk before that.

        Raises TrainingError when the disk is full or cannot be written; an earlier checkpoint is then untouched.
        """
        content = {"format_version": FORMAT_VERSION, **vars(self), "config": self.config.model_dump(mode="json")}
        try:
            with written_beside(file) as beside:
                _write_sealed(content, beside)
        except (OSError, RuntimeError) as error:
            reason: BaseException = error
            # torch's zip writer lays an error of its own, on its position in the file, over what befell it.
            if isinstance(error, RuntimeError) and isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                reason = error.__context__
            if isinstance(reason, KeyboardInterrupt):
                raise reason from None
            raise TrainingError(
                f"{file}: the checkpoint could not be written: {reason}",
                "Free some space; then go on with --resume, or start again where there is no checkpoint yet.",
            ) from None

    @classmethod
    def load(cls, file: Path) -> Checkpoint:
        """Reads a checkpoint, unpickling nothing.

        Raises DamagedCheckpoint for one that is not as it was written, TrainingError if it is missing or another
        version's, ConfigError if its configuration is not one of this version.
        """
        if not file.is_file():
            raise TrainingError(f"{file}: there is no checkpoint to resume from", "Leave --resume out to start anew.")
        try:
            _refuse_damage(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or "format_version" not in content:
                raise ValueError("another kind of file")
        except Exception as error:  # cut off, altered, unreadable: torch and the disk have many words for it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DamagedCheckpoint(f"{file} is damaged ({reason})", ANEW) from None
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise TrainingError(
                f"{file}: is a checkpoint of version {version}; this cliplet reads version {FORMAT_VERSION}",
                "Upgrade cliplet." if newer else ANEW,
            )
        content["config"] = validated(RunConfig, content["config"], str(file))
        try:
            return cls(**content)
        except TypeError as error:
            raise TrainingError(f"{file}: the checkpoint is not whole: {error}", ANEW) from None

    def refuse_other_config(self, config: RunConfig) -> list[str]:
        """Raises TrainingError naming each key in which `config` would make this another run.

        Returns the differences that make it no other run but should be said, as `train.compile: False -> True`.
        """
        changed = {line.partition(":")[0]: line for line in differences(self.config, config)}
        refused = [line for key, line in changed.items() if key not in FREE + SAID]
        if refused:
            raise TrainingError(
                "the run to resume has another configuration:\n  " + "\n  ".join(refused),
                "Resume with the same settings, or start anew in another folder (--train.output).",
            )
        return [line for key, line in changed.items() if key in SAID]

    def refuse_other_circumstances(self, circumstances: dict[str, str]) -> list[str]:
        """Raises TrainingError when data or precision are not those that the run began with.

        Returns the other differences, which should be said, as `ranks: 1 -> 2`.
        """
        changed = {
            name: f"{name}: {self.circumstances.get(name, '(unknown)')} -> {value}"
            for name, value in circumstances.items()
            if self.circumstances.get(name) != value
        }
        refused = [line for name, line in changed.items() if name not in SAID_CIRCUMSTANCES]
        if refused:
            raise TrainingError(
                "the run to resume began under other circumstances:\n  " + "\n  ".join(refused),
                "Bring back the data and the teachers, name the precision it had (--train.precision), or start anew in "
                "another folder.",
            )
        return [line for name, line in changed.items() if name in SAID_CIRCUMSTANCES]


class Checkpoints:
    """The newest checkpoints of a run, in a folder to which one process at a time writes: step-00001200.pt, ..."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._single = folder.parent / "checkpoint.pt"  # where version 1 had its only one

    def exists(self) -> bool:
        """Whether there is any, good or damaged."""
        return bool(self._steps()) or self._single.is_file()

    def save(self, checkpoint: Checkpoint, global_step: int) -> None:
        """Writes the checkpoint of a step, in the place of an earlier one of that step, and removes the oldest.

        Raises TrainingError when the disk is full or cannot be written; earlier checkpoints are then untouched.
        """
        for left in self.folder.glob(".step-*.pt"):  # of a process that was killed while writing
            left.unlink(missing_ok=True)
        checkpoint.save(self._file(global_step))
        steps = self._steps()
        done = steps.index(global_step) + 1
        # The steps ahead were damaged when the run was resumed, or it would have gone on from them.
        for step in steps[: max(0, done - self.keep)] + steps[done:]:
            self._file(step).unlink(missing_ok=True)

    def latest(self, say: Callable[[str], None]) -> Checkpoint:
        """The newest good checkpoint; of each newer one that is damaged it is said aloud why and what it costs.

        Raises TrainingError when none is good, or as Checkpoint.load.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self._steps()):
            file = self._file(step)
            try:
                checkpoint = Checkpoint.load(file)
            except DamagedCheckpoint as error:
                damaged[step] = error.message
                continue
            for later, message in damaged.items():
                cost = f"{later - step:,} step{'s' * (later - step > 1)}"
                say(f"{message}; going on from {file.name}, {cost} earlier")
            return checkpoint
        if damaged:
            raise TrainingError("no checkpoint is good:\n  " + "\n  ".join(damaged.values()), ANEW)
        if self._single.is_file():
            raise TrainingError(
                f"{self._single}: is a checkpoint of version 1; this cliplet reads version {FORMAT_VERSION}",
                f"End the run with the cliplet that began it. Or: {ANEW}",
            )
        raise TrainingError(
            f"{self.folder}: there is no checkpoint to resume from", "Leave --resume out to start anew."
        )

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _steps(self) -> list[int]:
        """The steps that have a checkpoint, the oldest first."""
        names = (re.fullmatch(r"step-(\d{8,})\.pt", file.name) for file in self.folder.glob("step-*.pt"))
        return sorted(int(name[1]) for name in names if name)


class _Hashed(io.BufferedWriter):
    """A file to write to that keeps the checksum of all that is written."""

    def __init__(self, raw: io.RawIOBase):
        super().__init__(raw)
        self.checksum = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.checksum.update(data)
        return super().write(data)


def _write_sealed(content: Any, file: Path) -> None:
    with _Hashed(file.open("wb", buffering=0)) as stream:
        torch.save(content, stream)
        stream.seek(-len(NO_COMMENT), os.SEEK_END)
        stream.write(_seal(stream.checksum.hexdigest()))


def _seal(checksum: str) -> bytes:
    """The end of a zip with a comment: length of the comment, comment. `checksum` is of the zip without one."""
    comment = SEAL + checksum.encode()
    return len(comment).to_bytes(2, "little") + comment


def _refuse_damage(file: Path) -> None:
    """Raises ValueError unless every byte of the file is as it was written; OSError where it cannot be read."""
    checksum, left = hashlib.sha256(), max(0, file.stat().st_size - SEAL_BYTES)
    with file.open("rb") as stream:
        while chunk := stream.read(min(CHUNK, left)):
            checksum.update(chunk)
            left -= len(chunk)
        seal = stream.read()
    checksum.update(NO_COMMENT)
    if seal[len(NO_COMMENT) :][: len(SEAL)] != SEAL:
        raise ValueError("cut off, or another kind of file")
    if seal != _seal(checksum.hexdigest()):
        raise ValueError("its checksum is wrong")
