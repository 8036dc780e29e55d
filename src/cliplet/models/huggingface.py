"""Hugging Face encoders, of text and of pictures: built from pretrained weights or from a description."""

from __future__ import annotations

from collections.abc import Mapping
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cliplet.errors import ModelError, nearest
from cliplet.models.sources import resolve


def load_model(source: str) -> Any:
    """AutoModel with pretrained weights in float32, by hub name, folder or `pkg:PACKAGE/PATH`. Raises ModelError."""
    from transformers import AutoModel

    place = resolve(source)
    if source != place and not Path(place).is_dir():
        raise ModelError(f"{place}: no such folder")
    _quiet()
    try:
        return AutoModel.from_pretrained(place, trust_remote_code=False).float()
    except Exception as error:  # network, missing files, unknown architecture: transformers raises many kinds
        raise ModelError(reason_of(error)) from None


def build_model(architecture: Mapping[str, Any], what: str) -> Any:
    """AutoModel with random weights, from values of its configuration; those left out are transformers' defaults.

    `what` names the tower in errors. Needs no network. Raises ModelError.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    kind = architecture.get("model_type")
    if kind is None:
        raise ModelError(
            f"the {what} is of kind huggingface but names neither pretrained weights nor an architecture",
            "Set its sources (weights of an image tower) to a hub name or a local folder, or its architecture to "
            "values of a Hugging Face configuration with model_type first.",
        )
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{what}: transformers knows no model_type {kind!r}", nearest(str(kind or ""), CONFIG_MAPPING.keys())
        )
    try:
        # In float32 whatever the configuration says of the source's own weights: these are trained in float32.
        return AutoModel.from_config(AutoConfig.for_model(**architecture)).float()
    except Exception as error:  # each model checks its own values, or stumbles over them
        raise ModelError(f"{what}: transformers cannot build {kind!r}: {reason_of(error)}") from None


def architecture_of(model: Any) -> dict[str, Any]:
    """What `build_model` needs to build a model of the same shape: its configuration as plain data."""
    return architecture_values(model.config)


def architecture_values(config: Any) -> dict[str, Any]:
    """A Hugging Face configuration as plain data, without the precision of weights that are not these."""
    return {key: value for key, value in config.to_dict().items() if key not in ("dtype", "torch_dtype")}


def drop_pooler(model: Any) -> None:
    """Takes away a pooler that nobody asks, whose parameters would train on nothing. One without any stays."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = nn.Identity()  # not None: some models call theirs without looking whether they have one


def pooled_output(output: Any, what: str) -> Any:
    """The vector that the model itself makes of its states. Raises ModelError where it makes none."""
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        raise ModelError(f"{what}: the model does no pooling of its own", "Set its pooling to first or mean.")
    return pooled.flatten(1)


def current_names(model: Any, weights: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`weights` with those under `prefix` named as the installed transformers names them in `model`.

    Versions of transformers name the same tensors differently, and it knows its own older names. What it does not
    know keeps its name, for a strict loading to complain of.
    """
    inside = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if set(inside) == set(model.state_dict()):
        return weights
    _quiet()
    try:
        converted, info = type(model).from_pretrained(
            None, config=model.config, state_dict=inside, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception:  # the strict loading says it better
        return weights
    own = model.state_dict()  # without a pooler, say, which transformers' own class has and ours may have dropped
    absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    found = {name: tensor for name, tensor in converted.state_dict().items() if name in own and name not in absent}
    # What does not fit stays, if only as a name and a shape.
    found |= {name: torch.empty(shape, device="meta") for name, shape, *_ in info["mismatched_keys"]}
    found |= {name: inside.get(name, torch.empty(0, device="meta")) for name in info["unexpected_keys"]}
    outside = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    return {**outside, **{f"{prefix}{name}": tensor for name, tensor in found.items()}}


def load_architecture(source: str, what: str) -> dict[str, Any]:
    """A model's configuration as plain data, by hub name, folder, config.json or `pkg:PACKAGE/PATH`; no weights.

    `what` names the tower in errors. Raises ModelError.
    """
    from transformers import AutoConfig

    place = resolve(source)
    try:
        return architecture_values(AutoConfig.from_pretrained(place, trust_remote_code=False))
    except Exception as error:  # network, missing files, unknown kind: transformers raises many
        raise ModelError(f"{what}: {source}: its configuration could not be loaded: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """What an error of transformers says, in a line: its first, and the second where the first only announces it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 2 if lines[0].rstrip().endswith(":") else 1])


def _quiet() -> None:
    """Keeps transformers from reports and progress bars: what matters of a loading is said in our own words."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    getLogger("huggingface_hub").setLevel(ERROR)  # its retries; what comes of them is told in the end
    logging.disable_progress_bar()
