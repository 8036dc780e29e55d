"""Pictures of the page, for people to look at: in the folder that CLIPLET_SHOTS names, else in one of the test's own.

Whether the page looks right, nobody but a person can say; what is asserted is that each of these states is reached, and
that the picture of it is not one colour.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve.browser.person import PHONE, TOKEN, names, wait_for_other

pytestmark = pytest.mark.browser

DARK = {"color_scheme": "dark"}
SCREENS = {
    "light": ("/", {}, None),
    "dark": ("/?q=a+blue+disc", DARK, None),
    "chips": ("/?q=disc&t=0.8:id:12&t=-0.5:text:people", {}, None),
    "filters": ("/?q=disc&from=2012&where=widht+>+3", {}, "#where-wrong:not(:empty)"),
    "viewer": ("/?q=disc&picture=7", {}, "#viewer-facts dl"),
    "viewer-dark": ("/?q=disc&picture=7", DARK, "#viewer-facts dl"),
    "captions": ("/?view=captions&of=id:5", {}, ".captions li"),
    "captions-empty": ("/?view=captions", {}, ".place"),
    "pictures": ("/?view=pictures&q=disc+number+42", {}, ".judged li"),
    "phone": ("/", PHONE, None),
    "phone-chips": ("/?q=disc&t=0.8:id:12&t=-0.5:text:people&from=2012", PHONE, None),
    "phone-viewer": ("/?q=disc&picture=7", PHONE, "#viewer-facts dl"),
    "phone-pictures": ("/?view=pictures&q=disc", {**PHONE, **DARK}, ".judged li"),
}


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("CLIPLET_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shoot(page, file):
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(400)
    page.screenshot(path=file)
    assert np.asarray(Image.open(file).convert("L")).std() > 5


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_reached(open_page, shots, name):
    path, options, there = SCREENS[name]
    open_page.expected.add(422)
    page = open_page(path, ready=there is None, **options)
    if there:
        page.wait_for_selector(there)
    shoot(page, shots / f"{name}.png")


def test_the_screen_where_nothing_fits(page, shots):
    page.route("**/search?*", lambda route: route.fulfill(json={**route.fetch().json(), "nothing_fits": True}))
    before = names(page)
    page.fill("#q", "a tax return")
    wait_for_other(page, before)
    page.wait_for_selector("#nothing:not([hidden])")
    shoot(page, shots / "nothing.png")


def test_the_screen_while_a_picture_is_dragged_over_it(page, shots):
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([""], "x.png", {type: "image/png"}));
          document.body.dispatchEvent(new DragEvent("dragenter", {dataTransfer: transfer, bubbles: true}));
        }"""
    )
    assert page.is_visible("#drop")
    shoot(page, shots / "drop.png")


def test_the_screens_of_trouble_and_of_keys(page, open_page, shots):
    open_page.expected.add(0)
    page.click("#keys-button")
    shoot(page, shots / "keys.png")
    page.keyboard.press("Escape")
    page.context.set_offline(True)
    page.fill("#q", "a disc")
    page.wait_for_selector("#trouble:not([hidden])")
    shoot(page, shots / "trouble.png")


def test_the_screen_that_asks_for_the_token(open_page, guarded, shots):
    open_page.expected.add(401)
    page = open_page(address=guarded.replace(TOKEN, "").split("#")[0], ready=False)
    page.wait_for_selector("#token[open]")
    page.fill("#token-field", "wrong-wrong-wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-error:not(:empty)")
    shoot(page, shots / "token.png")
