"""What is new, changed, moved or gone in a library's folders: by size and time first, then by content."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cliplet.data.endings import ENDINGS, HEIC_ENDINGS
from cliplet.data.records import Problem
from cliplet.errors import DataError
from cliplet.library.store import Known

PICTURES = (*ENDINGS, *HEIC_ENDINGS)
# Folders of copies, small pictures and deleted files that NAS systems, Windows and macOS keep beside the pictures.
NOT_FOR_PEOPLE = {
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "__macosx",
}
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
    problems: list[Problem] = field(default_factory=list)  # folders that cannot be looked through; theirs is kept
    hidden: int = 0  # pictures without a vector, in places that cannot be looked at now
    away: dict[int, bool] = field(default_factory=dict)  # pictures in missing folders, and whether they have a vector


def folder_inside(folder: str, roots: Sequence[str]) -> str:
    """Which of the folders another lies in and is found with; empty if none is."""
    for root in roots:
        inside = os.path.join(root, "")
        if folder.startswith(inside) and not any(map(is_left_out, Path(folder[len(inside) :]).parts)):
            return root
    return ""


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
    for root in sorted(set(roots)):  # one that lies in another comes after it, and has been looked through by then
        for path, size, changed in walk.files(root):
            there.add(path)
            one = known.get(path)
            if one is not None and (one.bytes, one.changed) == (size, changed) and one.embedded:
                scan.unchanged += 1
            elif one is not None or problems.get(path) != (size, changed):
                scan.to_read.append(Seen(path, size, changed, one.id if one else None))
    _spare_empty(walk, known, there)
    kept, missing = tuple(walk.unknown), tuple(os.path.join(root, "") for root in scan.missing)
    for path, one in known.items():
        if path in there:
            continue
        if path.startswith(kept) or path in walk.unseen:
            scan.hidden += not one.embedded
            if path.startswith(missing) and _is_not_there(path):
                scan.away[one.id] = one.embedded
        else:
            scan.gone[one.id] = path
    scan.gone_problems = [path for path in problems if path not in there and not path.startswith(kept)]
    return scan


def check_folders(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Their absolute paths. Raises DataError for what is no folder."""
    checked = []
    for folder in folders:
        if not os.fspath(folder):
            raise DataError("a folder is named by nothing", "Name folders with pictures; . is the one where you are.")
        path = os.path.abspath(os.path.expanduser(folder))
        if not os.path.isdir(path):
            what = "is a file" if os.path.exists(path) else "is not there"
            raise DataError(f"{folder}: {what}", "Name folders with pictures.")
        checked.append(path)
    return checked


def _spare_empty(walk: _Walk, known: Mapping[str, Known], there: set[str]) -> None:
    """Keeps what is known of folders in which nothing is now: so looks a drive that is not mounted, wherever its mount
    point lies, below another of the folders too."""
    occupied = {os.path.join(os.path.split(path)[0], "") for path in there}
    for root in sorted(set(walk.roots)):
        inside = os.path.join(root, "")
        if inside.startswith(tuple(walk.unknown)) or any(folder.startswith(inside) for folder in occupied):
            continue
        walk.unknown.append(inside)
        if any(path.startswith(inside) for path in known):
            walk.scan.missing.append(root)


def is_left_out(name: str) -> bool:
    """Whether a folder of this name is not looked into, unless it is named itself: hidden ones, and those that a
    system keeps for itself."""
    return name.startswith(".") or name.lower() in NOT_FOR_PEOPLE


def _is_not_there(path: str) -> bool:
    """Whether there is surely no such file; an error of the disk says nothing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


class _Walk:
    """A way through folders."""

    def __init__(self, scan: Scan, roots: Sequence[str], follow_links: bool):
        self.scan, self.roots, self.follow_links = scan, roots, follow_links
        self.unknown: list[str] = []  # folders, ending in a slash, of whose content nothing is known
        self.unseen: set[str] = set()  # files that are there, and of which nothing can be known
        self._real_roots = tuple(os.path.join(os.path.realpath(root), "") for root in roots)
        self._been: set[tuple[int, int]] = set()  # folders, by device and number: links may lead in circles

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
        refused: list[OSError] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.name)
                if entry.name.startswith("."):
                    continue
                picture = entry.name.lower().endswith(PICTURES)
                try:
                    if entry.is_symlink() and not self._followed(entry, picture):
                        continue
                    if entry.is_dir():
                        if not is_left_out(entry.name):
                            folders.append(entry.path)
                    elif picture:
                        about = entry.stat()
                        if stat.S_ISREG(about.st_mode):  # reading from a pipe may never end
                            files.append((entry.path, about.st_size, about.st_mtime_ns))
                except (FileNotFoundError, NotADirectoryError):  # gone since, or a link to nowhere
                    continue
                except OSError as error:  # it may well be there, as in a folder that can be listed and not entered
                    refused.append(error)
                    self._keep(entry.path, picture)
        if names >= LIBRARY_FILES:
            return [], []
        if refused:
            reason = f"{len(refused):,} of its entries cannot be looked at: {refused[0].strerror}"
            self.scan.problems.append(Problem(folder, reason))
        return sorted(files), sorted(folders)

    def _keep(self, path: str, picture: bool) -> None:
        if picture:
            self.unseen.add(path)
        else:  # it may be a folder
            self.unknown.append(os.path.join(path, ""))

    def _followed(self, entry: os.DirEntry[str], picture: bool) -> bool:
        """A link within the folders leads to what is found there anyway, but for a file in a hidden folder, as of
        git-annex, or one whose own name is no picture's. One out of them is followed when asked."""
        real = os.path.realpath(entry.path)
        roots = [root for root in self._real_roots if os.path.join(real, "").startswith(root)]
        if roots:
            return picture and not os.path.isdir(real) and not any(_is_walked_to(real, root) for root in roots)
        if not self.follow_links:
            self.scan.links_out += os.path.exists(real)
        return self.follow_links


def _is_walked_to(real: str, root: str) -> bool:
    """Whether a file in a folder is found without a link."""
    parts = Path(real[len(root) :]).parts
    return (
        parts[-1].lower().endswith(PICTURES) and not parts[-1].startswith(".") and not any(map(is_left_out, parts[:-1]))
    )
