"""Large batches in chunks: gradients are those of the whole batch, for every parameter."""

import pytest
import torch
from engine import LOSSES, assert_equal_gradients, batch_of, build, gradients_of, loss_of, sgd

from cliplet.config import LossConfig
from cliplet.training import step as step_module
from cliplet.training.sam import Sam
from cliplet.training.step import Stepper, embed

PICTURES = 12


def stepped(model, chunk_size, loss=LOSSES["info_nce"], batches=None, **settings):
    stepper = Stepper(model, sgd(model), chunk_size=chunk_size, **settings)
    result = stepper.step(batches or [batch_of(model, PICTURES)], loss, (3, 4))
    return result, gradients_of(model)


@pytest.mark.parametrize("temperature", ["learned", "dynamic"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_equal_one_graph_over_the_whole_batch(loss, temperature):
    model = build(temperature, bias=-5.0)
    value = loss_of(model, batch_of(model, PICTURES), loss)
    value.backward()
    whole = gradients_of(model)
    for chunk_size in (None, 12, 4, 3, 1):
        result, chunked = stepped(build(temperature, bias=-5.0), chunk_size, loss)
        assert_equal_gradients(chunked, whole)
        torch.testing.assert_close(result.loss, value.detach(), rtol=1e-5, atol=0)
    assert {"temperature.log_scale", "temperature.mlp.0.weight"} & whole.keys()
    if loss.siglip:
        assert whole["logit_bias"].abs() > 0


def test_a_chunk_size_that_does_not_divide_a_short_batch():
    model = build()
    loss_of(model, batch_of(model, 11), LOSSES["info_nce"]).backward()
    whole = gradients_of(model)
    again = build()
    _, chunked = stepped(again, 4, batches=[batch_of(again, 11)])
    assert_equal_gradients(chunked, whole)


def test_dropout_draws_the_same_masks_in_both_passes(monkeypatch):
    """The reference: the chunks in one graph, each with the random numbers of its seed."""
    seeds = []
    draw = step_module._seed
    monkeypatch.setattr(step_module, "_seed", lambda *parts: seeds.append(draw(*parts)) or seeds[-1])
    _, chunked = stepped(build(dropout=0.4), 4)

    model = build(dropout=0.4)
    batch = batch_of(model, PICTURES)
    features = []
    for part, seed in zip(batch.chunks(3), seeds, strict=True):
        torch.manual_seed(seed)
        features.append(embed(model, part))
    images, texts = (torch.cat(parts) for parts in zip(*features, strict=True))
    scale = model.temperature(images, texts)
    output = step_module.Output(images, texts, scale, None)
    loss = LOSSES["info_nce"]
    step_module.total(step_module.loss_terms(output, batch.caption_image_C, loss), loss).backward()
    assert_equal_gradients(chunked, gradients_of(model))
    assert len(set(seeds)) == 3
    _, none = stepped(build(), 4)
    assert not torch.allclose(none["text_tower.token_embedding.weight"], chunked["text_tower.token_embedding.weight"])


def test_random_numbers_depend_on_the_seed_and_on_nothing_else():
    def once(disturb):
        torch.manual_seed(disturb)
        return stepped(build(dropout=0.4), 4)[1]

    one, other = once(1), once(2)
    for name, gradient in one.items():
        assert torch.equal(gradient, other[name]), name


def test_with_sam():
    """Both passes in chunks: as SAM on the whole batch."""
    whole_model, model = build(), build()
    _, whole = stepped(whole_model, None, sam=Sam(whole_model, 0.3))
    _, chunked = stepped(model, 3, sam=Sam(model, 0.3))
    plain = stepped(build(), None)[1]
    assert_equal_gradients(chunked, whole, 1e-4)  # the climb magnifies rounding
    assert not torch.allclose(plain["image_head.1.weight"], whole["image_head.1.weight"], rtol=1e-2)


def test_several_batches_a_step_are_averaged_and_do_not_compete():
    model = build()
    batches = [batch_of(model, 6, seed) for seed in (0, 1)]
    (sum(loss_of(model, batch, LOSSES["info_nce"]) for batch in batches) / 2).backward()
    whole = gradients_of(model)
    again = build()
    _, chunked = stepped(again, 2, batches=batches)
    assert_equal_gradients(chunked, whole)


def test_running_statistics_move_once_a_step():
    model = build(batch_norm=True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name or "num_" in name}
    stepped(model, 3)
    layer = "image_tower.model.bn1"
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {1}

    chunks = build(batch_norm=True)  # the first layer's statistics of each chunk, one by one
    means = []
    norm = chunks.image_tower.model.bn1
    norm.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        for part in batch_of(chunks, PICTURES).chunks(4):
            embed(chunks, part)
    expected = 0.9 * before[f"{layer}.running_mean"] + 0.1 * torch.stack(means).mean(0)
    torch.testing.assert_close(model.get_buffer(f"{layer}.running_mean"), expected)


def test_frozen_statistics_make_chunks_exact_again():
    loss = LOSSES["info_nce"]
    model = build(batch_norm=False)  # its layers stay in evaluation mode
    loss_of(model, batch_of(model, PICTURES), loss).backward()
    assert_equal_gradients(stepped(build(), 2)[1], gradients_of(model))
    trained = build(batch_norm=True)
    loss_of(trained, batch_of(trained, PICTURES), loss).backward()
    whole, by_chunk = gradients_of(trained), stepped(build(batch_norm=True), 2)[1]
    name = next(name for name in whole if name.startswith("image_tower"))
    whole, by_chunk = whole[name], by_chunk[name]
    assert (by_chunk - whole).norm() > 0.01 * whole.norm()  # they normalise by the chunk, as the documentation says


def test_a_step_without_numbers_changes_nothing():
    model = build(batch_norm=True)
    optimizer = sgd(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = batch_of(model, PICTURES)
    with torch.no_grad():
        model.logit_bias = torch.nn.Parameter(torch.tensor(float("nan")))
    loss = LossConfig(info_nce=0.0, siglip=1.0)
    for chunk_size in (None, 4):
        result = Stepper(model, optimizer, chunk_size=chunk_size).step([batch], loss)
        assert bool(result.skipped)
        for name, tensor in before.items():
            assert torch.equal(model.state_dict()[name], tensor), name


def test_nothing_in_a_step_waits_for_the_device():
    """On a GPU each of these would stop the host until the device is done."""
    waits = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (
                torch.ops.aten._local_scalar_dense,
                torch.ops.aten.nonzero,
                torch.ops.aten.masked_select,
                torch.ops.aten.equal,
            ):
                waits.append(str(func))
            return func(*args, **(kwargs or {}))

    for temperature, chunk_size, loss in (
        ("learned", None, LOSSES["hard negatives"]),
        ("dynamic", 4, LOSSES["first caption"]),
    ):
        model = build(temperature, dropout=0.1, batch_norm=True)
        batch = batch_of(model, PICTURES)
        stepper = Stepper(model, sgd(model), chunk_size=None, clip_norm=1.0, sam=Sam(model, 0.1))
        stepper.chunk_size = chunk_size
        parts = stepper._parts(batch)  # cut on the CPU, before the device has it
        stepper._parts = lambda batch, made=parts: made
        with Watch():
            stepper.step([batch], loss)
    assert waits == []
