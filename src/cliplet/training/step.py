"""One step: loss and gradients of its batches, twice with SAM, then the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from cliplet.config import LossConfig
from cliplet.data.loader import Batch
from cliplet.models import DualEncoder
from cliplet.training.batch_norm import moves_once, stands_still
from cliplet.training.objective import loss_terms, total
from cliplet.training.sam import Sam

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """Scalars of a step, still on the device so that reading them is the caller's choice."""

    loss: torch.Tensor  # the mean over the step's batches
    terms: dict[str, torch.Tensor]  # the loss's terms, without their weights
    logit_scale: torch.Tensor
    grad_norm: torch.Tensor  # before clipping


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision for the towers; losses see float32 whatever this is."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES)


def train_step(
    model: DualEncoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Sequence[Batch],
    loss: LossConfig,
    *,
    sam: Sam | None = None,
    clip_norm: float | None = None,
    precision: str = "fp32",
) -> StepResult:
    """Gradients of the mean loss over `batches`, clip, step, clamp the temperature.

    With `sam` the gradients are taken twice, and the second ones count. The gradients are unscaled once in each pass,
    before anything is made of their size; running statistics of batch norm move once in all. With a scaler that is
    switched on, a step whose gradients are not finite is skipped. The result is the first pass's, but for the norm.
    """
    with moves_once(model) if len(batches) > 1 else nullcontext():
        value, terms, logit_scale = _gradients(model, optimizer, scaler, batches, loss, precision)
    if sam is not None:
        # update() closes the first pass for the scaler, which unscales once between two updates.
        scaler.update()
        with sam.climbed(), stands_still(model):
            _gradients(model, optimizer, scaler, batches, loss, precision)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    scaler.step(optimizer)
    scaler.update()
    model.temperature.clamp_()
    return StepResult(value, terms, logit_scale, norm)


def _gradients(
    model: DualEncoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Sequence[Batch],
    loss: LossConfig,
    precision: str,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Unscaled gradients of the mean loss; gives that mean, the mean of each term, and the last logit scale."""
    optimizer.zero_grad(set_to_none=True)
    values, parts = [], []
    for batch in batches:
        with autocast(batch.pixels_B3HW.device, precision):
            output = model(batch.pixels_B3HW, batch.input_ids_CL, batch.attention_mask_CL)
        terms = loss_terms(output, batch.caption_image_C, loss)
        value = total(terms, loss)
        scaler.scale(value / len(batches)).backward()
        values.append(value.detach())
        parts.append({name: term.detach() for name, term in terms.items()})
    scaler.unscale_(optimizer)
    means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
    return torch.stack(values).mean(), means, output.logit_scale.detach()
