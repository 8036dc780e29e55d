"""One HTML file that shows a run to people: numbers, curves, and queries with their pictures.

The file stands alone: styles, curves (SVG) and thumbnails (base64) are inside, it loads nothing and runs no script,
and a policy in its head forbids both, whatever a caption holds.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from cliplet.drawing import Answer, short_reason, thumbnail
from cliplet.files import written_beside

THUMBNAIL = 224  # pixels of the longer side
CURVE_POINTS = 300  # a longer curve is drawn as means over equal stretches
WIDTH, HEIGHT = 420, 250  # of a chart, in its own units: small, so that its letters stay readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40  # margins of a chart
WARNINGS = 10
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
COLUMNS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "median rank", "mean_rank": "mean rank"}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. The n-th line of a chart has the n-th colour and dash."""

    name: str
    points: Points


def write_report(
    file: Path,
    *,
    title: str,
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, Any]],
    queries: Sequence[tuple[str, Sequence[Answer]]],
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    chance: float | None = None,
) -> None:
    """Writes the page beside its place and renames it.

    `metrics`: as of `retrieval_metrics`, recalls in percent; what is absent shows as a dash. `history`: the lines of
    the run's log; without any, no curves. `queries`: a text and its best pictures as (file, cosine, is its own).
    `chance`: the loss of a model that knows nothing, drawn as a level line. A picture that cannot be read leaves its
    reason in its place. Raises OSError where the file cannot be written.
    """
    warnings = [str(line.get("message", "")) for line in history if line.get("kind") == "warning"]
    page = PAGE.substitute(
        title=escape(title),
        recall=_recall_table(metrics),
        curves=_section("Training", _curves(history, chance)),
        gallery=_section("Text queries and their first answers", _gallery(queries)),
        facts=_section("Facts", _facts_table(facts)),
        notes=_section("Notes", _list([*notes, *warnings[:WARNINGS]])),
    )
    file = Path(file)
    with written_beside(file) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")  # half a character must not cost the report


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" if content else ""


def _recall_table(metrics: Mapping[str, float]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS.values())
    rows = []
    for key, name in DIRECTIONS.items():
        cells = "".join(f"<td>{_number(metrics.get(f'{key}_{column}'))}</td>" for column in COLUMNS)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="recall"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n<p>{_recall_words(metrics)}</p>"
    )


def _recall_words(metrics: Mapping[str, float]) -> str:
    words = ["R@k: percent of queries whose right answer is among the first k."]
    images, captions = metrics.get("images"), metrics.get("captions")
    if images and captions:
        words.append(f"Measured on {images:,.0f} pictures and {captions:,.0f} captions.")
        words.append(f"Guessing would give text → image an R@1 of {_number(100 / images, 2)}.")
    if "rsum" in metrics:
        words.append(f"Sum of the six recalls: {_number(metrics['rsum'])}.")
    return " ".join(words)


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _curves(history: Sequence[Mapping[str, Any]], chance: float | None) -> str:
    """The charts and a line about speed; empty where the history holds nothing to draw."""
    training = [line for line in history if line.get("kind") == "train"]
    validation = [line for line in history if line.get("kind") == "validation"]
    loss = binned(_points(training, "step", "loss"))
    recalls = [Series(name, _points(validation, "epoch", f"{key}_R@1")) for key, name in DIRECTIONS.items()]
    charts = []
    if loss:
        charts.append(line_chart([Series("loss", loss)], "Training loss", "step", level=chance, level_name="chance"))
    if any(series.points for series in recalls):
        charts.append(line_chart(recalls, "Validation R@1 (%)", "epoch", from_zero=True))
    if not charts:
        return ""
    return f'<div class="charts">{"".join(charts)}</div>\n{_speed(training)}'


def _points(lines: Iterable[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """The finite values of y over x, in order. Of a step that a resumed run did again, the last value counts."""
    found: dict[float, float] = {}
    for line in lines:
        pair = (line.get(x), line.get(y))
        if all(isinstance(value, (int, float)) and math.isfinite(value) for value in pair):
            found[float(line[x])] = float(line[y])
    return sorted(found.items())


def binned(points: Points, most: int = CURVE_POINTS) -> Points:
    """At most about `most` points: means of x and of y over equal numbers of neighbours."""
    size = math.ceil(len(points) / most) if points else 1
    if size == 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _speed(training: Sequence[Mapping[str, Any]]) -> str:
    speeds = [value for _, value in _points(training, "step", "images_per_second")]
    waits = [value for _, value in _points(training, "step", "data_wait")]
    words = [f"Median speed: {median(speeds):,.0f} pictures a second." if speeds else ""]
    words.append(f"Median share of time spent waiting for pictures: {median(waits):.0%}." if waits else "")
    return f"<p>{' '.join(filter(None, words))}</p>" if any(words) else ""


def line_chart(
    series: Sequence[Series],
    title: str,
    x_name: str,
    *,
    level: float | None = None,
    level_name: str = "",
    from_zero: bool = False,
) -> str:
    """Lines over numbers as inline SVG with axes, ticks and, for several lines, a legend below the title.

    `level`: a value drawn as a dashed line across, named `level_name`. Few points are marked. Without points: "".
    """
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    level = level if level is not None and math.isfinite(level) else None
    heights = [y for _, y in points] + ([level] if level is not None else []) + ([0.0] if from_zero else [])
    x_ticks, y_ticks = (
        ticks(min(x for x, _ in points), max(x for x, _ in points), 6),
        ticks(min(heights), max(heights), 5),
    )
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    if x_low == x_high:
        x_low, x_high = x_ticks[0], x_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(place, [x for x in x_ticks if x_low <= x <= x_high], y_ticks, x_name)]
    if level is not None:
        y = place(x_low, level)[1]
        parts.append(_line("level", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(WIDTH - RIGHT, y - 5, f"{level_name} {level:.2f}".strip(), "end"))
    for number, one in enumerate(series):
        parts.append(_curve(number, [place(x, y) for x, y in one.points]))
    legend = " ".join(
        f'<span class="key"><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true">'
        f"{_line(f'line line{number}', 0, 4, 28, 4)}</svg> {escape(one.name)}</span>"
        for number, one in enumerate(series)
        if len(series) > 1 and one.points
    )
    label = f"{title} over {x_name}, last: " + ", ".join(f"{s.name} {s.points[-1][1]:.4g}" for s in series if s.points)
    return (
        f'<figure><figcaption>{escape(title)} {legend}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></figure>\n'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them and at least two, from at or below `low` to at or above `high`."""
    if low == high:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _axes(place: Any, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y_ticks:
        y = place(0, value)[1]
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y) + _text(LEFT - 6, y + 4, f"{value:g}", "end"))
    for value in x_ticks:
        x = place(value, 0)[0]
        parts.append(_line("axis", x, bottom, x, bottom + 4) + _text(x, bottom + 18, f"{value:,g}", "middle"))
    parts.append(_line("axis", LEFT, bottom, WIDTH - RIGHT, bottom))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_name, "middle"))
    return "".join(parts)


def _curve(number: int, places: Points) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="dot{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    return f'<polyline class="line line{number}" points="{path}"/>{dots if len(places) <= 30 else ""}'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _gallery(queries: Sequence[tuple[str, Sequence[Answer]]]) -> str:
    parts = []
    for text, answers in queries:
        found = any(right for _, _, right in answers)
        miss = "" if found else '<p class="miss">The picture that this text belongs to is not among them.</p>'
        items = "".join(_answer(rank, answer) for rank, answer in enumerate(answers, start=1))
        parts.append(f'<article><h3>{escape(text)}</h3>{miss}<ol class="answers">{items}</ol></article>')
    return "\n".join(parts)


def _answer(rank: int, answer: Answer) -> str:
    picture, score, right = answer
    name = Path(picture).name if isinstance(picture, (str, Path)) else f"answer {rank}"
    kind, mark = (' class="right"', " <b>✓ right</b>") if right else ("", "")
    return f'<li{kind}>{_embedded(answer, name)}<span class="score">{rank}. {_number(score, 3)}{mark}</span></li>'


def _embedded(answer: Answer, name: str) -> str:
    """The thumbnail as an element that needs no other file."""
    try:
        buffer = io.BytesIO()
        thumbnail(answer[0], THUMBNAIL).save(buffer, "JPEG", quality=80, optimize=True)
    except Exception as error:
        return f'<span class="missing">{escape(short_reason(answer[0], error))}</span>'
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(name)}" title="{escape(name)}" src="data:image/jpeg;base64,{data}">'


def _facts_table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div>' if rows else ""


def _list(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --paper: #fff; --ink: #1c2024; --faint: #5c636a; --rule: #d9dce0; --panel: #f5f6f7;
  --one: #1f5fbf; --two: #b4500a; --right: #137333; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e8eaed; --faint: #a2a9b0; --rule: #363b41;
  --panel: #1f2327; --one: #7fb0ff; --two: #ffab66; --right: #6ddb8b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }
p { color: var(--faint); margin: .6rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { font-weight: 600; }
.recall { font-variant-numeric: tabular-nums; min-width: min(100%, 30rem); }
.recall th:first-child { padding-left: 0; }
.recall th, .recall td { white-space: nowrap; }
.recall td, .recall thead th { text-align: right; }
.recall tbody td { font-size: 1.15rem; }
.facts { width: 100%; }
.facts th { color: var(--faint); font-weight: 400; width: 1%; white-space: nowrap; padding-left: 0; }
.facts td { overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem;
  align-items: end; }
figure { margin: 0; }
figcaption { font-weight: 600; }
figure > svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.key { font-weight: 400; font-size: .85rem; color: var(--faint); white-space: nowrap; margin-left: .4rem; }
.key svg { vertical-align: middle; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--faint); }
.level { stroke: var(--faint); stroke-width: 1.5; stroke-dasharray: 2 4; }
.line { fill: none; stroke: var(--one); stroke-width: 2; stroke-linejoin: round; }
.line1 { stroke: var(--two); stroke-dasharray: 7 4; }
.dot0 { fill: var(--one); }
.dot1 { fill: var(--two); }
.answers { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.answers li { background: var(--panel); border: 3px solid transparent; border-radius: 6px; padding: 4px; }
.answers .right { border-color: var(--right); }
.answers img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.missing { background: var(--rule); font-size: .8rem; padding: .5rem; overflow: auto; overflow-wrap: anywhere; }
.score { display: block; font-size: .85rem; color: var(--faint); font-variant-numeric: tabular-nums; margin-top: 4px; }
.right b { color: var(--right); white-space: nowrap; }
.miss { margin: 0 0 .5rem; font-size: .9rem; }
@media (max-width: 34rem) {
  .recall { min-width: 0; width: 100%; }
  .recall th, .recall tbody td { padding: .4rem .2rem; font-size: .875rem; }
  .recall thead th { white-space: normal; vertical-align: bottom; }
  .facts th { white-space: normal; }
  .answers { grid-template-columns: repeat(3, 1fr); gap: .4rem; }
}
</style>
</head>
<body>
<h1>$title</h1>
$recall
$curves
$gallery
$facts
$notes
</body>
</html>
""")
