"""The factor of the cosines: what it is, where its bounds are, and that no batch makes it or its gradients infinite."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from cliplet.config import TemperatureConfig
from cliplet.models.temperature import DynamicTemperature, LearnedTemperature, build_temperature

DYNAMIC = TemperatureConfig(kind="dynamic", init=5.0, minimum=2.0, maximum=50.0, hidden=6)


def unit(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def dynamic(dtype=torch.float64):
    """One whose factor depends on the variance strongly enough to be seen."""
    temperature = DynamicTemperature(DYNAMIC).double()
    first, last = temperature.mlp[0], temperature.mlp[2]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0], [2.0], [-3.0], [0.5], [4.0]]))
        first.bias.copy_(torch.tensor([0.1, 0.2, -0.1, 0.3, 0.05, -0.2]))
        last.weight.copy_(torch.tensor([[1.1, -0.6, 0.8, -0.4, 0.7, 0.9]]))
    return temperature.to(dtype)


def by_hand(temperature, cosines):
    """Of a list of cosines: their variance, a layer of ReLUs, one number, its exponential."""
    variance = 0.0
    if len(cosines) > 1:
        mean = sum(cosines) / len(cosines)
        variance = sum((cosine - mean) ** 2 for cosine in cosines) / (len(cosines) - 1)
    first, last = temperature.mlp[0], temperature.mlp[2]
    result = last.bias.item()
    for weight, bias, out in zip(
        first.weight[:, 0].tolist(), first.bias.tolist(), last.weight[0].tolist(), strict=True
    ):
        result += out * max(weight * variance + bias, 0.0)
    return math.exp(result)


def finite(*tensors):
    return all(tensor is None or bool(tensor.isfinite().all()) for tensor in tensors)


# --- learned


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


@pytest.mark.parametrize(("init", "wanted"), [(100.0, 20.0), (1.0, 20.0)])
def test_at_a_bound_its_gradient_leads_back(init, wanted):
    temperature = LearnedTemperature(TemperatureConfig(init=init))
    optimizer = torch.optim.SGD(temperature.parameters(), lr=1.0)
    outward = -1.0 if init == 100.0 else 1.0
    for _ in range(5):  # against the bound
        optimizer.zero_grad()
        (outward * temperature()).backward()
        assert temperature.log_scale.grad.item() == pytest.approx(outward * init, rel=1e-5)
        optimizer.step()
        temperature.clamp_()
        assert temperature().item() == pytest.approx(init, rel=1e-5)
    for _ in range(60):
        optimizer.zero_grad()
        (0.1 * (temperature().log() - math.log(wanted)).square()).backward()
        optimizer.step()
        temperature.clamp_()
    assert temperature().item() == pytest.approx(wanted, rel=1e-2)


def test_it_is_one_parameter():
    assert [name for name, _ in LearnedTemperature(TemperatureConfig()).named_parameters()] == ["log_scale"]


@pytest.mark.parametrize("batch", ["one pair", "all equal"])
def test_the_batch_means_nothing_to_a_learned_one(batch):
    temperature = LearnedTemperature(TemperatureConfig(init=10.0))
    image = unit(1, 8).expand(1 if batch == "one pair" else 6, 8).clone().requires_grad_()
    factor = temperature(image, image)
    assert factor.item() == pytest.approx(10.0, rel=1e-6)
    (factor * (image @ image.T)).sum().backward()
    assert finite(temperature.log_scale.grad, image.grad) and temperature.log_scale.grad.item() > 0


# --- dynamic


@torch.no_grad()
@pytest.mark.parametrize(("images", "captions"), [(1, 1), (1, 2), (2, 1), (4, 4), (3, 7)])
def test_the_factor_is_read_off_the_variance_of_all_pairs(images, captions):
    temperature = dynamic()
    image, text = unit(images, 5), unit(captions, 5, seed=2)
    cosines = [sum(a * b for a, b in zip(x, y, strict=True)) for x in image.tolist() for y in text.tolist()]
    expected = by_hand(temperature, cosines)
    assert 2 < expected < 50
    factor = temperature(image, text)
    assert factor.shape == () and factor.item() == pytest.approx(expected, rel=1e-12)
    if len(cosines) > 1:  # else all of this would say nothing
        assert abs(expected - by_hand(temperature, [])) > 0.05


@pytest.mark.parametrize("init", [1.0, 1 / 0.07, 100.0])
def test_it_starts_near_its_start(init):
    torch.manual_seed(0)
    temperature = DynamicTemperature(TemperatureConfig(kind="dynamic", init=init))
    assert temperature(unit(8, 5).float(), unit(8, 5, seed=2).float()).item() == pytest.approx(init, rel=0.1)
    assert sum(parameter.numel() for parameter in temperature.parameters()) == 16 + 16 + 16 + 1


def test_gradients_equal_finite_differences():
    temperature = dynamic()
    names = [name for name, _ in temperature.named_parameters()]
    inputs = [unit(3, 12), unit(5, 12, seed=2)]
    inputs += [parameter.detach().clone() for parameter in temperature.parameters()]

    def factor(image, text, *parameters):
        return torch.func.functional_call(temperature, dict(zip(names, parameters, strict=True)), (image, text))

    assert 2.1 < temperature(*inputs[:2]).item() < 49
    assert torch.autograd.gradcheck(factor, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("images", "captions"), [(1, 1), (6, 6), (6, 1), (2, 11)])
def test_a_batch_without_variance_gives_the_factor_of_none_and_finite_gradients(images, captions, dtype):
    temperature = dynamic(dtype)
    one = unit(1, 8, dtype=dtype)
    image = one.expand(images, 8).clone().requires_grad_()
    text = one.expand(captions, 8).clone().requires_grad_()
    factor = temperature(image, text)
    expected = by_hand(temperature, [])
    assert 2 < expected < 50
    assert factor.item() == pytest.approx(expected, rel=1e-6) and temperature().item() == pytest.approx(
        expected, rel=1e-6
    )
    torch.nn.functional.cross_entropy(factor * image @ text.T, torch.arange(images) % captions).backward()
    assert finite(image.grad, text.grad, *(parameter.grad for parameter in temperature.parameters()))


def biased(shift, dtype=torch.float64):
    temperature = dynamic(dtype)
    with torch.no_grad():
        temperature.mlp[2].bias.add_(shift)
    return temperature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shift", "bound"), [(9.0, 50.0), (-9.0, 2.0), (200.0, 50.0), (-2000.0, 2.0)])
def test_beyond_a_bound_gradients_pass_that_lead_back_and_no_others(shift, bound, dtype):
    for wish in (1.0, -1.0):  # a loss that wants the factor smaller, and one that wants it larger
        temperature = biased(shift, dtype)
        factor = temperature(unit(4, 5, dtype=dtype), unit(4, 5, seed=2, dtype=dtype))
        assert factor.item() == pytest.approx(bound, rel=1e-6)
        (wish * factor).backward()
        back = (wish > 0) == (bound == 50.0)
        gradient = temperature.mlp[2].bias.grad.item()
        assert gradient == (pytest.approx(wish * bound, rel=1e-5) if back else 0)
        assert temperature.mlp[2].weight.grad.any().item() == back
        assert finite(*(parameter.grad for parameter in temperature.parameters()))


@pytest.mark.parametrize("shift", [4.0, -4.0])
def test_what_was_driven_over_a_bound_finds_back(shift):
    temperature = biased(shift)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.03)
    image, text = unit(4, 5), unit(4, 5, seed=2)
    for _ in range(300):
        optimizer.zero_grad()
        (temperature(image, text).log() - math.log(20.0)).square().backward()
        optimizer.step()
        temperature.clamp_()
    assert temperature(image, text).item() == pytest.approx(20.0, rel=1e-2)


def test_clamp_leaves_a_dynamic_one_as_it_is():
    temperature = biased(9.0)
    before = {name: tensor.clone() for name, tensor in temperature.state_dict().items()}
    temperature.clamp_()
    assert all(torch.equal(before[name], tensor) for name, tensor in temperature.state_dict().items())


@torch.no_grad()
def test_half_precision_around_it_does_not_reach_it():
    temperature = dynamic(torch.float32)
    image, text = unit(8, 64).bfloat16(), unit(8, 64, seed=2).bfloat16()
    alone = temperature(image.float(), text.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = temperature(image, text)
    assert inside.dtype == torch.float32 and torch.equal(inside, alone)


def test_build_gives_the_kind_that_is_named():
    assert isinstance(build_temperature(TemperatureConfig()), LearnedTemperature)
    assert isinstance(build_temperature(DYNAMIC), DynamicTemperature)
