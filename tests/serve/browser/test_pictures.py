"""Searching by pictures: dropped, pasted, chosen, or found; and the chips that they become."""

import re

import pytest
from serve.browser.person import drop, focused, names, paste, picture_bytes, type_words, wait_for_other

pytestmark = pytest.mark.browser


def terms_of(page, act):
    """The terms of the search that `act` causes."""
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/search")) as asked:
        act()
    return asked.value.post_data_json["terms"]


def test_a_picture_that_is_dropped_is_searched_for(page):
    before = names(page)
    (term,) = terms_of(page, lambda: drop(page, picture_bytes(1)))
    assert term["weight"] == 1 and term["upload"]
    wait_for_other(page, before)
    page.wait_for_selector(".chip .thumb.there img")
    assert page.is_hidden("#drop")


def test_the_picture_of_a_file_finds_the_file(page, places):
    file = places[0].parent / "photographs" / "010.jpg"
    before = names(page)
    drop(page, file.read_bytes(), "any.jpg", "image/jpeg")
    assert wait_for_other(page, before)[0] == "010.jpg"


def test_a_picture_that_is_pasted_is_searched_for(page):
    before = names(page)
    terms_of(page, lambda: paste(page, picture_bytes(2)))
    wait_for_other(page, before)
    assert page.locator(".chip").count() == 1
    assert page.input_value("#q") == ""


def test_words_that_are_pasted_are_words(page, browser):
    page.focus("#q")
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.setData("text/plain", "words");
          const event = new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true});
          window.prevented = !document.activeElement.dispatchEvent(event);
        }"""
    )
    assert page.evaluate("window.prevented") is False, "the browser puts them into the field"
    assert page.locator(".chip").count() == 0


def test_a_file_is_chosen(page):
    before = names(page)
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": picture_bytes(4)})
    wait_for_other(page, before)
    assert page.locator(".chip").count() == 1


def test_several_pictures_at_once_are_several_terms(page):
    page.evaluate(
        """lists => {
          const transfer = new DataTransfer();
          for (const bytes of lists) {
            transfer.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
          }
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [list(picture_bytes(5)), list(picture_bytes(6))],
    )
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 2")


def test_pictures_that_are_too_many_are_said_to_be_left_out(page):
    page.evaluate(
        """lists => {
          const transfer = new DataTransfer();
          for (const bytes of lists) {
            transfer.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
          }
          transfer.items.add(new File(["%PDF"], "x.pdf", {type: "application/pdf"}));
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [list(picture_bytes(20 + at)) for at in range(6)],
    )
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 4")
    page.wait_for_selector("#told:not([hidden])")
    beyond, other = page.text_content("#told").split(". ")
    assert beyond == "2 pictures were left out: no more than 4 are taken at a time"
    assert other == "1 file is no picture."


def test_a_picture_is_searched_for_where_the_browsers_store_is_not_as_it_should_be(page):
    page.evaluate(
        """() => new Promise(done => {
          const opening = indexedDB.open("cliplet", 1);
          opening.onsuccess = () => { opening.result.close(); done(); };
        })"""
    )
    drop(page, picture_bytes(31))
    page.wait_for_selector(".chip .thumb.there img")


def test_what_is_no_picture_is_refused_in_words(page, open_page):
    open_page.expected.add(415)
    drop(page, b"this is no picture", "x.png")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "picture that was sent is none" in page.text_content("#trouble p")
    assert page.is_hidden("#trouble button"), "the same would happen again"
    drop(page, b"%PDF", "x.pdf", "application/pdf")
    page.wait_for_function("() => document.querySelector('#trouble p').textContent.includes('not a picture')")
    drop(page, picture_bytes(7))
    page.wait_for_selector(".chip")
    assert page.is_hidden("#trouble")


def test_a_picture_of_the_grid_can_be_dragged_into_the_query(page):
    before = names(page)
    (term,) = terms_of(
        page,
        lambda: page.evaluate(
            """() => {
              const transfer = new DataTransfer();
              const start = new DragEvent("dragstart", {dataTransfer: transfer, bubbles: true});
              document.querySelector("#grid .shot").dispatchEvent(start);
              const drop = new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
              document.querySelector("#query").dispatchEvent(drop);
            }"""
        ),
    )
    assert term["id"]
    wait_for_other(page, before)


def test_more_like_this_is_a_chip_and_the_picture_comes_first(page):
    before = names(page)
    tile = page.locator("#grid .tile").nth(5)
    tile.hover()
    tile.locator(".like").click()
    assert wait_for_other(page, before)[0] == before[5]
    assert re.search(r"t=1%3Aid%3A\d+", page.url)
    page.reload()
    page.wait_for_selector(".chip .thumb.there img")
    page.wait_for_selector("#grid .tile")
    assert names(page)[0] == before[5]


def test_words_and_pictures_are_added_and_left_out(page):
    type_words(page, "beach")
    drop(page, picture_bytes(8))
    page.wait_for_selector(".chip")
    page.click("#add-less")
    assert focused(page) == "Less of these words"
    terms = terms_of(page, lambda: page.keyboard.type("people"))
    assert [term["weight"] for term in terms] == [1, 1, -1]
    assert (terms[0]["text"], terms[2]["text"]) == ("beach", "people")
    unwanted = page.locator(".chip").nth(1)
    terms = terms_of(page, lambda: unwanted.locator(".sign").click())
    assert terms[2]["weight"] == 1
    terms = terms_of(page, lambda: unwanted.locator("[type=range]").fill("0.4"))
    assert terms[2]["weight"] == 0.4
    assert unwanted.locator(".weight").text_content() == "×0.4"
    terms = terms_of(page, lambda: page.locator(".chip .sign").first.click())
    assert terms[1]["weight"] == -1


def test_weights_and_signs_change_what_is_found(page):
    drop(page, picture_bytes(9))
    page.wait_for_selector(".chip")
    wanted = type_words(page, "disc")
    page.locator(".chip .sign").click()
    assert wait_for_other(page, wanted) != wanted
    assert page.get_attribute(".chip", "class") == "chip unwanted"


def test_chips_stand_in_the_address_and_come_back(page):
    type_words(page, "beach")
    page.click("#add-less")
    page.keyboard.type("people")
    before = names(page)
    wait_for_other(page, before)
    page.locator(".chip [type=range]").fill("0.5")
    page.wait_for_function("() => location.search.includes('-0.5%3Atext%3Apeople')")
    page.wait_for_timeout(400)
    found = names(page)
    page.reload()
    page.wait_for_selector("#grid .tile")
    assert names(page) == found
    assert page.input_value(".chip .words") == "people"
    page.locator(".chip .remove").click()
    wait_for_other(page, found)
    assert "people" not in page.url
    page.go_back()
    page.wait_for_selector(".chip.unwanted")


def test_a_chip_without_words_is_gone_when_it_is_left(page):
    type_words(page, "beach")
    page.click("#add-more")
    assert page.locator(".chip").count() == 1
    page.focus("#q")
    assert page.locator(".chip").count() == 0


def test_a_picture_outlives_a_reload_and_a_forgetful_service(page, open_page):
    """The service forgets what it was sent; the browser remembers it, and sends it again."""
    open_page.expected.add(404)
    newest = names(page)
    drop(page, picture_bytes(10))
    page.wait_for_selector(".chip .thumb.there img")
    before = wait_for_other(page, newest)
    first = page.url
    token = re.search(r"upload%3A([\w-]+)", first)[1]

    def forgotten(route):
        if token in (route.request.post_data or ""):
            route.fulfill(
                status=404, json={"error": "the picture that was sent is not remembered any more", "hint": ""}
            )
        else:
            route.continue_()

    page.route(re.compile(r"/search$"), forgotten)
    page.reload()
    page.wait_for_selector("#grid .tile")
    assert names(page) == before
    page.wait_for_selector(".chip .thumb.there img")
    assert page.is_hidden("#trouble")
    assert page.url == first, "the address stays what it was"


def test_a_picture_that_nobody_holds_any_more_is_told(open_page):
    open_page.expected.add(404)
    page = open_page("/?t=1:upload:nobody", ready=False)
    page.wait_for_selector("#trouble:not([hidden])")
    assert "not remembered any more" in page.text_content("#trouble p")
    page.locator(".chip .remove").click()
    page.wait_for_selector("#grid .tile")
    assert page.is_hidden("#trouble")


def test_a_large_photograph_is_sent_smaller(page):
    """What a camera makes would take long from a phone; the model looks at a few hundred pixels."""
    with page.expect_request(lambda request: request.url.endswith("/uploads")) as sent:
        page.evaluate(
            """async () => {
              const canvas = new OffscreenCanvas(2600, 2600);
              const context = canvas.getContext("2d");
              const noise = context.createImageData(2600, 2600);
              for (let at = 0; at < noise.data.length; at += 65536) {
                crypto.getRandomValues(noise.data.subarray(at, at + 65536));
              }
              context.putImageData(noise, 0, 0);
              const blob = await canvas.convertToBlob({type: "image/png"});
              const transfer = new DataTransfer();
              transfer.items.add(new File([blob], "large.png", {type: "image/png"}));
              const drop = new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
              document.body.dispatchEvent(drop);
              window.large = blob.size;
            }"""
        )
    page.wait_for_selector(".chip")
    assert page.evaluate("window.large") > 8e6
    assert int(sent.value.all_headers()["content-length"]) < page.evaluate("window.large") / 2
