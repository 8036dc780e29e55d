"""What towers give for whole sets of pictures and captions, computed into feature stores.

Shapes: B pictures or captions computed at once, L tokens, S image_size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from cliplet.data.feature_store import FeatureStore, pictures_checksum, tensors_checksum, tokens_checksum
from cliplet.data.images import MAX_BYTES, decode
from cliplet.data.loader import TRAIN_SIDES, WHOLE
from cliplet.data.places import read_bytes
from cliplet.data.records import Records
from cliplet.data.tokens import TokenizedCaptions
from cliplet.data.transforms import apply_view
from cliplet.errors import ImageError
from cliplet.models import DualEncoder
from cliplet.models.towers import ImageTower, TextTower
from cliplet.runtime.preprocess import preprocess_image
from cliplet.training.step import autocast

PICTURES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 256

Rows = TypeVar("Rows", range, np.ndarray)
Progress = Callable[[int, int], None]
Pixels = Callable[[str], np.ndarray]  # a picture's place to (S, S, 3) uint8; raises ImageError


def training_pixels(model: DualEncoder) -> Pixels:
    """Pictures as the loader gives them without augmentation: whole, in any case a square."""
    size = model.config.preprocess.image_size

    def pixels(place: str) -> np.ndarray:
        picture = decode(read_bytes(place, MAX_BYTES), int(size * TRAIN_SIDES), place)
        return apply_view(picture.array(), WHOLE, size).numpy()

    return pixels


def evaluation_pixels(model: DualEncoder) -> Pixels:
    """Pictures by the evaluation transform."""
    return partial(preprocess_image, config=model.config.preprocess)


def weights_checksum(tower: ImageTower | TextTower) -> str:
    """Changes when a weight or a buffer of the tower does."""
    return tensors_checksum((name, bits(tensor)) for name, tensor in tower.state_dict().items())


def image_store(
    folder: Path, model: DualEncoder, weights: str, records: Records, view: str, device: torch.device, precision: str
) -> FeatureStore:
    """Where the image tower's features of the records' pictures are kept. `weights` is the tower's checksum, `view`
    says what is done to the pictures."""
    depends_on = {
        "of": "image tower",
        "tower": model.config.image.model_dump(mode="json"),
        "architecture": model.image_tower.architecture,
        "weights": weights,
        "pictures": pictures_checksum(records),
        "view": view,
        "preprocess": model.config.preprocess.model_dump(mode="json"),
        "precision": f"{precision} on {device.type}",
    }
    return FeatureStore(folder, depends_on, model.image_tower.width, len(records))


def text_store(
    folder: Path, model: DualEncoder, weights: str, tokens: TokenizedCaptions, device: torch.device, precision: str
) -> FeatureStore:
    """Where what the text head reads of some captions is kept: a vector a caption, or a state a token."""
    of_tokens = model.text_head_reads_tokens
    depends_on = {
        "of": "text tower, states of tokens" if of_tokens else "text tower",
        "tower": model.config.text.model_dump(mode="json"),
        "architecture": model.text_tower.architecture,
        "weights": weights,
        "tokens": tokens_checksum(tokens),
        "precision": f"{precision} on {device.type}",
    }
    lengths = np.fromiter((max(1, len(tokens[row])) for row in range(len(tokens))), np.int64) if of_tokens else None
    return FeatureStore(folder, depends_on, model.text_tower.width, len(tokens), lengths)


def compute_images(
    store: FeatureStore,
    parts: Sequence[int],
    model: DualEncoder,
    records: Records,
    pixels: Pixels,
    device: torch.device,
    precision: str,
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Computes some parts of a store of pictures; `workers` threads make pixels meanwhile.

    The reason why a picture cannot be read stands in the store. `progress` hears (done, all) of the parts' pictures;
    what it raises ends the work, and whole parts stay. Raises OSError where the disk is full.
    """

    def made(row: int) -> np.ndarray | ImageError:
        try:
            return pixels(records.image(row))
        except ImageError as error:
            return error

    size, done = model.config.preprocess.image_size, 0
    rows = chain.from_iterable(map(store.rows_of, parts))
    total = sum(len(store.rows_of(part)) for part in parts)
    with (
        _in_threads(made, rows, workers, 2 * PICTURES_AT_ONCE) as results,
        _tower(model.image_tower, device, precision),
    ):
        for part in parts:
            outputs, reasons = [], {}
            for block in _blocks(store.rows_of(part), PICTURES_AT_ONCE):
                pixels_BSS3 = np.zeros((len(block), size, size, 3), np.uint8)  # a bad picture is black
                for at, result in enumerate(islice(results, len(block))):
                    if isinstance(result, ImageError):
                        reasons[block[at]] = result.message
                    else:
                        pixels_BSS3[at] = result
                output_BW = model.image_tower_output(torch.from_numpy(pixels_BSS3).permute(0, 3, 1, 2).to(device))
                outputs.append(bits(output_BW))
                done += len(block)
                if progress:
                    progress(done, total)
            store.write(part, np.concatenate(outputs), reasons)


def compute_texts(
    store: FeatureStore,
    parts: Sequence[int],
    model: DualEncoder,
    tokens: TokenizedCaptions,
    device: torch.device,
    precision: str,
    progress: Progress | None = None,
) -> None:
    """Computes some parts of a store of captions; `progress` and what is raised as in `compute_images`."""
    done, total = 0, sum(len(store.rows_of(part)) for part in parts)
    with _tower(model.text_tower, device, precision):
        for part in parts:
            rows = np.asarray(store.rows_of(part))
            # Texts of like length together: a batch is as wide as its longest text.
            order = rows[np.argsort([len(tokens[row]) for row in rows.tolist()], kind="stable")]
            outputs = []
            for block in _blocks(order, CAPTIONS_AT_ONCE):
                ids, mask = model.tokenizer.padded([tokens[row] for row in block.tolist()])
                output = model.text_tower_output(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
                outputs.append(bits(output)[mask.astype(bool)] if store.of_tokens else bits(output))
                done += len(block)
                if progress:
                    progress(done, total)
            by_length = np.concatenate(outputs)
            features = np.empty_like(by_length)
            features[store.places(order) - store.places(rows[:1])[0]] = by_length
            store.write(part, features, {})


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as numpy can hold it: bfloat16 as 16-bit whole numbers, the rest as it is."""
    tensor = tensor.detach().cpu()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, and after it as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def _tower(tower: ImageTower | TextTower, device: torch.device, precision: str) -> Iterator[None]:
    """A tower as it computes while it is frozen."""
    with evaluating(tower), torch.no_grad(), autocast(device, precision):
        yield


@contextmanager
def _in_threads(
    work: Callable[[int], np.ndarray | ImageError], rows: Iterable[int], workers: int, ahead: int
) -> Iterator[Iterator[np.ndarray | ImageError]]:
    """The results of `work` on some rows, in order, made by threads so far ahead."""
    pool, queue, remaining = ThreadPoolExecutor(workers, thread_name_prefix="decode"), deque[Future](), iter(rows)

    def results() -> Iterator[np.ndarray | ImageError]:
        queue.extend(pool.submit(work, row) for row in islice(remaining, ahead))
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(work, row) for row in islice(remaining, 1))

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _blocks(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
