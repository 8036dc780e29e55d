"""The rows of the grid, as numbers: the module runs in the browser, and its results are checked here."""

from itertools import accumulate, pairwise

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def module(browser, service):
    """Calls a function of layout.js: `module("rows", shapes, options)`."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(service)

    def call(name, *arguments):
        return page.evaluate(
            "async ([name, values]) => (await import('/static/layout.js'))[name](...values)", [name, list(arguments)]
        )

    yield call
    context.close()


OPTIONS = {"width": 1000, "target": 200, "gap": 10, "ended": True}


def test_three_squares_and_a_half_fill_a_row(module):
    rows = module("rows", [1.0] * 5, {"width": 1000, "target": 242, "gap": 10, "ended": False})
    # Four squares and three gaps: (1000 - 30) / 4 = 242.5, closer to 242 than five can be.
    assert [(row["first"], len(row["widths"]), row["height"]) for row in rows] == [(0, 4, 243)]
    assert sum(rows[0]["widths"]) + 30 == 1000


def test_every_picture_stands_in_one_row_and_every_row_is_full(module):
    shapes = [0.4 + 2.8 * ((at * 7919) % 101) / 101 for at in range(500)]
    rows = module("rows", shapes, OPTIONS)
    assert [row["first"] for row in rows] == [0, *accumulate(len(row["widths"]) for row in rows)][:-1]
    assert sum(len(row["widths"]) for row in rows) == 500
    for above, row in pairwise(rows):
        assert row["top"] == above["top"] + above["height"] + 10
    for row in rows[:-1]:
        assert sum(row["widths"]) + 10 * (len(row["widths"]) - 1) == 1000
        assert 120 < row["height"] < 320
    assert rows[-1]["height"] <= 200


def test_more_pictures_change_no_row_that_stands(module):
    shapes = [0.4 + 2.8 * ((at * 104729) % 97) / 97 for at in range(300)]
    whole = module("rows", shapes, {**OPTIONS, "ended": False})
    for count in (60, 120, 121, 180, 299):
        part = module("rows", shapes[:count], {**OPTIONS, "ended": False})
        assert part == whole[: len(part)]


def test_a_last_row_that_is_not_full_waits_until_the_end(module):
    assert module("rows", [1.5], {**OPTIONS, "ended": False}) == []
    (row,) = module("rows", [1.5], OPTIONS)
    assert (row["height"], row["widths"]) == (200, [300])


def test_a_picture_wider_than_the_window_is_a_row(module):
    (row,) = module("rows", [3.2], {"width": 300, "target": 200, "gap": 3, "ended": True})
    assert (row["height"], row["widths"]) == (94, [300])


def test_panoramas_and_towers_are_cropped_and_unknown_sizes_are_squares(module):
    assert module("shape", {"width": 10000, "height": 100}) == 3.2
    assert module("shape", {"width": 100, "height": 10000}) == 0.4
    assert module("shape", {"width": 300, "height": 200}) == 1.5
    assert module("shape", {"width": 0, "height": 0}) == 1


def test_arrows_lead_to_the_nearest_picture_of_the_next_row(module):
    # Middles at 90 and 300 above, at 47.5, 152.5, 257.5 and 362.5 below.
    rows = [
        {"top": 0, "height": 100, "first": 0, "widths": [180, 220]},
        {"top": 100, "height": 50, "first": 2, "widths": [95, 95, 95, 95]},
    ]
    step = {
        ("ArrowRight", 0): 1,
        ("ArrowRight", 5): 5,
        ("ArrowLeft", 2): 1,
        ("ArrowLeft", 0): 0,
        ("ArrowDown", 0): 2,
        ("ArrowDown", 1): 4,
        ("ArrowUp", 5): 1,
        ("ArrowUp", 2): 0,
        ("ArrowUp", 0): 0,
        ("ArrowDown", 5): 5,
        ("Home", 4): 2,
        ("End", 2): 5,
        ("PageDown", 0): 2,
    }
    got = {key: module("neighbour", rows, key[1], key[0], 10) for key in step}
    assert got == step


def test_the_row_at_a_height_is_found(module):
    rows = module("rows", [1.0] * 400, OPTIONS)
    for y in (-50, 0, 1, 150, 1234, rows[-1]["top"] + 5, 10**6):
        expected = next((at for at, row in enumerate(rows) if row["top"] + row["height"] > y), len(rows))
        assert module("rowAt", rows, y) == expected
