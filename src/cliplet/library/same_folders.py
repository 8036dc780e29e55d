"""Folders of a library that are the same place under several names, as one and a link to it.

They are looked through once, by one of the names; pictures that are known by another name are the same files, and keep
what is known of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cliplet.library.scan import is_left_out
from cliplet.library.store import Known


class Merged(NamedTuple):
    """What is known of pictures, each file once."""

    known: dict[str, Known]
    names: dict[int, str]  # new paths of pictures that were known by another name
    doubles: list[int]  # pictures that are there twice; the one that was added first stays, and has its captions


def other_names(roots: Sequence[str]) -> dict[str, str]:
    """Folders that are the same as another, or lie in another that is looked through anyway, and that one's name.

    One that is not there is left out: nobody knows what it is now.
    """
    real = {root: os.path.realpath(root) for root in sorted(set(roots)) if os.path.isdir(root)}
    chosen: dict[str, str] = {}
    for root in sorted(real, key=lambda root: (root != real[root], root)):  # a link may go; its folder's name stays
        chosen.setdefault(real[root], root)
    names = {}
    for root, place in real.items():
        if chosen[place] != root:
            names[root] = chosen[place]
            continue
        for outer_place, outer in chosen.items():
            if _inside(place, outer_place) and not _inside(root, outer):
                rest = os.path.relpath(place, outer_place)
                if not any(map(is_left_out, Path(rest).parts)):
                    names[root] = os.path.join(outer, rest)
                    break
    return names


def merged(known: Mapping[str, Known], roots: Sequence[str], names: Mapping[str, str]) -> Merged:
    """Pictures under the other names of folders, by those that are looked through."""
    own = tuple(os.path.join(root, "") for root in roots if root not in names)
    files: dict[str, list[tuple[Known, str]]] = {}
    for path, one in known.items():
        root = None if path.startswith(own) else next((root for root in names if _inside(path, root)), None)
        place = path if root is None else names[root] + path[len(root) :]
        files.setdefault(place, []).append((one, path))
    result = Merged({}, {}, [])
    for place, ones in files.items():
        (first, path), *others = sorted(ones)
        result.known[place] = first
        result.doubles.extend(one.id for one, _ in others)
        if path != place:
            result.names[first.id] = place
    return result


def _inside(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))
