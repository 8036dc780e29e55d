"""JSON to records: COCO's, Karpathy's, a list or lines of objects with image and caption. Read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from cliplet.data.readers.collector import READ_FORMS, Collector
from cliplet.data.readers.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    LIKELY_IMAGE_COLUMNS,
    LOOKED_AHEAD,
    PICTURE_NAME,
    caption_names,
    written_on_windows,
)
from cliplet.data.readers.json_stream import read_lists
from cliplet.errors import DataError

SHOWN_KEYS = 6


def read_json(collector: Collector, file: Path) -> str:
    """Reads any of the forms by what it holds; gives the form's name. Raises DataError for other JSON."""
    kind, keys = _kind(file)
    if kind == "JSON list":
        _take(collector, file, ((f"{collector.name}: item {number}", item) for number, item in _items(file, "")))
    elif kind == "Karpathy JSON":
        _read_karpathy(collector, file)
    elif kind == "COCO captions JSON":
        _read_coco(collector, file)
    else:
        named = f" with the keys {', '.join(keys[:SHOWN_KEYS])}" if keys else ""
        raise DataError(
            f"{file}: is JSON{named}, but of no form that is known",
            'Expected COCO\'s {"images": [...], "annotations": [...]}, Karpathy\'s {"images": [{"filename": ..., '
            '"sentences": [{"raw": ...}]}]}, or a list of {"image": ..., "caption": ...}. '
            f"Read are {READ_FORMS}.",
        )
    return kind


def _kind(file: Path) -> tuple[str, list[str]]:
    """The form's name, "" for an unknown one, and the document's keys as far as they were read."""
    keys: list[str] = []
    files_named = annotated = False
    for key, block in read_lists(file):
        if key == "" and block is not None:
            return "JSON list", []
        if key and key not in keys:
            keys.append(key)
        if key == "images" and any(_has(item, "sentences") for item in block or ()):
            return "Karpathy JSON", keys
        files_named |= key == "images" and any(_has(item, "file_name") for item in block or ())
        annotated |= key == "annotations" and bool(block)
        if files_named and annotated:
            return "COCO captions JSON", keys
    return "", keys


def is_json_lines(line: str) -> bool:
    """Whether a line is a JSON object of its own, as in a file of JSON lines, and not COCO's or Karpathy's all on one
    line."""
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and "images" not in item


def read_json_lines(collector: Collector, file: Path) -> str:
    """A JSON object on each line: {"image", "caption"} or {"image", "captions": [...]}."""
    _take(collector, file, _objects_of_lines(collector.name, file))
    return "JSON lines"


def _objects_of_lines(name: str, file: Path) -> Iterator[tuple[str, Any]]:
    """What stands on each line, with its place; of a line that is no JSON, the error."""
    parse = json.JSONDecoder().decode  # json.loads looks at its options anew for each line
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text or text.isspace():
                    continue
                item = parse(text)
            except (ValueError, RecursionError) as error:  # also what is not UTF-8
                item = error
            yield where, item


def _has(item: Any, key: str) -> bool:
    return isinstance(item, dict) and key in item


def _texts(items: Iterable[Any], key: str) -> Iterator[str]:
    """Those that the objects among the items have under a key."""
    values = (item.get(key) for item in items if isinstance(item, dict))
    return (value for value in values if isinstance(value, str))


def _items(file: Path, key: str) -> Iterator[tuple[int, Any]]:
    """The items of the list under a key, numbered."""
    number = 0
    for name, block in read_lists(file):
        if name == key:
            for item in block or ():
                yield number, item
                number += 1


def _read_karpathy(collector: Collector, file: Path) -> None:
    """{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}."""
    items = _items(file, "images")
    first = list(islice(items, LOOKED_AHEAD))
    windows = written_on_windows(file, _texts((item for _, item in first), "filename"))
    for number, item in chain(first, items):
        where = f"{collector.name}: image {number}"
        name = item.get("filename") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            collector.problem(where, "has no filename")
            continue
        where = f"{where} ({name})"
        folder, split, sentences = item.get("filepath", ""), item.get("split", ""), item.get("sentences")
        if not isinstance(folder, str) or not isinstance(split, str) or not isinstance(sentences, list):
            collector.problem(where, "its filepath and split must be texts and its sentences a list")
            continue
        path = f"{folder}/{name}" if folder else name
        picture = collector.picture(where, path.replace("\\", "/") if windows else path, split)
        if picture is None:
            continue
        for position, sentence in enumerate(sentences):
            collector.add_caption(f"{where}, sentence {position}", picture, _raw(sentence))


def _raw(sentence: Any) -> Any:
    if not isinstance(sentence, dict):
        return sentence
    tokens = sentence.get("tokens")
    if "raw" not in sentence and isinstance(tokens, list):
        return " ".join(str(token) for token in tokens)
    return sentence.get("raw")


def _read_coco(collector: Collector, file: Path) -> None:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}: names are the file's, never made
    from the id."""
    pictures: dict[Any, int] = {}  # by id
    images = annotations = 0
    annotations_first = windows = False
    for key, block in read_lists(file):
        if key == "images" and block:
            if not images:
                windows = written_on_windows(file, _texts(block, "file_name"))
            _read_coco_images(collector, images, block, pictures, windows)
            images += len(block)
        elif key == "annotations" and block:
            annotations_first = annotations_first or not images
            if not annotations_first:
                _read_annotations(collector, annotations, block, pictures)
                annotations += len(block)
    if annotations_first:
        for key, block in read_lists(file):
            if key == "annotations" and block:
                _read_annotations(collector, annotations, block, pictures)
                annotations += len(block)


def _read_coco_images(
    collector: Collector, start: int, items: list[Any], pictures: dict[Any, int], windows: bool
) -> None:
    """Notes the pictures from number `start` on, and their ids."""
    for number, item in enumerate(items, start):
        where = f"{collector.name}: image {number}"
        name = item.get("file_name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            collector.problem(where, "has no file_name")
            continue
        identity = item.get("id")
        if not isinstance(identity, (int, str)):
            collector.problem(f"{where} ({name})", "has no id")
            continue
        picture = collector.picture(f"{where} ({name})", name.replace("\\", "/") if windows else name)
        if picture is not None and pictures.setdefault(identity, picture) != picture:
            collector.problem(f"{where} ({name})", f"has the id {identity} of another picture before it")


def _read_annotations(collector: Collector, start: int, items: list[Any], pictures: dict[Any, int]) -> None:
    """Captions from annotation `start` on, many at once: there are millions of them."""
    places: Sequence[int] = range(len(items))
    try:
        numbers, captions = [pictures[item["image_id"]] for item in items], [item["caption"] for item in items]
    except (KeyError, TypeError):  # some are bad
        faults = [_fault_of_annotation(item, pictures) for item in items]
        for place, fault in enumerate(faults):
            if fault:
                collector.problem(f"{collector.name}: annotation {start + place}", fault)
        places = [place for place, fault in enumerate(faults) if not fault]
        numbers = [pictures[items[place]["image_id"]] for place in places]
        captions = [items[place]["caption"] for place in places]
    for place, fault in collector.captions(numbers, captions):
        collector.problem(f"{collector.name}: annotation {start + places[place]}", fault)


def _fault_of_annotation(item: Any, pictures: dict[Any, int]) -> str:
    if not isinstance(item, dict) or not isinstance(item.get("image_id"), (int, str)):
        return "has no image_id"
    if item["image_id"] not in pictures:
        return f"is of image {item['image_id']}, which is not there"
    return "" if "caption" in item else "has no caption"


def _take(collector: Collector, file: Path, items: Iterator[tuple[str, Any]]) -> None:
    """Hands objects with image and caption to the collector. Raises DataError where the pictures are addresses."""
    first = list(islice(items, LOOKED_AHEAD))
    objects = [item for _, item in first if isinstance(item, dict)]
    images = [item.get(_image_key(item, _keys_of(tuple(item)))) for item in objects]
    windows = written_on_windows(file, (image for image in images if isinstance(image, str)))
    for where, item in chain(first, items):
        _read_item(collector, where, item, windows)


class _Keys(NamedTuple):
    """Under which of an object's keys its picture and captions stand."""

    image: str
    captions: tuple[str, ...]
    likely: tuple[str, ...]  # for the picture, where there is no such key


@lru_cache(maxsize=1000)
def _keys_of(keys: tuple[str, ...]) -> _Keys:
    names = {key.lower(): key for key in keys}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), "")
    likely = () if image else tuple(names[name] for name in LIKELY_IMAGE_COLUMNS if name in names)
    return _Keys(image, tuple(names[name] for name in caption_names(names)), likely)


def _image_key(item: dict[str, Any], keys: _Keys) -> str:
    """Under which key an object names its picture; "" for none that is known."""
    return keys.image or next((key for key in keys.likely if _is_picture(item[key])), "")


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and PICTURE_NAME.fullmatch(value.strip()) is not None


def _read_item(collector: Collector, where: str, item: Any, windows: bool) -> None:
    """One picture with its caption or captions, under any of the usual names. `windows`: backslashes stand between
    the folders of the picture."""
    if not isinstance(item, dict):
        bad = isinstance(item, Exception)
        collector.problem(where, f"is not JSON: {item}" if bad else "is no object with image and caption")
        return
    keys = _keys_of(tuple(item))
    key = _image_key(item, keys)
    image, split = item.get(key), item.get("split")
    if not isinstance(image, str):
        expected = ", ".join(IMAGE_COLUMNS[:5])
        collector.problem(where, f"its {key} is no text" if key else f"has none of {expected}, ...")
        return
    if windows:
        image = image.replace("\\", "/")
    picture = collector.picture(where, image, split if isinstance(split, str) else None)
    if picture is None:
        return
    if len(keys.captions) == 1:
        captions = item[keys.captions[0]]
        if isinstance(captions, str):  # nearly always
            collector.add_caption(where, picture, captions, image)
            return
        captions = captions if isinstance(captions, list) else [captions]
    else:  # caption_0, caption_1, ...: of some pictures there are fewer
        values = [item[key] for key in keys.captions if item[key] not in ("", None)]
        captions = [text for value in values for text in (value if isinstance(value, list) else [value])]
    if not keys.captions:
        collector.problem(f"{where} ({image})", f"has none of {', '.join(CAPTION_COLUMNS[:3])}, ...")
    collector.add_captions(where, picture, list(map(_raw, captions)), image)
