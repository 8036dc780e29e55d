"""Averages of weights: over steps, against a plain loop; between two models, at its ends and in its middle."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from cliplet.config import HeadConfig, PreprocessConfig, TemperatureConfig
from cliplet.errors import ConfigError, ModelError, TrainingError
from cliplet.models import DualEncoder
from cliplet.training.averages import WeightAverage, best_mixture, interpolate

DECAY = 0.6  # reached at the twelfth step, so that the tests see the warm-up and what follows it
YES, NO = torch.tensor(True), torch.tensor(False)


class Network(nn.Module):
    """Everything that a state can hold: a frozen layer, batch norm, a parameter shared by two modules, a mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.inf, -0.0]))
        self.register_buffer("constant", torch.ones(3), persistent=False)
        self.frozen.requires_grad_(False)
        with torch.no_grad():
            self.frozen.weight[0] = -0.0  # equal to 0, but not by its bits

    def forward(self, x):
        return self.second(self.first(self.norm(self.frozen(x)))).square().sum()


def bits(model):
    """A copy of the state, in which -0.0 and 0.0 differ and NaN is itself."""
    return {name: tensor.detach().clone().view(torch.uint8) for name, tensor in whole(model).items()}


def whole(model):
    """The state, its scalars as vectors, which alone can be seen as bytes."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: tensor.reshape(-1) for name, tensor in state.items()}


def assert_same(some, others):
    some, others = bits(some), bits(others)
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        assert torch.equal(tensor, others[name]), f"{name} differs"


def within(average, model):
    """A copy of the model's state with the averages in it."""
    with average.swapped():
        return copy.deepcopy(model.state_dict())


def steps(model, count, seed=1):
    """Trains; after each step it is the caller's turn."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for step in range(count):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).backward()
        optimizer.step()
        yield step


# Averages over steps


def test_it_is_the_plain_loop_with_its_warm_up():
    model = Network()
    average = WeightAverage(model, DECAY)
    expected = {name: tensor.numpy().astype(np.float64) for name, tensor in copy.deepcopy(model.state_dict()).items()}
    for n in steps(model, 20):
        average.update()
        decay = min(DECAY, (1 + n) / (10 + n))
        assert (decay < DECAY) == (n < 13)  # 14 / 23 is the first above it
        for name, tensor in model.state_dict().items():
            with np.errstate(invalid="ignore"):
                expected[name] = decay * expected[name] + (1 - decay) * tensor.numpy()
    averaged = within(average, model)
    moved = 0
    for name, tensor in averaged.items():
        if tensor.is_floating_point() and name != "mask":
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
            moved += not torch.equal(tensor, model.state_dict()[name])
    assert moved == 8  # two of batch norm's parameters and its two statistics, three of the layers, one of them twice
    assert int(averaged["norm.num_batches_tracked"]) == 20


def test_what_stands_still_keeps_its_bits():
    model = Network()
    average = WeightAverage(model, DECAY)
    before = {name: tensor for name, tensor in bits(model).items() if name.startswith(("frozen", "mask"))}
    for _ in steps(model, 30):
        average.update()
    after = bits(within(average, model))
    assert len(before) == 3
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_what_is_frozen_later_is_still_caught_up_with():
    model = Network()
    average = WeightAverage(model, DECAY)
    for _ in steps(model, 5):
        average.update()
    model.first.requires_grad_(False)
    for _ in steps(model, 40):
        average.update()
    averaged = within(average, model)["first.bias"]
    torch.testing.assert_close(averaged, model.first.bias.detach(), rtol=1e-5, atol=1e-7)


def test_a_shared_parameter_moves_once_and_stays_shared():
    model = Network()
    average = WeightAverage(model, DECAY)
    names = average.state_dict()["averages"]
    assert "first.weight" in names and "second.weight" not in names and "constant" not in names
    for _ in steps(model, 3):
        average.update()
    averaged = within(average, model)
    assert torch.equal(averaged["first.weight"], averaged["second.weight"])
    assert model.first.weight is model.second.weight


def test_a_skipped_step_changes_nothing_not_even_the_warm_up():
    ours, theirs = Network(), Network()
    skipping, plain = WeightAverage(ours, DECAY), WeightAverage(theirs, DECAY)
    for step, _ in zip(steps(ours, 6), steps(theirs, 6), strict=True):
        skipping.update(unless=NO)
        plain.update()
        if step % 2:
            kept = copy.deepcopy(ours.state_dict())
            with torch.no_grad():
                ours.norm.running_var.fill_(torch.nan)  # as pictures leave it whose features overflowed
                ours.norm.running_mean.fill_(torch.inf)
                ours.first.weight.add_(1)
            skipping.update(unless=YES)
            ours.load_state_dict(kept)
    assert_same(within(skipping, ours), within(plain, theirs))
    assert int(skipping.state_dict()["steps"]) == 6


def test_without_a_step_it_is_the_model():
    model = Network()
    average = WeightAverage(model, DECAY)
    assert_same(within(average, model), model)
    average.update()
    assert_same(within(average, model), model)


def test_swapped_gives_the_model_back_bit_for_bit():
    model = Network()
    average = WeightAverage(model, DECAY)
    for _ in steps(model, 3):
        average.update()
    before, places = bits(model), [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt), average.swapped():
        assert not torch.equal(bits(model)["first.weight"], before["first.weight"])
        model.first.weight.data.fill_(7)
        raise KeyboardInterrupt
    after = bits(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    assert all(parameter.requires_grad for parameter in model.first.parameters())
    torch.testing.assert_close(within(average, model)["first.weight"], average.state_dict()["averages"]["first.weight"])


def test_averages_in_the_model_are_neither_averaged_nor_swapped_again():
    average = WeightAverage(Network(), DECAY)
    with average.swapped():
        with pytest.raises(RuntimeError, match="averaged with themselves"):
            average.update()
        with pytest.raises(RuntimeError, match="in the model already"), average.swapped():
            pass
    average.update()


def test_training_goes_on_from_a_state_as_if_never_interrupted(tmp_path):
    def run(stop_after):
        model = Network()
        average = WeightAverage(model, DECAY)
        for step in steps(model, 8):
            average.update()
            if step == 3:
                model.first.requires_grad_(False)
            if step == stop_after:
                torch.save({"model": model.state_dict(), "average": average.state_dict()}, tmp_path / "saved.pt")
                saved = torch.load(tmp_path / "saved.pt", weights_only=True)
                for parameter in model.parameters():  # whatever they were
                    parameter.data.zero_()
                model.load_state_dict(saved["model"])
                average = WeightAverage(model, DECAY)
                average.load_state_dict(saved["average"])
        return within(average, model)

    whole = run(stop_after=None)
    assert_same(run(stop_after=5), whole)
    assert_same(run(stop_after=0), whole)


def test_the_state_is_tensors_and_of_this_model_only():
    average = WeightAverage(Network(), DECAY)
    state = average.state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in [state["steps"], *state["averages"].values()])
    torch.save(state, io.BytesIO())
    other = {**state["averages"], "first.bias": torch.zeros(9), "extra": torch.zeros(2)}
    del other["mask"]
    with pytest.raises(TrainingError, match=r"first.bias: \(9,\) -> \(4,\)\n  extra: \(2,\) -> absent\n  mask: absent"):
        average.load_state_dict({**state, "averages": other})


@pytest.mark.parametrize("decay", [0, 1, -0.1, float("nan")])
def test_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match="between 0 and 1"):
        WeightAverage(Network(), decay)


def test_a_dual_encoder_with_its_averages_is_a_model_to_save(tiny_model, tmp_path):
    average = WeightAverage(tiny_model.train(), DECAY)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(1)
    average.update()
    with average.swapped():
        tiny_model.save_pretrained(tmp_path / "model")
    saved = DualEncoder.from_pretrained(tmp_path / "model").state_dict()
    for name, tensor in tiny_model.state_dict().items():
        gap = 0.1 if name in dict(tiny_model.named_parameters()) else 0  # the first step's decay is a tenth
        torch.testing.assert_close(saved[name], tensor - gap if gap else tensor, msg=name)


# Between two models


@pytest.fixture
def pair(tiny_model):
    """A model, and one that was trained from it, but for its image tower's first convolution."""
    tuned = copy.deepcopy(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in tuned.state_dict().items():
            if tensor.is_floating_point() and "conv1" not in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif not tensor.is_floating_point():
                tensor.add_(7)
    first = next(name for name in tiny_model.state_dict() if "conv1" in name and name.endswith("weight"))
    for model in (tiny_model, tuned):
        model.state_dict()[first][0, 0, 0, 0] = -0.0
        model.temperature.log_scale.data.fill_(1.0 if model is tuned else -0.0)
    return tiny_model, tuned


def test_its_ends_are_the_two_bit_for_bit(pair):
    start, tuned = pair
    assert_same(interpolate(start, tuned, 1), tuned)
    floating = {name: tensor for name, tensor in start.state_dict().items() if tensor.is_floating_point()}
    counts = {name: tensor for name, tensor in tuned.state_dict().items() if not tensor.is_floating_point()}
    assert floating and counts
    assert_same(interpolate(start, tuned, 0), {**tuned.state_dict(), **floating, **counts})


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_between_them_it_is_the_weighted_mean(pair, share):
    start, tuned = pair
    before = bits(start), bits(tuned)
    mixed = interpolate(start, tuned, share)
    assert not mixed.training
    theirs, own = start.state_dict(), tuned.state_dict()
    for name, tensor in mixed.state_dict().items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, own[name])
            continue
        expected = (1 - share) * theirs[name].double() + share * own[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6, msg=name)
        if "conv1" in name:
            assert_same({name: tensor}, {name: own[name]})
    torch.testing.assert_close(mixed.logit_scale.detach(), torch.tensor(share).exp())  # from e⁰ to e¹
    for model, kept in zip(pair, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in bits(model).items())


def test_a_model_of_other_drop_out_and_bounds_is_the_same(tiny_model):
    config = tiny_model.config.model_copy(
        update={
            "text": tiny_model.config.text.model_copy(update={"dropout": 0.5}),
            "temperature": TemperatureConfig(init=20, maximum=50),
        }
    )
    tuned = DualEncoder.skeleton(config, tiny_model.tokenizer, None, None)
    assert interpolate(tiny_model, tuned, 0.5).config == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embed_dim": 32}, r"model.embed_dim: 16 -> 32"),
        ({"image_head": HeadConfig(kind="mlp")}, r"model.image_head.kind: linear -> mlp"),
        ({"preprocess": PreprocessConfig(image_size=64)}, r"model.preprocess.image_size: 32 -> 64"),
        ({"logit_bias": -10.0}, r"model.logit_bias: None -> -10.0"),
    ],
    ids=["embed_dim", "head", "pixels", "bias"],
)
def test_another_model_is_refused_by_its_key(tiny_model, changes, says):
    other = DualEncoder.skeleton(tiny_model.config.model_copy(update=changes), tiny_model.tokenizer, None, None)
    with pytest.raises(ModelError, match=says):
        interpolate(tiny_model, other, 0.5)


def test_the_bias_may_have_started_elsewhere(tiny_config, captions):
    models = [DualEncoder.build(tiny_config.model_copy(update={"logit_bias": bias}), captions) for bias in (-8.0, -2.0)]
    assert float(interpolate(*models, 0.5).logit_bias.detach()) == -5.0


def test_another_tokenizer_is_refused_even_of_the_same_size(tiny_model, captions):
    config = tiny_model.config.text
    words = [caption[::-1] for caption in captions]
    other = DualEncoder.build(tiny_model.config.model_copy(update={"text": config}), words)
    with pytest.raises(ModelError, match=r"tokenizer: \d+ -> \d+ entries"):
        interpolate(tiny_model, other, 0.5)


def test_another_number_of_heads_is_refused_though_all_shapes_fit(bert_model):
    """Hugging Face towers say in their architecture what the configuration does not."""
    architecture = {**bert_model.text_tower.architecture, "num_attention_heads": 2, "_name_or_path": "elsewhere"}
    other = DualEncoder.skeleton(bert_model.config, bert_model.tokenizer, None, architecture)
    with pytest.raises(
        ModelError, match=r"start -> tuned\):\n  text tower, num_attention_heads: 4 -> 2\nMix"
    ) as caught:
        interpolate(bert_model, other, 0.5)
    assert "start_from" in caught.value.hint
    same = {**bert_model.text_tower.architecture, "hidden_dropout_prob": 0.5, "_name_or_path": "elsewhere"}
    interpolate(bert_model, DualEncoder.skeleton(bert_model.config, bert_model.tokenizer, None, same), 0.5)


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_that_is_none(pair, share):
    with pytest.raises(ConfigError, match="must lie from 0 to 1"):
        interpolate(*pair, share)


# The best mixture


def closeness_to(target):
    """Metrics that are best where the temperature's logarithm, 0 at the start and 1 when tuned, is `target`."""

    def measure(model):
        return {"rsum": 100 - abs(float(model.logit_scale.detach().log()) - target), "images": 3.0}

    return measure


@pytest.mark.parametrize(("target", "best"), [(0.6, 0.5), (0.0, 0.25), (2.0, 1.0), (0.375, 0.5)])
def test_the_best_share_wins_and_of_equals_the_larger(pair, target, best):
    start, tuned = pair

    def measure(model):
        metrics = closeness_to(target)(model)
        return {**metrics, "rsum": round(metrics["rsum"], 3)}

    found = best_mixture(start, tuned, (0.25, 0.75, 0.5, 0.5), measure)
    assert found.share == best and set(found.metrics) == {0.25, 0.5, 0.75, 1.0}
    assert found.metrics[best]["rsum"] == max(metrics["rsum"] for metrics in found.metrics.values())
    assert_same(found.model, interpolate(start, tuned, best))


def test_the_tuned_model_is_always_tried(pair):
    start, tuned = pair
    share, model, metrics = best_mixture(start, tuned, (), closeness_to(0.0))
    assert (share, model, list(metrics)) == (1.0, tuned, [1.0])
    assert best_mixture(start, tuned, (0.5, 1.0), lambda model: {"rsum": 1.0}).share == 1.0
