"""One HTML file that shows two models side by side: differences, and the queries that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from cliplet.charts import Interval, bars_with_intervals
from cliplet.console import counted
from cliplet.evaluation.compare import (
    DIRECTIONS,
    SEVERAL,
    Comparison,
    ComparisonResult,
    Query,
    difference_cells,
    metric_name,
    short_names,
)
from cliplet.evaluation.gallery import picture_query, text_query
from cliplet.evaluation.measure import Evaluation
from cliplet.page import (
    GalleryQuery,
    Section,
    bullet_list,
    facts_table,
    gallery,
    name_of,
    paragraph,
    table,
    write_page,
)

QUERIES = 8  # of each direction and each side
SHOWN = 5  # first answers of each
STYLE = """
.versus { border-top: 1px solid var(--rule); padding: 1rem 0 .25rem; }
.versus article { margin: 0 0 .75rem; }
.versus .two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 1.5rem; }
.versus .asked img { max-width: 9rem; }
"""
HEADINGS = {
    ("text_to_image", "A"): "Texts whose picture A finds sooner",
    ("text_to_image", "B"): "Texts whose picture B finds sooner",
    ("image_to_text", "A"): "Pictures whose captions A finds sooner",
    ("image_to_text", "B"): "Pictures whose captions B finds sooner",
}


def write_comparison_page(
    file: Path, comparison: Comparison, result: ComparisonResult, command: str = "", queries: int = QUERIES
) -> None:
    """Writes the page beside its place and renames it. `result`: of the comparison, for its names. `command`: what made
    the page. `queries`: how many are shown at most of each direction and for each side. Raises OSError where the file
    cannot be written.
    """
    name_a, name_b = short_names(result.a, result.b)
    sections = [
        Section("Differences", _differences(comparison)),
        Section("Query by query", _wins(comparison)),
        *_galleries(comparison, queries),
        Section("Facts", facts_table(_facts(comparison, result, command))),
    ]
    lead = paragraph(f"A is {result.a}. B is {result.b}.") + bullet_list(comparison.verdict())
    write_page(file, f"{name_a} and {name_b} on {Path(result.data).name}", sections, lead, style=STYLE)


def _differences(comparison: Comparison) -> str:
    cells = (difference_cells(name, one) for name, one in comparison.differences.items())
    rows = [(name, a, b, f"{difference}\n{interval}", p) for name, a, b, difference, interval, p in cells]
    bars = [
        Interval(metric_name(name), one.difference, one.low, one.high)
        for name, one in comparison.differences.items()
        if "_R@" in name
    ]
    return (
        bars_with_intervals(bars, "B − A, in points of recall")
        + paragraph("Right of zero B is better, left of it A. Where the line crosses zero, the data do not say which.")
        + table(("", "A", "B", "B − A\n95 % interval", "p"), rows)
        + paragraph(
            "R@k: percent of queries whose right answer is among the first k. Of ranks the lower is better; MRR is the "
            "mean of 1 / rank. Intervals and p by paired bootstrap: pictures are drawn anew "
            f"{comparison.resamples:,} times, the same for both; p is at least 2 in as many. {SEVERAL}"
        )
    )


def _wins(comparison: Comparison) -> str:
    rows = []
    for direction, counts in comparison.wins().items():
        total = sum(counts)
        rows.append((DIRECTIONS[direction], *(f"{count:,}\n{100 * count / total:.0f} %" for count in counts)))
    words = "How many queries' right answers each ranks better."
    return table(("", "A better", "the same", "B better"), rows) + paragraph(words)


def _galleries(comparison: Comparison, queries: int) -> list[Section]:
    parts = dict.fromkeys(HEADINGS, "")
    for query in comparison.most_different(queries):
        asked = _text_query if query.direction == "text_to_image" else _picture_query
        parts[query.direction, query.better] += f'<div class="versus">{asked(comparison, query)}</div>\n'
    return [Section(heading, parts[key]) for key, heading in HEADINGS.items()]


def _text_query(comparison: Comparison, query: Query) -> str:
    shown = [
        _unasked(text_query(evaluation, query.row, f"{side} has the right picture at {rank:,}", SHOWN))
        for evaluation, side, rank in _sides(comparison, query)
    ]
    return f"<h3>{escape(comparison.evaluation_a.captions[query.row])}</h3>" + gallery(shown)


def _picture_query(comparison: Comparison, query: Query) -> str:
    picture = comparison.evaluation_a.records[query.row].image
    shown = [
        gallery([_unasked(picture_query(evaluation, query.row, f"{side} has a right caption at {rank:,}", SHOWN))])
        for evaluation, side, rank in _sides(comparison, query)
    ]
    asked = gallery([GalleryQuery(name_of(picture), picture, "", [])])
    return f'{asked}<div class="two">{"".join(shown)}</div>'


def _unasked(query: GalleryQuery) -> GalleryQuery:
    """The answers without what they answer, which stands above those of both."""
    return replace(query, heading="", picture=None)


def _sides(comparison: Comparison, query: Query) -> Sequence[tuple[Evaluation, str, int]]:
    return (comparison.evaluation_a, "A", query.rank_a), (comparison.evaluation_b, "B", query.rank_b)


def _facts(comparison: Comparison, result: ComparisonResult, command: str) -> dict[str, str]:
    facts = {
        "A": result.a,
        "B": result.b,
        "Data": f"{result.data}, split {result.split}",
        "Measured on": f"{counted(result.images, 'picture')}, {counted(result.captions, 'caption')}",
        "Left out": f"{counted(result.left_out, 'picture')} that A or B could not read" if result.left_out else "",
        "Shown": "the queries whose reciprocal ranks differ most, not picked by hand",
        "Bootstrap": f"{comparison.resamples:,} resamples of pictures, seed {comparison.seed}",
        "Command": command,
    }
    return {name: value for name, value in facts.items() if value}
