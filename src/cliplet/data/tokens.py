"""The captions of a data set as tokens: made once, before the first epoch, and kept in one array."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from cliplet.runtime.tokenizer import Tokenizer

AT_ONCE = 10_000  # captions


class TokenizedCaptions:
    """The token ids of M captions, each cut to the tokenizer's context length: 4 bytes a token.

    `cut` is how many captions are longer. A million captions of a dozen tokens take 50 MB and some seconds.
    """

    def __init__(self, captions: Iterable[str], tokenizer: Tokenizer):
        ids, ends = array("i"), array("q", [0])
        self.cut = 0
        for block in _blocks(captions):
            encoded, cut = tokenizer.encode(block)
            self.cut += cut
            for tokens in encoded:
                ids.extend(tokens)
                ends.append(len(ids))
        self._ids = np.frombuffer(ids, dtype=np.int32) if ids else np.empty(0, np.int32)
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """(L,) int32: the tokens of one caption."""
        return self._ids[self._ends[row] : self._ends[row + 1]]


def _blocks(captions: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(captions)
    while block := list(islice(remaining, AT_ONCE)):
        yield block
