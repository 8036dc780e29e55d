"""Charts lie where their numbers say, and no name of theirs is taken for markup."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cliplet.charts import Interval, Series, bars_with_intervals, binned, heat_map, histogram, line_chart, ticks

EVIL = '<script>"x"</script> & more'


def wellformed(html):
    """The HTML, once every element in it is closed and none is a script."""

    class Reader(HTMLParser):
        open: tuple[str, ...] = ()

        def handle_starttag(self, tag, attrs):
            assert tag != "script"
            self.open = (*self.open, tag)

        def handle_endtag(self, tag):
            assert self.open[-1] == tag
            self.open = self.open[:-1]

        def handle_startendtag(self, tag, attrs):
            pass

    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == ()
    return html


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2.5, 5, 7.5, 10]),
        (0.03, 0.19, [0, 0.05, 0.1, 0.15, 0.2]),
        (7, 7, [6.5, 6.75, 7, 7.25, 7.5]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize("low", [-3.7, 0, 1e-6, 12345.6])
@pytest.mark.parametrize("length", [1e-5, 0.3, 1, 99, 1e7])
def test_ticks_span_any_values(low, length):
    found = ticks(low, low + length, 6)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + length * 1e-6 and found[-1] >= low + length * (1 - 1e-6)


def test_long_curves_are_drawn_as_means():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    short = binned(points, 300)
    assert len(short) <= 300
    assert all(0.4 < y < 0.6 for _, y in short)
    assert binned(points[:300], 300) == points[:300]
    assert line_chart([Series("none", [])], "t", "x") == ""


def test_lines_rise_with_their_values_and_have_a_legend_when_they_are_several():
    html = wellformed(line_chart([Series(EVIL, [(0, 1), (10, 3)]), Series("b", [(5, 2)])], EVIL, EVIL))
    (x0, y0), (x1, y1) = (tuple(map(float, pair.split(","))) for pair in re.search(r'points="(.*?)"', html)[1].split())
    b = tuple(map(float, re.findall(r'points="(.*?)"', html)[1].split(",")))
    assert x0 < x1 and y0 > y1, "up is less on a page"
    assert b == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.1)
    assert html.count('class="key"') == 2
    assert 'class="key"' not in line_chart([Series("a", [(0, 1)])], "t", "x")


def test_a_histogram_has_bars_as_high_as_their_values():
    html = wellformed(histogram({EVIL: 40.0, "2-5": 20.0, "none": 0.0}, EVIL, "rank", unit="%"))
    heights = [float(height) for height in re.findall(r'<rect.*?height="(.*?)"', html)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2) and heights[2] == 0
    assert "40.0" in html and "40%" in html
    wider = histogram({"a": 40.0}, "t", "x", highest=80)
    assert float(re.search(r'<rect.*?height="(.*?)"', wider)[1]) == pytest.approx(heights[0] / 2, abs=0.2)
    assert histogram({}, "t", "x") == ""
    wellformed(histogram({"a": 0}, "t", "x"))


def test_a_histogram_of_many_leaves_names_out_rather_than_over_each_other():
    html = histogram({f"n{n}": n for n in range(100)}, "t", "x")
    assert html.count("<rect") == 100
    assert 8 <= len(re.findall(r">n\d+</text>", html)) <= 10


def test_a_heat_map_is_darkest_where_the_value_is_largest():
    values = np.array([[0.9, 0.1], [math.nan, -0.0001]])
    html = wellformed(heat_map(values, [EVIL, "b"], ["x", EVIL], EVIL, same=True))
    cells = re.findall(r"<td(?: class=\"([^\"]*)\")?(?: style=\"background:rgb\(var\(--heat\) / ([\d.]+)\)\")?", html)
    shades = [float(shade) for _, shade in cells if shade]
    assert len(shades) == 3 and shades[0] == 1 and shades[2] == pytest.approx(0.04)
    assert [kind for kind, _ in cells if kind] == ["deep same", "same"]
    assert ">0.90</td>" in html and ">0.00</td>" in html and "-0.00" not in html
    assert ">0.90</td>" not in heat_map(values, ["a", "b"], ["c", "d"], "t", digits=None)
    assert '<b class="head">' in heat_map(
        values, ["a", "b"], ["c", "d"], "t", column_heads=['<b class="head"></b>', ""]
    )


def test_heat_maps_that_cannot_be_drawn():
    assert heat_map(np.full((1, 1), math.nan), ["a"], ["b"], "t") == ""
    assert heat_map(np.zeros((0, 0)), [], [], "t") == ""
    assert ">0.50<" in wellformed(heat_map(np.full((2, 1), 0.5), ["a", "b"], ["c"], "all alike"))
    with pytest.raises(ValueError, match="1 x 2 names for values of shape"):
        heat_map(np.zeros((2, 2)), ["a"], ["b", "c"], "t")


def across(html, kind, attribute):
    return [float(value) for value in re.findall(rf'class="[^"]*{kind}"[^>]*{attribute}="(.*?)%"', html)]


def test_bars_end_at_their_values_and_whiskers_at_their_intervals():
    html = wellformed(bars_with_intervals([Interval(EVIL, 20, 10, 40), Interval("b", 30)], EVIL, unit="%"))
    assert across(html, "bar-line", "x2") == [50, 75], "the scale ends at 40"
    assert across(html, "whisker", "x1")[0] == 25 and across(html, "whisker", "x2")[0] == 100
    assert "20.0%" in html and "10.0 to 40.0" in html
    assert across(bars_with_intervals([Interval("a", 20)], "t", highest=80), "bar-line", "x2") == [25]


def test_differences_stand_on_both_sides_of_zero():
    html = wellformed(bars_with_intervals([Interval("a", -1, -2, 0.5), Interval("b", 2)], "t"))
    assert across(html, "bar-line", "x1") == [50, 50]
    assert across(html, "bar-line", "x2") == [25, 100]


def test_values_that_are_no_numbers_have_no_bar():
    html = wellformed(bars_with_intervals([Interval("a", math.nan), Interval("b", 1, math.nan, 2)], "t"))
    assert html.count("bar-line") == 1 and "whisker" not in html and "nan" not in html
    wellformed(bars_with_intervals([Interval("a", math.nan)], "t"))
    wellformed(bars_with_intervals([Interval("zero", 0.0)], "t"))
    assert bars_with_intervals([], "t") == ""
