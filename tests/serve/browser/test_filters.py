"""Filters: fields, a condition of one's own, what is said of them, and how they are taken away."""

from urllib.parse import parse_qs, urlsplit

import pytest
from serve.browser.person import PICTURES, focused, names, type_words, wait_for_other

pytestmark = pytest.mark.browser


@pytest.fixture
def panel(page):
    """The page with its filters open."""
    page.click("#filters-button")
    assert page.get_attribute("#filters-button", "aria-expanded") == "true"
    return page


def asked_where(page, act):
    """The filter that the service is sent."""
    with page.expect_request(lambda request: "where=" in request.url) as asked:
        act()
    return parse_qs(urlsplit(asked.value.url).query)["where"][0]


def count(page, text):
    """Waits until the summary begins so."""
    page.wait_for_function("text => document.querySelector('#summary').textContent.startsWith(text)", arg=text)


def test_years_are_a_range(panel):
    panel.fill("#filter-from", "2012")
    count(panel, f"{PICTURES * 8 // 10} of {PICTURES} pictures")
    panel.fill("#filter-to", "2013")
    count(panel, f"{PICTURES * 2 // 10} of {PICTURES} pictures")
    assert {int(name[2]) for name in names(panel)} == {2, 3}, "the last digit of a name is that of its year"
    assert panel.text_content("#filters-count") == "2"


def test_pictures_have_a_least_size(panel):
    where = asked_where(panel, lambda: panel.fill("#filter-width", "400"))
    assert where == "width >= 400"
    count(panel, f"{PICTURES // 5} of {PICTURES}")
    panel.fill("#filter-height", "321")
    count(panel, "No picture passes these filters.")


def test_camera_format_tag_and_caption_are_filters(panel):
    panel.fill("#filter-camera", "canon")
    count(panel, f"{PICTURES // 2} of")
    panel.fill("#filter-caption", "disc number 14")
    count(panel, "6 of")  # 14 and 140 to 149, the even ones
    panel.fill("#filter-camera", "")
    count(panel, "11 of")
    panel.select_option("#filter-format", "png")
    count(panel, "No picture")
    panel.select_option("#filter-format", "jpeg")
    count(panel, "11 of")
    panel.fill("#filter-tag", "nobody's")
    count(panel, "No picture")


def test_quotes_and_signs_of_patterns_in_a_filter_are_letters(panel):
    where = asked_where(panel, lambda: panel.fill("#filter-caption", "it's 100%"))
    assert where == "caption like '%it''s 100_%'"
    count(panel, "No picture")
    assert panel.text_content("#where-wrong") == ""


def test_pictures_near_a_place_are_found(panel):
    where = asked_where(panel, lambda: panel.fill("#filter-near", "48.2, 16.4"))
    assert where == "near(48.2, 16.4, 10)"
    count(panel, f"{PICTURES // 3} of")
    panel.fill("#filter-km", "0,5")
    panel.wait_for_function("() => document.querySelector('#pills').textContent.includes('within 0,5 km')")
    panel.fill("#filter-near", "somewhere")
    panel.wait_for_selector("#filter-near[aria-invalid=true]")


def test_a_condition_of_ones_own_is_taken(panel):
    panel.fill("#filter-where", "width = 64 or width = 128")
    count(panel, f"{PICTURES * 2 // 5} of")
    panel.fill("#filter-from", "2018")
    panel.wait_for_function("() => location.search.includes('from=2018')")
    panel.wait_for_function("() => !document.querySelector('#summary').textContent.startsWith('60 of')")
    assert int(panel.text_content("#summary").split()[0]) < PICTURES * 2 // 10, "both hold, whatever binds closer"


def test_a_wrong_condition_is_told_beside_its_field(panel, open_page):
    open_page.expected.add(422)
    before = names(panel)
    panel.fill("#filter-where", "widht > 3")
    panel.wait_for_selector("#where-wrong:not(:empty)")
    assert "width" in panel.text_content("#where-wrong")
    assert panel.get_attribute("#filter-where", "aria-invalid") == "true"
    assert panel.get_attribute("#where-wrong", "role") == "alert"
    assert names(panel) == before, "what was found before is still there"
    assert panel.is_hidden("#trouble")
    panel.fill("#filter-where", "width > 100")
    panel.wait_for_selector("#where-wrong:empty", state="attached")
    wait_for_other(panel, before)
    assert panel.get_attribute("#filter-where", "aria-invalid") == "false"


def test_the_place_of_an_error_is_that_of_the_field(panel, open_page):
    open_page.expected.add(422)
    panel.fill("#filter-where", "width > 3 ; drop table pictures")
    panel.wait_for_selector("#where-wrong:not(:empty)")
    alone = panel.text_content("#where-wrong")
    assert "at character 11" in alone
    panel.fill("#filter-from", "2000")
    panel.wait_for_function("() => location.search.includes('from=2000')")
    panel.wait_for_timeout(500)
    assert panel.text_content("#where-wrong") == alone


def test_a_wrong_condition_in_a_link_opens_the_filters(open_page):
    open_page.expected.add(422)
    page = open_page("/?q=disc&where=nonsense", ready=False)
    page.wait_for_selector("#where-wrong:not(:empty)")
    assert page.is_visible("#filters")
    assert page.input_value("#filter-where") == "nonsense"


def test_filters_are_taken_away_one_by_one_and_all_at_once(panel):
    panel.fill("#filter-from", "2012")
    panel.fill("#filter-where", "width < 100")
    panel.wait_for_function("() => document.querySelectorAll('#pills li').length === 2")
    panel.click("#pills button >> nth=0")
    panel.wait_for_function("() => document.querySelectorAll('#pills li').length === 1")
    assert panel.input_value("#filter-from") == ""
    assert focused(panel) == "filters-button"
    panel.click("text=Clear all")
    count(panel, f"{PICTURES} pictures")
    assert panel.input_value("#filter-where") == ""
    assert panel.url.endswith("/")


def test_filters_stand_in_the_address_and_go_back(panel, open_page):
    type_words(panel, "disc")
    panel.fill("#filter-from", "2015")
    count(panel, f"{PICTURES // 2} of")
    panel.press("#filter-from", "Enter")
    found = names(panel)
    panel.fill("#filter-where", "width = 64")
    wait_for_other(panel, found)
    panel.press("#filter-where", "Enter")
    other = open_page(panel.url[len(open_page.service) :])
    assert names(other) == names(panel)
    panel.go_back()
    panel.wait_for_function("() => document.querySelector('#filter-where').value === ''")
    count(panel, f"{PICTURES // 2} of")
    assert names(panel) == found


def test_escape_closes_the_filters_and_gives_the_focus_back(panel):
    panel.focus("#filter-camera")
    panel.keyboard.press("Escape")
    assert panel.is_hidden("#filters")
    assert focused(panel) == "filters-button"


def test_captions_are_searched_where_one_asks_for_it(panel):
    before = type_words(panel, "disc number 42")
    panel.select_option("#by", "captions")
    assert wait_for_other(panel, before)[0] == "042.jpg"
    assert "disc number 42" in panel.get_attribute("#grid .shot", "aria-label")
    assert "by=captions" in panel.url


def test_searching_by_captions_is_told_and_taken_away_like_a_filter(open_page):
    page = open_page("/?q=disc+number+42&by=captions")
    before = names(page)
    assert page.text_content("#pills button") == "by captions"
    assert page.text_content("#filters-count") == "1"
    page.click("#pills button")
    wait_for_other(page, before)
    assert "by=" not in page.url
    assert page.input_value("#by") == "" and page.locator("#pills button").count() == 0
    assert focused(page) == "filters-button"


def test_an_error_of_the_query_is_not_blamed_on_the_filter(open_page):
    open_page.expected.add(422)
    page = open_page("/?from=2012")
    page.fill("#q", "disc - disc")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.text_content("#trouble p").startswith("The terms of the query cancel each other.")
    assert page.is_hidden("#trouble button"), "the same would only happen again"
    assert page.is_hidden("#filters") and page.text_content("#where-wrong") == ""
    told = {"error": "there is no column widht", "hint": "", "about": "where"}
    page.route("**/search?*", lambda route: route.fulfill(status=422, json=told))
    page.fill("#q", "disc")
    page.wait_for_selector("#where-wrong:not(:empty)")
    assert page.is_hidden("#trouble")


def test_what_a_library_has_no_captions_for_is_not_offered(open_page):
    page = open_page(ready=False)
    page.route("**/api/libraries", lambda route: route.fulfill(json=[without(one) for one in route.fetch().json()]))
    page.reload()
    page.wait_for_selector("#grid .tile")
    page.click("#filters-button")
    assert page.is_hidden("#by") and page.is_hidden("#filter-near")
    assert page.is_visible("#filter-camera")


def without(library):
    """A library that knows nothing of captions and places."""
    columns = [one for one in library["columns"] if one["name"] not in ("captions", "latitude", "longitude")]
    return {**library, "captions": False, "columns": columns}
