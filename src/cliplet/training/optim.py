"""Parameter groups, the learning-rate schedule, and the precision to compute in."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from cliplet.config import OptimConfig
from cliplet.errors import TrainingError
from cliplet.models import DualEncoder
from cliplet.training.stages import head_parameters


def build_optimizer(
    model: DualEncoder, config: OptimConfig, beside: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, with groups for each tower and for heads and temperature.

    Matrices decay; norms, biases and temperature do not. Frozen parameters are in it too and get no gradient, so that
    a later stage finds its groups as they were. `beside`: what trains with the model at its heads' rate and is no part
    of it.
    """
    parts = {
        "image": list(model.image_tower.parameters()),
        "text": list(model.text_tower.parameters()),
        "head": head_parameters(model),
    }
    beside = list(beside)
    parts["head"] += beside
    groups = []
    for name, parameters in parts.items():
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        groups.append({"name": name, "part": name, "params": matrices, "weight_decay": config.weight_decay})
        groups.append({"name": f"{name}, no decay", "part": name, "params": others, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=1e-6, fused=True)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.betas[0], fused=True)
    if config.betas[0]:
        # Where its first step is skipped, fused SGD leaves memory that was never written to as its momentum.
        for parameter in (*model.parameters(), *beside):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(step: int, total: int, stage_start: int, config: OptimConfig) -> float:
    """The share of its peak that each rate has at `step` of `total`, both counted over all stages.

    One cosine from 1 to `final_lr` over the whole run, or 1 throughout, times a linear rise at the start of each
    stage: what a stage sets free has no Adam statistics yet, and full rates at once would undo its pretraining.
    """
    warmup = max(1, round(config.warmup * total))
    rise = min(1.0, (step - stage_start + 1) / warmup)
    if config.schedule == "constant":
        return rise
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, total)))
    return rise * (config.final_lr + (1 - config.final_lr) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, peaks: dict[str, float], share: float) -> None:
    """Sets the rate of each part's groups to this share of the part's peak."""
    for group in optimizer.param_groups:
        group["lr"] = share * peaks[group["part"]]


def choose_device(name: str, local_rank: int = 0, local_ranks: int = 1) -> torch.device:
    """The device of that name; `auto` takes the best there is. Of several ranks on a machine each takes the GPU of its
    number. Raises TrainingError for a device that is not there, and for more ranks than GPUs."""
    if local_ranks > 1 and name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")  # gloo knows CPUs alone
    if local_ranks > 1 and name not in ("auto", "cuda", "cpu"):
        raise TrainingError(
            f"{local_ranks} ranks cannot all use the device {name!r}", "Use --train.device auto, cuda or cpu."
        )
    if local_ranks > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        if local_ranks > torch.cuda.device_count():
            raise TrainingError(
                f"{local_ranks} ranks on a machine with {torch.cuda.device_count()} GPUs",
                f"Start as many as there are GPUs (--nproc-per-node {torch.cuda.device_count()}), or use "
                "--train.device cpu.",
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"the device {name!r} cannot be used: {reason}", "Use --train.device auto.") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` takes bf16 where the hardware has instructions for it, fp16 on GPUs that have
    them for that alone (Volta, Turing), else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    if device.type == "cpu":
        # Without these instructions bf16 is emulated, and slower than fp32.
        fast = (
            getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
            or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
        )
        return "bf16" if fast else "fp32"
    return "fp32"
