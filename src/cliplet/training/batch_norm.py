"""Batch norm when a step has more forward passes than one, and when its batch lies on more ranks than one.

Shapes: C channels, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.overrides import TorchFunctionMode


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
def moves_once(model: nn.Module) -> Iterator[Statistics]:
    """For the micro-batches of one step: however many there are, running statistics move as in one step.

        new = (1 - momentum) · old + momentum · mean over the micro-batches of their statistics

    and the count of batches rises by 1; momentum None stands for 1 / count, as in torch. The mean of the variances is
    not the variance of the whole batch, for micro-batches differ in their means; it is what the passes normalised by.

    The model's own buffers change at the end, and not at all after an exception or where `unless` of what it yields
    was told so. Layers in eval mode and layers without a pass stay as they are; passes within `stands_still` do not
    count. It does not nest in itself.
    """
    statistics = Statistics()
    means = [_Mean(layer) for layer in _tracking(model) if layer.training]
    try:
        yield statistics
    except BaseException:
        for mean in means:
            mean.remove()
        raise
    for mean in means:
        mean.remove()
        mean.move(statistics.skip)


class Statistics:
    """What a step can say of its statistics before `moves_once` moves them."""

    skip: torch.Tensor | None = None

    def unless(self, skip: torch.Tensor) -> None:
        """Nothing moves, the counts of batches included, if `skip` is true: a bool scalar on the model's device.

        It stays there, for reading it would make the step wait for the device.
        """
        self.skip = skip


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running means and variances of the layers that move them now."""
    layers: list[Any] = [layer for layer in _tracking(model) if layer.training]
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]


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
    def move(self, skip: torch.Tensor | None) -> None:
        """Moves the layer's statistics by one step towards the mean, if there was a pass and `skip` is not true."""
        if not self.passes:
            return
        *statistics, tracked = self.old
        count = tracked + 1
        for old, mean in zip(statistics, self.means[:2], strict=True):
            share = count.to(old.dtype).reciprocal() if self.momentum is None else self.momentum
            new = old * (1 - share) + share * mean
            # Chosen, not multiplied by 0 or 1: what is skipped may be NaN.
            old.copy_(new if skip is None else torch.where(skip, old, new))
        tracked.copy_(count if skip is None else torch.where(skip, tracked, count))

    def _count(self, layer: Any, inputs: Any) -> None:
        if layer.training and layer.track_running_stats:
            self.passes += 1
            layer.momentum = 1 / self.passes

    def _use(self, buffers: tuple[torch.Tensor, ...]) -> None:
        self.layer.running_mean, self.layer.running_var, self.layer.num_batches_tracked = buffers


def normalise_over_ranks(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """From now on batch norm in training mode normalises by the pictures of all ranks of `group`; None: all there are.

    Outputs, gradients of inputs and running statistics become those of one process with the whole batch. Gradients of a
    layer's weight and bias stay this rank's sums, to be added up with all other parameters'. Ranks may have different
    numbers of pictures, each at least one, but must make the same passes in the same order, for each waits in each
    layer for the others: once in a forward pass and once in its backward pass. Layers in eval mode wait for nobody. A
    group of one rank changes nothing.

    Layers stay the objects that they are and get a subclass of their class; copies of them are of the class that they
    had, and normalise by their own batch. Called again, it takes the new group. torch's SyncBatchNorm is left alone.
    """
    alone = dist.get_world_size(group) == 1
    classes: dict[type, type] = {}
    for layer in model.modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, SyncBatchNorm):
            continue
        plain = layer.plain if isinstance(layer, _OverRanks) else type(layer)
        if plain not in classes:
            attributes = {"group": group, "plain": plain, "__doc__": plain.__doc__}
            classes[plain] = plain if alone else type(f"{plain.__name__}OverRanks", (_OverRanks, plain), attributes)
        layer.__class__ = classes[plain]


class _OverRanks(_BatchNorm):
    """Put before a batch norm class, makes it normalise by the batch of all ranks.

    torch.nn.SyncBatchNorm does the same, but refuses tensors on a CPU (as of torch 2.15), and it replaces the layers
    and with them what subclasses do besides. Here the layer's own forward runs, whatever it is, and only the function
    that it calls to normalise is another. The group is the class's, because a copy of the layer could not copy it.
    """

    group: dist.ProcessGroup | None
    plain: type

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        with _Replaced(self.group):
            return super().forward(input)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        function, (_, *rest), *state = reduced
        return function, (self.plain, *rest), *state


class _Replaced(TorchFunctionMode):
    """Within it, F.batch_norm takes the batch of all ranks."""

    def __init__(self, group: dist.ProcessGroup | None):
        super().__init__()
        self.group = group

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(self.group, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    group: dist.ProcessGroup | None,
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """F.batch_norm, whose parameters these are, by the statistics of all ranks."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    with torch.no_grad():
        count, mean_C, squares_C = _over_all(*_own(input), group)
        if running_mean is not None and running_var is not None:
            running_mean.mul_(1 - momentum).add_(momentum * mean_C)
            running_var.mul_(1 - momentum).add_(momentum * squares_C / (count - 1))
        var_C = squares_C / count
    input = _Depends.apply(input, mean_C, var_C, count, eps, group)
    # Kernels take values of half precision with parameters of the same precision or, as here, with float32.
    weight, bias = (None if one is None else one.to(mean_C.dtype) for one in (weight, bias))
    return F.batch_norm(input, mean_C, var_C, weight, bias, training=False, eps=eps)


def _own(input: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Of each channel of this rank: number of values, their mean (C,), their squared distances from it (C,).

    In float32 or better. Squares are those of distances from a mean, never of the values, whose digits a large mean
    would take; the sum of the distances corrects for the mean's own rounding (Chan, Golub and LeVeque 1983, 1.7).
    """
    channels = input.shape[1]
    number = input.numel() // channels
    if input.dtype.itemsize == 2 and number > 1:  # torch's kernel is fast, and good to more digits than the values have
        mean_C, var_C = torch.zeros(2, channels, device=input.device)
        F.batch_norm(input, mean_C, var_C, training=True, momentum=1.0)
        return number, mean_C, var_C * (number - 1)
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    axes = [axis for axis in range(input.ndim) if axis != 1]
    rough = values.mean(axes, keepdim=True)
    centred = values - rough
    error_C = centred.mean(axes)
    # In float64, for a mean in float32 is too rough to be taken from another rank's.
    return number, rough.flatten().double() + error_C, centred.square_().sum(axes) - number * error_C**2


def _over_all(
    number: int, mean_C: torch.Tensor, squares_C: torch.Tensor, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `_own` gives, over all ranks, the number as (1,): in the precision of `squares_C`, the same bits on each."""
    own = torch.cat([squares_C.new_full((1,), number, dtype=torch.float64), mean_C.double(), squares_C.double()])
    every = own.new_empty(dist.get_world_size(group), len(own))
    dist.all_gather(list(every), own, group=group)  # all_gather_into_tensor is not in every gloo
    count_R1, mean_RC, squares_RC = every.split([1, len(mean_C), len(mean_C)], dim=1)
    count = count_R1.sum(0)
    mean = (count_R1 * mean_RC).sum(0) / count
    squares = squares_RC.sum(0) + (count_R1 * (mean_RC - mean) ** 2).sum(0)
    return count.to(squares_C.dtype), mean.to(squares_C.dtype), squares.to(squares_C.dtype)


class _Depends(torch.autograd.Function):
    """Gives its input, which is then normalised by fixed numbers; the gradient learns here that they depend on it.

    With g the gradient as if they did not, and x̂ the normalised input, it is g - mean(g) - x̂ · mean(g · x̂), means over
    the batch of all ranks: Ioffe and Szegedy 2015, section 3, in another order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        mean_C: torch.Tensor,
        var_C: torch.Tensor,
        count: torch.Tensor,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(input, mean_C, var_C, count)
        ctx.eps, ctx.group = eps, group
        return input.view_as(input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, mean_C, var_C, count = ctx.saved_tensors
        # The gradients that a weight and a bias would have are the sums of g · x̂ and of g, read once for both.
        nothing = mean_C.new_empty(0)  # CUDA's kernel wants saved statistics to be there, and does not look at them
        _, product_C, sum_C = torch.ops.aten.native_batch_norm_backward(
            gradient,
            input,
            torch.ones_like(var_C),
            mean_C,
            var_C,
            nothing,
            nothing,
            False,
            ctx.eps,
            [False, True, True],
        )
        means = torch.cat([product_C, sum_C])
        dist.all_reduce(means, group=ctx.group)
        slope_C, offset_C = (means / count).chunk(2)
        learned = gradient - F.batch_norm(input, mean_C, var_C, slope_C, offset_C, training=False, eps=ctx.eps)
        return learned, None, None, None, None, None
