"""The three kinds of attention equal independent references, and padding has no part in any of them."""

import numpy as np
import pytest
import torch
from linformer.linformer import LinformerSelfAttention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cliplet.errors import ModelError
from cliplet.models.attention import (
    KINDS,
    FullAttention,
    LinformerAttention,
    PerformerAttention,
    build_attention,
    orthogonal_gaussian,
)

WIDTH, HEADS, CONTEXT = 24, 4, 16
LENGTHS = (7, 1, 4, 10)
SHARING = [(one, share) for one in (False, True) for share in (False, True)]
VARIANTS = ["full", "performer", *(("linformer", *sharing) for sharing in SHARING)]


def attention_of(variant, dtype=torch.float64, context=CONTEXT, seed=0, sharpness=2.5):
    torch.manual_seed(seed)
    kind, one_kv_head, share_kv = (variant, True, True) if isinstance(variant, str) else variant
    attention = build_attention(
        kind, WIDTH, HEADS, context, linformer_k=5, one_kv_head=one_kv_head, share_kv=share_kv, performer_features=20
    ).to(dtype)
    with torch.no_grad():  # as it is initialised, attention would be close to even
        for name, parameter in attention.named_parameters():
            if name.startswith(("qkv", "to_q", "to_k")):
                parameter[: 2 * WIDTH] *= sharpness
    return attention


def states_of(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def right_padded(length, lengths=LENGTHS):
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# --- references


@torch.no_grad()
def test_full_attention_equals_pytorchs_own():
    attention = attention_of("full")
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    names |= {"out_proj.weight": "out.weight", "out_proj.bias": "out.bias"}
    reference.load_state_dict({theirs: attention.state_dict()[ours] for theirs, ours in names.items()})
    states, mask = states_of(4, 10, WIDTH), right_padded(10)
    expected = reference(states, states, states, key_padding_mask=mask == 0, need_weights=False)[0]
    close(attention(states, mask)[mask.bool()], expected[mask.bool()], 1e-12)


def linformers(one_kv_head, share_kv):
    attention = attention_of(("linformer", one_kv_head, share_kv))
    package = LinformerSelfAttention(WIDTH, CONTEXT, k=5, heads=HEADS, one_kv_head=one_kv_head, share_kv=share_kv)
    package.double().load_state_dict(attention.state_dict())  # strict: the same names and shapes
    return attention, package


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 9, CONTEXT])
@pytest.mark.parametrize(("one_kv_head", "share_kv"), SHARING)
def test_linformer_equals_the_package(one_kv_head, share_kv, length):
    attention, package = linformers(one_kv_head, share_kv)
    states = states_of(3, length, WIDTH)
    close(attention(states, torch.ones(3, length, dtype=torch.int64)), package(states), 1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("one_kv_head", "share_kv"), SHARING)
def test_linformer_with_padding_equals_the_package_on_each_text_alone(one_kv_head, share_kv):
    attention, package = linformers(one_kv_head, share_kv)
    states = states_of(4, 12, WIDTH)
    mixed = attention(states, right_padded(12))
    for row, length in enumerate(LENGTHS):
        close(mixed[row, :length], package(states[row : row + 1, :length])[0], 1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("one_kv_head", "share_kv"), SHARING)
def test_linformer_with_padding_anywhere_equals_a_loop(one_kv_head, share_kv):
    """In NumPy, one token, slot, head and query at a time: a padded token has no part in a slot."""
    attention = attention_of(("linformer", one_kv_head, share_kv))
    states, mask = states_of(1, 9, WIDTH), torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 1]])
    weights = {name: tensor.numpy() for name, tensor in attention.state_dict().items()}
    if share_kv:
        weights |= {"to_v.weight": weights["to_k.weight"], "proj_v": weights["proj_k"]}
    x, size = states[0].numpy(), WIDTH // HEADS
    for i in mask[0].nonzero().flatten().tolist():
        heads = []
        for head in range(HEADS):
            part = slice(0, size) if one_kv_head else slice(head * size, (head + 1) * size)
            keys, values = np.zeros((5, size)), np.zeros((5, size))
            for j in mask[0].nonzero().flatten().tolist():
                for slot in range(5):
                    keys[slot] += weights["proj_k"][j, slot] * (weights["to_k.weight"] @ x[j])[part]
                    values[slot] += weights["proj_v"][j, slot] * (weights["to_v.weight"] @ x[j])[part]
            query = (weights["to_q.weight"] @ x[i])[head * size : (head + 1) * size]
            scores = np.exp(keys @ query / np.sqrt(size))
            heads.append(scores @ values / scores.sum())
        expected = weights["to_out.weight"] @ np.concatenate(heads) + weights["to_out.bias"]
        np.testing.assert_allclose(attention(states, mask)[0, i].numpy(), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_performer_equals_favor_written_out():
    """Equation 5 of the paper in NumPy, one query, key, head and feature vector at a time."""
    attention = attention_of("performer")
    states, mask = states_of(4, 10, WIDTH), right_padded(10)
    mask[3, 4] = 0  # and padding in the middle
    mixed = attention(states, mask)
    weights, size = {name: tensor.numpy() for name, tensor in attention.state_dict().items()}, WIDTH // HEADS

    def phi(x):
        x = x / size**0.25
        return np.array([np.exp(w @ x - x @ x / 2) for w in weights["projection"]]) / np.sqrt(20)

    for row in range(4):
        real = mask[row].nonzero().flatten().tolist()
        qkv = {i: weights["qkv.weight"] @ states[row, i].numpy() + weights["qkv.bias"] for i in real}
        for i in real:
            heads = []
            for head in range(HEADS):
                part = {
                    name: slice(n * WIDTH + head * size, n * WIDTH + (head + 1) * size) for n, name in enumerate("qkv")
                }
                kernel = {j: phi(qkv[i][part["q"]]) @ phi(qkv[j][part["k"]]) for j in real}
                heads.append(sum(kernel[j] * qkv[j][part["v"]] for j in real) / sum(kernel.values()))
            expected = weights["out.weight"] @ np.concatenate(heads) + weights["out.bias"]
            np.testing.assert_allclose(mixed[row, i].numpy(), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_performer_converges_to_full_attention():
    """Errors are held against what even attention is off by. Sharper attention converges too, but far more slowly."""
    full, even = attention_of("full", sharpness=0.6), attention_of("full", sharpness=0)
    states, mask = states_of(4, 10, WIDTH), right_padded(10)
    expected = full(states, mask)[mask.bool()]
    errors = []
    for features in (16, 256, 4096):
        draws = []
        for seed in range(8):
            torch.manual_seed(seed)
            performer = PerformerAttention(WIDTH, HEADS, features).double()
            performer.load_state_dict(full.state_dict() | {"projection": performer.projection})
            draws.append((performer(states, mask)[mask.bool()] - expected).norm())
        errors.append(torch.stack(draws).mean().item())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.4 * errors[1]
    assert errors[2] < 0.12 * (even(states, mask)[mask.bool()] - expected).norm()


def test_random_features_are_gaussian_and_orthogonal_within_blocks():
    torch.manual_seed(0)
    rows = orthogonal_gaussian(3 * 8 + 5, 8).double()
    norms = rows.norm(dim=1)
    for block in rows.split(8):
        gram = block @ block.T
        close(gram, torch.diag(gram.diagonal()), 1e-5)
    assert norms.std() > 0.3  # not all of one length
    many = orthogonal_gaussian(8 * 2000, 8).double()
    close(many.mean(0), torch.zeros(8).double(), 0.05)
    close(many.T @ many / len(many), torch.eye(8).double(), 0.05)
    # The signs that QR gives would put the first row of every block on one side.
    close(many[::8].mean(0), torch.zeros(8).double(), 0.12)
    # Chi-distributed: the fourth moment of the norm is E (E + 2), as of independent Gaussians.
    assert many.norm(dim=1).pow(4).mean().item() == pytest.approx(8 * 10, rel=0.03)


def test_the_default_number_of_features_follows_the_head_width():
    assert PerformerAttention(256, 4).projection.shape == (266, 64)  # 64 ln 64
    assert PerformerAttention(32, 4).projection.shape == (17, 8)
    assert PerformerAttention(4, 4).projection.shape == (16, 1)


# --- padding


@torch.no_grad()
@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padding_on_the_right_changes_no_real_row(variant, garbage):
    attention = attention_of(variant)
    texts = [states_of(1, length, WIDTH, seed=length) for length in LENGTHS]
    alone = [attention(text, torch.ones(1, text.shape[1], dtype=torch.int64))[0] for text in texts]
    for length in (10, 11, CONTEXT):
        mask = right_padded(length)
        states = garbage * states_of(4, length, WIDTH, seed=length)
        for row, text in enumerate(texts):
            states[row, : text.shape[1]] = text
        for as_given in (mask, mask.bool()):
            mixed = attention(states, as_given)
            assert mixed.isfinite().all()
            for row, expected in enumerate(alone):
                close(mixed[row, : len(expected)], expected, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["full", "performer"])
def test_padding_anywhere_changes_no_real_row(kind, garbage):
    attention = attention_of(kind)
    text = states_of(1, 6, WIDTH)
    expected = attention(text, torch.ones(1, 6, dtype=torch.int64))[0]
    for places in ([0, 1, 2, 5, 7, 8], [3, 5, 6, 7, 8, 9], [0, 2, 4, 6, 8, 10]):
        states, mask = garbage * states_of(1, 12, WIDTH, seed=2), torch.zeros(1, 12, dtype=torch.int64)
        states[0, places], mask[0, places] = text[0], 1
        close(attention(states, mask)[0, places], expected, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_real_tokens_do_matter(variant):
    """Else the tests of padding would say nothing: every row changes with any real token."""
    attention = attention_of(variant)
    states, mask = states_of(1, 6, WIDTH), torch.ones(1, 6, dtype=torch.int64)
    before = attention(states, mask)
    for place in range(6):
        changed = states.clone()
        changed[0, place] += 1
        assert ((attention(changed, mask) - before).norm(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradients_are_finite_and_none_reaches_padding(variant):
    attention = attention_of(variant)
    mask = right_padded(12)
    if variant in ("full", "performer"):
        mask[0, 3] = 0
    states = states_of(4, 12, WIDTH)
    states[mask == 0] *= 1e4
    states.requires_grad_()
    attention(states, mask)[mask.bool()].square().sum().backward()
    assert states.grad[mask == 0].abs().max() == 0
    # A text of one token attends to itself alone, but its value still matters.
    assert (states.grad[mask == 1].norm(dim=-1) > 1e-3).all()
    for name, parameter in attention.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradients_equal_finite_differences(variant):
    attention = attention_of(variant)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    states = states_of(2, 4, WIDTH).requires_grad_()

    def of_real_rows(states):
        return attention(states, mask)[mask.bool()].square().sum()

    assert torch.autograd.gradcheck(of_real_rows, (states,), atol=1e-6)


# --- precision, saving, cost


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_performer_weights_sum_to_one_however_large_the_states_are(scale):
    """Where exponentials without a stabiliser, or with one for all features, would end in 0/0."""
    attention = attention_of("performer", torch.float32)
    attention.qkv.weight[2 * WIDTH :] = 0  # all tokens have one value, of which any weighted mean is that value
    attention.qkv.bias[2 * WIDTH :] = value = states_of(WIDTH, dtype=torch.float32)
    mixed, mask = attention(scale * states_of(4, 10, WIDTH, dtype=torch.float32), right_padded(10)), right_padded(10)
    close(mixed[mask.bool()], attention.out(value).expand(sum(LENGTHS), -1), 1e-5)


def test_performer_with_large_states_has_no_room_for_padding_and_finite_gradients():
    """Keys of large norm have tiny features, beside which anything but an exact zero at padding would prevail."""
    attention, mask = attention_of("performer"), right_padded(10)
    states = (1000 * states_of(4, 10, WIDTH) * mask.unsqueeze(-1)).requires_grad_()
    mixed = attention(states, mask)
    for row, length in enumerate(LENGTHS):
        alone = attention(states[row : row + 1, :length], mask[row : row + 1, :length])[0]
        close(mixed[row, :length], alone, 1e-6)
    mixed[mask.bool()].sum().backward()
    assert states.grad.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_bf16_autocast_stays_close_to_fp32(variant):
    attention = attention_of(variant, torch.float32)
    states, mask = states_of(4, 12, WIDTH, dtype=torch.float32).requires_grad_(), right_padded(12)
    expected = attention(states, mask)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(states, mask)
    assert mixed.dtype == torch.bfloat16 and mixed.isfinite().all()
    error = (mixed.float() - expected)[mask.bool()].norm() / expected[mask.bool()].norm()
    assert error < 0.03
    mixed[mask.bool()].float().square().sum().backward()
    assert states.grad.isfinite().all()


@torch.no_grad()
def test_performers_exponentials_are_computed_in_fp32_under_autocast():
    """With weights and states that bf16 holds exactly, only the last projection may round."""
    attention = attention_of("performer", torch.float32)
    attention.qkv.weight.copy_(torch.eye(WIDTH).repeat(3, 1))
    attention.qkv.bias.zero_()
    attention.out.weight.copy_(torch.eye(WIDTH))
    attention.out.bias.zero_()
    states, mask = states_of(4, 10, WIDTH, dtype=torch.bfloat16).float(), right_padded(10)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(states, mask)
    assert torch.equal(mixed[mask.bool()], attention(states, mask).bfloat16()[mask.bool()])


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_state_dict_gives_the_same_features_again(variant):
    attention, other = attention_of(variant), attention_of(variant, seed=1)
    states, mask = states_of(4, 12, WIDTH), right_padded(12)
    assert not torch.allclose(other(states, mask), attention(states, mask))
    other.load_state_dict(attention.state_dict())
    assert torch.equal(other(states, mask), attention(states, mask))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_only_full_attention_costs_more_than_linear(kind):
    attention = attention_of(kind, context=512)

    def flops(length):
        with FlopCounterMode(display=False) as counter:
            attention(states_of(1, length, WIDTH), torch.ones(1, length, dtype=torch.int64))
        return counter.get_total_flops()

    growth = flops(512) / flops(128)
    assert growth > 8 if kind == "full" else growth == pytest.approx(4, rel=0.01)


# --- errors


def test_a_text_longer_than_linformers_projections_is_an_error():
    attention = attention_of("linformer")
    attention(states_of(1, CONTEXT, WIDTH), torch.ones(1, CONTEXT, dtype=torch.int64))
    with pytest.raises(ModelError, match="texts of 17 tokens are longer than the 16") as error:
        attention(states_of(1, 17, WIDTH), torch.ones(1, 17, dtype=torch.int64))
    assert "model.text.context_length" in error.value.hint


@pytest.mark.parametrize(
    "build",
    [
        lambda: FullAttention(30, 4),
        lambda: LinformerAttention(30, 4, 16, 5),
        lambda: PerformerAttention(30, 4),
        *(
            lambda kind=kind: build_attention(
                kind, 30, 4, 16, linformer_k=5, one_kv_head=True, share_kv=True, performer_features=None
            )
            for kind in KINDS
        ),
    ],
)
def test_heads_that_do_not_divide_the_width_are_an_error(build):
    with pytest.raises(ModelError, match=r"^model\.text\.width 30 is not a multiple of model\.text\.heads 4$"):
        build()


def test_an_unknown_kind_is_an_error_that_names_the_nearest():
    with pytest.raises(ModelError, match="no attention 'preformer'") as error:
        build_attention("preformer", 32, 4, 16, linformer_k=5, one_kv_head=True, share_kv=True, performer_features=None)
    assert "performer" in error.value.hint
