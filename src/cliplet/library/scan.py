"""What is new, changed, moved or gone in a library's folders: by size and time first, then by content."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cliplet.data.endings import ENDINGS, HEIC_ENDINGS
from cliplet.data.records import Problem
from cliplet.errors import DataError
from cliplet.library.store import Known

LIBRARY_FILES = {"library.json", "records.sqlite"}  # a folder that holds both is a library, whose pictures are not new


class Seen(NamedTuple):
    """A file that is to be read."""

    path: str
    bytes: int
    changed: int  # its time, in nanoseconds
    id: int | None = None  # of the picture that it was, or is


@dataclass
class Scan:
    """What a look at the folders found."""

    to_read: list[Seen] = field(default_factory=list)
    unchanged: int = 0
    gone: dict[int, str] = field(default_factory=dict)  # pictures, by number, whose files are not there any more
    gone_problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # folders that are not there, or empty now; theirs is kept
    links_out: int = 0  # links that lead out of the folders, and were not followed
    problems: list[Problem] = field(default_factory=list)  # folders that cannot be listed; theirs is kept


def look(
    roots: Sequence[str],
    known: Mapping[str, Known],
    problems: Mapping[str, tuple[int, int]],
    follow_links: bool = False,
) -> Scan:
    """Holds the folders against what is known of them. `problems`: size and time of files that could not be read."""
    scan = Scan()
    walk = _Walk(scan, roots, follow_links)
    there: set[str] = set()
    for root in _outermost(roots):
        before = len(there)
        for path, size, changed in walk.files(root):
            there.add(path)
            one = known.get(path)
            if one is not None and (one.bytes, one.changed) == (size, changed) and one.embedded:
                scan.unchanged += 1
            elif one is not None or problems.get(path) != (size, changed):
                scan.to_read.append(Seen(path, size, changed, one.id if one else None))
        if len(there) == before and not walk.failed(root):
            walk.unknown.append(os.path.join(root, ""))
            if any(path.startswith(walk.unknown[-1]) for path in known):  # what a drive that is not mounted looks like
                scan.missing.append(root)
    kept = tuple(walk.unknown)
    for path, one in known.items():
        if path not in there and not path.startswith(kept):
            scan.gone[one.id] = path
    scan.gone_problems = [path for path in problems if path not in there and not path.startswith(kept)]
    return scan


def check_folders(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Their absolute paths. Raises DataError for what is no folder."""
    checked = []
    for folder in folders:
        path = os.path.abspath(os.path.expanduser(folder))
        if not os.path.isdir(path):
            what = "is a file" if os.path.exists(path) else "is not there"
            raise DataError(f"{folder}: {what}", "Name folders with pictures.")
        checked.append(path)
    return checked


def inside(path: str, folders: Collection[str]) -> bool:
    """Whether a path lies in one of the folders, once links are followed."""
    real = os.path.realpath(path)
    return any(os.path.join(real, "").startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)


def _outermost(roots: Sequence[str]) -> list[str]:
    """Without those that lie in others."""
    return [
        root
        for root in dict.fromkeys(roots)
        if not any(root != other and root.startswith(os.path.join(other, "")) for other in roots)
    ]


class _Walk:
    """A way through folders."""

    def __init__(self, scan: Scan, roots: Sequence[str], follow_links: bool):
        self.scan, self.roots, self.follow_links = scan, roots, follow_links
        self.unknown: list[str] = []  # folders, ending in a slash, of whose content nothing is known
        self._been: set[tuple[int, int]] = set()  # folders, by device and number: links may lead in circles

    def failed(self, root: str) -> bool:
        """Whether the folder itself could not be listed."""
        return os.path.join(root, "") in self.unknown

    def files(self, root: str) -> Iterator[tuple[str, int, int]]:
        """Path, size and time of each picture by its ending, without hidden ones; sorted within a folder."""
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            try:
                files, folders = self._listed(folder)
            except OSError as error:
                self.unknown.append(os.path.join(folder, ""))
                if folder in self.roots:
                    self.scan.missing.append(folder)
                else:
                    self.scan.problems.append(Problem(folder, f"cannot be listed: {error.strerror}"))
                continue
            yield from files
            waiting.extend(reversed(folders))

    def _listed(self, folder: str) -> tuple[list[tuple[str, int, int]], list[str]]:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in self._been:
            return [], []
        self._been.add((status.st_dev, status.st_ino))
        files, folders, names = [], [], set()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.name)
                if entry.name.startswith(".") or (entry.is_symlink() and not self._followed(entry)):
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.lower().endswith((*ENDINGS, *HEIC_ENDINGS)):
                    try:
                        about = entry.stat()
                    except OSError:  # gone since, or a link to nowhere
                        continue
                    files.append((entry.path, about.st_size, about.st_mtime_ns))
        if names >= LIBRARY_FILES:
            return [], []
        return sorted(files), sorted(folders)

    def _followed(self, entry: os.DirEntry[str]) -> bool:
        """A link within the folders leads to what is found there anyway; one out of them is followed when asked."""
        if inside(entry.path, self.roots):
            return False
        if not self.follow_links:
            self.scan.links_out += os.path.exists(entry.path)
        return self.follow_links
