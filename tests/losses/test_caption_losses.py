"""What holds for every loss over `caption_image`."""

from functools import partial

import pytest
import torch

from cliplet.losses import hard_negative_margin, info_nce, siglip

LOSSES = {
    "info_nce": info_nce,
    "info_nce of first captions": partial(info_nce, soft_targets=False),
    "siglip": partial(siglip, logit_bias=-2.0),
    "hard_negative_margin": partial(hard_negative_margin, k=2, margin=1.5),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@every_loss
def test_order_of_pictures_does_not_matter(features, owner, loss):
    image, text, owner = features(5), features(len(owner), seed=9), torch.tensor(owner)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = loss(image[order], text, 10.0, order.argsort()[owner])
    torch.testing.assert_close(moved, loss(image, text, 10.0, owner), atol=1e-12, rtol=0)


@every_loss
def test_order_of_captions_does_not_matter(features, owner, loss):
    image, text, owner = features(5), features(len(owner), seed=9), torch.tensor(owner)
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(0))
    if loss is LOSSES["info_nce of first captions"]:  # the captions of one picture keep theirs
        order = order[owner[order].argsort(stable=True)]
        order = torch.cat([order[owner[order] == picture].sort().values for picture in (2, 4, 0, 1, 3)])
    moved = loss(image, text[order], 10.0, owner[order])
    torch.testing.assert_close(moved, loss(image, text, 10.0, owner), atol=1e-12, rtol=0)


@every_loss
def test_a_nearer_caption_of_the_same_picture_never_costs_more(with_logits, owner, loss):
    owner = torch.tensor(owner)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, len(owner), dtype=torch.float64, generator=generator)
    # with shared targets a caption beyond its share of the softmax does cost, so there it starts far below it
    steps = [-9.0, -8.0, -7.0, -6.0] if loss is info_nce else [-5.0, 0.0, 2.0, 5.0, 50.0]
    for caption, picture in enumerate(owner):
        costs = []
        for step in steps:
            logits[picture, caption] = step
            costs.append(float(loss(*with_logits(logits), 1.0, owner)))
        assert costs == pytest.approx(sorted(costs, reverse=True), abs=1e-12)
        assert costs[-1] < costs[0]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(features, loss, dtype):
    image, text = features(8).to(dtype), features(8, seed=1).to(dtype)
    value = loss(image, text, 100.0, torch.arange(8))
    assert value.dtype == torch.float32
    exact = loss(image.double(), text.double(), 100.0, torch.arange(8))
    assert float(value) == pytest.approx(float(exact), rel=1e-5)


@every_loss
def test_autocast_does_not_coarsen_it(features, owner, loss):
    image, text = features(5, dtype=torch.float32), features(len(owner), seed=1, dtype=torch.float32)
    expected = loss(image, text, torch.tensor(50.0), torch.tensor(owner))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(image, text, torch.tensor(50.0), torch.tensor(owner))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)


@every_loss
def test_double_precision_stays_and_the_value_is_a_scalar(features, owner, loss):
    scale = torch.tensor(14.0)  # a parameter is float32 whatever the features are
    value = loss(features(5), features(len(owner), seed=1), scale, torch.tensor(owner))
    assert value.dtype == torch.float64 and value.shape == ()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("owner", [[0], [0, 0, 0], [0, 1, 2, 3], [2, 0, 0, 3]], ids=str)
def test_gradients_are_finite_for_one_pair_and_for_features_all_alike(loss, dtype, owner):
    leaves = [torch.full((max(owner) + 1, 4), 0.5, dtype=dtype), torch.full((len(owner), 4), 0.5, dtype=dtype)]
    leaves.append(torch.tensor(100.0))
    for leaf in leaves:
        leaf.requires_grad_()
    value = loss(*leaves, torch.tensor(owner))
    value.backward()
    assert value.isfinite() and all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@every_loss
def test_gradients_are_those_of_finite_differences(features, owner, loss):
    leaves = [features(5, dim=3, seed=1), features(len(owner), dim=3, seed=2)]
    leaves.append(torch.tensor(3.0, dtype=torch.float64))
    for leaf in leaves:
        leaf.requires_grad_()
    owners = torch.tensor(owner)
    assert torch.autograd.gradcheck(lambda image, text, scale: loss(image, text, scale, owners), leaves)


def test_gradient_of_the_sigmoid_bias_is_that_of_finite_differences(features):
    image, text, owner = features(3), features(4, seed=1), torch.tensor([2, 0, 1, 1])
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: siglip(image, text, 5.0, owner, b), [bias])


@every_loss
@pytest.mark.parametrize(
    ("image", "text", "owners"),
    [((3, 4), (4, 4), 3), ((4,), (4,), 4), ((3, 4), (0, 4), 0), ((0, 4), (3, 4), 3), ((3, 4), (3, 5), 3)],
    ids=["owners missing", "no matrices", "no text", "no image", "widths differ"],
)
def test_shapes_that_do_not_fit_are_refused(loss, image, text, owners):
    with pytest.raises(ValueError, match=r"fit|at least one"):
        loss(torch.ones(image), torch.ones(text), 1.0, torch.zeros(owners, dtype=torch.long))
