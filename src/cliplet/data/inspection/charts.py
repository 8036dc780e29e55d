"""Bars over numbers, as SVG inside a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from cliplet.data.inspection.findings import Lengths

WIDTH, HEIGHT = 420, 220  # of a chart, in its own units: small, so that its letters stay readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 22, 40
MOST_BARS = 40
NEARLY_ALL = 0.995  # what lies beyond this share goes into the last bar


@dataclass(frozen=True, slots=True)
class Bar:
    low: int
    high: int  # the first number beyond it
    count: int
    open: bool = False  # everything from `low` on


def bars_of(lengths: Lengths, reach: int = 0) -> list[Bar]:
    """About MOST_BARS bars of equal width at most, up to `reach` at least; what few reach beyond them is one bar."""
    low, high = lengths.minimum, max(lengths.at(NEARLY_ALL), min(reach, lengths.maximum))
    width = round_up((high - low + 1) / MOST_BARS)
    low = low // width * width
    count = (high - low) // width + 1
    counts = [0] * (count + 1)
    for length, number in lengths.counts.items():
        counts[min((length - low) // width, count)] += number
    bars = [Bar(low + n * width, low + (n + 1) * width, number) for n, number in enumerate(counts[:-1])]
    return [*bars, Bar(bars[-1].high, bars[-1].high + width, counts[-1], open=True)] if counts[-1] else bars


def round_up(number: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** math.floor(math.log10(max(number, 1)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= number)


def bar_chart(bars: Sequence[Bar], title: str, x_name: str, cut: int | None = None) -> str:
    """A figure of bars; `cut` draws a line behind that number and fills what lies beyond with another colour."""
    if not bars:
        return ""
    start, stop = bars[0].low, max(bars[-1].high, 0)
    highest = max(bar.count for bar in bars) or 1
    step = round_up(highest / 4)

    def across(number: float) -> float:
        return LEFT + (number - start) / (stop - start) * (WIDTH - LEFT - RIGHT)

    def up(count: float) -> float:
        return HEIGHT - BOTTOM - count / highest * (HEIGHT - TOP - BOTTOM)

    parts = [_level(up(count), count) for count in range(0, highest + 1, step)]
    for bar in bars:
        beyond = " beyond" if cut is not None and bar.low > cut else ""
        left, width = across(bar.low), max(across(bar.high) - across(bar.low) - 1, 0.5)
        parts.append(
            f'<rect class="bar{beyond}" x="{left:.1f}" y="{up(bar.count):.1f}" width="{width:.1f}" '
            f'height="{HEIGHT - BOTTOM - up(bar.count):.1f}"><title>{_range(bar)}: {bar.count:,}</title></rect>'
        )
    parts += _numbers(bars, across)
    if cut is not None and start <= cut + 1 <= stop:
        x = across(cut + 1)
        parts.append(f'<line class="cut" x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        side, anchor = (x - 5, "end") if x > WIDTH / 2 else (x + 5, "start")
        parts.append(_text(side, TOP - 8, f"cut at {cut}", anchor))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_name, "middle"))
    label = f"{title}: {sum(bar.count for bar in bars):,} in all"
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></figure>\n'
    )


def _numbers(bars: Sequence[Bar], across: Callable[[float], float]) -> list[str]:
    """Numbers below the bars: in the middle of one that stands for a single number, at the left edge of others."""
    single = bars[0].high == bars[0].low + 1
    step = round_up((bars[-1].high - bars[0].low) / 6)
    parts = []
    for number in range(-(-bars[0].low // step) * step, bars[-1].high, step):
        name = f"{number:,}+" if bars[-1].open and number >= bars[-1].low else f"{number:,}"
        parts.append(_text(across(number + 0.5 * single), HEIGHT - BOTTOM + 16, name, "middle"))
    return parts


def _level(y: float, count: int) -> str:
    line = f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, short(count), "end")


def short(count: int) -> str:
    """A count in few letters: 1500 is 1.5k."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def _range(bar: Bar) -> str:
    if bar.open:
        return f"{bar.low:,} and more"
    return f"{bar.low:,}" if bar.high == bar.low + 1 else f"{bar.low:,} to {bar.high - 1:,}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
