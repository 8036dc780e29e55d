"""What makes training on a CPU fast changes no result."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from cliplet.training.cpu import MatrixAttention

FAULTS = """
import resource, sys, torch
from cliplet.training.cpu import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def step():
    parts = [torch.ones(12_000_000) for _ in range(4)]  # 48 MB each, above what glibc ever keeps by itself
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_memory_that_is_kept_is_not_cleared_again():
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], env=environment, text=True))
        for how in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 5, faults


def inputs(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, 7, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def masks():
    generator = torch.Generator().manual_seed(1)
    there = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    there[1, ..., 4:] = False
    return {"none": None, "bool": there, "bias": torch.randn(2, 7, 7, generator=generator)}


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("mask", masks())
def test_attention_by_matrix_products_is_attention(mask, scale):
    """Held against double precision: as near as numbers of eight bits can be, forward and backward."""
    found, exact = inputs(torch.bfloat16), inputs(torch.bfloat16)
    precise = [one.detach().double().requires_grad_() for one in exact]
    given = masks()[mask]
    with MatrixAttention():
        out = F.scaled_dot_product_attention(*found, attn_mask=given, scale=scale)
    wanted = given if given is None or given.dtype == torch.bool else given.double()
    reference = F.scaled_dot_product_attention(*precise, attn_mask=wanted, scale=scale)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), reference, rtol=0.02, atol=0.02)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    (out.double() * weight).sum().backward()
    (reference * weight).sum().backward()
    for one, other in zip(found, precise, strict=True):
        assert (one.grad.double() - other.grad).norm() < 0.02 * other.grad.norm()


def test_other_precisions_and_causal_attention_are_left_to_torch():
    for dtype, settings in ((torch.float32, {}), (torch.bfloat16, {"is_causal": True})):
        query, key, value = inputs(dtype)
        with MatrixAttention():
            ours = F.scaled_dot_product_attention(query, key, value, **settings)
        assert torch.equal(ours, F.scaled_dot_product_attention(query, key, value, **settings))


def test_dropout_drops_shares_and_keeps_their_mean():
    torch.manual_seed(0)
    query, key, _ = inputs(torch.bfloat16)
    ones = torch.ones(3, 2, 7, 7, dtype=torch.bfloat16)
    with MatrixAttention():
        out = torch.stack([F.scaled_dot_product_attention(query, key, ones, dropout_p=0.5).float() for _ in range(300)])
    assert (out == 0).any() or out.std() > 0.1
    assert abs(float(out.detach().mean()) - 1) < 0.05
