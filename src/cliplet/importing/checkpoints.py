"""Checkpoints of the five systems as cliplet models.

Each system has a function that reads a checkpoint's tables of tensors, says what model they belong to (shapes come from
the tensors, the rest from the system's recipe), and gives every tensor the name it has in cliplet. Loading is
strict: what is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cliplet.config import Architecture, HeadConfig, ModelConfig, TemperatureConfig, TextTowerConfig
from cliplet.errors import ModelError
from cliplet.importing.names import (
    Tensors,
    bert_shapes,
    fitting_timm_model,
    layers_in,
    longest_text,
    rename,
    vit_shapes,
)
from cliplet.importing.vocabulary import check_belonging, words_of
from cliplet.models import DualEncoder
from cliplet.models.huggingface import current_names, load_architecture
from cliplet.models.sources import first_that_loads, load_exactly
from cliplet.models.tokenizers import huggingface_tokenizer, words_tokenizer
from cliplet.models.vision import classifiers
from cliplet.recipes import recipe
from cliplet.runtime.tokenizer import Tokenizer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a checkpoint may not say of its model. Empty: as in the system's recipe."""

    tokenizer: str = ""  # hub name, folder, tokenizer.json or pkg:PACKAGE/PATH
    vocabulary: str = ""  # system 5: the captions that its words come from
    image_tower: str = ""  # a timm model's name
    image_config: str = ""  # hub name, folder or config.json of a Hugging Face image tower
    text_config: str = ""  # hub name, folder or config.json of a Hugging Face text tower


@dataclass(frozen=True)
class Found:
    """A checkpoint understood."""

    config: ModelConfig
    weights: Tensors  # under cliplet's names
    tokenizer: Tokenizer
    text_architecture: dict[str, Any]
    image_architecture: dict[str, Any] | None = None  # None: of timm


def import_checkpoint(file: str | Path, system: int, options: Options, say: Say) -> DualEncoder:
    """The model of a checkpoint of system 1 to 5, in evaluation mode. Nothing is unpickled.

    Raises ModelError for a file that is none, lacks a table of the system, or whose weights do not fit.
    """
    content = read_checkpoint(file)
    try:
        found = SYSTEMS[system](content, options, say)
    except KeyError as error:
        raise ModelError(
            f"{file}: has no {error}, which a checkpoint of system {system} has",
            f"At its top are: {', '.join(map(str, list(content)[:8]))}. Is it of another system?",
        ) from None
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:  # a vector for a matrix, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{file}: is no checkpoint of system {system}: {reason}"
        raise ModelError(message, "Is it of another system?") from error
    check_belonging(found.tokenizer, found.text_architecture["vocab_size"])
    model = DualEncoder.skeleton(found.config, found.tokenizer, found.image_architecture, found.text_architecture)
    weights = found.weights
    for name, tower in (("image_tower", model.image_tower), ("text_tower", model.text_tower)):
        if tower.config.kind == "huggingface":
            weights = current_names(tower.model, weights, f"{name}.model.")
    leftovers = () if found.image_architecture else classifiers(model.image_tower.model)
    load_exactly(model, weights, str(file), ignore=tuple(f"image_tower.model.{name}" for name in leftovers))
    return model.eval()


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """What a torch file holds: tensors, numbers, strings, and tables of them. Raises ModelError."""
    if Path(file).is_dir():
        raise ModelError(f"{file}: is a folder, but a checkpoint is a file", "Leave --system out for a folder.")
    if not Path(file).is_file():
        raise ModelError(f"{file}: no such file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to run what is inside
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"{named[1]} is inside, but only tensors, numbers and words are read" if named else "is no torch file"
        raise ModelError(f"{file}: cannot be opened as a checkpoint: {reason}") from None
    except Exception as error:  # truncated, or another format
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{file}: cannot be opened as a checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: holds a {type(content).__name__}, but a checkpoint is a table")
    return content


def _system1(content: dict[str, Any], options: Options, say: Say) -> Found:
    """TinyCLIP-ConvFFN."""
    state = _tensors(content["student_state"])
    variants = [
        recipe(name).model
        for name in ("tinyvit-minilm-convffn", "vits-minilm-convffn", "efficientnet-tinybert-convffn")
    ]
    names = [options.image_tower] if options.image_tower else [variant.image.name for variant in variants]
    size = variants[0].preprocess.image_size
    tower = fitting_timm_model(names, _inside(state, "vision."), size)
    base = next((variant for variant in variants if variant.image.name == tower), variants[0])
    architecture = _text_architecture(state, "text.", base.text.architecture, options)
    head = HeadConfig(
        kind="convffn",
        hidden=len(state["t_proj.pre.weight"]),
        kernel=state["t_proj.dw.weight"].shape[-1],
        dropout=content["convffn"]["dropout"],
    )
    weights = rename(
        state,
        {
            "vision.": "image_tower.model.",
            "text.pooler.": None,
            "text.embeddings.position_ids": None,
            "text.": "text_tower.model.",
            "v_proj.0.": "image_head.1.",  # in cliplet dropout stands before the first layer
            "v_proj.1.": "image_head.2.",
            "t_proj.pre.": "text_head.expand.",
            "t_proj.dw.": "text_head.convolution.",
            "t_proj.proj.": "text_head.project.",
            "t_proj.ln.": "text_head.norm.",
            "logit_scale": "temperature.log_scale",
        },
    )
    config = base.model_copy(
        update={
            "embed_dim": len(state["v_proj.0.weight"]),
            "image": base.image.model_copy(update={"name": tower, "weights": ()}),
            "text": _text_tower(base.text, architecture),
            "text_head": head,
        }
    )
    tokenizer = _tokenizer(options, base.text.sources, config.text.context_length, say)
    return Found(config, _bounded(weights, -2.5, math.log(100)), tokenizer, architecture)


def _system2(content: dict[str, Any], options: Options, say: Say) -> Found:
    """MiniCLIP."""
    base = recipe("resnet34-linformer-sam").model
    image, text, shared, temperature = (
        _tensors(content[name]) for name in ("image_encoder", "text_encoder", "proj_mlp", "dyn_temp")
    )
    layer = "encoder.net.layers."
    weights = {
        **rename(image, {"model.": "image_tower.model.", "projection.": "image_head.1."}),
        **rename(
            text,
            {
                "token_emb.": "text_tower.token_embedding.",
                "pos_emb.weight": "text_tower.position_embedding",
                layer: "text_tower.layers.",
                "layer_norm.": "text_tower.final_norm.",
            },
        ),
        **rename(shared, {"": "shared_head."}),
        **rename(temperature, {"": "temperature."}),
    }
    weights = rename(
        weights,
        {
            f"text_tower.layers.{number}.{theirs}": f"text_tower.layers.{number}.{ours}"
            for number in range(layers_in(text, layer))
            for theirs, ours in (
                ("0.fn.", "attention."),
                ("0.norm.", "attention_norm."),
                ("1.fn.w1.", "mlp.0."),
                ("1.fn.w2.", "mlp.2."),
                ("1.norm.", "mlp_norm."),
            )
        },
    )
    rows, width = text["token_emb.weight"].shape
    keys, k = text[f"{layer}0.0.fn.to_k.weight"].shape[0], text[f"{layer}0.0.fn.proj_k"].shape[1]
    one_head = keys < width  # then keys are as wide as one head
    attention = base.text.attention.model_copy(
        update={
            "linformer_k": k,
            "linformer_one_kv_head": one_head,
            "linformer_share_kv": f"{layer}0.0.fn.proj_v" not in text,
        }
    )
    text_config = base.text.model_copy(
        update={
            "width": width,
            "layers": layers_in(text, layer),
            "heads": width // keys if one_head else base.text.heads,
            "context_length": len(text["pos_emb.weight"]),
            "attention": attention,
        }
    )
    names = [options.image_tower or base.image.name]
    tower = fitting_timm_model(names, _inside(image, "model."), base.preprocess.image_size)
    config = base.model_copy(
        update={
            "embed_dim": len(image["projection.weight"]),
            "image": base.image.model_copy(update={"name": tower, "weights": ()}),
            "text": text_config,
            "shared_head": base.shared_head.model_copy(
                update={"expansion": len(shared["fc1.weight"]) // len(image["projection.weight"])}
            ),
            # The system has no bounds; these are beyond what it can mean.
            "temperature": TemperatureConfig(
                kind="dynamic", minimum=1e-4, maximum=1e4, hidden=len(temperature["mlp.0.weight"])
            ),
        }
    )
    tokenizer = _tokenizer(options, ("gpt2",), text_config.context_length, say)
    return Found(config, weights, tokenizer, {"vocab_size": rows})


def _system3(content: dict[str, Any], options: Options, say: Say) -> Found:
    """TinyMVLM."""
    state = _tensors(content["model_state_dict"])
    base = recipe("vittiny-minilm").model
    names = [options.image_tower or base.image.name]
    tower = fitting_timm_model(names, _inside(state, "image_encoder."), base.preprocess.image_size)
    architecture = _text_architecture(state, "text_encoder.", base.text.architecture, options)
    table: dict[str, str | None] = {
        "text_encoder.pooler.": None,
        "text_encoder.embeddings.position_ids": None,
        "text_encoder.": "text_tower.model.",
        "image_encoder.": "image_tower.model.",
        "logit_scale": "temperature.log_scale",
    }
    for side in ("image", "text"):  # dropout, which they have not, stands before the last layer
        for theirs, ours in (("0.", "0."), ("1.", "1."), ("3.", "4.")):
            table[f"{side}_proj.{theirs}"] = f"{side}_head.{ours}"
    heads = {
        f"{side}_head": HeadConfig(kind="mlp_norm", hidden=len(state[f"{side}_proj.0.weight"]))
        for side in ("image", "text")
    }
    config = base.model_copy(
        update={
            "embed_dim": len(state["image_proj.3.weight"]),
            "image": base.image.model_copy(update={"name": tower, "weights": ()}),
            "text": _text_tower(base.text, architecture),
            **heads,
        }
    )
    tokenizer = _tokenizer(options, base.text.sources, config.text.context_length, say)
    return Found(config, _bounded(rename(state, table)), tokenizer, architecture)


def _system4(content: dict[str, Any], options: Options, say: Say) -> Found:
    """miniCLIP_DL: the file is the state dict itself."""
    state = _tensors(content)
    vision = _inside(state, "vision_encoder.model.")
    transformer = "embeddings.cls_token" in vision
    base = recipe("vits-roberta-setup2" if transformer else "resnet101-roberta-setup2").model
    image_architecture: dict[str, Any] | None = None
    if transformer:
        image_architecture = vit_shapes(state, "vision_encoder.model.", _architecture(options.image_config, "image"))
        size = image_architecture["image_size"]
        image = base.image.model_copy(update={"weights": (), "architecture": _plain(image_architecture)})
    else:
        size = base.preprocess.image_size
        name = fitting_timm_model([options.image_tower or base.image.name], vision, size)
        image = base.image.model_copy(update={"weights": (), "name": name})
    architecture = _text_architecture(state, "text_encoder.model.", base.text.architecture, options)
    table: dict[str, str | None] = {"temperature": "temperature.log_scale"}
    heads: dict[str, HeadConfig] = {}
    for side, theirs in (("image", "vision_encoder"), ("text", "text_encoder")):
        table[f"{theirs}.model.pooler."] = None
        table[f"{theirs}.model.embeddings.position_ids"] = None
        table[f"{theirs}.model."] = f"{side}_tower.model."
        if f"{theirs}.projection.weight" in state:  # an older file
            heads[f"{side}_head"] = HeadConfig(kind="linear", bias=f"{theirs}.projection.bias" in state)
            table[f"{theirs}.projection."] = f"{side}_head.1."
        else:
            table[f"{theirs}.projection.layer_norm."] = f"{side}_head.norm."
            table[f"{theirs}.projection."] = f"{side}_head."
    last = "projection.weight" if "vision_encoder.projection.weight" in state else "projection.projection.weight"
    config = base.model_copy(
        update={
            "embed_dim": len(state[f"vision_encoder.{last}"]),
            "image": image,
            "text": _text_tower(base.text, architecture),
            "preprocess": base.preprocess.model_copy(update={"image_size": size}),
            **heads,
        }
    )
    tokenizer = _tokenizer(options, base.text.sources, config.text.context_length, say)
    return Found(config, _bounded(rename(state, table)), tokenizer, architecture, image_architecture)


def _system5(content: dict[str, Any], options: Options, say: Say) -> Found:
    """Mini-CLIP from scratch."""
    state = _tensors(content["model_state"])
    base = recipe("vitb16-scratch-hardneg").model
    encoder, layer = "image_encoder.backbone.encoder.", "text_encoder.transformer.layers."
    table: dict[str, str | None] = {
        "image_encoder.backbone.class_token": "image_tower.model.cls_token",
        "image_encoder.backbone.conv_proj.": "image_tower.model.patch_embed.proj.",
        "image_encoder.backbone.heads.": None,
        f"{encoder}pos_embedding": "image_tower.model.pos_embed",
        f"{encoder}ln.": "image_tower.model.norm.",
        "image_encoder.proj.": "image_head.1.",
        "text_encoder.token_embedding.": "text_tower.token_embedding.",
        "text_encoder.positional_embedding": "text_tower.position_embedding",
        "text_encoder.ln_post.": "text_tower.final_norm.",
        "text_encoder.proj.": "text_head.1.",
        "logit_scale": "temperature.log_scale",
    }
    for number in range(layers_in(state, f"{encoder}layers.encoder_layer_")):
        for theirs, ours in VIT_LAYER.items():
            table[f"{encoder}layers.encoder_layer_{number}.{theirs}"] = f"image_tower.model.blocks.{number}.{ours}"
    layers = layers_in(state, layer)
    for number in range(layers):
        for theirs, ours in TRANSFORMER_LAYER.items():
            table[f"{layer}{number}.{theirs}"] = f"text_tower.layers.{number}.{ours}"
    _, length, width = state["text_encoder.positional_embedding"].shape
    rows = len(state["text_encoder.token_embedding.weight"])
    weights = rename(state, table)
    weights["text_tower.position_embedding"] = weights["text_tower.position_embedding"].squeeze(0)
    inside = _inside(weights, "image_tower.model.")
    tower = fitting_timm_model([options.image_tower or base.image.name], inside, base.preprocess.image_size)
    text = base.text.model_copy(
        update={
            "width": width,
            "layers": layers,
            "heads": max(1, width // HEAD_WIDTH),
            "context_length": length,
        }
    )
    config = base.model_copy(
        update={
            "embed_dim": len(state["image_encoder.proj.weight"]),
            "image": base.image.model_copy(update={"name": tower, "weights": ()}),
            "text": text,
            "image_head": HeadConfig(bias="image_head.1.bias" in weights),
            "text_head": HeadConfig(bias="text_head.1.bias" in weights),
            # torchvision's weights, which the system starts from, see pictures normalised as ImageNet's are.
            "preprocess": recipe("vittiny-minilm").model.preprocess,
        }
    )
    if options.tokenizer:
        tokenizer = huggingface_tokenizer(options.tokenizer, text.context_length)
    elif options.vocabulary:
        tokenizer = words_tokenizer(words_of(options.vocabulary, rows), text.context_length)
    else:
        raise ModelError(
            "a checkpoint of system 5 does not hold its vocabulary",
            "Name the captions that it was trained on: --vocabulary captions.json",
        )
    return Found(config, _bounded(weights, high=math.log(100)), tokenizer, {"vocab_size": rows})


HEAD_WIDTH = 64  # of transformers with 12 heads for 768, 8 for 512

# torchvision's and PyTorch's names of a layer's parts, and timm's and cliplet's.
VIT_LAYER = {
    "ln_1.": "norm1.",
    "self_attention.in_proj_weight": "attn.qkv.weight",
    "self_attention.in_proj_bias": "attn.qkv.bias",
    "self_attention.out_proj.": "attn.proj.",
    "ln_2.": "norm2.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "mlp.linear_1.": "mlp.fc1.",
    "mlp.linear_2.": "mlp.fc2.",
}
TRANSFORMER_LAYER = {
    "self_attn.in_proj_weight": "attention.qkv.weight",
    "self_attn.in_proj_bias": "attention.qkv.bias",
    "self_attn.out_proj.": "attention.out.",
    "linear1.": "mlp.0.",
    "linear2.": "mlp.2.",
    "norm1.": "attention_norm.",
    "norm2.": "mlp_norm.",
}
SYSTEMS: dict[int, Callable[[dict[str, Any], Options, Say], Found]] = {
    1: _system1,
    2: _system2,
    3: _system3,
    4: _system4,
    5: _system5,
}


def _inside(state: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _tensors(table: Any) -> Tensors:
    """The table, if it is one of named tensors. Raises TypeError."""
    if not isinstance(table, dict):
        raise TypeError(f"a {type(table).__name__} stands where a table of tensors should")
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(f"a {type(tensor).__name__} stands at {name!r} where a tensor should")
    return table


def _bounded(weights: Tensors, low: float = -math.inf, high: float = math.inf) -> Tensors:
    """The logarithm of the logit scale as a scalar, which some keep as a vector of one, and between the bounds within
    which the system uses it: it may have learnt one beyond them."""
    name = "temperature.log_scale"
    scale = weights.get(name)
    return weights if scale is None or scale.numel() != 1 else {**weights, name: scale.reshape(()).clamp(low, high)}


def _architecture(source: str, what: str) -> Architecture | None:
    return load_architecture(source, f"{what} tower") if source else None


def _text_architecture(state: Tensors, prefix: str, usual: Architecture, options: Options) -> dict[str, Any]:
    """The Hugging Face configuration of a text tower: the one named, or the system's with the sizes of the tensors."""
    return bert_shapes(state, prefix, _architecture(options.text_config, "text"), usual)


def _text_tower(usual: TextTowerConfig, architecture: dict[str, Any]) -> TextTowerConfig:
    length = min(usual.context_length, longest_text(architecture))
    return usual.model_copy(
        update={"sources": (), "architecture": _plain(architecture), "context_length": length},
    )


def _plain(architecture: dict[str, Any]) -> Architecture:
    """What of an architecture may stand in a configuration: single values."""
    return {key: value for key, value in architecture.items() if isinstance(value, (str, int, float, bool))}


def _tokenizer(options: Options, sources: tuple[str, ...], context_length: int, say: Say) -> Tokenizer:
    """The one named, or the first of the system's own that is there."""
    if options.tokenizer:
        return huggingface_tokenizer(options.tokenizer, context_length)
    try:
        return first_that_loads("tokenizer", sources, lambda s: huggingface_tokenizer(s, context_length), say)
    except ModelError as error:
        raise ModelError(
            error.message, "The checkpoint does not hold its tokenizer: name one with --tokenizer FOLDER_OR_FILE."
        ) from None
