"""Pictures to features, every core busy once: each worker decodes a few pictures and computes their features.

Decoding and computing alternate within a worker, and a worker is one core. So there is no handing over between them,
nothing waits for anything, and there are never more busy threads than cores. B rows of a block, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cliplet.config import PreprocessConfig
from cliplet.data.images import ImageLike
from cliplet.errors import ImageError
from cliplet.runtime.engines import Engine
from cliplet.runtime.pipeline import blocks_of, in_order
from cliplet.runtime.preprocess import preprocess_image


class Block(NamedTuple):
    """Rows that belong together, in their order."""

    features_BD: np.ndarray  # float32; NaN where a picture could not be read
    failed: dict[int, ImageError]  # by row of the block


def encode_blocks(
    engine: Engine,
    preprocess: PreprocessConfig,
    images: Iterable[Any],
    block_size: int,
    embed_dim: int,
    read: Callable[[Any], ImageLike | None] | None = None,
) -> Iterator[Block]:
    """Features of pictures, block by block and in order; `images` is read no further ahead than needed.

    `read` makes a picture of each, in the worker; None is one that needs no features, and a row of NaN. A picture that
    cannot be read is a row of NaN, and named in its block; no other row moves.
    """

    def encode(block: list[Any]) -> Block:
        features_BD = np.full((len(block), embed_dim), np.nan, dtype=np.float32)
        failed: dict[int, ImageError] = {}
        pixels: list[np.ndarray] = []
        rows: list[int] = []
        for row, image in enumerate(block):
            try:
                picture = read(image) if read else image
                if picture is not None:
                    pixels.append(preprocess_image(picture, preprocess))
                    rows.append(row)
            except ImageError as error:
                failed[row] = error
        if rows:
            features_BD[rows] = engine.image_features(np.stack(pixels))
        return Block(features_BD, failed)

    return in_order(encode, blocks_of(images, block_size))
