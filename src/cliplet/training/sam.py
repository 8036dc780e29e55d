"""Sharpness-aware minimisation: the gradient of a step is taken where the loss near the weights is highest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Sam:
    """Moves weights up the gradient and back (Foret et al. 2021, arXiv:2010.01412); it knows no optimiser.

    A step takes two gradients: one at the weights w, a second at w + rho · g / ‖g‖. The optimiser then applies the
    second at w:

        loss(w).backward()              # accumulated over as many micro-batches as there are
        with sam.climbed():
            optimizer.zero_grad()
            loss(w).backward()          # the same batch again
        optimizer.step()                # clipping, if any, comes before it

    ‖g‖ is one norm over all parameters or, with `per_layer`, one for each layer: a module's own parameters, its weight
    and its bias together. Each layer then moves by rho, and L layers by rho · √L, so it takes a smaller rho.
    A parameter that several modules share counts once, with the first of them.

    Batch norm sees every picture twice; `batch_norm.stands_still` keeps its statistics out of the second pass.
    """

    def __init__(self, model: nn.Module, rho: float, per_layer: bool = False):
        """rho: the length of the climb, in units of the weights; 0 climbs nowhere. Raises ValueError below 0."""
        if not rho >= 0:
            raise ValueError(f"rho is {rho}, but a length is 0 or more")
        self.model = model
        self.rho = rho
        self.per_layer = per_layer
        self._before: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # None: not climbed

    @torch.no_grad()
    def climb(self) -> None:
        """Moves the weights to w + rho · g / ‖g‖, where g is what `.grad` holds: of the whole batch and unscaled.

        Parameters without a gradient stay, and so does a layer, or the model, whose gradient is 0. A gradient that is
        not finite makes weights NaN until `descend`, and with them the second gradient, so that a loss scaler skips
        the step. Raises RuntimeError when the weights have climbed already, for their old place would be lost.
        """
        if self._before is not None:
            raise RuntimeError("the weights have climbed already; descend first")
        parameters: list[torch.Tensor] = []
        moves: list[torch.Tensor] = []
        for layer in self._layers():
            gradients = [parameter.grad for parameter in layer if parameter.grad is not None]
            if gradients:
                parameters += [parameter for parameter in layer if parameter.grad is not None]
                moves += _of_length(self.rho, gradients)
        self._before = [(parameter, parameter.clone()) for parameter in parameters]
        if parameters:
            torch._foreach_add_(parameters, moves)

    @torch.no_grad()
    def descend(self) -> None:
        """Puts the weights back, bit for bit. Raises RuntimeError when they have not climbed."""
        if self._before is None:
            raise RuntimeError("the weights have not climbed")
        if self._before:
            # From copies: w + move - move is not w in floating point.
            torch._foreach_copy_([parameter for parameter, _ in self._before], [copy for _, copy in self._before])
        self._before = None

    @contextmanager
    def climbed(self) -> Iterator[None]:
        """`climb`, and `descend` at the end, whatever happens in between."""
        self.climb()
        try:
            yield
        finally:
            self.descend()

    def _layers(self) -> Iterator[list[nn.Parameter]]:
        """The parameters that share a norm, each of the model's once."""
        if not self.per_layer:
            yield list(self.model.parameters())
            return
        seen: set[nn.Parameter] = set()
        for module in self.model.modules():
            own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
            seen.update(own)
            yield own


def _of_length(rho: float, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients, scaled so that their common norm is rho; zeros for zeros. Nothing waits for the device here."""
    # A norm in half precision would be rounded, or overflow; float() is free for float32.
    gradients = [gradient if gradient.dtype == torch.float64 else gradient.float() for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Below the smallest normal number, rho / norm could overflow; such a norm is 0.
    factor = torch.where(norm > torch.finfo(norm.dtype).tiny, rho / norm, 0.0)
    return list(torch._foreach_mul(gradients, factor))
