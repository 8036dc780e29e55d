"""How long one question to a library may take, with everything that is asked of the library for it.

Whoever asks sets it around the work; the database looks at it before each query and during it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from cliplet.errors import ConfigError

SECONDS = 10.0


@dataclass(frozen=True)
class Deadline:
    """A moment, by `time.monotonic`, and whether whoever asked still wants to know."""

    end: float
    gave_up: Callable[[], bool]

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return time.monotonic() > self.end or self.gave_up()


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float = SECONDS, gave_up: Callable[[], bool] | None = None) -> Iterator[None]:
    """What is asked in the block, in this thread, ends with ConfigError after so many seconds, or soon after `gave_up`
    says that nobody waits for it any more. Of blocks in each other the earliest end counts."""
    outer, end = _deadline.get(), time.monotonic() + seconds
    held = _deadline.set(
        Deadline(
            min(end, outer.end) if outer else end,
            gave_up or (outer.gave_up if outer else lambda: False),
        )
    )
    try:
        yield
    finally:
        _deadline.reset(held)


def current() -> Deadline | None:
    """The one that holds here; None where work may take as long as it does."""
    return _deadline.get()


def too_late() -> ConfigError:
    """For what did not end in time."""
    return ConfigError("the search takes too long", "Ask for less at once, or with a simpler filter.")
