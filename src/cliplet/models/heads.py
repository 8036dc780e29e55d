"""From a tower's features to the shared space: (B, width) to (B, embed_dim), not normalised.

Shapes: B rows, N texts, L tokens, W width, H hidden, D embed_dim.
"""

from __future__ import annotations

import torch
from torch import nn

from cliplet.config import HeadConfig, SharedHeadConfig
from cliplet.errors import ModelError


class ResidualHead(nn.Module):
    """x = Linear(in, D), then LayerNorm(x + dropout(Linear(GELU(x)))), as in miniCLIP_DL."""

    def __init__(self, width: int, embed_dim: int, dropout: float):
        super().__init__()
        self.projection = nn.Linear(width, embed_dim)
        self.fc = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_BW: torch.Tensor) -> torch.Tensor:
        projected_BD = self.projection(features_BW)
        return self.norm(projected_BD + self.dropout(self.fc(nn.functional.gelu(projected_BD))))


class ConvFfnHead(nn.Module):
    """Token states and mask to one vector a text, as in TinyCLIP-ConvFFN: (N, L, W) and (N, L) to (N, D).

    Linear, depthwise convolution over the tokens, dropout, GELU, mean over the real tokens, Linear, LayerNorm.
    Padding is zero where the convolution reads it, which is what it reads beyond the ends of a text alone.
    """

    def __init__(self, width: int, embed_dim: int, hidden: int, kernel: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.convolution = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(hidden, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, states_NLW: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        padding_NL = ~mask_NL.bool()
        padding_NL1 = padding_NL.unsqueeze(-1)
        # Filled, not multiplied, and before the weights see them: a state at padding may be anything, infinite too.
        hidden_NLH = self.expand(states_NLW.masked_fill(padding_NL1, 0)).masked_fill(padding_NL1, 0)
        # Tokens stay last until they are summed, as the convolution leaves them: GELU takes ten times as long backward
        # where strides differ.
        hidden_NHL = self.convolution(hidden_NLH.transpose(1, 2))
        hidden_NHL = nn.functional.gelu(self.dropout(hidden_NHL)).masked_fill(padding_NL.unsqueeze(1), 0)
        count_N1 = mask_NL.sum(1, keepdim=True).clamp(min=1)
        return self.norm(self.project(hidden_NHL.sum(2) / count_N1))


class ResidualMlp(nn.Module):
    """LayerNorm(x + Linear(GELU(Linear(x)))), the part that both sides of MiniCLIP share: (B, D) to (B, D)."""

    def __init__(self, embed_dim: int, expansion: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, expansion * embed_dim)
        self.fc2 = nn.Linear(expansion * embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return self.norm(features_BD + self.fc2(nn.functional.gelu(self.fc1(features_BD))))


def build_head(config: HeadConfig, width: int, embed_dim: int, side: str) -> nn.Module:
    """The head that `config` names; `side` is `image` or `text`. Raises ModelError where it does not fit."""
    if config.kind == "linear":
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, embed_dim, bias=config.bias))
    if config.kind == "linear_norm":
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, embed_dim), nn.LayerNorm(embed_dim))
    if config.kind == "mlp":
        hidden = config.hidden or 2 * embed_dim
        return nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, embed_dim)
        )
    if config.kind == "mlp_norm":
        hidden = config.hidden or embed_dim
        return nn.Sequential(
            nn.Linear(width, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, embed_dim),
        )
    if config.kind == "residual":
        return ResidualHead(width, embed_dim, config.dropout)
    if config.kind == "convffn":
        if side != "text":
            raise ModelError(
                f"the {side} head is of kind convffn, which reads tokens", "Use convffn for model.text_head only."
            )
        return ConvFfnHead(width, embed_dim, config.hidden or 2 * embed_dim, config.kernel, config.dropout)
    if width != embed_dim:
        raise ModelError(
            f"the {side} tower gives {width} features and has no head, but model.embed_dim is {embed_dim}",
            f"Set model.embed_dim to {width}, or give the {side} side a head (model.{side}_head.kind linear).",
        )
    return nn.Identity()


def build_shared_head(config: SharedHeadConfig, embed_dim: int) -> nn.Module:
    """What both sides go through after their own heads."""
    return ResidualMlp(embed_dim, config.expansion) if config.kind == "residual_mlp" else nn.Identity()
