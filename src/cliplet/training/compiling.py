"""torch.compile for the towers, where it works."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from cliplet.data.batch import Batch
from cliplet.models import DualEncoder
from cliplet.training.batch_norm import stands_still
from cliplet.training.memory import out_of_memory
from cliplet.training.step import autocast, embed


def compile_towers(
    model: DualEncoder, batch: Batch, device: torch.device, precision: str, say: Callable[[str], None]
) -> bool:
    """Compiles both towers in place, and tries them, forward and backward, on `batch`; whether that worked.

    Parameters, names and what is saved stay as they are. Where compiling fails, for want of a C++ compiler or by what a
    tower does, this is said and the towers are as before. Texts differ in length from batch to batch, so the text
    tower is compiled for any length. Gradients of the trial are thrown away.
    """
    towers = (model.image_tower, model.text_tower)
    model.image_tower.compile()
    model.text_tower.compile(dynamic=True)
    start = time.monotonic()
    try:
        with stands_still(model), autocast(device, precision):
            image_BD, text_CD = embed(model.train(), batch.to(device))
        if image_BD.requires_grad or text_CD.requires_grad:
            (image_BD.sum() + text_CD.sum()).backward()
    except Exception as error:
        if out_of_memory(error):
            raise
        for tower in towers:
            tower._compiled_call_impl = None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"torch.compile failed, so the towers run as they are: {type(error).__name__}: {reason}")
        return False
    finally:
        model.zero_grad(set_to_none=True)
    say(f"towers compiled in {time.monotonic() - start:.0f} s")
    return True
