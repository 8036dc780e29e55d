"""Five small CLIPs that others built, each as a recipe, with the figures that its authors published.

What a system leaves open is set as cliplet does it elsewhere; `docs/recipes.md` names each such place.
"""

from __future__ import annotations

import math
from typing import Any

from cliplet.config import (
    Architecture,
    AttentionConfig,
    AugmentConfig,
    DataConfig,
    DistilConfig,
    HeadConfig,
    ImageTowerConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    RunConfig,
    SamConfig,
    SharedHeadConfig,
    StageConfig,
    StageLossConfig,
    TemperatureConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
)
from cliplet.recipes.own import CLIP_MEAN, CLIP_STD, MINILM
from cliplet.recipes.recipe import recipe_named

HALF = (0.5, 0.5, 0.5)
WHOLE_PICTURE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
ADAM_BETAS = (0.9, 0.999)

# Shapes of pretrained towers, for training them from scratch.
MINILM_L6: Architecture = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
TINYBERT_4L: Architecture = {**MINILM_L6, "hidden_size": 312, "num_hidden_layers": 4, "intermediate_size": 1200}
ROBERTA_BASE: Architecture = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
DINO_VITS16: Architecture = {
    "model_type": "vit",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "image_size": 224,
    "patch_size": 16,
}


# 1. TinyCLIP-ConvFFN


def _convffn(name: str, image: ImageTowerConfig, text: TextTowerConfig) -> RunConfig:
    """What the three variants of TinyCLIP-ConvFFN share."""
    return RunConfig(
        name=name,
        data=DataConfig(captions_per_image=2),
        augment=AugmentConfig(crop_scale=(0.9, 1.0)),
        model=ModelConfig(
            embed_dim=512,
            image=image,
            text=text,
            image_head=HeadConfig(kind="linear_norm"),
            text_head=HeadConfig(kind="convffn", dropout=0.1),
            temperature=TemperatureConfig(init=100.0, minimum=math.exp(-2.5), maximum=100.0),
            preprocess=PreprocessConfig(crop_fraction=1 / 1.15, mean=CLIP_MEAN, std=CLIP_STD),
        ),
        loss=LossConfig(feature=0.3, logit=0.5, affinity=1.0, feature_distance="mse"),
        distil=DistilConfig(teachers=("open_clip:ViT-B-32/laion2b_s34b_b79k",), train_temperature=False),
        optim=OptimConfig(
            image_lr=1e-4,
            text_lr=1e-4,
            head_lr=5e-4,
            weight_decay=0.01,
            betas=ADAM_BETAS,
            warmup=0.0,
            clip_norm=None,
        ),
        train=TrainConfig(
            batch_size=256,
            accumulate=4,
            stages=(
                StageConfig(epochs=3, image_blocks=0, text_blocks=0, loss=StageLossConfig(feature=0.5)),
                StageConfig(epochs=27),
            ),
        ),
    )


def _bert(architecture: Architecture, *sources: str) -> TextTowerConfig:
    return TextTowerConfig(kind="huggingface", sources=sources, architecture=architecture, context_length=32)


MINILM_TEXT = _bert(
    MINILM_L6,
    "microsoft/MiniLM-L6-H384-uncased",
    "nreimers/MiniLM-L6-H384-uncased",
    "sentence-transformers/all-MiniLM-L6-v2",
    MINILM[0],
    "microsoft/MiniLM-L12-H384-uncased",
)


@recipe_named(
    "tinyvit-minilm-convffn",
    parameters=34.3,
    published="trained on COCO with a teacher, R@1 I→T / T→I: COCO 5k 42.3 / 29.3, Flickr30k 1k 56.1 / 40.7",
)
def tinyvit_minilm_convffn(name: str) -> RunConfig:
    """TinyCLIP-ConvFFN: TinyViT-11M and MiniLM-L6, a text head with a convolution over the tokens, two captions a
    picture."""
    return _convffn(
        name,
        ImageTowerConfig(name="tiny_vit_11m_224", weights=("hub",), train_batch_norm=True),
        MINILM_TEXT,
    )


@recipe_named("vits-minilm-convffn", parameters=45.4)
def vits_minilm_convffn(name: str) -> RunConfig:
    """TinyCLIP-ConvFFN with ViT-S/16 in the place of TinyViT."""
    return _convffn(name, ImageTowerConfig(name="vit_small_patch16_224", weights=("hub",)), MINILM_TEXT)


@recipe_named("efficientnet-tinybert-convffn", parameters=19.8)
def efficientnet_tinybert_convffn(name: str) -> RunConfig:
    """TinyCLIP-ConvFFN at its smallest: EfficientNet-B0 and TinyBERT with 4 layers."""
    return _convffn(
        name,
        ImageTowerConfig(name="efficientnet_b0", weights=("hub",), train_batch_norm=True),
        _bert(TINYBERT_4L, "huawei-noah/TinyBERT_General_4L_312D", "prajjwal1/bert-mini", "prajjwal1/bert-tiny"),
    )


# 2. MiniCLIP


@recipe_named("resnet34-linformer-sam", parameters=37.5)
def resnet34_linformer_sam(name: str) -> RunConfig:
    """MiniCLIP: ResNet-34 and a Linformer from scratch, a head that both sides share, a temperature read off each
    batch, sharpness-aware minimisation."""
    return RunConfig(
        name=name,
        data=DataConfig(captions_per_image=1),
        augment=WHOLE_PICTURE.model_copy(update={"flip": 0.5}),
        model=ModelConfig(
            embed_dim=256,
            image=ImageTowerConfig(name="resnet34.tv_in1k", weights=("hub",), train_batch_norm=True),
            text=TextTowerConfig(
                width=256,
                layers=4,
                heads=4,
                context_length=64,
                pooling="mean",
                attention=AttentionConfig(kind="linformer", linformer_k=64),
                final_norm="pooled",
                dropout=0.0,
                embedding_dropout=0.1,
                tokenizer=TokenizerConfig(vocab_size=50257, lowercase=False),
            ),
            text_head=HeadConfig(kind="none"),
            shared_head=SharedHeadConfig(kind="residual_mlp"),
            temperature=TemperatureConfig(kind="dynamic"),
            preprocess=PreprocessConfig(resize="squash"),
        ),
        optim=OptimConfig(
            image_lr=1e-4,
            text_lr=1e-4,
            head_lr=1e-4,
            weight_decay=0.01,
            betas=ADAM_BETAS,
            schedule="constant",
            warmup=0.0,
            clip_norm=None,
            sam=SamConfig(rho=0.05),
        ),
        train=TrainConfig(batch_size=32, stages=(StageConfig(epochs=50),)),
    )


# 3. TinyMVLM


@recipe_named("vittiny-minilm", parameters=28.4)
def vittiny_minilm(name: str) -> RunConfig:
    """TinyMVLM: ViT-Tiny and MiniLM-L6, both averaged over their tokens, fine-tuned gently in three epochs."""
    return RunConfig(
        name=name,
        data=DataConfig(captions_per_image=1),
        augment=WHOLE_PICTURE,
        model=ModelConfig(
            embed_dim=256,
            image=ImageTowerConfig(name="vit_tiny_patch16_224", weights=("hub",), pooling="mean"),
            text=_bert(MINILM_L6, *MINILM),
            image_head=HeadConfig(kind="mlp_norm"),
            text_head=HeadConfig(kind="mlp_norm"),
            preprocess=PreprocessConfig(resize="squash"),
        ),
        optim=OptimConfig(
            image_lr=2e-5,
            text_lr=2e-5,
            head_lr=2e-5,
            weight_decay=0.01,
            betas=ADAM_BETAS,
            schedule="constant",
            warmup=0.0,
            clip_norm=None,
        ),
        train=TrainConfig(batch_size=32, stages=(StageConfig(epochs=3),)),
    )


# 4. miniCLIP_DL

DINO = ImageTowerConfig(
    kind="huggingface", name="", weights=("facebook/dino-vits16",), architecture=DINO_VITS16, pooling="first"
)
RESNET101 = ImageTowerConfig(name="resnet101.tv_in1k", weights=("hub",), train_batch_norm=True)
HEADS_ONLY = StageConfig(epochs=3, image_blocks=0, text_blocks=0)


def _roberta(name: str, image: ImageTowerConfig, optim: dict[str, Any], train: dict[str, Any]) -> RunConfig:
    """What the setups of miniCLIP_DL share; `optim` and `train` are what is theirs."""
    head = HeadConfig(kind="residual", dropout=0.1)
    return RunConfig(
        name=name,
        data=DataConfig(captions_per_image=1),
        augment=WHOLE_PICTURE,
        model=ModelConfig(
            embed_dim=256,
            image=image,
            text=TextTowerConfig(
                kind="huggingface",
                sources=("roberta-base",),
                architecture=ROBERTA_BASE,
                pooling="first",
                context_length=128,
            ),
            image_head=head,
            text_head=head,
            preprocess=PreprocessConfig(resize="squash"),
        ),
        optim=OptimConfig(**{"betas": ADAM_BETAS, "warmup": 0.0, "clip_norm": None, **optim}),
        train=TrainConfig(**train),
    )


def _setup1(name: str, image: ImageTowerConfig) -> RunConfig:
    optim = {"head_lr": 3e-4, "weight_decay": 5e-4, "schedule": "constant"}
    return _roberta(name, image, optim, {"batch_size": 32, "stages": (HEADS_ONLY,)})


def _setup2(name: str, image: ImageTowerConfig) -> RunConfig:
    optim = {"image_lr": 5e-5, "text_lr": 5e-5, "head_lr": 5e-5, "weight_decay": 1e-4, "clip_norm": 1.0}
    return _roberta(name, image, optim, {"batch_size": 16, "stages": (StageConfig(epochs=8),), "patience": 3})


PROTOCOL = "on 1,000 Flickr30k pictures, one caption each, R@1 I→T / T→I:"


@recipe_named("vits-roberta-setup1", parameters=146.1, published=f"{PROTOCOL} 21.6 / 22.4")
def vits_roberta_setup1(name: str) -> RunConfig:
    """miniCLIP_DL with DINO's ViT-S/16 and RoBERTa: heads alone on frozen towers."""
    return _setup1(name, DINO)


@recipe_named("vits-roberta-setup2", parameters=146.1, published=f"{PROTOCOL} 28.2 / 28.4")
def vits_roberta_setup2(name: str) -> RunConfig:
    """miniCLIP_DL with DINO's ViT-S/16 and RoBERTa: everything trains, until nothing gets better."""
    return _setup2(name, DINO)


@recipe_named("vits-roberta-setup3", parameters=146.1, published=f"{PROTOCOL} 36.6 / 33.9")
def vits_roberta_setup3(name: str) -> RunConfig:
    """miniCLIP_DL: goes on from the model of vits-roberta-setup2 with the last two blocks of each tower."""
    optim = {"image_lr": 1e-5, "text_lr": 1e-5, "head_lr": 3e-4, "weight_decay": 1e-4, "schedule": "constant"}
    stages = (StageConfig(epochs=6, image_blocks=2, text_blocks=2),)
    train = {"batch_size": 24, "stages": stages, "start_from": "runs/vits-roberta-setup2"}
    return _roberta(name, DINO, optim, train)


@recipe_named("resnet101-roberta-setup1", parameters=167.4, published=f"{PROTOCOL} 5.7 / 5.5")
def resnet101_roberta_setup1(name: str) -> RunConfig:
    """miniCLIP_DL with ResNet-101 and RoBERTa: heads alone on frozen towers."""
    return _setup1(name, RESNET101)


@recipe_named("resnet101-roberta-setup2", parameters=167.4, published=f"{PROTOCOL} 22.1 / 20.7")
def resnet101_roberta_setup2(name: str) -> RunConfig:
    """miniCLIP_DL with ResNet-101 and RoBERTa: everything trains, until nothing gets better."""
    return _setup2(name, RESNET101)


# 5. Mini-CLIP from scratch


@recipe_named("vitb16-scratch-hardneg", parameters=114.1)
def vitb16_scratch_hardneg(name: str) -> RunConfig:
    """Mini-CLIP from scratch: ViT-B/16 and a transformer over whole words, with a margin against the hardest
    negatives."""
    return RunConfig(
        name=name,
        data=DataConfig(captions_per_image=1),
        augment=WHOLE_PICTURE,
        model=ModelConfig(
            embed_dim=256,
            image=ImageTowerConfig(name="vit_base_patch16_224", weights=("hub",)),
            text=TextTowerConfig(
                width=512,
                layers=4,
                heads=8,
                context_length=32,
                pooling="first",
                norm="post",
                embedding_dropout=0.0,
                tokenizer=TokenizerConfig(kind="words", vocab_size=30000, min_count=1),
            ),
            preprocess=PreprocessConfig(resize="squash", mean=HALF, std=HALF),
        ),
        loss=LossConfig(hard_negative=0.1, hard_negatives=5, margin=0.1),
        optim=OptimConfig(
            image_lr=1e-4,
            text_lr=1e-4,
            head_lr=1e-4,
            weight_decay=0.01,
            betas=ADAM_BETAS,
            schedule="constant",
            warmup=0.0,
        ),
        train=TrainConfig(batch_size=128, stages=(StageConfig(epochs=10),)),
    )
