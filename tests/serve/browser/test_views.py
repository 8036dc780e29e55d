"""From a picture to captions, and from a caption to pictures with their scores."""

import re

import pytest
from serve.browser.person import PICTURES, drop, focused, names, paste, picture_bytes, type_words

pytestmark = pytest.mark.browser


def bars_of(page, selector):
    """Fit and cosine of each entry, as numbers and as the widths of bars."""
    return page.eval_on_selector_all(
        selector,
        """entries => entries.map(entry => ["fit", "score"].map(kind => {
          const bar = entry.querySelector(".bar." + kind);
          const width = bar.querySelector(".filled").getBoundingClientRect().width;
          return {
            number: Number(bar.querySelector(".number").textContent.replace("−", "-")),
            part: width / bar.querySelector(".meter").getBoundingClientRect().width,
          };
        }))""",
    )


def assert_bars_are_numbers(bars):
    """Fits fill their hundredth; cosines are drawn from 0 to the best."""
    best = max(score["number"] for _, score in bars)
    for fit, score in bars:
        assert fit["part"] == pytest.approx(fit["number"] / 100, abs=0.02)
        assert score["part"] == pytest.approx(max(0, score["number"]) / best, abs=0.02)
    numbers = [score["number"] for _, score in bars]
    assert numbers == sorted(numbers, reverse=True)


def test_the_views_are_reached_by_their_tabs_and_kept_by_the_history(page):
    page.click("#views >> text=Picture → captions")
    page.wait_for_selector(".place")
    assert page.get_attribute("#views [data-view=captions]", "aria-current") == "page"
    assert page.is_hidden("#query") and page.is_hidden("#search-view")
    page.click("#views >> text=Caption → pictures")
    assert "view=pictures" in page.url
    assert page.is_visible("#query")
    page.go_back()
    page.wait_for_selector(".place")
    page.go_back()
    page.wait_for_selector("#grid .tile")
    assert page.get_attribute("#views [data-view=search]", "aria-current") == "page"


def test_a_dropped_picture_shows_its_best_captions(open_page):
    page = open_page("/?view=captions")
    drop(page, picture_bytes(1))
    page.wait_for_selector(".captions li")
    assert page.locator(".captions li").count() == 20
    assert_bars_are_numbers(bars_of(page, ".captions li"))
    page.wait_for_function("() => document.querySelector('.subject img').naturalWidth > 0")
    first = page.locator(".captions li p").first.text_content()
    page.click("text=More captions")
    page.wait_for_function("() => document.querySelectorAll('.captions li').length === 40")
    page.reload()
    page.wait_for_selector(".captions li")
    assert page.locator(".captions li p").first.text_content() == first
    paste(page, picture_bytes(2))
    page.wait_for_function("first => document.querySelector('.captions li p')?.textContent !== first", arg=first)
    with page.expect_file_chooser() as chooser:
        page.click("text=Another picture")
    chooser.value.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": picture_bytes(1)})
    page.wait_for_function("first => document.querySelector('.captions li p')?.textContent === first", arg=first)


def test_more_captions_are_asked_for_once_at_a_time(open_page):
    page = open_page("/?view=captions&of=id:3")
    page.wait_for_selector(".captions li")
    asked = []
    page.on("request", lambda request: asked.append(request) if request.url.endswith("/captions") else None)
    page.get_by_role("button", name="More captions").evaluate("button => { button.click(); button.click(); }")
    page.wait_for_function("() => document.querySelectorAll('.captions li').length > 20")
    page.wait_for_timeout(300)
    assert page.locator(".captions li").count() == 40 and len(asked) == 1


def test_a_picture_of_the_library_shows_which_captions_are_its_own(page):
    name = names(page)[0]
    page.locator("#grid .shot").first.click()
    page.click("text=Fitting captions")
    page.wait_for_selector(".captions li")
    assert re.search(r"view=captions&of=id%3A\d+", page.url)
    entries = page.eval_on_selector_all(
        ".captions li", "all => all.map(e => [e.querySelector('p').textContent, e.querySelector('.own') !== null])"
    )
    for text, own in entries:
        if text.startswith("disc number"):
            assert own == (text == f"disc number {int(name[:3])}")


def test_a_picture_of_the_library_is_taken(open_page):
    page = open_page("/?view=captions")
    page.click("text=One of the library’s")
    page.wait_for_selector(".captions li")
    first = page.url
    for _ in range(8):  # by chance it may be the same one again
        page.click("text=One of the library’s")
        page.wait_for_timeout(200)
    assert page.url != first


def test_a_picture_of_a_very_large_library_is_taken_from_as_deep_as_the_service_goes(open_page):
    page = open_page(ready=False)

    def large(route):
        route.fulfill(json=[{**one, "pictures": 800_000} for one in route.fetch().json()])

    page.route("**/api/libraries", large)
    page.goto(open_page.service + "/?view=captions")
    page.wait_for_selector(".place")
    page.evaluate("Math.random = () => 0.9999999")
    depths = []

    def taken(route):
        depths.append(int(re.search(r"offset=(\d+)", route.request.url)[1]))
        picture = {"id": "3", "name": "002.jpg", "width": 96, "height": 96, "captions": ["disc number 2"]}
        route.fulfill(json={"pictures": [picture], "total": 800_000})

    page.route("**/pictures?k=1&*", taken)
    page.click("text=One of the library’s")
    page.wait_for_selector(".captions li")
    assert depths == [99_999]


def test_a_caption_leads_to_its_picture_and_back(open_page):
    page = open_page("/?view=captions&of=id:3")
    page.wait_for_selector(".captions li")
    link = page.locator(".captions li a").nth(2)
    label = link.get_attribute("aria-label")
    link.click()
    page.wait_for_selector("#viewer[open] dl")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert focused(page) == label


def test_a_library_without_captions_says_so(open_page):
    page = open_page(ready=False)

    def without(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=[{**one, "captions": False} for one in answer.json()])

    page.route("**/api/libraries", without)
    page.goto(open_page.service + "/?view=captions")
    page.wait_for_selector("text=This library holds no captions.")


def test_a_caption_shows_pictures_with_their_scores(open_page):
    page = open_page("/?view=pictures")
    page.fill("#q", "disc number 42")
    page.wait_for_selector(".judged li")
    bars = bars_of(page, ".judged li")
    assert len(bars) == 60
    assert_bars_are_numbers(bars)
    for _ in range(12):
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(80)
    page.wait_for_function(f"() => document.querySelectorAll('.judged li').length === {PICTURES}")


def test_it_is_told_where_the_picture_of_a_caption_stands(open_page):
    page = open_page("/?view=pictures&q=Disc+number+42")
    page.wait_for_selector(".verdict:not([hidden])")
    verdict = page.text_content(".verdict")
    place = re.fullmatch(r"The picture that this caption was written for is number (\d+)\.", verdict)
    if place:
        right = page.locator(".judged li.right")
        assert right.count() == 1
        assert right.locator(".what bdi").first.text_content() == "042.jpg"
        assert page.evaluate("[...document.querySelector('.judged').children].findIndex(e => e.matches('.right'))") == (
            int(place[1]) - 1
        )
    else:
        assert verdict == "The picture that this caption was written for is not among the first 60."
    page.fill("#q", "a caption of no picture")
    page.wait_for_selector(".verdict", state="hidden")


def test_a_caption_of_the_library_is_taken(open_page):
    page = open_page("/?view=pictures")
    assert page.locator(".judged li").count() == 0
    page.click("#another")
    page.wait_for_selector(".judged li")
    assert re.search("disc", page.input_value("#q"))
    page.wait_for_selector(".verdict:not([hidden])")


def test_a_caption_is_taken_by_the_letter(open_page):
    page = open_page("/?view=pictures")
    with page.expect_request(lambda request: "/search?" in request.url) as asked:
        page.fill("#q", "a man - in red + blue")
    assert "a+man+-+in+red+%2B+blue" in asked.value.url


def test_words_and_filters_stay_from_one_view_to_the_other(page):
    type_words(page, "disc")
    page.click("#filters-button")
    page.fill("#filter-from", "2015")
    page.wait_for_function("() => document.querySelector('#summary').textContent.startsWith('75 of')")
    first = names(page)[0]
    page.click("#views >> text=Caption → pictures")
    page.wait_for_selector(".judged li")
    assert page.locator(".judged li bdi").first.text_content() == first
    assert page.text_content("#pictures-view .summary").startswith("75 pictures")


def test_a_judged_picture_opens_and_the_next_ones_follow(open_page):
    page = open_page("/?view=pictures&q=disc")
    page.wait_for_selector(".judged li")
    order = page.eval_on_selector_all(".judged li .what > p:first-child", "all => all.map(e => e.textContent)")
    page.locator(".judged li a").nth(1).click()
    page.wait_for_function("name => document.querySelector('#viewer-name').textContent === name", arg=order[1])
    page.keyboard.press("ArrowRight")
    page.wait_for_function("name => document.querySelector('#viewer-name').textContent === name", arg=order[2])
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert focused(page) == f"Open {order[1]}"
