"""Running statistics over several passes, held against statistics computed by hand in float64."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from cliplet.training.batch_norm import moves_once, stands_still

LAYERS = {
    "1d": lambda: nn.BatchNorm1d(3),
    "2d": lambda: nn.BatchNorm2d(3),
    "sync": lambda: nn.SyncBatchNorm(3),  # without a process group, or on one device, it is plain batch norm
    "timm": lambda: BatchNormAct2d(3),
}
MODELS = {
    "one layer": lambda: nn.BatchNorm2d(3).double(),
    "test_resnet": lambda: timm.create_model("test_resnet", num_classes=0).double(),
    "test_efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=0).double(),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    layer = LAYERS[request.param]().double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.num_batches_tracked.fill_(4)
    return layer


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().train()


def inputs_for(model, seed=0, count=1):
    shape = {nn.BatchNorm1d: (8, 3), nn.BatchNorm2d: (6, 3, 5, 5), nn.SyncBatchNorm: (8, 3, 4)}
    shape[BatchNormAct2d] = shape[nn.BatchNorm2d]
    generator = torch.Generator().manual_seed(seed)
    shape = shape.get(type(model), (4, 3, 32, 32))
    return [torch.randn(shape, generator=generator).double() * (n + 1) + n for n in range(count)]


def by_hand(x):
    """Mean and unbiased variance of each channel."""
    x = x.transpose(0, 1).flatten(1)
    mean = x.sum(1) / x.shape[1]
    return mean, ((x - mean[:, None]) ** 2).sum(1) / (x.shape[1] - 1)


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def statistics(model):
    return [(m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone()) for m in norms(model)]


def attributes(model):
    """What must be the same objects and values afterwards: every buffer, every attribute, every hook."""
    kept = [(name, id(buffer)) for name, buffer in model.named_buffers()]
    for module in model.modules():
        kept += [(name, repr(value)) for name, value in vars(module).items() if name not in ("_buffers", "_modules")]
        kept += [tuple(module._buffers), tuple(module._modules)]
    return kept


def assert_equal(ones, others, tolerance=0.0):
    torch.testing.assert_close(ones, others, rtol=0, atol=tolerance)


# moves_once


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("count", [1, 3])
def test_micro_batches_move_the_statistics_as_one_step(layer, momentum, count):
    layer.momentum = momentum
    [(mean, variance, tracked)] = statistics(layer)
    before, inputs = attributes(layer), inputs_for(layer, count=count)
    with moves_once(layer):
        for x in inputs:
            layer(x)
    means, variances = zip(*map(by_hand, inputs), strict=True)
    share = 1 / 5 if momentum is None else momentum
    assert_equal(layer.running_mean, (1 - share) * mean + share * sum(means) / count, 1e-12)
    assert_equal(layer.running_var, (1 - share) * variance + share * sum(variances) / count, 1e-12)
    assert_equal(layer.num_batches_tracked, tracked + 1)
    assert attributes(layer) == before


def test_a_real_model_moves_by_the_mean_of_its_micro_batches(model):
    inputs = inputs_for(model, count=3)
    alone = []  # the statistics of each micro-batch
    for x in inputs:
        other = copy.deepcopy(model)
        for norm in norms(other):
            norm.momentum = 1.0
        other(x)
        alone.append(statistics(other))
    old, before = statistics(model), attributes(model)
    with moves_once(model):
        for x in inputs:
            model(x)
    new = statistics(model)
    assert new
    for number, (mean, variance, tracked) in enumerate(new):
        for index, value in enumerate((mean, variance)):
            expected = 0.9 * old[number][index] + 0.1 * sum(one[number][index] for one in alone) / 3
            assert_equal(value, expected, 1e-12)
            assert not torch.equal(value, old[number][index])
        assert tracked == old[number][2] + 1
    assert attributes(model) == before


def test_one_pass_is_a_plain_pass_step_after_step(model):
    plain = copy.deepcopy(model)
    for seed in range(4):
        [x] = inputs_for(model, seed)
        expected = plain(x)
        with moves_once(model):
            assert_equal(model(x), expected)
        assert_equal(statistics(model), statistics(plain), 1e-12)


def test_gradients_are_those_of_plain_passes_also_after_the_statistics_moved(model):
    inputs = inputs_for(model, count=2)
    gradients = {}
    for kind in ("plain", "once"):
        one = copy.deepcopy(model)
        if kind == "plain":
            loss = sum(one(x).sin().sum() for x in inputs)
        else:
            with moves_once(one):
                loss = sum(one(x).sin().sum() for x in inputs)
        loss.backward()
        gradients[kind] = [parameter.grad for parameter in one.parameters()]
    assert_equal(gradients["plain"], gradients["once"])


def test_layers_in_eval_mode_and_layers_without_a_pass_stay():
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)]).double()
    model[1].eval()
    old, before = statistics(model), attributes(model)
    inputs = inputs_for(model[0], count=2)
    with moves_once(model):
        for x in inputs:
            model[0](x)
            assert_equal(model[1](x), x / (1 + 1e-5) ** 0.5, 1e-12)
    new = statistics(model)
    assert not torch.equal(new[0][0], old[0][0])
    assert_equal(new[1:], old[1:])
    assert attributes(model) == before


def test_a_layer_used_twice_in_a_pass_averages_over_its_uses():
    layer = nn.BatchNorm1d(3).double()
    first, second = inputs_for(layer, count=2)
    model = nn.ModuleList([layer, layer])  # one layer at two places
    with moves_once(model):
        model[0](first)
        model[1](second)
    assert_equal(layer.running_mean, 0.1 * (first.mean(0) + second.mean(0)) / 2, 1e-12)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_is_skipped_moves_nothing_though_its_statistics_are_no_numbers(layer, momentum, count):
    layer.momentum = momentum
    old, before = statistics(layer), attributes(layer)
    for value in (torch.nan, torch.inf, 1.0):
        inputs = inputs_for(layer, count=count)
        inputs[-1][0, 0] = value
        with moves_once(layer) as moving:
            for x in inputs:
                layer(x)
            moving.unless(torch.tensor(True))
        assert_equal(statistics(layer), old)
        assert attributes(layer) == before


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_step_that_is_not_skipped_moves_as_without_the_question(model, momentum):
    for norm in norms(model):
        norm.momentum = momentum
    plain = copy.deepcopy(model)
    for seed, skip in enumerate([False, True, False]):
        inputs = inputs_for(model, seed, count=2)
        if not skip:
            with moves_once(plain):
                for x in inputs:
                    plain(x)
        with moves_once(model) as moving:
            for x in inputs:
                model(x)
            moving.unless(torch.tensor(skip))
        assert_equal(statistics(model), statistics(plain))
    assert all(tracked == 2 for _, _, tracked in statistics(model))


# stands_still


def test_passes_normalise_by_the_batch_and_move_nothing(model):
    old, before = statistics(model), attributes(model)
    [x] = inputs_for(model)
    expected = copy.deepcopy(model)(x)
    with stands_still(model):
        assert_equal(model(x), expected)
    assert_equal(statistics(model), old)
    assert attributes(model) == before
    assert not torch.equal(copy.deepcopy(model).eval()(x), expected)  # the running statistics would give something else
    model(x)
    assert not torch.equal(statistics(model)[0][0], old[0][0])


def test_every_kind_of_layer_stands_still(layer):
    old = statistics(layer)
    [x] = inputs_for(layer)
    expected = copy.deepcopy(layer)(x)
    with stands_still(layer):
        assert_equal(layer(x), expected)
    assert_equal(statistics(layer), old)


def test_eval_mode_goes_on_with_the_running_statistics(model):
    model(inputs_for(model)[0])
    model.eval()
    [x] = inputs_for(model, seed=1)
    expected = model(x)
    with stands_still(model), moves_once(model):
        assert_equal(model(x), expected)


# Both


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_second_pass_of_a_step_does_not_count(model, momentum):
    for norm in norms(model):
        norm.momentum = momentum
    plain = copy.deepcopy(model)
    for seed in range(3):
        first = inputs_for(model, seed, count=2)
        with moves_once(plain):
            for x in first:
                plain(x)
        with moves_once(model):
            for x in first:
                model(x)
        with stands_still(model):
            for x in first:
                model(x)
    assert_equal(statistics(model), statistics(plain))
    assert all(tracked == 3 for _, _, tracked in statistics(model))


def test_standing_still_within_a_step_does_not_count_either(model):
    plain = copy.deepcopy(model)
    first, second, third = inputs_for(model, count=3)
    with moves_once(plain):
        plain(first)
        plain(third)
    before = attributes(model)
    with moves_once(model):
        model(first)
        with stands_still(model):
            model(second)
        model(third)
    assert_equal(statistics(model), statistics(plain))
    assert attributes(model) == before
    old = statistics(model)
    with stands_still(model), moves_once(model):
        model(first)
    assert_equal(statistics(model), old)


@pytest.mark.parametrize("context", [moves_once, stands_still])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_everything_as_it_was(model, context, kind):
    old, before = statistics(model), attributes(model)
    with pytest.raises(kind), context(model):
        for x in inputs_for(model, count=2):
            model(x)
        raise kind
    assert_equal(statistics(model), old)
    assert attributes(model) == before


@pytest.mark.parametrize("context", [moves_once, stands_still])
def test_layers_without_running_statistics_are_none_of_it(context):
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    before = attributes(model)
    x = inputs_for(nn.BatchNorm1d(3))[0]
    expected = model(x)
    with context(model):
        assert_equal(model(x), expected)
    assert attributes(model) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_nothing_waits_for_the_device(momentum):
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)).cuda()
    x = torch.randn(8, 3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with moves_once(model) as moving:
            moving.unless(~model(x).isfinite().all())
            model(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
