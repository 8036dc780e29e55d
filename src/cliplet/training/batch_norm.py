"""Batch norm's running statistics when a step has more forward passes than one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def stands_still(model: nn.Module) -> Iterator[None]:
    """For passes over pictures already counted: a second gradient of the step, chunks computed again.

    Layers in training mode normalise by the batch as always, but their running statistics and their count of batches
    stay as they are. Layers in eval mode, which normalise by the running statistics, notice nothing.
    """
    layers = _tracking(model)
    for layer in layers:
        layer.track_running_stats = False  # read in training mode only, so the statistics are still there for eval
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def moves_once(model: nn.Module) -> Iterator[None]:
    """For the micro-batches of one step: however many there are, running statistics move as in one step.

        new = (1 - momentum) · old + momentum · mean over the micro-batches of their statistics

    and the count of batches rises by 1; momentum None stands for 1 / count, as in torch. The mean of the variances is
    not the variance of the whole batch, for micro-batches differ in their means; it is what the passes normalised by.

    The model's own buffers change at the end, and not at all after an exception. Layers in eval mode and layers without
    a pass stay as they are; passes within `stands_still` do not count. It does not nest in itself.
    """
    means = [_Mean(layer) for layer in _tracking(model) if layer.training]
    try:
        yield
    except BaseException:
        for mean in means:
            mean.remove()
        raise
    for mean in means:
        mean.remove()
        mean.move()


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers that have running statistics and move them; SyncBatchNorm and timm's are among them."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.track_running_stats and layer.running_mean is not None]


class _Mean:
    """Makes a layer average its statistics over passes, in buffers of this object's own.

    With momentum 1 / n at pass n, the layer's own update is the mean so far. (With momentum None torch does the same,
    but reads its count from the device, and so waits for it, in every layer and pass.) Other buffers are
    needed because a pass keeps the buffers it used for its backward, which fails if they were written since.
    """

    def __init__(self, layer: Any):  # a _BatchNorm, whose buffers could be None for mypy
        self.layer = layer
        self.old = layer.running_mean, layer.running_var, layer.num_batches_tracked
        self.momentum = layer.momentum
        self.passes = 0
        self.means = tuple(buffer.clone() for buffer in self.old)
        self._use(self.means)
        self.hook = layer.register_forward_pre_hook(self._count)

    def remove(self) -> None:
        """Gives the layer its buffers and its momentum back."""
        self.hook.remove()
        self._use(self.old)
        self.layer.momentum = self.momentum

    @torch.no_grad()
    def move(self) -> None:
        """Moves the layer's statistics by one step towards the mean, if there was a pass."""
        if not self.passes:
            return
        count = self.layer.num_batches_tracked.add_(1)
        for old, mean in zip(self.old[:2], self.means[:2], strict=True):
            share = count.to(old.dtype).reciprocal() if self.momentum is None else self.momentum
            old.mul_(1 - share).add_(share * mean)

    def _count(self, layer: Any, inputs: Any) -> None:
        if layer.training and layer.track_running_stats:
            self.passes += 1
            layer.momentum = 1 / self.passes

    def _use(self, buffers: tuple[torch.Tensor, ...]) -> None:
        self.layer.running_mean, self.layer.running_var, self.layer.num_batches_tracked = buffers
