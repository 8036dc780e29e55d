"""The grid of pictures: how it is laid out, scrolled, and gone through with keys."""

from itertools import pairwise

import pytest
from serve.browser.person import PICTURES, focused, in_sight, names, type_words, wait_for_other

pytestmark = pytest.mark.browser

BOXES = """() => [...document.querySelectorAll("#grid .row")].map(row => [...row.children].map(tile => {
  const box = tile.getBoundingClientRect(), image = tile.querySelector("img");
  return {left: box.left, right: box.right, top: box.top, bottom: box.bottom,
          shape: image.getAttribute("width") / image.getAttribute("height")};
}))"""


def scroll_to_the_end(page):
    """As a wheel does, a window at a time, until there is no more."""
    for _ in range(60):
        page.mouse.wheel(0, 700)
        page.wait_for_timeout(60)
        if page.text_content("#end") and in_sight(page, "#end"):
            return
    raise AssertionError("the end never came")


def test_rows_are_filled_from_edge_to_edge_and_pictures_keep_their_shape(page):
    grid = page.eval_on_selector("#grid", "e => e.getBoundingClientRect().toJSON()")
    rows = page.evaluate(BOXES)
    assert len(rows) >= 3
    for row in rows:
        assert row[0]["left"] == pytest.approx(grid["left"], abs=1)
        assert row[-1]["right"] == pytest.approx(grid["right"], abs=1)
        heights = {round(tile["bottom"] - tile["top"]) for tile in row}
        assert len(heights) == 1, "all of a row are of one height"
        for tile in row:
            drawn = (tile["right"] - tile["left"]) / (tile["bottom"] - tile["top"])
            assert drawn == pytest.approx(tile["shape"], rel=0.03)
        for left, right in pairwise(row):
            assert right["left"] - left["right"] == pytest.approx(6, abs=1)


def test_nothing_moves_while_pictures_load(open_page):
    page = open_page(ready=False)
    page.route("**/thumbnail", lambda route: (page.wait_for_timeout(30), route.continue_()))
    page.evaluate(
        """() => {
          window.moved = 0;
          new PerformanceObserver(list => {
            for (const one of list.getEntries()) if (!one.hadRecentInput) window.moved += one.value;
          }).observe({type: "layout-shift", buffered: true});
        }"""
    )
    page.wait_for_selector("#grid .there img")
    page.wait_for_timeout(500)
    assert page.evaluate("window.moved") < 0.1


def test_scrolling_goes_on_to_the_end_and_stops_there(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/pictures?" in request.url else None)
    seen = set(names(page))
    for _ in range(60):
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(60)
        seen |= set(names(page))
    assert len(seen) == PICTURES, "each picture came by, and none was left out"
    assert page.text_content("#end") == "These are all."
    before = len(asked)
    page.mouse.wheel(0, 2000)
    page.wait_for_timeout(300)
    assert len(asked) == before <= 3


def test_only_what_is_near_the_window_is_in_the_page(page):
    def many(route):
        offset = int(route.request.url.split("offset=")[1].split("&")[0])
        hits = [
            {
                "id": str(1 + at % PICTURES) if at < 60 else f"{at}",
                "path": f"/p/{at}.jpg",
                "name": f"{at}.jpg",
                "score": 0.3,
            }
            | {"fit": 50.0, "width": 300, "height": 200, "taken": None, "caption": None, "copies": 0}
            for at in range(offset, min(offset + 600, 6000))
        ]
        route.fulfill(json={"hits": hits, "nothing_fits": False, "total": 6000, "milliseconds": 1.0})

    page.route("**/search?*", many)
    page.route("**/thumbnail", lambda route: route.fulfill(status=200, content_type="image/gif", body=GIF))
    page.fill("#q", "thousands")
    page.wait_for_function("() => document.querySelector('#summary').textContent.startsWith('6,000')")
    for _ in range(14):
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_timeout(120)
    assert page.evaluate("scrollY") > 30_000
    assert page.evaluate("document.querySelectorAll('#grid .tile').length") < 120
    assert page.evaluate("document.querySelectorAll('#grid img').length") < 120
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("() => document.querySelector('#grid .row[aria-rowindex=\"1\"]') !== null")


GIF = bytes.fromhex("47494638396101000100800000808080000000210000000000002c00000000010001000002024401003b")


def test_the_place_is_kept_after_going_back_and_after_a_reload(page):
    type_words(page, "disc")
    for _ in range(8):
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(80)
    page.wait_for_timeout(400)
    place = page.evaluate("scrollY")
    assert place > 1500
    page.evaluate("document.querySelector('#home').click()")
    page.wait_for_function("() => document.querySelector('#search-title').textContent === 'Newest pictures'")
    assert page.evaluate("scrollY") == 0
    page.go_back()
    page.wait_for_function("() => document.querySelector('#search-title').textContent === 'Best matches'")
    assert page.evaluate("scrollY") == pytest.approx(place, abs=2)
    page.reload()
    page.wait_for_selector("#grid .tile")
    page.wait_for_function("place => Math.abs(scrollY - place) < 3", arg=place)


def test_another_width_keeps_what_one_looks_at(page):
    type_words(page, "disc")
    for _ in range(6):
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(80)
    first = """() => {
      const tiles = [...document.querySelectorAll("#grid .tile")];
      return tiles.filter(tile => tile.getBoundingClientRect().bottom > 80).map(tile => +tile.dataset.index)[0];
    }"""
    before = page.evaluate(first)
    page.set_viewport_size({"width": 900, "height": 800})
    page.wait_for_timeout(400)
    assert abs(page.evaluate(first) - before) < 14, "within a row or two"


def test_pictures_can_be_made_larger(page):
    before = page.evaluate(BOXES)[0]
    page.fill("#size", "200")
    page.wait_for_timeout(200)
    after = page.evaluate(BOXES)[0]
    assert after[0]["bottom"] - after[0]["top"] > 1.3 * (before[0]["bottom"] - before[0]["top"])
    page.reload()
    page.wait_for_selector("#grid .tile")
    again = page.evaluate(BOXES)[0]
    assert again[0]["bottom"] - again[0]["top"] == pytest.approx(after[0]["bottom"] - after[0]["top"], abs=2)


def test_arrows_move_between_pictures_by_where_they_stand(page):
    page.press("#q", "ArrowDown")
    order = names(page)
    assert focused(page).startswith(order[0])
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith(order[1])
    before = page.evaluate("document.activeElement.getBoundingClientRect().toJSON()")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().toJSON()")
    assert below["top"] > before["top"]
    middle = (before["left"] + before["right"]) / 2
    assert below["left"] - 100 < middle < below["right"] + 100
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    assert focused(page).startswith(order[0])
    page.keyboard.press("ArrowUp")
    assert focused(page) == "q", "above the first row is the search box"


def test_arrows_lead_to_the_last_picture_and_the_focus_stays_in_sight(page):
    page.press("#q", "ArrowDown")
    for _ in range(60):
        page.keyboard.press("ArrowDown")
        page.wait_for_timeout(25)
    page.keyboard.press("Control+End")
    assert page.evaluate("+document.activeElement.closest('[data-index]').dataset.index") == PICTURES - 1
    assert in_sight(page, ":focus")
    page.keyboard.press("Control+Home")
    assert page.evaluate("+document.activeElement.closest('[data-index]').dataset.index") == 0
    assert in_sight(page, ":focus")


def test_the_picture_with_the_focus_keeps_it_when_it_is_scrolled_away(page):
    page.press("#q", "ArrowDown")
    label = focused(page)
    scroll_to_the_end(page)
    assert focused(page) == label
    page.keyboard.press("ArrowRight")
    assert in_sight(page, ":focus")


def test_only_one_picture_is_on_the_way_of_tab(page):
    page.press("#q", "ArrowDown")
    reachable = page.eval_on_selector_all("#grid a, #grid button", "all => all.filter(e => e.tabIndex === 0).length")
    assert reachable == 2, "the picture, and its button"


def test_m_searches_for_more_like_the_picture(page):
    page.press("#q", "ArrowDown")
    page.keyboard.press("ArrowRight")
    before = names(page)
    page.keyboard.press("m")
    assert wait_for_other(page, before)[0] == before[1]
    assert page.locator(".chip").count() == 1
    assert focused(page).startswith(before[1]), "the focus is on the first of what was found"


def test_the_grid_is_told_as_one(page):
    grid = page.locator("#grid")
    assert grid.get_attribute("role") == "grid"
    assert page.locator("#grid > [role=row] > [role=gridcell]").count() == page.locator("#grid .tile").count() > 10
    assert grid.get_attribute("aria-rowcount") == "-1", "nobody knows yet"
    rows = page.eval_on_selector_all("#grid [role=row]", "rows => rows.map(row => +row.getAttribute('aria-rowindex'))")
    assert rows == sorted(rows) and rows[0] == 1
    scroll_to_the_end(page)
    assert int(grid.get_attribute("aria-rowcount")) > 5


def test_a_picture_whose_file_is_gone_is_told_by_its_name(page, open_page):
    open_page.expected.add(404)
    page.route("**/thumbnail", lambda route: route.fulfill(status=404, json={"error": "gone", "hint": ""}))
    page.reload()
    page.wait_for_selector("#grid .broken")
    assert page.locator("#grid .broken .over").first.text_content().startswith(names(page)[0])


def test_a_question_that_is_too_long_for_an_address_is_asked_all_the_same(page):
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.fill("#q", "长" * 1900)
    assert len(asked.value.post_data_json["terms"][0]["text"]) == 1900
    page.wait_for_function("() => document.querySelector('#search-title').textContent === 'Best matches'")


def test_a_feed_that_was_left_long_ago_is_asked_for_anew(page):
    type_words(page, "disc")
    page.press("#q", "Enter")
    one = names(page)
    page.fill("#q", "other")
    two = wait_for_other(page, one)
    page.evaluate("Date.now = () => new Date().getTime() + 600_000")
    with page.expect_request(lambda request: "q=disc" in request.url):
        page.go_back()
    assert wait_for_other(page, two) == one
