"""Frozen towers: while one is, and its input not augmented, what it gives is computed once and kept on the disk.

A stage that trains heads alone so reads features and never a picture, in training and in validation. What is computed
where stands in `tower_features.py`; here it is decided, shared out among ranks, and handed out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cliplet.config import AugmentConfig, StageConfig
from cliplet.data.feature_store import FeatureStore
from cliplet.data.loader import default_workers
from cliplet.data.records import Records
from cliplet.data.tokens import TokenizedCaptions
from cliplet.errors import TrainingError
from cliplet.models import DualEncoder
from cliplet.models.towers import ImageTower, TextTower, is_trained
from cliplet.runtime.encoder import Encoder
from cliplet.runtime.engines import TorchEngine
from cliplet.training.distributed import place_of_rank
from cliplet.training.lookup import LookingUp, Lookup
from cliplet.training.tower_features import (
    Pixels,
    Progress,
    compute_images,
    compute_texts,
    evaluation_pixels,
    image_store,
    text_store,
    training_pixels,
    weights_checksum,
)

if TYPE_CHECKING:
    from cliplet.training.trainer import Trainer

FOLDER = "features"  # in the run folder
TOLD_EVERY = 60.0  # seconds, of what takes long
ROOM = 0.9  # share of what is free on the disk that features may take

Say = Callable[[str], None]


def silent(message: str) -> None:
    """Says nothing."""


class FrozenFeatures:
    """Of one stage: the stores that take the places of pictures and of captions in training, where there are any, and
    an Encoder that has the like for validation."""

    def __init__(self, trainer: Trainer):
        self.image: FeatureStore | None = None
        self.text: FeatureStore | None = None
        self._trainer = trainer
        self._frozen: dict[str, str] = {}  # checksums of the weights of towers that are, by side
        self._validation: dict[str, FeatureStore | None] = {}  # of the validation records, by side
        config = trainer.config
        self._folder = Path(config.train.features or config.output / FOLDER)
        self._workers = config.data.workers or default_workers()

    @classmethod
    def of_stage(cls, trainer: Trainer, stage: StageConfig, say: Say) -> FrozenFeatures:
        """What a stage can keep, all computed. Parameters are frozen and freed already; every rank is to call this.

        Parts that are on the disk already are not computed again. Raises TrainingError where features cannot be
        written.
        """
        features, model = cls(trainer), trainer.state.model
        if not trainer.config.train.cache_features:
            return features
        features._frozen = {side: weights_checksum(tower) for side, tower in _towers(model) if not is_trained(tower)}
        records, tokens = trainer.train_records, trainer.loader.tokens
        if "image" in features._frozen and stage.augment and augments(trainer.config.augment):
            say(
                "the image tower is frozen, but pictures are augmented anew each epoch; with augment: false in this "
                "stage its features would be computed once"
            )
        elif "image" in features._frozen:
            pixels = training_pixels(model)
            features.image = features._images(model, records, "whole", pixels, trainer.precision, say)
        drawn = stage.epochs * trainer.config.data.captions_per_image * len(records)
        if "text" in features._frozen and drawn >= len(tokens):  # else few of those computed would be looked at
            features.text = features._texts(model, tokens, trainer.precision, say)
        return features

    def encoder(self, model: DualEncoder, precision: str) -> Encoder:
        """The model as an Encoder, which looks up what frozen towers give for the validation records.

        Features are computed when first asked for, by all ranks together. A tower whose weights are not those of the
        stage (averages of what trained before it, say), or which runs in another precision than validation in the
        stage does, computes as ever.
        """
        encoder = Encoder(
            TorchEngine(model, precision), model.tokenizer, model.config.preprocess, model.config.embed_dim
        )
        sides = set()
        if _in_validation(precision) == _in_validation(self._trainer.precision):
            for side, tower in _towers(model):
                if side not in self._frozen:
                    continue
                same = self._frozen[side] == weights_checksum(tower)
                if all(everywhere for (everywhere,) in self._trainer.ranks.exchange(int(same))):
                    sides.add(side)
        for side in sorted(sides - self._validation.keys()):
            self._validation[side] = self._of_validation(side, model, _in_validation(precision))
        found = {side: self._validation[side] for side in sides}
        lookup = Lookup(self._trainer.val_records, found.get("image"), found.get("text"))
        return LookingUp(encoder, model, lookup, self._trainer.device, _in_validation(precision))

    def clear(self) -> None:
        """Removes the features, unless other runs are to have them."""
        self.image = self.text = None
        self._validation.clear()
        if not self._trainer.config.train.features:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _of_validation(self, side: str, model: DualEncoder, precision: str) -> FeatureStore | None:
        """What a frozen tower gives for the validation records."""
        records = self._trainer.val_records
        if side == "image":
            return self._images(model, records, "evaluation", evaluation_pixels(model), precision)
        return self._texts(model, TokenizedCaptions(records.captions(), model.tokenizer), precision)

    def _images(
        self, model: DualEncoder, records: Records, view: str, pixels: Pixels, precision: str, say: Say = silent
    ) -> FeatureStore | None:
        device = self._trainer.device
        store = image_store(self._folder, model, self._frozen["image"], records, view, device, precision)

        def compute(parts: Sequence[int], progress: Progress) -> None:
            compute_images(store, parts, model, records, pixels, device, precision, self._workers, progress)

        if not self._completed(store, compute, "image", f"{len(store):,} pictures", say):
            return None
        for row, reason in store.reasons.items():
            self._trainer.quarantine.add(records.image(row), reason)
        return store

    def _texts(
        self, model: DualEncoder, tokens: TokenizedCaptions, precision: str, say: Say = silent
    ) -> FeatureStore | None:
        device = self._trainer.device
        store = text_store(self._folder, model, self._frozen["text"], tokens, device, precision)

        def compute(parts: Sequence[int], progress: Progress) -> None:
            compute_texts(store, parts, model, tokens, device, precision, progress)

        return store if self._completed(store, compute, "text", f"{len(store):,} captions", say) else None

    def _completed(
        self,
        store: FeatureStore,
        compute: Callable[[Sequence[int], Progress], None],
        tower: str,
        what: str,
        say: Say,
    ) -> bool:
        """Computes what a store lacks, with the other ranks; whether it is whole then."""
        ranks, missing = self._trainer.ranks, store.missing()
        needed, free = store.bytes_of(missing), _free(self._folder)
        if not all(fits for (fits,) in ranks.exchange(int(needed <= ROOM * free))):
            say(
                f"the {tower} tower is frozen, but its features of {what} would take {needed / 1e9:.1f} GB of the "
                f"{free / 1e9:.1f} GB left in {self._folder}, so they are computed in each step; train.features names "
                "another folder"
            )
            return False
        say(
            f"the {tower} tower is frozen: its features of {what} are "
            + (f"computed once ({self._folder})" if missing else f"there already ({self._folder})")
        )
        start, told = time.monotonic(), _now_and_then(say)
        try:
            compute(ranks.from_first(lambda: missing)[ranks.rank :: ranks.size], told)
            ranks.barrier()
            compute(store.missing(*place_of_rank()), told)  # where every machine has a disk of its own
            ranks.barrier()
        except OSError as error:
            reason = error.strerror or f"is the disk full? ({error})"  # numpy gives no errno
            raise TrainingError(
                f"{self._folder}: the {tower} tower's features cannot be written: {reason}",
                "Name another folder with --train.features, or go without: --train.cache-features False.",
            ) from None
        if missing:
            say(f"computed in {time.monotonic() - start:.0f} s")
        return all(whole for (whole,) in ranks.exchange(int(store.open())))


def _towers(model: DualEncoder) -> list[tuple[str, ImageTower | TextTower]]:
    return [("image", model.image_tower), ("text", model.text_tower)]


def augments(config: AugmentConfig) -> bool:
    """Whether any view of a picture is not the whole of it as it is."""
    changed = max(config.flip, config.brightness, config.contrast, config.saturation)
    return config.crop_scale != (1.0, 1.0) or changed > 0


def _in_validation(precision: str) -> str:
    """The precision in which an Encoder of a run in that precision computes."""
    return "bf16" if precision == "bf16" else "fp32"


def _now_and_then(say: Say) -> Progress:
    """Says how far the work is, when it has not for a while."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > TOLD_EVERY:
            last = time.monotonic()
            say(f"{done:,} of {total:,}")

    return progress


def _free(folder: Path) -> int:
    """Bytes left on the disk of a folder that may not be there yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free
