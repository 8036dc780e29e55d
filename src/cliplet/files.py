"""Files that are found whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """A path beside `file`, of the same ending, to write to: it takes the file's name at the end of the block, and is
    gone if the block fails. The folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
    try:
        yield beside
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
