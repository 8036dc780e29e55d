"""What a model is: its towers, heads, temperature and preprocessing. It is saved in every model folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cliplet.config.base import Architecture, Config


class PreprocessConfig(Config):
    """What happens to a picture before the model sees it, in evaluation and in use."""

    image_size: int = Field(224, ge=8, le=2048)
    """Side of the square given to the model, in pixels."""
    crop_fraction: float = Field(1.0, gt=0, le=1)
    """The shorter side is resized to image_size / crop_fraction, then the centre is cut out."""
    resize: Literal["crop", "squash"] = "crop"
    """What makes a picture square: its centre is cut out, or all of it is resized to the square."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B in 0..1, subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B in 0..1, divided by."""


class ImageTowerConfig(Config):
    kind: Literal["timm", "huggingface", "open_clip"] = "timm"
    """Which library builds the tower."""
    name: str = "mobilenetv2_100"
    """timm: a model's name; open_clip: an architecture's."""
    weights: tuple[str, ...] = ()
    """Where pretrained weights are tried, in order. timm: `hub` (timm's own), a file or folder, `pkg:PACKAGE/PATH`
    (inside an installed Python package). huggingface: hub names, folders or `pkg:PACKAGE/PATH`. None: from scratch."""
    architecture: Architecture = Field(default_factory=dict)
    """huggingface, from scratch: values of its configuration, model_type first of all."""
    pooling: Literal["model", "first", "mean"] = "model"
    """How states become one vector: as the model itself does, the first (class) token, or the mean over all tokens."""
    train_batch_norm: bool = False
    """Update batch-norm statistics of blocks that train; on from scratch, and off where a pretrained tower meets small
    batches."""


class TokenizerConfig(Config):
    kind: Literal["auto", "huggingface", "bpe", "words"] = "auto"
    """huggingface: an existing one; bpe: byte-level BPE trained on the captions; words: whole words of the captions.
    auto: the one of a pretrained tower, or else bpe."""
    sources: tuple[str, ...] = ()
    """huggingface: hub names, folders, tokenizer.json files or `pkg:PACKAGE/PATH`, tried in order."""
    vocab_size: int = Field(8192, ge=64)
    """bpe, words: largest vocabulary to train."""
    lowercase: bool = True
    """bpe: make no difference between a word and the same in capitals."""
    min_count: int = Field(2, ge=1)
    """bpe, words: what occurs less often in the captions is left out."""


class AttentionConfig(Config):
    kind: Literal["full", "linformer", "performer"] = "full"
    """Every token looks at every other, or an approximation that is linear in the text's length."""
    linformer_k: int = Field(64, ge=1)
    """linformer: keys and values that a text is projected to."""
    linformer_one_kv_head: bool = True
    """linformer: all heads share one head of keys and values."""
    linformer_share_kv: bool = True
    """linformer: keys serve as values too."""
    performer_features: int | None = Field(None, ge=1)
    """performer: random features a head; by itself, d ln d for heads of size d."""


class TextTowerConfig(Config):
    kind: Literal["huggingface", "transformer", "open_clip"] = "transformer"
    """A Hugging Face encoder, a transformer from scratch, or the text side of an OpenCLIP model."""
    name: str = ""
    """open_clip: an architecture's name."""
    sources: tuple[str, ...] = ()
    """huggingface: hub names, folders or `pkg:PACKAGE/PATH` of pretrained weights, tried in order. None: from
    scratch."""
    architecture: Architecture = Field(default_factory=dict)
    """huggingface, from scratch: values of its configuration, model_type first of all."""
    pooling: Literal["mean", "first", "last", "model"] = "mean"
    """How token states become one vector: mean over real tokens, the first, the last real one, or as the Hugging Face
    model itself does."""
    context_length: int = Field(32, ge=4, le=8192)
    """Longest text in tokens; the rest is cut."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    width: int = Field(256, ge=8)
    """transformer: size of the token states."""
    layers: int = Field(4, ge=1)
    """transformer: number of blocks."""
    heads: int = Field(4, ge=1)
    """transformer: attention heads a block."""
    attention: AttentionConfig = AttentionConfig()
    norm: Literal["pre", "post"] = "pre"
    """transformer: layer norm before attention and MLP, or after each with its shortcut."""
    final_norm: Literal["tokens", "pooled"] = "tokens"
    """transformer: the last layer norm acts on the token states, or on the pooled vector."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """transformer: dropout on the outputs of attention and MLP."""
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    """transformer: dropout on the embeddings."""


class HeadConfig(Config):
    kind: Literal["linear", "linear_norm", "mlp", "mlp_norm", "residual", "convffn", "none"] = "linear"
    """linear; linear_norm: Linear, LayerNorm; mlp: Linear, GELU, Linear; mlp_norm: Linear, LayerNorm, ReLU, Linear;
    residual: x = Linear, then LayerNorm(x + Linear(GELU(x))); convffn (text): Linear, depthwise convolution over the
    tokens, GELU, mean over the tokens, Linear, LayerNorm; none: the tower's features as they are."""
    hidden: int | None = Field(None, ge=1)
    """mlp, convffn: hidden size; by itself, twice embed_dim. mlp_norm: by itself, embed_dim."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the last layer; convffn: before GELU; residual: on what is added."""
    bias: bool = True
    """linear: with a bias."""
    kernel: int = Field(3, ge=1)
    """convffn: tokens under the convolution, an odd number."""

    @model_validator(mode="after")
    def _odd(self) -> HeadConfig:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a middle; got {self.kernel}")
        return self


class SharedHeadConfig(Config):
    """What both sides go through, with the same weights, after their own heads."""

    kind: Literal["none", "residual_mlp"] = "none"
    """residual_mlp: LayerNorm(x + Linear(GELU(Linear(x))))."""
    expansion: int = Field(4, ge=1)
    """residual_mlp: hidden size as a multiple of embed_dim."""


class TemperatureConfig(Config):
    kind: Literal["learned", "dynamic"] = "learned"
    """One learned number, or a small network that reads the variance of the batch's cosines."""
    init: float = Field(1 / 0.07, gt=0)
    """Start of the factor that multiplies cosines (1 / temperature)."""
    minimum: float = Field(1.0, gt=0)
    """The factor never falls below this."""
    maximum: float = Field(100.0, gt=0)
    """The factor never rises above this."""
    hidden: int = Field(16, ge=1)
    """dynamic: hidden size of the network."""

    @model_validator(mode="after")
    def _ordered(self) -> TemperatureConfig:
        if not self.minimum <= self.init <= self.maximum:
            raise ValueError(
                f"must satisfy minimum <= init <= maximum, got {self.minimum}, {self.init}, {self.maximum}"
            )
        return self


class ModelConfig(Config):
    embed_dim: int = Field(256, ge=1)
    """Size of the shared space (D)."""
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    image_head: HeadConfig = HeadConfig()
    text_head: HeadConfig = HeadConfig()
    shared_head: SharedHeadConfig = SharedHeadConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    logit_bias: float | None = None
    """Start of a learned number added to the logits, which SigLIP needs (-10); none without."""
    preprocess: PreprocessConfig = PreprocessConfig()
