"""What every reader hands its finds to: captions gathered by picture, faults written down, nothing shifted."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cliplet.data.places import exists
from cliplet.data.records import Problem, Records, RecordsBuilder, writable
from cliplet.errors import DataError

MAX_WORDS = 1000  # a page of text is no caption; the model would see only its first line
MAX_CHARACTERS = 20_000
LOOKED_AT = 500  # names tried when looking for the folder of the pictures
SPLIT_LISTS = {"train": "trainImages.txt", "val": "devImages.txt", "test": "testImages.txt"}
READ_FORMS = (
    "COCO's and Karpathy's JSON, lists and lines of JSON with image and caption, Kaggle's captions.txt, Flickr's "
    "token files and results.csv, TSV or CSV of image and caption, folders of pictures with .txt beside them, "
    "WebDataset tars, and Hugging Face datasets"
)
COCO_NAME = re.compile(r"COCO_(train2014|val2014|test2014|test2015)_")
COCO_FOLDERS = ("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017")
IMAGE_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "image", "img")


class Collector:
    """Gathers captions by picture and split, in the order of first appearance."""

    def __init__(self, name: str, split_of_name: dict[str, str] | None = None):
        """`name`: what problems are said to be of, the annotation file's name mostly. `split_of_name`: splits of
        pictures by file name, where the annotations themselves name none."""
        self.name = name
        self.problems: list[Problem] = []
        self._split_of_name = split_of_name or {}
        self._builder = RecordsBuilder()
        self._last: tuple[str, str | None] = ("", None)  # most files give a picture's captions one after another
        self._last_number: int | None = None

    def problem(self, where: str, reason: str) -> None:
        """Writes a fault down. `where` is made one that can be written in UTF-8."""
        self.problems.append(Problem(writable(where), reason))

    def picture(self, where: str, image: str, split: str | None = None) -> int | None:
        """The number of a picture, which is noted even if no caption comes; None for what no file can be called."""
        if (image, split) != self._last or self._last_number is None:
            self._last = (image, split)
            self._last_number = self._picture(where, image, split)
        return self._last_number

    def file(self, name: str, split: str) -> int:
        """The number of a picture that is known to be there, so that its name is right as it stands: also one that
        begins with a space or is no UTF-8."""
        return self._builder.picture(name, split)

    def _picture(self, where: str, image: str, split: str | None) -> int | None:
        name = image.strip()
        if not name or "\0" in name or _has_surrogates(name):
            self.problem(where, "names no picture")
            return None
        if "./" in name or "//" in name:  # a.jpg and ./a.jpg are one picture
            name = os.path.normpath(name)
        if split is None:
            split = self._split_of_name.get(name.rpartition("/")[2], "")
        return self._builder.picture(name, split)

    def add(self, where: str, image: str, caption: Any, split: str | None = None) -> None:
        """One caption of a picture; a bad one becomes a problem."""
        number = self.picture(where, image, split)
        if number is not None:
            self.add_caption(where, number, caption, image)

    def add_caption(self, where: str, number: int, caption: Any, image: str = "") -> None:
        """One caption of the picture with this number; a bad one becomes a problem."""
        fault = self.caption(number, caption)
        if fault:
            self.problem(f"{where} ({image.strip()})" if image else where, fault)

    def add_captions(self, where: str, number: int, captions: Sequence[Any], image: str) -> None:
        """The captions that a row or an object has for the picture with this number; each bad one is a problem."""
        for place, caption in enumerate(captions):
            fault = self.caption(number, caption)
            if fault:
                several = f", caption {place}" if len(captions) > 1 else ""
                self.problem(f"{where} ({image.strip()}){several}", fault)

    def caption(self, number: int, caption: Any) -> str:
        """One caption of the picture with this number. Gives what is wrong with one that is not taken, or ""."""
        try:
            self._builder.caption(number, clean_caption(caption))
        except ValueError as error:
            return str(error)
        return ""

    def captions(self, numbers: list[int], captions: list[Any]) -> list[tuple[int, str]]:
        """Many captions at once, each of the picture whose number stands at its place; the places of those that are
        not taken, with what is wrong with them."""
        faults: list[tuple[int, str]] = []
        good: list[tuple[int, str]] = []
        for place, caption in enumerate(captions):
            try:
                good.append((numbers[place], clean_caption(caption)))
            except ValueError as error:
                faults.append((place, str(error)))
        self._builder.captions([number for number, _ in good], [text for _, text in good])
        return faults

    def rename(self, name: Callable[[str], str]) -> None:
        """Gives every picture another name than the annotations do."""
        self._builder.rename(name)

    def pictures(self) -> Sequence[str]:
        """The pictures as the annotations name them."""
        return self._builder.names()

    def records(self, root: Path | None = None) -> Records:
        """The records, `root` before each picture's name; a picture left without captions becomes a problem.

        Raises DataError where nothing is left.
        """
        for image in self._builder.without_caption():
            self.problem(f"{self.name}: {image}", "has no usable caption")
        records = self._builder.build("" if root is None else str(root))
        if not records:
            first = f" The first problem: {self.problems[0].where} {self.problems[0].reason}." if self.problems else ""
            raise DataError(f"{self.name}: holds no picture with a caption.{first}", f"Read are {READ_FORMS}.")
        return records


def clean_caption(caption: Any) -> str:
    """A caption on one line, without control characters and half characters. Raises ValueError for what is none."""
    if not isinstance(caption, str):
        raise ValueError(f"its caption is no text but {type(caption).__name__}")
    if 0 < len(caption) <= MAX_WORDS and caption.isprintable() and "  " not in caption and caption.strip() == caption:
        return caption  # as nearly all are; the rest takes twice as long
    if not caption.isprintable():  # most are, and looking at each character takes long
        caption = "".join(c if unicodedata.category(c) not in ("Cc", "Cs") else " " for c in caption)
    words = caption.split()
    if not words:
        raise ValueError("its caption is empty")
    if len(words) > MAX_WORDS:
        raise ValueError(f"its caption has {len(words):,} words, more than {MAX_WORDS:,}")
    if len(caption) > MAX_CHARACTERS:
        raise ValueError(f"its caption has {len(caption):,} characters, more than {MAX_CHARACTERS:,}")
    return " ".join(words)


def split_lists(folder: Path) -> dict[str, str]:
    """Flickr8k's lists of names beside its captions (Flickr_8k.trainImages.txt and so on), if they are there.

    Raises DataError for one that cannot be read: without it, pictures to be tested on would be trained on."""
    result = {}
    for split, ending in SPLIT_LISTS.items():
        for file in filter(is_file, folder.glob(f"*{ending}")):
            try:
                lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {error.strerror}") from None
            result.update(dict.fromkeys(map(str.strip, lines), split))
    return result


def find_pictures(collector: Collector, file: Path, images: Path | None, folders: Sequence[str]) -> Path:
    """The folder that the annotations' file names start from: `images`, or the annotations' own, or the first of
    `folders` relative to it, in which any of the names tried is found.

    COCO's names say whether they stand in train2014 or val2014, and are found over both. Where the names begin with
    folders that are not there, the file names alone are tried. Raises DataError.
    """
    names = collector.pictures()
    start = file.parent if images is None else images
    roots = [start / folder for folder in folders if images is None or not folder.startswith("..")]
    # All over the list, for many have only a part of the pictures.
    tried = [names[row] for row in range(0, len(names), max(1, len(names) // LOOKED_AT))]
    found = _root(roots, tried)
    if found is None and any("/" in name for name in tried) and _root(roots, list(map(_base, tried))):
        bases = [_base(name) for name in names]
        if len(set(bases)) == len(set(names)):  # else two pictures would become one
            collector.rename(_base)
            found = _root(roots, list(map(_base, tried)))
    if found is None:
        looked = ", ".join(str(root) for root in roots if root.is_dir())
        example = f", {tried[0]} for example" if tried else ""
        raise DataError(
            f"{file}: its pictures are not there{example}; looked in {looked}",
            "Name the folder that the file names start from: --images FOLDER (data.images).",
        )
    elsewhere = [name for name in tried if COCO_NAME.match(name) and _coco_place(name) != f"{found.name}/{name}"]
    if found.name in COCO_FOLDERS and elsewhere:
        collector.rename(_coco_place)
        return found.parent
    return found


def _root(roots: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((root for root in roots if any(exists(os.path.join(root, name)) for name in names)), None)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _coco_place(name: str) -> str:
    """A picture of COCO's by the folder that its name says: COCO_val2014_000000391895.jpg is in val2014."""
    match = COCO_NAME.match(name)
    return f"{match[1]}/{name}" if match else name


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long for the file system, or a loop of links, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _has_surrogates(text: str) -> bool:
    """Whether the text holds halves of characters, as JSON's escapes allow: no file and no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
