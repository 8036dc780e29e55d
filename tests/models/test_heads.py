"""Each head is the formula it says it is, written out one number at a time; padding has no part in the one that reads
tokens."""

import math

import pytest
import torch
from torch import nn

from cliplet.config import HeadConfig, SharedHeadConfig
from cliplet.errors import ModelError
from cliplet.models.heads import build_head, build_shared_head

WIDTH, EMBED = 7, 5
LENGTHS = (6, 1, 4, 2)
KINDS = {
    "linear": HeadConfig(dropout=0.5),
    "linear_without_bias": HeadConfig(bias=False, dropout=0.5),
    "linear_norm": HeadConfig(kind="linear_norm", dropout=0.5),
    "mlp": HeadConfig(kind="mlp", hidden=6, dropout=0.5),
    "mlp_norm": HeadConfig(kind="mlp_norm", hidden=6, dropout=0.5),
    "residual": HeadConfig(kind="residual", dropout=0.5),
}


def shaken(module):
    """The module in double precision and evaluation mode, with every parameter random: no norm is 1 and 0 by chance."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return module.double().eval()


def head_of(config, side="text", width=WIDTH, embed=EMBED):
    return shaken(build_head(config, width, embed, side))


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the formulas, on lists of floats


def linear(layer, x):
    bias = [0.0] * len(layer.weight) if layer.bias is None else layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def norm(layer, x):
    mean = sum(x) / len(x)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
    return [
        (v - mean) / deviation * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def gelu(x):
    return [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x]


def relu(x):
    return [max(v, 0.0) for v in x]


def plus(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def layers(head):
    """A sequential head's layers that have parameters."""
    return [layer for layer in head if list(layer.parameters())]


def by_hand(kind, head, x):
    if kind.startswith("linear"):
        first, *rest = layers(head)
        return norm(rest[0], linear(first, x)) if rest else linear(first, x)
    if kind == "mlp":
        first, second = layers(head)
        return linear(second, gelu(linear(first, x)))
    if kind == "mlp_norm":
        first, middle, second = layers(head)
        return linear(second, relu(norm(middle, linear(first, x))))
    projected = linear(head.projection, x)
    return norm(head.norm, plus(projected, linear(head.fc, gelu(projected))))


def convffn_by_hand(head, states):
    """`states`: those of the real tokens of one text, alone."""
    hidden = [linear(head.expand, state) for state in states]
    kernel, bias = head.convolution.weight[:, 0].tolist(), head.convolution.bias.tolist()
    reach = len(kernel[0]) // 2
    total = [0.0] * len(bias)
    for place in range(len(states)):
        mixed = list(bias)
        for channel in range(len(bias)):
            for offset in range(-reach, reach + 1):
                if 0 <= place + offset < len(states):
                    mixed[channel] += kernel[channel][offset + reach] * hidden[place + offset][channel]
        total = plus(total, gelu(mixed))
    return norm(head.norm, linear(head.project, [value / len(states) for value in total]))


@torch.no_grad()
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_its_formula(kind, side):
    head = head_of(KINDS[kind], side)
    features = 2 * numbers(4, WIDTH)
    expected = torch.tensor([by_hand(kind, head, row) for row in features.tolist()], dtype=torch.float64)
    assert expected.shape == (4, EMBED) and torch.cdist(expected, expected).fill_diagonal_(1).min() > 0.1
    torch.testing.assert_close(head(features), expected, atol=1e-12, rtol=0)


def right_padded(lengths=LENGTHS, length=9):
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


@torch.no_grad()
@pytest.mark.parametrize("filling", [0.0, 3.7, math.inf, math.nan])
@pytest.mark.parametrize("kernel", [1, 3, 5, 13])
def test_convffn_is_its_formula_whatever_stands_at_padding(kernel, filling):
    head = head_of(HeadConfig(kind="convffn", hidden=6, kernel=kernel, dropout=0.5))
    states, mask = numbers(4, 9, WIDTH), right_padded()
    expected = [convffn_by_hand(head, states[row, :length].tolist()) for row, length in enumerate(LENGTHS)]
    states[mask == 0] = filling
    for some_mask in (mask, mask.bool()):
        got = head(states, some_mask)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_text_of_convffn_is_the_same_alone_and_beside_a_longer_one():
    head = head_of(HeadConfig(kind="convffn", kernel=5)).float()
    states, mask = numbers(4, 30, WIDTH).float(), right_padded(length=30)
    mixed = head(states, mask)
    for row, length in enumerate(LENGTHS):
        alone = head(states[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(mixed[row], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("filling", [1.0, math.inf])
def test_no_gradient_of_convffn_comes_from_padding(filling):
    """With the infinite filling, a weight multiplied by it would have no gradient any more."""
    head, mask = head_of(HeadConfig(kind="convffn", kernel=5)), right_padded()
    states = numbers(4, 9, WIDTH)
    gradients = []
    for value in (0.0, filling):
        leaf = states.clone()
        leaf[mask == 0] = value
        leaf.requires_grad_()
        head.zero_grad()
        (head(leaf, mask) * numbers(4, EMBED, seed=2)).sum().backward()
        gradients.append([leaf.grad, *(parameter.grad.clone() for parameter in head.parameters())])
    assert not gradients[1][0][mask == 0].any() and gradients[1][0][mask == 1].all()
    for plain, filled in zip(*gradients, strict=True):
        assert plain.any()
        torch.testing.assert_close(filled, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["mlp_norm", "residual", "shared", "convffn"])
def test_gradients_equal_finite_differences(kind):
    if kind == "shared":
        head = shaken(build_shared_head(SharedHeadConfig(kind="residual_mlp", expansion=2), WIDTH))
    else:
        head = head_of(HeadConfig(kind=kind, hidden=4 if kind != "residual" else None))
    inputs = [numbers(2, 4, WIDTH) if kind == "convffn" else numbers(2, WIDTH)]
    mask = [right_padded((4, 2), 4)] if kind == "convffn" else []
    names = [name for name, _ in head.named_parameters()]

    def outputs(features, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (features, *mask))

    inputs += [parameter.detach().clone() for parameter in head.parameters()]
    assert torch.autograd.gradcheck(outputs, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (HeadConfig(), 10 * 6 + 6),
        (HeadConfig(bias=False), 10 * 6),
        (HeadConfig(kind="linear_norm"), 10 * 6 + 6 + 2 * 6),
        (HeadConfig(kind="mlp"), (10 * 12 + 12) + (12 * 6 + 6)),  # twice embed_dim by itself
        (HeadConfig(kind="mlp", hidden=5), (10 * 5 + 5) + (5 * 6 + 6)),
        (HeadConfig(kind="mlp_norm"), (10 * 6 + 6) + 2 * 6 + (6 * 6 + 6)),  # embed_dim by itself
        (HeadConfig(kind="mlp_norm", hidden=5), (10 * 5 + 5) + 2 * 5 + (5 * 6 + 6)),
        (HeadConfig(kind="residual"), (10 * 6 + 6) + (6 * 6 + 6) + 2 * 6),
        (HeadConfig(kind="convffn"), (10 * 12 + 12) + (12 * 3 + 12) + (12 * 6 + 6) + 2 * 6),
        (HeadConfig(kind="convffn", hidden=5, kernel=7), (10 * 5 + 5) + (5 * 7 + 5) + (5 * 6 + 6) + 2 * 6),
    ],
)
def test_shapes_and_sizes(config, parameters):
    head = build_head(config, 10, 6, "text")
    inputs = (torch.randn(3, 4, 10), torch.ones(3, 4)) if config.kind == "convffn" else (torch.randn(3, 10),)
    assert head(*inputs).shape == (3, 6)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


# --- dropout


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_stands_before_the_last_layer(kind):
    """With everything dropped, the last layer gives what it gives of zero."""
    config = KINDS[kind].model_copy(update={"dropout": 1 - 1e-12})
    head = head_of(config).train()
    features = numbers(3, WIDTH)
    if kind == "residual":  # on what is added
        expected = torch.tensor([norm(head.norm, linear(head.projection, row)) for row in features.tolist()])
    elif kind == "linear_norm":
        expected = torch.tensor([norm(layers(head)[1], layers(head)[0].bias.tolist())] * 3)
    else:
        last = layers(head)[-1]
        expected = torch.zeros(3, EMBED) if last.bias is None else last.bias.expand(3, -1)
    torch.testing.assert_close(head(features).float(), expected.float())


@torch.no_grad()
def test_dropout_of_convffn_stands_before_gelu():
    head = head_of(HeadConfig(kind="convffn", hidden=64, dropout=0.5), embed=64).train()
    for layer in (head.expand, head.convolution):
        layer.weight.zero_()
        layer.bias.fill_(1)
    head.project, head.norm = nn.Identity(), nn.Identity()
    got = head(numbers(1, 1, WIDTH), torch.ones(1, 1))
    dropped = got.abs() < 1e-12
    assert 10 < dropped.sum() < 54
    torch.testing.assert_close(got[~dropped], got.new_full(((~dropped).sum(),), gelu([2.0])[0]))  # of 1 / (1 - 0.5)


@pytest.mark.parametrize("kind", [*KINDS, "convffn"])
def test_dropout_works_in_training_only(kind):
    head = head_of(KINDS.get(kind, HeadConfig(kind="convffn", dropout=0.5)), width=64, embed=32)
    inputs = (numbers(2, 3, 64), torch.ones(2, 3)) if kind == "convffn" else (numbers(2, 64),)
    assert not torch.equal(head.train()(*inputs), head(*inputs))
    assert torch.equal(head.eval()(*inputs), head(*inputs))


# --- the shared head


@torch.no_grad()
def test_the_shared_head_is_its_formula():
    head = shaken(build_shared_head(SharedHeadConfig(kind="residual_mlp", expansion=3), EMBED))
    assert head.fc1.weight.shape == (3 * EMBED, EMBED)
    features = numbers(4, EMBED)
    expected = [norm(head.norm, plus(x, linear(head.fc2, gelu(linear(head.fc1, x))))) for x in features.tolist()]
    torch.testing.assert_close(head(features), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_no_shared_head_changes_nothing():
    head, features = build_shared_head(SharedHeadConfig(), EMBED), numbers(4, EMBED)
    assert head(features) is features and not list(head.parameters())


# --- what does not fit


def test_no_head_gives_the_towers_features_where_they_fit():
    features = numbers(3, EMBED)
    assert build_head(HeadConfig(kind="none"), EMBED, EMBED, "image")(features) is features


@pytest.mark.parametrize("side", ["image", "text"])
def test_no_head_where_the_width_does_not_fit_is_refused(side):
    with pytest.raises(ModelError) as caught:
        build_head(HeadConfig(kind="none"), WIDTH, EMBED, side)
    assert f"the {side} tower gives 7 features and has no head, but model.embed_dim is 5" in caught.value.message
    assert "model.embed_dim to 7" in caught.value.hint and f"model.{side}_head.kind" in caught.value.hint


def test_convffn_on_the_image_side_is_refused():
    with pytest.raises(ModelError, match="the image head is of kind convffn, which reads tokens") as caught:
        build_head(HeadConfig(kind="convffn"), WIDTH, EMBED, "image")
    assert "model.text_head" in caught.value.hint


@pytest.mark.parametrize("kernel", [2, 4])
def test_an_even_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel must be odd"):
        HeadConfig(kind="convffn", kernel=kernel)
