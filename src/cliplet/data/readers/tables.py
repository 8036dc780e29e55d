"""Lines of text to records: Flickr's token files, Kaggle's captions.txt and results.csv, TSV and CSV."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from cliplet.data.readers.collector import Collector
from cliplet.data.readers.columns import (
    ENDING,
    LOOKED_AHEAD,
    Row,
    TableColumns,
    names_both,
    table_columns,
    written_on_windows,
)
from cliplet.errors import DataError

MAX_LINES_OF_A_ROW = 20  # of a CSV cell with line breaks in it
PLAIN_NAME = re.compile(rf"[^\t|,;]+{ENDING}", re.IGNORECASE)  # with nothing in it that may be a delimiter
ROW_START = {mark: re.compile(rf"\"?[^{mark}\"]+{ENDING}\"?{mark}", re.IGNORECASE) for mark in ",;"}
TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
DELIMITERS = {"\t": "TSV", "|": "table with |", ",": "CSV", ";": "CSV with ;"}
PYTHON_TEXT = r"""(?:u?'(?:[^'\\]|\\.)*'|u?"(?:[^"\\]|\\.)*"|None|nan)"""
PYTHON_LIST = re.compile(rf"\[\s*(?:{PYTHON_TEXT}[\s,]*)+\]", re.DOTALL)  # numpy prints lists without commas


def is_token_line(line: str) -> bool:
    """Whether a line is of the form `image.jpg#0<TAB>caption`."""
    return TOKEN_LINE.fullmatch(line) is not None


def read_token_file(collector: Collector, file: Path) -> str:
    """Lines of `image.jpg#0<TAB>caption`, as Flickr8k.token.txt and results_20130124.token."""
    for number, line in _lines(collector, file):
        match = TOKEN_LINE.fullmatch(line)
        if match:
            collector.add(f"{collector.name}:{number}", match["image"], match["caption"])
        elif line.strip():
            collector.problem(f"{collector.name}:{number}", "is not of the form image#number<TAB>caption")
    return "Flickr token file"


def read_table(collector: Collector, file: Path, head: str) -> str:
    """Rows of picture and caption, with or without a header; `head` is the first line or more, by which the delimiter
    is known.

    A header may name a column `split`, and several captions (`caption_0`, `caption_1`, ...), of which some may be
    left empty. A caption that is a JSON list, or a Python list of texts, is as many captions. Raises DataError where
    it is not clear what the columns are, and where the pictures are addresses.
    """
    delimiter = _delimiter(head)
    rows = _rows(collector, file, delimiter)
    first = list(islice(rows, LOOKED_AHEAD))
    if not first:
        return DELIMITERS[delimiter]
    columns, header = table_columns(collector, file, first, delimiter)
    if header is not None:
        del first[header]
    windows = written_on_windows(file, (cells[columns.image] for _, cells, _ in first if len(cells) > columns.image))
    _take(collector, iter(first), columns, delimiter, windows)
    _take(collector, rows, columns, delimiter, windows)
    return DELIMITERS[delimiter]


def _delimiter(head: str) -> str:
    """That of a known header, or the one that sets a picture's name apart in most lines, or that of the first line."""
    lines = [line.strip("\r") for line in head.split("\n") if line.strip()][:LOOKED_AHEAD]
    line = lines[0] if lines else ""

    def cells(line: str, delimiter: str) -> list[str]:
        return [cell.strip(' "') for cell in line.split(delimiter)]

    def pictures(delimiter: str) -> int:
        found = (any(map(PLAIN_NAME.fullmatch, cells(line, delimiter)[:2])) for line in lines if delimiter in line)
        return sum(found)

    headed = [delimiter for delimiter in DELIMITERS if names_both(cells(line, delimiter))]
    best = max(DELIMITERS, key=pictures)
    if headed or pictures(best):
        return headed[0] if headed else best
    return next((d for d in "\t|" if d in line), ";" if ";" in line and "," not in line else ",")


def _take(collector: Collector, rows: Iterator[Row], columns: TableColumns, delimiter: str, windows: bool) -> None:
    """Hands the rows to the collector. `windows`: backslashes stand between the folders of a picture."""
    name, image, width, split_at = collector.name, columns.image, columns.width, columns.split
    caption_at = columns.captions[0] if len(columns.captions) == 1 else None
    # A caption that was not quoted though it holds the delimiter is whole again, where it is the last cell.
    joins = columns.joins and delimiter != "\t" and caption_at == width - 1
    for number, cells, text in rows:
        where = f"{name}:{number}"
        if len(cells) != width:
            count = len(cells)
            while count > width and not cells[count - 1].strip():
                count -= 1
            surplus = count > width
            if count < width or (surplus and columns.named and not joins):
                collector.problem(where, f"has {count} columns where {width} are expected")
                continue
            if surplus and joins:
                cells[width - 1] = _rest(cells, text, delimiter, width - 1)
        if windows:
            cells[image] = cells[image].replace("\\", "/")
        picture = collector.picture(where, cells[image], cells[split_at].strip() if split_at is not None else None)
        if picture is None:
            continue
        if caption_at is not None and cells[caption_at][:1] != "[":  # nearly always
            collector.add_caption(where, picture, cells[caption_at], cells[image])
            continue
        try:
            listed = [_listed(cells[column]) for column in columns.captions]
        except ValueError as error:
            collector.problem(f"{where} ({cells[image].strip()})", str(error))
            continue
        collector.add_captions(where, picture, [caption for captions in listed for caption in captions], cells[image])


def _listed(cell: str) -> list[Any]:
    """The captions of one of several cells, or of one that is a JSON list or a list as Python or numpy prints it.

    An empty cell has none. Raises ValueError for a list of texts that is broken.
    """
    text = cell.strip()
    if not text.startswith("["):
        return [cell] if text else []
    for parse in (json.loads, _python_list):
        try:
            listed = parse(text)
        except (ValueError, SyntaxError, RecursionError):
            continue
        if isinstance(listed, list) and (not listed or any(isinstance(item, str) for item in listed)):
            return listed
    if text[1:].lstrip()[:1] in ("'", '"'):
        raise ValueError("its list of captions is broken")
    return [cell]


def _python_list(text: str) -> list[Any]:
    """The texts of a list as Python or numpy prints it. Each is evaluated by itself, for a whole made to do harm can
    end the process. Raises ValueError or SyntaxError for what is none."""
    if not PYTHON_LIST.fullmatch(text):
        raise ValueError("no list of texts")
    items = re.findall(PYTHON_TEXT, text, re.DOTALL)
    return [None if item in ("None", "nan") else ast.literal_eval(item) for item in items]


def _lines(collector: Collector, file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; a line that is not UTF-8 is a problem, not an end.

    Raises DataError for a file all of whose lines end as on an old Mac.
    """
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1 and not raw.endswith(b"\n") and b"\r" in raw.rstrip(b"\r"):
                raise DataError(
                    f"{file}: its lines end with a carriage return only, as on an old Mac",
                    f"Save it with line feeds: tr '\\r' '\\n' < {file.name} > lines-{file.name}",
                )
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                collector.problem(f"{collector.name}:{number}", f"is not UTF-8 at byte {error.start + 1} of the line")
                continue
            yield number, line.rstrip("\r\n")


def _rows(collector: Collector, file: Path, delimiter: str) -> Iterator[Row]:
    """Rows that are not empty. A quote never closed costs its line and no other."""
    lines = _lines(collector, file)
    if delimiter in "\t|":  # such files are mostly written without quoting, so a quote is a plain character
        for number, line in lines:
            if line and not line.isspace():
                cells = line.split(delimiter)
                yield number, [_unquoted(cell) for cell in cells] if '"' in line else cells, line
        return
    yield from _csv_rows(collector, lines, delimiter)


def _csv_rows(collector: Collector, lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[Row]:
    ahead: deque[tuple[int, str]] = deque()
    while first := ahead.popleft() if ahead else next(lines, None):
        number, line = first
        cells = _one_line(line, delimiter)
        if cells is None:
            ahead.extend(islice(lines, MAX_LINES_OF_A_ROW - 1 - len(ahead)))
            try:
                cells, count = _several_lines([line, *(text for _, text in ahead)], delimiter)
            except csv.Error as error:
                collector.problem(f"{collector.name}:{number}", f"is not CSV: {error}")
                continue
            line = "\n".join([line, *(ahead.popleft()[1] for _ in range(count - 1))])
        if any(cells):
            yield number, cells, line


def _one_line(line: str, delimiter: str) -> list[str] | None:
    """The cells of a row that ends with its line; None where a quoted cell goes on, or the line is no CSV."""
    if '"' not in line:
        return [cell.lstrip() for cell in line.split(delimiter)]
    reader = csv.reader([_without_zeros(line), ""], skipinitialspace=True, delimiter=delimiter)
    try:
        cells = next(reader)
    except csv.Error:
        return None
    return cells if reader.line_num == 1 else None  # else it needed the second line


def _several_lines(lines: list[str], delimiter: str) -> tuple[list[str], int]:
    """The cells of the row that begins with the first line, and how many lines it takes.

    A quoted cell may hold line breaks, but then it must be closed as the rules say, and before a line that begins
    like a row of its own: else a quote forgotten in one row would swallow all up to the next forgotten one.
    Raises csv.Error.
    """
    whole = [lines[0], *takewhile(lambda line: not ROW_START[delimiter].match(line), lines[1:])]
    ended = [_without_zeros(line) + "\n" for line in whole]
    reader = csv.reader(ended, skipinitialspace=True, strict=True, delimiter=delimiter)
    try:
        return next(reader), reader.line_num
    except csv.Error:
        raise csv.Error("a quote is never closed") from None


def _without_zeros(line: str) -> str:
    """The line as Python 3.10's csv takes it too."""
    return line.replace("\0", " ")


def _rest(cells: list[str], text: str, delimiter: str, at: int) -> str:
    """All from one cell on as it was written, for the spaces after delimiters are part of an unquoted caption."""
    written = text.split(delimiter)
    if delimiter != "|" and '"' in text:
        try:
            written = next(csv.reader([text], delimiter=delimiter))
        except csv.Error:
            written = cells
    if list(map(str.strip, written[:at])) != list(map(str.strip, cells[:at])):
        written = cells  # a space before a quote, which is passed over there, makes the quote a plain character here
    return delimiter.join(written[at:]).rstrip(f"{delimiter} ")


def _unquoted(cell: str) -> str:
    """A cell that a CSV writer quoted because it holds a quote: `"a ""big"" dog"`."""
    inner = cell[1:-1]
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell
