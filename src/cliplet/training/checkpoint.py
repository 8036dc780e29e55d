"""Everything a run needs to go on exactly where it was, in one file that is there whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cliplet.config import RunConfig, differences, validated
from cliplet.errors import TrainingError

FORMAT_VERSION = 1
# Keys in which a resumed run may differ: they change how it runs, not what it computes.
FREE = ("train.output", "train.log_every", "train.checkpoint_every", "data.workers")


@dataclass
class Checkpoint:
    """A run between two steps."""

    config: RunConfig
    epoch: int  # the epoch to go on with
    step: int  # the step of that epoch to go on with
    model: dict[str, Any]  # state dict
    tokenizer: str  # tokenizer.json
    image_architecture: dict[str, Any] | None
    text_architecture: dict[str, Any] | None
    optimizer: dict[str, Any]  # state dict
    scaler: dict[str, Any]  # state dict
    random: dict[str, Any]  # states of the random generators that dropout uses
    circumstances: dict[str, str]  # what the configuration leaves open but the result depends on: precision, data
    best: dict[str, Any]  # epoch and metrics of the best validation so far; empty before the first

    def save(self, file: Path) -> None:
        """Writes the checkpoint beside its place and moves it there, flushed to the disk before that.

        Raises TrainingError when the disk is full or cannot be written; an earlier checkpoint is then untouched.
        """
        fresh = file.with_name(f".{file.name}.writing")
        content = {"format_version": FORMAT_VERSION, **vars(self), "config": self.config.model_dump(mode="json")}
        try:
            with fresh.open("wb") as stream:
                torch.save(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(file)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
            fresh.unlink(missing_ok=True)
            raise TrainingError(
                f"{file}: the checkpoint could not be written: {error}", "Free some space; then add --resume to go on."
            ) from None

    @classmethod
    def load(cls, file: Path) -> Checkpoint:
        """Reads a checkpoint, unpickling nothing. Raises TrainingError if missing, damaged or of another version."""
        if not file.is_file():
            raise TrainingError(f"{file}: there is no checkpoint to resume from", "Leave --resume out to start anew.")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            version = content.pop("format_version")
        except Exception as error:  # truncated, or another kind of file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrainingError(
                f"{file}: the checkpoint is damaged: {reason}", "Start anew in another folder."
            ) from None
        if version != FORMAT_VERSION:
            raise TrainingError(f"{file}: is of version {version}; this cliplet reads version {FORMAT_VERSION}")
        content["config"] = validated(RunConfig, content["config"], str(file))
        try:
            return cls(**content)
        except TypeError as error:
            raise TrainingError(
                f"{file}: the checkpoint is not whole: {error}", "Start anew in another folder."
            ) from None

    def refuse_other_config(self, config: RunConfig) -> None:
        """Raises TrainingError naming each key in which `config` would make this another run."""
        changed = [line for line in differences(self.config, config) if not line.startswith(FREE)]
        if changed:
            raise TrainingError(
                "the run to resume has another configuration:\n  " + "\n  ".join(changed),
                "Resume with the same settings, or start anew in another folder (--train.output).",
            )

    def refuse_other_circumstances(self, circumstances: dict[str, str]) -> None:
        """Raises TrainingError when data or precision are not those that the run began with."""
        changed = [
            f"{name}: {self.circumstances.get(name)} -> {value}"
            for name, value in circumstances.items()
            if self.circumstances.get(name) != value
        ]
        if changed:
            raise TrainingError(
                "the run to resume began under other circumstances:\n  " + "\n  ".join(changed),
                "Bring back the data, name the precision (--train.precision), or start anew in another folder.",
            )


def random_state() -> dict[str, Any]:
    """States of torch's generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any]) -> None:
    """Puts torch's generators back."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
