"""A run's configuration: frozen, typed, strict. One definition serves Python, YAML and the command line.

An unknown key is an error that names the nearest right one. The whole configuration is saved
beside every result, and reading that file back gives an equal object. Nothing here imports torch.
"""

from cliplet.config.base import Architecture, Blocks, Config
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
from cliplet.config.text import differences, from_yaml, to_yaml, validated

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
