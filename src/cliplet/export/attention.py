"""Attention as engines like it: two matrix products and a softmax, which they fuse, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

HIDDEN = -1e9  # added to a score it hides a token; unlike -inf it makes no NaN of a row, which graphs would look for


class PlainAttention(TorchFunctionMode):
    """Within it, scaled_dot_product_attention is written out.

    PyTorch's exporter writes it with a search for NaN in every layer, for rows in which all is masked, and scales keys
    as well as queries. Here a text has at least one token, so there are no such rows.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return _attention(*args, **{name: value for name, value in kwargs.items() if name != "enable_gqa"})
        return func(*args, **kwargs)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """F.scaled_dot_product_attention in evaluation; the parameters are its own."""
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, HIDDEN)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value
