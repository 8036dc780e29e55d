"""Graphs are the model: for every kind of tower, head and attention, every batch and every length, on every engine."""

import importlib
import shutil

import numpy as np
import onnx
import pytest
import torch

import cliplet
from cliplet.config import (
    AttentionConfig,
    HeadConfig,
    ImageTowerConfig,
    ModelConfig,
    PreprocessConfig,
    SharedHeadConfig,
    TokenizerConfig,
    validated,
)
from cliplet.errors import ModelError
from cliplet.export import export
from cliplet.export.onnx import export_graphs
from cliplet.models import DualEncoder
from cliplet.recipes import RECIPES, recipe
from cliplet.runtime.engines import TorchEngine
from cliplet.runtime.graphs import OPENERS

ENGINES = ("openvino", "onnxruntime")
SENTENCES = [
    "boat",
    "a red boat on the lake",
    "",
    "two dogs run in the deep snow " * 9,
    "a",
    "ü? 犬",
    "a child with a ball",
]


def pictures(count, size=40):
    random = np.random.default_rng(count)
    return [random.integers(0, 256, (size, size + 7, 3), dtype=np.uint8) for _ in range(count)]


def unlike(ours, theirs):
    """One minus the least cosine."""
    return float(1 - (ours * theirs).sum(axis=1).min())


def assert_is_the_model(folder, engine):
    """Batches of one, of a few and of many, short texts beside long ones: all as PyTorch computes them."""
    model = cliplet.load(folder, engine="torch")
    ours = cliplet.load(folder, engine=engine, precision="fp32")
    for count in (1, 3, 9):
        got = ours.encode_image(pictures(count))
        assert got.dtype == np.float32 and got.shape == (count, model.embed_dim)
        assert unlike(got, model.encode_image(pictures(count))) < 1e-4
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-4)
    expected = model.encode_text(SENTENCES)
    for batch_size in (1, 2, 64):
        assert unlike(ours.encode_text(SENTENCES, batch_size=batch_size), expected) < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_from_scratch(exported_model, engine):
    assert_is_the_model(exported_model, engine)


VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
}
LINFORMER = AttentionConfig(kind="linformer", linformer_k=8)
# What of a model is another than the tiny one's; `text` holds changes of its text tower.
IMAGE_PARTS = {
    "a transformer": {
        "image": ImageTowerConfig(name="test_vit", pooling="mean"),
        "image_head": HeadConfig(kind="mlp_norm"),
        "preprocess": PreprocessConfig(image_size=32, crop_fraction=0.9, mean=(0.5, 0.4, 0.3)),
    },
    "the smallest TinyViT": {
        "image": ImageTowerConfig(name="tiny_vit_5m_224"),
        "image_head": HeadConfig(kind="linear_norm"),
        "preprocess": PreprocessConfig(image_size=64, resize="squash"),
    },
    "Hugging Face's ViT": {"image": ImageTowerConfig(kind="huggingface", pooling="first", architecture=VIT)},
}
TEXT_PARTS = {
    "linformer, last token": {
        "text": {"attention": LINFORMER, "norm": "post", "final_norm": "pooled", "pooling": "last"},
        "text_head": HeadConfig(kind="residual"),
        "image_head": HeadConfig(kind="residual"),
        "shared_head": SharedHeadConfig(kind="residual_mlp"),
    },
    "performer, words, first token": {
        "text": {
            "attention": AttentionConfig(kind="performer"),
            "pooling": "first",
            "tokenizer": TokenizerConfig(kind="words", min_count=1),
        },
        "text_head": HeadConfig(kind="convffn"),
    },
    "full attention, first token": {"text": {"pooling": "first"}, "text_head": HeadConfig(kind="mlp")},
    "RoBERTa": {"text": {"kind": "huggingface", "architecture": ROBERTA}},
}


def build(config, changes, captions):
    torch.manual_seed(0)
    text = config.text.model_copy(update=changes.get("text", {}))
    return DualEncoder.build(config.model_copy(update={**changes, "text": text}), captions).eval()


def assert_tower_is_the_model(model, tower, folder):
    """As `assert_is_the_model`, of one tower and without a model folder."""
    (proto,) = export_graphs(model, [tower]).values()
    file = folder / f"{tower}.onnx"
    file.write_bytes(proto.SerializeToString())
    torch_engine = TorchEngine(model)
    graphs = [OPENERS[engine](file, tower, "features", "fp32") for engine in ENGINES]
    size = model.config.preprocess.image_size
    for rows in (slice(0, 1), slice(1, 4), slice(0, 7)):
        if tower == "image":
            pixels = np.stack([picture[:size, :size] for picture in pictures(7, size)])[rows]
            inputs, expected = (pixels,), torch_engine.image_features(pixels)
        else:
            inputs = model.tokenizer(SENTENCES[rows])
            expected = torch_engine.text_features(*inputs)
        for graph in graphs:
            assert unlike(graph(*inputs), expected) < 1e-4


SPECIAL = {"the smallest TinyViT", "full attention, first token"}  # what others have too, or takes half a minute


def each(towers):
    return [
        pytest.param(parts, id=name, marks=[pytest.mark.slow] if name in SPECIAL else [])
        for name, parts in towers.items()
    ]


@pytest.mark.parametrize("parts", each(IMAGE_PARTS))
def test_every_image_tower(tiny_config, captions, parts, tmp_path):
    assert_tower_is_the_model(build(tiny_config, parts, captions), "image", tmp_path)


@pytest.mark.parametrize("parts", each(TEXT_PARTS))
def test_every_text_tower(tiny_config, captions, parts, tmp_path):
    assert_tower_is_the_model(build(tiny_config, parts, captions), "text", tmp_path)


@pytest.mark.slow
def test_a_bert(bert_model, tmp_path):
    assert_tower_is_the_model(bert_model, "text", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_at_full_size(name, tmp_path, captions):
    """With random weights in place of pretrained ones."""
    data = recipe(name).model.model_dump(mode="json")
    data["image"]["weights"] = data["text"]["sources"] = data["text"]["tokenizer"]["sources"] = []
    if data["text"]["tokenizer"]["kind"] == "huggingface":
        data["text"]["tokenizer"]["kind"] = "bpe"
    if data["text"]["kind"] == "huggingface" and not data["text"]["architecture"]:  # that of its weights
        data["text"]["architecture"] = recipe("vittiny-minilm").model.text.architecture
    torch.manual_seed(0)
    model = DualEncoder.build(validated(ModelConfig, data, name), captions * 40)
    model.save_pretrained(tmp_path / "model")
    _, made = export(tmp_path / "model")
    assert min(graph.cosine for graph in made.graphs.values()) > 0.9999


def test_the_temperature_is_known_without_weights(exported_model):
    assert cliplet.load(exported_model, engine="onnxruntime").logit_scale == pytest.approx(1 / 0.07)


def same_graphs(one, other):
    return all(
        (one / "onnx" / f"{tower}.onnx").read_bytes() == (other / "onnx" / f"{tower}.onnx").read_bytes()
        for tower in ("image", "text")
    )


@pytest.mark.slow
def test_the_same_model_gives_the_same_file(exported_model, tmp_path):
    export(exported_model, tmp_path / "again")
    assert same_graphs(exported_model, tmp_path / "again")


def test_a_new_folder_has_all_but_the_weights(traced_once, exported_model, tmp_path):
    export(exported_model, tmp_path / "again")
    assert same_graphs(exported_model, tmp_path / "again")
    assert not (tmp_path / "again" / "model.safetensors").exists()
    card = (tmp_path / "again" / "README.md").read_text()
    assert card.startswith((exported_model / "README.md").read_text()) and "in float32" in card


def test_graphs_are_plain_onnx_of_any_batch_and_length(exported_model):
    for tower, inputs in (("image", ["pixels"]), ("text", ["input_ids", "attention_mask"])):
        proto = onnx.load(exported_model / "onnx" / f"{tower}.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert [one.name for one in proto.graph.input] == inputs
        assert {node.domain for node in proto.graph.node} == {""}
        assert not proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


# -- refused


class Unsupported(torch.nn.Module):
    def forward(self, features):
        return torch.linalg.eigh(features.T @ features)[0].expand(len(features), -1)


def test_an_operator_that_onnx_has_not(tiny_model, tmp_path):
    tiny_model.shared_head = Unsupported()
    with pytest.raises(ModelError, match=r"the image tower cannot be exported: .*eigh"):
        export_graphs(tiny_model, ["image"])


def test_a_graph_that_is_not_the_model_is_refused_and_the_earlier_export_stays(traced_once, exported_copy, monkeypatch):
    module = importlib.import_module("cliplet.export.run")
    traced = module.export_graphs
    before = {file.name: file.read_bytes() for file in (exported_copy / "onnx").iterdir()}

    def wrong(model):
        graphs = traced(model)
        weights = max(graphs["text"].graph.initializer, key=lambda one: one.ByteSize())
        values = onnx.numpy_helper.to_array(weights)
        random = np.random.default_rng(0).normal(0, values.std(), values.shape).astype(np.float32)
        weights.CopyFrom(onnx.numpy_helper.from_array(values + random, weights.name))
        return graphs

    monkeypatch.setattr(module, "export_graphs", wrong)
    with pytest.raises(ModelError, match="the exported text tower is not the model"):
        export(exported_copy)
    assert {file.name: file.read_bytes() for file in (exported_copy / "onnx").iterdir()} == before
    assert not [file for file in exported_copy.iterdir() if file.name.startswith(".")]


def test_a_folder_of_somebody_else_is_left_alone(saved_model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ModelError, match="is no model folder of cliplet"):
        export(saved_model, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_run_folder_is_exported_into_its_best_model_in_the_place_of_what_was_there(
    traced_once, exported_model, tmp_path
):
    shutil.copytree(exported_model, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "onnx" / "image.onnx").write_bytes(b"old")
    folder, _ = export(tmp_path / "run")
    assert folder == tmp_path / "run" / "model"
    assert (folder / "onnx" / "image.onnx").read_bytes() == (exported_model / "onnx" / "image.onnx").read_bytes()
    assert type(cliplet.load(tmp_path / "run").engine).__name__ == "GraphEngine"
