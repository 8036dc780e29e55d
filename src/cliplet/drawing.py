"""Pictures for people: sheets of thumbnails with their captions, of text queries with their answers, and of one picture
with captions ranked."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw, ImageFont

from cliplet.data.images import load_image
from cliplet.data.places import file_name
from cliplet.errors import DataError
from cliplet.files import written_beside

Picture = Image.Image | str | Path
Answer = tuple[Picture, float, bool]  # a picture, its score, and whether it is a right one
ScoredText = tuple[str, float, float | None]  # a caption, its score, and its share from 0 to 1 where there are shares
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont | ImageFont.TransposedFont

DRAWN_BY = "cliplet"  # by which a picture of its own is known again
GAP = 12  # pixels between cells
CAPTION_LINES = 3
REASON_LINES = 6
ELLIPSIS = "..."
PAPER, INK, FAINT, MISSING, RIGHT = "#ffffff", "#1c2024", "#60666d", "#d3d6d9", "#178a3c"
PANEL, BAR = "#eceef0", "#1f5fbf"

# The font inside Pillow knows ASCII only. Other letters are drawn with a font of the system where one of these is
# installed, and as boxes where none is.
WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf")
CJK_FONTS = ("NotoSansCJK-Regular.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "Arial Unicode.ttf")
FIRST_CJK = "\u2e80"


def contact_sheet(
    images: Sequence[Picture], captions: Sequence[str], columns: int = 6, cell: int = 160, title: str = ""
) -> Image.Image:
    """A grid of thumbnails, each with its caption below: RGB, `columns` cells of `cell` pixels wide.

    Thumbnails keep their aspect; captions are cut after three lines. A picture that cannot be read becomes a grey
    cell with the reason. Raises ValueError if there are not as many captions as pictures.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} pictures but {len(captions)} captions")
    columns = max(1, min(columns, len(images)))
    size = max(10, cell // 12)
    width = columns * (cell + GAP) + GAP
    title_lines = wrap(title, round(size * 1.3), width - 2 * GAP, CAPTION_LINES)
    top = GAP + (len(title_lines) * _line_height(round(size * 1.3)) + GAP if title_lines else 0)
    texts = [wrap(caption, size, cell, CAPTION_LINES) for caption in captions]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [cell + GAP + max(len(texts[i]) for i in row) * _line_height(size) + GAP for row in rows]

    sheet = Image.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, GAP), title_lines, round(size * 1.3))
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (cell + GAP)
            sheet.paste(_tile(images[i], cell), (left, top))
            _write(draw, (left, top + cell + GAP // 2), texts[i], size)
        top += height
    return sheet


def query_sheet(queries: Sequence[tuple[str, Sequence[Answer]]], cell: int = 160) -> Image.Image:
    """One row a text query: its text, then its answers from left to right with their scores. RGB.

    A right answer has a green frame and the word "right". A picture that cannot be read becomes a grey cell with the
    reason.
    """
    size = max(10, cell // 12)
    line, text_width = _line_height(size), 2 * cell
    most = max((len(answers) for _, answers in queries), default=0)
    width = 2 * GAP + text_width + most * (cell + GAP)
    legend = wrap("Green frame: a right answer", size, width - 2 * GAP, CAPTION_LINES)
    top, height = 2 * GAP + len(legend) * line, cell + line + 2 * GAP

    sheet = Image.new("RGB", (width, top + len(queries) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, GAP), legend, size, FAINT)
    for text, answers in queries:
        _write(draw, (GAP, top), wrap(text, size, text_width - GAP, max(1, cell // line)), size)
        for column, answer in enumerate(answers):
            _draw_answer(sheet, (GAP + text_width + column * (cell + GAP), top), answer, cell)
        top += height
    return sheet


def _draw_answer(sheet: Image.Image, corner: tuple[int, int], answer: Answer, cell: int) -> None:
    picture, score, right = answer
    draw, size, (left, top) = ImageDraw.Draw(sheet), max(10, cell // 12), corner
    sheet.paste(_tile(picture, cell), corner)
    if right:
        thick = max(3, cell // 32)
        draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=RIGHT, width=thick)
    label = f"{score:.3f} right" if right else f"{score:.3f}"
    _write(draw, (left, top + cell + GAP // 2), [label], size, RIGHT if right else FAINT)


def caption_sheet(picture: Picture, captions: Sequence[ScoredText], note: str = "", side: int = 420) -> Image.Image:
    """One picture, its longer side `side` pixels, and beside it captions with bars, in the order given. RGB.

    A bar's length is the caption's share, or its score where there are no shares: then negative ones have no bar.
    Captions are cut after three lines. A picture that cannot be read raises ImageError.
    """
    small = thumbnail(picture, side)
    size, width = max(12, side // 26), round(1.5 * side)
    line, label_width, bar = _line_height(size), 8 * size, max(4, side // 50)
    texts = [wrap(text, size, width - label_width - GAP, CAPTION_LINES) for text, _, _ in captions]
    heights = [max(1, len(text)) * line + bar + 2 * GAP for text in texts]
    notes = wrap(note, size, small.width + GAP + width, CAPTION_LINES)
    body = max(small.height, sum(heights))
    sheet = Image.new("RGB", (small.width + width + 3 * GAP, body + 2 * GAP + len(notes) * line), PAPER)
    sheet.paste(small, (GAP, GAP))
    draw, left, top = ImageDraw.Draw(sheet), small.width + 2 * GAP, GAP
    for (_, score, share), text, height in zip(captions, texts, heights, strict=True):
        _write(draw, (left, top), text, size)
        end = left + width
        for column, label in enumerate([f"{score:.3f}"] + ([] if share is None else [f"{share:.1%}"])):
            at = end - column * label_width // 2 - round(font_of(size, label).getlength(label))
            _write(draw, (at, top), [label], size, FAINT)
        below = top + height - bar - GAP
        draw.rectangle((left, below, end, below + bar), fill=PANEL)
        length = round(width * min(max(score if share is None else share, 0.0), 1.0))
        if length:
            draw.rectangle((left, below, left + length, below + bar), fill=BAR)
        top += height
    _write(draw, (GAP, body + 2 * GAP - GAP // 2), notes, size, FAINT)
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other. Raises ValueError without any."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def save_picture(image: Image.Image, file: Path) -> None:
    """Writes beside and renames, so that no half picture is ever found. The format follows the file's name.

    Raises DataError for a name that `refuse_bad_target` refuses, and where it cannot be written.
    """
    refuse_bad_target(file)
    mark = Image.Exif()
    mark[ExifTags.Base.Software] = DRAWN_BY
    try:
        with written_beside(file) as beside:
            image.save(beside, exif=mark)
    except (OSError, ValueError, struct.error) as error:  # Pillow has all three for pictures that a format cannot hold
        reason = error.strerror if isinstance(error, OSError) else None  # the system's, or else the format's
        raise DataError(
            f"{file}: a picture of {image.width:,} x {image.height:,} pixels cannot be written: {reason or error}",
            "" if reason else "PNG takes the largest ones: name it SOMETHING.png; or draw less.",
        ) from None


def refuse_bad_target(file: Path) -> None:
    """Raises DataError for a name whose ending is of no picture format, and for a picture that is there already and was
    not drawn by cliplet: a slip of the fingers must not cost a photograph."""
    if file.suffix.lower() not in Image.registered_extensions():
        raise DataError(f"{file}: {file.suffix or 'no ending'} is no picture format", "Name it SOMETHING.png.")
    if file.exists() and not _drawn_here(file):
        raise DataError(f"{file}: is there already, and was not drawn by cliplet", "Give another name.")


def _drawn_here(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return str(image.getexif().get(ExifTags.Base.Software, "")) == DRAWN_BY
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def thumbnail(picture: Picture, side: int) -> Image.Image:
    """The picture at its own aspect, its longer side `side` pixels. Raises ImageError if it cannot be read."""
    image = load_image(picture, smallest_side=side)
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _tile(picture: Picture, cell: int) -> Image.Image:
    """The picture in the middle of a square, or a grey square with the reason why it is not there."""
    try:
        small = thumbnail(picture, cell)
    except Exception as error:
        tile = Image.new("RGB", (cell, cell), MISSING)
        size = max(10, cell // 12)
        _write(ImageDraw.Draw(tile), (8, 8), wrap(short_reason(picture, error), size, cell - 16, REASON_LINES), size)
        return tile
    tile = Image.new("RGB", (cell, cell), "#f1f2f3")
    tile.paste(small, ((cell - small.width) // 2, (cell - small.height) // 2))
    return tile


def short_reason(picture: Picture, error: Exception) -> str:
    """Why a picture is not shown, without its folder or archive, which would fill the cell."""
    name = "" if isinstance(picture, Image.Image) else Path(file_name(str(picture))).name
    reason = str(error) or type(error).__name__
    return reason.replace(str(picture), name) if name else reason


def wrap(text: str, size: int, width: int, most: int) -> list[str]:
    """The text in lines of at most `width` pixels at `size`; what is beyond `most` lines becomes an ellipsis."""
    font = font_of(size, text)
    words = deque(drawable(text, font).split())
    lines: list[str] = []
    line = ""
    while words and len(lines) < most:
        joined = f"{line} {words[0]}" if line else words[0]
        if font.getlength(joined) <= width:
            line = joined
            words.popleft()
        elif line:
            lines.append(line)
            line = ""
        else:  # one word wider than the cell, or a language without spaces
            fitting = _fitting(words[0], font, width)
            lines.append(words[0][:fitting])
            words[0] = words[0][fitting:]
    if line and len(lines) < most:
        lines.append(line)
        line = ""
    if lines and (line or any(words)):
        lines[-1] = lines[-1][: _fitting(lines[-1], font, width - font.getlength(ELLIPSIS))].rstrip() + ELLIPSIS
    return lines


def _fitting(word: str, font: Font, width: float) -> int:
    """How many of a word's first characters fit, at least one."""
    count = 1
    while count < len(word) and font.getlength(word[: count + 1]) <= width:
        count += 1
    return count


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], size: int, fill: str = INK
) -> None:
    left, top = corner
    font = font_of(size, " ".join(lines))
    for number, line in enumerate(lines):
        draw.text((left, top + number * _line_height(size)), drawable(line, font), fill=fill, font=font)


def _line_height(size: int) -> int:
    return round(size * 1.35)


def drawable(text: str, font: Font) -> str:
    """The text without what would stop the font: line breaks, halves of characters, and for a bitmap font all
    beyond Latin-1."""
    charset = "utf-8" if isinstance(font, ImageFont.FreeTypeFont) else "latin-1"
    return " ".join(text.replace("\0", " ").encode(charset, "replace").decode(charset).split())


def font_of(size: int, text: str) -> Font:
    if text.isascii():
        return _load_font(size, ())
    return _load_font(size, CJK_FONTS + WIDE_FONTS if max(text) >= FIRST_CJK else WIDE_FONTS)


@lru_cache(maxsize=64)
def _load_font(size: int, names: tuple[str, ...]) -> Font:
    """The first font that the system has, or the one inside Pillow."""
    try:
        for name in names:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
        return ImageFont.load_default(size=size)
    except ImportError:  # Pillow was built without FreeType; its bitmap font has one size
        return ImageFont.load_default()
