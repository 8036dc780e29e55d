"""The factor that cosines are multiplied by before the softmax. B images, C captions, D embed_dim."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cliplet.config import TemperatureConfig


class LearnedTemperature(nn.Module):
    """One learned number, kept as its logarithm (Radford et al. 2021, CLIP).

    It is held between its bounds by `clamp_` after each step and not in the forward pass, where a clamp would
    cut its gradient and leave it stuck at the bound.
    """

    def __init__(self, config: TemperatureConfig):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.init)))
        self.bounds = math.log(config.minimum), math.log(config.maximum)

    def forward(self, image_BD: torch.Tensor | None = None, text_CD: torch.Tensor | None = None) -> torch.Tensor:
        """The factor itself, a scalar, whatever the features."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Puts the factor back between its bounds."""
        self.log_scale.clamp_(*self.bounds)


class DynamicTemperature(nn.Module):
    """A network 1 -> hidden -> 1 that reads the variance of the batch's cosines and gives the factor's logarithm, as
    in MiniCLIP.

    The variance is over all (image, caption) pairs of the batch. One pair, or features that are all equal, have none:
    the variance is then 0, the factor is what the network says of 0, and every gradient is finite. The factor starts
    near `init` and stays between its bounds; at a bound, gradients pass that lead back and no others.
    """

    def __init__(self, config: TemperatureConfig):
        super().__init__()
        last = nn.Linear(config.hidden, 1)
        self.mlp = nn.Sequential(nn.Linear(1, config.hidden), nn.ReLU(), last)
        self.bounds = math.log(config.minimum), math.log(config.maximum)
        # MiniCLIP starts near a factor of 1, from which a softmax over cosines learns slowly.
        nn.init.constant_(last.bias, math.log(config.init))
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, image_BD: torch.Tensor | None = None, text_CD: torch.Tensor | None = None) -> torch.Tensor:
        """The factor for the cosines of these unit features, a scalar; without features, that of variance 0."""
        weight = next(self.mlp.parameters())
        variance = weight.new_zeros(1)
        with torch.autocast(weight.device.type, enabled=False):
            if image_BD is not None and text_CD is not None and len(image_BD) * len(text_CD) > 1:
                variance = (image_BD.to(weight.dtype) @ text_CD.to(weight.dtype).T).var().view(1)
            log_scale: torch.Tensor = _Bounded.apply(self.mlp(variance), *self.bounds)
            return log_scale.exp().squeeze()

    def clamp_(self) -> None:
        """Nothing to do: the bounds are kept in the forward pass."""


class _Bounded(torch.autograd.Function):
    """A clamp that does not hold fast what it has caught: beyond a bound, a gradient whose step leads back passes."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (value,), (gradient,) = ctx.saved_tensors, gradients
        outward = ((value > ctx.high) & (gradient < 0)) | ((value < ctx.low) & (gradient > 0))
        return gradient.masked_fill(outward, 0), None, None


def build_temperature(config: TemperatureConfig) -> LearnedTemperature | DynamicTemperature:
    """The temperature that `config` names."""
    return LearnedTemperature(config) if config.kind == "learned" else DynamicTemperature(config)
