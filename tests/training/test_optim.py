"""Groups, schedule and choices, against tables worked by hand."""

import pytest
import torch
from torch import nn

from cliplet.config import OptimConfig, StageConfig
from cliplet.errors import TrainingError
from cliplet.training.optim import (
    build_optimizer,
    choose_device,
    choose_precision,
    learning_rate,
    set_learning_rate,
)
from cliplet.training.stages import peak_rates


@pytest.fixture(params=["tiny_model", "bert_model"])
def model(request):
    return request.getfixturevalue(request.param)


def test_every_parameter_is_in_exactly_one_group(model):
    groups = build_optimizer(model, OptimConfig()).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


def test_norms_biases_and_temperature_never_decay_and_matrices_do(model):
    groups = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    spared = {id(model.temperature.log_scale)}
    norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    for module in model.modules():
        if isinstance(module, norms):
            spared |= {id(parameter) for parameter in module.parameters(recurse=False)}
        spared |= {id(p) for name, p in module.named_parameters(recurse=False) if name.endswith("bias")}
    assert {key for key, value in decay.items() if value == 0.0} == spared
    assert set(decay.values()) == {0.0, 0.3}


def test_each_part_has_its_peak(model):
    config = OptimConfig(image_lr=1.0, text_lr=2.0, head_lr=3.0)
    optimizer = build_optimizer(model, config)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}  # nothing moves before the schedule speaks
    set_learning_rate(optimizer, peak_rates(StageConfig(), config), 0.5)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        part = {"image_tower": 0.5, "text_tower": 1.0}.get(name.split(".")[0], 1.5)
        assert rates[id(parameter)] == part, name


def test_a_constant_schedule_only_rises():
    config = OptimConfig(schedule="constant", warmup=0.25)
    # 8 steps, warm-up over 2, at the start of the run and of the stage that begins at step 4
    assert [learning_rate(step, 8, 0, config) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert [learning_rate(step, 8, 4, config) for step in range(4, 8)] == [0.5, 1.0, 1.0, 1.0]


# cos(0) to cos(7 pi / 8), each (1 + cos) / 2; the second stage begins at step 4, warm-up takes 2 steps
COSINE = [1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]
RISE = [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("schedule", "shares"), [("cosine", COSINE), ("constant", [1.0] * 8)])
def test_rates_over_two_stages(tiny_model, schedule, shares):
    config = OptimConfig(schedule=schedule, warmup=0.25, image_lr=1.0, text_lr=2.0, head_lr=3.0)
    first = StageConfig(image_lr=0.0)
    second = StageConfig(text_lr=20.0, head_lr=0.5)
    optimizer = build_optimizer(tiny_model, config)
    for step, (share, rise) in enumerate(zip(shares, RISE, strict=True)):
        stage, start = (first, 0) if step < 4 else (second, 4)
        set_learning_rate(optimizer, peak_rates(stage, config), learning_rate(step, 8, start, config))
        peaks = {"image": 0.0, "text": 2.0, "head": 3.0} if step < 4 else {"image": 1.0, "text": 20.0, "head": 0.5}
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(peaks[group["part"]] * rise * share, abs=2e-4), (step, group["name"])


def test_sgd_has_the_same_groups_and_its_momentum(model):
    adamw, sgd = (build_optimizer(model, OptimConfig(optimizer=kind, betas=(0.7, 0.9))) for kind in ("adamw", "sgd"))
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adamw, torch.optim.AdamW)
    assert [g["part"] for g in sgd.param_groups] == [g["part"] for g in adamw.param_groups]
    assert {group["momentum"] for group in sgd.param_groups} == {0.7}


def test_sgd_with_momentum_by_hand(tiny_model):
    """w := w - rate · (0.5 · v + g); a constant gradient of 1 moves by 1, then 1.5, then 1.75 rates."""
    config = OptimConfig(optimizer="sgd", betas=(0.5, 0.9), weight_decay=0.0)
    optimizer = build_optimizer(tiny_model, config)
    set_learning_rate(optimizer, {"image": 0.125, "text": 0.25, "head": 0.5}, 1.0)
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    for parameter in tiny_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(3):
        optimizer.step()
    for name, parameter in tiny_model.named_parameters():
        rate = {"image_tower": 0.125, "text_tower": 0.25}.get(name.split(".")[0], 0.5)
        torch.testing.assert_close(parameter.detach(), before[name] - 4.25 * rate, rtol=0, atol=1e-5)


# cos(pi/4) = 0.70711, cos(pi/8) = 0.92388; warmup of 2 of 8 steps
TABLE = [
    (0, 0, 0.5 * 1.0),
    (1, 0, 1.0 * (1 + 0.92388) / 2),
    (2, 0, (1 + 0.70711) / 2),
    (4, 0, 0.5),
    (6, 0, (1 - 0.70711) / 2),
    (8, 0, 0.0),
    (4, 4, 0.5 * 0.5),  # a second stage begins at step 4: it rises again, under the same cosine
    (6, 4, (1 - 0.70711) / 2),
]


@pytest.mark.parametrize(("step", "start", "share"), TABLE)
def test_schedule_by_hand(step, start, share):
    assert learning_rate(step, 8, start, OptimConfig(warmup=0.25)) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(("step", "start", "share"), TABLE)
def test_schedule_ends_at_its_final_share(step, start, share):
    rise = 0.5 if step == start else 1.0
    expected = rise * (0.2 + 0.8 * share / rise)
    assert learning_rate(step, 8, start, OptimConfig(warmup=0.25, final_lr=0.2)) == pytest.approx(expected, abs=1e-5)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert learning_rate(0, 100, 0, OptimConfig(warmup=0.0)) == 1.0
    assert learning_rate(0, 1, 0, OptimConfig()) == 1.0  # and one step is a whole run


def test_the_rates_rise_and_then_fall():
    shares = [learning_rate(step, 1000, 0, OptimConfig(warmup=0.05)) for step in range(1000)]
    top = shares.index(max(shares))
    assert 48 <= top <= 50
    assert shares[: top + 1] == sorted(shares[: top + 1]) and shares[top:] == sorted(shares[top:], reverse=True)
    assert all(0 < share <= 1 for share in shares)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:77", ""):
        with pytest.raises(TrainingError, match="cannot be used"):
            choose_device(name)


def test_precision_is_what_was_asked_and_auto_is_one_of_two():
    cpu = torch.device("cpu")
    names = ["fp32", "bf16", "fp16"]
    assert [choose_precision(name, cpu) for name in names] == names
    assert choose_precision("auto", cpu) in ("fp32", "bf16")
    assert choose_precision("auto", torch.device("mps")) == "fp32"
