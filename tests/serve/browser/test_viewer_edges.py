"""The viewer where something ends: at the first picture, without a file, with a term twice, closed twice."""

import pytest
from serve.browser.person import focused, names, open_first, type_words, wait_for_name

pytestmark = pytest.mark.browser

INSIDE = "document.querySelector('#viewer').contains(document.activeElement)"


def closed(page):
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_the_keys_go_on_where_a_button_goes_away(page):
    order = names(page)
    open_first(page, 1)
    page.focus("#previous")
    page.keyboard.press("Enter")
    wait_for_name(page, order[0])
    assert page.is_hidden("#previous")
    assert page.evaluate(INSIDE)
    page.keyboard.press("z")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    page.keyboard.press("z")
    page.keyboard.press("ArrowRight")
    wait_for_name(page, order[1])


def test_the_keys_go_on_at_the_last_picture_and_from_a_button_of_the_picture_before(open_page):
    page = open_page("/?library=few")
    order = names(page)
    page.locator("#grid .shot").nth(len(order) - 2).click()
    wait_for_name(page, order[-2])
    page.focus("#next")
    page.keyboard.press("Enter")
    wait_for_name(page, order[-1])
    assert page.is_hidden("#next")
    page.keyboard.press("ArrowLeft")
    wait_for_name(page, order[-2])
    page.focus("#viewer-actions button")
    page.keyboard.press("ArrowLeft")
    wait_for_name(page, order[-3])
    page.keyboard.press("ArrowLeft")
    wait_for_name(page, order[-4])


def test_a_file_that_is_gone_is_not_blamed_on_the_browser(page, open_page):
    open_page.expected.add(404)
    told = {"error": "the file is not there any more", "hint": "cliplet index brings the library up to date."}
    page.route("**/original", lambda route: route.fulfill(status=404, json=told))
    page.locator("#grid .shot").first.click()
    page.wait_for_selector("#viewer-note:not([hidden])")
    note = page.text_content("#viewer-note")
    assert note == "The file is not there any more. cliplet index brings the library up to date."


def test_a_file_that_the_browser_cannot_read_is(page):
    page.route("**/original", lambda route: route.fulfill(status=200, content_type="image/tiff", body=b"II*"))
    page.locator("#grid .shot").first.click()
    page.wait_for_selector("#viewer-note:not([hidden])")
    assert page.text_content("#viewer-note").startswith("This browser cannot show the file itself")


def test_a_picture_that_is_a_term_already_is_said_to_be(open_page):
    page = open_page("/?t=1:id:5")
    open_first(page)  # the picture itself
    page.click("#viewer-actions >> text=More like this")
    closed(page)
    page.wait_for_selector("#told:not([hidden])")
    assert page.text_content("#told") == "This picture is a term already."
    assert page.locator(".chip").count() == 1
    assert page.text_content("#status") != "More like this picture."


def test_a_term_too_many_is_said_to_be(open_page):
    page = open_page("/?" + "&".join(f"t=1:text:word{at}" for at in range(15)))
    open_first(page)
    page.keyboard.press("m")
    closed(page)
    page.wait_for_selector("#told:not([hidden])")
    assert page.text_content("#told") == "There can be no more than 15 terms beside the box."
    assert page.locator(".chip").count() == 15


def test_closing_twice_is_one_step_back(page):
    type_words(page, "a disc")
    page.press("#q", "Enter")
    name = open_first(page, 1)
    page.evaluate("() => { const close = document.querySelector('#close'); close.click(); close.click(); }")
    closed(page)
    page.wait_for_timeout(300)
    assert page.url.endswith("?q=a+disc")
    assert focused(page).startswith(name)
    page.go_forward()
    wait_for_name(page, name)
    page.keyboard.press("Escape")
    closed(page)
