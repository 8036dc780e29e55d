"""Captions that are given to `cliplet index`, by the real paths of their pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cliplet.errors import DataError
from cliplet.library.lance_tables import sound

Given = str | Path | Mapping[str, Sequence[str]]


def given_captions(given: Given | None, folders: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """Captions by real path: as they are given by path, or from a data set (`read_captions`). None is none."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {os.path.realpath(path): one_line_each(texts) for path, texts in given.items()}
    return read_captions(given, folders)


def read_captions(source: str | Path, folders: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Captions by real path from a data set: an annotation file of any kind that cliplet reads.

    Its pictures are looked for where the data set itself would, and else by their names in the first of `folders`,
    those that are indexed. Raises DataError.
    """
    from cliplet.data.readers import read_source

    images = next(iter(folders), None)
    try:
        records = read_source(source).records
    except DataError:
        if images is None:
            raise
        records = read_source(source, images).records
    return {os.path.realpath(record.image): one_line_each(record.captions) for record in records}


def one_line_each(captions: Sequence[str]) -> tuple[str, ...]:
    """Without line breaks, which separate captions in a library, without empty ones and repetitions; what is no
    character, as half a surrogate pair, stands as its escape, for a store holds UTF-8."""
    lines = (" ".join(sound(caption).split()) for caption in captions)
    return tuple(dict.fromkeys(filter(None, lines)))
