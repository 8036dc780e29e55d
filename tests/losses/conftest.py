"""Made-up features, made-up logits, and who owns which caption."""

import pytest
import torch
from torch.nn import functional as F

OWNERS = {
    "one caption each": [0, 1, 2, 3, 4],
    "two captions each": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "different numbers": [0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4],
    "shuffled": [3, 0, 4, 1, 1, 2, 0, 3],
    "a picture without captions": [0, 0, 1, 3, 4],
    "a picture that owns nearly all": [2, 2, 0, 2, 2, 2, 2],
}


@pytest.fixture(params=OWNERS.values(), ids=list(OWNERS))
def owner(request):
    """For each caption the row of its picture, one of five."""
    return list(request.param)


@pytest.fixture
def features():
    """Unit rows from a seed."""

    def make(rows, dim=16, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1)

    return make


@pytest.fixture
def with_logits():
    """Image and text features whose products at scale 1 are the given matrix, so that single logits can be set."""

    def make(logits):
        logits = torch.as_tensor(logits, dtype=torch.float64)
        return torch.eye(len(logits), dtype=torch.float64), logits.T

    return make


@pytest.fixture
def slow_logits():
    """The logits as lists of numbers, without a matrix product."""

    def make(image, text, scale):
        return [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in text.tolist()] for i in image.tolist()]

    return make
