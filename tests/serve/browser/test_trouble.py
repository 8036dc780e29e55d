"""What goes wrong: no network, too many requests, a token; told in a line, and tried again."""

import re

import pytest
from serve.browser.person import TOKEN, names, type_words, wait_for_other

pytestmark = pytest.mark.browser


def trouble(page):
    page.wait_for_selector("#trouble:not([hidden])")
    return page.text_content("#trouble p")


def test_a_lost_network_is_told_and_its_return_is_enough(page, open_page):
    open_page.expected.add(0)
    newest = names(page)
    page.context.set_offline(True)
    page.fill("#q", "a disc")
    assert trouble(page) == "This device is offline."
    assert names(page) == newest, "what was found before is still there"
    page.context.set_offline(False)
    wait_for_other(page, newest)
    assert page.is_hidden("#trouble")


def test_a_service_that_does_not_answer_is_asked_again_by_the_button(page, open_page):
    open_page.expected.add(0)
    newest = names(page)
    page.route(re.compile(r"/search\?"), lambda route: route.abort("connectionrefused"))
    page.fill("#q", "a disc")
    assert trouble(page) == "The service cannot be reached."
    page.unroute(re.compile(r"/search\?"))
    page.click("#trouble >> text=Try again")
    wait_for_other(page, newest)
    assert page.is_hidden("#trouble")


def test_too_many_requests_are_told_and_asked_again_after_the_time_it_takes(page, open_page):
    open_page.expected.add(429)
    newest = names(page)
    tries = []

    def busy(route):
        tries.append(route)
        if len(tries) == 1:
            route.fulfill(status=429, headers={"retry-after": "1"}, json={"error": "too many requests", "hint": ""})
        else:
            route.continue_()

    page.route(re.compile(r"/search\?"), busy)
    page.fill("#q", "a disc")
    assert trouble(page) == "Too many requests at once."
    wait_for_other(page, newest)
    assert page.is_hidden("#trouble") and len(tries) == 2


def test_an_error_of_the_service_is_told_in_its_words(page, open_page):
    open_page.expected.add(500)
    told = {"error": "the service failed at this request", "hint": "Its log tells more, under 12ab."}
    page.route(re.compile(r"/search\?"), lambda route: route.fulfill(status=500, json=told))
    page.fill("#q", "a disc")
    assert trouble(page) == "The service failed at this request. Its log tells more, under 12ab."


def test_a_service_that_is_not_there_at_the_start_is_tried_again(open_page):
    open_page.expected.add(0)
    page = open_page(ready=False)
    page.route("**/api/libraries", lambda route: route.abort())
    page.reload()
    assert "cannot be reached" in trouble(page)
    page.unroute("**/api/libraries")
    page.click("#trouble >> text=Try again")
    page.wait_for_selector("#grid .tile")


def test_a_page_that_fails_in_the_middle_goes_on_from_there(page, open_page):
    open_page.expected.add(0)
    page.route(re.compile(r"offset=60"), lambda route: route.abort())
    page.mouse.wheel(0, 4000)
    assert "cannot be reached" in trouble(page)
    page.unroute(re.compile(r"offset=60"))
    page.click("#trouble >> text=Try again")
    page.wait_for_selector("#grid [data-index='70']")


def test_a_token_in_the_address_is_used_once_and_taken_out_of_it(open_page, guarded):
    page = open_page(address=guarded)
    assert TOKEN in guarded and TOKEN not in page.url
    assert page.evaluate("history.length") <= 2
    page.reload()
    page.wait_for_selector("#grid .tile")
    assert page.is_hidden("#token")
    assert TOKEN not in page.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
    assert type_words(page, "a disc")


def test_a_token_is_asked_for_where_it_is_missing(open_page, guarded):
    open_page.expected.add(401)
    page = open_page(address=guarded.split("#")[0] + "?q=disc", ready=False)
    page.wait_for_selector("#token[open]")
    page.fill("#token-field", "not the token at all")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#token-error').textContent === 'This is not the token.'")
    page.fill("#token-field", TOKEN)
    page.click("#token >> text=Continue")
    page.wait_for_selector("#grid .there img")
    assert page.is_hidden("#token")
    assert page.text_content("#search-title") == "Best matches"


def test_without_the_token_the_page_says_so_and_asks_again(open_page, guarded):
    open_page.expected.add(401)
    page = open_page(address=guarded.split("#")[0], ready=False)
    page.wait_for_selector("#token[open]")
    page.keyboard.press("Escape")
    assert "asks for its token" in trouble(page)
    page.click("#trouble >> text=Try again")
    page.wait_for_selector("#token[open]")
    page.fill("#token-field", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#grid .tile")


def test_a_wrong_token_in_the_address_is_asked_for(open_page, guarded):
    open_page.expected.add(401)
    page = open_page(address=guarded.split("#")[0] + "#token=wrong-wrong-wrong", ready=False)
    page.wait_for_selector("#token[open]")
    assert "wrong" not in page.url


def test_a_token_that_is_pasted_into_an_open_tab_is_used(open_page, guarded):
    open_page.expected.add(401)
    page = open_page(address=guarded.split("#")[0], ready=False)
    page.wait_for_selector("#token[open]")
    page.keyboard.press("Escape")
    assert "asks for its token" in trouble(page)
    page.evaluate("location.hash = '#token=wrong-wrong-wrong'")
    page.wait_for_selector("#token[open]")
    assert "wrong" not in page.url
    page.evaluate("token => { location.hash = `#token=${token}`; }", TOKEN)
    page.wait_for_selector("#grid .tile")
    assert page.is_hidden("#token") and page.is_hidden("#trouble")
    assert TOKEN not in page.url
    page.go_back()
    page.wait_for_timeout(100)
    assert TOKEN not in page.url and "wrong" not in page.url
