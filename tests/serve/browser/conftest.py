"""A service that really runs, and a browser that uses its page as a person does.

Chromium is Debian's (`apt-get install chromium`), Playwright drives it (`pip install playwright`; it need fetch no
browser). Every test that opens a page also proves that nothing is asked of any other host, and that no script failed.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from serve.browser.person import HOSTILE, PICTURES, TOKEN, photograph

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHAPES = ((96, 64), (64, 96), (96, 96), (128, 48), (90, 60))


def _playwright():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("the page is NOT tested: playwright is not installed (pip install playwright)")
    if not Path(CHROMIUM).is_file():
        pytest.skip("the page is NOT tested: there is no chromium (apt-get install chromium, or name one in CHROMIUM)")
    return sync_playwright


@pytest.fixture(scope="session")
def browser():
    with _playwright()() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


def exif_of(number):
    """A date in 2010 + number % 10, a camera, and for each third a place near 48.2, 16.4."""
    exif = Image.Exif()
    exif[0x0110] = ("Canon EOS R5", "iPhone 14")[number % 2]
    exif.get_ifd(0x8769)[0x9003] = f"{2010 + number % 10}:07:{1 + number % 28:02d} 12:30:05"
    if number % 3 == 0:
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, float(number % 60)), 3: "E", 4: (16.0, 24.0, 0.0)})
    return exif


@pytest.fixture(scope="session")
def places(exported_model, tmp_path_factory):
    """Two libraries: `photographs`, of 150 with captions, dates and places; `few`, of 6 with names that mean harm."""
    from cliplet.library import Library

    root = tmp_path_factory.mktemp("page")
    captions = {}
    for number in range(PICTURES):
        file = root / "photographs" / f"{number:03d}.jpg"
        file.parent.mkdir(exist_ok=True)
        size = (480, 320) if number % 5 == 0 else SHAPES[number % 5]
        photograph(number, size).save(file, quality=85, exif=exif_of(number))
        captions[str(file)] = [f"disc number {number}", f"a {'red' if number % 2 else 'blue'} disc on a gradient"]
    with Library.create(root / "photographs.library", exported_model) as library:
        library.add(root / "photographs", captions=captions)
    hostile = {}
    for number, (name, caption) in enumerate(HOSTILE.items()):
        file = root / "few" / name
        file.parent.mkdir(exist_ok=True)
        photograph(1000 + number, (96, 64)).save(file)
        hostile[str(file)] = [caption]
    if sys.platform == "linux":  # a name that is no UTF-8
        photograph(1999, (96, 64)).save(os.fsdecode(os.fsencode(root / "few") + b"/raw\xff.png"))
    with Library.create(root / "few.library", exported_model) as library:
        library.add(root / "few", captions=hostile)
    return [root / "photographs.library", root / "few.library"]


@contextlib.contextmanager
def started(*words, **environment):
    """`cliplet serve` with these words, on a port that is free; the address it says it is ready at."""
    command = [sys.executable, "-m", "cliplet", "serve", "--port", "0", *map(str, words)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
    )
    complaints = []
    reader = threading.Thread(target=lambda: complaints.extend(process.stderr), daemon=True)
    reader.start()
    try:
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"ready at (\S+)", line):
                yield found[1]
                break
        else:
            raise AssertionError(f"the service did not start: {said}{''.join(complaints)}")
    finally:
        process.terminate()
        assert process.wait(20) in (0, -15), complaints
    assert not [line for line in complaints if "failed" in line], complaints


@pytest.fixture(scope="session")
def service(places):
    """Its address, without a slash at the end."""
    with started(*places, "--rate", "0") as address:
        yield address.rstrip("/")


@pytest.fixture(scope="session")
def guarded(places):
    """A service that asks for a token; its address with the token in it."""
    with started(places[0], CLIPLET_TOKEN=TOKEN) as address:
        yield address


class Opener:
    """Opens pages, and notes what they ask for and what goes wrong in them."""

    def __init__(self, browser, service):
        self.browser, self.service = browser, service
        self.contexts, self.foreign, self.problems = [], [], []
        self.expected = set()  # statuses of failed requests that the test means to cause

    def __call__(self, path="/", width=1280, height=800, ready=True, address=None, **options):
        """A page in a window of its own, with what it shows there. `options`: of Playwright's new_context."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        host = (address or self.service).split("/")[2]
        page.on("request", lambda request: self._asked(request.url, host))
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto((address or self.service) + path if address is None else address)
        if ready:
            page.wait_for_selector("#grid .tile, .judged, .captions, .place, #pictures-view:not([hidden])")
        return page

    def _asked(self, url, host):
        if not url.startswith(("blob:", "data:")) and url.split("/")[2] != host:
            self.foreign.append(url)

    def _said(self, message):
        failed = re.match(r"Failed to load resource: .*status of (\d+)", message.text)
        offline = message.text.startswith("Failed to load resource: net::")
        if (failed and int(failed[1]) in self.expected) or (offline and 0 in self.expected):
            return
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def close(self):
        for context in self.contexts:
            context.close()


@pytest.fixture
def open_page(browser, service):
    """Opens the page of the service: `open_page("/?q=dog")`."""
    opener = Opener(browser, service)
    yield opener
    opener.close()
    assert not opener.foreign, f"other hosts were asked: {opener.foreign}"
    assert not opener.problems, opener.problems


@pytest.fixture
def page(open_page):
    """The page as it is first seen."""
    return open_page()
