"""Pictures that are made to keep a decoder busy: few bytes, many parts. Told by their bytes, before any is decoded.

A photograph has none of these by far: a progressive JPEG has about ten scans, and where a PNG is cut into thousands of
chunks, each of them is large. What decoders do for each part is done in C for scans and in Python, which no other
thread runs meanwhile, for all the rest.
"""

from __future__ import annotations

import re
import struct

from cliplet.errors import ImageError

MAX_SCANS = 100  # of a JPEG; each goes over all of its pixels. libtiff has the same limit for JPEGs in TIFFs
MAX_SEGMENTS = 10_000  # of a JPEG, or chunks of a WebP
MAX_EXIF = 2**20  # bytes that tell how the picture was taken
CHUNKS, BYTES_OF_CHUNK = 10_000, 1024  # of a PNG: so many, and one more for each so many bytes
MAX_BLOCKS = 4000  # of a GIF before its first picture, of 255 bytes at most
MAX_RUNS_PIXELS = 2_000_000  # of a BMP whose pixels are packed in runs
MAX_TAGS, MAX_VALUES, MAX_FRACTIONS = 4096, 1_000_000, 4096  # of a TIFF's first picture, or of one tag there
EXIF = f"more than {MAX_EXIF // 2**20} MB of EXIF data"
AGAIN = "Save it anew with another program; photographs have far fewer."

MARKER = re.compile(rb"\xff[^\x00\xff]")
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends a scan's data
SCAN, END = 0xDA, 0xD9
WITHOUT_LENGTH = (0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8)
FRACTIONS = (5, 10)  # TIFF's types whose values become objects of their own
BYTE_TYPES = (1, 2, 6, 7)
PLACES_OF_PIXELS = (273, 279, 324, 325)  # TIFF's tags with a value for each strip or tile


def refuse_bomb(data: bytes, name: str) -> None:
    """Raises ImageError for a picture of far more parts than a photograph has. `name` is what the message calls it."""
    problem = ""
    if data[:2] == b"\xff\xd8":
        problem = _jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        problem = _png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        problem = _webp(data)
    elif data[:4] == b"GIF8":
        problem = _gif(data)
    elif data[:2] == b"BM":
        problem = _bmp(data)
    elif data[:2] in (b"II", b"MM"):
        problem = _tiff(data)
    if problem:
        raise ImageError(f"{name}: has {problem}", AGAIN)


def _jpeg(data: bytes) -> str:
    """Goes from marker to marker as libjpeg does, for bytes that look like one may stand within a segment, and whole
    videos behind the picture's end."""
    scans, place, within = 0, 2, False
    for _ in range(MAX_SEGMENTS):
        found = (MARKER_IN_SCAN if within else MARKER).search(data, place)
        if found is None:
            return ""
        kind, place = data[found.end() - 1], found.end()
        if kind == END:
            return ""
        # Those below 0xC0 are none, and libjpeg passes over nothing but the two bytes.
        if kind < 0xC0 or kind in WITHOUT_LENGTH:
            continue
        within = kind == SCAN
        scans += within
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return f"more than {MAX_SEGMENTS:,} segments"


def _png(data: bytes) -> str:
    most, place = CHUNKS + len(data) // BYTES_OF_CHUNK, 8
    for _ in range(most):
        if place + 12 > len(data):
            return ""
        size = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"eXIf" and size > MAX_EXIF:
            return EXIF
        place += 12 + size
    return f"more than {most:,} chunks"


def _webp(data: bytes) -> str:
    """Frames beyond the first cost nothing but the way over their headers."""
    place = 12
    for _ in range(MAX_SEGMENTS):
        if place + 8 > len(data):
            return ""
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"EXIF" and size > MAX_EXIF:
            return EXIF
        place += 8 + size + size % 2
    return f"more than {MAX_SEGMENTS:,} chunks"


def _gif(data: bytes) -> str:
    if len(data) < 13:
        return ""
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    blocks = 0
    while blocks <= MAX_BLOCKS:
        introducer = data[place : place + 1]
        if introducer in (b"", b",", b";"):
            return ""
        place += 2 if introducer == b"!" else 1
        blocks += 1
        while introducer == b"!" and blocks <= MAX_BLOCKS and place < len(data):
            size, place = data[place], place + 1 + data[place]
            if not size:
                break
            blocks += 1
    return f"more than {MAX_BLOCKS:,} blocks before its first picture"


def _bmp(data: bytes) -> str:
    if len(data) < 34 or int.from_bytes(data[30:34], "little") not in (1, 2):
        return ""
    width, height = struct.unpack_from("<ii", data, 18)
    too_many = abs(width * height) > MAX_RUNS_PIXELS
    return f"more than {MAX_RUNS_PIXELS:,} pixels that are packed in runs" if too_many else ""


def _tiff(data: bytes) -> str:
    """Looks at the tags of the first picture. A place beyond the end is the decoder's to refuse."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"\x2b\x00", b"\x00\x2b")
    first, count, entry = ("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")
    try:
        (place,) = struct.unpack_from(order + first, data, 8 if big else 4)
        (tags,) = struct.unpack_from(order + count, data, place)
        place += struct.calcsize(order + count)
        if tags > MAX_TAGS:
            return f"more than {MAX_TAGS:,} tags"
        for number in range(tags):
            tag, kind, values = struct.unpack_from(order + entry, data, place + number * struct.calcsize(order + entry))
            of_strips = tag in PLACES_OF_PIXELS
            most = MAX_FRACTIONS if kind in FRACTIONS and not of_strips else MAX_VALUES
            if kind not in BYTE_TYPES and values > most:
                return f"a tag of more than {most:,} values"
    except (struct.error, OverflowError):
        pass
    return ""
