"""Names and shapes of other projects' tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cliplet.config import Architecture, ImageTowerConfig
from cliplet.errors import ModelError
from cliplet.models.huggingface import build_model
from cliplet.models.sources import load_exactly
from cliplet.models.text import probe
from cliplet.models.vision import TimmTower, classifiers

Tensors = dict[str, torch.Tensor]


def rename(tensors: Mapping[str, torch.Tensor], table: Mapping[str, str | None]) -> Tensors:
    """`tensors` with the longest beginning of each name that `table` knows replaced, or left out where that is None.

    What the table does not know keeps its name, for a strict loading to complain of. Raises ModelError where two
    tensors get the same name.
    """
    longest_first = sorted(table, key=len, reverse=True)
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        start = next((start for start in longest_first if name.startswith(start)), None)
        new = name if start is None else None if table[start] is None else f"{table[start]}{name[len(start) :]}"
        if new in renamed:
            raise ModelError(f"{name} stands where another tensor is: both would be {new}")
        if new is not None:
            renamed[new] = tensor
    return renamed


def layers_in(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the names. Raises KeyError if none does."""
    numbers = {int(found[1]) for name in tensors if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    if not numbers:
        raise KeyError(f"{prefix}0")
    return max(numbers) + 1


def fitting_timm_model(names: Sequence[str], tensors: Tensors, image_size: int) -> str:
    """The first of these timm models that `tensors` fit, a classifier apart. Raises ModelError saying why none does."""
    reasons = []
    for name in names:
        model = TimmTower(ImageTowerConfig(name=name), image_size).model
        try:
            load_exactly(model, tensors, name, ignore=classifiers(model))
        except ModelError as error:
            reasons.append(f"  {error.message}")
        else:
            return name
    raise ModelError(
        "the image tower's weights fit no model that they could belong to\n" + "\n".join(reasons),
        "Name the timm model with --image-tower.",
    )


def bert_shapes(tensors: Tensors, prefix: str, named: Architecture | None, usual: Architecture) -> dict[str, Any]:
    """The configuration of the BERT-like model under `prefix`: `named`, or `usual`, with the sizes of the tensors.

    Raises KeyError for a missing tensor, ModelError where the number of heads, which no tensor shows, is not known.
    """
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer."
    rows, width = tensors[f"{embeddings}word_embeddings.weight"].shape
    sizes: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": layers_in(tensors, layer),
        "intermediate_size": len(tensors[f"{layer}0.intermediate.dense.weight"]),
        "max_position_embeddings": len(tensors[f"{embeddings}position_embeddings.weight"]),
        "type_vocab_size": len(tensors[f"{embeddings}token_type_embeddings.weight"]),
    }
    if named is not None:
        return {**named, **sizes}
    if width != usual.get("hidden_size", 768):
        raise ModelError(
            f"the text tower's states have {width} features, and the number of its attention heads is not known",
            "Name its configuration: --text-config with a hub name, a folder or a config.json.",
        )
    return {**usual, **sizes}


def vit_shapes(tensors: Tensors, prefix: str, named: Architecture | None) -> dict[str, Any]:
    """The configuration of the Hugging Face ViT under `prefix`, in the names of any version of transformers: `named`,
    or one with heads 64 wide, with the sizes that the tensors have.

    Raises KeyError for a missing tensor, ModelError where the number of heads cannot be guessed.
    """
    embeddings = f"{prefix}embeddings."
    width, _, patch, _ = tensors[f"{embeddings}patch_embeddings.projection.weight"].shape
    old = any(name.startswith(f"{prefix}encoder.layer.") for name in tensors)
    layer, hidden = ("encoder.layer.", "intermediate.dense") if old else ("layers.", "mlp.fc1")
    positions = tensors[f"{embeddings}position_embeddings"].shape[1] - 1
    sizes: dict[str, Any] = {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers_in(tensors, f"{prefix}{layer}"),
        "intermediate_size": len(tensors[f"{prefix}{layer}0.{hidden}.weight"]),
        "patch_size": patch,
        "image_size": patch * math.isqrt(positions),
    }
    if named is not None:
        return {**named, **sizes}
    if width % 64:
        raise ModelError(
            f"the image tower's states have {width} features, and the number of its attention heads is not known",
            "Name its configuration: --image-config with a hub name, a folder or a config.json.",
        )
    return {**sizes, "num_attention_heads": width // 64}


def longest_text(architecture: Mapping[str, Any]) -> int:
    """How many tokens a Hugging Face text encoder reads, asked of one layer of it: some begin to count their positions
    behind the padding's number, and so read fewer than they have positions. Raises ModelError where that is not said.
    """
    positions = architecture.get("max_position_embeddings")
    if not isinstance(positions, int):
        raise ModelError("the text tower's configuration does not say how long texts may be (max_position_embeddings)")
    shallow = build_model({**architecture, "num_hidden_layers": 1}, "text tower")
    padding = getattr(shallow.config, "pad_token_id", None) or 0
    for length in (positions, positions - padding - 1):
        if length > 0 and probe(shallow, length, length) is not None:
            return length
    raise ModelError(f"the text tower has {positions} positions, but reads no text of as many tokens")
