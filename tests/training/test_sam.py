"""Sharpness-aware steps, held against two passes written out with plain loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cliplet.training.sam import Sam

RATE, RHO, STEPS, ROWS = 0.05, 0.3, 5, 6


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(ROWS, 4, generator=generator).double(), torch.randint(3, (ROWS,), generator=generator))
        for _ in range(STEPS)
    ]


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(weights, others, tolerance=0.0):
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# The reference


def gradients_at(model, weights, x, y):
    weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def norm_of(tensors):
    return sum(float((tensor**2).sum()) for tensor in tensors) ** 0.5


def climbed(weights, gradients, per_layer):
    """w + rho · g / ‖g‖"""
    layer = {name: name.rpartition(".")[0] if per_layer else "all" for name in weights}
    norms = {key: norm_of(gradients[name] for name in weights if layer[name] == key) for key in set(layer.values())}
    return {name: weight + RHO * gradients[name] / norms[layer[name]] for name, weight in weights.items()}


def sgd(weights, gradients, state):
    for name, weight in weights.items():
        state[name] = 0.9 * state[name] + gradients[name] if name in state else gradients[name]
        weight -= RATE * state[name]


def adamw(weights, gradients, state):
    state["steps"] = state.get("steps", 0) + 1
    for name, weight in weights.items():
        first, second = state.get(name, (0.0, 0.0))
        first = 0.9 * first + 0.1 * gradients[name]
        second = 0.99 * second + 0.01 * gradients[name] ** 2
        state[name] = first, second
        weight *= 1 - RATE * 0.2
        root = (second / (1 - 0.99 ** state["steps"])) ** 0.5
        weight -= RATE * first / (1 - 0.9 ** state["steps"]) / (root + 1e-6)


def reference(update, per_layer, clip=None):
    model, state = network(), {}
    weights = weights_of(model)
    for x, y in batches():
        first = gradients_at(model, weights, x, y)
        gradients = gradients_at(model, climbed(weights, first, per_layer), x, y)
        if clip is not None:
            norm = norm_of(gradients.values())
            assert norm > clip  # or the test would not see the clipping
            gradients = {name: gradient * clip / (norm + 1e-6) for name, gradient in gradients.items()}
        update(weights, gradients, state)
    return weights


# The same with Sam


def optimizer_for(update, model):
    if update is sgd:
        return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.99), eps=1e-6, weight_decay=0.2, fused=True)


def trained(update, per_layer, clip=None, micro_batches=1, scaled=False):
    model = network()
    optimizer = optimizer_for(update, model)
    sam = Sam(model, RHO, per_layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)

    def gradient(x, y):
        optimizer.zero_grad()
        for rows in torch.arange(ROWS).chunk(micro_batches):
            scaler.scale(F.cross_entropy(model(x[rows]), y[rows]) / micro_batches).backward()
        if scaled:
            assert max(float(parameter.grad.abs().max()) for parameter in model.parameters()) > 10
        scaler.unscale_(optimizer)

    for x, y in batches():
        gradient(x, y)
        with sam.climbed():
            scaler.update()  # unscale_ may be called once an update
            gradient(x, y)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    return weights_of(model)


@pytest.mark.parametrize("update", [sgd, adamw])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_steps_are_those_of_the_paper(update, per_layer, clip, micro_batches, scaled):
    expected = reference(update, per_layer, clip)
    assert_same(trained(update, per_layer, clip, micro_batches, scaled), expected, 1e-10)


def test_the_reference_tells_the_kinds_apart():
    kinds = [reference(update, per_layer) for update in (sgd, adamw) for per_layer in (False, True)]
    for number, weights in enumerate(kinds):
        for others in kinds[:number]:
            assert max(float((weights[name] - others[name]).abs().max()) for name in weights) > 1e-3


# The climb


def with_gradients(model):
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def moved(model, before):
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def test_the_climb_is_rho_long_in_all_or_in_each_layer():
    model = with_gradients(network())
    before = weights_of(model)
    with Sam(model, RHO).climbed():
        assert norm_of(moved(model, before).values()) == pytest.approx(RHO, rel=1e-12)
    with Sam(model, RHO, per_layer=True).climbed():
        moves = moved(model, before)
    for layer in ("0", "2", "3"):
        assert norm_of([moves[f"{layer}.weight"], moves[f"{layer}.bias"]]) == pytest.approx(RHO, rel=1e-12)


@pytest.mark.parametrize("per_layer", [False, True])
def test_weights_come_back_bit_for_bit(per_layer):
    model = with_gradients(network().float())
    before, storage = weights_of(model), [parameter.data_ptr() for parameter in model.parameters()]
    sam = Sam(model, RHO, per_layer)
    for _ in range(3):
        sam.climb()
        assert all(bool((move != 0).any()) for move in moved(model, before).values())
        sam.descend()
        assert_same(weights_of(model), before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == storage


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_weights_come_back_after_an_exception(kind):
    model = with_gradients(network())
    before = weights_of(model)
    sam = Sam(model, RHO)
    with pytest.raises(kind), sam.climbed():
        raise kind
    assert_same(weights_of(model), before)
    with sam.climbed():  # and it can climb again
        pass


@pytest.mark.parametrize("per_layer", [False, True])
def test_gradients_are_only_read(per_layer):
    model = with_gradients(network())
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    with Sam(model, RHO, per_layer).climbed():
        pass
    assert_same({name: parameter.grad for name, parameter in model.named_parameters()}, gradients)


@pytest.mark.parametrize("per_layer", [False, True])
def test_what_has_no_gradient_stays_and_has_no_part_in_the_norm(per_layer):
    model = with_gradients(network())
    frozen = {"0.weight", "0.bias", "2.bias"}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.grad = None
    before = weights_of(model)
    with Sam(model, RHO, per_layer).climbed():
        moves = moved(model, before)
    assert {name for name, move in moves.items() if not move.any()} == frozen
    lengths = [norm_of([moves["2.weight"]]), norm_of([moves["3.weight"], moves["3.bias"]])]
    if per_layer:
        assert lengths == pytest.approx([RHO, RHO], rel=1e-12)
    else:
        assert norm_of(moves.values()) == pytest.approx(RHO, rel=1e-12)


def test_a_model_without_gradients_stays():
    model = network()
    before = weights_of(model)
    with Sam(model, RHO).climbed():
        assert_same(weights_of(model), before)
    assert_same(weights_of(model), before)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gradient", [0.0, 1e-44])
def test_zero_gradients_move_nothing(per_layer, dtype, gradient):
    model = network().to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient if dtype == torch.float32 else 0.0)
    before = weights_of(model)
    with Sam(model, RHO, per_layer).climbed():
        assert_same(weights_of(model), before)


def test_a_layer_of_zero_gradient_stays_and_others_climb():
    model = with_gradients(network())
    for parameter in model[0].parameters():
        parameter.grad.zero_()
    before = weights_of(model)
    with Sam(model, RHO, per_layer=True).climbed():
        moves = moved(model, before)
    assert not moves["0.weight"].any() and not moves["0.bias"].any()
    assert norm_of([moves["3.weight"], moves["3.bias"]]) == pytest.approx(RHO, rel=1e-12)


def test_rho_of_zero_moves_nothing():
    model = with_gradients(network())
    before = weights_of(model)
    with Sam(model, 0.0).climbed():
        assert_same(weights_of(model), before)


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_shared_parameter_counts_once(per_layer):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    with_gradients(model)
    before = weights_of(model)
    with Sam(model, RHO, per_layer).climbed():
        moves = moved(model, before)
    if per_layer:
        assert [norm_of([move]) for move in moves.values()] == pytest.approx([RHO, RHO], rel=1e-12)
    else:
        assert norm_of(moves.values()) == pytest.approx(RHO, rel=1e-12)


def test_half_precision_gradients_have_a_norm_of_full_precision():
    model = nn.Linear(1000, 1, bias=False).to(torch.float16)
    model.weight.data.zero_()
    model.weight.grad = torch.full_like(model.weight, 30000.0)  # the norm, 948683, is beyond float16
    with Sam(model, 1.0).climbed():
        torch.testing.assert_close(model.weight.detach(), torch.full_like(model.weight, 1000**-0.5))


def test_a_gradient_that_is_not_finite_makes_the_scaler_skip_the_step():
    model = network()
    optimizer = optimizer_for(adamw, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights_of(model)
    (x, y), *_ = batches()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    model[3].bias.grad[0] = float("inf")
    scaler.unscale_(optimizer)
    with Sam(model, RHO).climbed():
        scaler.update()
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    assert_same(weights_of(model), before)


def test_misuse_is_refused():
    model = with_gradients(network())
    before = weights_of(model)
    sam = Sam(model, RHO)
    with pytest.raises(RuntimeError, match="have not climbed"):
        sam.descend()
    with sam.climbed(), pytest.raises(RuntimeError, match="climbed already"):
        sam.climb()
    assert_same(weights_of(model), before)
    for rho in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="a length is 0 or more"):
            Sam(model, rho)
