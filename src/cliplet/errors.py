"""The errors a user can meet. Each says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INSTALL_TRAIN = "Install what training needs: pip install -e '.[train]' in cliplet's folder."
INSTALL_OPENVINO = "Install it: pip install -e '.[openvino]' in cliplet's folder."
INSTALL_SCALE = "Install it: pip install -e '.[scale]' in cliplet's folder; .npy needs nothing."


class ClipletError(Exception):
    """Something the user can put right.

    `message` says what was wrong and where; `hint` says what to do. The command line
    prints both without a traceback; a program catches this one class.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(ClipletError):
    """A recipe, a configuration key or a value that does not exist or does not fit."""


class DataError(ClipletError):
    """A data set, annotation file or split that cannot be used."""


class ImageError(DataError):
    """One picture that cannot be used."""


class ModelError(ClipletError):
    """A model folder, weights file or tower that cannot be used."""


class TrainingError(ClipletError):
    """A run that cannot start, go on or be resumed."""


class TextCutWarning(UserWarning):
    """Texts that are longer than a model can read."""


LISTED = 20  # names in a hint at most; nobody reads the 1,500 that timm knows


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that offers the known names closest to `name`, or lists them when none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(close) + "?"
    more = f", ... ({len(known):,} in all)" if len(known) > LISTED else ""
    return "Known: " + ", ".join(known[:LISTED]) + more + "."
