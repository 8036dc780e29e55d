"""The page for everybody: with keys alone, on a phone, in the dark, and with names that mean harm."""

import pytest
from serve.browser.person import HOSTILE, PHONE, focused, names, picture_bytes, type_words, wait_for_other

pytestmark = pytest.mark.browser

CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] > 0) return null; // something shows through
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || !box.width || box.width < 2 || element.closest(".over, .copies, [aria-hidden=true]")) continue;
    const ground = behind(element);
    if (!ground) continue;
    const [one, two] = [light(channels(getComputedStyle(element).color)), light(ground)];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) poor.push([element.className || element.tagName, element.textContent.slice(0, 40), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read_in_light_and_in_the_dark(open_page, scheme):
    open_page.expected.add(422)
    page = open_page("/?q=disc&t=1:text:beach&t=-1:text:people&from=2012", color_scheme=scheme)
    page.click("#filters-button")
    page.fill("#filter-where", "nonsense")
    page.wait_for_selector("#where-wrong:not(:empty)")
    assert page.evaluate(CONTRAST) == []
    page.fill("#filter-where", "")
    page.wait_for_selector("#where-wrong:empty", state="attached")
    page.locator("#grid .shot").first.click()
    page.wait_for_selector("#viewer-facts dl")
    assert page.evaluate(CONTRAST) == []
    page.goto(open_page.service + "/?view=captions&of=id:2")
    page.wait_for_selector(".captions li")
    assert page.evaluate(CONTRAST) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 251, 250)", "dark": "rgb(19, 21, 23)"}[scheme]


def test_everything_is_done_by_keys_alone(page):
    page.keyboard.type("a disc")
    before = names(page)
    wait_for_other(page, before)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    liked = focused(page).split(",")[0]
    before = names(page)
    page.keyboard.press("m")
    wait_for_other(page, before)
    page.keyboard.press("/")
    for _ in range(3):  # the button that clears, the one for pictures, the filters
        page.keyboard.press("Tab")
    assert focused(page) == "filters-button"
    page.keyboard.press("Tab")
    assert focused(page) == "More of: picture. Change to less"
    before = names(page)
    page.keyboard.press("Enter")
    wait_for_other(page, before)
    page.keyboard.press("Tab")
    assert focused(page) == "Weight of picture"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => location.search.includes('t=-0.9%3Aid')")
    page.keyboard.press("Delete")
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 0")
    assert focused(page) == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open] dl")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert liked
    assert page.evaluate("+document.activeElement.closest('[data-index]').dataset.index") == 1
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys:not([open])", state="attached")


def test_what_has_the_focus_can_be_seen(page):
    type_words(page, "disc")
    page.keyboard.press("Tab")
    for _ in range(12):
        seen = page.evaluate(
            """() => {
              const style = getComputedStyle(document.activeElement);
              const around = document.activeElement.closest(".box, .chosen, .chip");
              return document.activeElement === document.body || parseFloat(style.outlineWidth) >= 2
                && style.outlineStyle !== "none" || (around && getComputedStyle(around).boxShadow !== "none")
                || (around && getComputedStyle(around).outlineStyle !== "none");
            }"""
        )
        assert seen, focused(page)
        page.keyboard.press("Tab")


def test_the_first_step_of_tab_leads_over_the_head(page):
    page.focus("#home")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert focused(page) == "results"


def test_the_page_has_landmarks_headings_and_a_language(page):
    assert page.get_attribute("html", "lang") == "en"
    for selector in ("header", "nav[aria-label]", "main", "[role=search]", "h1", "h2:visible", "[role=status]"):
        assert page.locator(selector).count() >= 1, selector
    bare = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input:not([type=file]), select")]
          .filter(e => e.offsetParent && !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length
            || e.closest("label")))
          .map(e => e.outerHTML)"""
    )
    assert bare == [], "all that can be used has a name"
    assert (
        page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size")
        == page.locator("[id]").count()
    )


def test_on_a_phone_nothing_is_wider_than_the_window(open_page):
    page = open_page("/?q=disc&t=1:text:beach&t=-1:id:4&from=2012", **PHONE)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    page.tap("#filters-button")
    assert page.evaluate(width) == 360
    page.tap("#filters-button")
    page.locator("#grid .shot").first.tap()
    page.wait_for_selector("#viewer-facts dl")
    assert page.evaluate("document.querySelector('#viewer').scrollWidth") == 360
    page.tap("#close")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    for view in ("captions&of=id:3", "pictures&q=disc"):
        page.goto(f"{open_page.service}/?view={view}")
        page.wait_for_selector(".captions li, .judged li")
        assert page.evaluate(width) == 360


def test_on_a_phone_a_long_name_is_one_line_that_is_cut(open_page):
    page = open_page("/?library=few&view=pictures&q=disc", **{**PHONE, "width": 390})
    page.wait_for_selector(".judged li")
    name = "<img src=x onerror=window.hacked=1>.png"
    line = page.locator(".judged .what > p:first-child", has_text="onerror")
    assert line.text_content() == name and line.get_attribute("title") == name
    lines, cut = line.evaluate(
        "e => [e.clientHeight / parseFloat(getComputedStyle(e).lineHeight), e.scrollWidth > e.clientWidth]"
    )
    assert round(lines) == 1 and cut
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_on_a_phone_everything_is_done_by_touch(open_page):
    page = open_page(**PHONE)
    before = names(page)
    page.locator("#grid .like").nth(2).tap()
    assert wait_for_other(page, before)[0] == before[2]
    found = names(page)
    page.tap(".chip .sign")
    wait_for_other(page, found)
    page.tap(".chip .remove")
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 0")
    with page.expect_file_chooser() as chooser:
        page.tap("#choose")
    chooser.value.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": picture_bytes(4)})
    page.wait_for_selector(".chip")
    page.locator("#grid .shot").first.tap()
    page.wait_for_selector("#viewer[open] dl")
    page.tap("#zoom")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    page.tap("#zoom")
    page.tap("#next")
    page.tap("#close")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    page.tap("#views [data-view=captions]")
    page.wait_for_selector(".place")


def test_what_is_touched_is_large_enough(open_page):
    page = open_page("/?q=disc&t=1:text:beach", **PHONE)
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, .views a")].filter(e => e.offsetParent).map(e => {
          const box = e.getBoundingClientRect(), more = parseFloat(getComputedStyle(e, "::before").inset) || 0;
          return [e.outerHTML.slice(0, 80), box.width - 2 * more, box.height - 2 * more];
        }).filter(([, width, height]) => width < 32 || height < 32)"""
    )
    assert small == []


def test_motion_is_left_out_where_it_is_not_wanted(open_page):
    page = open_page(reduced_motion="reduce")
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter(e => {
          const style = getComputedStyle(e);
          return parseFloat(style.transitionDuration) > 0 || parseFloat(style.animationDuration) > 0;
        }).length"""
    )
    assert moving == 0


def test_names_and_captions_that_are_markup_or_turn_around_are_shown_as_they_are(open_page):
    page = open_page("/?library=few&q=disc")
    page.wait_for_function(f"() => document.querySelectorAll('#grid .shot').length >= {len(HOSTILE)}")
    labels = page.eval_on_selector_all("#grid .shot", "links => links.map(link => link.getAttribute('aria-label'))")
    shown = {
        "<img src=x onerror=window.hacked=1>.png",
        "two␊lines.png",
        "quotes\"'`.png",
        "חוף הים.png",
        "reversed[U+202E]gnp.png",
        "日本語の写真.png",
    }
    for name in shown:
        (at,) = [place for place, label in enumerate(labels) if label.startswith(name)]
        page.locator("#grid .shot").nth(at).click()
        page.wait_for_function("name => document.querySelector('#viewer-name').textContent === name", arg=name)
        page.wait_for_selector("#viewer-scores p")
        caption = page.locator("#viewer-scores h3:text-is('Captions') + ul p").first.text_content()
        assert caption in HOSTILE.values()
        page.keyboard.press("Escape")
        page.wait_for_selector("#viewer:not([open])", state="attached")
    page.goto(open_page.service + "/?library=few&view=captions&of=id:1")
    page.wait_for_selector(".captions li")
    captions = page.eval_on_selector_all(".captions li p", "all => all.map(e => e.textContent)")
    assert set(captions) == set(HOSTILE.values())
    page.goto(open_page.service + "/?library=few&view=pictures&q=disc")
    page.wait_for_selector(".judged li")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x], main script").count() == 0


def test_a_hostile_address_is_only_an_address(open_page):
    open_page.expected |= {404, 422}
    page = open_page(
        "/?library=<b>&view=__proto__&t=NaN:id:1&t=1:script:x&t=1:text:<img src=x onerror=window.hacked=1>&of=text:x"
        "&picture=../../etc/passwd&from=constructor&by=toString",
        ready=False,
    )
    page.wait_for_selector("#viewer-scores .wrong")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert page.locator(".chip").count() == 1
    assert page.evaluate("window.hacked") is None
