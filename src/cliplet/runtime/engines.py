"""What computes features: one small interface, and PyTorch behind it. Exported graphs are in `graphs.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cliplet import model_folder
from cliplet.errors import INSTALL_TRAIN, ModelError

if TYPE_CHECKING:
    import torch

    from cliplet.models import DualEncoder
    from cliplet.models.open_clip_native import NativeOpenClip


OPEN_CLIP = "open_clip:"  # begins the name of an OpenCLIP model, where a folder might stand


def best_model_folder(source: str | Path) -> Path:
    """The model folder that is meant: `source` itself, or in a run folder the one of its best model."""
    folder = Path(source)
    inner = folder / "model"
    return inner if not model_folder.is_model_folder(folder) and model_folder.is_model_folder(inner) else folder


class Engine(Protocol):
    """Computes features for whole batches. B images, C captions, L tokens, D embed_dim, S image_size.

    May be called by many threads at once. An engine may say in `image_batch` and `text_batch` how many inputs it likes
    to get at once, and in `describe(tower)` what it is.
    """

    def image_features(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        """uint8 pixels to unit features (B, D) float32."""
        ...

    def text_features(self, input_ids_CL: np.ndarray, attention_mask_CL: np.ndarray) -> np.ndarray:
        """int64 ids and mask to unit features (C, D) float32."""
        ...

    @property
    def logit_scale(self) -> float | None:
        """What the model multiplies cosines by; None where that is unknown, or depends on the batch."""
        ...


class TorchTower:
    """One tower of a torch engine, where nothing else computes an exported model rightly."""

    def __init__(self, engine: TorchEngine, tower: str):
        self.name = engine.describe(tower)
        self._compute = engine.image_features if tower == "image" else engine.text_features

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        return self._compute(*inputs)


class TorchEngine:
    """A model of torch as an engine: in evaluation mode while it computes, and back as it was after.

    It uses all cores for each batch, so batches take turns.
    """

    image_batch = 64
    text_batch = 256

    def __init__(self, model: DualEncoder | NativeOpenClip, precision: str = "fp32"):
        self.model = model
        self.precision = precision
        self._turn = threading.Lock()

    @classmethod
    def open(cls, source: str | Path, precision: str = "auto") -> TorchEngine:
        """Opens a model folder, a run folder or `open_clip:...`, on the GPU, if there is one; in fp32, unless
        `precision` is bf16. Raises ModelError without torch, or for a bad folder."""
        try:
            from cliplet.models.open_clip_native import open_for_features
        except ModuleNotFoundError as error:
            raise ModelError(
                f"opening {source} needs the package {error.name}, which is not installed",
                f"{INSTALL_TRAIN} Or export the model where that is: cliplet export {source}; it then runs without.",
            ) from None
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(open_for_features(source).to(device), "bf16" if precision == "bf16" else "fp32")

    def describe(self, tower: str) -> str:
        """What computes a tower's features."""
        return f"torch in {self.precision} on {next(self.model.parameters()).device.type}"

    def image_features(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        import torch

        pixels_B3SS = torch.from_numpy(pixels_BSS3).permute(0, 3, 1, 2)
        return self._run(lambda device: self.model.encode_image(pixels_B3SS.to(device)))

    def text_features(self, input_ids_CL: np.ndarray, attention_mask_CL: np.ndarray) -> np.ndarray:
        import torch

        ids, mask = torch.from_numpy(input_ids_CL), torch.from_numpy(attention_mask_CL)
        return self._run(lambda device: self.model.encode_text(ids.to(device), mask.to(device)))

    @property
    def logit_scale(self) -> float | None:
        temperature = getattr(self.model.config, "temperature", None)  # OpenCLIP's own models have no such setting
        if temperature is not None and temperature.kind != "learned":
            return None
        return float(self.model.logit_scale.detach())

    def _run(self, compute: Callable[[torch.device], torch.Tensor]) -> np.ndarray:
        import torch

        device = next(self.model.parameters()).device
        with self._turn:
            training = self.model.training
            self.model.eval()
            try:
                bf16 = self.precision == "bf16"
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    return compute(device).cpu().numpy()
            finally:
                self.model.train(training)
