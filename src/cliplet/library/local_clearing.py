"""Files in a library's folder that no record speaks of any more."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from cliplet.library.matrix import ROWS, VECTORS

PARTS = ("vectors", "captions", "background")


def clear_files(folder: Path, held: Collection[int], last: int, say: Callable[[str], None]) -> None:
    """Removes files of generations that are not `held`. Those after the `last` one that the records ever spoke of are
    of records that were lost: such vectors may be the only ones there are, and are kept under another name."""
    lost = []
    for file in sorted(folder.glob("*-*.*")):
        part, _, digits = file.name.partition(".")[0].rpartition("-")
        if part not in PARTS or not (digits.isascii() and digits.isdecimal()) or int(digits) in held:
            continue
        if int(digits) > last and file.suffix in (VECTORS, ROWS):
            lost.append((part, digits))
        else:
            file.unlink(missing_ok=True)
    for part, digits in dict.fromkeys(lost):
        kept = _kept(folder, f"{part}-{digits}")
        say(f"{part}-{digits}: the records know nothing of these vectors; they are kept as {kept}{VECTORS}")


def _kept(folder: Path, name: str) -> str:
    """Renames a matrix; returns its name by now."""
    kept, number = f"lost-{name}", 1
    while any((folder / f"{kept}{ending}").exists() for ending in (VECTORS, ROWS)):
        number += 1
        kept = f"lost-{name}.{number}"
    for ending in (VECTORS, ROWS):
        if (folder / f"{name}{ending}").exists():
            (folder / f"{name}{ending}").rename(folder / f"{kept}{ending}")
    return kept
