"""Which reader a path needs, found by looking at it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from cliplet.data.readers import folders, huggingface, json_files, tables, webdataset
from cliplet.data.readers.collector import (
    COCO_FOLDERS,
    IMAGE_FOLDERS,
    READ_FORMS,
    Collector,
    find_pictures,
    is_file,
    split_lists,
)
from cliplet.data.records import ImageTextSource
from cliplet.errors import DataError

JSON_FILES = ("dataset*.json", "captions_*.json", "*.json", "*.jsonl")
ANNOTATIONS = (*JSON_FILES, "*.token.txt", "*.token", "captions.txt", "*.tsv", "*.csv")
COCO_ANNOTATIONS = ("annotations/captions_*.json",)
JSON_START = re.compile(r"[\[{]\s*([\[\]{}\"\d-]|true|false|null|\Z)")  # a caption may begin with [sic]
COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, zip, bzip2, xz, zstd
HEAD = 2**16  # bytes by which a file's form is known
LINES_LOOKED_AT = 50
STRANGE = 10  # one character in this many in a file that is no text


def read_source(path: str | Path, images: str | Path | None = None, samples: int | None = None) -> ImageTextSource:
    """All records of a data set, and what was wrong with those that are not good.

    `path`: an annotation file, a folder that holds one (Karpathy's JSON is preferred, since it names splits), a folder
    of pictures with .txt files beside them, WebDataset tars (a file, a folder of them, a URL; braces as in
    `{00000..00009}.tar`), or a Hugging Face data set: a hub name (`owner/name`, `hf:owner/name`), Parquet, Arrow, an
    image folder. `images`: the folder that file names start from, where it is not found beside the annotations.
    `samples`: give the first so many pictures of each split only.

    A caption that is empty or longer than 1,000 words and a line that cannot be read are left out and
    listed in `problems`; a picture left without captions is left out too. Whether each picture can be decoded is
    not tried here (`cliplet inspect` does). Raises DataError for a path, format or picture folder that is not there.
    """
    if samples is not None and samples < 1:
        raise DataError(f"{samples} pictures cannot be read", "--samples takes 1 or more (data.samples).")
    folder = _expanded(images) if images else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{images}: the picture folder does not exist", "Check --images (data.images).")
    source = _read(str(path), folder, samples)
    if samples is not None:
        source.records = source.records.first_of_each_split(samples)
    return source


def _read(path: str, images: Path | None, samples: int | None) -> ImageTextSource:
    if not path:
        raise DataError("no data set was named", "Give --data.path FILE_OR_FOLDER.")
    if webdataset.is_shards(path):
        return webdataset.read_shards(path)
    file = _expanded(path)
    if not _exists(file):
        if huggingface.is_hub_name(path):
            return huggingface.read_hub(path, samples)
        raise DataError(f"{path}: no such file or folder")
    if huggingface.is_data_set(file):
        return huggingface.read_local(file, samples)
    if file.is_dir():
        annotations = _annotations_in(file)
        if annotations is None:
            return folders.read_folder(file)
        file = annotations
    collector = Collector(file.name, split_lists(file.parent))
    form = _reader(file)(collector, file)
    root = find_pictures(collector, file, images, _image_folders(file)) if collector.pictures() else None
    records = collector.records(root)
    return ImageTextSource(str(file), form, records, collector.problems)


def _annotations_in(folder: Path) -> Path | None:
    """The one annotation file of a folder; None where its captions stand in a file beside each picture."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    if folders.has_captions(folder):
        return None
    for pattern in (*ANNOTATIONS, *COCO_ANNOTATIONS):
        found = sorted(file for file in folder.glob(pattern) if is_file(file) and not file.name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:5])
            raise DataError(f"{folder}: holds {len(found)} annotation files ({names})", "Name the one that is meant.")
    raise DataError(f"{folder}: holds no annotation file", f"Read are {READ_FORMS}.")


def _reader(file: Path) -> Callable[[Collector, Path], str]:
    """What reads the file, by what most of its first lines look like: any one of them may be a bad one."""
    if not is_file(file):
        raise DataError(f"{file}: is no file", "A pipe or a device cannot be read, for a file is read more than once.")
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}: is UTF-16", "Save it as UTF-8.")
    if head.startswith(COMPRESSED):
        raise DataError(f"{file}: is compressed", "Decompress it first, with gunzip or unzip for example.")
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise DataError(f"{file}: is empty")
    lines = text.split("\n")
    if len(head) == HEAD and len(lines) > 1:  # the last one is cut
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines if line.strip()][:LINES_LOOKED_AT]

    def most(look: Callable[[str], bool]) -> bool:
        return 2 * sum(map(look, lines)) > len(lines)

    if file.suffix.lower() in (".jsonl", ".ndjson") or ("\n" in text and most(json_files.is_json_lines)):
        return json_files.read_json_lines
    if JSON_START.match(text) or file.suffix.lower() == ".json":
        return json_files.read_json
    strange = text.count("\0") + text.count("\N{REPLACEMENT CHARACTER}")
    if "\0" in text and strange * STRANGE > len(text):
        raise DataError(f"{file}: is not a text file", f"Read are {READ_FORMS}.")
    if most(tables.is_token_line):
        return tables.read_token_file
    return lambda collector, file: tables.read_table(collector, file, "\n".join(lines))


def _image_folders(file: Path) -> list[str]:
    """Where pictures are looked for: beside the annotations and, as COCO has them, in folders beside the folder of
    annotations, one of which may be named in the annotations' own name (captions_train2014.json)."""
    named = re.search(r"(train|val|test)20\d\d", file.name)
    coco = list(dict.fromkeys([*([named[0]] if named else []), *COCO_FOLDERS]))
    beside = [*IMAGE_FOLDERS, *coco, *(f"images/{name}" for name in coco)]
    above = [os.path.join("..", name) for name in ("", "images", *coco, *(f"images/{name}" for name in coco))]
    return [*beside, *above]


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name where there is no such user
        return Path(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, a loop of links, a zero in it
        return False
