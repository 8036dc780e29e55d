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


# What a checkpoint of each system may need to be told.
USED = {
    1: ("tokenizer", "image_tower", "text_config"),
    2: ("tokenizer", "image_tower"),
    3: ("tokenizer", "image_tower", "text_config"),
    4: ("tokenizer", "image_tower", "image_config", "text_config"),
    5: ("tokenizer", "vocabulary", "image_tower"),
}


def import_any(
    source: str, system: int | None, options: Options, say: Callable[[str], None] = lambda message: None
) -> DualEncoder:
    """The model of a checkpoint file of `system` (1 to 5), of a Hugging Face folder, or of `open_clip:...`, in
    evaluation mode. `say` hears of tokenizer sources that failed. Raises ModelError.
    """
    if system is not None:
        if system not in SYSTEMS:
            raise ModelError(f"there is no system {system}", f"Known: {', '.join(map(str, SYSTEMS))}.")
        _refuse_unused(options, USED[system], f"a checkpoint of system {system}")
        return import_checkpoint(source, system, options, say)
    if source.startswith(OPEN_CLIP):
        _refuse_unused(options, (), "an OpenCLIP model")
        return open_model(source)
    if Path(source).is_dir():
        _refuse_unused(options, ("tokenizer",), "a Hugging Face folder")
        return import_huggingface(source, options.tokenizer)
    if not Path(source).exists():
        raise ModelError(f"{source}: no such file or folder")
    raise ModelError(f"{source}: is a file, and whose is not known", "Name the system: --system 1 to 5.")


def _refuse_unused(options: Options, used: tuple[str, ...], what: str) -> None:
    """Raises ModelError for an option that would change nothing."""
    unused = [name for name, value in vars(options).items() if value and name not in used]
    if unused:
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise ModelError(f"{what} has no use for {flags}", "Leave it out.")
