"""Batch norm over ranks: two processes with parts of a batch, held against one process with the whole batch.

This file is also the program of those processes: `python test_sync_batch_norm.py FOLDER` makes every case of CASES on
its part and writes what came out into FOLDER. The tests make the same cases alone, and compare.
"""

import copy
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn

from cliplet.training.batch_norm import moves_once, normalise_over_ranks, stands_still

RANKS = 2
CHUNKS = ([[0, 1, 2], [3, 4]], [[5, 6], [7]])  # of each rank, the pictures in each chunk: five, and three
WHOLE = [first + second for first, second in zip(*CHUNKS, strict=True)]  # the same for one process

LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(3), (8, 3)),
    "1d of sequences": (lambda: nn.BatchNorm1d(3), (8, 3, 4)),
    "2d": (lambda: nn.BatchNorm2d(3), (8, 3, 4, 5)),
    "3d": (lambda: nn.BatchNorm3d(3), (8, 3, 2, 3, 2)),
    "timm": (lambda: BatchNormAct2d(3), (8, 3, 4, 4)),
    "not affine": (lambda: nn.BatchNorm2d(3, affine=False), (8, 3, 4, 4)),
    "momentum None": (lambda: nn.BatchNorm2d(3, momentum=None), (8, 3, 4, 4)),
    "tracks nothing": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (8, 3, 4, 4)),
}


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, bias=False),
        BatchNormAct2d(4, act_layer=nn.ReLU),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def timm_net():
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=3)


def numbers(*shape, seed=0):
    """Numbers whose mean and deviation differ from picture to picture."""
    generator = torch.Generator().manual_seed(seed)
    each = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=generator) * (1 + each / 4) + each / 2


def over_ranks(model, rank):
    if rank is not None:
        normalise_over_ranks(model)
    return model.train()


def chunks_of(rank):
    return WHOLE if rank is None else CHUNKS[rank]


def rows_of(rank):
    """The pictures of a rank, or, for None, of one process."""
    return sorted(chain(*chunks_of(rank)))


def after(model, x, y):
    """What a step leaves behind. The prefixes say how the ranks' parts make the whole: see `together`."""
    found = {"rows.output": y.detach(), "rows.gradient": x.grad}
    found |= {f"sum.{name}": parameter.grad for name, parameter in model.named_parameters()}
    return found | {f"same.{name}": buffer for name, buffer in model.named_buffers()}


def loss_of(y, rows):
    """A sum over pictures in which every number counts differently."""
    weights = numbers(8, *y.shape[1:], seed=1)[rows].to(y.dtype)
    return (y.sin() * weights).sum()


# Cases: of a rank, or of one process for None


def step(model, x, rank, rows=None):
    """One pass and its gradients."""
    rows = rows or rows_of(rank)
    model = over_ranks(model.to(x.dtype), rank)
    x = x[rows].clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    loss_of(y, rows).backward()
    return after(model, x, y)


def channels_last(rank):
    x = numbers(8, 3, 6, 4).double().to(memory_format=torch.channels_last)
    found = step(nn.BatchNorm2d(3), x, rank)
    last = [found[f"rows.{name}"].is_contiguous(memory_format=torch.channels_last) for name in ("output", "gradient")]
    return found | {"same.format": torch.tensor(last)}


def half_precision(rank):
    """A layer's input and output under autocast are bf16; what comes out is compared as float32."""
    model = over_ranks(nn.BatchNorm2d(3), rank)
    x = (numbers(8, 3, 6, 4) + 20).bfloat16()[rows_of(rank)].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    loss_of(y.float(), rows_of(rank)).backward()
    dtypes = torch.tensor([y.dtype == torch.bfloat16, x.grad.dtype == torch.bfloat16])
    return {name: value.float() for name, value in after(model, x, y).items()} | {"same.dtypes": dtypes}


def one_value(rank, dtype=torch.float64):
    """A rank with one picture of one pixel, which alone has no variance."""
    rows = [0, 1, 2, 3] if rank is None else [[0, 1, 2], [3]][rank]
    return step(nn.BatchNorm1d(3), numbers(8, 3).to(dtype), rank, rows)


def two_passes(rank, recomputed=False):
    """Chunks without gradient, then with, as a step embeds a large batch."""
    model = over_ranks(conv_net().double(), rank)
    xs = [numbers(8, 3, 8, 8).double()[rows].requires_grad_() for rows in chunks_of(rank)]
    with moves_once(model), torch.no_grad():
        first = torch.cat([model(x) for x in xs])
    with stands_still(model):
        if recomputed:
            ys = [torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) for x in xs]
        else:
            ys = [model(x) for x in xs]
        torch.cat(ys).sin().sum().backward()
    order = torch.tensor(list(chain(*chunks_of(rank)))).argsort()
    x = torch.cat(xs)[order]
    x.grad = torch.cat([x.grad for x in xs])[order]
    return after(model, x, torch.cat(ys)[order]) | {"rows.first": first[order]}


def not_a_number(rank):
    """A picture of one rank is no number: nothing moves; the next step moves by its own pictures alone."""
    model = over_ranks(conv_net(), rank)
    before = [buffer.clone() for buffer in model.buffers()]
    x = numbers(8, 3, 8, 8)
    found = {}
    for name in ("bad", "good"):
        bad = name == "bad"
        x[6, 0, 0, 0] = torch.nan if bad else 1
        with moves_once(model) as statistics:
            y = model(x[rows_of(rank)])
            statistics.unless(torch.tensor(bad))
        found[f"same.{name} output is a number"] = y.isfinite().all()
        moved = [not torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True)]
        found[f"same.moved by {name}"] = torch.tensor(moved)
    return found | {f"same.{name}": buffer for name, buffer in model.named_buffers()}


CASES = {
    "float32": lambda rank: step(conv_net(), numbers(8, 3, 8, 8), rank),
    "float64": lambda rank: step(conv_net(), numbers(8, 3, 8, 8).double(), rank),
    "efficientnet": lambda rank: step(timm_net(), numbers(8, 3, 32, 32).double(), rank),
    **{
        f"layer {name}": lambda rank, make=make, shape=shape: step(make(), numbers(*shape).double(), rank)
        for name, (make, shape) in LAYERS.items()
    },
    "channels_last": channels_last,
    "half precision": half_precision,
    "layer in half precision": lambda rank: step(nn.BatchNorm2d(3), numbers(8, 3, 6, 4).bfloat16(), rank),
    "one value": one_value,
    "one value in half precision": lambda rank: one_value(rank, torch.bfloat16),
    "two passes": two_passes,
    "recomputed": lambda rank: two_passes(rank, recomputed=True),
    "not a number": not_a_number,
    "large mean": lambda rank: step(nn.BatchNorm2d(3), numbers(8, 3, 16, 16) + 1000, rank),
}


# Cases that only ranks have


def collectives(rank):
    """How many each part of a training step makes, in a net of two layers."""
    model, x = over_ranks(conv_net(), rank), numbers(8, 3, 8, 8)[rows_of(rank)]
    counts = {}
    with _Count(counts, "training.forward"):
        loss = loss_of(model(x), rows_of(rank))
    with _Count(counts, "training.backward"):
        loss.backward()
    with _Count(counts, "without gradient"), torch.no_grad():
        model(x)
    with _Count(counts, "standing still"), stands_still(model):
        model(x)
    y = model[1](numbers(8, 6, 4, 4))
    with _Count(counts, "backward to its parameters alone"):
        y.sum().backward()
    model[1].eval()
    with _Count(counts, "one layer in eval mode"):
        model(x)
    model.eval()
    untracked = over_ranks(nn.BatchNorm2d(3, track_running_stats=False), rank).eval()
    with _Count(counts, "eval mode"):
        model(untracked(x.requires_grad_())).sum().backward()
    return counts


class _Count:
    def __init__(self, counts, name):
        self.counts, self.name = counts, name

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]).__enter__()

    def __exit__(self, *exception):
        self.profile.__exit__(*exception)
        names = [event.name for event in self.profile.events() if event.name.startswith("c10d::")]
        self.counts[self.name] = torch.tensor(len(names))


def layers_stay_what_they_are(rank):
    plain = conv_net()
    model = copy.deepcopy(plain)
    kept, facts = list(model.modules()), {}
    normalise_over_ranks(model)
    types = [type(module) for module in model.modules()]
    normalise_over_ranks(model)
    facts["as often as one likes"] = [base.__mro__[2:] for base in types] == [
        type(module).__mro__[2:] for module in model.modules()
    ]
    facts["the same objects"] = all(one is other for one, other in zip(kept, model.modules(), strict=True))
    facts["the same keys"] = list(model.state_dict()) == list(plain.state_dict())
    facts["of their class"] = isinstance(model[1], nn.BatchNorm2d) and isinstance(model[4], BatchNormAct2d)
    facts["another class"] = type(model[1]) is not nn.BatchNorm2d
    model.load_state_dict(plain.state_dict(), strict=True)
    clone = copy.deepcopy(model)
    facts["copies have the old class"] = [type(m) for m in clone.modules()] == [type(m) for m in plain.modules()]
    x = numbers(8, 3, 8, 8)[rows_of(rank)]
    facts["copies compute alone"] = torch.equal(clone(x), plain(x)) and not torch.equal(model(x), clone(x))
    own = copy.deepcopy(model)
    alone = [dist.new_group([member]) for member in range(RANKS)][rank]
    normalise_over_ranks(model, alone)
    facts["a group of one rank is plain"] = [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    facts["and computes alone"] = torch.equal(model(x), own(x))
    return {name: torch.tensor(fact) for name, fact in facts.items()}


def without_group(rank):
    """When the ranks have parted; comes last."""
    model = over_ranks(conv_net(), rank)
    x = numbers(8, 3, 8, 8)[rows_of(rank)]
    model(x)
    dist.destroy_process_group()
    plain = copy.deepcopy(model).eval()
    facts = {"eval mode": torch.equal(model.eval()(x), plain(x))}
    try:
        model.train()(x)
        facts["training mode fails"] = False
    except (RuntimeError, ValueError):
        facts["training mode fails"] = True
    return {name: torch.tensor(fact) for name, fact in facts.items()}


RANKS_ONLY = {"collectives": collectives, "stay": layers_stay_what_they_are, "without group": without_group}


# The tests


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found in each case: ranks[rank][case][name]."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, **place},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    names = [*CASES, *RANKS_ONLY]
    return [{name: load_file(folder / f"{name}-{rank}.safetensors") for name in names} for rank in range(RANKS)]


def together(ranks, case):
    """What the ranks found, as one process would have: rows one after another, sums added, the rest the same bits."""
    parts = [found[case] for found in ranks]
    whole = {}
    for name, first in parts[0].items():
        others = [part[name] for part in parts]
        if name.startswith("rows."):
            whole[name] = torch.cat(others)
        elif name.startswith("sum."):
            whole[name] = sum(others)
        else:
            assert all(torch.equal(first, other) for other in others), name
            whole[name] = first
    return whole


def assert_equal(found, expected, tolerance):
    """Equal but for `tolerance` of the largest number of each tensor, or of 0.01 where all should be 0."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        worst = (found[name].double() - value.double()).abs().max()
        assert worst <= tolerance * value.double().abs().max().clamp(min=0.01), (name, worst)


@pytest.mark.parametrize("case", [name for name in CASES if name != "large mean"])
def test_ranks_together_are_one_process(ranks, case):
    tolerance = 1e-11  # what is not named here is in float64
    if case in ("float32", "not a number"):
        tolerance = 1e-5
    elif "half precision" in case:
        tolerance = 0.02
    assert_equal(together(ranks, case), CASES[case](None), tolerance)


def test_half_precision_rounds_the_pictures_but_not_the_statistics(ranks):
    found = together(ranks, "half precision")
    assert found["same.dtypes"].all()
    x = (numbers(8, 3, 6, 4) + 20).bfloat16().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["same.running_mean"].double(), 0.1 * x.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["same.running_var"].double(), 0.9 + 0.1 * x.var(1), rtol=1e-6, atol=0)


def test_a_large_mean_takes_no_digits(ranks):
    found = together(ranks, "large mean")
    exact = step(nn.BatchNorm2d(3), (numbers(8, 3, 16, 16) + 1000).double(), None)
    x = (numbers(8, 3, 16, 16) + 1000).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["same.running_mean"].double(), 0.1 * x.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["same.running_var"].double(), 0.9 + 0.1 * x.var(1), rtol=1e-6, atol=0)
    exact = {name: value.to(found[name].dtype) for name, value in exact.items()}
    assert_equal(found, exact, 1e-4)  # float32 has steps of 6e-5 at 1000


def test_a_step_that_is_skipped_moves_no_statistics_on_any_rank(ranks):
    found = together(ranks, "not a number")
    assert not found["same.bad output is a number"] and not found["same.moved by bad"].any()
    assert found["same.good output is a number"] and found["same.moved by good"].all()


def test_one_exchange_forward_and_one_backward_and_none_in_eval_mode(ranks):
    expected = {"training.forward": 2, "training.backward": 2, "without gradient": 2, "standing still": 2}
    expected |= {"backward to its parameters alone": 0, "one layer in eval mode": 1, "eval mode": 0}
    for found in ranks:
        assert {name: count.item() for name, count in found["collectives"].items()} == expected


@pytest.mark.parametrize("case", ["stay", "without group"])
def test_what_holds_on_every_rank(ranks, case):
    for found in ranks:
        assert [name for name, fact in found[case].items() if not fact] == []


def _main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    for name, case in (CASES | RANKS_ONLY).items():
        started = time.perf_counter()
        found = {name: value.contiguous() for name, value in case(rank).items()}
        save_file(found, folder / f"{name}-{rank}.safetensors")
        print(f"{name}: {time.perf_counter() - started:.2f} s", flush=True)


if __name__ == "__main__":
    # Forked from here, for importing takes far longer than all cases; torch has computed nothing yet.
    children = []
    for number in range(RANKS):
        os.environ["RANK"] = str(number)
        if not (child := os.fork()):
            _main(Path(sys.argv[1]))
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
