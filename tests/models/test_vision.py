"""Image towers: any timm model, its blocks by depth, its batch norm kept where it should be."""

import pytest
import safetensors.torch
import timm
import torch

from cliplet.config import ImageTowerConfig
from cliplet.errors import ModelError
from cliplet.models.vision import ImageTower

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
]


def batch_norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(("name", "width", "number", "first", "last"), TOWERS, ids=[tower[0] for tower in TOWERS])
def test_blocks_cover_every_parameter_once_from_input_to_output(name, width, number, first, last):
    tower = ImageTower(ImageTowerConfig(name=name), 32)
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
    tower = ImageTower(ImageTowerConfig(name="test_resnet"), 32).eval()
    reference = timm.create_model("test_resnet", num_classes=0).eval()
    reference.load_state_dict(tower.model.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels), reference(pixels), atol=1e-5, rtol=1e-5)  # other order in memory


def test_an_unknown_name_offers_near_ones():
    with pytest.raises(ModelError) as caught:
        ImageTower(ImageTowerConfig(name="mobilenet_v2_100"), 32)
    assert "there is no timm model 'mobilenet_v2_100'" in caught.value.message
    assert "mobilenetv2_100" in caught.value.hint


def test_a_name_like_no_other_does_not_list_all_of_timm():
    with pytest.raises(ModelError) as caught:
        ImageTower(ImageTowerConfig(name="!"), 32)
    assert len(caught.value.hint) < 1000 and "in all" in caught.value.hint


def test_a_size_that_the_tower_does_not_take_is_told():
    with pytest.raises(ModelError) as caught:
        ImageTower(ImageTowerConfig(name="test_vit"), 37)
    assert "test_vit" in caught.value.message and "37" in caught.value.message
    assert "image_size" in caught.value.hint


def statistics(tower):
    return [norm.running_mean.clone() for norm in batch_norms(tower)]


@pytest.mark.parametrize(("setting", "moves"), [(False, False), (True, True)])
def test_batch_norm_statistics_move_only_where_they_are_to(setting, moves):
    tower = ImageTower(ImageTowerConfig(name="test_resnet", train_batch_norm=setting), 32).train()
    before = statistics(tower)
    tower(3 + torch.randn(4, 3, 32, 32))
    after = statistics(tower)
    assert len(before) > 5
    assert all(torch.equal(a, b) != moves for a, b in zip(before, after, strict=True))
    assert tower.training and tower.model.training  # all else, dropout for one, is in training mode
    assert not any(module.training for module in tower.eval().modules())


def test_frozen_blocks_keep_their_statistics():
    tower = ImageTower(ImageTowerConfig(name="test_resnet", train_batch_norm=True), 32)
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
    tower = ImageTower(ImageTowerConfig(name="test_resnet", weights=(str(tmp_path / "w.safetensors"),)), 32)
    weights = {name: tensor.contiguous() for name, tensor in tower.model.state_dict().items()}
    weights |= {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    tower.load_pretrained(32, print)
    safetensors.torch.save_file({**weights, "fc_norm.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 left over \(fc_norm\.weight\)"):
        tower.load_pretrained(32, print)
