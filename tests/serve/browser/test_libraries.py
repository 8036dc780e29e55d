"""One library after another: each with its own pictures, and only what it can be asked for."""

import pytest
from serve.browser.person import names, wait_for_other

pytestmark = pytest.mark.browser

# Some 30 of `photographs`, all of `few`: all in the page at once, and some ids are in both.
BOTH = "/?where=width+%3D+480+or+width+%3D+96+and+height+%3D+64"
TILES = """() => [...document.querySelectorAll("#grid .tile")].map(tile => ({
  image: tile.querySelector("img").getAttribute("src"),
  href: tile.querySelector("a").getAttribute("href"),
  name: tile.querySelector("a").getAttribute("aria-label").split(",")[0],
}))"""


def test_another_library_shows_its_own_pictures(open_page):
    page = open_page(BOTH)
    before = page.evaluate(TILES)
    with page.expect_response(lambda response: "/api/few/pictures?" in response.url) as answer:
        page.select_option("#library", "few")
    pictures = answer.value.json()["pictures"]
    count = "count => document.querySelectorAll('#grid .tile').length === count"
    page.wait_for_function(count, arg=len(pictures))
    shown = page.evaluate(TILES)
    assert {tile["image"] for tile in shown} & {f"/api/few/pictures/{at}/thumbnail" for at in (1, 6)}
    for tile, picture in zip(shown, pictures, strict=True):
        assert tile["image"] == f"/api/few/pictures/{picture['id']}/thumbnail"
        assert "library=few" in tile["href"] and tile["href"].endswith(f"picture={picture['id']}")
    page.go_back()
    page.wait_for_function(count, arg=len(before))
    assert page.evaluate(TILES) == before


def test_only_the_last_choice_of_a_library_counts(page):
    before = names(page)
    page.locator("#grid .tile").first.hover()
    page.locator("#grid .like").first.click()
    wait_for_other(page, before)
    held = []
    page.route("**/api/few/uploads", lambda route: held.append(route))
    page.select_option("#library", "few")
    page.wait_for_function("() => performance.getEntriesByType('resource').some(e => e.name.endsWith('/original'))")
    page.wait_for_timeout(200)
    assert held, "the picture is on its way"
    page.select_option("#library", "photographs")
    page.wait_for_timeout(300)
    with page.expect_response("**/api/few/uploads"):
        held[0].continue_()
    page.wait_for_timeout(300)
    assert page.input_value("#library") == "photographs"
    assert "library=few" not in page.url
    assert "t=1%3Aid%3A" in page.url, "in its own library it stays what it was"


def test_a_library_without_captions_is_not_searched_by_them(open_page):
    page = open_page(ready=False)

    def without(route):
        answer = route.fetch().json()
        route.fulfill(json=[{**one, "captions": one["captions"] and one["name"] != "few"} for one in answer])

    page.route("**/api/libraries", without)
    page.goto(open_page.service + "/?q=disc&by=captions")
    page.wait_for_selector("#grid .tile")
    page.wait_for_selector("#pills button")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/api/few/search?" in request.url else None)
    page.select_option("#library", "few")
    page.wait_for_function("() => document.querySelector('#grid img').getAttribute('src').startsWith('/api/few/')")
    assert "by=" not in page.url
    assert page.locator("#pills button").count() == 0
    page.goto(open_page.service + "/?library=few&q=disc&by=captions")
    page.wait_for_selector("#grid .tile")
    assert asked and not any("by=" in url for url in asked)
