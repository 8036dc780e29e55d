import math

import pytest
import torch

from cliplet.losses import siglip


def slow_loss(logits, owner):
    """The definition written out in loops."""
    cost = 0.0
    for row, scores in enumerate(logits):
        for caption, score in enumerate(scores):
            sign = 1 if owner[caption] == row else -1
            cost += math.log(1 + math.exp(-sign * score))
    return cost / len(owner)


def test_equals_the_loss_written_out_in_loops(features, slow_logits, owner):
    image, text = features(5, seed=1), features(len(owner), seed=2)
    logits = [[score - 3.5 for score in scores] for scores in slow_logits(image, text, 14.0)]
    loss = siglip(image, text, 14.0, torch.tensor(owner), -3.5)
    assert float(loss) == pytest.approx(slow_loss(logits, owner), abs=1e-10)


def test_value_and_gradients_equal_open_clips_with_one_caption_a_picture(features):
    open_clip = pytest.importorskip("open_clip")
    results = []
    for loss in (
        lambda i, t, s, b: siglip(i, t, s.exp(), torch.arange(6), b),
        lambda i, t, s, b: open_clip.loss.SigLipLoss()(i, t, s.exp(), b),
    ):
        leaves = [features(6, seed=5).requires_grad_(), features(6, seed=6).requires_grad_()]
        leaves += [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (2.5, -10.0)]
        value = loss(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_a_case_worked_by_hand(with_logits):
    # sigmoids: right pairs 3/4 and 1/2, wrong pairs 1/4 and 1/2; the bias takes 5 off again
    logits = torch.tensor([[math.log(3), 0.0], [-math.log(3), 0.0]], dtype=torch.float64) + 5
    loss = siglip(*with_logits(logits), 1.0, torch.tensor([0, 1]), torch.tensor(-5.0))
    assert float(loss) == pytest.approx((2 * math.log(4 / 3) + 2 * math.log(2)) / 2, abs=1e-12)


def test_without_a_bias_zero_logits_cost_ln_2_a_pair(with_logits):
    loss = siglip(*with_logits(torch.zeros(3, 6)), 1.0, torch.arange(3).repeat(2))
    assert float(loss) == pytest.approx(3 * math.log(2), abs=1e-12)


def test_a_second_caption_is_a_right_pair(with_logits):
    owner = torch.tensor([0, 1, 0])
    logits = torch.full((2, 3), -50.0).masked_fill(owner == torch.arange(2)[:, None], 50.0)
    assert float(siglip(*with_logits(logits), 1.0, owner)) == pytest.approx(0.0, abs=1e-12)


def test_large_logits_overflow_nowhere(with_logits):
    image, text = with_logits([[-1.0, 1.0], [1.0, -1.0]])
    loss = siglip(image.float(), text.float(), 1e4, torch.arange(2))
    assert float(loss) == pytest.approx(2e4)
