"""One HTML file that shows a data set to people: what is wrong with it, its numbers, its pictures, its copies.

The file stands alone: styles, charts (SVG) and thumbnails (base64) are inside, it loads nothing and runs no script,
and a policy in its head forbids both, whatever a caption holds.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from cliplet.data.inspection.charts import bar_chart, bars_of
from cliplet.data.inspection.findings import Copies, Duplicates, Lengths
from cliplet.data.inspection.result import Inspection
from cliplet.data.inspection.sheet import sampled_rows
from cliplet.data.inspection.table import NOT_ALL_SOUGHT, in_script, kinds, numbers
from cliplet.data.places import file_name
from cliplet.drawing import short_reason, thumbnail
from cliplet.errors import DataError
from cliplet.files import written_beside

THUMBNAIL = 200  # pixels of the longer side
PER_SPLIT = 12  # pictures shown
GROUPS = 24  # of copies of each kind
SHOWN = 4  # pictures of a group
LISTED = 100  # findings of a kind
OPEN = 10  # a longer list is folded
CAPTIONS = 5  # of a picture
MARK = '<meta name="generator" content="cliplet inspect">'


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
    page = PAGE.substitute(
        mark=MARK,
        title=escape(Path(inspection.path).name or inspection.path),
        about=escape(f"{inspection.path} ({inspection.form})"),
        verdict=_verdict(inspection),
        splits=_section("Splits", _splits(inspection)),
        numbers=_section("Numbers", _facts(numbers(inspection)) + _charts(inspection)),
        copies="".join(_copies(inspection)),
        pictures=_section("Pictures", _pictures(inspection, seed)),
        captions=_section("Captions", _captions(inspection)),
        problems=_section("Files and records", "".join(_problems(inspection))),
    )
    with written_beside(file) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")  # half a character must not cost the page


def _section(heading: str, content: str, anchor: str = "") -> str:
    mark = f' id="{anchor}"' if anchor else ""
    return f"<section{mark}>\n<h2>{escape(heading)}</h2>\n{content}\n</section>\n" if content else ""


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


def _facts(facts: Mapping[str, str]) -> str:
    rows = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts.items())
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


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


def _copies(inspection: Inspection) -> Iterator[str]:
    for title, items, _, _ in kinds(inspection):
        if items and isinstance(items[0], (Duplicates, Copies)):
            groups = "".join(_group(group) for group in items[:GROUPS])
            groups = f'<div class="groups">{groups}</div>'
            yield _section(f"{title}: {len(items):,}", groups + _more(len(items) - GROUPS), _anchor(title))


def _group(group: Duplicates | Copies) -> str:
    shown = "".join(
        f'<li>{_embedded(place.path)}<span class="name"><b class="split">{escape(place.split or "(none)")}</b> '
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
            items.append(f"<li>{_embedded(record.image)}{captions}{_more(len(record.captions) - CAPTIONS)}</li>")
        whole = inspection.splits[split].pictures
        parts.append(f"<h3>{escape(split or '(no split)')}: {len(rows):,} of {whole:,}</h3>")
        parts.append(f'<ul class="pictures">{"".join(items)}</ul>')
    return "".join(parts)


def _embedded(place: str) -> str:
    """The thumbnail as an element that needs no other file."""
    name = escape(file_name(place))
    try:
        buffer = io.BytesIO()
        thumbnail(place, THUMBNAIL).save(buffer, "JPEG", quality=80, optimize=True)
    except Exception as error:
        return f'<span class="missing">{escape(short_reason(place, error))}</span>'
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img loading="lazy" alt="{name}" title="{name}" src="data:image/jpeg;base64,{data}">'


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


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
$mark
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --paper: #fff; --ink: #1c2024; --faint: #5c636a; --rule: #d9dce0; --panel: #f5f6f7;
  --one: #1f5fbf; --two: #b4500a; --bad: #b3261e; --good: #137333; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e8eaed; --faint: #a2a9b0; --rule: #363b41;
  --panel: #1f2327; --one: #7fb0ff; --two: #ffab66; --bad: #ff8a80; --good: #6ddb8b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
.about, .more { color: var(--faint); margin: .3rem 0; overflow-wrap: anywhere; }
.verdict { list-style: none; margin: 1.25rem 0 0; padding: 0; display: grid; gap: .4rem; }
.verdict li, .good { background: var(--panel); border-left: 4px solid var(--rule); border-radius: 4px;
  padding: .4rem .75rem; overflow-wrap: anywhere; }
.verdict a { color: inherit; text-decoration-color: var(--faint); }
.verdict .bad { border-color: var(--bad); }
.verdict .bad strong { color: var(--bad); }
.verdict .doubtful { border-color: var(--two); }
.good { border-color: var(--good); }
table { border-collapse: collapse; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { font-weight: 600; }
.counts, .texts { font-variant-numeric: tabular-nums; }
.counts td, .counts thead th, .texts td:first-child { text-align: right; }
.counts tr > :first-child, .facts th { padding-left: 0; }
.facts { width: 100%; }
.facts th { color: var(--faint); font-weight: 400; width: 1%; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem;
  margin-top: 1.5rem; }
figure { margin: 0; }
figcaption { font-weight: 600; }
figure > svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--rule); }
.bar { fill: var(--one); }
.beyond { fill: var(--two); }
.cut { stroke: var(--two); stroke-width: 1.5; stroke-dasharray: 4 3; }
.pictures { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.pictures li { background: var(--panel); border-radius: 6px; padding: 4px; min-width: 0; }
.pictures p { margin: .35rem .25rem; font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
.pictures img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.missing { background: var(--rule); font-size: .8rem; padding: .5rem; overflow: auto; overflow-wrap: anywhere; }
.groups { display: grid; gap: .75rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.group { background: var(--panel); border-radius: 6px; padding: 4px; }
.group .pictures { grid-template-columns: 1fr 1fr; gap: 0; }
.name { display: block; font-size: .8rem; color: var(--faint); margin: 4px; overflow-wrap: anywhere; }
.split { color: var(--ink); }
details { margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
details li { overflow-wrap: anywhere; font-size: .9rem; }
@media (max-width: 34rem) {
  .facts th { white-space: normal; }
  th, td { padding: .4rem .4rem; }
  .pictures { grid-template-columns: 1fr 1fr; gap: .4rem; }
}
</style>
</head>
<body>
<h1>$title</h1>
<p class="about">$about</p>
$verdict
$splits
$numbers
$copies
$pictures
$captions
$problems
</body>
</html>
""")
