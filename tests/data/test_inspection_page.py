"""The page stands alone, shows what is wrong, and takes no caption or name for HTML; charts; the contact sheet."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliplet.data.inspection import TokenCounter, inspect_source, page, write_contact_sheet, write_page
from cliplet.data.inspection.charts import Bar, bar_chart, bars_of, round_up, short
from cliplet.data.inspection.findings import Lengths
from cliplet.data.records import ImageText, ImageTextSource, Problem, Records
from cliplet.errors import DataError

EVIL = '<script>alert("x")</script> & <img src=http://example.com/a.png>'


def photograph(file, size=(60, 40), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return str(file)


@pytest.fixture
def source(tmp_path):
    """A leak, a copy within a split, a missing file, a bad record, a caption under three pictures; all in odd words."""
    first = photograph(tmp_path / f"{EVIL.replace('/', '_')[:40]}.png", seed=0)
    records = [ImageText(first, (EVIL, "image"), "train<b>")]
    records += [ImageText(photograph(tmp_path / f"{n}.png", (60 + n, 40), n), ("image", "犬"), "val") for n in (1, 2)]
    records.append(ImageText(str(shutil.copy(first, tmp_path / "leaked.png")), ("image",), "test"))
    records.append(ImageText(str(shutil.copy(tmp_path / "1.png", tmp_path / "twin.png")), ("a twin \udc80",), "val"))
    records.append(ImageText(str(tmp_path / f"gone{EVIL[:8]}.png"), ("nothing",), "val"))
    problems = [Problem("set.json: image 9", f"has no filename {EVIL}")]
    return ImageTextSource(f"set {EVIL}.json", "made here", Records.of(records), problems)


class Reader(HTMLParser):
    """Checks that every element is closed, and gathers tags, texts and addresses."""

    VOID = ("meta", "img", "br", "rect", "line")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.addresses = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def written(found, tmp_path, **options):
    write_page(found, tmp_path / "new" / "page.html", **options)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"], "nothing is left beside it"
    return (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_the_page_stands_alone_and_takes_nothing_for_html(source, tmp_path):
    reader = Reader(written(inspect_source(source), tmp_path))
    assert "script" not in reader.tags and "b" in reader.tags
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in reader.addresses)
    text = "".join(reader.texts)
    assert text.count(EVIL) == 3, "the path, a caption and a problem are shown as they are"


def test_the_page_says_what_is_wrong_leaks_first(source, tmp_path):
    text = "".join(Reader(written(inspect_source(source), tmp_path)).texts)
    leak = "1 picture of test also stands in train<b>: 1 in the same bytes"
    for shown in (leak, "Missing files: 1", "no such file", "has no filename", "leaked.png", "twin.png"):
        assert shown in text
    assert text.index(leak) < text.index("Missing files")
    assert "In Han letters: 2" in text and "犬" in text
    assert "Under several pictures: 2" in text


def test_links_lead_somewhere_and_thumbnails_are_pictures(source, tmp_path):
    html = written(inspect_source(source), tmp_path)
    for target in re.findall(r'href="#([^"]*)"', html):
        assert f'id="{target}"' in html
    data = re.findall(r"base64,([^\"]+)", html)
    assert len(data) == 2 * 2 + 5, "two groups of two, and the readable pictures of the splits"
    assert all(max(Image.open(io.BytesIO(base64.b64decode(one))).size) == page.THUMBNAIL for one in data)


def test_long_lists_are_cut_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LISTED", 3)
    monkeypatch.setattr(page, "GROUPS", 1)
    monkeypatch.setattr(page, "SHOWN", 2)
    monkeypatch.setattr(page, "PER_SPLIT", 2)
    records = [ImageText(str(tmp_path / f"gone{n}.png"), ("a",), "train") for n in range(8)]
    for n in range(3):
        first = photograph(tmp_path / f"{n}.png", seed=n)
        records.append(ImageText(first, tuple(f"{n} {m}" for m in range(9)), "train"))
        records += [ImageText(str(shutil.copy(first, tmp_path / f"{n}{m}.png")), ("a",), "train") for m in "xyz"]
    found = inspect_source(ImageTextSource("x", "made here", Records.of(records)))
    text = "".join(Reader(written(found, tmp_path)).texts)
    assert "gone2.png" in text and "gone3.png" not in text and "and 5 more" in text
    assert "the same bytes): 3" in text and text.count("and 2 more") >= 2
    assert "train: 2 of 20" in text


def test_a_sound_set_is_said_to_be_and_tokens_are_drawn_with_their_cut(tmp_path):
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    records = [ImageText(photograph(tmp_path / f"{n}.png", seed=n), ("one " * n + "word",), "") for n in range(9)]
    source = ImageTextSource("x", "made here", Records.of(records))
    found = inspect_source(source, tokens=TokenCounter(backend.to_str(), "words", 6))
    html = written(found, tmp_path)
    assert "Nothing is wrong" in html and "cut at 6" in html
    assert html.count('class="bar beyond"') == 3, "7, 8 and 9 tokens"


def test_a_set_without_any_readable_picture_has_a_page(tmp_path):
    records = [ImageText(str(tmp_path / "gone.png"), ("a",), "train")]
    reader = Reader(written(inspect_source(ImageTextSource("x", "made here", Records.of(records))), tmp_path))
    assert "img" not in reader.tags
    Reader(written(inspect_source(ImageTextSource("x", "made here", Records.of([]))), tmp_path))


def test_a_picture_that_is_gone_meanwhile_leaves_its_reason(source, tmp_path):
    found = inspect_source(source)
    (tmp_path / "2.png").unlink()
    assert "2.png: no such file" in written(found, tmp_path)


def test_only_its_own_kind_of_page_is_overwritten(source, tmp_path):
    found = inspect_source(source)
    file = tmp_path / "page.html"
    write_page(found, file)
    write_page(found, file)
    file.write_text("<html>my homepage</html>")
    with pytest.raises(DataError, match="no page of cliplet inspect"):
        write_page(found, file)
    assert file.read_text() == "<html>my homepage</html>"


def test_bars_are_wide_enough_and_hold_all():
    few = bars_of(Lengths({3: 5, 5: 1}))
    assert few == [Bar(3, 4, 5), Bar(4, 5, 0), Bar(5, 6, 1)]
    many = Lengths(dict.fromkeys(range(1, 500), 10) | {90_000: 1})
    bars = bars_of(many)
    assert len(bars) <= 42 and sum(bar.count for bar in bars) == many.total
    assert bars[-1].open and bars[-1].count == 1 + 10 * sum(n >= bars[-1].low for n in range(1, 500))
    assert len({bar.high - bar.low for bar in bars}) == 1
    assert [bar.high for bar in bars[:-1]] == [bar.low for bar in bars[1:]]
    reaching = bars_of(Lengths(dict.fromkeys(range(10), 1000) | {30: 1}), reach=33)
    assert reaching[-1].high == 31 and not reaching[-1].open


@pytest.mark.parametrize(("number", "rounded"), [(0.2, 1), (1, 1), (1.1, 2), (3, 5), (7, 10), (10, 10), (11, 20)])
def test_steps_are_round(number, rounded):
    assert round_up(number) == rounded


def test_a_chart_is_well_formed_and_its_bars_lie_inside():
    svg = bar_chart(bars_of(Lengths({n: 2**n for n in range(12)})), "A & B", "x < y", cut=5)
    Reader(svg)
    for x, y, width, height in re.findall(
        r'<rect.* x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">', svg.replace("<rect", "\n<rect")
    ):
        assert 0 < float(x) <= float(x) + float(width) <= 420
        assert 0 < float(y) <= float(y) + float(height) <= 220
    assert "A &amp; B" in svg and "x &lt; y" in svg and svg.count("beyond") == 6
    assert bar_chart([], "none", "x") == ""
    assert bar_chart([Bar(0, 1, 0)], "nothing", "x")
    assert [short(n) for n in (0, 999, 1500, 2_000_000)] == ["0", "999", "1.5k", "2M"]


def test_the_contact_sheet_shows_readable_pictures_and_is_the_same_again(source, tmp_path):
    found = inspect_source(source)
    write_contact_sheet(found, tmp_path / "a" / "sheet.png", per_split=3)
    write_contact_sheet(found, tmp_path / "again.png", per_split=3)
    first, again = Image.open(tmp_path / "a" / "sheet.png"), Image.open(tmp_path / "again.png")
    assert np.array_equal(np.asarray(first), np.asarray(again))
    grey = (np.asarray(first) == (0xD3, 0xD6, 0xD9)).all(axis=2)
    assert not grey.any(), "no cell of an unreadable picture"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["sheet.png"], "nothing is left beside it"


def test_no_contact_sheet_without_pictures_or_of_no_format(source, tmp_path):
    with pytest.raises(DataError, match="no picture to draw"):
        gone = ImageTextSource("x", "made here", Records.of([ImageText("gone.jpg", ("a",), "train")]))
        write_contact_sheet(inspect_source(gone), tmp_path / "sheet.png")
    with pytest.raises(DataError, match="no picture format"):
        write_contact_sheet(inspect_source(source), tmp_path / "sheet.txt")
    assert not list(Path(tmp_path).glob("*sheet*"))
