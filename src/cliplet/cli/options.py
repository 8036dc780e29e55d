"""A verb's options from the words of the command line."""

from __future__ import annotations

from typing import Any

from cliplet.errors import ConfigError

LEAST_RESAMPLES = 100  # fewer have no 95 % interval to speak of


def refuse_below(**least: tuple[int | None, int]) -> None:
    """Raises ConfigError for an option, by its name a pair of value and least value, that is below; None is not."""
    for name, (value, lowest) in least.items():
        if value is not None and value < lowest:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {lowest}, got {value}")


def parse(options: type, verb: str, words: list[str], description: str) -> Any:
    """The options, as a dataclass; ends the program where the words ask for help or are none of them."""
    import tyro

    return tyro.cli(options, args=words, prog=f"cliplet {verb}", description=description)
