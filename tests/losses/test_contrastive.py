import math

import pytest
import torch
from torch.nn import functional as F

from cliplet.losses import info_nce


def features(rows: int, dim: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1)


def slow_loss(image, text, scale, owner, soft):
    """The definition written out in loops: no matrix product, no library softmax."""

    def softmax(scores):
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        return [weight / sum(weights) for weight in weights]

    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in text.tolist()] for i in image.tolist()]
    by_image = []
    for row, scores in enumerate(logits):
        own = [caption for caption, image_row in enumerate(owner) if image_row == row]
        if not own:
            continue
        probability = softmax(scores)
        if soft:
            share = 1 / len(own)
            by_image.append(sum(share * math.log(share / probability[caption]) for caption in own))
        else:
            by_image.append(-math.log(probability[own[0]]))
    by_text = []
    for caption, row in enumerate(owner):
        by_text.append(-math.log(softmax([logits[image][caption] for image in range(len(logits))])[row]))
    return (sum(by_image) / len(by_image) + sum(by_text) / len(by_text)) / 2


OWNERS = {
    "one caption each": [0, 1, 2, 3, 4],
    "two captions each": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "different numbers": [0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4],
    "shuffled": [3, 0, 4, 1, 1, 2, 0, 3],
    "a picture without captions": [0, 0, 1, 3, 4],
}


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS.keys())
def test_equals_the_loss_written_out_in_loops(owner, soft):
    image, text = features(5, seed=1), features(len(owner), seed=2)
    loss = info_nce(image, text, 14.0, torch.tensor(owner), soft_targets=soft)
    assert float(loss) == pytest.approx(slow_loss(image, text, 14.0, owner, soft), abs=1e-10)


def test_equals_open_clips_loss_with_one_caption_a_picture():
    open_clip = pytest.importorskip("open_clip")
    image, text = features(12, seed=3), features(12, seed=4)
    expected = open_clip.ClipLoss()(image, text, torch.tensor(20.0, dtype=torch.float64))
    assert float(info_nce(image, text, 20.0, torch.arange(12))) == pytest.approx(float(expected), abs=1e-9)


def test_gradients_equal_open_clips():
    open_clip = pytest.importorskip("open_clip")
    gradients = []
    for loss in (
        lambda i, t, s: info_nce(i, t, s.exp(), torch.arange(6)),
        lambda i, t, s: open_clip.ClipLoss()(i, t, s.exp()),
    ):
        leaves = [features(6, seed=5).requires_grad_(), features(6, seed=6).requires_grad_()]
        leaves.append(torch.tensor(2.5, dtype=torch.float64, requires_grad=True))
        gradients.append(torch.autograd.grad(loss(*leaves), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("captions", [1, 2, 5])
def test_features_all_alike_give_chance_for_any_number_of_captions(captions):
    image, owner = torch.ones(7, 4) / 2, torch.arange(7).repeat_interleave(captions)
    loss = info_nce(image, torch.ones(len(owner), 4) / 2, 100.0, owner)
    assert float(loss) == pytest.approx(math.log(7), abs=1e-5)


def test_perfect_features_reach_zero_though_captions_share_the_target():
    image, owner = torch.eye(4), torch.arange(4).repeat_interleave(3)
    assert float(info_nce(image, image[owner], 100.0, owner)) == pytest.approx(0.0, abs=1e-6)


def test_order_of_captions_does_not_matter():
    image, text, owner = features(5), features(10, seed=9), torch.arange(5).repeat_interleave(2)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        info_nce(image, text, 10.0, owner), info_nce(image, text[order], 10.0, owner[order]), atol=1e-12, rtol=0
    )


def test_one_pair_alone_has_nothing_to_learn():
    image = features(1, dtype=torch.float32).requires_grad_()
    loss = info_nce(image, features(1, seed=1, dtype=torch.float32), 50.0, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == 0.0 and image.grad is not None and not image.grad.any()


def test_half_precision_features_are_compared_in_float32():
    image, text = features(8, dtype=torch.float32), features(8, seed=1, dtype=torch.float32)
    loss = info_nce(image.bfloat16(), text.bfloat16(), 100.0, torch.arange(8))
    assert loss.dtype == torch.float32
    exact = info_nce(image.bfloat16().float(), text.bfloat16().float(), 100.0, torch.arange(8))
    assert float(loss) == pytest.approx(float(exact), abs=1e-5)


@pytest.mark.parametrize(
    ("images", "captions", "owners"), [(3, 4, 3), (3, 0, 0), (0, 3, 3)], ids=["owners missing", "no text", "no image"]
)
def test_shapes_that_do_not_fit_are_refused(images, captions, owners):
    with pytest.raises(ValueError, match=r"fit|at least one"):
        info_nce(torch.ones(images, 4), torch.ones(captions, 4), 1.0, torch.zeros(owners, dtype=torch.long))
