"""What all parts of a configuration share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Blocks = int | Literal["all"]
Architecture = dict[str, str | int | float | bool]


class Config(BaseModel):
    """Base of every part: immutable, and closed to unknown keys and to values of another type."""

    # numpydoc-style field docstrings become the flags' help texts on the command line.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
