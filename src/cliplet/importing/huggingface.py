"""Hugging Face folders of two-tower models, CLIPModel and VisionTextDualEncoderModel, as cliplet models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cliplet.config import (
    HeadConfig,
    ImageTowerConfig,
    ModelConfig,
    PreprocessConfig,
    TemperatureConfig,
    TextTowerConfig,
)
from cliplet.errors import ModelError, nearest
from cliplet.importing.names import longest_text
from cliplet.importing.vocabulary import check_belonging
from cliplet.models import DualEncoder
from cliplet.models.huggingface import architecture_values
from cliplet.models.sources import load_exactly
from cliplet.models.tokenizers import huggingface_tokenizer

SHORTEST_EDGE = "shortest_edge"


def import_huggingface(folder: str | Path, tokenizer: str = "") -> DualEncoder:
    """The model of a folder that CLIPModel or VisionTextDualEncoderModel was saved into, in evaluation mode.

    `tokenizer`: a source of its tokenizer, where the folder holds none. Raises ModelError for a folder of another
    kind, or whose weights do not fit what its configuration says.
    """
    import transformers

    folder = Path(folder)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: its config.json cannot be read: {error}") from None
    classes = {
        "clip": transformers.CLIPModel,
        "vision-text-dual-encoder": transformers.VisionTextDualEncoderModel,
    }
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in classes:
        raise ModelError(
            f"{folder}: holds a model of type {kind!r}, which cannot be imported", nearest(str(kind), classes)
        )
    whole = _load(classes[kind], folder)
    vision, text = whole.config.vision_config, whole.config.text_config
    size = getattr(vision, "image_size", 224)
    if not isinstance(size, int):
        raise ModelError(f"{folder}: its image tower reads pictures of {size} pixels, but only squares can be imported")
    length = longest_text(text.to_dict())
    config = ModelConfig(
        embed_dim=int(whole.config.projection_dim),
        image=ImageTowerConfig(kind="huggingface", name="", pooling="model"),
        text=TextTowerConfig(kind="huggingface", pooling="model", context_length=length),
        image_head=HeadConfig(bias=False),
        text_head=HeadConfig(bias=False),
        temperature=TemperatureConfig(minimum=1e-4, maximum=1e4),  # no bounds; these are beyond what it can mean
        preprocess=_preprocess(folder, size),
    )
    try:
        found = huggingface_tokenizer(tokenizer or str(folder), length)
    except ModelError as error:
        raise ModelError(error.message, "Name a tokenizer: --tokenizer FOLDER_OR_FILE.") from None
    check_belonging(found, int(text.vocab_size))
    model = DualEncoder.skeleton(config, found, architecture_values(vision), architecture_values(text))
    weights = {
        **_tensors("image_tower.model.", whole.vision_model, model.image_tower.model),
        **_tensors("text_tower.model.", whole.text_model, model.text_tower.model),
        "image_head.1.weight": whole.visual_projection.weight,
        "text_head.1.weight": whole.text_projection.weight,
        "temperature.log_scale": whole.logit_scale.reshape(()),
    }
    load_exactly(model, weights, str(folder))
    return model.eval()


def _tensors(prefix: str, theirs: Any, own: Any) -> dict[str, torch.Tensor]:
    """The tensors of their tower under the names that they have in cliplet's.

    CLIP's towers are modules of their own in transformers 5; in transformers 4 each is part of such a module.
    """
    place = next((f"{name}." for name, part in own.named_children() if type(part) is type(theirs)), "")
    return {f"{prefix}{place}{name}": tensor for name, tensor in theirs.state_dict().items()}


def _load(kind: Any, folder: Path) -> Any:
    """The whole model in float32, with every weight from the folder."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Mismatched sizes are ignored there, for they are reported below.
        model, info = kind.from_pretrained(str(folder), output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # missing or damaged files, shapes: transformers raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder}: cannot be opened: {reason}") from None
    shapes = [f"{name} is {tuple(found)}, expected {tuple(own)}" for name, found, own in info["mismatched_keys"]]
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", info["missing_keys"]),
            ("left over", info["unexpected_keys"]),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise ModelError(f"{folder}: its weights do not fit: " + "; ".join(problems))
    return model.float()


def _preprocess(folder: Path, image_size: int) -> PreprocessConfig:
    """What the folder says of pictures; without a word, CLIP's way with CLIP's mean and deviation."""
    from cliplet.recipes.own import CLIP_MEAN, CLIP_STD

    file = folder / "preprocessor_config.json"
    if not file.is_file():
        file = folder / "processor_config.json"
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        said = said.get("image_processor", said)
        size = said.get("size", {SHORTEST_EDGE: image_size})
        if isinstance(size, int):
            size = {SHORTEST_EDGE: size} if said.get("do_center_crop", False) else {"height": size, "width": size}
        edge = size.get(SHORTEST_EDGE)
        normalize = said.get("do_normalize", True)
        return PreprocessConfig(
            image_size=image_size,
            crop_fraction=min(1.0, image_size / edge) if edge else 1.0,
            resize="crop" if edge else "squash",
            mean=said.get("image_mean", CLIP_MEAN) if normalize else (0.0, 0.0, 0.0),
            std=said.get("image_std", CLIP_STD) if normalize else (1.0, 1.0, 1.0),
        )
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read: {error}") from None
