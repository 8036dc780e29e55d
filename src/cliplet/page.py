"""HTML pages that stand alone: styles, charts (SVG) and thumbnails (base64) are inside.

A page loads nothing and runs no script, and a policy in its head forbids both, whatever a caption holds. It follows the
reader's light or dark, and fits a phone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cliplet.data.places import file_name
from cliplet.drawing import Picture, short_reason, thumbnail
from cliplet.files import written_beside
from cliplet.page_style import PAGE, STYLE

GALLERY_SIDE = 192  # pixels of a thumbnail's longer side: shown at two thirds of that, sharp on most screens
DASH = "–"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page. `content` is HTML, already escaped; an empty one leaves the section out."""

    heading: str
    content: str
    anchor: str = ""  # what a link on the page may lead to


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """A picture that a query found."""

    picture: Picture
    score: float
    right: bool
    rank: int | None = None  # its place among the answers where none is given


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """A caption that a query found."""

    text: str
    score: float
    right: bool
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class GalleryQuery:
    """A query, a text or a picture with a heading, and what it found, best first."""

    heading: str
    picture: Picture | None
    note: str
    answers: Sequence[PictureAnswer | TextAnswer]


def write_page(
    file: Path,
    title: str,
    sections: Sequence[Section],
    lead: str = "",
    *,
    generator: str = "cliplet",
    style: str = "",
) -> None:
    """Writes the page beside its place and renames it. `title` and the headings are escaped here; `lead` is HTML that
    stands below the title. `generator`: a mark in the head, within its first 300 letters. `style`: CSS of this page
    alone. Raises OSError where the file cannot be written.
    """
    page = PAGE.substitute(
        title=escape(title),
        generator=escape(generator),
        style=STYLE + style,
        lead=lead,
        sections="".join(_section(section) for section in sections if section.content),
    )
    with written_beside(Path(file)) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")  # half a character must not cost the page


def _section(section: Section) -> str:
    anchor = f' id="{escape(section.anchor)}"' if section.anchor else ""
    return f"<section{anchor}>\n<h2>{escape(section.heading)}</h2>\n{section.content}\n</section>\n"


def number(value: float | None, digits: int = 1) -> str:
    """A number for people; a dash for what is absent or not finite."""
    return DASH if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def bullet_list(items: Iterable[str]) -> str:
    """A list of plain texts; nothing without any."""
    inside = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="notes">{inside}</ul>\n' if inside else ""


def folded(summary: str, content: str, opened: bool = False) -> str:
    """HTML behind a line that unfolds it."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>\n{content}</details>\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table of plain texts; the first cell of a row is its heading. Of a cell with a line break, what follows that is
    set small below. `kind`: numbers stand right in their columns, "texts" left; the word becomes a class.

    Raises ValueError for a row that has not a cell for each of the columns. Without rows: "".
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a table of {len(columns)} columns has rows of {sorted({len(row) for row in rows})} cells")
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{_cell(column)}</th>' if column else "<td></td>" for column in columns)
    body = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>\n" if any(columns) else ""
    return f'<div class="wide"><table class="{escape(kind)}">{head}<tbody>{body}</tbody></table></div>\n'


def _cell(text: str) -> str:
    first, _, below = str(text).partition("\n")
    # Where a phone has no room for an interval in one line, it is broken behind its dash.
    return escape(first) + (f"<small>{escape(below).replace(DASH, f'{DASH}<wbr>')}</small>" if below else "")


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and what is to be said of each; nothing without any."""
    return table(("", ""), [(str(name), str(value)) for name, value in facts.items()], "facts")


def gallery(queries: Sequence[GalleryQuery]) -> str:
    """Each query with its answers; right ones have a frame and the word "right". A picture that cannot be read leaves
    its reason in its place."""
    return "".join(_query(query) for query in queries)


def _query(query: GalleryQuery) -> str:
    items = "".join(_answer(place, answer) for place, answer in enumerate(query.answers, start=1))
    kind = "texts" if query.answers and isinstance(query.answers[0], TextAnswer) else "pictures"
    asked = "" if query.picture is None else f'<div class="asked">{_shown(query.picture, "the query")}</div>'
    heading = f"<h3>{escape(query.heading)}</h3>" if query.heading else ""
    note = f'<p class="note">{escape(query.note)}</p>' if query.note else ""
    answers = f'<ol class="answers {kind}">{items}</ol>' if items else ""
    layout = ' class="with-picture"' if asked else ""
    return f"<article{layout}>{asked}<div>{heading}{note}{answers}</div></article>\n"


def _answer(place: int, answer: PictureAnswer | TextAnswer) -> str:
    rank = answer.rank or place
    far = "" if rank == place else " far"  # others stand between it and the one before
    mark = " <b>✓ right</b>" if answer.right else ""
    score = f'<span class="score">{rank:,}. {number(answer.score, 3)}{mark}</span>'
    kind = f' class="{("right" if answer.right else "") + far}"' if answer.right or far else ""
    if isinstance(answer, TextAnswer):
        return f"<li{kind}>{score}<span>{escape(answer.text)}</span></li>"
    return f"<li{kind}>{_shown(answer.picture, f'answer {rank}')}{score}</li>"


def _shown(picture: Picture, name: str) -> str:
    return embedded(picture, name_of(picture) or name, GALLERY_SIDE)


def name_of(picture: Picture) -> str:
    """The picture's own file name, also of one in an archive; "" for one that is no file."""
    return file_name(str(picture)) if isinstance(picture, (str, Path)) else ""


def embedded(picture: Picture, name: str, side: int = 224) -> str:
    """The thumbnail, its longer side `side` pixels, as an element that needs no other file; or, for a picture that
    cannot be read, the reason."""
    try:
        buffer = io.BytesIO()
        thumbnail(picture, side).save(buffer, "JPEG", quality=78, optimize=True)
    except Exception as error:
        return f'<span class="missing">{escape(short_reason(picture, error))}</span>'
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img loading="lazy" alt="{escape(name)}" title="{escape(name)}" src="data:image/jpeg;base64,{data}">'
