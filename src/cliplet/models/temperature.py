"""The factor that cosines are multiplied by before the softmax."""

from __future__ import annotations

import math

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

    def forward(self) -> torch.Tensor:
        """The factor itself, a scalar."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Puts the factor back between its bounds."""
        self.log_scale.clamp_(*self.bounds)
