import math
import re
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from cliplet.losses import distillation
from cliplet.losses.distillation import (
    TeacherFeatures,
    ensemble_kl,
    feature_cosine,
    feature_loss,
    feature_mse,
    interactive,
    logit_kl,
)


def slow_mse(student, teacher):
    squares = [
        (a - b) ** 2 for s, t in zip(student.tolist(), teacher.tolist(), strict=True) for a, b in zip(s, t, strict=True)
    ]
    return sum(squares) / len(squares)


def slow_cosine(student, teacher):
    rows = list(zip(student.tolist(), teacher.tolist(), strict=True))
    return sum(1 - sum(a * b for a, b in zip(s, t, strict=True)) / math.hypot(*s) / math.hypot(*t) for s, t in rows) / (
        len(rows)
    )


def slow_kl(teacher, student):
    """KL(teacher || student) of rows of logits, mean over rows, written out in loops."""

    def softmax(scores):
        weights = [math.exp(score) for score in scores]
        return [weight / sum(weights) for weight in weights]

    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True))
    return total / len(teacher)


def transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


TERMS = {"feature_mse": (feature_mse, slow_mse), "feature_cosine": (feature_cosine, slow_cosine)}
every_term = pytest.mark.parametrize(("term", "slow"), TERMS.values(), ids=TERMS.keys())


@every_term
def test_feature_terms_equal_their_definitions_in_loops(features, term, slow):
    student, teacher = features(7, seed=1), features(7, seed=2)
    assert float(term(student, teacher)) == pytest.approx(slow(student, teacher), abs=1e-10)


@every_term
def test_features_cost_the_mean_of_images_and_captions(features, term, slow):
    image, text, teacher_image, teacher_text = (features(n, seed=seed) for seed, n in enumerate([3, 8, 3, 8]))
    expected = (slow(image, teacher_image) + slow(text, teacher_text)) / 2
    assert float(feature_loss(image, text, teacher_image, teacher_text, term)) == pytest.approx(expected, abs=1e-10)


def test_features_cost_their_squared_error_unless_told_otherwise(features):
    image, text, teacher_image, teacher_text = (features(n, seed=seed) for seed, n in enumerate([3, 8, 3, 8]))
    expected = (slow_mse(image, teacher_image) + slow_mse(text, teacher_text)) / 2
    assert float(feature_loss(image, text, teacher_image, teacher_text)) == pytest.approx(expected, abs=1e-10)


def test_cases_worked_by_hand():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert float(feature_mse(student, teacher)) == pytest.approx((1 + 1 + 0 + 4) / 4)
    assert float(feature_cosine(student, teacher)) == pytest.approx((1 + 2) / 2)


def test_squared_error_is_the_cosine_term_over_half_the_width(features):
    student, teacher = features(7, dim=24, seed=1), features(7, dim=24, seed=2)
    torch.testing.assert_close(feature_mse(student, teacher) * 12, feature_cosine(student, teacher))


@pytest.mark.parametrize("teacher_dim", [16, 5, 40])
def test_logit_kl_equals_its_definition_in_loops(features, slow_logits, teacher_dim):
    image, text = features(4, seed=1), features(9, seed=2)
    teacher_image, teacher_text = features(4, teacher_dim, seed=3), features(9, teacher_dim, seed=4)
    student, teacher = slow_logits(image, text, 6.0), slow_logits(teacher_image, teacher_text, 20.0)
    expected = (slow_kl(teacher, student) + slow_kl(transposed(teacher), transposed(student))) / 2
    loss = logit_kl(image, text, 6.0, teacher_image, teacher_text, 20.0)
    assert float(loss) == pytest.approx(expected, abs=1e-10)


def test_a_divergence_worked_by_hand(with_logits):
    # the teacher says 3/4 and 1/4 where the student says 1/2 and 1/2; with one image the columns are certain
    loss = logit_kl(*with_logits([[0.0, 0.0]]), 1.0, *with_logits([[math.log(3), 0.0]]), 1.0)
    assert float(loss) == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, abs=1e-12)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(features):
    image, text = features(4, seed=1).requires_grad_(), features(9, seed=2).requires_grad_()
    for loss in (
        logit_kl(image, text, 20.0, image, text, 20.0),
        feature_loss(image, text, image, text),
        feature_loss(image, text, image, text, feature_cosine),
    ):
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    kl = logit_kl(image, text, 20.0, image, text, 20.0)
    assert all(gradient.abs().max() < 1e-12 for gradient in torch.autograd.grad(kl, [image, text]))


def test_each_side_has_its_own_scale(features):
    image, text = features(4, seed=1), features(9, seed=2)
    assert float(logit_kl(image, text, 20.0, image, text, 10.0)) > 0.1
    assert float(logit_kl(2 * image, text, 10.0, image, text, 20.0)) == pytest.approx(0.0, abs=1e-12)


def test_no_gradient_reaches_the_teacher(features):
    student = [features(3, seed=1).requires_grad_(), features(5, seed=2).requires_grad_()]
    teacher = [features(3, seed=3).requires_grad_(), features(5, seed=4).requires_grad_()]
    scale, teacher_scale = (torch.tensor(10.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = logit_kl(*student, scale, *teacher, teacher_scale)
    loss = loss + feature_loss(*student, *teacher) + feature_loss(*student, *teacher, feature_cosine)
    loss.backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in (*student, scale))
    assert all(leaf.grad is None for leaf in (*teacher, teacher_scale))


def test_a_certain_teacher_gives_finite_values_and_gradients(with_logits):
    image, text = with_logits([[-1.0, 1.0], [1.0, -1.0]])  # the student is as certain of the opposite
    leaves = [image.float().requires_grad_(), text.float().requires_grad_()]
    loss = logit_kl(*leaves, 1000.0, -image.float(), text.float(), 1000.0)
    assert float(loss.detach()) == pytest.approx(2000.0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(("images", "captions"), [(1, 1), (4, 6)])
def test_gradients_are_finite_for_one_pair_and_for_features_all_alike(images, captions):
    alike = [torch.full((images, 4), 0.5), torch.full((captions, 4), 0.5)]
    leaves = [leaf.clone().requires_grad_() for leaf in alike]
    for loss in (
        logit_kl(*leaves, 100.0, *alike, 100.0),
        feature_loss(*leaves, *alike),
        feature_loss(*leaves, *alike, feature_cosine),
    ):
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


def test_gradients_are_those_of_finite_differences(features):
    teacher = [features(3, 4, seed=3), features(5, 4, seed=4)]
    leaves = [features(3, 4, seed=1).requires_grad_(), features(5, 4, seed=2).requires_grad_()]
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t, s: logit_kl(i, t, s, *teacher, 7.0), [*leaves, scale])
    for term in (feature_mse, feature_cosine):
        assert torch.autograd.gradcheck(lambda i, t, term=term: feature_loss(i, t, *teacher, term), leaves)


def test_order_of_the_batch_does_not_matter(features):
    image, text, teacher_image, teacher_text = (features(n, seed=seed) for seed, n in enumerate([4, 6, 4, 6]))
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 0, 3, 4, 1, 2])
    for loss in (lambda i, t, p, c: logit_kl(i, t, 9.0, p, c, 4.0), feature_loss):
        moved = loss(image[rows], text[columns], teacher_image[rows], teacher_text[columns])
        torch.testing.assert_close(moved, loss(image, text, teacher_image, teacher_text), atol=1e-12, rtol=0)


@pytest.mark.parametrize("teacher_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_the_students_and_float32_at_least(features, dtype, teacher_dtype):
    student = [features(n, seed=n).to(dtype) for n in (4, 6)]
    teacher = [features(n, seed=n + 1).to(teacher_dtype) for n in (4, 6)]
    doubles = [feature.double() for feature in (*student, *teacher)]
    for loss in (
        lambda i, t, p, c: logit_kl(i, t, 9.0, p, c, 40.0),
        feature_loss,
        partial(feature_loss, term=feature_cosine),
    ):
        value = loss(*student, *teacher)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert float(value) == pytest.approx(float(loss(*doubles)), rel=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(loss(*student, *teacher), value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("term", [feature_mse, feature_cosine])
def test_other_widths_are_refused_with_a_way_out(features, term):
    with pytest.raises(ValueError, match=r"12 wide .* teacher's 40.* projection.* logit_kl"):
        term(features(3, 12), features(3, 40))


@pytest.mark.parametrize("term", [feature_mse, feature_cosine])
@pytest.mark.parametrize("teacher", [(4, 8), (3,), (3, 8, 1), (0, 8)], ids=str)
def test_features_of_other_rows_are_refused_with_their_shapes(term, teacher):
    with pytest.raises(ValueError, match=re.escape("(3, 8)") + ".*" + re.escape(str(teacher))):
        term(torch.ones(3, 8), torch.ones(teacher))


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        feature_mse(torch.ones(0, 8), torch.ones(0, 8))


def test_teachers_of_another_batch_are_refused(features):
    with pytest.raises(ValueError, match=r"3 images with 6 captions, the teacher 3 with 5"):
        logit_kl(features(3), features(6), 1.0, features(3, 9), features(5, 9), 1.0)
    with pytest.raises(ValueError, match=r"\(3, 9\).*\(6, 8\)"):
        logit_kl(features(3), features(6), 1.0, features(3, 9), features(6, 8), 1.0)


def test_learning_from_similarities_alone_brings_the_student_to_the_teacher(features):
    """Widths differ; the gradient leads where it should."""
    teacher = [features(4, 12, seed=3), features(4, 12, seed=4)]
    raw = [features(4, 5, seed=1).requires_grad_(), features(4, 5, seed=2).requires_grad_()]
    optimizer = torch.optim.Adam(raw, lr=0.05)
    losses = []
    for _ in range(150):
        loss = distillation.logit_kl(*(F.normalize(leaf, dim=-1) for leaf in raw), 10.0, *teacher, 10.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 50


# Several teachers, and terms across the models


def probabilities(logits):
    weights = [math.exp(score) for score in logits]
    return [weight / sum(weights) for weight in weights]


def test_several_teachers_are_averaged_as_distributions(features, slow_logits):
    image, text = features(4, seed=1), features(9, seed=2)
    teachers = [
        TeacherFeatures(features(4, width, seed=width), features(9, width, seed=width + 1), scale)
        for width, scale in ((5, 20.0), (16, 3.0), (40, 8.0))
    ]
    student = slow_logits(image, text, 6.0)
    theirs = [slow_logits(*teacher) for teacher in teachers]

    def divergence(student, theirs):
        total = 0.0
        for row in range(len(student)):
            means = [
                sum(column) / len(theirs) for column in zip(*(probabilities(one[row]) for one in theirs), strict=True)
            ]
            total += sum(p * math.log(p / q) for p, q in zip(means, probabilities(student[row]), strict=True))
        return total / len(student)

    expected = (divergence(student, theirs) + divergence(transposed(student), [transposed(one) for one in theirs])) / 2
    assert float(ensemble_kl(image, text, 6.0, teachers)) == pytest.approx(expected, abs=1e-10)


def test_one_teacher_twice_is_that_teacher(features):
    image, text = features(4, seed=1), features(9, seed=2)
    teacher = TeacherFeatures(features(4, 7, seed=3), features(9, 7, seed=4), 20.0)
    alone = float(logit_kl(image, text, 6.0, *teacher))
    assert float(ensemble_kl(image, text, 6.0, [teacher] * 3)) == pytest.approx(alone, abs=1e-12)


def test_an_ensemble_needs_a_teacher_and_one_batch(features):
    image, text = features(4, seed=1), features(9, seed=2)
    with pytest.raises(ValueError, match="no teacher"):
        ensemble_kl(image, text, 6.0, [])
    right, wrong = (TeacherFeatures(features(n, seed=3), features(9, seed=4), 1.0) for n in (4, 3))
    with pytest.raises(ValueError, match="must see the same batch"):
        ensemble_kl(image, text, 6.0, [right, wrong])


@pytest.mark.parametrize("soft", [True, False])
def test_interactive_is_half_of_each_contrastive_loss(features, soft):
    image, text = features(3, seed=1), features(5, seed=2)
    teacher_image, teacher_text = features(3, seed=3), features(5, seed=4)
    owners = torch.tensor([0, 0, 1, 2, 2])
    # The student's pictures look among the teacher's captions, its captions among the teacher's pictures.
    ours = (6.0 * image @ teacher_text.T).tolist()
    theirs = (6.0 * teacher_image @ text.T).tolist()
    by_picture = 0.0
    for row, scores in enumerate(ours):
        own = [c for c, owner in enumerate(owners.tolist()) if owner == row]
        if soft:
            found = probabilities(scores)
            by_picture += sum(math.log((1 / len(own)) / found[c]) for c in own) / len(own)
        else:
            kept = [score for c, score in enumerate(scores) if c not in own[1:]]
            by_picture -= math.log(math.exp(scores[own[0]]) / sum(map(math.exp, kept)))
    by_caption = sum(-math.log(probabilities(column)[owners[c]]) for c, column in enumerate(transposed(theirs)))
    expected = (by_picture / 3 + by_caption / 5) / 2
    value = interactive(image, text, 6.0, teacher_image, teacher_text, owners, soft)
    assert float(value) == pytest.approx(expected, abs=1e-10)


def test_interactive_gives_no_gradient_to_the_teacher_and_needs_its_width(features):
    student = [features(3, seed=1).requires_grad_(), features(5, seed=2).requires_grad_()]
    teacher = [features(3, seed=3).requires_grad_(), features(5, seed=4).requires_grad_()]
    owners = torch.tensor([0, 0, 1, 2, 2])
    interactive(*student, 5.0, *teacher, owners).backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in student)
    assert all(leaf.grad is None for leaf in teacher)
    with pytest.raises(ValueError, match="wide"):
        interactive(*student, 5.0, features(3, 9, seed=3), features(5, 9, seed=4), owners)
