"""Charts as SVG or HTML inside a page of `cliplet.page`, whose styles they need: lines, bars, intervals, heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

CURVE_POINTS = 300  # a longer curve is drawn as means over equal stretches
WIDTH, HEIGHT = 420, 250  # of a chart, in its own units: small, so that its letters stay readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40  # margins of a chart
MOST_NAMES = 10  # below the bars of a histogram; more would run into each other
UPRIGHT = 6  # columns of a heat map beyond which their names are set on end
COLOURS = 4  # of lines that can be told apart
DEEP = 0.55  # a share of the heat's colour from which letters on it are as pale as the page

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. The n-th line of a chart has the n-th colour and dash."""

    name: str
    points: Points


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval, where it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def binned(points: Points, most: int = CURVE_POINTS) -> Points:
    """At most about `most` points: means of x and of y over equal numbers of neighbours."""
    size = math.ceil(len(points) / most) if points else 1
    if size == 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them and at least two, from at or below `low` to at or above `high`."""
    if low == high:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


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
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_ticks, y_ticks = ticks(x_low, x_high, 6), ticks(min(heights), max(heights), 5)
    if x_low == x_high:
        x_low, x_high = x_ticks[0], x_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, _height(y, y_ticks)

    parts = [_levels(y_ticks), _x_axis(lambda x: place(x, 0)[0], [x for x in x_ticks if x_low <= x <= x_high], x_name)]
    if level is not None:
        y = _height(level, y_ticks)
        parts.append(_line("level", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(WIDTH - RIGHT, y - 5, f"{level_name} {level:.2f}".strip(), "end"))
    for count, one in enumerate(series):
        parts.append(_curve(count % COLOURS, [place(x, y) for x, y in one.points]))
    legend = " ".join(
        f'<span class="key"><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true">'
        f"{_line(f'line line{count % COLOURS}', 0, 4, 28, 4)}</svg> {escape(one.name)}</span>"
        for count, one in enumerate(series)
        if len(series) > 1 and one.points
    )
    label = f"{title} over {x_name}, last: " + ", ".join(f"{s.name} {s.points[-1][1]:.4g}" for s in series if s.points)
    return _figure(f"{escape(title)} {legend}", label, parts)


def histogram(
    counts: Mapping[str, float], title: str, x_name: str, *, unit: str = "", highest: float | None = None
) -> str:
    """A bar for each name with its value above it, as inline SVG. `unit` follows the values, "%" for shares. `highest`:
    where the scale ends, so that charts beside each other can have the same. Without counts: ""."""
    if not counts:
        return ""
    y_ticks = ticks(0, max(highest or 0, *counts.values()) or 1, 5)
    stride = (WIDTH - LEFT - RIGHT) / len(counts)
    sparse = math.ceil(len(counts) / MOST_NAMES)
    parts = [_levels(y_ticks, unit)]
    for place, (name, value) in enumerate(counts.items()):
        left, top = LEFT + (place + 0.1) * stride, _height(value, y_ticks)
        shown = f"{value:,.1f}" if unit == "%" else f"{value:,g}"
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{0.8 * stride:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{escape(name)}: {shown}{unit}</title></rect>'
        )
        if sparse == 1:
            parts.append(_text(left + 0.4 * stride, top - 4, shown, "middle"))
        if place % sparse == 0:
            parts.append(_text(left + 0.4 * stride, HEIGHT - BOTTOM + 16, name, "middle"))
    parts.append(_line("axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_name, "middle"))
    label = f"{title}, {x_name}: " + ", ".join(f"{name} {value:.4g}{unit}" for name, value in counts.items())
    return _figure(escape(title), label, parts)


def heat_map(
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    *,
    digits: int | None = 2,
    same: bool = False,
    low: float | None = None,
    high: float | None = None,
    column_heads: Sequence[str] | None = None,
) -> str:
    """A table whose cells are coloured by their values (rows, columns), with a scale below the title.

    `digits`: of the number in each cell; None leaves numbers out, and they show on pointing only. `same`: row i and
    column i belong together and are framed. `low` and `high`: the scale's ends, by themselves the smallest and the
    largest value. `column_heads`: HTML to stand for the columns' names. What is not finite is left blank.
    Raises ValueError for names that do not fit the values. Without values: "".
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(row_names), len(column_names)):
        raise ValueError(f"{len(row_names)} x {len(column_names)} names for values of shape {values.shape}")
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ""
    low = float(finite.min()) if low is None else low
    high = float(finite.max()) if high is None else high
    shares = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    heads = column_heads or [f"<span>{escape(name)}</span>" for name in column_names]
    kind = "heat compact" if column_heads else "heat upright" if len(column_names) > UPRIGHT else "heat"
    head = "".join(
        f'<th scope="col" title="{escape(name)}">{shown}</th>' for name, shown in zip(column_names, heads, strict=True)
    )
    body = []
    for row, name in enumerate(row_names):
        cells = (
            _heat_cell(value, share, f"{name}, {other}", digits, same and row == column)
            for column, (value, share, other) in enumerate(zip(values[row], shares[row], column_names, strict=True))
        )
        heading = f'<th scope="row" title="{escape(name)}"><span>{escape(name)}</span></th>'
        body.append(f"<tr>{heading}{''.join(cells)}</tr>\n")
    ends = [_fixed(end, 2 if digits is None else digits) for end in (low, high)]
    colours = f"background:linear-gradient(90deg,{_heat(0)},{_heat(1)})"
    scale = f'<span class="key">{ends[0]}<span class="scale" style="{colours}"></span>{ends[1]}</span>'
    return (
        f'<figure><figcaption>{escape(title)} {scale}</figcaption><div class="wide"><table class="{kind}">'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>{''.join(body)}</tbody></table></div></figure>\n"
    )


def _heat_cell(value: float, share: float, name: str, digits: int | None, same: bool) -> str:
    kind = " ".join(word for word, meant in (("deep", share > DEEP), ("same", same)) if meant)
    kind = f' class="{kind}"' if kind else ""
    if not math.isfinite(value):
        return f"<td{kind}></td>"
    exact = _fixed(value, 3 if digits is None else digits)
    shown = "" if digits is None else exact
    return f'<td{kind} style="background:{_heat(share)}" title="{escape(name)}: {exact}">{shown}</td>'


def _fixed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.00


def _heat(share: float) -> str:
    return f"rgb(var(--heat) / {0.04 + 0.96 * share:.3f})"


def bars_with_intervals(
    bars: Sequence[Interval], title: str, *, unit: str = "", digits: int = 1, highest: float | None = None
) -> str:
    """A bar from zero for each value, its interval as a line across the bar's end, and the numbers beside it. Values
    may be negative: then zero stands within. `highest`: where the scale ends at least. Without bars: ""."""
    if not bars:
        return ""
    ends = [end for one in bars for end in (one.value, one.low, one.high) if end is not None and math.isfinite(end)]
    start, stop = min([0.0, *ends]), max([0.0, highest or 0.0, *ends])
    span = (stop - start) or 1.0

    def across(value: float) -> str:
        return f"{100 * (value - start) / span:.2f}%"

    rows = "".join(_interval_row(one, across, unit, digits) for one in bars)
    return f'<figure><figcaption>{escape(title)}</figcaption><div class="ranges">{rows}</div></figure>\n'


def _interval_row(one: Interval, across: Callable[[float], str], unit: str, digits: int) -> str:
    if not math.isfinite(one.value):
        return f"<span>{escape(one.name)}</span><span></span><span>–</span>"
    zero, end = across(0), across(one.value)
    parts = [f'<line class="bar bar-line" x1="{zero}" y1="50%" x2="{end}" y2="50%"/>']
    interval = ""
    if one.low is not None and one.high is not None and math.isfinite(one.low) and math.isfinite(one.high):
        low, high = across(one.low), across(one.high)
        parts.append(f'<line class="whisker" x1="{low}" y1="50%" x2="{high}" y2="50%"/>')
        parts += [f'<line class="whisker" x1="{x}" y1="25%" x2="{x}" y2="75%"/>' for x in (low, high)]
        interval = f" <small>{one.low:,.{digits}f} to {one.high:,.{digits}f}</small>"
    parts.append(f'<line class="axis" x1="{zero}" y1="0" x2="{zero}" y2="100%"/>')
    value = f"{one.value:,.{digits}f}{unit}{interval}"
    return f'<span>{escape(one.name)}</span><svg aria-hidden="true">{"".join(parts)}</svg><span>{value}</span>\n'


def _figure(caption: str, label: str, parts: Sequence[str]) -> str:
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></figure>\n'
    )


def _height(y: float, y_ticks: Sequence[float]) -> float:
    """Where a value lies on the page, on an axis from the first tick to the last."""
    return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)


def _levels(y_ticks: Sequence[float], unit: str = "") -> str:
    parts = []
    for value in y_ticks:
        y = _height(value, y_ticks)
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y) + _text(LEFT - 6, y + 4, f"{value:g}{unit}", "end"))
    return "".join(parts)


def _x_axis(across: Callable[[float], float], x_ticks: Sequence[float], x_name: str) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    for value in x_ticks:
        x = across(value)
        parts.append(_line("axis", x, bottom, x, bottom + 4) + _text(x, bottom + 18, f"{value:,g}", "middle"))
    parts.append(_line("axis", LEFT, bottom, WIDTH - RIGHT, bottom))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_name, "middle"))
    return "".join(parts)


def _curve(colour: int, places: Points) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="dot{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    return f'<polyline class="line line{colour}" points="{path}"/>{dots if len(places) <= 30 else ""}'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
