"""Hugging Face models: built from plain data, loaded without surprises, and their names of other versions known."""

import json

import pytest
import torch
from torch import nn

from cliplet.errors import ModelError
from cliplet.models.huggingface import (
    architecture_of,
    build_model,
    current_names,
    drop_pooler,
    load_architecture,
    load_model,
    pooled_output,
)
from cliplet.models.sources import load_exactly

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIT = {"model_type": "vit", **SHAPE, "image_size": 32, "patch_size": 8}
BERT = {"model_type": "bert", **SHAPE, "vocab_size": 40, "max_position_embeddings": 24}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
REGNET = {**RESNET, "model_type": "regnet", "layer_type": "y", "groups_width": 8}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 2, 1]}
ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 1}
ALL = {architecture["model_type"]: architecture for architecture in (VIT, BERT, RESNET, CONVNEXT, ROBERTA)}


def built(architecture, seed=0):
    torch.manual_seed(seed)
    return build_model(architecture, "a tower")


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


# --- from a description


@pytest.mark.parametrize("kind", ALL)
def test_a_configuration_survives_json_and_builds_the_same_model(kind):
    model = built(ALL[kind])
    twin = built(json.loads(json.dumps(architecture_of(model))))
    assert type(twin) is type(model)
    load_exactly(twin, model.state_dict(), "twin")
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if kind in ("bert", "roberta"):
        inputs = {"input_ids": torch.randint(3, 40, (2, 7))}
    with torch.no_grad():
        first, second = (m.eval()(**inputs).last_hidden_state for m in (model, twin))
    assert torch.equal(first, second)
    assert not {"dtype", "torch_dtype"} & architecture_of(model).keys()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_float32_whatever_the_description_says(dtype):
    assert {p.dtype for p in built({**BERT, "dtype": dtype}).parameters()} == {torch.float32}


@pytest.mark.parametrize(("kind", "near"), [("robert", "roberta"), ("vitt", "vit"), ("convnet", "convnext")])
def test_an_unknown_kind_offers_near_ones(kind, near):
    with pytest.raises(ModelError, match=f"image tower: transformers knows no model_type '{kind}'") as caught:
        build_model({"model_type": kind}, "image tower")
    assert near in caught.value.hint.replace("?", "").split()


@pytest.mark.parametrize("kind", ["", "!", 3])
def test_a_kind_like_no_other_does_not_list_them_all(kind):
    with pytest.raises(ModelError, match="knows no model_type") as caught:
        build_model({"model_type": kind}, "text tower")
    assert len(caught.value.hint) < 1000


def test_a_description_without_a_kind_says_what_to_set():
    with pytest.raises(ModelError, match="the image tower is of kind huggingface but names neither") as caught:
        build_model({"hidden_size": 32}, "image tower")
    assert "model_type" in caught.value.hint


def test_values_that_do_not_fit_each_other_are_told():
    with pytest.raises(ModelError, match=r"text tower: transformers cannot build 'bert': .*hidden size.*33"):
        build_model({**BERT, "hidden_size": 33}, "text tower")
    with pytest.raises(ModelError, match=r"tower: transformers cannot build 'resnet': .*layer_type=bottle"):
        build_model({**RESNET, "layer_type": "bottle"}, "image tower")


# --- from a source


def test_a_source_is_loaded_in_float32_and_not_otherwise_touched(tmp_path):
    model = built(VIT)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert same({name: tensor.float() for name, tensor in model.state_dict().items()}, loaded.state_dict())


def test_a_classifier_in_the_source_is_left_out(tmp_path):
    from transformers import AutoModelForImageClassification, ViTConfig

    torch.manual_seed(0)
    classifier = AutoModelForImageClassification.from_config(ViTConfig(**VIT))
    classifier.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).state_dict()
    theirs = classifier.base_model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.items() if "pooler" not in name)


def test_sources_that_do_not_load_are_model_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": ')
    built(BERT).save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    for source in ("empty", "torn", "cut"):
        with pytest.raises(ModelError) as caught:
            load_model(str(tmp_path / source))
        assert caught.value.message and "\n" not in caught.value.message
    with pytest.raises(ModelError, match="no_such_folder: no such folder"):
        load_model("pkg:tokenizers/no_such_folder")
    with pytest.raises(ModelError):
        load_model("no-such-org/no-such-model")


def test_a_description_is_read_without_weights(tmp_path):
    model = built(BERT)
    model.config.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        read = load_architecture(str(source), "text tower")
        twin = built(read)
        assert {n: t.shape for n, t in twin.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"text tower: .*nothing: its configuration could not be loaded"):
        load_architecture(str(tmp_path / "nothing"), "text tower")


# --- poolers


TEXTS = {
    **{name: ALL[name] for name in ("bert", "roberta")},
    "albert": {**BERT, "model_type": "albert", "embedding_size": 16},  # squashes what its pooler gives
    "squeezebert": {**BERT, "model_type": "squeezebert", "embedding_size": 32},  # calls it without a look
    "layoutlm": {**BERT, "model_type": "layoutlm"},
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_pooler_that_nobody_asks_is_gone_and_the_states_are_as_before(kind):
    model, ids = built(TEXTS[kind]).eval(), torch.randint(3, 40, (2, 7))
    names = model.state_dict().keys()
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
        drop_pooler(model)
        assert torch.equal(model(input_ids=ids).last_hidden_state, before)
    assert names - model.state_dict().keys() == {name for name in names if name.startswith("pooler.")} != set()


@pytest.mark.parametrize("kind", ["resnet", "regnet"])
def test_a_pooler_without_parameters_stays(kind):
    model = built(RESNET if kind == "resnet" else REGNET).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = pooled_output(model(pixel_values=pixels), "image tower")
        drop_pooler(model)
        assert torch.equal(pooled_output(model(pixel_values=pixels), "image tower"), before)
    assert before.shape == (2, 16)


def test_a_model_that_does_no_pooling_says_so():
    model = built(
        {"model_type": "distilbert", "vocab_size": 40, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
    )
    drop_pooler(model)  # there is none
    with pytest.raises(ModelError, match="text tower: the model does no pooling of its own"):
        pooled_output(model(input_ids=torch.ones(1, 3, dtype=torch.int64)), "text tower")


# --- names of other versions


OLDER = [
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
]


def older_name(name):
    """What transformers 4 called it in a ViT; as it is where that is what is installed."""
    if not name.startswith("encoder."):
        for new, old in OLDER:
            name = name.replace(new, old)
    return name


def vit_and_its_weights(prefix, pooler=True):
    model = built(VIT)
    if not pooler:
        drop_pooler(model)
    own = {f"{prefix}{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    older = {f"{prefix}{older_name(name.removeprefix(prefix))}": tensor for name, tensor in own.items()}
    return model, own, older


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("prefix", ["", "image_tower.model."])
def test_a_vit_of_transformers_4_is_understood(prefix, pooler):
    model, own, older = vit_and_its_weights(prefix, pooler)
    assert f"{prefix}encoder.layer.1.attention.attention.query.weight" in older
    assert same(current_names(model, older, prefix), own)


def test_what_is_not_under_the_prefix_stays():
    model, own, older = vit_and_its_weights("a.")
    others = {"temperature.log_scale": torch.ones(()), "encoder.layer.0.output.dense.weight": torch.zeros(2)}
    assert same(current_names(model, {**older, **others}, "a."), {**own, **others})


def test_names_that_fit_already_are_left_alone():
    model, own, _ = vit_and_its_weights("a.")
    assert current_names(model, own, "a.") is own


def test_unknown_and_missing_names_are_left_for_the_strict_loading():
    model, own, older = vit_and_its_weights("")
    unknown = {**older, "nonsense.weight": torch.zeros(2)}
    assert same(current_names(model, unknown), {**own, "nonsense.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"place: its weights do not fit: 1 left over \(nonsense\.weight\)"):
        load_exactly(model, current_names(model, unknown), "place")
    del older[older_name("layers.1.mlp.fc1.weight")]
    with pytest.raises(
        ModelError, match=r"1 missing \((layers|encoder\.layer)\.1\.(mlp\.fc1|intermediate\.dense)\.weight"
    ):
        load_exactly(model, current_names(model, older), "place")


def test_weights_of_another_shape_or_model_are_left_for_the_strict_loading():
    model, _, older = vit_and_its_weights("")
    older[older_name("layers.1.mlp.fc1.weight")] = torch.zeros(3, 3)
    for weights in (older, {"weight": torch.zeros(2)}, {}):
        with pytest.raises(ModelError, match="do not fit"):
            load_exactly(model, current_names(model, weights), "place")


def test_the_model_itself_is_not_touched_and_nothing_is_printed(capfd):
    model, _, older = vit_and_its_weights("")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capfd.readouterr()
    current_names(model, {**older, "nonsense": torch.zeros(1)})
    assert same(model.state_dict(), before)
    assert capfd.readouterr() == ("", "")


def test_weights_in_half_precision_keep_it():
    """The conversion is of names alone; what to make of the numbers is the loader's business."""
    model, own, older = vit_and_its_weights("")
    converted = current_names(model, {name: tensor.bfloat16() for name, tensor in older.items()})
    module = nn.Module()
    module.model = model
    assert converted.keys() == own.keys()
    load_exactly(model, converted, "place")
    assert all(torch.equal(tensor, own[name].bfloat16().float()) for name, tensor in model.state_dict().items())
