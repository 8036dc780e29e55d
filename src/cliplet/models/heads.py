"""From a tower's features to the shared space. (B, width) to (B, embed_dim), not normalised."""

from __future__ import annotations

from torch import nn

from cliplet.config import HeadConfig


def build_head(config: HeadConfig, width: int, embed_dim: int) -> nn.Module:
    """The head that `config` names: one linear layer, or Linear, GELU, dropout, Linear."""
    if config.kind == "linear":
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, embed_dim))
    hidden = config.hidden or 2 * embed_dim
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, embed_dim))
