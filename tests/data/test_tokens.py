"""Captions as tokens, kept in one array."""

import numpy as np
import pytest

from cliplet.data.tokens import AT_ONCE, TokenizedCaptions
from cliplet.models.tokenizers import train_bpe


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["a red boat on the lake", "two dogs run"] * 2, 300, 12)


def test_tokens_are_the_tokenizers(tokenizer):
    captions = ["a red boat", "", "two dogs run on the lake " * 5, "犬"]
    tokens = TokenizedCaptions(iter(captions), tokenizer)
    assert len(tokens) == 4 and tokens.cut == 1
    for row, ids in enumerate(tokenizer.encode(captions)[0]):
        assert tokens[row].tolist() == ids


def test_padded_together_they_are_what_a_call_gives(tokenizer):
    captions = ["a red boat", "two", "dogs run on the lake"]
    tokens = TokenizedCaptions(captions, tokenizer)
    padded = tokenizer.padded([tokens[row] for row in (2, 0)])
    for ours, whole in zip(padded, tokenizer([captions[2], captions[0]]), strict=True):
        np.testing.assert_array_equal(ours, whole)


def test_more_captions_than_are_encoded_at_once(tokenizer):
    captions = [f"boat {number}" for number in range(AT_ONCE + 7)]
    tokens = TokenizedCaptions(captions, tokenizer)
    assert len(tokens) == len(captions)
    for row in (0, AT_ONCE - 1, AT_ONCE, AT_ONCE + 6):
        assert tokens[row].tolist() == tokenizer.encode([captions[row]])[0][0]


def test_no_captions(tokenizer):
    assert len(TokenizedCaptions([], tokenizer)) == 0
