"""Runs of seconds, and a disk that fills up."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cliplet.config import (
    DataConfig,
    ImageTowerConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
)


def tiny_model(image_size: int = 48, embed_dim: int = 32, **text) -> ModelConfig:
    """0.4 M parameters: test_resnet and a transformer of one layer, width 32."""
    settings = {"width": 32, "layers": 1, "heads": 2, "context_length": 32}
    return ModelConfig(
        embed_dim=embed_dim,
        image=ImageTowerConfig(name="test_resnet", train_batch_norm=True),
        text=TextTowerConfig(**{**settings, **text}, tokenizer=TokenizerConfig(vocab_size=400)),
        preprocess=PreprocessConfig(image_size=image_size),
    )


def tiny_run(data: Path, model: ModelConfig, *, workers: int = 1, weight_decay: float = 0.05, **train) -> RunConfig:
    """Steps of a tenth of a second on the CPU in fp32, with batches of 8 and two captions a picture."""
    settings = {"batch_size": 8, "precision": "fp32", "device": "cpu", **train}
    return RunConfig(
        name="tiny",
        data=DataConfig(path=str(data), captions_per_image=2, workers=workers),
        model=model,
        optim=OptimConfig(image_lr=2e-3, text_lr=2e-3, head_lr=2e-3, weight_decay=weight_decay),
        train=TrainConfig(**settings),
    )


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses what is beyond it, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
