"""Image towers: any timm model, its blocks by depth, its batch norm kept where it should be."""

import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from cliplet.config import ImageTowerConfig
from cliplet.errors import ModelError
from cliplet.models.huggingface import build_model
from cliplet.models.towers import by_depth, final_norms_joined
from cliplet.models.vision import HuggingFaceImageTower, TimmTower, build_image_tower, image_tower_skeleton

# name, width, number of blocks, what the first and the last hold
TOWERS = [
    ("test_resnet", 96, 5, ("model.conv1.", "model.bn1."), ("model.layer4.",)),
    (
        "mobilenetv2_100",
        1280,
        8,
        ("model.conv_stem.", "model.bn1."),
        ("model.blocks.6.", "model.conv_head.", "model.bn2."),
    ),
    (
        "vit_tiny_patch16_224",
        192,
        13,
        ("model.cls_token", "model.pos_embed", "model.patch_embed."),
        ("model.blocks.11.", "model.norm."),
    ),
    # timm gives the norm behind the last stage of these a depth of its own.
    (
        "tiny_vit_11m_224",
        448,
        5,
        ("model.patch_embed.",),
        ("model.stages.3.", "model.head.norm."),
    ),
    ("convnext_atto", 320, 5, ("model.stem.",), ("model.stages.3.", "model.head.norm.")),
    ("swin_tiny_patch4_window7_224", 768, 5, ("model.patch_embed.",), ("model.layers.3.", "model.norm.")),
]


def batch_norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(("name", "width", "number", "first", "last"), TOWERS, ids=[tower[0] for tower in TOWERS])
def test_blocks_cover_every_parameter_once_from_input_to_output(name, width, number, first, last):
    tower = TimmTower(ImageTowerConfig(name=name), 32)
    name_of = {id(parameter): key for key, parameter in tower.named_parameters()}
    blocks = [[name_of[id(parameter)] for parameter in block] for block in tower.blocks()]
    assert sorted(key for block in blocks for key in block) == sorted(name_of.values())
    assert len(blocks) == number
    assert all(key.startswith(first) for key in blocks[0])
    assert all(key.startswith(last) for key in blocks[-1])
    assert all(any(key.startswith(prefix) for key in blocks[0]) for prefix in first)
    assert all(any(key.startswith(prefix) for key in blocks[-1]) for prefix in last)
    assert tower.width == width
    with torch.no_grad():
        assert tower.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, width)


def test_features_are_timms_own():
    torch.manual_seed(0)
    tower = TimmTower(ImageTowerConfig(name="test_resnet"), 32).eval()
    reference = timm.create_model("test_resnet", num_classes=0).eval()
    reference.load_state_dict(tower.model.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels), reference(pixels), atol=1e-5, rtol=1e-5)  # other order in memory


def test_an_unknown_name_offers_near_ones():
    with pytest.raises(ModelError) as caught:
        TimmTower(ImageTowerConfig(name="mobilenet_v2_100"), 32)
    assert "there is no timm model 'mobilenet_v2_100'" in caught.value.message
    assert "mobilenetv2_100" in caught.value.hint


def test_a_name_like_no_other_does_not_list_all_of_timm():
    with pytest.raises(ModelError) as caught:
        TimmTower(ImageTowerConfig(name="!"), 32)
    assert len(caught.value.hint) < 1000 and "in all" in caught.value.hint


def test_a_size_that_the_tower_does_not_take_is_told():
    with pytest.raises(ModelError) as caught:
        TimmTower(ImageTowerConfig(name="test_vit"), 37)
    assert "test_vit" in caught.value.message and "37" in caught.value.message
    assert "image_size" in caught.value.hint


def statistics(tower):
    return [norm.running_mean.clone() for norm in batch_norms(tower)]


@pytest.mark.parametrize(("setting", "moves"), [(False, False), (True, True)])
def test_batch_norm_statistics_move_only_where_they_are_to(setting, moves):
    tower = TimmTower(ImageTowerConfig(name="test_resnet", train_batch_norm=setting), 32).train()
    before = statistics(tower)
    tower(3 + torch.randn(4, 3, 32, 32))
    after = statistics(tower)
    assert len(before) > 5
    assert all(torch.equal(a, b) != moves for a, b in zip(before, after, strict=True))
    assert tower.training and tower.model.training  # all else, dropout for one, is in training mode
    assert not any(module.training for module in tower.eval().modules())


def test_frozen_blocks_keep_their_statistics():
    tower = TimmTower(ImageTowerConfig(name="test_resnet", train_batch_norm=True), 32)
    last = {id(parameter) for parameter in tower.blocks()[-1]}
    for parameter in tower.parameters():
        parameter.requires_grad_(id(parameter) in last)
    tower.train()
    norms = batch_norms(tower)
    before = statistics(tower)
    tower(3 + torch.randn(4, 3, 32, 32))
    moved = {id(norm) for norm, mean in zip(norms, before, strict=True) if not torch.equal(norm.running_mean, mean)}
    assert moved == {id(norm) for norm in norms if id(norm.weight) in last}
    assert 0 < len(moved) < len(norms)


def test_only_the_classifier_itself_may_be_left_over(tmp_path):
    tower = TimmTower(ImageTowerConfig(name="test_resnet", weights=(str(tmp_path / "w.safetensors"),)), 32)
    weights = {name: tensor.contiguous() for name, tensor in tower.model.state_dict().items()}
    weights |= {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    tower.load_pretrained(32, print)
    safetensors.torch.save_file({**weights, "fc_norm.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 left over \(fc_norm\.weight\)"):
        tower.load_pretrained(32, print)


def sized(*shapes):
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


def test_a_last_block_of_vectors_alone_joins_the_one_before():
    first, second, third = sized((2, 2), 2), sized((2, 2)), sized(2, 2)
    assert final_norms_joined([first, second, third]) == [first, second + third]
    assert final_norms_joined([first, third, second]) == [first, third, second]  # in the middle it stays
    fourth = sized(2)
    assert final_norms_joined([first, second, third, fourth]) == [first, second + third + fourth]
    assert final_norms_joined([first, second]) == [first, second]  # nothing of vectors alone
    assert final_norms_joined([third, fourth]) == [third + fourth]
    assert final_norms_joined([third]) == [third]


def test_what_is_defined_before_the_layers_comes_first_and_what_is_defined_after_them_last():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(4, 4), nn.LayerNorm(4))
    layers = [list(model[1].parameters()), list(model[2].parameters())]
    parameters = list(model.parameters())
    assert [[id(p) for p in block] for block in by_depth(model, layers)] == [
        [id(p) for p in part] for part in (parameters[:2], parameters[2:4], parameters[4:])
    ]
    assert by_depth(model, []) == [parameters]


# timm: pooling


def timm_tower(name, pooling, size=32):
    torch.manual_seed(0)
    return TimmTower(ImageTowerConfig(name=name, pooling=pooling), size).double().eval()


@torch.no_grad()
def test_pooling_of_a_timm_transformer():
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    states = timm_tower("test_vit", "model").model.forward_features(pixels)
    assert states.ndim == 3
    expected = {"first": states[:, 0], "mean": sum(states.unbind(1)) / states.shape[1], "model": states[:, 0]}
    for pooling, features in expected.items():
        tower = timm_tower("test_vit", pooling)
        assert tower.width == 64
        torch.testing.assert_close(tower(pixels), features, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "tiny_vit_5m_224"])
def test_the_mean_over_a_map_is_what_the_model_does(name):
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = timm_tower(name, "mean")(pixels)
    assert torch.equal(features, timm_tower(name, "model")(pixels))
    if name == "test_resnet":
        states = timm_tower(name, "mean").model.forward_features(pixels)
        torch.testing.assert_close(features, states.flatten(2).mean(2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "tiny_vit_5m_224"])
def test_a_map_has_no_first_token(name):
    with pytest.raises(ModelError, match=f"image tower {name}: has no first token to pool by") as caught:
        TimmTower(ImageTowerConfig(name=name, pooling="first"), 32)
    assert "model.image.pooling to model" in caught.value.hint


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s"])
def test_tokens_of_patches_alone_have_no_first_one_either(name):
    assert TimmTower(ImageTowerConfig(name=name, pooling="mean"), 64).width in (512, 384)
    with pytest.raises(ModelError, match=f"image tower {name}: has no first token to pool by"):
        TimmTower(ImageTowerConfig(name=name, pooling="first"), 64)


# Hugging Face


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIT = {"model_type": "vit", **SHAPE, "image_size": 32, "patch_size": 8}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 2, 1]}
CLIP = {**VIT, "model_type": "clip_vision_model"}
KINDS = {architecture["model_type"]: architecture for architecture in (VIT, RESNET, CONVNEXT, CLIP)}


def hf_tower(architecture, pooling="model", size=32, **settings):
    torch.manual_seed(0)
    config = ImageTowerConfig(kind="huggingface", pooling=pooling, **settings)
    tower = HuggingFaceImageTower(config, size, build_model(architecture, "image tower"))
    torch.manual_seed(1)
    with torch.no_grad():  # norms are not 1 and 0
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return tower.double().eval()


def pixels_of(number=3, size=32):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@torch.no_grad()
def test_pooling_of_a_hugging_face_vit():
    pixels, towers = pixels_of(), {pooling: hf_tower(VIT, pooling) for pooling in ("model", "first", "mean")}
    for tower in towers.values():  # the pooler is drawn last, and its absence shifts nothing before it
        weights = towers["model"].state_dict()
        tower.load_state_dict({name: weights[name] for name in tower.state_dict()})
    states = towers["model"].model(pixel_values=pixels).last_hidden_state
    assert states.shape == (3, 17, 32)
    dense = towers["model"].model.pooler.dense
    expected = {
        "first": states[:, 0],
        "mean": sum(states.unbind(1)) / 17,
        "model": (states[:, 0] @ dense.weight.T + dense.bias).tanh(),
    }
    for pooling, features in expected.items():
        tower = towers[pooling]
        assert tower.width == 32
        torch.testing.assert_close(tower(pixels), features, atol=1e-12, rtol=0)
        assert any("pooler" in name for name in tower.state_dict()) == (pooling == "model")


@torch.no_grad()
@pytest.mark.parametrize(("kind", "width"), [("resnet", 16), ("convnext", 24)])
def test_pooling_of_a_hugging_face_network_of_convolutions(kind, width):
    pixels = pixels_of()
    tower = hf_tower(KINDS[kind], "mean")
    states = tower.model(pixel_values=pixels).last_hidden_state
    assert states.ndim == 4 and tower.width == width
    mean = states.flatten(2).mean(2)
    torch.testing.assert_close(tower(pixels), mean, atol=1e-12, rtol=0)
    expected = tower.model.layernorm(mean) if kind == "convnext" else mean
    torch.testing.assert_close(hf_tower(KINDS[kind], "model")(pixels), expected, atol=1e-12, rtol=0)
    with pytest.raises(ModelError, match="image tower: has no first token to pool by") as caught:
        hf_tower(KINDS[kind], "first")
    assert "model.image.pooling to mean" in caught.value.hint


@pytest.mark.parametrize(("kind", "number"), [("vit", 3), ("clip_vision_model", 3), ("resnet", 3), ("convnext", 5)])
def test_blocks_of_hugging_face_towers_cover_every_parameter_once(kind, number):
    tower = hf_tower(KINDS[kind], "model")
    name_of = {id(parameter): name for name, parameter in tower.named_parameters()}
    blocks = [[name_of[id(parameter)] for parameter in block] for block in tower.blocks()]
    assert sorted(name for block in blocks for name in block) == sorted(name_of.values())
    assert len(blocks) == number
    assert all("embed" in name or "pre_layrnorm" in name for name in blocks[0])
    if kind == "vit":
        assert all(name in blocks[-1] for name in ("model.layernorm.weight", "model.pooler.dense.bias"))


@pytest.mark.parametrize(("setting", "moves"), [(False, False), (True, True)])
def test_batch_norm_of_hugging_face_towers_moves_only_where_it_is_to(setting, moves):
    tower = hf_tower(RESNET, "mean", train_batch_norm=setting).train()
    before = statistics(tower)
    tower(3 + pixels_of())
    assert len(before) > 5
    assert all(torch.equal(a, b) != moves for a, b in zip(before, statistics(tower), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_architecture_builds_the_same_tower(kind):
    tower = hf_tower(KINDS[kind], "mean")
    twin = image_tower_skeleton(tower.config, 32, json.loads(json.dumps(tower.architecture)))
    twin.load_state_dict(tower.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.double().eval()(pixels_of()), tower(pixels_of()))
    with pytest.raises(ModelError, match="of kind huggingface, but its image_architecture is missing"):
        image_tower_skeleton(tower.config, 32, None)


@torch.no_grad()
def test_from_scratch_by_the_configuration_alone():
    config = ImageTowerConfig(kind="huggingface", architecture=VIT, pooling="first")
    tower = build_image_tower(config, 32, print)
    assert tower.width == 32 and tower(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
    with pytest.raises(ModelError, match="image tower is of kind huggingface but names neither"):
        build_image_tower(ImageTowerConfig(kind="huggingface"), 32, print)


@pytest.mark.parametrize(("size", "patch"), [(64, 8), (16, 8), (33, 8)])
def test_a_size_that_a_vit_was_not_made_for_is_told(size, patch):
    with pytest.raises(ModelError, match=f"image tower vit: cannot be built for {size} pixels: .*{size}") as caught:
        hf_tower(VIT, "first", size)
    assert "model.preprocess.image_size" in caught.value.hint


def test_pooling_as_a_model_does_that_does_none():
    with pytest.raises(ModelError, match="image tower: the model does no pooling of its own") as caught:
        hf_tower({**VIT, "model_type": "vit_msn"}, "model")
    assert "pooling to first or mean" in caught.value.hint
    assert hf_tower({**VIT, "model_type": "vit_msn"}, "mean").width == 32


@pytest.mark.parametrize(("kind", "near"), [("vitt", "vit"), ("resnett", "resnet")])
def test_an_unknown_model_type_offers_near_ones(kind, near):
    with pytest.raises(ModelError, match=f"image tower: transformers knows no model_type '{kind}'") as caught:
        hf_tower({"model_type": kind})
    assert near in caught.value.hint


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "bert", **SHAPE, "vocab_size": 40},
        {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 40},
    ],
    ids=["bert", "t5"],
)
@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_model_of_texts_is_refused(architecture, pooling):
    with pytest.raises(ModelError, match="Model is no plain vision encoder"):
        hf_tower(architecture, pooling)
