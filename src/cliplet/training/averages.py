"""Averages of weights: over the steps of a run, and between a run's start and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from cliplet.config import differences
from cliplet.errors import ConfigError, ModelError, TrainingError
from cliplet.models import DualEncoder
from cliplet.models.sources import load_exactly
from cliplet.training.start import FREE

NAMED = 3  # weights that an error names at most


class WeightAverage:
    """An exponential moving average of a model's weights, which often retrieves better than the weights themselves
    (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780).

        average = d · average + (1 - d) · weights,    d = min(decay, (1 + n) / (10 + n)) after n earlier steps

    It begins with the weights that the model has here, and holds every parameter and every floating-point buffer of the
    state (the running statistics of batch norm among them), one that several modules share once. Of integer buffers
    there is no average; the model's own stand. The model must be on its device already and stay there. Parameters that
    never trained keep their bits.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Raises ValueError for a decay that does not lie between 0 and 1."""
        if not 0 < decay < 1:
            raise ValueError(f"the decay is {decay}, but must lie between 0 and 1")
        self.decay = decay
        self._live = _floating_state(model)
        self._averages = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._parameters = [name for name, tensor in self._live.items() if isinstance(tensor, nn.Parameter)]
        self._buffers = [name for name, tensor in self._live.items() if not isinstance(tensor, nn.Parameter)]
        self._trained: set[str] = set()
        self._swapped = False
        # On the device, for only the device knows which steps were skipped.
        self._steps = torch.zeros((), dtype=torch.int64, device=next(iter(self._live.values())).device)

    @torch.no_grad()
    def update(self, unless: torch.Tensor | None = None) -> None:
        """Moves the averages towards the weights, after an optimiser step; nothing waits for the device here.

        `unless`: a bool scalar on the device; where it is true, the step was skipped, and neither the averages nor the
        count that warms up the decay change. Raises RuntimeError while the averages are in the model.
        """
        if self._swapped:
            raise RuntimeError("the averages are in the model, and would be averaged with themselves")
        share = (9 / (10 + self._steps)).clamp_min(1 - self.decay)  # 1 - d
        if unless is None:
            self._steps += 1
        else:
            share = share.masked_fill(unless, 0)
            self._steps += ~unless
        # What is frozen now but trained in an earlier stage is still on its way.
        self._trained.update(name for name in self._parameters if self._live[name].requires_grad)
        names = [name for name in self._parameters if name in self._trained]
        if names:
            averages = [self._averages[name] for name in names]
            shares = [share.to(average.dtype) for average in averages]
            torch._foreach_lerp_(averages, [self._live[name] for name in names], shares)
        if self._buffers:
            self._move_buffers(share, unless)

    def _move_buffers(self, share: torch.Tensor, unless: torch.Tensor | None) -> None:
        """The same for buffers, where a skipped step may have left what is no number, and a mask may be infinite."""
        averages = [self._averages[name] for name in self._buffers]
        # As one tensor, since there are hundreds of small ones.
        old = torch.cat([average.flatten() for average in averages])
        new = torch.cat([self._live[name].flatten() for name in self._buffers])
        stays = old == new if unless is None else (old == new) | unless
        moved = torch.where(stays, old, old + share * (new - old))
        parts = moved.split([average.numel() for average in averages])
        torch._foreach_copy_(averages, [part.view(a.shape) for part, a in zip(parts, averages, strict=True)])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it, the model has the averages for weights; after it its own again, bit for bit, whatever happens in
        between. What is written into the model meanwhile is lost. Raises RuntimeError within itself."""
        if self._swapped:
            raise RuntimeError("the averages are in the model already")
        live = list(self._live.values())
        before = [tensor.detach().clone() for tensor in live]
        self._swapped = True
        try:
            with torch.no_grad():
                torch._foreach_copy_(live, list(self._averages.values()))
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, before)
            self._swapped = False

    def state_dict(self) -> dict[str, Any]:
        """The averages by the names of the model's state, and the count of steps: nothing but tensors, not copied."""
        return {"steps": self._steps, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave; the model's own state is to be loaded before.

        Raises TrainingError naming weights that are missing, left over or of another shape.
        """
        theirs = state["averages"]
        wrong = _other_shapes(theirs, self._averages)
        if wrong:
            raise TrainingError("the averaged weights are another model's:\n  " + "\n  ".join(wrong))
        for name, average in self._averages.items():
            average.copy_(theirs[name])
        self._steps.copy_(state["steps"])
        # Whatever trained has left the weights behind.
        self._trained = {name for name in self._parameters if not torch.equal(self._averages[name], self._live[name])}


class Mixture(NamedTuple):
    """The best of several mixtures."""

    share: float  # of the tuned weights
    model: DualEncoder
    metrics: dict[float, dict[str, float]]  # of each share that was tried


def best_mixture(
    start: DualEncoder,
    tuned: DualEncoder,
    shares: Sequence[float],
    measure: Callable[[DualEncoder], dict[str, float]],
) -> Mixture:
    """The mixture of the highest metrics["rsum"] among `shares` of the tuned weights and the tuned model itself, which
    is always tried; of equals, the one with the larger share. Raises what `interpolate` raises."""
    best = Mixture(1.0, tuned, {1.0: measure(tuned)})
    for share in sorted({*shares} - {1.0}, reverse=True):
        model = interpolate(start, tuned, share)
        best.metrics[share] = measure(model)
        if best.metrics[share]["rsum"] > best.metrics[best.share]["rsum"]:
            best = Mixture(share, model, best.metrics)
    return best


@torch.no_grad()
def interpolate(start: DualEncoder, tuned: DualEncoder, share: float) -> DualEncoder:
    """(1 - share) · start + share · tuned, in evaluation mode on tuned's device (Wortsman et al. 2022, WiSE-FT,
    arXiv:2109.01903).

    It holds for all floating-point weights and buffers of the state, the temperature's logarithm among them. Where the
    two agree, and at share 0 or 1, they come out bit for bit. Integer buffers, configuration and tokenizer are tuned's.
    Mixing makes sense only of a model and what was trained from it, or of two that were trained from the same.
    Raises ConfigError for a share outside 0 to 1, ModelError naming each key in which the two are not the same model.
    """
    refuse_bad_share(share)
    _refuse_other_model(start, tuned)
    theirs = start.state_dict()
    mixed = {name: _mixed(theirs[name].to(own.device), own, share) for name, own in tuned.state_dict().items()}
    model = DualEncoder.skeleton(
        tuned.config, tuned.tokenizer, tuned.image_tower.architecture, tuned.text_tower.architecture
    )
    load_exactly(model, mixed, "the mixture")
    return model.to(tuned.pixel_mean.device).eval()


def refuse_bad_share(share: float) -> None:
    """Raises ConfigError for a share outside 0 to 1."""
    if not 0 <= share <= 1:
        raise ConfigError(
            f"the share of the tuned weights is {share}, but must lie from 0 to 1",
            "0 is the model that training started from, 1 the tuned one, 0.5 halfway between.",
        )


def _mixed(start: torch.Tensor, tuned: torch.Tensor, share: float) -> torch.Tensor:
    if share == 1 or not tuned.is_floating_point():
        return tuned
    if share == 0:
        return start
    return torch.where(start == tuned, tuned, start.lerp(tuned, share))


def _refuse_other_model(start: DualEncoder, tuned: DualEncoder) -> None:
    changed = [f"model.{line}" for line in differences(start.config, tuned.config) if not line.startswith(FREE)]
    if start.logit_bias is not None and tuned.logit_bias is not None:  # only where it started differs
        changed = [line for line in changed if not line.startswith("model.logit_bias:")]
    if start.tokenizer.to_json() != tuned.tokenizer.to_json():
        sizes = f"{start.tokenizer.vocab_size:,} -> {tuned.tokenizer.vocab_size:,} entries"
        changed.append(f"tokenizer: {sizes}, not the same ones")
    for side in ("image", "text"):
        towers = getattr(start, f"{side}_tower"), getattr(tuned, f"{side}_tower")
        theirs, own = (_shaping(tower.architecture or {}) for tower in towers)
        changed += [f"{side} tower, {key}: {theirs.get(key)} -> {own.get(key)}" for key in _unequal(theirs, own)]
    changed = changed or _other_shapes(start.state_dict(), tuned.state_dict())  # else they only say the same again
    if changed:
        raise ModelError(
            "the two are not the same model (start -> tuned):\n  " + "\n  ".join(changed),
            "Mix a model with what was trained from it (train.start_from).",
        )


def _shaping(architecture: dict[str, Any]) -> dict[str, Any]:
    """What of a tower's architecture decides on what it computes: neither where it is from nor its dropout."""
    return {
        key: value
        for key, value in architecture.items()
        if not (key.startswith("_") or key in ("architectures", "transformers_version") or "dropout" in key)
    }


def _unequal(some: dict[str, Any], others: dict[str, Any]) -> list[str]:
    return [key for key in {**some, **others} if key not in some or key not in others or some[key] != others[key]]


def _other_shapes(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """The first few names under which two states do not hold the same shape, as `name: (2, 3) -> absent`."""
    shapes, other_shapes = ({name: tuple(t.shape) for name, t in state.items()} for state in (some, others))
    names = _unequal(shapes, other_shapes)
    lines = [f"{name}: {shapes.get(name, 'absent')} -> {other_shapes.get(name, 'absent')}" for name in names[:NAMED]]
    return lines + (["..."] if len(names) > NAMED else [])


def _floating_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a model's state themselves, a shared one under its first name."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
