"""The one model class: unit features, the same for bytes and floats, honest about its size, and the same when opened
again, whatever its parts are."""

import math
import shutil
import socket

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from cliplet.config import (
    AttentionConfig,
    HeadConfig,
    ImageTowerConfig,
    PreprocessConfig,
    SharedHeadConfig,
    TemperatureConfig,
    TextTowerConfig,
    TokenizerConfig,
)
from cliplet.errors import ModelError
from cliplet.models import DualEncoder
from cliplet.models.huggingface import build_model


@pytest.fixture(params=["tiny_model", "bert_model"])
def model(request):
    return request.getfixturevalue(request.param)


def pixels(number=4, size=32):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (number, 3, size, size), dtype=np.uint8))


def test_features_are_of_unit_length_and_float32(model, captions):
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    with torch.no_grad():
        image_BD, text_CD, scale, bias = model(pixels(), ids, mask)
    assert image_BD.shape == (4, 16) and text_CD.shape == (len(captions), 16)
    for features in (image_BD, text_CD):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)), atol=1e-6, rtol=0)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5) and bias is None


def test_a_text_without_words_has_features_too(model):
    with torch.no_grad():
        text_CD = model.encode_text(*(torch.from_numpy(array) for array in model.tokenizer(["", "a boat", " "])))
    torch.testing.assert_close(text_CD.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)


def test_features_differ_between_inputs(model, captions):
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    with torch.no_grad():
        image_BD, text_CD = model.encode_image(pixels()), model.encode_text(ids, mask)
    for features in (image_BD, text_CD):
        distances = torch.cdist(features, features) + torch.eye(len(features))
        assert distances.min() > 1e-3


def test_bytes_are_floats_normalised(tiny_config, captions):
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.2, 0.4)
    preprocess = PreprocessConfig(image_size=32, mean=mean, std=std)
    model = DualEncoder.build(tiny_config.model_copy(update={"preprocess": preprocess}), captions).eval()
    raw = pixels()
    normalised = np.empty((4, 3, 32, 32))
    for channel in range(3):  # as papers have it: to 0..1, minus the mean, over the deviation
        normalised[:, channel] = (raw[:, channel].numpy() / 255 - mean[channel]) / std[channel]
    with torch.no_grad():
        got, expected = model.encode_image(raw), model.encode_image(torch.from_numpy(normalised).float())
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_parameter_count_by_hand(tiny_model):
    width, layers, length = 32, 2, 24
    vocabulary = tiny_model.tokenizer.vocab_size
    block = 2 * 2 * width  # norms
    block += (3 * width * width + 3 * width) + (width * width + width)  # attention
    block += (4 * width * width + 4 * width) + (4 * width * width + width)  # MLP
    text = vocabulary * width + length * width + layers * block + 2 * width
    image = sum(parameter.numel() for parameter in tiny_model.image_tower.parameters())
    heads = (96 * 16 + 16) + (32 * 16 + 16)
    assert tiny_model.count_parameters() == image + text + heads + 1
    reference = timm.create_model("test_resnet", num_classes=0)
    assert image == sum(parameter.numel() for parameter in reference.parameters())


def test_count_is_the_same_when_frozen(tiny_model):
    before = tiny_model.count_parameters()
    tiny_model.requires_grad_(False)
    assert tiny_model.count_parameters() == before


def test_normalisation_belongs_to_the_configuration_not_to_the_weights(tiny_model):
    assert not [name for name in tiny_model.state_dict() if "pixel" in name]


def test_build_is_the_same_for_the_same_seed(tiny_config, captions):
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(DualEncoder.build(tiny_config, captions))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert models[0].tokenizer.to_json() == models[1].tokenizer.to_json()


def test_heads_and_temperature_are_the_configured_ones(tiny_config, captions):
    config = tiny_config.model_copy(
        update={
            "embed_dim": 8,
            "image_head": HeadConfig(kind="mlp", hidden=5),
            "temperature": TemperatureConfig(init=3.0),
        }
    )
    model = DualEncoder.build(config, captions)
    assert model.image_head[0].weight.shape == (5, 96) and model.text_head[-1].weight.shape == (8, 32)
    assert model.logit_scale.item() == pytest.approx(3.0)


def test_skeleton_takes_the_weights_of_its_model(model):
    twin = DualEncoder.skeleton(model.config, model.tokenizer, None, model.text_tower.architecture)
    twin.load_state_dict(model.state_dict())
    raw = pixels()
    with torch.no_grad():
        assert torch.equal(twin.eval().encode_image(raw), model.encode_image(raw))


def test_gradients_reach_every_parameter(model, captions):
    model.train()
    with torch.no_grad():  # timm begins its residual branches at zero, through which no gradient passes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    image_BD, text_CD, scale, _ = model(pixels(5), ids, mask)
    torch.nn.functional.cross_entropy(scale * image_BD @ text_CD.T, torch.arange(5)).backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


def test_a_width_that_the_heads_do_not_divide(tiny_config, captions):
    text = TextTowerConfig(width=30, heads=4)
    with pytest.raises(ModelError, match=r"width 30 is not a multiple of model\.text\.heads 4"):
        DualEncoder.build(tiny_config.model_copy(update={"text": text}), captions)


# Heads, temperature and bias in their places


@torch.no_grad()
def test_both_sides_go_through_their_head_then_the_shared_one(tiny_config, captions):
    config = tiny_config.model_copy(update={"shared_head": SharedHeadConfig(kind="residual_mlp", expansion=2)})
    torch.manual_seed(0)
    model = DualEncoder.build(config, captions).double().eval()
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    raw = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for own, features in (
        (model.image_head(model.image_tower(raw)), model.encode_image(raw)),
        (model.text_head(model.text_tower(ids, mask)), model.encode_text(ids, mask)),
    ):
        shared = model.shared_head
        expected = shared.norm(own + shared.fc2(nn.functional.gelu(shared.fc1(own))))
        expected = expected / expected.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(features, expected, atol=1e-12, rtol=0)
    assert features.dtype == torch.float64


@torch.no_grad()
def test_a_head_that_reads_tokens_gets_states_and_mask(tiny_config, captions):
    config = tiny_config.model_copy(update={"text_head": HeadConfig(kind="convffn", kernel=5)})
    torch.manual_seed(0)
    model = DualEncoder.build(config, captions).double().eval()
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    together = model.encode_text(ids, mask)
    for row, caption in enumerate(captions):
        one = tuple(torch.from_numpy(array) for array in model.tokenizer([caption]))
        expected = model.text_head(model.text_tower.states(*one), one[1])
        torch.testing.assert_close(together[row], nn.functional.normalize(expected)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["learned", "dynamic"])
def test_scale_and_bias_belong_to_the_output(kind, tiny_config, captions):
    config = tiny_config.model_copy(update={"temperature": TemperatureConfig(kind=kind, init=5.0), "logit_bias": -10.0})
    torch.manual_seed(0)
    model = DualEncoder.build(config, captions).eval()
    if kind == "dynamic":
        with torch.no_grad():
            for parameter in model.temperature.parameters():
                parameter.add_(0.2 * torch.rand_like(parameter))
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    output = model(pixels(), ids, mask)
    assert output.logit_bias.item() == -10.0 and output.logit_bias.requires_grad
    expected = model.temperature(output.image_features, output.text_features)
    assert torch.equal(output.logit_scale, expected)
    assert torch.equal(model.logit_scale, model.temperature())
    assert torch.equal(model.logit_scale, output.logit_scale) == (kind == "learned")


@pytest.mark.parametrize("shared", ["none", "residual_mlp"])
@pytest.mark.parametrize("kind", ["learned", "dynamic"])
@pytest.mark.parametrize("batch", ["one pair", "all alike"])
def test_a_batch_of_one_pair_and_one_of_pairs_all_alike_train(batch, kind, shared, tiny_config, captions):
    config = tiny_config.model_copy(
        update={"temperature": TemperatureConfig(kind=kind), "shared_head": SharedHeadConfig(kind=shared)}
    )
    torch.manual_seed(0)
    model = DualEncoder.build(config, captions).train()
    number = 1 if batch == "one pair" else 4
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions[:1] * number))
    image_BD, text_CD, scale, _ = model(pixels(1).expand(number, -1, -1, -1), ids, mask)
    logits = scale * image_BD @ text_CD.T
    assert scale.item() == pytest.approx(1 / 0.07, rel=0.1)
    loss = nn.functional.cross_entropy(logits, torch.arange(number))
    assert loss.item() == pytest.approx(math.log(number), abs=0.7 if number > 1 else 1e-6)
    (loss + 0.1 * logits.mean()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


# What does not fit


NO_FIT = {
    "image features without a head": ({"image_head": HeadConfig(kind="none")}, "the image tower gives 96 features"),
    "text features without a head": ({"text_head": HeadConfig(kind="none")}, "the text tower gives 32 features"),
    "a token head for pictures": ({"image_head": HeadConfig(kind="convffn")}, "the image head is of kind convffn"),
    "a token head without states": (
        {"text_head": HeadConfig(kind="convffn"), "text": TextTowerConfig(width=32, layers=1, final_norm="pooled")},
        "no last norm, which acts on the pooled vector only",
    ),
    "an image tower that does not exist": ({"image": ImageTowerConfig(name="test_resnett")}, "'test_resnett'"),
    "nothing to build of": ({"image": ImageTowerConfig(kind="huggingface")}, "neither pretrained weights nor"),
}


@pytest.mark.parametrize("case", NO_FIT)
def test_parts_that_do_not_fit_are_told(case, tiny_config, captions):
    update, message = NO_FIT[case]
    with pytest.raises(ModelError, match=message) as caught:
        DualEncoder.build(tiny_config.model_copy(update=update), captions)
    assert caught.value.hint


# Model folders of every kind


VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 2, 1]}
ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
DISTILBERT = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
WORDS = TokenizerConfig(kind="words", min_count=1)
BPE = TokenizerConfig(vocab_size=300, lowercase=False)


def image(**settings):
    return {"image": ImageTowerConfig(kind="huggingface", **settings)}


def own_text(**settings):
    return {"text": TextTowerConfig(width=32, layers=2, heads=4, context_length=24, tokenizer=BPE, **settings)}


def hf_text(architecture, **settings):
    return {"text": TextTowerConfig(kind="huggingface", architecture=architecture, context_length=24, **settings)}


FOLDERS = {
    "ViT, first": image(architecture=VIT, pooling="first"),
    "ViT, its own pooler": image(architecture=VIT, pooling="model"),
    "ViT from a source": image(weights=("VIT",), pooling="mean"),
    "ResNet from a source": image(weights=("RESNET",), pooling="mean", train_batch_norm=True),
    "ConvNeXt from a source": image(weights=("CONVNEXT",), pooling="model"),
    "timm's ViT, mean": {"image": ImageTowerConfig(name="test_vit", pooling="mean")},
    "timm's TinyViT": {"image": ImageTowerConfig(name="tiny_vit_5m_224")},
    "RoBERTa from scratch": hf_text(ROBERTA, pooling="first", tokenizer=WORDS),
    "RoBERTa, its own pooler": hf_text(ROBERTA, pooling="model", tokenizer=BPE),
    "DistilBERT from scratch": hf_text(DISTILBERT, tokenizer=WORDS),
    "BERT from a source": {"text": TextTowerConfig(kind="huggingface", sources=("BERT",), context_length=24)},
    "Linformer": own_text(attention=AttentionConfig(kind="linformer", linformer_k=6), final_norm="pooled"),
    "Performer": own_text(attention=AttentionConfig(kind="performer", performer_features=9), pooling="last"),
    "post norm, first": own_text(norm="post", pooling="first"),
    "dynamic temperature": {"temperature": TemperatureConfig(kind="dynamic", hidden=5)},
    "shared head and bias": {"shared_head": SharedHeadConfig(kind="residual_mlp"), "logit_bias": -10.0},
    "token head": {"text_head": HeadConfig(kind="convffn", kernel=5), "image_head": HeadConfig(kind="linear_norm")},
    "other heads": {"text_head": HeadConfig(kind="residual"), "image_head": HeadConfig(kind="mlp_norm")},
    "no heads": {
        "embed_dim": 64,
        "image": ImageTowerConfig(name="test_vit"),
        "image_head": HeadConfig(kind="none"),
        **{"text": TextTowerConfig(width=64, layers=1, tokenizer=WORDS), "text_head": HeadConfig(kind="none")},
    },
    "squashed pictures": {"preprocess": PreprocessConfig(image_size=32, resize="squash", crop_fraction=0.9)},
}


@pytest.fixture
def sources(make_bert, tmp_path):
    """Folders of pretrained weights, which the names in FOLDERS stand for."""
    folder = tmp_path / "sources"
    for name, architecture in (("VIT", VIT), ("RESNET", RESNET), ("CONVNEXT", CONVNEXT)):
        torch.manual_seed(0)
        build_model(architecture, "image tower").save_pretrained(folder / name)
    make_bert(folder / "BERT")
    return folder


def trained(config, captions, sources):
    """A model in which nothing is as it was built."""
    update = {}
    for side, key in (("image", "weights"), ("text", "sources")):
        tower = getattr(config, side)
        update[side] = tower.model_copy(update={key: tuple(str(sources / name) for name in getattr(tower, key))})
    torch.manual_seed(0)
    model = DualEncoder.build(config.model_copy(update=update), captions).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "running_var" not in name:
                tensor.add_(0.02 * torch.randn_like(tensor))
    return model


def everything(model, captions):
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer([*captions, "A Zebra", ""]))
    with torch.no_grad():
        output = model(pixels(), ids, mask)
    return [value for value in (*output, model.logit_scale) if value is not None]


@pytest.mark.parametrize("case", FOLDERS)
def test_a_model_folder_opens_alone_and_gives_the_same_bits(
    case, tiny_config, captions, sources, tmp_path, monkeypatch, capfd
):
    model = trained(tiny_config.model_copy(update=FOLDERS[case]), captions, sources)
    before = everything(model, captions)
    assert before[0].std() > 0.01 and before[1].std() > 0.01
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(sources)
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: 1 / 0)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    opened = DualEncoder.from_pretrained(tmp_path / "model")
    after = everything(opened, captions)
    assert len(before) == len(after) == (5 if "bias" in case else 4)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert opened.config == model.config and not opened.training
    assert opened.tokenizer.to_json() == model.tokenizer.to_json()
    weights = opened.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert opened.count_parameters() == model.count_parameters()
    assert capfd.readouterr() == ("", "")
    assert [len(block) for block in opened.image_tower.blocks()] == [len(block) for block in model.image_tower.blocks()]
    assert [len(block) for block in opened.text_tower.blocks()] == [len(block) for block in model.text_tower.blocks()]
    opened.save_pretrained(tmp_path / "twice")  # and once more
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "model" / "config.json").read_text()


OLDER = {  # what transformers 4 calls a ViT's tensors; where that is installed, these names are the model's own
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@pytest.fixture
def vit_folder(tiny_config, captions, tmp_path):
    model = trained(tiny_config.model_copy(update=image(architecture=VIT, pooling="first")), captions, tmp_path)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def rename(folder, more=()):
    file = folder / "model.safetensors"
    renamed = {}
    for name, tensor in safetensors.torch.load_file(file).items():
        if name.startswith("image_tower.model.layers."):
            for new, old in OLDER.items():
                name = name.replace(new, old)
        renamed[name] = tensor
    safetensors.torch.save_file({**renamed, **dict(more)}, file)
    return renamed


def test_a_folder_written_under_transformers_4_opens_the_same(vit_folder, captions, capfd):
    model, folder = vit_folder
    assert "image_tower.model.encoder.layer.1.attention.attention.query.weight" in rename(folder)
    capfd.readouterr()
    opened = DualEncoder.from_pretrained(folder)
    assert capfd.readouterr() == ("", "")
    pairs = zip(everything(model, captions), everything(opened, captions), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)


@pytest.mark.parametrize("older", [True, False])
def test_names_that_nobody_knows_are_told(older, vit_folder):
    folder = vit_folder[1]
    unknown = {"image_tower.model.nonsense.weight": torch.zeros(2)}
    if older:
        rename(folder, unknown)
    else:
        file = folder / "model.safetensors"
        safetensors.torch.save_file({**safetensors.torch.load_file(file), **unknown}, file)
    with pytest.raises(ModelError, match=r"1 left over \(image_tower\.model\.nonsense\.weight\)"):
        DualEncoder.from_pretrained(folder)
