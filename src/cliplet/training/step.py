"""One step: loss and gradients of a batch, then the optimiser."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from cliplet.config import RunConfig
from cliplet.data.loader import Batch
from cliplet.losses import info_nce
from cliplet.models import DualEncoder


@dataclass(frozen=True)
class StepResult:
    """Scalars of a step, still on the device so that reading them is the caller's choice."""

    loss: torch.Tensor
    grad_norm: torch.Tensor  # before clipping


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision for the towers; losses see float32 whatever this is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def train_step(
    model: DualEncoder, optimizer: torch.optim.Optimizer, batch: Batch, config: RunConfig, precision: str
) -> StepResult:
    """Forward, backward, clip, step, clamp the temperature."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(batch.pixels_B3HW.device, precision):
        image_BD, text_CD, logit_scale = model(batch.pixels_B3HW, batch.input_ids_CL, batch.attention_mask_CL)
    loss = info_nce(image_BD, text_CD, logit_scale, batch.caption_image_C, config.loss.soft_targets)
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    optimizer.step()
    model.temperature.clamp_()
    return StepResult(loss.detach(), grad_norm)
