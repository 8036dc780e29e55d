import math

import pytest
import torch
from torch.nn import functional as F

from cliplet.losses import info_nce


def slow_loss(logits, owner, soft):
    """The definition written out in loops: no library softmax."""

    def softmax(scores):
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        return [weight / sum(weights) for weight in weights]

    by_image = []
    for row, scores in enumerate(logits):
        own = [caption for caption, image_row in enumerate(owner) if image_row == row]
        if not own:
            continue
        if soft:
            probability, share = softmax(scores), 1 / len(own)
            by_image.append(sum(share * math.log(share / probability[caption]) for caption in own))
        else:
            others = [scores[caption] for caption, image_row in enumerate(owner) if image_row != row]
            by_image.append(-math.log(softmax([scores[own[0]], *others])[0]))
    by_text = []
    for caption, row in enumerate(owner):
        by_text.append(-math.log(softmax([logits[image][caption] for image in range(len(logits))])[row]))
    return (sum(by_image) / len(by_image) + sum(by_text) / len(by_text)) / 2


@pytest.mark.parametrize("soft", [True, False])
def test_equals_the_loss_written_out_in_loops(features, slow_logits, owner, soft):
    image, text = features(5, seed=1), features(len(owner), seed=2)
    loss = info_nce(image, text, 14.0, torch.tensor(owner), soft_targets=soft)
    assert float(loss) == pytest.approx(slow_loss(slow_logits(image, text, 14.0), owner, soft), abs=1e-10)


@pytest.mark.parametrize("soft", [True, False])
def test_equals_open_clips_loss_with_one_caption_a_picture(features, soft):
    open_clip = pytest.importorskip("open_clip")
    image, text = features(12, seed=3), features(12, seed=4)
    expected = open_clip.ClipLoss()(image, text, torch.tensor(20.0, dtype=torch.float64))
    assert float(info_nce(image, text, 20.0, torch.arange(12), soft)) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("soft", [True, False])
def test_gradients_equal_open_clips(features, soft):
    open_clip = pytest.importorskip("open_clip")
    gradients = []
    for loss in (
        lambda i, t, s: info_nce(i, t, s.exp(), torch.arange(6), soft),
        lambda i, t, s: open_clip.ClipLoss()(i, t, s.exp()),
    ):
        leaves = [features(6, seed=5).requires_grad_(), features(6, seed=6).requires_grad_()]
        leaves.append(torch.tensor(2.5, dtype=torch.float64, requires_grad=True))
        gradients.append(torch.autograd.grad(loss(*leaves), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("captions", [1, 2, 5])
def test_features_all_alike_give_chance_for_any_number_of_captions(captions):
    image, owner = torch.ones(7, 4) / 2, torch.arange(7).repeat_interleave(captions)
    loss = info_nce(image, torch.ones(len(owner), 4) / 2, 100.0, owner)
    assert float(loss) == pytest.approx(math.log(7), abs=1e-5)


def test_the_first_caption_stands_against_other_pictures_captions_only():
    # rows: 1 right among 1 + 6 x 3; columns: 1 right among 7
    image, owner = torch.ones(7, 4) / 2, torch.arange(7).repeat_interleave(3)
    loss = info_nce(image, torch.ones(21, 4) / 2, 100.0, owner, soft_targets=False)
    assert float(loss) == pytest.approx((math.log(19) + math.log(7)) / 2, abs=1e-5)


def test_a_later_caption_of_a_picture_has_no_part_in_its_first_captions_row(with_logits):
    owner = torch.tensor([1, 0, 1, 2, 0, 1])
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    later = [(1, 2), (0, 4), (1, 5)]

    def image_to_text(matrix):
        loss = info_nce(*with_logits(matrix), 1.0, owner, soft_targets=False)
        return float(2 * loss - F.cross_entropy(matrix.T, owner))

    expected = image_to_text(logits)
    for row, caption in later:
        for value in (-30.0, 30.0):
            changed = logits.clone()
            changed[row, caption] = value
            assert image_to_text(changed) == pytest.approx(expected, abs=1e-12)
    changed = logits.clone()
    changed[1, 0] += 1.0  # the first caption, which does count
    assert image_to_text(changed) < expected - 1e-3


def test_only_the_order_of_captions_decides_which_is_first(with_logits):
    # picture 0 sees its two captions at 2 and -1, the caption of picture 1 at 0
    logits, owner = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 0, 1])
    losses = []
    for order in ([0, 1, 2], [1, 0, 2]):
        losses.append(float(info_nce(*with_logits(logits[:, order]), 1.0, owner[order], soft_targets=False)))
    rows = math.log(1 + math.exp(1)) - math.log(1 + math.exp(-2))  # -log softmax of -1 against 0, less that of 2
    assert losses[1] - losses[0] == pytest.approx(rows / 2 / 2, abs=1e-12)  # mean of two rows, of two directions


def test_perfect_features_reach_zero_though_captions_share_the_target():
    image, owner = torch.eye(4), torch.arange(4).repeat_interleave(3)
    assert float(info_nce(image, image[owner], 100.0, owner)) == pytest.approx(0.0, abs=1e-6)


def test_perfect_features_reach_zero_with_first_captions():
    image, owner = torch.eye(4), torch.arange(4).repeat_interleave(3)
    assert float(info_nce(image, image[owner], 100.0, owner, soft_targets=False)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("soft", [True, False])
def test_one_pair_alone_has_nothing_to_learn(features, soft):
    image = features(1, dtype=torch.float32).requires_grad_()
    loss = info_nce(image, features(1, seed=1, dtype=torch.float32), 50.0, torch.tensor([0]), soft)
    loss.backward()
    assert float(loss.detach()) == 0.0 and image.grad is not None and not image.grad.any()
