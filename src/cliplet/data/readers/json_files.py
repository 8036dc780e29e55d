"""JSON to records: COCO's, Karpathy's, a list or lines of objects with image and caption. Read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ijson

from cliplet.data.readers.collector import READ_FORMS, Collector
from cliplet.data.readers.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, NUMBERED_CAPTION
from cliplet.errors import DataError

READ_AT_ONCE = 2**15  # bytes
NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
MAX_DEPTH = 10_000  # the parser's memory grows with the square of it
SHOWN_KEYS = 6


def read_json(collector: Collector, file: Path) -> str:
    """Reads any of the forms by what it holds; gives the form's name. Raises DataError for other JSON."""
    if next(_events(file))[0] == "start_array":
        _read_items(collector, _items(file, "item"), "item")
        return "JSON list"
    # The first that tells, for a bad one does not.
    images = _items(file, "images.item")
    first: dict[str, Any] = next((item for item in images if _has(item, "sentences", "file_name")), {})
    if "sentences" in first:
        _read_karpathy(collector, file)
        return "Karpathy JSON"
    if first and next(_items(file, "annotations.item"), None) is not None:
        _read_coco(collector, file)
        return "COCO captions JSON"
    keys = _keys(file)
    named = f" with the keys {', '.join(keys)}" if keys else ""
    raise DataError(
        f"{file}: is JSON{named}, but of no form that is known",
        'Expected COCO\'s {"images": [...], "annotations": [...]}, Karpathy\'s {"images": [{"filename": ..., '
        '"sentences": [{"raw": ...}]}]}, or a list of {"image": ..., "caption": ...}. '
        f"Read are {READ_FORMS}.",
    )


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
    parse = json.JSONDecoder().decode  # json.loads looks at its options anew each time, which takes as long
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            where = f"{collector.name}:{number}"
            try:
                item = parse(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:  # also what is not UTF-8
                collector.problem(where, f"is not JSON: {error}")
                continue
            _read_item(collector, where, item)
    return "JSON lines"


def _items(file: Path, prefix: str) -> Iterator[Any]:
    """The values at a place of the document, one after another. Raises DataError for what is not JSON."""
    try:
        with file.open("rb") as stream:
            yield from ijson.items(_Watched(stream), prefix, buf_size=READ_AT_ONCE)
    except (ijson.JSONError, ValueError) as error:  # ValueError: what is not UTF-8
        raise _not_json(file, error) from None


def _events(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        with file.open("rb") as stream:
            yield from ijson.basic_parse(_Watched(stream), buf_size=READ_AT_ONCE)
    except (ijson.JSONError, ValueError) as error:
        raise _not_json(file, error) from None


class _Watched:
    """A file that is no danger to a parser: without a byte order mark, and nowhere nested so deeply that it fills the
    memory."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._depth = 0
        self._in_text = False
        self._escape = b""  # a backslash at the end of what was read
        if stream.read(3) != b"\xef\xbb\xbf":
            stream.seek(0)

    def read(self, size: int) -> bytes:
        """The next bytes. Raises ValueError for what is nested too deeply."""
        data = self._stream.read(size)
        plain = (self._escape + data).replace(b"\\\\", b"").replace(b'\\"', b"")
        self._escape = b"\\" if plain.endswith(b"\\") else b""
        marks = plain.translate(None, NO_MARKS).replace(b'""', b"")  # most texts hold no bracket
        pieces = marks.split(b'"')  # by turns outside a text and in one
        outside = b"".join(pieces[self._in_text :: 2])
        self._in_text ^= len(pieces) % 2 == 0
        self._depth += outside.count(b"[") + outside.count(b"{") - outside.count(b"]") - outside.count(b"}")
        if self._depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH:,} levels deep")
        return data


def _not_json(file: Path, error: Exception) -> DataError:
    shown = error.args[0] if error.args else ""  # bytes where the place that it shows is not UTF-8
    reason = shown.decode("utf-8", "backslashreplace") if isinstance(shown, bytes) else str(error)
    reason = " ".join(reason.split())
    return DataError(f"{file}: is not JSON: {reason}", "If it was copied or downloaded, it may be cut short.")


def _keys(file: Path) -> list[str]:
    """The first keys of the document, where it is an object."""
    keys: list[str] = []
    depth = 0
    for event, value in _events(file):
        depth += event.startswith("start") - event.startswith("end")
        if event == "map_key" and depth == 1 and len(keys) < SHOWN_KEYS:
            keys.append(value)
    return keys


def _has(item: Any, *keys: str) -> bool:
    """Whether it is an object with any of the keys."""
    return isinstance(item, dict) and any(key in item for key in keys)


def _read_karpathy(collector: Collector, file: Path) -> None:
    """{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}."""
    for number, item in enumerate(_items(file, "images.item")):
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
        picture = collector.picture(where, f"{folder}/{name}" if folder else name, split)
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
    pictures: dict[Any, int] = {}
    for number, item in enumerate(_items(file, "images.item")):
        where = f"{collector.name}: image {number}"
        name = item.get("file_name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            collector.problem(where, "has no file_name")
            continue
        identity = item.get("id")
        if not isinstance(identity, (int, str)):
            collector.problem(f"{where} ({name})", "has no id")
            continue
        picture = collector.picture(f"{where} ({name})", name)
        if picture is None:
            continue
        if pictures.setdefault(identity, picture) != picture:
            collector.problem(f"{where} ({name})", f"has the id {identity} of another picture before it")
    for number, item in enumerate(_items(file, "annotations.item")):
        try:
            fault = collector.caption(pictures[item["image_id"]], item["caption"])
        except (KeyError, TypeError):
            fault = _fault_of_annotation(item)
        if fault:
            collector.problem(f"{collector.name}: annotation {number}", fault)


def _fault_of_annotation(item: Any) -> str:
    if not isinstance(item, dict) or not isinstance(item.get("image_id"), (int, str)):
        return "has no image_id"
    return f"is of image {item['image_id']}, which is not there" if "caption" in item else "has no caption"


def _read_items(collector: Collector, items: Iterator[Any], noun: str) -> None:
    for number, item in enumerate(items):
        _read_item(collector, f"{collector.name}: {noun} {number}", item)


class _Keys(NamedTuple):
    """Under which of an object's keys its picture and captions stand."""

    image: str
    captions: tuple[str, ...]


@lru_cache(maxsize=1000)
def _keys_of(keys: tuple[str, ...]) -> _Keys:
    names = {key.lower(): key for key in keys}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), "")
    caption = next((names[name] for name in CAPTION_COLUMNS if name in names), "")
    numbered = tuple(key for name, key in names.items() if NUMBERED_CAPTION.fullmatch(name))
    return _Keys(image, (caption,) if caption else numbered)


def _read_item(collector: Collector, where: str, item: Any) -> None:
    """One picture with its caption or captions, under any of the usual names."""
    if not isinstance(item, dict):
        collector.problem(where, "is no object with image and caption")
        return
    keys = _keys_of(tuple(item))
    image, split = item.get(keys.image), item.get("split")
    if not isinstance(image, str):
        expected = ", ".join(IMAGE_COLUMNS[:5])
        collector.problem(where, f"its {keys.image} is no text" if keys.image else f"has none of {expected}, ...")
        return
    picture = collector.picture(where, image, split if isinstance(split, str) else None)
    if picture is None:
        return
    if len(keys.captions) == 1:
        captions = item[keys.captions[0]]
        captions = captions if isinstance(captions, list) else [captions]
    else:  # caption_0, caption_1, ...: of some pictures there are fewer
        captions = [item[key] for key in keys.captions if item[key] not in ("", None)]
    if not keys.captions:
        collector.problem(f"{where} ({image})", f"has none of {', '.join(CAPTION_COLUMNS[:3])}, ...")
    collector.add_captions(where, picture, list(map(_raw, captions)), image)
