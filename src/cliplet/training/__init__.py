"""Training. `train` is the way in; the other files are its parts.

Names are loaded when first used, for the parts need less than the whole: torch alone, where `train` needs every library
that towers come from.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PLACES = {"Interrupted": "cliplet.training.trainer", "Run": "cliplet.training.run", "train": "cliplet.training.run"}
__all__ = [*_PLACES]

if TYPE_CHECKING:
    from cliplet.training.run import Run as Run
    from cliplet.training.run import train as train
    from cliplet.training.trainer import Interrupted as Interrupted


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cliplet.training' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
