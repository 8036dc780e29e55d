"""A model folder as a module of sentence-transformers (5.4 or later), which then encodes texts and pictures with it.

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(modules=[ClipletModule("runs/demo/model")])
    model = SentenceTransformer("runs/demo/model", trust_remote_code=True)  # the same, by the folder's modules.json

From its version 6 on, sentence-transformers takes a class of another package from modules.json only with
trust_remote_code. The name of this class has three parts, and such a one it looks for in installed packages alone: no
code out of a model's folder or repository is run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule

from cliplet import model_folder
from cliplet.errors import ClipletError, ImageError, ModelError
from cliplet.runtime.encoder import Encoder, load

PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")  # what sentence-transformers takes for paths


class ClipletModule(InputModule):
    """The only module of a SentenceTransformer: texts and pictures to unit vectors, on whatever engine cliplet chose.

    Texts are strings; pictures are Pillow images, arrays (H, W, 3) uint8, or paths that end like a picture's. One call
    of its `encode` takes either. It is for use: no gradient comes back through it.
    """

    def __init__(self, source: str | Path | Encoder):
        """`source`: whatever `cliplet.load` takes, or what it gave. Raises ModelError."""
        super().__init__()
        self.encoder = source if isinstance(source, Encoder) else load(source)
        # Says where sentence-transformers wants results; the engine has its own place.
        self.register_buffer("place", torch.empty(0), persistent=False)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **settings: Any,
    ) -> ClipletModule:
        """The module of a folder, or of a repository on the hub, as sentence-transformers asks for it."""
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if folder is None:
            raise ModelError(f"{model_name_or_path}: no such model folder, here or on the hub")
        return cls(folder)

    @property
    def modalities(self) -> list[Any]:
        """What may be encoded."""
        return ["text", "image"]

    @property
    def max_seq_length(self) -> int | None:
        """Longest text in tokens; the rest is cut."""
        return getattr(self.encoder.tokenizer, "context_length", None)

    def get_embedding_dimension(self) -> int:
        """Of the vectors."""
        return self.encoder.embed_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **settings: Any) -> dict[str, Any]:
        """Inputs sorted by kind, each with its place among them; decoding and tokenizing are the encoder's."""
        texts, pictures = {}, {}
        for row, one in enumerate(inputs):
            if isinstance(one, dict) and len(one) == 1 and ("text" in one or "image" in one):
                one = next(iter(one.values()))
            if isinstance(one, str) and not _is_picture(one):
                texts[row] = f"{prompt or ''}{one}"
            else:
                pictures[row] = one.cpu().numpy() if isinstance(one, torch.Tensor) else one
        return {"texts": texts, "pictures": pictures}

    def forward(self, features: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` (N, D) float32, row by row of the inputs. Raises ImageError for a picture that
        cannot be read."""
        texts, pictures = features.get("texts", {}), features.get("pictures", {})
        vectors_ND = np.empty((len(texts) + len(pictures), self.encoder.embed_dim), dtype=np.float32)
        if texts:
            vectors_ND[list(texts)] = self.encoder.encode_text(list(texts.values()))
        if pictures:
            vectors_ND[list(pictures)] = self.encoder.encode_image(list(pictures.values()))
        return {**features, "sentence_embedding": torch.from_numpy(vectors_ND).to(self.place.device)}

    def save(self, output_path: str, *arguments: Any, **settings: Any) -> None:
        """Copies the model folder. Raises ClipletError for a model without one."""
        folder, out = Path(self.encoder.source), Path(output_path)
        if not model_folder.is_model_folder(folder):
            raise ClipletError(
                f"{self.encoder.source or 'this model'}: has no folder that could be copied",
                "Save it with cliplet: model.save_pretrained(folder).",
            )
        if out.exists() and out.samefile(folder):
            return
        for name in model_folder.contents(folder)[0]:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)


def _is_picture(text: str) -> bool:
    """Whether a text is a picture's path: a caption that ends in .jpg is none, where no such file is there. Raises
    ImageError for an address, which would otherwise be embedded as a sentence."""
    if text.startswith(("http://", "https://", "data:image/")) and " " not in text:
        if text.startswith("data:") or text.lower().partition("?")[0].endswith(PICTURES):
            raise ImageError(f"{text[:80]}: pictures are not fetched from addresses", "Download it, and give its path.")
        return False
    return text.lower().endswith(PICTURES) and os.path.isfile(text)
