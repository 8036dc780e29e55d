"""Plain rows of a CSV or TSV whose cells are short, such as labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cliplet.data.records import Problem
from cliplet.errors import DataError

TABLE_ENDINGS = (".csv", ".tsv", ".txt")


class TableRow(NamedTuple):
    """The number of a row's line, from 1, and its cells."""

    number: int
    cells: list[str]


def table_rows(file: Path, problems: list[Problem]) -> list[TableRow]:
    """The rows that are not empty. Cells are set apart by tabs, or by semicolons where there are no commas, or by
    commas. A line that is no CSV is a problem. Raises DataError for a file that cannot be read or is no UTF-8."""
    try:
        # Not splitlines: a name may hold other kinds of line ends.
        lines = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 at byte {error.start + 1}", "Save it as UTF-8.") from None
    first = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            (cells,) = csv.reader([line.replace("\0", " ")], delimiter=delimiter, skipinitialspace=True, strict=True)
        except csv.Error as error:
            problems.append(Problem(f"{file.name}:{number}", f"is not CSV: {error}"))
            continue
        rows.append(TableRow(number, cells))
    return rows


def small(cells: Sequence[str]) -> list[str]:
    """As names of columns are compared."""
    return [cell.strip().lower() for cell in cells]
