"""Where bad records are written down."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from cliplet.data.records import Problem
from cliplet.errors import DataError


class Quarantine:
    """Bad records, each written once, as JSON lines of `where` and `reason`; safe to use from many threads.

    The file begins anew, and is not there when nothing is bad; with `resume` it goes on. Raises DataError for a file
    of another kind.
    """

    def __init__(self, file: Path | None = None, resume: bool = False):
        self.file = file
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()
        if file is not None and file.is_file():
            written = _written(file)
            if resume:
                self._seen.update(written)
            elif written or not file.stat().st_size:
                file.unlink()
            else:
                raise DataError(f"{file}: is there and is no quarantine file", "Name another file.")

    def add(self, where: str, reason: str) -> None:
        """Write one bad record down, unless it already stands there."""
        self.extend([Problem(where, reason)])

    def extend(self, problems: Iterable[Problem]) -> None:
        """Write many down. Where the file cannot be written, this is said once, and they are counted all the same."""
        with self._lock:
            lines = []
            for problem in problems:
                if problem.where not in self._seen:
                    reason = self._seen[problem.where] = problem.reason.removeprefix(f"{problem.where}: ")
                    lines.append(json.dumps({"where": problem.where, "reason": reason}, ensure_ascii=False) + "\n")
            if self.file is None or not lines:
                return
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                # A name that is not UTF-8 is written as the escapes that JSON has for it.
                with self.file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                    stream.writelines(lines)
            except OSError as error:
                print(f"warning: what is bad cannot be written to {self.file}: {error.strerror}", file=sys.stderr)
                self.file = None

    def __contains__(self, where: str) -> bool:
        return where in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def entries(self) -> list[dict[str, str]]:
        """All that was bad, as in the file."""
        return [{"where": where, "reason": reason} for where, reason in self._seen.items()]

    def problems(self) -> list[Problem]:
        """All that was bad, for the quarantine of another process."""
        return [Problem(where, reason) for where, reason in self._seen.items()]

    def summary(self) -> str:
        """One line for the end of a command; empty when nothing was bad."""
        if not self._seen:
            return ""
        where, reason = next(iter(self._seen.items()))
        place = f" (all in {self.file})" if self.file else ""
        return f"{len(self._seen):,} bad records or files left out{place}; the first: {where}: {reason}"


def _written(file: Path) -> dict[str, str]:
    """Reasons by place from a quarantine file. A line torn by a kill or a full disk is passed over, and ended."""
    text = file.read_text(encoding="utf-8", errors="replace")
    entries = {}
    for line in text.split("\n"):  # not splitlines: names may hold other kinds of line ends
        try:
            entry = json.loads(line)
            entries[str(entry["where"])] = str(entry["reason"])
        except (ValueError, TypeError, KeyError):
            continue
    if text and not text.endswith("\n"):
        with file.open("a", encoding="utf-8") as stream:
            stream.write("\n")
    return entries
