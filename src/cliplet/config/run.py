"""What a run is: its data, model, loss, optimiser and training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cliplet.config.base import Blocks, Config
from cliplet.config.model import ModelConfig


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
    brightness: float = Field(0.0, ge=0, le=1)
    """By how much a view's brightness changes at most: it is multiplied by 1 - x to 1 + x."""
    contrast: float = Field(0.0, ge=0, le=1)
    """The same of contrast, the distance of pixels from the view's mean grey."""
    saturation: float = Field(0.0, ge=0, le=1)
    """The same of saturation, the distance of pixels from their own grey. Set 0 where captions tell pale from vivid."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must satisfy 0 < from <= to <= 1, got {low}, {high}")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio must satisfy 0 < from <= to, got {low}, {high}")
        return self


class LossConfig(Config):
    """The loss is the sum of its terms, each times its weight."""

    info_nce: float = Field(1.0, ge=0)
    """Weight of the contrastive term with softmax over the batch."""
    siglip: float = Field(0.0, ge=0)
    """Weight of the contrastive term with a sigmoid for each pair; set model.logit_bias -10 with it."""
    hard_negative: float = Field(0.0, ge=0)
    """Weight of the margin term over each row's hardest negatives."""
    feature: float = Field(0.0, ge=0)
    """Weight of the distance between student's and teacher's features."""
    logit: float = Field(0.0, ge=0)
    """Weight of the divergence between student's and teacher's similarities, each at its own temperature."""
    affinity: float = Field(0.0, ge=0)
    """Weight of the same divergence at distil.affinity_scale."""
    interactive: float = Field(0.0, ge=0)
    """Weight of the contrastive term of student's pictures with teacher's captions, and the other way."""
    soft_targets: bool = True
    """info_nce, image to text: share the target among a picture's captions, or use the first alone."""
    hard_negatives: int = Field(5, ge=1)
    """hard_negative: how many of the hardest count in each row."""
    margin: float = Field(0.1, ge=0)
    """hard_negative: by so much the right logit must lie above them."""
    feature_distance: Literal["cosine", "mse"] = "cosine"
    """feature: 1 - cosine, or the mean squared difference over the columns, which is 2 / width times as large."""


class DistilConfig(Config):
    """Whom a student learns from, beside the data. What it learns are terms of the loss: feature, logit, affinity,
    interactive."""

    enabled: bool = True
    """Off: no teacher, and those terms have no part, whatever their weights."""
    teachers: tuple[str, ...] = ()
    """Model or run folders, or `open_clip:ARCHITECTURE/PRETRAINED`. They run in every step; with a store they only say
    whose it must be."""
    store: str = ""
    """Folder that `cliplet distil-store` made: the teachers' embeddings, and the views they belong to."""
    teacher_scale: float | None = Field(None, gt=0)
    """logit: the factor of the teachers' cosines; None: each teacher's own."""
    affinity_scale: float | None = Field(None, gt=0)
    """affinity: one factor for both sides' cosines; None: each side's own, as in the logit term."""
    train_temperature: bool = True
    """Whether the logit and affinity terms train the student's temperature too."""

    @property
    def active(self) -> bool:
        """Whether there is anyone to learn from."""
        return self.enabled and bool(self.teachers or self.store)


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

    @model_validator(mode="after")
    def _averages(self) -> OptimConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie from 0 to below 1, got {self.betas[0]}, {self.betas[1]}")
        return self


class StageLossConfig(Config):
    """Weights of the loss's terms in one stage; None: as in the loss section."""

    info_nce: float | None = Field(None, ge=0)
    siglip: float | None = Field(None, ge=0)
    hard_negative: float | None = Field(None, ge=0)
    feature: float | None = Field(None, ge=0)
    logit: float | None = Field(None, ge=0)
    affinity: float | None = Field(None, ge=0)
    interactive: float | None = Field(None, ge=0)


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
    augment: bool = True
    """Off: pictures whole and unflipped in this stage, so that the features of a frozen image tower are computed once
    (train.cache_features)."""
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
    image_size: int | None = Field(None, ge=16)
    """Pixels of augmented views; None: model.preprocess.image_size. A random crop shows things larger than the whole
    picture does, so training at 7/8 of the size that a model is used at costs less and gives more (FixRes)."""
    chunk_size: int | Literal["auto"] | None = None
    """Pictures that are in memory at once, a part of the batch: gradients are those of the whole batch, for a third
    more time. auto: the largest part that fits; None: the whole batch."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients are averaged for one step; pictures compete within their batch only."""
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    """What trains when."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the processor or GPU is fast at it, fp16 on GPUs that are fast at that alone, fp32 elsewhere.
    fp16 scales the loss."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    compile: bool = False
    """Compile the towers (torch.compile): a minute at the start, faster steps after it. Where it fails, the run goes on
    without."""
    sync_batch_norm: bool = True
    """Several ranks: batch norm normalises by the pictures of all of them, as one process would."""
    rank_timeout: int = Field(600, ge=1)
    """Several ranks: seconds that one waits for another before the run ends with an error."""
    seed: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    """Steps between two lines of the log."""
    checkpoint_every: int = Field(0, ge=0)
    """Also write a checkpoint every N steps; 0: at the end of each epoch only."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept, the newest; should the last be damaged, a run resumes from the one before."""
    max_skipped: int = Field(10, ge=1)
    """Steps in a row whose loss or gradient is no number, and which are skipped, before the run ends."""
    validate_every: int = Field(1, ge=1)
    """Epochs between two validations; the last epoch is always validated."""
    patience: int | None = Field(None, ge=1)
    """Stop early after so many validations of the last stage in a row without a new best; None: train to the end."""
    cache_features: bool = True
    """Compute the features of a frozen tower once and keep them on the disk, where its input is not augmented."""
    features: str = ""
    """Folder for those features, which other runs on the same data then share; by itself, in the run folder, and
    removed at the end."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an average of the weights over the steps (0.999), which is then what is validated and saved; None: no
    average."""
    wise_ft: tuple[float, ...] = ()
    """Shares of the trained weights to try at the end, the rest being those of train.start_from; what is best on
    validation becomes the run's model."""

    @model_validator(mode="after")
    def _some_stage(self) -> TrainConfig:
        if not self.stages:
            raise ValueError("stages must name at least one stage")
        return self

    @model_validator(mode="after")
    def _chunks_fit(self) -> TrainConfig:
        if isinstance(self.chunk_size, int) and not 1 <= self.chunk_size <= self.batch_size:
            raise ValueError(f"chunk_size must be from 1 to batch_size ({self.batch_size}), got {self.chunk_size}")
        return self

    @model_validator(mode="after")
    def _mixtures(self) -> TrainConfig:
        if any(not 0 <= share <= 1 for share in self.wise_ft):
            raise ValueError(f"wise_ft must hold shares from 0 to 1, got {self.wise_ft}")
        if self.wise_ft and not self.start_from:
            raise ValueError("wise_ft mixes the trained weights with those of start_from, which names no model")
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
    distil: DistilConfig = DistilConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @property
    def output(self) -> Path:
        """The run folder."""
        return Path(self.train.output or f"runs/{self.name}")
