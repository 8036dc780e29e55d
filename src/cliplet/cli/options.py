"""A verb's options from the words of the command line."""

from __future__ import annotations

from typing import Any


def parse(options: type, verb: str, words: list[str], description: str) -> Any:
    """The options, as a dataclass; ends the program where the words ask for help or are none of them."""
    import tyro

    return tyro.cli(options, args=words, prog=f"cliplet {verb}", description=description)
