"""What makes training on a CPU fast: memory that is kept from step to step, and attention by matrix products.

Shapes: N texts or pictures, H heads, L tokens, E width of a head.
"""

from __future__ import annotations

import ctypes
import math
import os
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_memory() -> bool:
    """Makes malloc keep what is freed, for the whole process; whether it can.

    A step frees its activations, and the next wants them again. By default glibc gives blocks above 32 MB back to the
    system at once, which then clears every page anew: a quarter of the CPU time of a step of TinyViT at batch 64. The
    peak of memory stays what it is, but it is held between steps. Where the environment sets malloc's threshold
    (MALLOC_TRIM_THRESHOLD_), that stands.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    libc = ctypes.CDLL(None) if hasattr(ctypes.CDLL(None), "gnu_get_libc_version") else None
    if libc is None:  # musl, macOS and Windows have no such settings
        return False
    # Without the first, freed blocks at the end of the heap are given back; without the second, large ones never lie
    # in the heap at all.
    return bool(libc.mallopt(M_TRIM_THRESHOLD, -1) and libc.mallopt(M_MMAP_THRESHOLD, 1 << 30))


class MatrixAttention(TorchFunctionMode):
    """Within it, attention in bfloat16 is two matrix products and a softmax.

    On CPUs, PyTorch's fused kernel is slower than that in bfloat16 and, with a bias or with dropout, its fall-back
    computes in float32: together a fifth of a step (torch 2.15, AVX-512 with bfloat16). In float32 the fused kernel is
    the faster one, so there it stays. Probabilities are rounded to bfloat16, like all else in that precision.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query_NHLE: torch.Tensor,
    key_NHLE: torch.Tensor,
    value_NHLE: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> torch.Tensor:
    """F.scaled_dot_product_attention; the parameters are its own."""
    scale = settings.get("scale")
    if query_NHLE.dtype != torch.bfloat16 or is_causal or settings.get("enable_gqa"):
        return F.scaled_dot_product_attention(
            query_NHLE, key_NHLE, value_NHLE, attn_mask, dropout_p, is_causal, **settings
        )
    scaled_NHLE = query_NHLE * (1 / math.sqrt(query_NHLE.shape[-1]) if scale is None else scale)
    scores_NHLL = scaled_NHLE @ key_NHLE.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores_NHLL = scores_NHLL.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores_NHLL = scores_NHLL + attn_mask.to(scores_NHLL.dtype)
    shares_NHLL = scores_NHLL.softmax(-1)
    if dropout_p:
        shares_NHLL = F.dropout(shares_NHLL, dropout_p)
    return shares_NHLL @ value_NHLE
