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


class Config(BaseModel):
    """Base of every part: immutable, and closed to unknown keys and to values of another type."""

    # numpydoc-style field docstrings become the flags' help texts on the command line.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Config):
    path: str = ""
    """Annotation file or data-set folder; its format is found by looking at it."""
    images: str | None = None
    """Folder of the pictures, where it cannot be found from the annotation file."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to choose the best epoch on. A source without splits gives a fixed tenth of its pictures."""
    captions_per_image: int = Field(2, ge=1)
    """Captions drawn for each picture and step (K)."""
    max_images: int | None = Field(None, ge=2)
    """Train on the first N pictures only."""
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
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B in 0..1, subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B in 0..1, divided by."""


class ImageTowerConfig(Config):
    name: str = "mobilenetv2_100"
    """A timm model's name."""
    weights: tuple[str, ...] = ()
    """Where pretrained weights are tried, in order: `hub` (timm's own), a file or folder,
    `pkg:PACKAGE/PATH` (inside an installed Python package). None: from scratch."""
    train_batch_norm: bool = False
    """Update batch-norm statistics while training; leave off when fine-tuning, on from scratch."""


class TextTowerConfig(Config):
    kind: Literal["huggingface", "transformer"] = "transformer"
    """A pretrained Hugging Face encoder, or a transformer from scratch with a BPE tokenizer
    trained on the captions."""
    sources: tuple[str, ...] = ()
    """huggingface: hub names, folders or `pkg:PACKAGE/PATH`, tried in order."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """How token states become one vector: mean over real tokens, the first, or the last real one."""
    context_length: int = Field(32, ge=4, le=8192)
    """Longest text in tokens; the rest is cut."""
    vocab_size: int = Field(8192, ge=64)
    """transformer: largest vocabulary to train."""
    width: int = Field(256, ge=8)
    """transformer: size of the token states."""
    layers: int = Field(4, ge=1)
    """transformer: number of blocks."""
    heads: int = Field(4, ge=1)
    """transformer: attention heads a block."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """transformer: dropout on embeddings, attention output and MLP."""


class HeadConfig(Config):
    kind: Literal["linear", "mlp"] = "linear"
    """One linear layer, or Linear, GELU, dropout, Linear."""
    hidden: int | None = Field(None, ge=1)
    """mlp: hidden size; by itself, twice embed_dim."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the last layer."""


class TemperatureConfig(Config):
    init: float = Field(1 / 0.07, gt=0)
    """Start of the factor that multiplies cosines (1 / temperature)."""
    minimum: float = Field(1.0, gt=0)
    """The factor never falls below this."""
    maximum: float = Field(100.0, gt=0)
    """The factor never rises above this."""

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
    temperature: TemperatureConfig = TemperatureConfig()
    preprocess: PreprocessConfig = PreprocessConfig()


class LossConfig(Config):
    soft_targets: bool = True
    """Image to text: share the target among a picture's captions, or use the first alone."""


class OptimConfig(Config):
    image_lr: float = Field(1e-4, ge=0)
    """Peak learning rate of the image tower."""
    text_lr: float = Field(1e-4, ge=0)
    """Peak learning rate of the text tower."""
    head_lr: float = Field(1e-3, ge=0)
    """Peak learning rate of heads and temperature."""
    weight_decay: float = Field(0.05, ge=0)
    """Of weight matrices; norms, biases and temperature never decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the rates rise to their peak."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """The cosine ends at this share of the peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient."""


class StageConfig(Config):
    """Some epochs in which certain blocks train. Heads and temperature always do."""

    epochs: int = Field(10, ge=1)
    image_blocks: Blocks = "all"
    """Blocks of the image tower that train, counted from the output: a number (0: frozen) or all."""
    text_blocks: Blocks = "all"
    """Blocks of the text tower that train, counted from the output: a number (0: frozen) or all."""

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
    batch_size: int = Field(128, ge=2)
    """Pictures that compete in one step."""
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    """What trains when."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the processor or GPU is fast at it, fp32 elsewhere."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    seed: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    """Steps between two lines of the log."""
    checkpoint_every: int = Field(0, ge=0)
    """Also write a checkpoint every N steps; 0: at the end of each epoch only."""
    validate_every: int = Field(1, ge=1)
    """Epochs between two validations; the last epoch is always validated."""

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
