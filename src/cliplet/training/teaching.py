"""The teachers of a run, live or stored: opening them, and what they put into its batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cliplet.config import LossConfig, RunConfig
from cliplet.data.batch import Batch
from cliplet.data.records import Records
from cliplet.data.teacher_store import StoredTargets, TeacherInfo, TeacherStore
from cliplet.errors import TrainingError
from cliplet.training.objective import is_taught, loss_in_stage
from cliplet.training.optim import choose_precision
from cliplet.training.teachers import LiveTeachers, identity, known_facts


@dataclass(frozen=True)
class Teaching:
    """Teachers that run in every step, or what they said once and for all."""

    teachers: tuple[TeacherInfo, ...]
    circumstance: str  # tells these teachers from others, in the run's checkpoints
    live: LiveTeachers | None = None
    targets: StoredTargets | None = None

    def for_loader(self, loss: LossConfig) -> dict[str, Any]:
        """What a loader's epoch is to be given for this loss."""
        if not is_taught(loss):
            return {}
        return {"targets": self.targets, "teacher_sizes": self.live.sizes if self.live else ()}

    def taught(self, batch: Batch, loss: LossConfig) -> Batch:
        """A batch with what the teachers make of it, if the loss asks for that."""
        return self.live.taught(batch) if self.live and is_taught(loss) else batch


def open_teaching(
    config: RunConfig, records: Records, device: torch.device, say: Callable[[str], None]
) -> Teaching | None:
    """The teachers that a run names, ready for its training records; None for a run without. Live ones compute in bf16
    where the device is fast at it.

    Raises ModelError for teachers that cannot be opened, DataError for a store that is not whole, or made for other
    teachers, data or views.
    """
    if not config.distil.active:
        return None
    if config.distil.store:
        return _stored(config, records, say)
    precision = choose_precision("auto", device)  # as stores have it; the student's own may be chosen for other reasons
    live = LiveTeachers(config.distil.teachers, records, device, precision)
    names = ", ".join(f"{one.name} in {one.precision}" for one in live.infos)
    digest = hashlib.sha256(repr([replace(one, name="") for one in live.infos]).encode()).hexdigest()
    say(f"teachers in every step, in {precision}: {', '.join(map(_described, live.infos))}")
    return Teaching(live.infos, f"{names} ({digest[:12]})", live=live)


def _stored(config: RunConfig, records: Records, say: Callable[[str], None]) -> Teaching:
    store = TeacherStore.open(Path(config.distil.store))
    taught = [stage for stage in config.train.stages if is_taught(loss_in_stage(config, stage))]
    augmented = any(stage.augment for stage in taught)
    names = config.distil.teachers
    asked = [identity(name) for name in names]
    facts = {name: known_facts(name) for name, _ in asked}
    store.refuse_others(asked, config.augment if augmented else None, facts)
    targets = store.aligned(records)
    if augmented and not store.settings.augmentations:
        raise TrainingError(
            f"{store.folder}: a stage augments, but the store has whole pictures only",
            "Make the store with --augmentations, or set augment: false in every stage that teachers have a part in.",
        )
    if targets.whole is None and any(not stage.augment for stage in taught):
        raise TrainingError(
            f"{store.folder}: a stage shows pictures whole (augment: false), of which the store has no teacher's "
            "features",
            "Make the store with --whole, or let the stage augment.",
        )
    views = f"{targets.views} view{'s' * (targets.views > 1)} a picture"
    say(f"teachers from {store.folder}, {views}: {', '.join(map(_described, store.teachers))}")
    digest = hashlib.sha256("".join(shard.sha256 for shard in store.manifest.shards).encode()).hexdigest()
    return Teaching(store.teachers, f"store {digest[:12]}", targets=targets)


def _described(teacher: TeacherInfo) -> str:
    scale = "" if teacher.logit_scale is None else f", logit scale {teacher.logit_scale:.4g}"
    return f"{teacher.name} ({teacher.embed_dim} wide, {teacher.image_size} pixels{scale})"
