"""Finding and reading OpenCLIP's pretrained weights: by its tags, or in local files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cliplet.config import PreprocessConfig, validated
from cliplet.errors import ConfigError, ModelError, nearest
from cliplet.models.open_clip_tokenizers import library
from cliplet.models.sources import look_for_the_hub, read_weights

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
ABOUT_PICTURES = ("mean", "std", "interpolation", "resize_mode")


class Pretrained(NamedTuple):
    """A weights file, and what OpenCLIP has on record of it."""

    file: Path
    quick_gelu: bool
    pictures: Mapping[str, Any]  # mean, std, interpolation, resize_mode, as far as they are known

    def preprocess(self, image_size: int) -> PreprocessConfig:
        """OpenCLIP's evaluation transform as cliplet's. Raises ModelError where it has none like it.

        cliplet resizes with bicubic interpolation only; where OpenCLIP does with bilinear, a warning says that features
        differ a little from OpenCLIP's own.
        """
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        resize_mode = str(self.pictures.get("resize_mode") or "shortest")
        interpolation = str(self.pictures.get("interpolation") or "bicubic")
        resize = {"shortest": "crop", "squash": "squash"}.get(resize_mode)
        if resize is None or interpolation not in ("bicubic", "bilinear", "random"):  # random: in training only
            raise ModelError(
                f"{self.file}: OpenCLIP resizes its pictures by {resize_mode!r} with {interpolation!r} interpolation, "
                "which cliplet does not",
                "Choose weights whose pictures are resized by 'shortest' or 'squash'.",
            )
        if interpolation == "bilinear":
            warnings.warn(
                f"{self.file}: made for bilinear interpolation; cliplet's is bicubic, so features differ a little",
                stacklevel=2,
            )
        data = {
            "image_size": image_size,
            "resize": resize,
            "mean": self.pictures.get("mean") or OPENAI_DATASET_MEAN,
            "std": self.pictures.get("std") or OPENAI_DATASET_STD,
        }
        try:
            return validated(PreprocessConfig, data, f"{self.file}: its preprocessing")
        except ConfigError as error:
            raise ModelError(error.message, error.hint) from None


def find_pretrained(name: str, pretrained: str) -> Pretrained:
    """The weights of architecture `name` by OpenCLIP's tag, fetched if need be, or by the path of a local file.

    Raises ModelError.
    """
    library(f"open_clip:{name}/{pretrained}")
    from open_clip import pretrained as records

    tags = records.list_pretrained_tags_by_model(name)
    if record := records.get_pretrained_cfg(name, pretrained):
        look_for_the_hub()
        try:
            file = records.download_pretrained(record)
        except Exception as error:  # no network, no such repository, no room
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"open_clip:{name}/{pretrained}: the hub cannot be reached, or has no such weights: {reason}",
                f"Name a local weights file instead: open_clip:{name}/path/to/weights.safetensors.",
            ) from None
        return Pretrained(Path(file), bool(record.get("quick_gelu")), record)
    file = Path(pretrained)
    if not pretrained or not (file.is_file() or "/" in pretrained or file.suffix in SUFFIXES):
        known = nearest(pretrained, tags) if tags else f"OpenCLIP has none of {name}; name a local weights file."
        raise ModelError(f"open_clip:{name}/{pretrained}: no such pretrained weights of OpenCLIP", known)
    beside = file.parent / "open_clip_config.json"
    if beside.is_file():
        return Pretrained(file, *_read_record(beside))
    on_record = [_about_pictures(records.get_pretrained_cfg(name, tag)) for tag in tags]
    agreed = bool(on_record) and all(record == on_record[0] for record in on_record)
    return Pretrained(file, False, on_record[0] if agreed else {})


def read_open_clip_weights(file: Path) -> dict[str, torch.Tensor]:
    """Weights by the names of OpenCLIP's CustomTextCLIP: `visual.`, `text.`, logit_scale and perhaps logit_bias.

    Taken off are a checkpoint around them, `module.` before names, and three numbers that OpenAI's files hold. Nothing
    is unpickled. Raises ModelError.
    """
    from open_clip.model import convert_to_custom_text_state_dict

    if file.suffix == ".safetensors" or not file.is_file():
        table: Any = read_weights(file)
    else:
        try:
            table = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # truncated, another format, or a pickle of code: all are refused alike
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{file}: cannot be opened as weights: {reason}") from None
    if isinstance(table, dict) and isinstance(table.get("state_dict"), dict):
        table = table["state_dict"]
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise ModelError(f"{file}: holds no plain table of named tensors")
    if table and all(name.startswith("module.") for name in table):
        table = {name.removeprefix("module."): value for name, value in table.items()}
    weights = {n: v for n, v in table.items() if n not in ("input_resolution", "context_length", "vocab_size")}
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{file}: holds no plain table of named tensors")
    for scalar in ("logit_scale", "logit_bias"):  # some keep them as vectors of one number
        if scalar in weights and weights[scalar].numel() == 1:
            weights[scalar] = weights[scalar].reshape(())
    return convert_to_custom_text_state_dict(weights)


def _about_pictures(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in ABOUT_PICTURES}


def _read_record(file: Path) -> tuple[bool, dict[str, Any]]:
    """What an open_clip_config.json says of quick GELU and of pictures."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return bool(record.get("model_cfg", {}).get("quick_gelu")), _about_pictures(record.get("preprocess_cfg", {}))
    except (ValueError, OSError, AttributeError) as error:
        raise ModelError(f"{file}: is no description of an OpenCLIP model: {error}") from None
