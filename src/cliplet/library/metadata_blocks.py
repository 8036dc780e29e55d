"""The blocks of metadata in a picture's file, EXIF, XMP and IPTC, as they were written; `metadata.py` understands them.

Only headers are read. Whatever is damaged or too large is not there, and nothing raises.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from xml.parsers import expat

import simplejpeg
from PIL import ExifTags, Image, IptcImagePlugin

from cliplet.data.images import FORMATS, JPEG_START, START_OF_SCAN

MAX_BLOCK = 2**20  # bytes; larger ones are not looked at
MAX_SEGMENTS, MAX_CHUNKS = 1000, 2**16  # of a JPEG and a PNG, among which metadata is looked for
EXIF_MARK, XMP_MARK, IPTC_MARK = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
PNG_XMP = "XML:com.adobe.xmp"
DC, RDF = "http://purl.org/dc/elements/1.1/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
LIST_ENTRY = f"{RDF} li"
XMP_TAGS, XMP_DESCRIPTION, XMP_TITLE = f"{DC} subject", f"{DC} description", f"{DC} title"
XMP_DATES = (
    "http://ns.adobe.com/exif/1.0/ DateTimeOriginal",
    "http://ns.adobe.com/photoshop/1.0/ DateCreated",
    "http://ns.adobe.com/xap/1.0/ CreateDate",
)
XMP_NAMES = (XMP_TAGS, XMP_DESCRIPTION, XMP_TITLE, *XMP_DATES)

XP_TITLE, XP_KEYWORDS, XP_SUBJECT = 0x9C9B, 0x9C9E, 0x9C9F  # Windows' own, in UTF-16
# Of a TIFF the rest may be long tables of where its pixels are.
EXIF_TAGS = (
    *(ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.ImageDescription, ExifTags.Base.DateTime),
    *(XP_TITLE, XP_KEYWORDS, XP_SUBJECT),
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Blocks:
    """Of one file. None and "" are of a file that is no picture."""

    format: str = ""
    width: int | None = None  # pixels, upright
    height: int | None = None
    exif: dict[int, Any] = field(default_factory=dict)  # by tag: EXIF_TAGS, and all of the part that is called Exif
    gps: dict[int, Any] = field(default_factory=dict)  # by tag
    xmp: dict[str, list[str]] = field(default_factory=dict)  # by name, of XMP_NAMES
    iptc: dict[tuple[int, int], list[Any]] = field(default_factory=dict)  # by number


def read_blocks(data: bytes) -> Blocks:
    """What stands in a file beside its pixels."""
    size = _jpeg_size(data)
    if size and not _has_metadata(data):
        return Blocks("jpeg", *size)
    image = attempt(lambda: _opened(data))
    if image is None:
        return Blocks("jpeg", *size) if size else Blocks()
    exif = attempt(lambda: _exif(image)) or Image.Exif()
    width, height = size or attempt(lambda: _stored_size(image, exif)) or image.size
    if attempt(lambda: exif.get(ExifTags.Base.Orientation)) in (5, 6, 7, 8):
        width, height = height, width
    return Blocks(
        "jpeg" if image.format == "MPO" else (image.format or "").lower(),  # several JPEGs in one file
        width,
        height,
        {tag: attempt(lambda tag=tag: exif[tag]) for tag in EXIF_TAGS if tag in exif}  # type: ignore[misc]
        | (attempt(lambda: exif.get_ifd(ExifTags.IFD.Exif)) or {}),
        attempt(lambda: exif.get_ifd(ExifTags.IFD.GPSInfo)) or {},
        attempt(lambda: read_xmp(_xmp(image))) or {},
        attempt(lambda: _iptc(image)) or {},
    )


def attempt(function: Callable[[], Result]) -> Result | None:
    """None for what damaged data makes impossible: Pillow raises nearly anything then, and all of it means that."""
    try:
        return function()
    except Exception:
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG, as it is stored, by the library that will decode it."""
    if data[:3] != JPEG_START:
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return width, height


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG has any, by the marks of its segments: Pillow would take longer to open it."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        kind = data[place + 1 : place + 2]
        if data[place : place + 1] != b"\xff" or kind == START_OF_SCAN:
            return False
        if kind in (b"\xe1", b"\xed") and data.startswith((EXIF_MARK, XMP_MARK, IPTC_MARK), place + 4):
            return True
        # More of the same byte may stand before a mark.
        place += 1 if kind == b"\xff" else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _opened(data: bytes) -> Image.Image:
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    if image.format == "PNG":
        # Many programs write these behind the pixels, where Pillow finds them only once it has decoded all.
        for kind, content in _png_chunks(data):
            if kind == b"eXIf":
                image.info.setdefault("exif", EXIF_MARK + content)
            elif content.startswith(PNG_XMP.encode() + b"\0\0\0"):  # not compressed, as XMP demands
                image.info.setdefault(PNG_XMP, content.split(b"\0", 5)[5].decode())
    return image


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and contents of the chunks that may hold metadata."""
    place = 8
    for _ in range(MAX_CHUNKS):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if len(kind) < 4:
            return
        if kind in (b"eXIf", b"iTXt") and size <= MAX_BLOCK:
            yield kind, data[place + 8 : place + 8 + size]
        place += 12 + size


def _exif(image: Image.Image) -> Image.Exif:
    """With the orientation that `data/images.py` goes by."""
    block = image.info.get("exif", b"")
    if len(block) > MAX_BLOCK or (not block and image.format in ("JPEG", "MPO")):
        return Image.Exif()
    return Image.Image.getexif(image)  # PNG's own method would decode the pixels


def _stored_size(image: Image.Image, exif: Image.Exif) -> tuple[int, int]:
    """Before the picture is turned. Of a TIFF newer Pillows have turned it already."""
    return (exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength]) if image.format == "TIFF" else image.size


def _xmp(image: Image.Image) -> bytes:
    """The block; empty where there is none."""
    segments = (content for _, content in getattr(image, "applist", ()) if content.startswith(XMP_MARK))
    block = next(segments, b"").removeprefix(XMP_MARK) or image.info.get("xmp") or image.info.get(PNG_XMP) or b""
    return block.encode() if isinstance(block, str) else block


def read_xmp(block: bytes) -> dict[str, list[str]]:
    """Texts by name, of damaged XML those before the damage. A declaration of a document type, whose entities let a few
    bytes stand for gigabytes or for other files, is damage."""
    found: dict[str, list[str]] = {}
    if not block or len(block) > MAX_BLOCK:
        return found
    within: list[str] = []  # those of XMP_NAMES in which the parser is
    text: list[str] = []

    def refuse(*_: Any) -> None:
        raise ValueError("XMP has no document type")

    def start(name: str, attributes: dict[str, str]) -> None:
        for key, value in attributes.items():
            if key in XMP_NAMES:
                found.setdefault(key, []).append(value)
        if name in XMP_NAMES:
            within.append(name)
        text.clear()

    def end(name: str) -> None:
        if within and name in (LIST_ENTRY, within[-1]):
            found.setdefault(within[-1], []).append("".join(text))
        if within and name == within[-1]:
            within.pop()
        text.clear()

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    attempt(lambda: parser.Parse(block, True))
    return found


def _iptc(image: Image.Image) -> dict[tuple[int, int], list[Any]]:
    info = IptcImagePlugin.getiptcinfo(image) or {}  # type: ignore[arg-type]  # any image may be asked about
    return {key: value if isinstance(value, list) else [value] for key, value in info.items()}
