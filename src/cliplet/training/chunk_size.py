"""How many pictures a run embeds at once: as configured, or the most that fit; and what to say when they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from cliplet.data.batch import Batch
from cliplet.errors import TrainingError
from cliplet.training.batch_norm import running_statistics, stands_still
from cliplet.training.memory import divisors, largest_chunk, what_would_fit
from cliplet.training.objective import loss_in_stage, weights_of
from cliplet.training.stages import set_trainable, trained_parameters
from cliplet.training.step import autocast, embed

if TYPE_CHECKING:
    from cliplet.training.trainer import Trainer

LOGITS = 4  # matrices of the size of a batch's logits that its loss holds at once, for each term that has such
ADAM = 2  # numbers that AdamW keeps for each parameter
CIRCUMSTANCE = "chunk size"  # under which a checkpoint keeps what was found


def choose_chunk_size(trainer: Trainer, say: Callable[[str], None]) -> int | None:
    """Pictures of a rank that are embedded at once; None: all of its part of the batch.

    Where train.chunk_size is auto, the largest that fits in the stage that trains most; a resumed run takes what was
    found at its beginning. Raises TrainingError where nothing fits, or chunks would be too small for batch norm.
    """
    configured = trainer.config.train.chunk_size
    chunk_size = _largest(trainer, say) if configured == "auto" else configured
    _refuse_single_pictures(trainer, chunk_size)
    return chunk_size


def _largest(trainer: Trainer, say: Callable[[str], None]) -> int:
    stages, model = trainer.config.train.stages, trainer.state.model
    if CIRCUMSTANCE not in trainer.circumstances:
        set_trainable(model, max(stages, key=lambda stage: trained_parameters(model, stage)))
        say("looking for the largest chunk that fits into memory")
        attempt = _attempt(trainer, trainer.first_batch())
        fits = largest_chunk(attempt, _sizes(trainer), trainer.device, say, reserve=_reserve(trainer))
        trainer.circumstances[CIRCUMSTANCE] = str(min(chunk for (chunk,) in trainer.ranks.exchange(fits)))
    return int(trainer.circumstances[CIRCUMSTANCE])


def _refuse_single_pictures(trainer: Trainer, chunk_size: int | None) -> None:
    """Batch norm tells nothing of a picture alone, and torch refuses it where a map has become one point."""
    share, model = trainer.loader.batch_size // trainer.ranks.size, trainer.state.model
    if share // math.ceil(share / (chunk_size or share)) > 1:
        return
    for stage in trainer.config.train.stages:
        set_trainable(model, stage)
        if running_statistics(model.train()):
            raise TrainingError(
                "a chunk of one picture cannot be normalised by batch norm, which the image tower trains",
                "Set a larger --train.chunk-size or --train.batch-size, or --model.image.train-batch-norm False.",
            )


def out_of_memory_answer(trainer: Trainer, error: BaseException, batch: Batch) -> TrainingError:
    """What to tell when a step ran out of memory: the settings that fit, tried on this rank's part of a batch."""
    share = trainer.loader.batch_size // trainer.ranks.size
    chunk = trainer.chunk_size or share
    if trainer.ranks.size > 1:  # the others are in the midst of their step, so nothing can be tried
        smaller = max((size for size in _sizes(trainer) if size <= chunk // 2), default=1)
        return TrainingError(
            f"rank {trainer.ranks.rank}: out of memory with {chunk} pictures at a time",
            f"Add --train.chunk-size {smaller} (gradients as of the whole batch), or auto, which finds the largest "
            "that fits.",
        )
    return what_would_fit(
        error,
        _attempt(trainer, batch),
        _sizes(trainer),
        trainer.device,
        batch=trainer.loader.batch_size,
        chunk=chunk,
        reserve=_reserve(trainer),
    )


def _sizes(trainer: Trainer) -> list[int]:
    """Chunks that share out a rank's part of the batch evenly; of one picture only where batch norm allows it."""
    sizes = divisors(trainer.loader.batch_size // trainer.ranks.size)
    return [size for size in sizes if size > 1] if running_statistics(trainer.state.model.train()) else sizes


def _reserve(trainer: Trainer) -> int:
    """Bytes that a step takes beside its chunk: gradients, the optimiser's averages where there are none yet, and the
    loss's matrices."""
    model, optimizer = trainer.state.model, trainer.state.optimizer
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    batch = trainer.loader.batch_size
    logits = batch * batch * trainer.config.data.captions_per_image * torch.float32.itemsize
    terms = max(len(weights_of(loss_in_stage(trainer.config, stage))) for stage in trainer.config.train.stages)
    return (1 if optimizer.state else 1 + ADAM) * trained + LOGITS * terms * logits


def _attempt(trainer: Trainer, batch: Batch) -> Callable[[int], None]:
    """Forward and backward of as many pictures of a batch as are asked for, without a trace."""
    model = trainer.state.model

    def attempt(pictures: int) -> None:
        model.train()
        try:
            chunk = max(batch.sized(pictures), key=_tokens).to(trainer.device)
            with stands_still(model), autocast(trainer.device, trainer.precision):
                live = [features for features in embed(model, chunk) if features.requires_grad]
            if live:
                torch.autograd.backward([features.sum() for features in live])
        finally:
            model.zero_grad(set_to_none=True)

    return attempt


def _tokens(chunk: Batch) -> int:
    return 0 if chunk.attention_mask_CL is None else chunk.attention_mask_CL.numel()
