"""The shell of every page: it stands alone, and what is given as text stays text."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from runs import files_no_larger_than

from cliplet.page import (
    GalleryQuery,
    PictureAnswer,
    Section,
    TextAnswer,
    bullet_list,
    embedded,
    facts_table,
    folded,
    gallery,
    number,
    paragraph,
    table,
    write_page,
)

EVIL = '<script>alert("x")</script> & $title \' </style>'


class Balanced(HTMLParser):
    """Checks that every element is closed, and gathers the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


def red(size=(60, 40)):
    return Image.new("RGB", size, "red")


def test_a_page_stands_alone_and_leaves_empty_sections_out(tmp_path):
    sections = [Section("First", paragraph("a < b"), "first"), Section("Nothing", ""), Section(EVIL, "<p>inside</p>")]
    write_page(tmp_path / "new" / "page.html", EVIL, sections, "<p>lead</p>", generator='made "here"', style=".x{}")
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    page = Balanced(text)
    assert page.text.count(EVIL) == 3, "title, its heading, the third section"
    assert "Nothing" not in text and 'id="first"' in text and "a < b" in page.text and ".x{}" in text
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in text
    assert 'name="generator" content="made &quot;here&quot;"' in text[:300]
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"], "nothing is left beside it"
    assert 'name="viewport" content="width=device-width' in text and "prefers-color-scheme: dark" in text


def test_half_a_character_does_not_cost_the_page(tmp_path):
    write_page(tmp_path / "page.html", "half \ud800", [Section("a", paragraph("\udc80 whole"))])
    assert " whole" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pieces_take_text_and_not_markup():
    pieces = [
        paragraph(EVIL),
        bullet_list([EVIL]),
        facts_table({EVIL: EVIL}),
        table((EVIL, EVIL), [(EVIL, f"1\n{EVIL}")]),
        folded(EVIL, ""),
        gallery([GalleryQuery(EVIL, None, EVIL, [TextAnswer(EVIL, 0.5, True)])]),
        embedded("<script>.png", EVIL),
    ]
    page = Balanced("".join(pieces))
    assert page.text.count(EVIL) == 1 + 1 + 2 + 4 + 1 + 3


def test_a_table_has_headings_both_ways_and_small_print():
    html = table(("", "R@1"), [("a model", "12.5\n10.0–15.0")])
    assert '<thead><tr><td></td><th scope="col">R@1</th></tr></thead>' in html
    assert '<th scope="row">a model</th><td>12.5<small>10.0–<wbr>15.0</small></td>' in html
    assert 'class="numbers"' in html and 'class="texts"' in table(("a",), [("b",)], "texts")
    assert table(("a",), []) == "" and facts_table({}) == "" and bullet_list([]) == ""
    with pytest.raises(ValueError, match="2 columns has rows of"):
        table(("a", "b"), [("1", "2", "3")])


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(1234.56, 1, "1,234.6"), (0.5, 3, "0.500"), (None, 1, "–"), (float("nan"), 1, "–"), (float("inf"), 0, "–")],
)
def test_numbers_for_people(value, digits, shown):
    assert number(value, digits) == shown


def test_right_answers_are_marked_by_a_word_and_a_gap_in_ranks_by_a_class():
    answers = [
        PictureAnswer(red(), 0.41, False),
        PictureAnswer(red(), 0.3, True),
        PictureAnswer(red(), 0.1, True, 1712),
    ]
    html = gallery([GalleryQuery("a red wall", None, "a note", answers)])
    items = re.findall(r"<li.*?</li>", html, re.DOTALL)
    assert ["✓ right" in item for item in items] == [False, True, True]
    assert [re.match(r'<li(?: class="(.*?)")?>', item)[1] for item in items] == [None, "right", "right far"]
    assert "1. 0.410" in items[0] and "2. 0.300" in items[1] and "1,712. 0.100" in items[2]
    assert "a note" in html and 'class="answers pictures"' in html and html.count("<img") == 3
    Balanced(html)


def test_a_picture_query_shows_the_picture_beside_its_captions(tmp_path):
    red().save(tmp_path / "wall.png")
    query = GalleryQuery("wall.png", str(tmp_path / "wall.png"), "", [TextAnswer("a wall", -0.02, False)])
    html = gallery([query, GalleryQuery("no answers", None, "", [])])
    assert html.count("<img") == 1 and 'alt="wall.png"' in html and "1. -0.020" in html and "a wall" in html
    assert html.index("<img") < html.index("a wall") and "no answers" in html
    Balanced(html)


def test_a_thumbnail_is_a_small_picture_inside_the_page(tmp_path):
    red((640, 480)).save(tmp_path / "a.png")
    html = embedded(tmp_path / "a.png", 'a "name"', side=100)
    assert 'alt="a &quot;name&quot;"' in html
    image = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))
    assert image.size == (100, 75) and image.format == "JPEG"


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_an_unreadable_picture_leaves_its_reason_without_its_folder(tmp_path, content):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    html = embedded(str(tmp_path / "bad.png"), "bad")
    assert 'class="missing"' in html and "bad.png: " in html and str(tmp_path) not in html


def test_a_failed_write_leaves_the_old_page(tmp_path):
    write_page(tmp_path / "page.html", "old", [])

    with files_no_larger_than(100), pytest.raises(OSError, match="too large"):
        write_page(tmp_path / "page.html", "new", [])
    assert "old" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 1
