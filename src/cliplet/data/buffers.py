"""Memory for batches that is used again and again."""

from __future__ import annotations

import weakref

import numpy as np
import torch


class Buffers:
    """Memory for batches, which is used again when nobody holds the batch any more.

    The system clears fresh memory page by page when it is first written to, which takes a quarter of the time of the
    resampling that fills it.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._free: list[np.ndarray] = []

    def take(self) -> torch.Tensor:
        """A tensor of bytes, its values whatever they were."""
        buffer = self._free.pop() if self._free else np.empty(self._shape, np.uint8)
        lent = buffer[:]  # lives as long as any tensor on this memory
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent)
