"""A run's configuration: frozen, typed, strict. One definition serves Python, YAML and the command line.

An unknown key is an error that names the nearest right one. The whole configuration is saved
beside every result, and reading that file back gives an equal object. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cliplet.errors import ConfigError, nearest

Blocks = int | Literal["all"]
Architecture = dict[str, str | int | float | bool]


class Config(BaseModel):
    """Base of every part: immutable, and closed to unknown keys and to values of another type."""

    # numpydoc-style field docstrings become the flags' help texts on the command line.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Config):
    path: str = ""
    """Annotation file, data-set folder, WebDataset tars or a Hugging Face data set; its format is found by looking."""
    images: str | None = None
    """Folder of the pictures, where it cannot be found from the annotation file."""
    train_split: str = "train"
    """Split to train on, or several joined by + (train+restval)."""
    val_split: str = "val"
    """Split to choose the best epoch on. A source without splits gives a fixed tenth of its pictures."""
    captions_per_image: int = Field(2, ge=1)
    """Captions drawn for each picture and step (K)."""
    max_images: int | None = Field(None, ge=2)
    """Train on the first N pictures only."""
    samples: int | None = Field(None, ge=1)
    """Read the first N pictures of each split only; of a data set on the hub, no more are fetched."""
    workers: int | None = Field(None, ge=1)
    """Decoding threads; by itself, half the processor's cores, at most 8."""


class AugmentConfig(Config):
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the picture's area that a random crop keeps, from and to."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratio of a random crop relative to the picture's, from and to."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip. Set 0 where captions say left and right."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must satisfy 0 < from <= to <= 1, got {low}, {high}")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio must satisfy 0 < from <= to, got {low}, {high}")
        return self


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
    architecture: Architecture = {}
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
    architecture: Architecture = {}
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


class LossConfig(Config):
    """The loss is the sum of its terms, each times its weight."""

    info_nce: float = Field(1.0, ge=0)
    """Weight of the contrastive term with softmax over the batch."""
    siglip: float = Field(0.0, ge=0)
    """Weight of the contrastive term with a sigmoid for each pair; set model.logit_bias -10 with it."""
    hard_negative: float = Field(0.0, ge=0)
    """Weight of the margin term over each row's hardest negatives."""
    soft_targets: bool = True
    """info_nce, image to text: share the target among a picture's captions, or use the first alone."""
    hard_negatives: int = Field(5, ge=1)
    """hard_negative: how many of the hardest count in each row."""
    margin: float = Field(0.1, ge=0)
    """hard_negative: by so much the right logit must lie above them."""


class SamConfig(Config):
    """Sharpness-aware minimisation: each gradient is taken where the loss is worst nearby."""

    rho: float = Field(0.0, ge=0)
    """How far to look; 0: not at all, one pass a step instead of two."""
    per_layer: bool = False
    """Go so far in each layer by itself, instead of in all weights together."""


class OptimConfig(Config):
    optimizer: Literal["adamw", "sgd"] = "adamw"
    image_lr: float = Field(1e-4, ge=0)
    """Peak learning rate of the image tower."""
    text_lr: float = Field(1e-4, ge=0)
    """Peak learning rate of the text tower."""
    head_lr: float = Field(1e-3, ge=0)
    """Peak learning rate of heads and temperature."""
    weight_decay: float = Field(0.05, ge=0)
    """Of weight matrices; norms, biases and temperature never decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """adamw: decay of its averages; sgd: the first is the momentum."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """From the peak down to final_lr, or at the peak to the end."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the rates rise to their peak."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """The cosine ends at this share of the peak."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; None: any."""
    sam: SamConfig = SamConfig()


class StageLossConfig(Config):
    """Weights of the loss's terms in one stage; None: as in the loss section."""

    info_nce: float | None = Field(None, ge=0)
    siglip: float | None = Field(None, ge=0)
    hard_negative: float | None = Field(None, ge=0)


class StageConfig(Config):
    """Some epochs in which certain parts train. A None keeps what the optim and loss sections say."""

    epochs: int = Field(10, ge=1)
    image_blocks: Blocks = "all"
    """Blocks of the image tower that train, counted from the output: a number (0: frozen) or all."""
    text_blocks: Blocks = "all"
    """Blocks of the text tower that train, counted from the output: a number (0: frozen) or all."""
    heads: bool = True
    """Whether heads, temperature and bias train."""
    image_lr: float | None = Field(None, ge=0)
    """Peak learning rate of the image tower in this stage; the run's cosine goes on falling over it."""
    text_lr: float | None = Field(None, ge=0)
    """Peak learning rate of the text tower in this stage."""
    head_lr: float | None = Field(None, ge=0)
    """Peak learning rate of heads, temperature and bias in this stage."""
    loss: StageLossConfig = StageLossConfig()

    @model_validator(mode="after")
    def _not_negative(self) -> StageConfig:
        for name in ("image_blocks", "text_blocks"):
            value = getattr(self, name)
            if value != "all" and value < 0:
                raise ValueError(f"{name} must be 0, a number of blocks, or all; got {value}")
        return self


class TrainConfig(Config):
    output: str = ""
    """Run folder; by itself, runs/RECIPE."""
    start_from: str = ""
    """A model or run folder, or `open_clip:ARCHITECTURE/PRETRAINED`, whose weights and tokenizer the run begins with;
    the model section must describe the same model."""
    batch_size: int = Field(128, ge=2)
    """Pictures that compete in one step."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients are averaged for one step; pictures compete within their batch only."""
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    """What trains when."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the processor or GPU is fast at it, fp32 elsewhere. fp16 scales the loss."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    seed: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    """Steps between two lines of the log."""
    checkpoint_every: int = Field(0, ge=0)
    """Also write a checkpoint every N steps; 0: at the end of each epoch only."""
    validate_every: int = Field(1, ge=1)
    """Epochs between two validations; the last epoch is always validated."""
    patience: int | None = Field(None, ge=1)
    """Stop early after so many validations of the last stage in a row without a new best; None: train to the end."""

    @model_validator(mode="after")
    def _some_stage(self) -> TrainConfig:
        if not self.stages:
            raise ValueError("stages must name at least one stage")
        return self

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)


class RunConfig(Config):
    """One experiment, whole."""

    name: str = "custom"
    """The recipe it started from."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @property
    def output(self) -> Path:
        """The run folder."""
        return Path(self.train.output or f"runs/{self.name}")


def validated(model: type[Config], data: Any, where: str) -> Any:
    """`data` (plain dicts, lists, scalars) as a `model`; ConfigError naming key and place if it does not fit."""
    try:
        # By way of JSON: there, strictness forbids "5" for 5 but allows a list where a tuple is meant.
        return model.model_validate_json(json.dumps(data), strict=True)
    except (ValueError, TypeError) as error:  # pydantic's are ValueErrors; json's are of what is no plain data
        raise _readable(error, model, where) from None


def _readable(error: ValueError | TypeError, model: type[Config], where: str) -> ConfigError:
    if not isinstance(error, ValidationError):
        return ConfigError(f"{where}: not plain data: {error}")
    lines, hints = [], []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key {key}")
            hints.append(nearest(str(problem["loc"][-1]), _known_keys(model, problem["loc"][:-1])))
        else:
            got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
            lines.append(f"{where}: {key or 'the whole'}: {problem['msg']}{got}")
    return ConfigError("\n".join(lines), "\n".join(hints))


def _known_keys(model: type[Config], path: tuple[Any, ...]) -> list[str]:
    """Keys of the part of `model` that `path` leads to; numbers in it are places in a list of parts."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, Config))
    return list(model.model_fields)


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `from_yaml` reads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str, where: str = "configuration", base: RunConfig | None = None) -> RunConfig:
    """A run's configuration from YAML; keys left out keep the values of `base`.

    Raises ConfigError where the text is not YAML, or for an unknown key or a value of the wrong type.
    """
    try:
        # YAML 1.1 as PyYAML reads it takes 1e-4 for a string; people write exactly that for a learning rate.
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, found a {type(data).__name__}")
    merged = _merge((base or RunConfig()).model_dump(mode="json"), data)
    return validated(RunConfig, merged, where)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, part by part; lists are replaced whole."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def differences(old: Config, new: Config) -> list[str]:
    """Each key in which two configurations differ, as `train.seed: 0 -> 1`."""
    flat_old, flat_new = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = list(flat_old) + [key for key in flat_new if key not in flat_old]
    absent = "(absent)"
    return [
        f"{key}: {flat_old.get(key, absent)} -> {flat_new.get(key, absent)}"
        for key in keys
        if flat_old.get(key, absent) != flat_new.get(key, absent)
    ]


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, dict):
        items: Any = data.items()
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        items = enumerate(data)
    else:
        return {prefix: data}
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as everywhere else."""


class _Dumper(yaml.SafeDumper):
    """Its counterpart, which puts the text "1e-4" in quotes."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
