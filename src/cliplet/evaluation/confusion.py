"""A confusion matrix as a picture: a row for each true class, a column for what the model said. K classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cliplet.drawing import ELLIPSIS, FAINT, INK, PAPER, drawable, font_of, save_picture, wrap

MOST_CLASSES = 40  # that can be read
SHOWN_CLASSES = 30  # of more than these, the most confused
OTHERS = "(others)"
MARGIN = 16  # pixels
NAME_WIDTH = 220  # pixels of a class's name at most
RIGHT, WRONG = np.array([26, 127, 75]), np.array([176, 42, 55])  # where all of a row's pictures are in the cell
RULE = "#d3d6d9"


def write_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], file: Path, title: str = "") -> None:
    """Draws the matrix into a picture file, whose format follows its name. Raises DataError for an unknown one."""
    save_picture(confusion_picture(np.asarray(confusion), names, title), file)


def confusion_picture(confusion_KK: np.ndarray, names: Sequence[str], title: str = "") -> Image.Image:
    """RGB. A cell's colour is its share of the row, green for right and red for wrong; in it stands the number of
    pictures, and below, where there is room, the share in percent.

    Of more than 40 classes the 30 most confused are drawn, and the title says so; what was said besides them stands in
    the last column.
    """
    shown = most_confused(confusion_KK)
    legend = "Rows: the true class. Columns: what the model said. Colour: the share of the row."
    others_K = confusion_KK.sum(axis=1) - confusion_KK[:, shown].sum(axis=1)
    cells = confusion_KK[np.ix_(shown, shown)]
    columns = [names[place] for place in shown]
    if len(shown) < len(names):
        legend += f" Of {len(names)} classes the {len(shown)} that are confused most; {OTHERS}: all the rest."
        cells, columns = np.concatenate([cells, others_K[shown, None]], axis=1), [*columns, OTHERS]
    return _drawn(cells, confusion_KK[shown].sum(axis=1), [names[place] for place in shown], columns, title, legend)


def most_confused(confusion_KK: np.ndarray) -> list[int]:
    """The classes to draw, in their order: all of them, or those with the most wrong answers, of their own pictures or
    for those of others."""
    classes = len(confusion_KK)
    if classes <= MOST_CLASSES:
        return list(range(classes))
    wrong_KK = confusion_KK * (1 - np.eye(classes, dtype=confusion_KK.dtype))
    worst = np.argsort(-(wrong_KK.sum(axis=0) + wrong_KK.sum(axis=1)), kind="stable")[:SHOWN_CLASSES]
    return sorted(int(place) for place in worst)


def _drawn(
    cells: np.ndarray, totals: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, legend: str
) -> Image.Image:
    side = int(np.clip(1200 // len(columns), 30, 72))
    size = int(np.clip(side // 3, 12, 18))
    row_names, column_names = ([_name(name, size) for name in names] for names in (rows, columns))
    left = 2 * MARGIN + max(image.width for image in row_names)
    width = max(left + side * len(columns) + MARGIN, 420)
    heading = [_line(line, size + 4) for line in wrap(title, size + 4, width - 2 * MARGIN, 3)]
    heading += [_line(line, size, FAINT) for line in wrap(legend, size, width - 2 * MARGIN, 6)]
    top = MARGIN + sum(image.height + 4 for image in heading)
    top += MARGIN + max(image.width for image in column_names)
    sheet = Image.new("RGB", (width, top + side * len(rows) + MARGIN), PAPER)
    down = MARGIN
    for image in heading:
        sheet.paste(image, (MARGIN, down))
        down += image.height + 4
    for place, image in enumerate(column_names):
        upright = image.rotate(90, expand=True)
        sheet.paste(upright, (left + place * side + (side - upright.width) // 2, top - 6 - upright.height))
    for place, image in enumerate(row_names):
        sheet.paste(image, (left - 8 - image.width, top + place * side + (side - image.height) // 2))
    draw = ImageDraw.Draw(sheet)
    for (row, column), count in np.ndenumerate(cells):
        corner = left + column * side, top + row * side
        _cell(draw, corner, side, int(count), int(totals[row]), row == column)
    return sheet


def _cell(draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, count: int, total: int, right: bool) -> None:
    share = count / total if total else 0.0
    colour = 255 - (255 - (RIGHT if right else WRONG)) * share**0.7  # small shares are seen too
    box = (*corner, corner[0] + side, corner[1] + side)
    draw.rectangle(box, fill=tuple(int(c) for c in colour.round()), outline=RULE)
    if not count:
        return
    lines = [f"{count:,}"]
    if side >= 48:
        lines.append(f"{100 * share:.0f} %")
    size = _fitting(lines[0], side - 6, min(18, side // 3 + 2))
    ink = PAPER if share > 0.55 else INK
    height = round(size * 1.3)
    up = corner[1] + (side - height * len(lines)) / 2
    for place, line in enumerate(lines):
        small = size if place == 0 else _fitting(line, side - 6, max(size - 3, 9))
        middle = corner[0] + side / 2, up + (place + 0.5) * height
        draw.text(middle, line, fill=ink, font=font_of(small, line), anchor="mm")


def _fitting(text: str, width: int, most: int) -> int:
    """The largest size of letters at which the text fits, at least 7."""
    return next((size for size in range(most, 7, -1) if font_of(size, text).getlength(text) <= width), 7)


def _name(name: str, size: int) -> Image.Image:
    """A class's name; of a long one the middle is left out, for names often differ at their ends."""
    font = font_of(size, name)
    shown = name = drawable(name, font) or "?"
    kept = len(name)
    while font.getlength(shown) > NAME_WIDTH and kept > 2:
        kept -= 1
        shown = name[: kept - kept // 3] + ELLIPSIS + name[-(kept // 3) :]
    return _line(shown, size)


def _line(text: str, size: int, fill: str = INK) -> Image.Image:
    """One line of text by itself, which can then be turned."""
    font = font_of(size, text)
    text = drawable(text, font)
    image = Image.new("RGB", (max(1, round(font.getlength(text)) + 2), round(size * 1.35)), PAPER)
    ImageDraw.Draw(image).text((0, 0), text, fill=fill, font=font)
    return image
