"""What is to be embedded: files, folders and lists of pictures, or sentences; each a row, in their order."""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from cliplet.data.endings import ENDINGS
from cliplet.data.places import exists
from cliplet.data.records import Problem, Texts
from cliplet.errors import DataError

STANDARD_INPUT = "-"
READ_AT_ONCE = 2**20
UTF8_MARK, UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class Pictures(Sequence[str]):
    """Paths of pictures, with each file's size and time of change: a million take some 75 MB.

    `problems` are folders that could not be listed.
    """

    column = "path"  # what a row's name is called where it is written down

    def __init__(self) -> None:
        self.paths = Texts()
        self.sizes = array("q")  # bytes; -1 where there is no file
        self.times = array("q")  # of the last change, in nanoseconds; -1 where there is no file
        self.problems: list[Problem] = []

    def append(self, path: str) -> None:
        """Adds one at the end, whether the file is there or not."""
        try:
            status = os.stat(path)
            size, time = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # a name that no system takes
            size, time = -1, -1
        self.paths.append(path)
        self.sizes.append(size)
        self.times.append(time)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: Any) -> Any:
        return self.paths[row]

    def fingerprint(self) -> str:
        """A checksum of all paths, sizes and times."""
        digest = hashlib.sha256()
        for path, size, time in zip(self.paths, self.sizes, self.times, strict=True):
            digest.update(os.fsencode(path) + f"\0{size} {time}\n".encode())
        return digest.hexdigest()


class Sentences(Sequence[str]):
    """Sentences, of which an empty one is one too."""

    column = "text"

    def __init__(self, texts: Sequence[str]):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: Any) -> Any:
        return self.texts[row]

    def fingerprint(self) -> str:
        """A checksum of all."""
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(encoded)} ".encode() + encoded)
        return digest.hexdigest()


Inputs = Pictures | Sentences


def find_pictures(named: Iterable[str | Path] = (), listed: Iterable[str | Path] = ()) -> Pictures:
    """The pictures that are meant, in order: those `named`, files whatever their ending and folders with all below
    them, and then those `listed`, files that may be missing. Nothing is left out for being named twice.

    Of a folder: what has the ending of a picture, sorted by path; without hidden files and folders. Links to folders
    are followed, but none twice. Raises DataError where something named is not there, a folder cannot be listed, or
    there is no picture at all.
    """
    pictures = Pictures()
    looked_in = []
    for path in map(str, named):
        if os.path.isdir(path):
            looked_in.append(path)
            for found in _below(path, pictures.problems):
                pictures.append(found)
        elif os.path.exists(path) or exists(path):
            pictures.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    for path in map(str, listed):
        pictures.append(path)
    if not pictures:
        where = f"in {', '.join(looked_in)}" if looked_in else "named or listed"
        raise DataError(f"there are no pictures {where}", f"Pictures in folders are known by {' '.join(ENDINGS)}.")
    return pictures


def _below(folder: str, problems: list[Problem]) -> Iterator[str]:
    """Pictures in the folder and below it, sorted by path."""
    seen: set[tuple[int, int]] = set()  # folders, by device and number: links may lead in circles
    try:
        levels = [(folder, _listed(folder, seen))]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    while levels:
        parent, names = levels[-1]
        if not names:
            levels.pop()
            continue
        path = os.path.join(parent, names.pop())
        if not path.endswith(os.sep):
            yield path
            continue
        try:
            levels.append((path, _listed(path, seen)))
        except OSError as error:
            problems.append(Problem(path, f"cannot be listed: {error.strerror}"))


def _listed(folder: str, seen: set[tuple[int, int]]) -> list[str]:
    """Names of the folder's pictures and folders, the last first; a folder's ends in a slash, by which paths sort."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return []
    seen.add((status.st_dev, status.st_ino))
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name + os.sep)
            elif entry.name.lower().endswith(ENDINGS):
                names.append(entry.name)
    names.sort(reverse=True)
    return names


def read_list(source: str | Path) -> Iterator[str]:
    """Paths from a file, one a line or, as `find -print0` writes them, each ended by a zero byte; `-` is standard
    input. Empty lines are passed over. Raises DataError where it cannot be read."""
    for line in _lines(source, zeros=True):
        if line:
            yield os.fsdecode(line)


def read_sentences(source: str | Path) -> Sentences:
    """Sentences from a file, one a line; `-` is standard input. An empty line is an empty sentence.

    Raises DataError where it cannot be read, and for a line that is not UTF-8.
    """
    texts = Texts()
    for number, line in enumerate(_lines(source, zeros=False), start=1):
        try:
            texts.append(line.decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{_shown(source)}:{number}: is not UTF-8 at byte {error.start + 1}", "Save the file as UTF-8."
            ) from None
    if not len(texts):
        raise DataError(f"{_shown(source)}: holds no sentences")
    return Sentences(texts)


def _lines(source: str | Path, zeros: bool) -> Iterator[bytes]:
    """Lines without their ends, which may be those of Windows; with `zeros`, zero bytes are the ends where there are
    any."""
    standard = str(source) == STANDARD_INPUT
    try:
        with nullcontext(sys.stdin.buffer) if standard else open(source, "rb") as stream:
            yield from _split(stream, zeros, _shown(source))
    except OSError as error:
        raise DataError(f"{_shown(source)}: cannot be read: {error.strerror}") from None


def _split(stream: BinaryIO, zeros: bool, shown: str) -> Iterator[bytes]:
    chunk = stream.read(READ_AT_ONCE)
    if chunk.startswith(UTF16_MARKS):
        raise DataError(f"{shown}: is UTF-16", "Save the file as UTF-8.")
    end = b"\0" if zeros and b"\0" in chunk else b"\n"
    left = chunk.removeprefix(UTF8_MARK)
    while chunk:
        *lines, left = left.split(end)
        yield from (line.removesuffix(b"\r") if end == b"\n" else line for line in lines)
        chunk = stream.read(READ_AT_ONCE)
        left += chunk
    if left:
        yield left


def _shown(source: str | Path) -> str:
    return "standard input" if str(source) == STANDARD_INPUT else str(source)
