"""Annotation files and folders to records. The format is found by looking at the file, not by its name."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from cliplet.data.records import ImageText, ImageTextSource, Problem
from cliplet.errors import DataError

MAX_WORDS = 1000  # a page of text is no caption; the model would see only its first line

IMAGE_COLUMNS = ("image", "image_name", "image_path", "image_file", "file", "file_name", "filename", "filepath", "path")
CAPTION_COLUMNS = ("caption", "captions", "caption_text", "text", "sentence", "title", "comment", "raw")
IMAGE_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "image", "img")
SPLIT_LISTS = {"train": "trainImages.txt", "val": "devImages.txt", "test": "testImages.txt"}
MAX_LINES_OF_A_ROW = 20  # of a CSV cell with line breaks in it
LOOKED_AT = 200  # names tried when looking for the folder of the pictures

READ_FORMS = "Karpathy's JSON, Kaggle's captions.txt, Flickr8k.token.txt, and TSV or CSV of image and caption"

ROW_START = re.compile(r"\"?[^,\"]+\.(jpe?g|png|webp|gif|bmp|tiff?)\"?,", re.IGNORECASE)
TOKEN_LINE = re.compile(r"^(?P<image>[^\t]+)#\d+\t(?P<caption>.*)$")


def read_source(path: str | Path, images: str | Path | None = None) -> ImageTextSource:
    """All records of a data set, and what was wrong with those that are not good.

    `path`: an annotation file, or a folder that holds one (Karpathy's JSON is preferred, since it names splits).
    `images`: the folder that file names start from, where it is not found beside the annotations.

    A caption that is empty or longer than 1,000 words and a line that cannot be read are left out and
    listed in `problems`; a picture left without captions is left out too. Whether each picture can be decoded is
    not tried here (`cliplet inspect` does). Raises DataError for a path, format or picture folder that is not there.
    """
    if not str(path):
        raise DataError("no data set was named", "Give --data.path FILE_OR_FOLDER.")
    file = _expanded(path)
    if not _exists(file):
        raise DataError(f"{path}: no such file or folder")
    if file.is_dir():
        file = _annotations_in(file)
    collector = _Collector(file, _split_of_names(file.parent))
    form = _read_into(collector, file)
    root = _image_root(collector, file, _expanded(images) if images else None)
    return ImageTextSource(str(file), form, collector.records(root), collector.problems)


def _annotations_in(folder: Path) -> Path:
    """The one annotation file of a folder."""
    for pattern in ("dataset*.json", "*.json", "*.token.txt", "captions.txt", "*.tsv", "*.csv"):
        found = sorted(file for file in folder.glob(pattern) if file.is_file() and not file.name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:5])
            raise DataError(f"{folder}: holds {len(found)} annotation files ({names})", "Name the one that is meant.")
    raise DataError(f"{folder}: holds no annotation file", f"Read are {READ_FORMS}.")


def _read_into(collector: _Collector, file: Path) -> str:
    """Reads the file by what it looks like; returns the format's name."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}: is UTF-16", "Save it as UTF-8.")
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise DataError(f"{file}: is empty")
    if text[0] in "{[" or file.suffix.lower() == ".json":
        return _read_json(collector, file)
    if b"\0" in head:
        raise DataError(f"{file}: is not a text file", f"Read are {READ_FORMS}.")
    first_line = text.splitlines()[0]
    if TOKEN_LINE.match(first_line):
        return _read_token_file(collector, file)
    return _read_table(collector, file, "\t" if "\t" in first_line else ",")


def _read_json(collector: _Collector, file: Path) -> str:
    """Karpathy's format: {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}."""
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise DataError(f"{file}: is not JSON: {error}") from None
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not any(isinstance(item, dict) and "sentences" in item for item in images):
        keys = f" with the keys {', '.join(list(data)[:6])}" if isinstance(data, dict) else ""
        raise DataError(
            f"{file}: is JSON{keys}, but not in Karpathy's format",
            'Expected {"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}. '
            f"Read are {READ_FORMS}.",
        )
    for number, item in enumerate(images):
        where = f"{file.name}: image {number}"
        name = item.get("filename") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            collector.problem(where, "has no filename")
            continue
        folder, split, sentences = item.get("filepath", ""), item.get("split", ""), item.get("sentences")
        if not isinstance(folder, str) or not isinstance(split, str) or not isinstance(sentences, list):
            collector.problem(f"{where} ({name})", "its filepath and split must be texts and its sentences a list")
            continue
        image = f"{folder}/{name}" if folder else name
        if not collector.picture(f"{where} ({name})", image, split):
            continue
        for position, sentence in enumerate(sentences):
            collector.add(f"{where} ({name}), sentence {position}", image, _raw(sentence), split)
    return "Karpathy JSON"


def _raw(sentence: Any) -> Any:
    if not isinstance(sentence, dict):
        return sentence
    tokens = sentence.get("tokens")
    if "raw" not in sentence and isinstance(tokens, list):
        return " ".join(str(token) for token in tokens)
    return sentence.get("raw")


def _read_token_file(collector: _Collector, file: Path) -> str:
    """Lines of `image.jpg#0<TAB>caption`, as Flickr8k.token.txt and results_20130124.token."""
    for number, line in _lines(collector, file):
        match = TOKEN_LINE.match(line)
        if match:
            collector.add(f"{file.name}:{number}", match["image"], match["caption"])
        elif line.strip():
            collector.problem(f"{file.name}:{number}", "is not of the form image#number<TAB>caption")
    return "Flickr token file"


def _read_table(collector: _Collector, file: Path, delimiter: str) -> str:
    """Rows of picture and caption, with or without a header; a column `split` is used where the header names one."""
    columns: _Columns | None = None
    for number, row, text in _rows(collector, file, delimiter):
        where = f"{file.name}:{number}"
        if columns is None:
            if len(row) < 2:
                raise DataError(
                    f"{file}:{number}: expected a picture and a caption, found {row}", f"Read are {READ_FORMS}."
                )
            columns = _header(row)
            if columns:
                continue
            columns = _Columns(image=0, caption=1, split=None, width=2, named=False)
        while len(row) > columns.width and not row[-1].strip():
            row.pop()
        surplus = len(row) > columns.width
        commas = delimiter == "," and columns.caption == columns.width - 1  # a caption that was not quoted is whole
        if len(row) < columns.width or (surplus and columns.named and not commas):
            collector.problem(where, f"has {len(row)} columns where {columns.width} are expected")
            continue
        caption = row[columns.caption]
        if surplus and commas:
            caption = ",".join(next(csv.reader([text]))[columns.caption :])  # read anew, for the spaces after commas
        collector.add(
            where, row[columns.image], caption, row[columns.split].strip() if columns.split is not None else None
        )
    return "TSV" if delimiter == "\t" else "CSV"


class _Columns(NamedTuple):
    image: int
    caption: int
    split: int | None
    width: int
    named: bool  # by a header; without one, further columns are passed over


def _header(row: list[str]) -> _Columns | None:
    """Where picture, caption and split stand, if this row names its columns."""
    names = [cell.strip().lower() for cell in row]
    image = next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)
    caption = next((names.index(name) for name in CAPTION_COLUMNS if name in names), None)
    if image is None or caption is None:
        return None
    return _Columns(image, caption, names.index("split") if "split" in names else None, len(names), True)


def _lines(collector: _Collector, file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; a line that is not UTF-8 is a problem, not an end."""
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                collector.problem(f"{file.name}:{number}", f"is not UTF-8 at byte {error.start + 1} of the line")
                continue
            yield number, line.rstrip("\r\n")


def _rows(collector: _Collector, file: Path, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """The number of each row's first line, its cells and its text. A quote never closed costs its line and no other."""
    if delimiter == "\t":  # tab-separated files are mostly written without quoting, so a quote is a plain character
        yield from (
            (number, [_unquoted(cell) for cell in line.split("\t")], line)
            for number, line in _lines(collector, file)
            if line.strip()
        )
        return
    lines = list(_lines(collector, file))
    position = 0
    while position < len(lines):
        number = lines[position][0]
        ahead = [line for _, line in lines[position : position + MAX_LINES_OF_A_ROW]]
        try:
            cells, used = _csv_row(ahead)
        except csv.Error as error:
            collector.problem(f"{file.name}:{number}", f"is not CSV: {error}")
            position += 1
            continue
        if any(cells):
            yield number, cells, "\n".join(ahead[:used])
        position += used


def _csv_row(lines: list[str]) -> tuple[list[str], int]:
    """The cells of the row that begins with the first line, and how many lines it takes.

    A quoted cell may hold line breaks, but then it must be closed as the rules say, and before a line that begins
    like a row of its own: else a quote forgotten in one row would swallow all up to the next forgotten one.
    Raises csv.Error.
    """
    reader = csv.reader([lines[0], ""], skipinitialspace=True)
    cells = next(reader)
    if reader.line_num == 1:  # it did not need the second line
        return cells, 1
    whole = [lines[0], *takewhile(lambda line: not ROW_START.match(line), lines[1:])]
    reader = csv.reader([line + "\n" for line in whole], skipinitialspace=True, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error:
        raise csv.Error("a quote is never closed") from None


def _unquoted(cell: str) -> str:
    """A cell that a CSV writer quoted because it holds a quote: `"a ""big"" dog"`."""
    inner = cell[1:-1]
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


class _Collector:
    """Gathers captions by picture and split, in the order of first appearance."""

    def __init__(self, file: Path, split_of_name: dict[str, str]):
        self.file = file
        self.problems: list[Problem] = []
        self._split_of_name = split_of_name
        self._captions: dict[tuple[str, str], list[str]] = {}
        self._first_seen: dict[tuple[str, str], str] = {}

    def problem(self, where: str, reason: str) -> None:
        writable = where.encode("utf-8", "backslashreplace").decode()
        self.problems.append(Problem(writable, reason))

    def picture(self, where: str, image: str, split: str | None = None) -> tuple[str, str] | None:
        """Notes a picture, so that one without captions is named in the end; None for what no file can be called."""
        image = image.strip()
        if not image or "\0" in image or _has_surrogates(image):
            self.problem(where, "names no picture")
            return None
        if split is None:
            split = self._split_of_name.get(Path(image).name, "")
        key = (image, split)
        self._first_seen.setdefault(key, where)
        self._captions.setdefault(key, [])
        return key

    def add(self, where: str, image: str, caption: Any, split: str | None = None) -> None:
        """One caption of a picture; a bad one becomes a problem."""
        key = self.picture(where, image, split)
        if key is None:
            return
        try:
            self._captions[key].append(clean_caption(caption))
        except ValueError as error:
            self.problem(f"{where} ({image.strip()})", str(error))

    def records(self, root: Path) -> list[ImageText]:
        """The records; a picture left without captions becomes a problem."""
        found: dict[tuple[str, str], list[str]] = {}
        for (image, split), captions in self._captions.items():
            if captions:  # a.jpg and ./a.jpg are one picture
                found.setdefault((str(root / image), split), []).extend(captions)
            else:
                self.problem(self._first_seen[image, split], "has no usable caption")
        result = [ImageText(image, tuple(captions), split) for (image, split), captions in found.items()]
        if not result:
            first = f" The first problem: {self.problems[0].where} {self.problems[0].reason}." if self.problems else ""
            raise DataError(f"{self.file}: holds no picture with a caption.{first}", f"Read are {READ_FORMS}.")
        return result

    def images(self) -> Iterator[str]:
        """File names as the annotations give them."""
        return (image for image, _ in self._captions)


def clean_caption(caption: Any) -> str:
    """A caption on one line, without control characters and half characters. Raises ValueError for what is none."""
    if not isinstance(caption, str):
        raise ValueError(f"its caption is no text but {type(caption).__name__}")
    printable = "".join(c if unicodedata.category(c) not in ("Cc", "Cs") else " " for c in caption)
    words = printable.split()
    if not words:
        raise ValueError("its caption is empty")
    if len(words) > MAX_WORDS:
        raise ValueError(f"its caption has {len(words):,} words, more than {MAX_WORDS:,}")
    return " ".join(words)


def _split_of_names(folder: Path) -> dict[str, str]:
    """Flickr8k's lists of names beside its captions (Flickr_8k.trainImages.txt and so on), if they are there."""
    result = {}
    for split, ending in SPLIT_LISTS.items():
        for file in folder.glob(f"*{ending}"):
            lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            result.update(dict.fromkeys(map(str.strip, lines), split))
    return result


def _image_root(collector: _Collector, file: Path, images: Path | None) -> Path:
    """The folder that the annotations' file names start from."""
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: the picture folder does not exist", "Check --images (data.images).")
    roots = [images] if images is not None else [file.parent / name for name in IMAGE_FOLDERS]
    names = list(islice(collector.images(), LOOKED_AT))
    for root in roots:
        if any(_is_file(root / name) for name in names):
            return root
    looked = ", ".join(str(root) for root in roots if root.is_dir())
    example = f", {names[0]} for example" if names else ""
    raise DataError(
        f"{file}: its pictures are not there{example}; looked in {looked}",
        "Name the folder that the file names start from: --images FOLDER (data.images).",
    )


def _has_surrogates(text: str) -> bool:
    """Whether the text holds halves of characters, as JSON's escapes allow: no file and no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name where there is no such user
        return Path(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a zero in it
        return False


def _is_file(path: Path) -> bool:
    return _exists(path) and path.is_file()
