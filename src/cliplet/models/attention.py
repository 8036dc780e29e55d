"""Attention for the text transformer: full, Linformer and Performer. Padding never changes the row of a real token.

All take states (N, L, W) and a mask (N, L), int64 or bool, with 1 or True at real tokens; every text has at least one.
All return (N, L, W), in which rows at padding mean nothing. There is no dropout inside; the block around applies it.

Shapes: N texts, L tokens, W width, H heads, G heads of keys and values (H or 1), E width of a head,
K tokens after Linformer's projection, R random features of Performer.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from cliplet.errors import ModelError, nearest

KINDS = ("full", "linformer", "performer")


class FullAttention(nn.Module):
    """Every token attends to every real token: softmax attention (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        _head_width(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, states_NLW: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        query_NHLE, key_NHLE, value_NHLE = _split(self.qkv(states_NLW), self.heads)
        attend_N11L = mask_NL.bool()[:, None, None, :]
        mixed_NHLE = F.scaled_dot_product_attention(query_NHLE, key_NHLE, value_NHLE, attn_mask=attend_N11L)
        return self.out(_merge(mixed_NHLE))


class LinformerAttention(nn.Module):
    """Keys and values are projected along the tokens, from L to `k` rows (Wang et al. 2020, arXiv:2006.04768).

    Parameters have the names and shapes of the `linformer` package's LinformerSelfAttention, so that state dicts map
    one to one. With `one_kv_head` all heads share one of keys and values; with `share_kv` values are the keys.
    A text of L tokens uses the first L rows of the projections. Raises ModelError for more than `context_length`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        context_length: int,
        k: int,
        one_kv_head: bool = True,
        share_kv: bool = True,
    ):
        super().__init__()
        head_width = _head_width(width, heads)
        self.heads = heads
        self.kv_heads = 1 if one_kv_head else heads
        self.context_length = context_length
        self.share_kv = share_kv
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, self.kv_heads * head_width, bias=False)
        self.proj_k = nn.Parameter(torch.empty(context_length, k).uniform_(-(k**-0.5), k**-0.5))
        if not share_kv:
            self.to_v = nn.Linear(width, self.kv_heads * head_width, bias=False)
            self.proj_v = nn.Parameter(torch.empty(context_length, k).uniform_(-(k**-0.5), k**-0.5))
        self.to_out = nn.Linear(width, width)

    def forward(self, states_NLW: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        length = states_NLW.shape[1]
        if length > self.context_length:
            raise ModelError(
                f"texts of {length} tokens are longer than the {self.context_length} that Linformer projects",
                "Cut the texts, or train with a larger model.text.context_length.",
            )
        # A softmax over projected tokens has no place for a mask. But keys and values have no bias: where the state is
        # zero so are they, and a zero adds nothing to the projection, as if the text ended before it.
        states_NLW = states_NLW.masked_fill(~mask_NL.bool()[:, :, None], 0)
        query_NHLE = self.to_q(states_NLW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_NHKE = self._project(self.to_k(states_NLW), self.proj_k[:length])
        value_NHKE = key_NHKE if self.share_kv else self._project(self.to_v(states_NLW), self.proj_v[:length])
        return self.to_out(_merge(F.scaled_dot_product_attention(query_NHLE, key_NHKE, value_NHKE)))

    def _project(self, tokens_NLV: torch.Tensor, proj_LK: torch.Tensor) -> torch.Tensor:
        """Keys or values (N, L, G * E), projected along the tokens and given to all heads: (N, H, K, E)."""
        projected_NKV = torch.einsum("nlv,lk->nkv", tokens_NLV, proj_LK)
        projected_NGKE = projected_NKV.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        return projected_NGKE.expand(-1, self.heads, -1, -1)


class PerformerAttention(nn.Module):
    """FAVOR+: softmax attention estimated with positive orthogonal random features, in time and memory linear in L.

    Choromanski et al. 2021, arXiv:2009.14794. The kernel exp(q·k) is the mean over Gaussian w of
    exp(w·q - |q|²/2) exp(w·k - |k|²/2), so keys and values can be summed once for all queries. `features` is the number
    of w, by default max(16, round(E ln E)). They are drawn once, shared by all heads and saved with the weights: a
    saved model gives its own features again.
    """

    projection: torch.Tensor  # (R, E)

    def __init__(self, width: int, heads: int, features: int | None = None):
        super().__init__()
        head_width = _head_width(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        if features is None:
            features = max(16, round(head_width * math.log(head_width)))
        self.register_buffer("projection", orthogonal_gaussian(features, head_width))

    def forward(self, states_NLW: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        query_NHLE, key_NHLE, value_NHLE = _split(self.qkv(states_NLW), self.heads)
        with torch.autocast(states_NLW.device.type, enabled=False):  # exponentials need more than bf16's eight bits
            precise = torch.promote_types(query_NHLE.dtype, torch.float32)
            mixed_NHLE = self._favor(query_NHLE.to(precise), key_NHLE.to(precise), value_NHLE.to(precise), mask_NL)
        return self.out(_merge(mixed_NHLE.to(value_NHLE.dtype)))

    def _favor(
        self, query_NHLE: torch.Tensor, key_NHLE: torch.Tensor, value_NHLE: torch.Tensor, mask_NL: torch.Tensor
    ) -> torch.Tensor:
        """Attention (N, H, L, E) by random features, in the precision of the query.

        What cancels in the division is never computed: 1/√R and the query's exp(-|q|²/2). For each feature, the largest
        exponent of the keys at real tokens is moved to the query's side, and there the largest of each query taken out.
        So some query feature is exactly 1, as is a key's at the same feature: the divisor is at least 1, and needs no
        epsilon however large the states are.
        """
        scale = query_NHLE.shape[-1] ** -0.25  # on both sides: 1/√E in the product
        projection_RE = self.projection.to(query_NHLE.dtype)
        query_exponent_NHLR = (scale * query_NHLE) @ projection_RE.T
        key_NHLE = scale * key_NHLE
        key_exponent_NHLR = key_NHLE @ projection_RE.T - key_NHLE.square().sum(-1, keepdim=True) / 2
        padding_N1L1 = ~mask_NL.bool()[:, None, :, None]
        key_exponent_NHLR = key_exponent_NHLR.masked_fill(padding_N1L1, -torch.inf)
        # Both stabilisers cancel, and so would their gradients.
        largest_NH1R = key_exponent_NHLR.detach().amax(2, keepdim=True)
        query_exponent_NHLR = query_exponent_NHLR + largest_NH1R
        largest_NHL1 = query_exponent_NHLR.detach().amax(3, keepdim=True)
        key_NHLR = (key_exponent_NHLR - largest_NH1R).exp()  # 0 at padding
        query_NHLR = (query_exponent_NHLR - largest_NHL1).exp()
        weighted_NHLE = query_NHLR @ (key_NHLR.transpose(2, 3) @ value_NHLE)
        return weighted_NHLE / (query_NHLR @ key_NHLR.sum(2).unsqueeze(-1))


def orthogonal_gaussian(rows: int, columns: int) -> torch.Tensor:
    """Standard Gaussian vectors (rows, columns), orthogonal within each block of `columns` rows.

    Directions are uniform on the sphere and norms chi-distributed, as of independent Gaussians, so that estimates stay
    unbiased while their variance falls (Choromanski et al. 2021, section 2.4).
    """
    blocks = []
    for _ in range(math.ceil(rows / columns)):
        q, r = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64))
        blocks.append((q * r.diagonal().sign()).T)  # with these signs q is uniform; as QR gives them it is not
    norms = torch.randn(rows, columns, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (norms * torch.cat(blocks)[:rows]).to(torch.get_default_dtype())


def build_attention(
    kind: str,
    width: int,
    heads: int,
    context_length: int,
    *,
    linformer_k: int,
    one_kv_head: bool,
    share_kv: bool,
    performer_features: int | None,
) -> nn.Module:
    """The attention of that kind: `full`, `linformer` or `performer`. What belongs to another kind is not looked at.

    Raises ModelError for an unknown kind, and where `width` is not a multiple of `heads`.
    """
    if kind == "full":
        return FullAttention(width, heads)
    if kind == "linformer":
        return LinformerAttention(width, heads, context_length, linformer_k, one_kv_head, share_kv)
    if kind == "performer":
        return PerformerAttention(width, heads, performer_features)
    raise ModelError(f"there is no attention {kind!r}", nearest(kind, KINDS))


def _head_width(width: int, heads: int) -> int:
    """The width of a head. Raises ModelError where heads do not divide the width."""
    if width % heads:
        raise ModelError(f"model.text.width {width} is not a multiple of model.text.heads {heads}")
    return width // heads


def _split(qkv_NLX: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value (N, H, L, E) from what a linear layer of width 3 W gives."""
    query_NHLE, key_NHLE, value_NHLE = qkv_NLX.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return query_NHLE, key_NHLE, value_NHLE


def _merge(mixed_NHLE: torch.Tensor) -> torch.Tensor:
    """The heads side by side again: (N, L, W)."""
    return mixed_NHLE.transpose(1, 2).flatten(2)
