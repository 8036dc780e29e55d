"""The terms, their weights and what chance is, against values worked by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from cliplet.config import LossConfig, RunConfig, StageConfig, StageLossConfig
from cliplet.errors import TrainingError
from cliplet.losses import hard_negative_margin, info_nce, siglip
from cliplet.models.dual_encoder import Output
from cliplet.training.chance import chance_loss
from cliplet.training.objective import loss_in_stage, loss_terms, total, weights_of

OWNERS = torch.tensor([0, 0, 1, 2, 2])


def output(bias=None):
    """Three pictures, five captions."""
    generator = torch.Generator().manual_seed(0)
    image_BD, text_CD = (F.normalize(torch.randn(rows, 4, generator=generator).double()) for rows in (3, 5))
    return Output(image_BD, text_CD, torch.tensor(5.0), None if bias is None else torch.tensor(bias))


def only(**weights):
    return LossConfig(**{"info_nce": 0.0, **weights})


def test_the_loss_is_the_sum_of_its_terms_each_times_its_weight():
    loss = LossConfig(info_nce=0.5, siglip=2.0, hard_negative=3.0, soft_targets=False, hard_negatives=2, margin=4.0)
    features = output(bias=-3.0)
    terms = loss_terms(features, OWNERS, loss)
    assert {name: float(value) for name, value in terms.items()} == {
        "info_nce": float(info_nce(*features[:3], OWNERS, False)),
        "siglip": float(siglip(*features[:3], OWNERS, -3.0)),
        "hard_negative": float(hard_negative_margin(*features[:3], OWNERS, 2, 4.0)),
    }
    expected = 0.5 * terms["info_nce"] + 2 * terms["siglip"] + 3 * terms["hard_negative"]
    assert float(total(terms, loss)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "term"),
    [
        ({"soft_targets": False}, "info_nce"),
        ({"hard_negatives": 1}, "hard_negative"),
        ({"margin": 0.2}, "hard_negative"),
    ],
)
def test_each_setting_reaches_its_term_and_no_other(change, term):
    loss = LossConfig(siglip=1.0, hard_negative=1.0)
    before = loss_terms(output(), OWNERS, loss)
    after = loss_terms(output(), OWNERS, loss.model_copy(update=change))
    assert {name for name in before if before[name] != after[name]} == {term}


def test_siglip_takes_the_models_bias_if_it_has_one():
    without, zero, low = (loss_terms(output(bias), OWNERS, only(siglip=1.0))["siglip"] for bias in (None, 0.0, -3.0))
    assert without == zero and zero != low


def test_a_term_without_a_weight_is_not_computed():
    assert set(loss_terms(output(), OWNERS, LossConfig())) == {"info_nce"}
    assert set(loss_terms(output(), OWNERS, only(siglip=0.1, hard_negative=1e-9))) == {"siglip", "hard_negative"}
    assert weights_of(LossConfig(siglip=0.25)) == {"info_nce": 1.0, "siglip": 0.25}


def test_a_stage_changes_the_weights_that_it_names():
    loss = LossConfig(info_nce=1.0, siglip=2.0, hard_negative=3.0, hard_negatives=7, margin=0.3, soft_targets=False)
    config = RunConfig(loss=loss)
    assert loss_in_stage(config, StageConfig()) == loss
    changed = loss_in_stage(config, StageConfig(loss=StageLossConfig(info_nce=0.0, hard_negative=0.5)))
    assert changed == loss.model_copy(update={"info_nce": 0.0, "hard_negative": 0.5})
    assert weights_of(changed) == {"siglip": 2.0, "hard_negative": 0.5}


def test_a_loss_without_any_weight_is_refused():
    with pytest.raises(TrainingError, match=r"no term.*weights are 0") as caught:
        weights_of(only())
    assert "loss.info_nce" in caught.value.hint
    with pytest.raises(TrainingError, match="no term"):
        loss_terms(output(), OWNERS, loss_in_stage(RunConfig(), StageConfig(loss=StageLossConfig(info_nce=0.0))))


def test_gradients_reach_features_scale_and_bias():
    features = [tensor.clone().requires_grad_() for tensor in output(bias=-3.0)]
    loss = LossConfig(info_nce=0.5, siglip=2.0, hard_negative=3.0)
    total(loss_terms(Output(*features), OWNERS, loss), loss).backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in features)


# Chance


@pytest.mark.parametrize("captions", [1, 2, 5])
def test_chance_of_info_nce_is_the_logarithm_of_the_batch(captions):
    for images in (2, 8, 128):
        assert chance_loss(LossConfig(), images, captions) == pytest.approx(math.log(images), rel=1e-9)


@pytest.mark.parametrize(
    ("images", "captions", "expected"),
    [
        (4, 1, math.log(4)),
        (4, 2, (math.log(1 + 3 * 2) + math.log(4)) / 2),  # 1 right caption, 6 of other pictures
        (3, 5, (math.log(1 + 2 * 5) + math.log(3)) / 2),
    ],
)
def test_chance_with_the_first_caption_as_target(images, captions, expected):
    assert chance_loss(LossConfig(soft_targets=False), images, captions) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("images", [2, 3, 8, 128])
@pytest.mark.parametrize("captions", [1, 3])
def test_chance_of_siglip_is_the_least_that_one_logit_for_all_can_give(images, captions):
    # a caption has one right picture and B - 1 wrong ones, so the best sigmoid is 1 / B
    expected = math.log(images) - (images - 1) * math.log(1 - 1 / images)
    chance = chance_loss(only(siglip=1.0), images, captions)
    assert chance == pytest.approx(expected, rel=1e-6)
    owners = torch.arange(images).repeat_interleave(captions)
    image_BD, text_CD = torch.ones(images, 1).double(), torch.ones(images * captions, 1).double()
    scan = [float(siglip(image_BD, text_CD, 0.0, owners, bias)) for bias in torch.arange(-8, 4, 0.01).double()]
    assert chance <= min(scan) + 1e-9 and min(scan) == pytest.approx(chance, abs=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.25, 3.0])
def test_chance_of_hard_negatives_is_the_margin(margin):
    for images, captions in ((2, 1), (8, 2)):
        assert chance_loss(only(hard_negative=1.0, margin=margin), images, captions) == pytest.approx(margin)


def test_chance_of_a_sum_is_the_sum():
    loss = LossConfig(info_nce=0.5, siglip=2.0, hard_negative=4.0, margin=0.25)
    expected = 0.5 * math.log(4) + 2 * (math.log(4) + 3 * math.log(4 / 3)) + 4 * 0.25
    assert chance_loss(loss, 4, 2) == pytest.approx(expected, rel=1e-6)


def test_chance_is_what_a_model_gets_whose_features_are_all_alike():
    loss = LossConfig(info_nce=2.0, hard_negative=3.0, soft_targets=False)
    image_BD = F.normalize(torch.ones(6, 4), dim=1)
    alike = Output(image_BD, image_BD[:1].expand(12, 4), torch.tensor(100.0), None)
    value = total(loss_terms(alike, torch.arange(6).repeat_interleave(2), loss), loss)
    assert float(value) == pytest.approx(chance_loss(loss, 6, 2), rel=1e-4)
