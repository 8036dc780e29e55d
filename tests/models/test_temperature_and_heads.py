"""The factor of the cosines, and the last layers before the shared space."""

import math

import pytest
import torch
from torch import nn

from cliplet.config import HeadConfig, TemperatureConfig
from cliplet.models.heads import build_head
from cliplet.models.temperature import LearnedTemperature


def test_the_factor_is_the_exponential_of_what_is_stored():
    temperature = LearnedTemperature(TemperatureConfig(init=10.0))
    assert temperature.log_scale.item() == pytest.approx(math.log(10.0))
    assert temperature().item() == pytest.approx(10.0, rel=1e-6)
    assert temperature().shape == ()
    temperature().backward()
    assert temperature.log_scale.grad.item() == pytest.approx(10.0, rel=1e-6)  # d exp(x) / dx


@pytest.mark.parametrize(("stored", "clamped"), [(9.0, 50.0), (-3.0, 2.0), (math.log(7.0), 7.0)])
def test_clamp_puts_it_between_its_bounds(stored, clamped):
    temperature = LearnedTemperature(TemperatureConfig(init=10.0, minimum=2.0, maximum=50.0))
    with torch.no_grad():
        temperature.log_scale.fill_(stored)
    temperature.clamp_()
    assert temperature().item() == pytest.approx(clamped, rel=1e-5)


def test_beyond_its_bound_it_still_has_a_gradient():
    temperature = LearnedTemperature(TemperatureConfig(init=100.0, maximum=100.0))
    with torch.no_grad():
        temperature.log_scale.add_(1.0)
    temperature().backward()
    assert temperature.log_scale.grad.item() > 0


def test_it_is_one_parameter():
    assert [name for name, _ in LearnedTemperature(TemperatureConfig()).named_parameters()] == ["log_scale"]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (HeadConfig(), 10 * 6 + 6),
        (HeadConfig(kind="mlp"), (10 * 12 + 12) + (12 * 6 + 6)),  # twice embed_dim by itself
        (HeadConfig(kind="mlp", hidden=5), (10 * 5 + 5) + (5 * 6 + 6)),
    ],
)
def test_shapes_and_sizes(config, parameters):
    head = build_head(config, 10, 6)
    assert head(torch.randn(3, 10)).shape == (3, 6)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


def test_linear_head_is_one_matrix_product():
    head = build_head(HeadConfig(), 4, 3).eval()
    weight, bias = head.parameters()
    features = torch.randn(5, 4)
    torch.testing.assert_close(head(features), features @ weight.T + bias)


def test_mlp_head_by_hand():
    head = build_head(HeadConfig(kind="mlp", hidden=7, dropout=0.5), 4, 3).eval()
    w1, b1, w2, b2 = head.parameters()
    features = torch.randn(5, 4)
    hidden = features @ w1.T + b1
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(head(features), hidden @ w2.T + b2)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_dropout_works_in_training_only(kind):
    torch.manual_seed(0)
    head = build_head(HeadConfig(kind=kind, dropout=0.5), 64, 32)
    features = torch.randn(2, 64)
    assert not torch.equal(head.train()(features), head(features))
    assert torch.equal(head.eval()(features), head(features))
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout)] == [0.5]
