"""Models of other projects as cliplet models: checkpoints of the five systems, Hugging Face folders, OpenCLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cliplet.errors import ModelError
from cliplet.importing.checkpoints import SYSTEMS, Options, import_checkpoint
from cliplet.importing.huggingface import import_huggingface
from cliplet.models import DualEncoder
from cliplet.models.pretrained import open_model
from cliplet.runtime.engines import OPEN_CLIP

__all__ = ["SYSTEMS", "Options", "import_any", "import_checkpoint", "import_huggingface"]


def import_any(
    source: str, system: int | None, options: Options, say: Callable[[str], None] = lambda message: None
) -> DualEncoder:
    """The model of a checkpoint file of `system` (1 to 5), of a Hugging Face folder, or of `open_clip:...`, in
    evaluation mode. `say` hears of tokenizer sources that failed. Raises ModelError.
    """
    if system is not None:
        if system not in SYSTEMS:
            raise ModelError(f"there is no system {system}", f"Known: {', '.join(map(str, SYSTEMS))}.")
        return import_checkpoint(source, system, options, say)
    if source.startswith(OPEN_CLIP):
        return open_model(source)
    if Path(source).is_dir():
        return import_huggingface(source, options.tokenizer)
    if not Path(source).exists():
        raise ModelError(f"{source}: no such file or folder")
    raise ModelError(f"{source}: is a file, and whose is not known", "Name the system: --system 1 to 5.")
