"""Which columns of a table hold pictures, captions and splits: by a header's names, else by what stands in them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cliplet.data.readers.collector import IMAGE_FOLDERS, READ_FORMS, Collector
from cliplet.errors import DataError

IMAGE_COLUMNS = ("image", "image_name", "image_path", "image_file", "file", "file_name", "filename", "filepath", "path")
# Taken where their values look like names of pictures, for they are as often numbers.
LIKELY_IMAGE_COLUMNS = (
    *("image_file_name", "image_filename", "file_path", "img", "img_name", "img_path", "img_file"),
    *("photo", "picture", "image_id", "img_id"),
)
_CAPTIONS = ("caption", "captions", "caption_text", "text", "sentence", "sentences")
CAPTION_COLUMNS = (*_CAPTIONS, "alt_text", "comment", "comments")
LATER_COLUMNS = ("title", "description", "prompt", "alt", "raw")  # where there are no numbered ones either
NUMBERED_CAPTION = re.compile(r"(caption|sentence|text|comment)_?\d+")
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "restval"])
LOOKED_AHEAD = 50  # rows that tell whether the first one is a header, and what the columns are
DOWNLOAD_FIRST = "Download the pictures first, with img2dataset for example, and name the folder that it writes."

ENDING = r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|jp2)"
PICTURE_NAME = re.compile(rf".+{ENDING}", re.IGNORECASE)
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+://", re.IGNORECASE)
LETTER = re.compile(r"[^\W\d_]")
# Several words, or a few signs of a script that sets no spaces between them.
SEVERAL_WORDS = re.compile(r"\S\s+\S|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{4}")
SHOWN_COLUMNS = 8


class TableColumns(NamedTuple):
    """Where picture, captions and split stand in a row."""

    image: int
    captions: tuple[int, ...]
    split: int | None
    width: int
    named: bool  # by a header; without one, further columns are passed over
    joins: bool = True  # what comes after a caption in the last of these is the rest of it, where it was not quoted


Row = tuple[int, list[str], str]  # the number of its first line, its cells, its text


def caption_names(
    names: Collection[str], known: Sequence[str] = CAPTION_COLUMNS, later: Sequence[str] = LATER_COLUMNS
) -> list[str]:
    """Those of the names, in small letters, that mean captions: the first that is known, and all that are numbered."""
    named = [name for name in known if name in names][:1]
    numbered = [name for name in names if NUMBERED_CAPTION.fullmatch(name)]
    return named + numbered or [name for name in later if name in names][:1]


def names_both(row: Sequence[str]) -> bool:
    """Whether this may be a header that names the columns of pictures and of captions."""
    names = _small(row)
    images = (*IMAGE_COLUMNS, *LIKELY_IMAGE_COLUMNS)
    return any(name in names for name in images) and bool(caption_names(names))


def written_on_windows(file: Path, pictures: Iterable[str]) -> bool:
    """Whether the names of pictures have backslashes between folders, by the first of them.

    Raises DataError where they are no names of files but addresses.
    """
    names = list(islice((name for name in pictures if name and not name.isspace()), LOOKED_AHEAD))
    addresses = [name for name in names if ADDRESS.match(name)]
    if 2 * len(addresses) > len(names):
        raise _only_addresses(file, addresses[0])
    marked = [name.strip() for name in names if "\\" in name]
    if 2 * len(marked) <= len(names):
        return False
    folders = [file.parent / folder for folder in IMAGE_FOLDERS]  # elsewhere than on Windows, a name may hold a \
    return not any(os.path.isfile(folder / name) for folder in folders for name in marked if "\0" not in name)


def table_columns(
    collector: Collector, file: Path, first: Sequence[Row], delimiter: str
) -> tuple[TableColumns, int | None]:
    """What the columns are, and which of the first rows is the header, if any is.

    Names that are known decide; else the picture is the column that looks like names of pictures, and the caption the
    one that looks most like sentences. Where that was guessed below a header, a problem says so. Raises DataError
    where nothing looks like a picture or a caption.
    """
    wide = [(at, number, cells) for at, (number, cells, _) in enumerate(first) if len(cells) > 1]
    if not wide:
        number, row, _ = first[0]
        raise DataError(f"{file}:{number}: expected a picture and a caption, found {row}", f"Read are {READ_FORMS}.")
    at, number, row = wide[0]
    table = _Table([cells for _, _, cells in wide], [first[at][2] for at, _, _ in wide], delimiter)
    names = [] if any(map(_is_picture, row)) else _small(row)  # those of a header, if it is one
    image = table.named_image(names)
    captions = tuple(names.index(name) for name in caption_names(names))
    if image is not None and captions:
        return TableColumns(image, captions, table.split(names, {image, *captions}), len(names), True), at

    found = table.image() if image is None else image
    looks = sum(_is_picture(cells[found]) for cells in table.rows if len(cells) > found) if found is not None else 0
    headed = bool(names) and (image is not None or bool(captions) or 2 * looks > len(wide) - 1)
    likely = any(name in names for name in LIKELY_IMAGE_COLUMNS)
    if found is None and table.of_two and not headed and not likely:  # names of pictures without an ending
        found = 0
    if found is None:
        raise _unclear(file, number, row, "holds names of pictures", delimiter)
    split = table.split(names, {found, *captions})
    guessed = captions or table.caption(found, split)
    if not guessed:
        raise _unclear(file, number, row, "holds captions", delimiter)
    if headed:
        _tell(collector, number, row, (found, image is None), (guessed, not captions))
    used = [found, *guessed, *([] if split is None else [split])]
    width = max(used) + 1
    joins = len(row) <= width if headed else not table.has_column(width)
    return TableColumns(found, guessed, split, width, False, joins), at if headed else None


class _Table:
    """The first rows of a table, of which the first may be a header."""

    def __init__(self, rows: list[list[str]], texts: list[str], delimiter: str):
        self.rows, self._texts, self._delimiter = rows, texts, delimiter
        self._body = rows if any(map(_is_picture, rows[0])) else rows[1:] or rows  # what surely is no header
        filled = sorted(max((i for i, cell in enumerate(row, 1) if cell.strip()), default=0) for row in rows)
        third = len(filled) // 3  # as many may be bad rows, or captions with unquoted delimiters
        self.of_two = filled[third] <= 2
        self._ragged = delimiter != "\t" and filled[third] != filled[-1 - third]

    def named_image(self, names: list[str]) -> int | None:
        known = [names.index(name) for name in IMAGE_COLUMNS if name in names]
        likely = [names.index(name) for name in LIKELY_IMAGE_COLUMNS if name in names]
        return next((column for column in [*known, *filter(self._mostly_pictures, likely)]), None)

    def image(self) -> int | None:
        """The column with the most names of pictures; files come before addresses."""

        def names(column: int) -> tuple[int, int]:
            cells = [cell for cell in self._cells(column, self.rows) if _is_picture(cell) or ADDRESS.match(cell)]
            return sum(not ADDRESS.match(cell) for cell in cells), len(cells)

        wanted = [column for column in range(self._width()) if self.of_two and column < 2]
        wanted = [column for column in wanted if any(names(column))]
        wanted = wanted or [column for column in range(self._width()) if self._mostly_pictures(column)]
        return max(wanted, key=names, default=None)

    def split(self, names: list[str], others: set[int]) -> int | None:
        """The column of that name, or of the names that splits have."""
        if "split" in names:
            return names.index("split")
        if self._width() < 3:
            return None
        columns = (c for c in range(self._width()) if c not in others and self._mostly_filled(c))
        return next((c for c in columns if SPLITS.issuperset(_small(self._cells(c)))), None)

    def caption(self, image: int, split: int | None) -> tuple[int, ...]:
        """The column that looks like sentences: mostly several words, better if not the same ones, the longest."""
        if self.of_two and image < 2:
            return (1 - image,)
        others = [c for c in range(self._width()) if c not in (image, split) and self._mostly_filled(c)]
        prose = [c for c in others if _share(map(_is_prose, self._cells(c))) and not self._mostly_pictures(c)]
        if self._ragged:
            return tuple(prose[:1])  # captions with unquoted delimiters: what follows is the rest of them
        parts: set[int] = set()
        for column in prose:
            before = column - 1
            if self._spaced(column) and (before in parts or (before in prose and not self._spaced(before))):
                parts.add(column)

        def rank(column: int) -> tuple[bool, float]:
            cells = self._cells(column)
            return 2 * len(set(cells)) > len(cells), sum(map(len, cells)) / len(cells)

        best = max((column for column in prose if column not in parts), key=rank, default=None)
        return () if best is None else (best,)

    def has_column(self, column: int) -> bool:
        """Whether this is a column of its own, and not the rest of captions with unquoted delimiters."""
        return self._mostly_filled(column) and not self._ragged and not self._spaced(column)

    def _width(self) -> int:
        return max(map(len, self.rows))

    def _cells(self, column: int, rows: list[list[str]] | None = None) -> list[str]:
        """Those that are not empty, below what may be a header."""
        cells = [row[column].strip() for row in (self._body if rows is None else rows) if column < len(row)]
        return [cell for cell in cells if cell]

    def _mostly_filled(self, column: int) -> bool:
        return 2 * len(self._cells(column)) > len(self._body)

    def _mostly_pictures(self, column: int) -> bool:
        return _share(_is_picture(cell) or ADDRESS.match(cell) is not None for cell in self._cells(column))

    def _spaced(self, column: int) -> bool:
        """Whether a space follows the delimiter before this column, as it does after a comma within a sentence."""
        lines = [text.split(self._delimiter) for text in self._texts if '"' not in text]
        return self._delimiter != "\t" and _share(cells[column][:1] == " " for cells in lines if column < len(cells))


def _tell(
    collector: Collector, number: int, row: list[str], image: tuple[int, bool], captions: tuple[tuple[int, ...], bool]
) -> None:
    """Names the columns that were guessed, as a problem of the header."""
    taken = [f"column {image[0] + 1} is taken for the picture"] if image[1] else []
    if captions[1]:
        taken.append(f"column {captions[0][0] + 1} {'' if taken else 'is taken '}for the caption")
    unknown = "none of which is known" if len(taken) == 2 else "not all of which are known"
    reason = f"names its columns {_shown(row, 4)}, {unknown}; {' and '.join(taken)}"
    collector.problem(f"{collector.name}:{number}", reason)


def _unclear(file: Path, number: int, row: list[str], missing: str, delimiter: str) -> DataError:
    line = ("<TAB>" if delimiter == "\t" else delimiter).join(("image", "caption"))
    return DataError(
        f"{file}:{number}: no column {missing}, as far as can be told; its columns are {_shown(row, SHOWN_COLUMNS)}",
        f"Begin the file with a header line that names all its columns, those of picture and caption as in {line}.",
    )


def _only_addresses(file: Path, address: str) -> DataError:
    return DataError(f"{file}: holds no pictures but only their addresses: {address.strip()}", DOWNLOAD_FIRST)


def _shown(row: list[str], count: int) -> str:
    return ", ".join(cell.strip() for cell in row[:count])


def _small(row: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in row]


def _is_picture(cell: str) -> bool:
    return PICTURE_NAME.fullmatch(cell.strip()) is not None


def _is_prose(cell: str) -> bool:
    return LETTER.search(cell) is not None and SEVERAL_WORDS.search(cell) is not None


def _share(found: Iterable[bool]) -> bool:
    """Whether most are; of none, none is."""
    all_found = list(found)
    return 2 * sum(all_found) > len(all_found)
