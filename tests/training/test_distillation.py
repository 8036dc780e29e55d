"""A student with teachers: the terms, and steps whose gradients are those of one graph over the whole batch."""

import pytest
import torch
from engine import (
    LOSSES,
    TAUGHT,
    assert_equal_gradients,
    batch_of,
    build,
    distillation_of,
    gradients_of,
    loss_of,
    sgd,
    taught,
)
from torch import nn
from torch.nn import functional as F

from cliplet.config import DistilConfig, LossConfig, ModelConfig, RunConfig, StageConfig, StageLossConfig, TrainConfig
from cliplet.data.teacher_store import TeacherInfo
from cliplet.errors import TrainingError
from cliplet.losses import distillation as losses
from cliplet.models.dual_encoder import Output
from cliplet.training.distillation import refuse_bad_lessons
from cliplet.training.objective import Lesson, loss_in_stage, loss_terms, weights_of
from cliplet.training.sam import Sam
from cliplet.training.step import Stepper

WIDTHS = {"feature": (16, 24), "logit": (5, 24), "affinity": (24,), "all": (16, 24), "interactive": (16,)}


def stepped(name, chunk_size, sam=0.0, pictures=12):
    model = build()
    distillation = distillation_of(model, WIDTHS[name])
    both = nn.ModuleList([model, distillation])
    stepper = Stepper(
        model,
        sgd(model, distillation),
        chunk_size=chunk_size,
        distillation=distillation,
        sam=Sam(both, sam) if sam else None,
    )
    result = stepper.step([taught(batch_of(model, pictures), WIDTHS[name])], TAUGHT[name], (3, 4))
    return result, gradients_of(both)


@pytest.mark.parametrize("name", TAUGHT)
def test_gradients_equal_one_graph_over_the_whole_batch(name):
    model = build()
    distillation = distillation_of(model, WIDTHS[name])
    value = loss_of(model, taught(batch_of(model, 12), WIDTHS[name]), TAUGHT[name], distillation)
    value.backward()
    whole = gradients_of(nn.ModuleList([model, distillation]))
    for chunk_size in (None, 4, 1):
        result, chunked = stepped(name, chunk_size)
        assert_equal_gradients(chunked, whole)
        torch.testing.assert_close(result.loss, value.detach(), rtol=1e-5, atol=0)
    mapped = TAUGHT[name].feature > 0 and WIDTHS[name] != (16,)
    assert any(key.startswith("1.projections") for key in whole) == mapped


def test_with_sam_the_projections_climb_too():
    _, whole = stepped("all", None, sam=0.3)
    _, chunked = stepped("all", 3, sam=0.3)
    _, plain = stepped("all", None)
    assert_equal_gradients(chunked, whole, 1e-4)
    key = next(key for key in whole if key.startswith("1.projections"))
    assert not torch.allclose(whole[key], plain[key], rtol=1e-2)


def test_a_step_trains_the_projection_and_clips_it_with_the_rest():
    model = build()
    distillation = distillation_of(model, (24,))
    before = [parameter.detach().clone() for parameter in distillation.parameters()]
    stepper = Stepper(model, sgd(model, distillation), distillation=distillation, clip_norm=1e-3)
    stepper.step([taught(batch_of(model, 8), (24,))], TAUGHT["feature"])
    norm = torch.nn.utils.get_total_norm([p.grad for p in stepper.parameters if p.grad is not None])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert len(before) == 1 and not torch.equal(before[0], next(distillation.parameters()))


def test_without_a_weight_for_them_teachers_are_not_asked():
    model = build()
    batch = taught(batch_of(model, 8), (24,))
    stepper = Stepper(model, sgd(model), distillation=distillation_of(model, (24,)))
    result = stepper.step([batch], LOSSES["info_nce"])
    assert set(result.terms) == {"info_nce"}


# The terms


def output_of(images=3, captions=5, width=4):
    generator = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(rows, width, generator=generator).double()) for rows in (images, captions)]
    return Output(*features, torch.tensor(5.0, dtype=torch.float64), None)


def lesson_of(*widths, **settings):
    generator = torch.Generator().manual_seed(1)
    teachers = [
        losses.TeacherFeatures(
            *(F.normalize(torch.randn(rows, width, generator=generator).double()) for rows in (3, 5)), 7.0 + width
        )
        for width in widths
    ]
    return Lesson(teachers, [output_of()[:2] for _ in widths], **settings)


OWNERS = torch.tensor([0, 0, 1, 2, 2])


def only(**weights):
    return LossConfig(**{"info_nce": 0.0, **weights})


def term(lesson, output=None, **weights):
    loss = only(**weights)
    (value,) = loss_terms(output or output_of(), OWNERS, loss, lesson).values()
    return float(value.detach())


def test_affinity_is_the_logit_term_unless_it_has_a_scale_of_its_own():
    lesson = lesson_of(4, 6)
    assert term(lesson, affinity=1.0) == term(lesson, logit=1.0)
    ours, scaled = output_of(), lesson._replace(affinity_scale=20.0)
    expected = losses.ensemble_kl(*ours[:2], 20.0, [one._replace(logit_scale=20.0) for one in lesson.teachers])
    assert term(scaled, affinity=1.0) == pytest.approx(float(expected), rel=1e-12)
    assert term(scaled, logit=1.0) == term(lesson, logit=1.0)


@pytest.mark.parametrize(("name", "trains"), [("logit", True), ("affinity", True), ("logit", False)])
def test_the_temperature_learns_from_teachers_unless_it_is_told_not_to(name, trains):
    ours = output_of()
    scale = ours.logit_scale.clone().requires_grad_()
    image = ours.image_features.clone().requires_grad_()
    output = ours._replace(logit_scale=scale, image_features=image)
    (value,) = loss_terms(output, OWNERS, only(**{name: 1.0}), lesson_of(4, train_temperature=trains)).values()
    value.backward()
    assert (scale.grad is not None) == trains and image.grad is not None


def test_feature_and_interactive_terms_are_means_over_teachers():
    lesson = lesson_of(4, 4)
    one, other = (lesson._replace(teachers=[it], projected=lesson.projected[:1]) for it in lesson.teachers)
    for name in ("feature", "interactive"):
        mean = (term(one, **{name: 1.0}) + term(other, **{name: 1.0})) / 2
        assert term(lesson, **{name: 1.0}) == pytest.approx(mean, rel=1e-12)


def test_the_distance_of_features_is_chosen():
    lesson = lesson_of(4)
    cosine, mse = (term(lesson, feature=1.0, feature_distance=name) for name in ("cosine", "mse"))
    assert mse == pytest.approx(cosine * 2 / 4)


def test_one_teacher_of_the_students_width_needs_no_projection():
    model = build()
    ours = Output(F.normalize(torch.randn(3, 16)), F.normalize(torch.randn(5, 16)), torch.tensor(5.0), None)
    distillation = distillation_of(model, (16,))
    lesson = distillation.lesson(ours, taught(batch_of(model, 3), (16,)).teachers, TAUGHT["feature"])
    assert lesson.projected[0][0] is ours.image_features and not list(distillation.parameters())


def test_each_of_several_teachers_has_a_projection_else_their_mean_would_be_learnt():
    """Distances from several fixed points have one best place, their mean; through maps of its own, each can be met."""
    model = build()
    distillation = distillation_of(model, (16, 16))
    assert [tuple(parameter.shape) for parameter in distillation.parameters()] == [(16, 16), (16, 16)]


def test_a_projection_makes_unit_features_of_the_teachers_width():
    model = build()
    distillation = distillation_of(model, (16, 24))
    features = torch.randn(3, 16), torch.randn(5, 16)
    ours = Output(*map(F.normalize, features), torch.tensor(5.0), None)
    batch = taught(batch_of(model, 3), (16, 24))
    lesson = distillation.lesson(ours, batch.teachers, TAUGHT["feature"])
    image, text = lesson.projected[1]
    assert image.shape == (3, 24) and text.shape == (5, 24)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    assert [teacher.logit_scale for teacher in lesson.teachers] == [10.0, 11.0]
    named = distillation_of(model, (16,), teacher_scale=30.0)
    assert named.lesson(ours, batch.teachers[:1], TAUGHT["logit"]).teachers[0].logit_scale == 30.0


# What is refused


def info(width=256, scale=100.0):
    return TeacherInfo("a teacher", "", "", 32, (0.5,) * 3, (0.5,) * 3, width, scale, "fp32")


def config_of(*stages, distil=None, **weights):
    return RunConfig(
        model=ModelConfig(embed_dim=256),
        loss=LossConfig(**weights),
        distil=distil or DistilConfig(teachers=("a",)),
        train=TrainConfig(stages=stages or (StageConfig(),)),
    )


def test_stages_weigh_what_teachers_say():
    config = config_of(feature=0.3, logit=0.5)
    stage = StageConfig(loss=StageLossConfig(feature=0.5, logit=0.0, interactive=0.1))
    assert weights_of(loss_in_stage(config, stage)) == {"info_nce": 1.0, "feature": 0.5, "interactive": 0.1}
    off = config.model_copy(update={"distil": DistilConfig(teachers=("a",), enabled=False)})
    assert weights_of(loss_in_stage(off, stage)) == {"info_nce": 1.0}


@pytest.mark.parametrize("stages", [(), (StageConfig(), StageConfig(loss=StageLossConfig(feature=1.0)))])
def test_a_term_without_a_teacher_is_refused(stages):
    weights = {} if stages else {"logit": 1.0}
    with pytest.raises(TrainingError, match=r"weighs loss\.(logit|feature), but there is no teacher") as caught:
        refuse_bad_lessons(config_of(*stages, distil=DistilConfig(), **weights))
    assert "--distil.teachers" in caught.value.hint and "--distil.enabled False" in caught.value.hint
    refuse_bad_lessons(config_of(*stages, distil=DistilConfig(enabled=False), **weights))
    with pytest.raises(TrainingError, match=r"loss\.logit has a weight, but there is no teacher"):
        loss_terms(output_of(), OWNERS, LossConfig(logit=1.0))


def test_a_teacher_that_is_not_asked_is_refused():
    with pytest.raises(TrainingError, match="gives no weight to anything that it teaches"):
        refuse_bad_lessons(config_of())


def test_the_interactive_term_is_refused_for_other_widths():
    with pytest.raises(TrainingError, match=r"256 wide, with those of a teacher, 512 wide") as caught:
        refuse_bad_lessons(config_of(interactive=1.0), [info(256), info(512)])
    assert "embed_dim to 512" in caught.value.hint
    refuse_bad_lessons(config_of(interactive=1.0), [info(256)])
    refuse_bad_lessons(config_of(logit=1.0, feature=1.0, affinity=1.0), [info(512)])


@pytest.mark.parametrize(
    ("weights", "settings", "refused"),
    [
        ({"logit": 1.0}, {}, True),
        ({"affinity": 1.0}, {}, True),
        ({"affinity": 1.0}, {"affinity_scale": 20.0}, False),
        ({"affinity": 1.0}, {"teacher_scale": 20.0}, False),
        ({"logit": 1.0, "affinity": 1.0}, {"affinity_scale": 20.0}, True),
        ({"logit": 1.0}, {"teacher_scale": 20.0}, False),
        ({"feature": 1.0, "interactive": 1.0}, {}, False),
    ],
)
def test_a_teacher_without_one_temperature_needs_one_for_its_similarities(weights, settings, refused):
    config = config_of(distil=DistilConfig(teachers=("a",), **settings), **weights)
    if not refused:
        refuse_bad_lessons(config, [info(scale=None)])
        return
    with pytest.raises(TrainingError, match="a teacher: its temperature depends on the batch") as caught:
        refuse_bad_lessons(config, [info(scale=None)])
    assert "--distil.teacher-scale" in caught.value.hint
