"""cliplet makes small CLIPs: train, measure and use compact image-text dual encoders.

Public names are loaded when first used, so that `import cliplet` is quick and never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "load": "cliplet.runtime.encoder",
    "Encoder": "cliplet.runtime.encoder",
    "Library": "cliplet.library",
    "DualEncoder": "cliplet.models",
    "train": "cliplet.training",
    "evaluate": "cliplet.evaluation",
    "ClipletError": "cliplet.errors",
}
__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:
    from cliplet.errors import ClipletError as ClipletError
    from cliplet.evaluation import evaluate as evaluate
    from cliplet.library import Library as Library
    from cliplet.models import DualEncoder as DualEncoder
    from cliplet.runtime.encoder import Encoder as Encoder
    from cliplet.runtime.encoder import load as load
    from cliplet.training import train as train


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cliplet' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
