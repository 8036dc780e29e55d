"""The pictures of the grid one by one: what is said of each, and how it comes."""

import pytest
from serve.browser.person import type_words

pytestmark = pytest.mark.browser

FITS = """async words => {
  const {fit} = await import("/static/words.js");
  const answer = await (await fetch(`/api/photographs/search?k=60&q=${encodeURIComponent(words)}`)).json();
  const truth = Object.fromEntries(answer.hits.map(hit => [hit.name, `fit ${fit(hit.fit)}`]));
  return [...document.querySelectorAll("#grid .shot")].map(link => {
    const [name] = link.getAttribute("aria-label").split(",");
    return {name, href: link.getAttribute("href"), label: link.getAttribute("aria-label"),
            over: link.querySelector(".number").textContent, truth: truth[name],
            kept: link.querySelector("img").kept === true};
  });
}"""


def test_fits_and_links_are_those_of_the_second_query(page):
    type_words(page, "disc number 3")
    page.eval_on_selector_all("#grid img", "all => all.forEach(image => { image.kept = true; })")
    type_words(page, "red gradient")
    shown = page.evaluate(FITS, "red gradient")
    for tile in shown:
        assert "q=red+gradient" in tile["href"]
        assert f", {tile['truth']}, " in tile["label"] and tile["over"] == tile["truth"]
    assert any(tile["kept"] for tile in shown), "a picture that stays does not flicker"


def test_a_thumbnail_that_the_service_was_too_busy_for_is_asked_for_again(page, open_page):
    open_page.expected |= {429, 503}
    asked = []

    def busy(route):
        asked.append(route.request.url)
        if asked.count(route.request.url) == 1:
            route.fulfill(status=(429, 503)[len(asked) % 2], headers={"retry-after": "1"}, json={"error": "busy"})
        else:
            route.continue_()

    page.route("**/thumbnail", busy)
    page.reload()
    page.wait_for_selector("#grid .broken")
    page.wait_for_function(
        "() => !document.querySelector('#grid .broken') && document.querySelectorAll('#grid .there').length > 10"
    )


def test_no_page_is_asked_for_below_the_depth_of_the_service(page):
    ended = page.evaluate(
        """async () => {
          const {Feed} = await import("/static/feed.js");
          const hit = at => ({id: `${at}`, name: "x", captions: [], width: 1, height: 1});
          window.fetch = async () => Response.json({
            pictures: Array.from({length: 60}, (_, at) => hit(at)), total: 800_000,
          });
          const feed = new Feed({library: "photographs", terms: [], where: "", by: ""});
          const ended = [];
          for (const offset of [0, 99_900, 99_940]) {
            feed.offset = offset;
            await feed.more();
            ended.push(feed.ended);
          }
          return ended;
        }"""
    )
    assert ended == [False, False, True]
