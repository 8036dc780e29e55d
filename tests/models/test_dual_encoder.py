"""The one model class: unit features, the same for bytes and floats, and honest about its size."""

import numpy as np
import pytest
import timm
import torch

from cliplet.config import HeadConfig, PreprocessConfig, TemperatureConfig, TextTowerConfig
from cliplet.errors import ModelError
from cliplet.models import DualEncoder


@pytest.fixture(params=["tiny_model", "bert_model"])
def model(request):
    return request.getfixturevalue(request.param)


def pixels(number=4, size=32):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (number, 3, size, size), dtype=np.uint8))


def test_features_are_of_unit_length_and_float32(model, captions):
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    with torch.no_grad():
        image_BD, text_CD, scale = model(pixels(), ids, mask)
    assert image_BD.shape == (4, 16) and text_CD.shape == (len(captions), 16)
    for features in (image_BD, text_CD):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)), atol=1e-6, rtol=0)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5)


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
    twin = DualEncoder.skeleton(model.config, model.tokenizer.to_json(), model.text_tower.architecture)
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
    image_BD, text_CD, scale = model(pixels(5), ids, mask)
    torch.nn.functional.cross_entropy(scale * image_BD @ text_CD.T, torch.arange(5)).backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


def test_a_width_that_the_heads_do_not_divide(tiny_config, captions):
    text = TextTowerConfig(width=30, heads=4)
    with pytest.raises(ModelError, match=r"width 30 is not a multiple of model\.text\.heads 4"):
        DualEncoder.build(tiny_config.model_copy(update={"text": text}), captions)
