"""Captions that are given to `cliplet index`, by the real paths of their pictures."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cliplet.data.records import Problem, writable
from cliplet.errors import DataError
from cliplet.library.lance_tables import sound

Given = str | Path | Mapping[str, Sequence[str]]
NAMED = 3  # pictures that are not in the library, that are said by name


@dataclass
class GivenCaptions:
    """Captions, and what is to be said of them afterwards."""

    source: str = "the captions"  # what they are from, for people
    by_path: dict[str, tuple[str, ...]] = field(default_factory=dict)  # real paths
    rows: list[tuple[str, str]] = field(default_factory=list)  # each picture as it was named, and its real path or ""
    problems: list[Problem] = field(default_factory=list)  # what could not be used

    def give(self, name: str, path: str, captions: Sequence[str]) -> None:
        """Captions of a picture; of one that was named twice, all."""
        self.rows.append((name, path))
        if path:
            self.by_path[path] = tuple(dict.fromkeys((*self.by_path.get(path, ()), *one_line_each(captions))))

    def without_picture(self, unused: Collection[str]) -> list[str]:
        """Names of pictures that are not in the library. `unused`: real paths of those that are there as files."""
        return [name for name, path in self.rows if not path or path in unused]

    def told(self, unused: Collection[str]) -> list[str]:
        """The same for people, and what could not be used."""
        lines, missing = [], self.without_picture(unused)
        if missing:
            more = ", ..." if len(missing) > NAMED else ""
            are = "is" if len(missing) == 1 else "are"
            lines.append(
                f"{self.source}: {len(missing):,} of its {len(self.rows):,} pictures {are} not in the library: "
                f"{', '.join(map(writable, missing[:NAMED]))}{more}"
            )
        if self.problems:
            first = self.problems[0]
            count = "1 caption or line" if len(self.problems) == 1 else f"{len(self.problems):,} captions or lines"
            lines.append(
                f"{self.source}: {count} could not be used; the first: {writable(f'{first.where}: {first.reason}')}"
            )
        return lines


def given_captions(
    given: Given | None, new_folders: Sequence[str] = (), folders: Sequence[str] = ()
) -> GivenCaptions | None:
    """Captions as they are given by path, or from a data set (`read_captions`). None is none."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        result = GivenCaptions()
        for path, texts in given.items():
            result.give(str(path), os.path.realpath(path), texts)
        return result
    return read_captions(given, list(dict.fromkeys((*new_folders, *folders))))


def read_captions(source: str | Path, folders: Sequence[str]) -> GivenCaptions:
    """Captions from a data set: an annotation file of any kind that cliplet reads.

    Each picture is looked for by itself: where the data set itself would, from the current folder on, then in each of
    the library's `folders`. The first file that lies in one of these is meant, else the first that there is. Raises
    DataError where none of the pictures is a file.
    """
    from cliplet.data.readers import read_source

    inside = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)
    result = GivenCaptions(source=Path(source).name)
    rows: list[tuple[str, str, tuple[str, ...]]] = []  # each picture's name, real path or "", and captions
    refused: DataError | None = None
    beside = str(Path(source).expanduser().absolute().parent)
    for images in (None, os.curdir, *filter(os.path.isdir, folders)):
        try:
            found = read_source(source, images)
        except DataError as error:
            if "pictures are not there" not in error.message:
                raise
            refused = refused or error
            continue
        start = os.path.abspath(images) if images else beside
        result.problems = found.problems
        rows = rows or [(_named(record.image, start), "", record.captions) for record in found.records]
        for number, record in enumerate(found.records):
            name, path, captions = rows[number]
            if not path.startswith(inside) and os.path.isfile(record.image):
                real = os.path.realpath(record.image)
                if not path or real.startswith(inside):
                    rows[number] = name, real, captions
        if all(path.startswith(inside) for _, path, _ in rows):
            break
    if refused is not None and not rows:
        raise DataError(
            refused.message,
            "Pictures are looked for by the paths that the file names, beside it, and in the folders of the library.",
        )
    for row in rows:
        result.give(*row)
    return result


def _named(path: str, start: str) -> str:
    """A picture as a data set names it that was read from a folder."""
    whole = os.path.abspath(path)
    return whole[len(start) + 1 :] if whole.startswith(os.path.join(start, "")) else path


def one_line_each(captions: Sequence[str]) -> tuple[str, ...]:
    """Without line breaks, which separate captions in a library, without empty ones and repetitions; what is no
    character, as half a surrogate pair, stands as its escape, for a store holds UTF-8."""
    lines = (" ".join(sound(caption).split()) for caption in captions)
    return tuple(dict.fromkeys(filter(None, lines)))
