"""A run's configuration: frozen, typed, strict. One definition serves Python, YAML and the command line.

An unknown key is an error that names the nearest right one. The whole configuration is saved
beside every result, and reading that file back gives an equal object. Nothing here imports torch. What only training
needs is loaded when it is first used: building these classes takes longer than answering a query.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cliplet.config.base import Architecture, Blocks, Config
from cliplet.config.checks import validated
from cliplet.config.model import (
    AttentionConfig,
    HeadConfig,
    ImageTowerConfig,
    ModelConfig,
    PreprocessConfig,
    SharedHeadConfig,
    TemperatureConfig,
    TextTowerConfig,
    TokenizerConfig,
)

if TYPE_CHECKING:
    from cliplet.config.run import (
        AugmentConfig,
        DataConfig,
        DistilConfig,
        LossConfig,
        OptimConfig,
        RunConfig,
        SamConfig,
        StageConfig,
        StageLossConfig,
        TrainConfig,
    )
    from cliplet.config.text import differences, from_yaml, to_yaml

_OF_TEXT = ("differences", "from_yaml", "to_yaml")

__all__ = [
    "Architecture",
    "AttentionConfig",
    "AugmentConfig",
    "Blocks",
    "Config",
    "DataConfig",
    "DistilConfig",
    "HeadConfig",
    "ImageTowerConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PreprocessConfig",
    "RunConfig",
    "SamConfig",
    "SharedHeadConfig",
    "StageConfig",
    "StageLossConfig",
    "TemperatureConfig",
    "TextTowerConfig",
    "TokenizerConfig",
    "TrainConfig",
    "differences",
    "from_yaml",
    "to_yaml",
    "validated",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"cliplet.config.{'text' if name in _OF_TEXT else 'run'}"), name)
