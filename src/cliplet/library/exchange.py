"""Pictures whose files took each other's names: renumbered, swapped, or kept under another name beside a new one.

A name that is there still and holds something else may be a picture that was edited, or another picture that has its
name now. Only contents tell. So before a run reads and embeds, the files are hashed that may be such pictures by their
size. A picture that is found under another name is set aside: its record gets a name that no file has, and it is then
one whose file is gone, which a run finds again by its content, with its number, captions and date.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cliplet.library.scan import Scan, Seen
from cliplet.library.store import Known, Writer


class Exchange(NamedTuple):
    """What a look at contents found."""

    aside: dict[int, str]  # pictures by number that are not in their files any more, and these files
    claims: dict[str, int]  # files by path, and the pictures that are in them


def exchanged(
    scan: Scan, known: Mapping[str, Known], writer: Writer, content_of: Callable[[str], bytes | None]
) -> Exchange:
    """Which pictures are under other names that were there before. `content_of` a file is None where it cannot be
    read."""
    changed = {seen.id: seen for seen in scan.to_read if seen.id is not None and _is_changed(seen, known)}
    if not changed:
        return Exchange({}, {})
    of_changed = {known[seen.path].bytes for seen in changed.values()}
    of_any = of_changed | {known[path].bytes for path in scan.gone.values()}
    free = {*scan.gone, *changed}  # pictures that may be in other files
    contents: dict[str, bytes] = {}
    for seen in scan.to_read:
        if seen.id is not None and seen.id not in changed:
            continue  # it has no vector, and is as it was
        if seen.bytes not in (of_changed if seen.id is None else of_any):
            continue
        content = content_of(seen.path)
        if seen.id is not None and (content is None or writer.moved(content, {seen.id}) is not None):
            free.discard(seen.id)  # nobody knows, or it is the same as before
        elif content is not None:
            contents[seen.path] = content
    claims: dict[str, int] = {}
    for path, content in contents.items():
        id = writer.moved(content, free)
        if id is not None:
            claims[path] = id
            free.discard(id)
    found = set(claims.values())
    aside = {id: seen.path for id, seen in changed.items() if id in found or seen.path in claims}
    return Exchange(aside, claims)


def name_aside(path: str, id: int) -> str:
    """A name for the record of a picture that was in a file, in the same folder; a hidden one, as no picture has."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{id}.{name}")


def _is_changed(seen: Seen, known: Mapping[str, Known]) -> bool:
    one = known[seen.path]
    return (seen.bytes, seen.changed) != (one.bytes, one.changed)
