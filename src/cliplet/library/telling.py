"""What was found, for people and as JSON."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cliplet.data.records import writable
from cliplet.errors import ClipletError
from cliplet.library.query import Query
from cliplet.library.records import CaptionHit, Hits, Picture

if TYPE_CHECKING:  # a query must not wait for what only --json needs
    from cliplet.results import CaptionsResult, DuplicatesResult, SearchResult


def terms_of(query: Query) -> list[str]:
    """A query's terms, as people write them."""
    shown = []
    for term in query.terms:
        value = f"picture {term.value}" if term.kind == "id" else term.value
        text = value if isinstance(value, str) else f"a picture given as {type(value).__name__}"
        shown.append(
            f"{'-' if term.weight < 0 else '+'} {'' if abs(term.weight) == 1 else f'{abs(term.weight):g} '}{text}"
        )
    return [writable(text) for text in shown]


def search_result(library: str, query: Query, where: str, hits: Hits, seconds: float) -> SearchResult:
    """What was found, as the command gives it."""
    from cliplet.results import FoundPicture, SearchResult

    found = [
        FoundPicture(
            id=str(hit.id),
            path=writable(hit.path),
            score=round(hit.score, 4),
            fit=hit.fit,
            width=hit.picture.width,
            height=hit.picture.height,
            taken=hit.picture.taken,
            caption=hit.caption or next(iter(hit.picture.captions), None),
            copies=[writable(path) for path in hit.copies],
        )
        for hit in hits
    ]
    return SearchResult(
        library=writable(library),
        query=terms_of(query),
        where=where,
        nothing_fits=hits.nothing_fits,
        total=hits.total,
        hits=found,
        seconds=round(seconds, 3),
    )


def search_text(hits: Hits, where: str) -> str:
    """The same for people: a line a picture, score and fit first. Line breaks in names are shown as escapes."""
    if not hits:
        return "no picture passes the filter" if where else "nothing was found"
    lines = [f"{nothing_fits(where)}; the closest are:"] if hits.nothing_fits else []
    for hit in hits:
        count = len(hit.copies)
        copies = f"  (and {count} {'copy' if count == 1 else 'copies'})" if count else ""
        caption = hit.caption or next(iter(hit.picture.captions), "")
        said = f"  {shown(caption)}" if caption else ""
        lines.append(f"{hit.score:6.3f}  {hit.fit:5.1f} %  {shown(writable(hit.path))}{copies}{said}")
    return "\n".join(lines)


def nothing_fits(where: str) -> str:
    """What is said of a query that nothing is close to."""
    return "nothing that passes the filter fits well" if where.strip() else "nothing in the library fits well"


def captions_result(library: str, query: Query, found: Sequence[CaptionHit], seconds: float) -> CaptionsResult:
    """Captions that were found, as the command gives them."""
    from cliplet.results import CaptionsResult, FoundCaption

    captions = [
        FoundCaption(text=one.text, score=round(one.score, 4), fit=one.fit, path=writable(one.path)) for one in found
    ]
    return CaptionsResult(
        library=writable(library), query=terms_of(query), captions=captions, seconds=round(seconds, 3)
    )


def captions_text(result: CaptionsResult, where: str = "") -> str:
    """The same for people."""
    if not result.captions and where.strip():
        return "no caption of a picture that passes the filter"
    if not result.captions:
        return "the library holds no captions (cliplet index --captions FILE adds them)"
    return "\n".join(f"{one.score:6.3f}  {one.fit:5.1f} %  {one.text}" for one in result.captions)


def duplicates_result(library: str, groups: Sequence[Sequence[Picture]], seconds: float) -> DuplicatesResult:
    """Groups of copies, as the command gives them."""
    from cliplet.results import DuplicatesResult

    paths = [[writable(one.path) for one in group] for group in groups]
    return DuplicatesResult(
        library=writable(library), groups=paths, pictures=sum(map(len, paths)), seconds=round(seconds, 3)
    )


def duplicates_text(result: DuplicatesResult) -> str:
    """The same for people: a block of lines a group."""
    if not result.groups:
        return "no two pictures are copies of one another"
    return "\n\n".join("\n".join(map(shown, group)) for group in result.groups)


def shown(path: str) -> str:
    """A name on one line, whatever is in it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in path)


def draw(query: Query, where: str, hits: Hits, file: Path) -> None:
    """A contact sheet of what was found. Raises ClipletError where it cannot be written."""
    from cliplet.drawing import contact_sheet, save_picture

    title = " ".join(terms_of(query)).removeprefix("+ ") + (f"   where {where}" if where else "")
    if hits.nothing_fits:
        title += f"   ({nothing_fits(where)})"
    labels = [f"{hit.score:.3f}   {hit.fit:.0f} %   {hit.caption or Path(hit.path).name}" for hit in hits]
    save_picture(contact_sheet([hit.path for hit in hits], labels, columns=5, title=title), file)


def open_files(paths: Sequence[str]) -> None:
    """In whatever the system opens pictures with. Raises ClipletError where there is nothing."""
    if sys.platform == "win32":
        for path in paths:
            os.startfile(path)
        return
    program = "open" if sys.platform == "darwin" else "xdg-open"
    for path in paths:
        try:
            subprocess.Popen(
                [program, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except FileNotFoundError:
            raise ClipletError(
                f"{program} is not there, by which pictures are opened", "Draw them instead: --sheet FILE.png."
            ) from None
