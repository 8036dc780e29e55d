"""The viewer of one picture: opened and closed, gone through, zoomed, and what it tells."""

import re

import pytest
from serve.browser.person import PHONE, focused, names, open_first, type_words, wait_for_name, wait_for_other

pytestmark = pytest.mark.browser


def fact(page, name):
    return (
        page.locator("#viewer-facts dl > div", has=page.locator(f"dt:text-is('{name}')")).locator("dd").text_content()
    )


def test_a_picture_is_shown_with_all_that_is_known(page, places):
    type_words(page, "a disc")
    name = open_first(page, 1)
    number = int(name[:3])
    record = page.evaluate(
        """async () => {
          const id = new URLSearchParams(location.search).get("picture");
          return (await fetch(`/api/photographs/pictures/${id}`)).json();
        }"""
    )
    assert record["name"] == name
    assert fact(page, "Taken") == f"{1 + number % 28} July {2010 + number % 10}, 12:30"
    assert fact(page, "Camera") == ("Canon EOS R5", "iPhone 14")[number % 2]
    assert fact(page, "Size").startswith(f"{record['width']} × {record['height']}")
    assert fact(page, "File").startswith("JPEG, ")
    assert fact(page, "Path") == str(places[0].parent / "photographs" / name)
    captions = page.locator("#viewer-scores h3:text-is('Captions') + ul li")
    assert [captions.nth(at).locator("p").text_content() for at in range(captions.count())] == record["captions"]
    for at in range(captions.count()):
        meters = captions.nth(at).locator("[role=meter]")
        assert [meters.nth(each).get_attribute("aria-label") for each in (0, 1)] == ["Fit", "Cosine"]
        assert 0 <= float(meters.nth(0).get_attribute("aria-valuenow")) <= 100
    assert page.locator("#viewer-scores h3:text-is('Searched for') + ul li p").text_content() == "a disc"
    source = page.get_attribute("#shot", "src")
    assert source.endswith("/original")
    assert page.evaluate("document.querySelector('#shot').naturalWidth") == record["width"]


def test_the_place_of_a_picture_is_told_and_leads_to_those_near_it(page):
    page.click("#filters-button")
    page.fill("#filter-near", "48.2, 16.4")
    wait_for_other(page, names(page))
    page.click("#filters-button")
    open_first(page)
    assert re.match(r"48\.2\d+° N, 16\.4\d*° E", fact(page, "Place"))
    page.click("text=Pictures near here")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert re.search(r"near=48\.2\d+%2C\+16\.4", page.url)


def test_arrows_lead_to_the_next_and_the_previous_picture(page):
    order = names(page)
    open_first(page, 2)
    page.keyboard.press("ArrowRight")
    wait_for_name(page, order[3])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    wait_for_name(page, order[1])
    page.click("#previous")
    wait_for_name(page, order[0])
    assert page.is_hidden("#previous")
    page.click("#next")
    wait_for_name(page, order[1])
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert focused(page).startswith(order[1]), "the focus is where one stopped"
    assert page.url.rstrip("/") == page.url[: page.url.index("/", 8)], "the address holds no picture any more"


def test_the_next_picture_is_there_beyond_the_first_page(page):
    open_first(page)
    for _ in range(70):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(30)
    assert page.evaluate("new URLSearchParams(location.search).get('picture')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert page.evaluate("+document.activeElement.closest('[data-index]').dataset.index") >= 60


def test_escape_and_the_back_button_close_it_and_give_the_focus_back(page):
    name = open_first(page, 3)
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert focused(page).startswith(name)
    page.keyboard.press("Enter")
    wait_for_name(page, name)
    page.go_back()
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert focused(page).startswith(name)
    page.go_forward()
    wait_for_name(page, name)
    page.click("#close")
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_an_open_picture_is_in_the_address_and_outlives_a_reload(page, open_page):
    type_words(page, "a disc")
    name = open_first(page, 1)
    page.reload()
    wait_for_name(page, name)
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert page.url.endswith("?q=a+disc")
    page.go_forward()
    link = page.url
    other = open_page(link[len(open_page.service) :], ready=False)
    wait_for_name(other, name)
    other.keyboard.press("Escape")
    other.wait_for_selector("#viewer:not([open])", state="attached")
    assert other.url.endswith("?q=a+disc"), "though there is nothing to go back to"


def test_the_place_behind_an_open_picture_outlives_a_reload(page):
    type_words(page, "a disc")
    page.press("#q", "ArrowDown")
    for _ in range(40):
        page.keyboard.press("ArrowDown")
        page.wait_for_timeout(30)
    page.wait_for_timeout(400)
    label, place = focused(page), page.evaluate("scrollY")
    assert place > 1500
    page.keyboard.press("Enter")
    wait_for_name(page, label.split(",")[0])
    page.reload()
    wait_for_name(page, label.split(",")[0])
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    page.wait_for_function("label => document.activeElement.getAttribute('aria-label') === label", arg=label)
    assert page.evaluate("scrollY") == pytest.approx(place, abs=250)


def test_a_picture_that_is_closed_before_the_results_are_there_gets_the_focus_when_they_are(page):
    type_words(page, "a disc")
    name = open_first(page, 1)
    held = []
    page.route("**/search?*", lambda route: held.append(route))
    page.reload()
    wait_for_name(page, name)
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    while not held:
        page.wait_for_timeout(20)
    for route in held:
        route.continue_()
    page.wait_for_function("name => (document.activeElement.ariaLabel || '').startsWith(name)", arg=name)


def test_a_picture_that_is_not_there_is_told(open_page):
    open_page.expected.add(404)
    page = open_page("/?picture=99999", ready=False)
    page.wait_for_selector("#viewer-scores .wrong")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    page.wait_for_selector("#grid .tile")


def test_the_focus_stays_inside(page):
    open_first(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        inside = page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('#viewer')"
        )
        assert inside


def test_full_size_and_back(page):
    open_first(page)
    before = page.eval_on_selector("#shot", "e => e.getBoundingClientRect().width")
    page.keyboard.press("z")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    assert page.eval_on_selector("#shot", "e => e.getBoundingClientRect().width") > 1.3 * before
    page.keyboard.press("Escape")
    assert page.get_attribute("#zoom", "aria-pressed") == "false"
    assert page.is_visible("#viewer"), "the first Escape leaves full size, the second the picture"
    page.click("#shot")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    page.click("#zoom")
    assert page.eval_on_selector("#shot", "e => e.getBoundingClientRect().width") == pytest.approx(before, abs=1)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_a_picture_in_full_size_is_moved_by_arrows_and_by_the_mouse(page):
    type_words(page, "disc")
    name = open_first(page)
    page.keyboard.press("z")
    page.wait_for_timeout(50)
    stage = "e => [e.scrollLeft, e.scrollTop]"
    before = page.eval_on_selector("#stage", stage)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    after = page.eval_on_selector("#stage", stage)
    assert after != before
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 360, steps=4)
    page.mouse.up()
    assert page.eval_on_selector("#stage", stage) != after
    assert page.get_attribute("#zoom", "aria-pressed") == "true", "moving is no click"
    assert page.text_content("#viewer-name") == name


def test_a_swipe_leads_to_the_next_picture(open_page):
    page = open_page(**PHONE)
    order = names(page)
    page.locator("#grid .shot").nth(1).tap()
    wait_for_name(page, order[1])
    swipe = """by => {
      const stage = document.querySelector("#stage");
      const event = (type, x) => stage.dispatchEvent(new PointerEvent(type,
        {pointerType: "touch", isPrimary: true, clientX: x, clientY: 200, bubbles: true, pointerId: 5}));
      event("pointerdown", 180); event("pointermove", 180 + by / 2); event("pointerup", 180 + by);
    }"""
    page.evaluate(swipe, -120)
    wait_for_name(page, order[2])
    page.evaluate(swipe, 120)
    wait_for_name(page, order[1])
    page.evaluate(swipe, -20)
    page.wait_for_timeout(100)
    assert page.text_content("#viewer-name") == order[1]


def test_more_like_this_closes_it_and_searches(page):
    before = names(page)
    name = open_first(page, 4)
    page.click("#viewer-actions >> text=More like this")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert wait_for_other(page, before)[0] == name
    assert page.locator(".chip").count() == 1
    page.go_back()
    wait_for_name(page, name)


def test_the_original_is_opened_and_saved(page):
    name = open_first(page)
    link = page.locator("#viewer-actions a:has-text('Original')")
    assert link.get_attribute("target") == "_blank" and "noopener" in link.get_attribute("rel")
    with page.expect_download() as saved:
        page.click("#viewer-actions >> text=Download")
    assert saved.value.suggested_filename == name
    assert saved.value.path().stat().st_size > 300


def test_the_path_is_copied(browser, service, open_page, places):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    name = open_first(page)
    page.click("[aria-label='Copy the path']")
    page.wait_for_function("() => document.querySelector('#viewer-status').textContent === 'The path was copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == str(places[0].parent / "photographs" / name)


def test_the_path_is_copied_where_browsers_offer_no_clipboard(page, places):
    """As on a page that is not served over TLS."""
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("document.execCommand = what => { window.copied = [what, getSelection().toString()]; return true; }")
    name = open_first(page)
    page.click("[aria-label='Copy the path']")
    page.wait_for_function("() => window.copied")
    assert page.evaluate("window.copied") == ["copy", str(places[0].parent / "photographs" / name)]
    assert focused(page) == "Copy the path"


def test_a_file_that_the_browser_cannot_show_is_shown_small(page, open_page):
    open_page.expected.add(404)
    page.route("**/original", lambda route: route.fulfill(status=404, json={"error": "gone", "hint": ""}))
    page.locator("#grid .shot").first.click()
    page.wait_for_selector("#viewer-note:not([hidden])")
    assert page.get_attribute("#shot", "src").endswith("/thumbnail")
    page.wait_for_function("() => document.querySelector('#shot').naturalWidth > 0")


def test_a_link_of_a_picture_opens_it_in_a_window_of_its_own(page):
    with page.context.expect_page() as opened:
        page.locator("#grid .shot").first.click(modifiers=["Control"])
    other = opened.value
    other.wait_for_selector("#viewer[open]")
    assert page.is_hidden("#viewer")
