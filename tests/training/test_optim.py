"""Groups, schedule and choices, against tables worked by hand."""

import pytest
import torch
from torch import nn

from cliplet.config import OptimConfig
from cliplet.errors import TrainingError
from cliplet.training.optim import (
    build_optimizer,
    choose_device,
    choose_precision,
    learning_rate,
    set_learning_rate,
)


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
    peaks = {id(parameter): group["peak_lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        part = {"image_tower": 1.0, "text_tower": 2.0}.get(name.split(".")[0], 3.0)
        assert peaks[id(parameter)] == part, name
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}  # nothing moves before the schedule speaks
    set_learning_rate(optimizer, 0.5)
    assert {(group["peak_lr"], group["lr"]) for group in optimizer.param_groups} == {(1.0, 0.5), (2.0, 1.0), (3.0, 1.5)}


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
    assert [choose_precision(name, cpu) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert choose_precision("auto", cpu) in ("fp32", "bf16")
    assert choose_precision("auto", torch.device("mps")) == "fp32"
