"""Models that are there already: model folders, run folders, the hub's, OpenCLIP's."""

from __future__ import annotations

import math
from pathlib import Path

from cliplet.config import HeadConfig, ModelConfig, validated
from cliplet.errors import ConfigError, ModelError
from cliplet.hub import fetched, is_hub_name
from cliplet.models.dual_encoder import DualEncoder
from cliplet.models.open_clip import open_clip_model
from cliplet.runtime.engines import OPEN_CLIP, best_model_folder


def open_model(source: str | Path) -> DualEncoder:
    """A model in evaluation mode on the CPU, from a model folder, from a run folder (its best model), from the hub by
    its name there (`owner/name` or `owner/name@revision`), or from `open_clip:ARCHITECTURE/PRETRAINED`, PRETRAINED
    being one of OpenCLIP's tags or the path of a weights file.

    A model of OpenCLIP's gives OpenCLIP's features, and once saved needs neither a network nor those weights again; it
    does need open_clip_torch. Raises ModelError.
    """
    if str(source).startswith(OPEN_CLIP):
        return _from_open_clip(str(source).removeprefix(OPEN_CLIP))
    return DualEncoder.from_pretrained(folder_with_weights(source))


def folder_with_weights(source: str | Path) -> Path:
    """The model folder that `open_model` opens; of a model on the hub, fetched where it is not there yet. Raises
    ModelError where the hub does not give it."""
    return fetched(str(source), weights=True) if is_hub_name(source) else best_model_folder(source)


def _from_open_clip(source: str) -> DualEncoder:
    parts = open_clip_model(source)
    try:
        scale = math.exp(parts.logit_scale)
    except OverflowError:
        scale = math.inf  # which the configuration refuses below
    none = HeadConfig(kind="none").model_dump(mode="json")
    data = {
        "embed_dim": parts.image_tower.width,
        "image": parts.image_tower.config.model_dump(mode="json"),
        "text": parts.text_tower.config.model_dump(mode="json"),
        "image_head": none,
        "text_head": none,
        "temperature": {"init": scale, "minimum": min(1.0, scale), "maximum": max(100.0, scale)},
        "logit_bias": parts.logit_bias,
        "preprocess": parts.preprocess.model_dump(mode="json"),
    }
    try:
        config = validated(ModelConfig, data, f"{OPEN_CLIP}{source}")
    except ConfigError as error:
        raise ModelError(error.message, error.hint) from None
    return DualEncoder(config, parts.image_tower, parts.text_tower, parts.tokenizer).eval()
