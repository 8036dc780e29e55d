"""Batches taken apart: every picture keeps its captions, and nothing else changes."""

import numpy as np
import pytest
import torch

from cliplet.data.batch import Batch, as_tensor


@pytest.fixture
def batch():
    """Five pictures with 2, 1, 3, 1, 1 captions of 2, 4, 1, 3, 2, 5, 1, 2 tokens."""
    lengths = torch.tensor([2, 4, 1, 3, 2, 5, 1, 2])
    mask = (torch.arange(5) < lengths[:, None]).long()
    ids = (torch.arange(8)[:, None] * 10 + torch.arange(5)) * mask
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    rows, captions = np.array([7, 3, 9, 0, 4]), np.array([20, 21, 8, 30, 31, 32, 1, 12])
    owners = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
    return Batch(pixels, ids, mask, owners, rows_B=rows, caption_rows_C=captions)


def with_features(batch, of_tokens):
    """The same, as features: of pictures, and of captions or their tokens."""
    ids = batch.input_ids_CL.float()
    text = torch.stack([ids, -ids], -1) if of_tokens else torch.stack([ids[:, 0], -ids[:, 0]], -1)
    mask = batch.attention_mask_CL if of_tokens else None
    image = torch.tensor([[float(row), 1.0] for row in batch.rows_B])
    return Batch(None, None, mask, batch.caption_image_C, image, text, batch.rows_B, batch.caption_rows_C)


def test_sized_by_hand(batch):
    first, second, third = batch.sized(2)
    assert [len(part) for part in (first, second, third)] == [2, 2, 1]
    assert [part.rows_B.tolist() for part in (first, second, third)] == [[7, 3], [9, 0], [4]]
    assert [part.caption_rows_C.tolist() for part in (first, second, third)] == [[20, 21, 8], [30, 31, 32, 1], [12]]
    assert [part.caption_image_C.tolist() for part in (first, second, third)] == [[0, 0, 1], [0, 0, 0, 1], [0]]
    assert first.input_ids_CL.tolist() == [[0, 1, 0, 0], [10, 11, 12, 13], [20, 0, 0, 0]]
    assert first.attention_mask_CL.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert second.input_ids_CL.shape == (4, 5)
    assert third.input_ids_CL.tolist() == [[70, 71]]
    assert third.pixels_B3HW.unique().tolist() == [4]


@pytest.mark.parametrize(
    ("number", "sizes"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (5, [1] * 5), (7, [0, 1, 1, 0, 1, 1, 1])]
)
def test_chunks_are_as_many_as_asked_and_even(batch, number, sizes):
    """More than there are pictures, too: a rank that lacks pictures makes as many as the others."""
    parts = batch.chunks(number)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part.rows_B] == batch.rows_B.tolist()
    assert [row for part in parts for row in part.caption_rows_C] == batch.caption_rows_C.tolist()
    for part in parts:
        assert len(part.pixels_B3HW) == len(part) and len(part.input_ids_CL) == len(part.caption_image_C)
        assert set(part.caption_image_C.tolist()) == set(range(len(part)))


@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_features_are_taken_apart_alike(batch, of_tokens, size):
    """Parts of features are the features of parts."""
    for of_features, plain in zip(with_features(batch, of_tokens).sized(size), batch.sized(size), strict=True):
        expected = with_features(plain, of_tokens)
        assert of_features.pixels_B3HW is None and of_features.input_ids_CL is None
        for name in ("image_BW", "text_states", "caption_image_C"):
            assert torch.equal(getattr(of_features, name), getattr(expected, name)), name
        assert (of_features.attention_mask_CL is None) == (not of_tokens)
        if of_tokens:
            assert torch.equal(of_features.attention_mask_CL, expected.attention_mask_CL)


def test_by_itself_a_batch_counts_its_own(batch):
    plain = Batch(batch.pixels_B3HW, batch.input_ids_CL, batch.attention_mask_CL, batch.caption_image_C)
    assert len(plain) == 5
    assert plain.rows_B.tolist() == list(range(5)) and plain.caption_rows_C.tolist() == list(range(8))
    assert with_features(plain, False).rows_B.tolist() == list(range(5))


def test_to_keeps_values_and_what_is_not_there(batch):
    for one in (batch, with_features(batch, True), with_features(batch, False)):
        moved = one.to(torch.device("cpu"))
        for name, value in vars(one).items():
            other = getattr(moved, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(other, value)
            else:
                assert other is value
        assert moved.device == torch.device("cpu")


def test_bits_become_bfloat16():
    values = torch.tensor([[1.0, -2.5], [3.0e38, 0.0]], dtype=torch.bfloat16)
    stored = values.view(torch.uint16).numpy()
    assert torch.equal(as_tensor(stored), values)
    assert as_tensor(np.ones((2, 3), np.float32)).dtype == torch.float32
