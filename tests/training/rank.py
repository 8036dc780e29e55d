"""Ranks of a test: each makes steps of a small model on its part of the batches. `python rank.py FOLDER GROUPS`, where
GROUPS is JSON of numbers of ranks and ports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from engine import LOSSES, TAUGHT, batch_of, build, distillation_of, gradients_of, sgd, shared_out, taught
from safetensors.torch import save_file
from torch import nn

from cliplet.training.averages import WeightAverage
from cliplet.training.batch_norm import normalise_over_ranks
from cliplet.training.distributed import Ranks, joined
from cliplet.training.sam import Sam
from cliplet.training.step import Stepper


def run(ranks: Ranks, settings: dict) -> dict[str, torch.Tensor]:
    """Gradients of the last step, and the state after it."""
    batch_norm = settings.get("batch_norm", False)
    model = build(settings.get("temperature", "learned"), batch_norm=batch_norm, bias=settings.get("bias"))
    for parameter in model.image_tower.parameters():
        parameter.requires_grad_(not settings.get("frozen", False))
    if ranks.size > 1:
        normalise_over_ranks(model)
    model.train()
    widths = settings.get("teachers", ())
    distillation = distillation_of(model, widths) if widths else None

    def begun() -> Stepper:
        return Stepper(
            model,
            sgd(model, distillation),
            chunk_size=settings.get("chunk_size"),
            sam=Sam(nn.ModuleList([model, *([distillation] if distillation else [])]), 0.3)
            if settings.get("sam")
            else None,
            clip_norm=settings.get("clip_norm"),
            ranks=ranks,
            average=WeightAverage(model, 0.9),
            distillation=distillation,
        )

    stepper = begun()
    for step in range(settings.get("steps", 1)):
        if step == settings.get("resumed_at"):
            stepper = begun()
        batches = [
            shared_out(
                taught(batch_of(model, settings.get("pictures", 12), seed=10 * step + number), widths),
                ranks.rank,
                ranks.size,
            )
            for number in range(settings.get("batches", 1))
        ]
        result = stepper.step(batches, {**LOSSES, **TAUGHT}[settings.get("loss", "info_nce")], (1, step))
    beside = gradients_of(distillation) if distillation else {}
    return {
        **{f"gradient of distillation {name}": gradient for name, gradient in beside.items()},
        **{f"gradient {name}": gradient for name, gradient in gradients_of(model).items()},
        **{f"state {name}": tensor.clone() for name, tensor in model.state_dict().items()},
        "loss": result.loss,
        "norm": result.grad_norm,
    }


def main(out: Path, rank: int, ranks: int) -> None:
    with joined(60) as group:
        assert (group.rank, group.size) == (rank, ranks)
        for name, settings in json.loads((out / "cases.json").read_text()).items():
            ended = {key: tensor.contiguous() for key, tensor in run(group, settings).items()}
            save_file(ended, out / f"{name}-{rank}-of-{ranks}.safetensors")


if __name__ == "__main__":
    # Ranks are forked from here, one group after another: importing takes far longer than all that they do, and forking
    # is safe as long as torch has not computed anything.
    for ranks, port in json.loads(sys.argv[2]).items():
        os.environ.update(WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        children = []
        for rank in range(int(ranks)):
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            if not (child := os.fork()):
                main(Path(sys.argv[1]), rank, int(ranks))
                sys.stdout.flush()
                os._exit(0)
            children.append(child)
        failed = [os.waitpid(child, 0)[1] for child in children]
        if any(failed):
            sys.exit(f"ranks ended with {failed}")
