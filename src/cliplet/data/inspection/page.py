"""One HTML file that shows a data set to people: what is wrong with it, its numbers, its pictures, its copies.

What all pages have in common, that they stand alone and run no script, is in `cliplet.page`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.data.inspection.charts import bar_chart, bars_of
from cliplet.data.inspection.findings import Copies, Duplicates, Lengths
from cliplet.data.inspection.result import Inspection
from cliplet.data.inspection.sheet import sampled_rows
from cliplet.data.inspection.table import NOT_ALL_SOUGHT, in_script, kinds, numbers
from cliplet.data.places import file_name
from cliplet.errors import DataError
from cliplet.page import Section, embedded, facts_table
from cliplet.page import write_page as write_html

THUMBNAIL = 200  # pixels of the longer side
PER_SPLIT = 12  # pictures shown
GROUPS = 24  # of copies of each kind
SHOWN = 4  # pictures of a group
LISTED = 100  # findings of a kind
OPEN = 10  # a longer list is folded
CAPTIONS = 5  # of a picture
GENERATOR = "cliplet inspect"
MARK = f'<meta name="generator" content="{GENERATOR}">'


def refuse_foreign(file: Path) -> None:
    """Raises DataError where something stands that must not be overwritten: anything but such a page."""
    if not file.exists():
        return
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            ours = MARK in stream.read(4096)
    except OSError:
        ours = False
    if not ours:
        raise DataError(f"{file}: is there already and is no page of cliplet inspect", "Name another with --page.")


def write_page(inspection: Inspection, file: Path, seed: int = 0) -> None:
    """Writes the page beside its place and renames it. `seed` chooses the pictures that are shown of each split.

    A picture that cannot be read any more leaves its reason in its place. Raises DataError where a file of another
    kind stands, OSError where the file cannot be written.
    """
    refuse_foreign(file)
    sections = [
        Section("Splits", _splits(inspection)),
        Section("Numbers", facts_table(numbers(inspection)) + _charts(inspection)),
        *_copies(inspection),
        Section("Pictures", _pictures(inspection, seed)),
        Section("Captions", _captions(inspection)),
        Section("Files and records", "".join(_problems(inspection))),
    ]
    lead = f'<p class="about">{escape(f"{inspection.path} ({inspection.form})")}</p>\n{_verdict(inspection)}\n'
    title = Path(inspection.path).name or inspection.path
    write_html(file, title, sections, lead, generator=GENERATOR, style=STYLE)


def _verdict(inspection: Inspection) -> str:
    """Leaks first and large, then each kind of finding with its count."""
    found = [f'<li class="bad"><strong>{escape(str(leak))}</strong></li>' for leak in inspection.leaks]
    for title, items, _, style in kinds(inspection):
        if items:
            kind = {"red": "bad", "yellow": "doubtful"}.get(style, "odd")
            found.append(
                f'<li class="{kind}"><a href="#{_anchor(title)}">{escape(title)}</a>: <b>{len(items):,}</b></li>'
            )
    if not inspection.survey.complete:
        found.append(f'<li class="doubtful">{NOT_ALL_SOUGHT}</li>')
    if not found:
        return '<p class="good">Nothing is wrong: every picture decodes, and none stands twice.</p>'
    return f'<ul class="verdict">{"".join(found)}</ul>'


def _splits(inspection: Inspection) -> str:
    made = " (made by cliplet)" if inspection.made_splits else ""
    rows = [
        f'<tr><th scope="row">{escape(split or "(none)")}{made}</th><td>{n.pictures:,}</td><td>{n.captions:,}</td></tr>'
        for split, n in inspection.splits.items()
    ]
    rows.append(f'<tr><th scope="row">all</th><td>{inspection.pictures:,}</td><td>{inspection.captions:,}</td></tr>')
    head = '<tr><td></td><th scope="col">pictures</th><th scope="col">captions</th></tr>'
    return f'<table class="counts"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _charts(inspection: Inspection) -> str:
    texts, looks = inspection.texts, inspection.survey.looks
    shorter = np.minimum(looks.width, looks.height)[looks.good]
    charts = [bar_chart(bars_of(texts.words), "Words a caption", "words")]
    if texts.tokens:
        cut = texts.tokens.context_length
        charts.append(bar_chart(bars_of(texts.tokens.lengths, cut + 1), "Tokens a caption", "tokens", cut))
    if len(texts.per_picture.counts) > 1:
        charts.append(bar_chart(bars_of(texts.per_picture), "Captions a picture", "captions"))
    if len(shorter):
        charts.append(bar_chart(bars_of(_lengths(shorter)), "Shorter side of a picture", "pixels"))
        charts.append(bar_chart(bars_of(_lengths(looks.size[looks.good] // 1024)), "File size", "kB"))
    return f'<div class="charts">{"".join(charts)}</div>'


def _lengths(lengths: np.ndarray) -> Lengths:
    values, counts = np.unique(lengths, return_counts=True)
    return Lengths(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _copies(inspection: Inspection) -> Iterator[Section]:
    for title, items, _, _ in kinds(inspection):
        if items and isinstance(items[0], (Duplicates, Copies)):
            groups = "".join(_group(group) for group in items[:GROUPS])
            groups = f'<div class="groups">{groups}</div>'
            yield Section(f"{title}: {len(items):,}", groups + _more(len(items) - GROUPS), _anchor(title))


def _group(group: Duplicates | Copies) -> str:
    shown = "".join(
        f'<li>{_shown(place.path)}<span class="name"><b class="split">{escape(place.split or "(none)")}</b> '
        f"{escape(file_name(place.path))}</span></li>"
        for place in group.places[:SHOWN]
    )
    return f'<div class="group"><ul class="pictures">{shown}</ul>{_more(len(group.places) - SHOWN)}</div>'


def _more(count: int) -> str:
    return f'<p class="more">and {count:,} more</p>' if count > 0 else ""


def _pictures(inspection: Inspection, seed: int) -> str:
    parts = []
    for split, rows in sampled_rows(inspection, PER_SPLIT, seed).items():
        items = []
        for record in (inspection.survey.source.records[row] for row in rows):
            captions = "".join(f"<p>{escape(caption)}</p>" for caption in record.captions[:CAPTIONS])
            items.append(f"<li>{_shown(record.image)}{captions}{_more(len(record.captions) - CAPTIONS)}</li>")
        whole = inspection.splits[split].pictures
        parts.append(f"<h3>{escape(split or '(no split)')}: {len(rows):,} of {whole:,}</h3>")
        parts.append(f'<ul class="pictures">{"".join(items)}</ul>')
    return "".join(parts)


def _shown(place: str) -> str:
    return embedded(place, file_name(place), THUMBNAIL)


def _captions(inspection: Inspection) -> str:
    texts, parts = inspection.texts, []
    if texts.most_repeated:
        rows = (f"<tr><td>{one.pictures:,}</td><td>{escape(one.caption)}</td></tr>" for one in texts.most_repeated)
        parts.append(f"<h3>Under several pictures: {texts.repeated:,}</h3>")
        head = '<tr><th scope="col">pictures</th><th scope="col">caption</th></tr>'
        parts.append(f'<table class="texts"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>')
    for script, count in texts.other_scripts.items():
        examples = "".join(f"<li>{escape(caption)}</li>" for caption in texts.examples[script])
        parts.append(f"<h3>{escape(in_script(script))}: {count:,}</h3><ul>{examples}</ul>")
    return "".join(parts)


def _problems(inspection: Inspection) -> Iterable[str]:
    for title, items, describe, _ in kinds(inspection):
        if items and not isinstance(items[0], (Duplicates, Copies)):
            yield _details(title, items, describe)


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")


def _details(title: str, items: Sequence[Any], describe: Callable[[Any], str]) -> str:
    shown = "".join(f"<li>{escape(describe(item))}</li>" for item in items[:LISTED])
    summary = f"<summary>{escape(title)}: {len(items):,}</summary>"
    start = f'<details id="{_anchor(title)}"{" open" if len(items) <= OPEN else ""}>'
    return f"{start}{summary}<ul>{shown}</ul>{_more(len(items) - LISTED)}</details>"


STYLE = """
.about, .more { margin: .3rem 0; }
.verdict { list-style: none; margin: 1.25rem 0 0; padding: 0; display: grid; gap: .4rem; }
.verdict li, .good { background: var(--panel); border-left: 4px solid var(--rule); border-radius: 4px; max-width: none;
  padding: .4rem .75rem; overflow-wrap: anywhere; }
.verdict a { color: inherit; text-decoration-color: var(--faint); }
.verdict .bad { border-color: var(--bad); }
.verdict .bad strong { color: var(--bad); }
.verdict .doubtful { border-color: var(--two); }
.good { border-color: var(--good); color: inherit; }
.counts, .texts { font-variant-numeric: tabular-nums; }
.counts td, .counts thead th, .texts td:first-child { text-align: right; }
section > .pictures, .group .pictures { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.pictures li { background: var(--panel); border-radius: 6px; padding: 4px; min-width: 0; }
.pictures p { margin: .35rem .25rem; font-size: .85rem; line-height: 1.35; color: inherit; }
.pictures .more { color: var(--faint); }
.pictures img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.groups { display: grid; gap: .75rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.group { background: var(--panel); border-radius: 6px; padding: 4px; }
.group .pictures { grid-template-columns: 1fr 1fr; gap: 0; }
.name { display: block; font-size: .8rem; color: var(--faint); margin: 4px; overflow-wrap: anywhere; }
.split { color: var(--ink); }
details li { overflow-wrap: anywhere; font-size: .9rem; }
@media (max-width: 34rem) { section > .pictures { grid-template-columns: 1fr 1fr; gap: .4rem; } }
"""
