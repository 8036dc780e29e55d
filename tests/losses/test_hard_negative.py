import pytest
import torch

from cliplet.losses import hard_negative_margin


def slow_loss(logits, owner, k, margin):
    """The definition written out in loops."""
    pictures = range(len(logits))
    by_image, by_text = [], []
    for caption, picture in enumerate(owner):
        positive = logits[picture][caption]
        captions = sorted((logits[picture][c] for c in range(len(owner)) if owner[c] != picture), reverse=True)
        images = sorted((logits[p][caption] for p in pictures if p != picture), reverse=True)
        by_image += [max(0.0, margin + negative - positive) for negative in captions[:k]]
        by_text += [max(0.0, margin + negative - positive) for negative in images[:k]]
    return sum(sum(costs) / len(costs) if costs else 0.0 for costs in (by_image, by_text)) / 2


@pytest.mark.parametrize("k", [1, 2, 3, 50])
@pytest.mark.parametrize("margin", [0.0, 0.1, 7.0])
def test_equals_the_loss_written_out_in_loops(features, slow_logits, owner, k, margin):
    image, text = features(5, seed=1), features(len(owner), seed=2)
    loss = hard_negative_margin(image, text, 14.0, torch.tensor(owner), k, margin)
    assert float(loss) == pytest.approx(slow_loss(slow_logits(image, text, 14.0), owner, k, margin), abs=1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_with_one_caption_a_picture_it_is_about_rows_and_columns_of_the_matrix(features, k):
    image, text = features(8, seed=3), features(8, seed=4)
    logits = 20 * image @ text.T
    means = []
    for matrix in (logits, logits.T):
        hardest = matrix.clone().fill_diagonal_(-torch.inf).topk(k).values
        means.append((0.1 + hardest - matrix.diagonal()[:, None]).clamp(min=0).mean())
    loss = hard_negative_margin(image, text, 20.0, torch.arange(8), k)
    assert float(loss) == pytest.approx(float(sum(means) / 2), abs=1e-10)


def test_a_case_worked_by_hand(with_logits):
    logits = [[5.0, 4.5, 1.0], [6.0, 2.0, 0.0], [0.0, 0.0, 9.0]]
    # k = 1, margin 1. Rows: 0 has 4.5 against 5 -> 0.5; 1 has 6 against 2 -> 5; 2 nothing.
    # Columns: 0 has 6 against 5 -> 2; 1 has 4.5 against 2 -> 3.5; 2 nothing.
    loss = hard_negative_margin(*with_logits(logits), 1.0, torch.arange(3), k=1, margin=1.0)
    assert float(loss) == pytest.approx((5.5 / 3 + 5.5 / 3) / 2, abs=1e-12)


def test_rows_with_fewer_negatives_count_by_those_they_have(with_logits):
    logits, owner = [[1.0, 2.0, 3.0, 0.5], [0.0, 0.0, 4.0, 5.0]], torch.tensor([0, 0, 0, 1])
    # margin 1. Rows: captions 0, 1, 2 have one negative (0.5) -> 0.5, 0, 0; caption 3 has three (0, 0, 4) -> 0, 0, 0.
    # Columns, one negative each: 0 against 1 -> 0; 0 against 2 -> 0; 4 against 3 -> 2; 0.5 against 5 -> 0.
    loss = hard_negative_margin(*with_logits(logits), 1.0, owner, k=5, margin=1.0)
    assert float(loss) == pytest.approx((0.5 / 6 + 2 / 4) / 2, abs=1e-12)


def test_other_captions_of_a_picture_are_no_negatives_of_it(with_logits):
    owner = torch.tensor([0, 1, 0])
    logits = [[1.0, 0.0, 1000.0], [0.0, 1.0, 0.0]]  # its second caption is far nearer than its first
    assert float(hard_negative_margin(*with_logits(logits), 1.0, owner, k=5, margin=0.5)) == 0.0


def test_a_picture_alone_costs_exactly_nothing(features):
    leaves = [features(1).requires_grad_(), features(3, seed=1).requires_grad_()]
    leaves.append(torch.tensor(14.0, dtype=torch.float64, requires_grad=True))
    loss = hard_negative_margin(*leaves, torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_a_direction_without_negatives_leaves_the_other(with_logits):
    image, text = with_logits([[1.0, 3.0], [2.0, 0.0]])  # both captions are of picture 0
    text = text.clone().requires_grad_()
    loss = hard_negative_margin(image, text, 1.0, torch.tensor([0, 0]), margin=0.5)
    (gradient,) = torch.autograd.grad(loss, text)
    assert float(loss.detach()) == pytest.approx((0 + 1.5 / 2) / 2, abs=1e-12)  # column 0 has 2 against 1
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.25], [0, 0]], dtype=torch.float64))


def test_pairs_beyond_the_margin_have_no_gradient(with_logits):
    image, text = with_logits([[3.0, 1.0], [1.0, 3.0]])
    text = text.clone().requires_grad_()
    loss = hard_negative_margin(image, text, 1.0, torch.arange(2), margin=1.9)
    (gradient,) = torch.autograd.grad(loss, text)
    assert float(loss.detach()) == 0.0 and not gradient.any()


def test_features_that_became_nan_do_not_pass_for_zero(features):
    image = features(4)
    image[1] = torch.nan
    assert hard_negative_margin(image, features(4, seed=1), 1.0, torch.arange(4)).isnan()


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_negative_is_refused(features, k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        hard_negative_margin(features(2), features(2), 1.0, torch.arange(2), k=k)
