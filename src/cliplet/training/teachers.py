"""Frozen models that a student learns from: any model that can be opened here, and any that OpenCLIP can build.

Shapes: B pictures, C captions, S image_size of a teacher, T its width, L tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cliplet import model_folder
from cliplet.data.batch import Batch, moved
from cliplet.data.records import Records
from cliplet.data.teacher_shards import TeacherInfo
from cliplet.errors import ModelError, TrainingError
from cliplet.files import file_sha256
from cliplet.hub import in_cache, is_hub_name
from cliplet.models import DualEncoder
from cliplet.models.open_clip_native import NativeOpenClip, NativeTokenizer, open_for_features
from cliplet.models.open_clip_weights import SUFFIXES
from cliplet.models.pretrained import folder_with_weights
from cliplet.runtime.engines import OPEN_CLIP, best_model_folder
from cliplet.runtime.tokenizer import Tokenizer
from cliplet.training.step import autocast
from cliplet.training.tower_features import CAPTIONS_AT_ONCE, PICTURES_AT_ONCE


class Teacher:
    """A frozen model on its device. It is no module, so it is in nobody's weights, and nothing of it trains."""

    def __init__(
        self, name: str, weights: str, model: DualEncoder | NativeOpenClip, device: torch.device, precision: str
    ):
        """`name` as the user gave it; `weights`: their sha256, or nothing."""
        self.device, self.precision = device, precision
        self._model = model.requires_grad_(False).eval().to(device)
        pictures = model.config.preprocess
        self.info = TeacherInfo(
            name=name,
            weights=weights,
            tokenizer=_checksum(model.tokenizer),
            image_size=pictures.image_size,
            mean=pictures.mean,
            std=pictures.std,
            embed_dim=model.config.embed_dim,
            logit_scale=_logit_scale(model),
            precision=precision,
        )

    def image_features(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """Unit features (B, T) float32, on the teacher's device, of uint8 pixels of its size, on any device."""
        blocks = pixels_B3SS.split(PICTURES_AT_ONCE)
        with self._computing():
            features = [self._model.encode_image(moved(block, self.device)) for block in blocks]
        return torch.cat(features)

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """Unit features (C, T) float32, on the teacher's device. What is beyond its context length is cut."""
        # Texts of like length together: a block is as wide as its longest text.
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        blocks = [torch.empty(0, self.info.embed_dim, device=self.device)]
        with self._computing():
            for start in range(0, len(order), CAPTIONS_AT_ONCE):
                rows = order[start : start + CAPTIONS_AT_ONCE]
                ids_CL, mask_CL = map(torch.from_numpy, self._model.tokenizer([captions[row] for row in rows]))
                blocks.append(self._model.encode_text(ids_CL.to(self.device), mask_CL.to(self.device)))
        return torch.cat(blocks)[moved(torch.tensor(order, dtype=torch.int64).argsort(), self.device)]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Not inference_mode: what it gives can have no part in a loss with gradients.
        with torch.no_grad(), autocast(self.device, self.precision):
            yield


class LiveTeachers:
    """Teachers that see each batch of a run."""

    def __init__(self, sources: Sequence[str], records: Records, device: torch.device, precision: str):
        """Opens the teachers; `records` are those of the batches. Raises TrainingError where none is named, ModelError
        for one that cannot be opened."""
        if not sources:
            raise TrainingError("no teacher is named", "Name one: --distil.teachers FOLDER.")
        self.teachers = [open_teacher(source, device, precision) for source in sources]
        self._records = records
        self._ends = np.cumsum(records.caption_counts())  # by picture, the place behind its last caption

    @property
    def infos(self) -> tuple[TeacherInfo, ...]:
        """What is known of each teacher, in their order."""
        return tuple(teacher.info for teacher in self.teachers)

    @property
    def sizes(self) -> list[int]:
        """The sides, in pixels, of the pictures that a batch must bring for them, ascending."""
        return sorted({info.image_size for info in self.infos})

    def taught(self, batch: Batch) -> Batch:
        """The batch with each teacher's features of its pictures and captions, on the teachers' device, instead of the
        pixels for them."""
        captions = self._captions(batch.caption_rows_C)
        features = tuple(
            (teacher.image_features(batch.teacher_pixels[teacher.info.image_size]), teacher.text_features(captions))
            for teacher in self.teachers
        )
        return replace(batch, teachers=features, teacher_pixels={})

    def _captions(self, rows_C: np.ndarray) -> list[str]:
        """The captions at these places among those of all records."""
        pictures_C = np.searchsorted(self._ends, rows_C, side="right")
        captions = []
        for picture, row in zip(pictures_C.tolist(), rows_C.tolist(), strict=True):
            own = self._records[picture].captions
            captions.append(own[row - int(self._ends[picture])])  # counted from the end
        return captions


def open_teacher(source: str | Path, device: torch.device, precision: str) -> Teacher:
    """A teacher from a model folder, a run folder, the hub or `open_clip:ARCHITECTURE/PRETRAINED`, computing in
    `precision`: fp32, bf16 or fp16.

    An OpenCLIP model need not be one that cliplet can save: text sides that are Hugging Face models and tokenizers of
    every kind will do, as far as their configuration and files are there. Raises ModelError.
    """
    name, weights = identity(source, fetch=True)
    return Teacher(name, weights, open_for_features(source), device, precision)


def identity(source: str | Path, fetch: bool = False) -> tuple[str, str]:
    """A teacher's name, and the sha256 of its weights file, "" where no file is there or a tag of OpenCLIP's names the
    weights. Loads no model. `fetch`: of a model on the hub, get the weights; by itself only the hub's cache is looked
    at. Raises ModelError for a file that cannot be read, or fetched."""
    is_name = str(source).startswith(OPEN_CLIP) or is_hub_name(source)
    name = str(source) if is_name else os.path.normpath(source)
    if fetch and is_hub_name(source):
        folder_with_weights(source)
    file = _weights_file(name)
    try:
        return name, file_sha256(file) if file.is_file() else ""
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from None


def known_facts(source: str | Path) -> dict[str, object]:
    """What is known of a teacher without opening it, by the names of TeacherInfo: of a model folder, how it takes its
    pictures, and its tokenizer; of another, nothing. Raises ModelError for a damaged folder."""
    folder = _folder_here(source)
    if not model_folder.is_model_folder(folder):
        return {}
    config = model_folder.read_description(folder).model
    tokenizer = Tokenizer.from_file(folder / model_folder.TOKENIZER, config.text.context_length)
    pictures = config.preprocess
    return {
        "image_size": pictures.image_size,
        "mean": pictures.mean,
        "std": pictures.std,
        "tokenizer": _checksum(tokenizer),
    }


def _checksum(tokenizer: Tokenizer | NativeTokenizer) -> str:
    text = tokenizer.to_json() if isinstance(tokenizer, Tokenizer) else tokenizer.on_samples()
    return hashlib.sha256(text.encode()).hexdigest()


def _logit_scale(model: DualEncoder | NativeOpenClip) -> float | None:
    """What the model multiplies cosines with, None where that depends on the batch."""
    if isinstance(model, DualEncoder) and model.config.temperature.kind != "learned":
        return None
    return float(model.logit_scale.detach())


def _weights_file(source: str) -> Path:
    """Where a source's weights lie, if in a local file."""
    if source.startswith(OPEN_CLIP):
        file = Path(source.removeprefix(OPEN_CLIP).partition("/")[2])
        # A bare word is a tag, even where a file is called so.
        return file if len(file.parts) > 1 or file.suffix in SUFFIXES else Path()
    return _folder_here(source) / model_folder.WEIGHTS


def _folder_here(source: str | Path) -> Path:
    """Where a source's model folder is, or would be; the hub is not asked, for a store does without its teachers."""
    known = in_cache(str(source), weights=True) if is_hub_name(source) else None
    return known or best_model_folder(source)
