"""What a run says to people of the folders that it looked through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from cliplet.data.records import writable
from cliplet.library.scan import Scan
from cliplet.library.store import Known

SAID = 3  # folders that cannot be looked through, and files that cannot be read, that are named

Say = Callable[[str], None]


def say_looked(scan: Scan, say: Say) -> None:
    """Of what was passed over."""
    if scan.links_out:
        one = scan.links_out == 1
        lead = "1 link leads" if one else f"{scan.links_out:,} links lead"
        say(f"{lead} out of the folders and {'was' if one else 'were'} not followed (--follow-links does)")
    for problem in scan.problems[:SAID]:
        say(f"{writable(problem.where)}: {problem.reason}; its pictures are kept")
    if len(scan.problems) > SAID:
        say(f"and {len(scan.problems) - SAID:,} folders more, likewise")


def say_missing(scan: Scan, known: Mapping[str, Known], moved: set[int], say: Say) -> None:
    """Of folders that are not there. `moved`: pictures of theirs that were found elsewhere."""
    for root in scan.missing:
        inside = os.path.join(root, "")
        left = sum(path.startswith(inside) and one.id not in moved for path, one in known.items())
        if left:
            kept = f"its {left:,} pictures are kept" if left > 1 else "its one picture is kept"
            say(f"{root}: is not there, or empty now; {kept} (--forget {root} removes {'them' if left > 1 else 'it'})")
        else:
            say(f"{root}: is not there, or empty now; no picture is left in it (--forget {root} forgets the folder)")


def say_same(names: Mapping[str, str], say: Say) -> None:
    """Of folders that are others under another name."""
    for root, name in names.items():
        say(f"{root}: is the same folder as {name}, and is looked through once (--forget {root} forgets this name)")


def say_failed(failed: Iterable[tuple[str, str]], say: Say) -> None:
    """Of files (path, reason) that could not be read."""
    for place, (path, reason) in enumerate(failed):
        if place == SAID:
            break
        say(f"{writable(path)}: {writable(reason)}")
