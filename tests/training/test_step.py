"""One step, held against the same step written out: several batches, SAM, scaled gradients, clipping."""

import copy
import math

import pytest
import torch

from cliplet.config import LossConfig, OptimConfig, SharedHeadConfig, StageConfig, TemperatureConfig
from cliplet.data.loader import Batch
from cliplet.models import DualEncoder
from cliplet.training.objective import loss_terms, total
from cliplet.training.optim import build_optimizer, set_learning_rate
from cliplet.training.sam import Sam
from cliplet.training.stages import set_trainable
from cliplet.training.step import Stepper

PEAKS = {"image": 0.05, "text": 0.1, "head": 0.2}
LOSS = LossConfig(info_nce=1.0, hard_negative=0.5)
RHO = 0.3


@pytest.fixture
def build(tiny_config, captions):
    """Makes the same model each time, without dropout; its batch norm stays as it is unless told otherwise."""

    def make(train_batch_norm=False, **changes):
        config = tiny_config.model_copy(
            update={
                "image": tiny_config.image.model_copy(update={"train_batch_norm": train_batch_norm}),
                "text": tiny_config.text.model_copy(update={"dropout": 0.0, "embedding_dropout": 0.0}),
                **changes,
            }
        )
        torch.manual_seed(0)
        model = DualEncoder.build(config, captions)
        with torch.no_grad():  # timm begins its residual branches at zero, through which no gradient passes
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.train()

    return make


def batches_for(model, count, seed=0):
    """Batches of 4 pictures with 2, 1, 3, 1 captions."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    batches = []
    for number in range(count):
        pixels = torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
        texts = [f"picture {number} {seed} has caption {row}" for row in range(len(owners))]
        ids, mask = (torch.from_numpy(array) for array in model.tokenizer(texts))
        batches.append(Batch(pixels, ids, mask, owners))
    return batches


def sgd(model, momentum=0.0):
    optimizer = build_optimizer(model, OptimConfig(optimizer="sgd", betas=(momentum, 0.9), weight_decay=0.0))
    set_learning_rate(optimizer, PEAKS, 1.0)
    return optimizer


def adamw(model):
    optimizer = build_optimizer(model, OptimConfig())
    set_learning_rate(optimizer, dict.fromkeys(PEAKS, 0.01), 1.0)
    return optimizer


def scaler_of(scale=None):
    return torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)


def step(model, optimizer, batches, scaler=None, loss=LOSS, **settings):
    return Stepper(model, optimizer, scaler or scaler_of(), **settings).step(batches, loss)


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def state_of(model, optimizer):
    """Weights, and all that the optimiser keeps."""
    kept = optimizer.state_dict()["state"]
    return {
        **weights_of(model),
        **{f"{key} {name}": value.clone() for key, values in kept.items() for name, value in values.items()},
    }


def assert_close(ones, others, tolerance=0.0):
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        torch.testing.assert_close(one, others[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# The reference


def loss_at(model, weights, batches, loss=LOSS):
    """The mean over the batches, in one graph."""
    values = []
    for batch in batches:
        inputs = batch.pixels_B3HW, batch.input_ids_CL, batch.attention_mask_CL
        output = torch.func.functional_call(model, weights, inputs)
        values.append(total(loss_terms(output, batch.caption_image_C, loss), loss))
    return sum(values) / len(values)


def gradients_at(model, weights, batches, trained):
    weights = {name: weight.detach().clone().requires_grad_(name in trained) for name, weight in weights.items()}
    loss = loss_at(model, weights, batches)
    wanted = [name for name in weights if name in trained]
    return loss.detach(), dict(zip(wanted, torch.autograd.grad(loss, [weights[n] for n in wanted]), strict=True))


def norm_of(gradients):
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))


def rate(name):
    return PEAKS[{"image_tower": "image", "text_tower": "text"}.get(name.split(".")[0], "head")]


# Several batches


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_has_the_mean_gradient_of_its_batches(build, count):
    model = build().double()
    before, batches = weights_of(model), batches_for(model, count)
    value, expected = gradients_at(model, before, batches, before.keys())
    alone = [gradients_at(model, before, [batch], before.keys())[0] for batch in batches]
    assert len({float(one) for one in alone}) == count  # or the mean would be any of them
    result = step(model, sgd(model), batches)
    assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, expected, 1e-10)
    assert_close(weights_of(model), {n: before[n] - rate(n) * expected[n] for n in before}, 1e-10)
    assert float(result.loss) == pytest.approx(float(value), rel=1e-12)
    assert float(result.grad_norm) == pytest.approx(norm_of(expected), rel=1e-10)


def test_the_terms_of_a_step_are_means_without_weights(build):
    model = build().double()
    batches = batches_for(model, 3)
    with torch.no_grad():
        alone = [loss_terms(model(*vars_of(batch)), batch.caption_image_C, LOSS) for batch in batches]
    result = step(model, sgd(model), batches)
    assert result.terms.keys() == {"info_nce", "hard_negative"}
    for name, value in result.terms.items():
        assert float(value) == pytest.approx(sum(float(terms[name]) for terms in alone) / 3, rel=1e-10)
        assert not value.requires_grad
    weighted = result.terms["info_nce"] + 0.5 * result.terms["hard_negative"]
    assert float(result.loss) == pytest.approx(float(weighted), rel=1e-10)


def vars_of(batch):
    return batch.pixels_B3HW, batch.input_ids_CL, batch.attention_mask_CL


def norms(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def statistics(model):
    return [(m.running_mean.clone(), m.running_var.clone(), int(m.num_batches_tracked)) for m in norms(model)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("sam", [False, True])
def test_batch_norm_moves_once_a_step(build, count, sam):
    model = build(train_batch_norm=True).double()
    batches, old = batches_for(model, count), statistics(model)
    alone = []
    for batch in batches:
        other = copy.deepcopy(model)
        for norm in norms(other):
            norm.momentum = 1.0
        other(*vars_of(batch))
        alone.append(statistics(other))
    step(model, sgd(model), batches, sam=Sam(model, RHO) if sam else None)
    for number, (mean, variance, tracked) in enumerate(statistics(model)):
        assert tracked == old[number][2] + 1
        for index, value in enumerate((mean, variance)):
            expected = 0.9 * old[number][index] + 0.1 * sum(one[number][index] for one in alone) / count
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
            assert not torch.equal(value, old[number][index])


# Clipping


def test_clipping_shortens_the_whole_gradient_and_none_leaves_it(build):
    model = build().double()
    before, batches = weights_of(model), batches_for(model, 2)
    _, gradients = gradients_at(model, before, batches, before.keys())
    norm = norm_of(gradients)
    assert norm > 1
    for clip_norm, share in ((None, 1.0), (0.25, 0.25 / norm), (2 * norm, 1.0)):
        model.load_state_dict(before, strict=False)
        result = step(model, sgd(model), batches, clip_norm=clip_norm)
        expected = {name: weight - rate(name) * share * gradients[name] for name, weight in before.items()}
        assert_close(weights_of(model), expected, 1e-6 * share)
        assert float(result.grad_norm) == pytest.approx(norm, rel=1e-9)  # before clipping


# SAM


STAGES = {
    "all": StageConfig(),
    "heads": StageConfig(image_blocks=0, text_blocks=0),
    "last image block": StageConfig(image_blocks=1, text_blocks=0, heads=False),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "count", "clip_norm"), [(torch.float32, 1e-5, 1, None), (torch.float64, 1e-10, 2, 0.1)]
)
def test_sam_takes_the_gradient_uphill_and_steps_from_where_it_was(build, stage, dtype, tolerance, count, clip_norm):
    model = build().to(dtype)
    set_trainable(model, stage)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights, optimizer, sam = weights_of(model), sgd(model, momentum=0.9), Sam(model, RHO)
    plain, momentum = weights_of(model), {}
    for seed in range(2):
        batches = batches_for(model, count, seed)
        loss, first = gradients_at(model, weights, batches, trained)
        uphill = {n: w + RHO * first[n] / norm_of(first) if n in trained else w for n, w in weights.items()}
        _, second = gradients_at(model, uphill, batches, trained)
        norm = norm_of(second)
        share = 1.0 if clip_norm is None else clip_norm / (norm + 1e-6)
        for name in trained:
            momentum[name] = 0.9 * momentum.get(name, 0.0) + share * second[name]
            weights[name] = weights[name] - rate(name) * momentum[name]
        result = step(model, optimizer, batches, sam=sam, clip_norm=clip_norm)
        assert float(result.loss) == pytest.approx(float(loss), rel=1e-4)
        assert float(result.grad_norm) == pytest.approx(norm, rel=1e-3)
        assert norm_of({name: second[name] - first[name] for name in trained}) > 1e-2 * norm  # or nothing would be seen
    assert_close(weights_of(model), weights, tolerance)
    assert_close({n: w for n, w in weights_of(model).items() if n not in trained}, without(plain, trained))


def without(weights, names):
    return {name: weight for name, weight in weights.items() if name not in names}


# Scaled gradients


@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize(("optimizer", "count"), [(sgd, 1), (adamw, 2)])
def test_a_scaled_step_is_the_unscaled_one(build, sam, count, optimizer):
    results = []
    for scale in (None, 2.0**12):
        model = build(train_batch_norm=True)
        made, scaler = optimizer(model), scaler_of(scale)
        for seed in range(2):
            result = step(
                model,
                made,
                batches_for(model, count, seed),
                scaler,
                sam=Sam(model, RHO) if sam else None,
                clip_norm=0.5,
            )
        results.append((state_of(model, made), float(result.loss), float(result.grad_norm)))
        assert scaler.get_scale() == (scale or 1.0)
    (plain, *figures), (scaled, *others) = results
    assert figures == others  # a power of two changes no digit
    assert_close(plain, scaled)


@pytest.mark.parametrize("sam", [None, "both passes", "second pass"])
@pytest.mark.parametrize(("optimizer", "count"), [(sgd, 1), (adamw, 2)])
def test_an_overflow_skips_the_step_and_lowers_the_scale(build, sam, optimizer, count):
    model = build()
    made, scaler = optimizer(model), scaler_of(2.0**10)
    climb = Sam(model, RHO) if sam else None
    step(model, made, batches_for(model, count), scaler, sam=climb)  # so that there is a state to be spoilt
    before = state_of(model, made)
    scaler.update(2.0**10 if sam == "second pass" else 2.0**127)
    too_far = Sam(model, 1e30) if sam == "second pass" else climb
    steep = LossConfig(info_nce=100.0)
    result = step(model, made, batches_for(model, count, 1), scaler, loss=steep, sam=too_far, clip_norm=1.0)
    assert not math.isfinite(float(result.grad_norm)) and math.isfinite(float(result.loss))
    assert_close(state_of(model, made), before)
    # each pass that overflows halves it
    assert scaler.get_scale() == {None: 2.0**126, "both passes": 2.0**125, "second pass": 2.0**9}[sam]
    # and afterwards it goes on as if that step had not been
    other = build()
    made_other = optimizer(other)
    climb_other = Sam(other, RHO) if sam else None
    scaler.update(2.0**10)
    for seed in (0, 2):
        step(other, made_other, batches_for(other, count, seed), sam=climb_other)
    step(model, made, batches_for(model, count, 2), scaler, sam=climb)
    assert_close(state_of(model, made), state_of(other, made_other))


# Precision and parts


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_is_for_the_towers_and_not_for_the_loss(build, precision, dtype):
    model, exact = build(), build()
    seen = set()
    model.image_head[-1].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    batches = batches_for(model, 2)
    scaler = scaler_of(2.0**10 if precision == "fp16" else None)
    result = step(model, sgd(model), batches, scaler, precision=precision)
    assert seen == {dtype}
    assert result.loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    expected = step(exact, sgd(exact), batches)
    assert float(result.loss) == pytest.approx(float(expected.loss), rel=0.03)
    assert float(result.grad_norm) == pytest.approx(float(expected.grad_norm), rel=0.1)


def test_the_temperature_is_put_back_between_its_bounds(build):
    model = build(temperature=TemperatureConfig(init=50.0, maximum=50.0))
    with torch.no_grad():
        model.temperature.log_scale.fill_(math.log(80.0))
    result = step(model, sgd(model), batches_for(model, 1))
    assert float(result.logit_scale) == pytest.approx(80.0, rel=1e-5)
    assert float(model.logit_scale.detach()) == pytest.approx(50.0, rel=1e-5)


def test_every_part_gets_a_gradient(build):
    model = build(
        temperature=TemperatureConfig(kind="dynamic"),
        shared_head=SharedHeadConfig(kind="residual_mlp", expansion=2),
        logit_bias=-10.0,
    )
    before = weights_of(model)
    step(model, adamw(model), batches_for(model, 2), loss=LossConfig(info_nce=0.0, siglip=1.0))
    still = {name for name, weight in weights_of(model).items() if torch.equal(weight, before[name])}
    assert not still
    assert {"logit_bias", "shared_head.fc1.weight", "temperature.mlp.2.bias"} <= before.keys()
