"""Sheets show what they are given, and no picture or caption stops them."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from cliplet import drawing
from cliplet.drawing import contact_sheet, query_sheet, wrap
from cliplet.errors import DataError

GREY = (0xD3, 0xD6, 0xD9)
GREEN = (0x17, 0x8A, 0x3C)


def plain(colour: str, size: tuple[int, int] = (80, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def share(image: Image.Image, colour: tuple[int, int, int]) -> float:
    """Part of the pixels that have exactly this colour."""
    return float((np.asarray(image) == colour).all(axis=2).mean())


def test_thumbnails_stand_in_order_with_their_aspect():
    sheet = contact_sheet([plain("red"), plain("blue", (40, 80))], ["one", "two"], cell=100)
    gap = drawing.GAP
    assert sheet.width == 2 * (100 + gap) + gap
    pixels = np.asarray(sheet)
    assert tuple(pixels[gap + 50, gap + 50]) == (255, 0, 0)
    assert tuple(pixels[gap + 10, gap + 50]) != (255, 0, 0), "a wide picture leaves room above"
    assert tuple(pixels[gap + 5, 2 * gap + 150]) == (0, 0, 255)
    assert share(sheet, (255, 0, 0)) == pytest.approx(100 * 50 / (sheet.width * sheet.height))


def test_more_pictures_than_columns_make_rows():
    one = contact_sheet([plain("red")] * 3, ["a"] * 3, columns=3, cell=60)
    two = contact_sheet([plain("red")] * 4, ["a"] * 4, columns=3, cell=60)
    assert two.width == one.width
    assert two.height > one.height + 60


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\xff\xd8\xff\xe0 broken"])
def test_an_unreadable_picture_is_a_grey_cell_with_its_reason(tmp_path, content):
    file = tmp_path / "bad.jpg"
    if content is not None:
        file.write_bytes(content)
    sheet = contact_sheet([file, plain("red", (40, 40))], ["a", "b"], cell=120)
    cell = sheet.crop((drawing.GAP, drawing.GAP, drawing.GAP + 120, drawing.GAP + 120))
    assert 0.6 < share(cell, GREY) < 0.99, "grey, with letters on it"
    assert share(sheet, (255, 0, 0)) > 0.3, "the good picture beside it is drawn"


def test_a_picture_thinner_than_a_pixel_of_its_thumbnail():
    assert contact_sheet([plain("red", (4000, 2))], ["a line"], cell=80).size


def test_a_pillow_picture_is_left_as_it_was():
    picture = plain("red", (300, 200))
    contact_sheet([picture], ["a"], cell=50)
    assert picture.size == (300, 200)


@pytest.mark.parametrize(
    "caption",
    ["", "собака в снегу", "雪の中の犬" * 30, "كلب في الثلج", "a\0b\nc\td", "half \ud800", "😀 dog", "x" * 500],
)
def test_any_caption_can_be_drawn(caption):
    sheet = contact_sheet([plain("red")], [caption], cell=90, title=caption)
    assert sheet.height < 90 + 2 * 3 * 30 + 6 * drawing.GAP, "captions are cut"


def test_without_freetype_the_bitmap_font_draws(monkeypatch):
    class Missing:
        def __getattr__(self, name: str):
            raise ImportError("The _imagingft C module is not installed")

    monkeypatch.setattr(ImageFont, "core", Missing())
    drawing._load_font.cache_clear()
    try:
        sheet = contact_sheet([plain("red")], ["a dog, 犬, собака"], cell=100, title="Title")
        assert share(sheet, (0x1C, 0x20, 0x24)) > 0
        assert query_sheet([("犬", [(plain("red"), 0.5, True)])], cell=100).size
    finally:
        drawing._load_font.cache_clear()


def test_wrapped_lines_fit_and_lose_nothing_until_they_are_too_many():
    text = "a small dog runs through deep snow after a yellow ball"
    lines = wrap(text, 13, 120, 99)
    font = drawing.font_of(13, text)
    assert len(lines) > 2
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 120 for line in lines)
    cut = wrap(text, 13, 120, 2)
    assert cut[0] == lines[0]
    assert len(cut) == 2 and cut[1].endswith("...")
    assert font.getlength(cut[1]) <= 120
    assert wrap("two words", 13, 120, 1) == ["two words"]


def test_a_word_wider_than_the_cell_is_broken():
    lines = wrap("x" * 60, 13, 60, 99)
    assert "".join(lines) == "x" * 60
    assert len(lines) > 3


def test_as_many_captions_as_pictures():
    with pytest.raises(ValueError, match="2 pictures but 1 captions"):
        contact_sheet([plain("red")] * 2, ["a"])


def test_only_the_right_answer_is_framed():
    right = query_sheet([("a dog", [(plain("red"), 0.31, False), (plain("blue"), 0.29, True)])], cell=100)
    wrong = query_sheet([("a dog", [(plain("red"), 0.31, False), (plain("blue"), 0.29, False)])], cell=100)
    assert right.size == wrong.size
    assert share(wrong, GREEN) == 0
    columns = np.flatnonzero((np.asarray(right) == GREEN).all(axis=2).any(axis=0))
    second_answer = drawing.GAP + 200 + 100 + drawing.GAP
    assert columns.min() == second_answer - 1 and columns.max() == second_answer + 100


def test_queries_with_few_and_no_answers():
    one = query_sheet([("a", [(plain("red"), 0.5, False)] * 3)], cell=80)
    three = query_sheet(
        [("a", [(plain("red"), 0.5, False)] * 3), ("b", []), ("c", [("nowhere.jpg", 0.1, True)])], cell=80
    )
    assert three.width == one.width
    assert three.height > one.height + 2 * 80
    assert query_sheet([]).size


def test_what_a_format_cannot_hold_is_said_without_a_trace(tmp_path):
    from cliplet.drawing import save_picture

    with pytest.raises(DataError, match="20,000 x 2 pixels cannot be written") as refused:
        save_picture(Image.new("RGB", (20_000, 2)), tmp_path / "wide.webp")
    assert "PNG" in refused.value.hint and list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"x\.png: a picture of 2 x 2 pixels cannot be written: (File exists|Not a)"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "file" / "x.png")


def test_a_picture_of_somebody_else_is_not_overwritten(tmp_path):
    from cliplet.drawing import save_picture

    file = tmp_path / "x.png"
    save_picture(Image.new("RGB", (2, 2)), file)
    save_picture(Image.new("RGB", (3, 3)), file)
    Image.new("RGB", (4, 4)).save(file)
    with pytest.raises(DataError, match="was not drawn by cliplet"):
        save_picture(Image.new("RGB", (2, 2)), file)
    file.write_bytes(b"something else")
    with pytest.raises(DataError, match="was not drawn by cliplet"):
        save_picture(Image.new("RGB", (2, 2)), file)
