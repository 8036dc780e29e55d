"""What one step is made from: some pictures and their captions, as pixels and tokens, or as features of frozen towers.

Shapes: B pictures, C captions, K captions drawn for each, L tokens, S image_size, W a tower's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """B pictures and their C captions. The captions of a picture stand together, in the pictures' order.

    In place of the pixels there may be what a frozen image tower makes of them, and in place of the tokens what a
    frozen text tower does: a vector a text, or, for a head that reads tokens, a state a token and the mask.
    """

    pixels_B3HW: torch.Tensor | None  # uint8, channels last in memory
    input_ids_CL: torch.Tensor | None  # int64, padded to the longest of the batch
    attention_mask_CL: torch.Tensor | None  # int64, 1 at real tokens
    caption_image_C: torch.Tensor  # int64, the row of pixels that each caption belongs to
    image_BW: torch.Tensor | None = None  # of the image tower, in the run's precision
    text_states: torch.Tensor | None = None  # of the text tower: (C, W), or (C, L, W), any value at padding
    # On the CPU always; by themselves, the places in the batch.
    rows_B: np.ndarray = None  # type: ignore[assignment]  # int64, the pictures' places in the records
    caption_rows_C: np.ndarray = None  # type: ignore[assignment]  # int64, the captions' among those of all records
    # Of the whole batch: parts of it have none.
    teacher_pixels: dict[int, torch.Tensor] = field(default_factory=dict)  # the same views for teachers, by side length
    teachers: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()  # unit features (B, T), (C, T) of each teacher

    def __post_init__(self) -> None:
        pictures = self.image_BW if self.pixels_B3HW is None else self.pixels_B3HW
        for name, like in (("rows_B", pictures), ("caption_rows_C", self.caption_image_C)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.arange(0 if like is None else len(like)))

    def __len__(self) -> int:
        return len(self.rows_B)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.caption_image_C.device

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, but for pixels of teachers, which those move as they go."""
        parts: dict[str, Any] = {
            name: moved(value, device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        teachers = tuple((moved(image, device), moved(text, device)) for image, text in self.teachers)
        return replace(self, **parts, teachers=teachers)

    def chunks(self, number: int) -> list[Batch]:
        """The batch in so many parts, as even as can be: consecutive pictures, each with its captions and no more
        padding than they need. Parts share the batch's memory, which is to be on the CPU."""
        bounds = [len(self) * part // number for part in range(number + 1)]
        return [self._between(start, stop) for start, stop in pairwise(bounds)]

    def sized(self, size: int) -> Iterator[Batch]:
        """The batch in parts of `size` pictures, the last of what is left; otherwise as `chunks`."""
        return (self._between(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def _between(self, start: int, stop: int) -> Batch:
        """The pictures from one place to before another, with their captions."""
        mask_CL, text = self.attention_mask_CL, self.text_states
        pictures = slice(start, stop)
        captions = slice(*np.searchsorted(self.caption_image_C.numpy(), (start, stop)).tolist())
        longest = 1 if mask_CL is None else int(mask_CL[captions].sum(1).numpy().max(initial=1))
        tokens = (captions, slice(longest))
        return Batch(
            _part(self.pixels_B3HW, pictures),
            _part(self.input_ids_CL, tokens),
            _part(mask_CL, tokens),
            self.caption_image_C[captions] - start,
            _part(self.image_BW, pictures),
            _part(text, captions if text is None or text.ndim == 2 else tokens),
            self.rows_B[pictures],
            self.caption_rows_C[captions],
        )


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device. The copy to a GPU goes from pinned memory, so that it waits for nothing."""
    pin = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)


def _part(tensor: torch.Tensor | None, where: slice | tuple[slice, ...]) -> torch.Tensor | None:
    return None if tensor is None else tensor[where]


def drawn_without_repeat(counts_B: np.ndarray, draws_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of B groups of things, as many as there are draws, uniform in [0, 1), or all of them if they are fewer;
    in random order. Gives their numbers within the groups, and the groups: (C,) and (C,) int64.

    The k-th draw picks among what the ones before it left, in ascending order.
    """
    count, draws = draws_BK.shape
    chosen_BK = np.empty((count, draws), dtype=np.int64)
    for k in range(draws):
        pick_B = (draws_BK[:, k] * (counts_B - k)).astype(np.int64)
        for taken_B in np.sort(chosen_BK[:, :k], axis=1).T:
            pick_B += pick_B >= taken_B
        chosen_BK[:, k] = pick_B
    there_BK = np.arange(draws) < counts_B[:, None]
    return chosen_BK[there_BK], np.repeat(np.arange(count), there_BK.sum(1))


def as_tensor(features: np.ndarray) -> torch.Tensor:
    """Stored features as a tensor; 16-bit whole numbers are the bits of bfloat16, which numpy does not have."""
    tensor = torch.from_numpy(features)
    return tensor.view(torch.bfloat16) if features.dtype == np.uint16 else tensor
