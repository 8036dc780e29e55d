"""Pictures that are made to keep a decoder busy are refused by their bytes; those of cameras and animations are not."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from cliplet.errors import ImageError
from cliplet.serve import thumbnails
from cliplet.serve.bombs import MAX_SCANS, refuse_bomb


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(data)) + data


def jpeg_of_scans(scans, side=2000):
    """A progressive JPEG of one colour; each scan is a run of empty blocks, and goes over all pixels."""
    blocks = (side // 8) ** 2
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    head += segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\0")
    head += segment(0xC4, b"\x10" + bytes([1, 1] + [0] * 14) + b"\xe0\x00")
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks // 8 + 1)
    runs = "".join("0" + format(min(32767, blocks - done) - 16384, "014b") for done in range(0, blocks - 16383, 32767))
    runs += "1" * (-len(runs) % 8)
    data = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\x00")
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data
    return head + first + (scans - 1) * scan + b"\xff\xd9"


def jpeg(**options):
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks):
    head = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunks + chunk(b"IDAT", zlib.compress(bytes(13 * 4))) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + body


def gif_with(blocks):
    picture = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6) + blocks + picture


def bmp_in_runs(width, height, packing=1):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, packing, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024, 0, 0, 54 + 1024) + info + bytes(1024) + b"\x00\x01"


def tiff_of(*tags, count=None, order="<"):
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    return head + struct.pack(order + "H", len(tags) if count is None else count) + entries + bytes(4)


BOMBS = {
    "scans": (jpeg_of_scans(MAX_SCANS + 1, 1024), "more than 100 scans"),
    "scans behind what is no marker": (
        b"\xff\xd8\xff\x02\xff\xff" + segment(0xDA, b"") * 101,
        "more than 100 scans",
    ),
    "segments": (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10_001, "more than 10,000 segments"),
    "chunks": (png_with(chunk(b"teXt") * 20_000), "chunks"),
    "exif": (png_with(chunk(b"eXIf", bytes(2**20 + 1))), "1 MB of EXIF"),
    "webp's exif": (b"RIFF\0\0\0\0WEBPEXIF" + struct.pack("<I", 2**20 + 1), "1 MB of EXIF"),
    "webp's chunks": (b"RIFF\0\0\0\0WEBP" + b"ABCD\0\0\0\0" * 10_001, "more than 10,000 chunks"),
    "blocks of a comment": (gif_with(b"!\xfe" + (b"\xff" + b"x" * 255) * 5000 + b"\0"), "more than 4,000 blocks"),
    "comments": (gif_with(b"!\xfe\x01x\0" * 5000), "more than 4,000 blocks"),
    "bytes between blocks": (gif_with(bytes(5000)), "more than 4,000 blocks"),
    "runs of pixels": (bmp_in_runs(8000, -8000), "packed in runs"),
    "half bytes in runs": (bmp_in_runs(8000, 8000, 2), "packed in runs"),
    "tags": (tiff_of(count=5000), "more than 4,096 tags"),
    "fractions": (tiff_of((282, 5, 100_000, 26), order=">"), "more than 4,096 values"),
    "values": (tiff_of((273, 4, 2_000_000, 26)), "more than 1,000,000 values"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_told_by_their_bytes(name):
    data, says = BOMBS[name]
    start = time.monotonic()
    with pytest.raises(ImageError, match=f"^x.jpg: has .*{says}"):
        refuse_bomb(data, "x.jpg")
    assert time.monotonic() - start < 0.5


def test_what_cameras_write_is_none():
    like_a_scan = b"\xff\xda\x00\x08" * 1000
    progressive = jpeg(progressive=True)
    assert 5 < progressive.count(b"\xff\xda") < 20
    for data in (
        jpeg(),
        progressive,
        jpeg(restart_marker_blocks=1),
        progressive + b"\0\0\0\x18ftypmp42" + like_a_scan,  # a video behind the picture
        jpeg(comment=like_a_scan),
        jpeg(icc_profile=like_a_scan * 40),
        jpeg_of_scans(MAX_SCANS, 1024),
        progressive[:-100],
        b"\xff\xd8",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"\x89PNG\r\n\x1a\n",
        png_with(b"".join(chunk(b"IDAT", bytes(8192)) for _ in range(4000))),
        bmp_in_runs(1000, 1000),
        tiff_of((273, 4, 10_000, 26), (282, 5, 1, 26)),
    ):
        refuse_bomb(data, "x")


def test_a_jpeg_of_thousands_of_scans_is_not_decoded(service):
    start = time.monotonic()
    for path in ("uploads", "search/picture", "embed/image"):
        status, _, content = service.send(f"/api/photos/{path}", jpeg_of_scans(3000))
        told = json.loads(content)
        assert status == 415 and "the picture that was sent: has more than 100 scans" in told["error"] and told["hint"]
    assert time.monotonic() - start < 1.5


def test_nor_is_one_that_came_into_the_library(service, library, monkeypatch):
    monkeypatch.setattr(thumbnails, "read_original", lambda picture, content: jpeg_of_scans(3000))
    picture = library.newest(24)[-1]
    start = time.monotonic()
    status, error, _ = service.refused("GET", f"/api/photos/pictures/{picture.id}/thumbnail")
    assert status == 415 and f"{picture.name}: has more than 100 scans" in error and time.monotonic() - start < 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_thousand_frames_the_first_is_decoded(service, kind):
    """They cost no more than their bytes do."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    first, *others = [Image.fromarray(pixels[number % 2]) for number in range(1000)]
    moving, still, options = io.BytesIO(), io.BytesIO(), {"lossless": True, "method": 0} if kind == "WEBP" else {}
    first.save(moving, kind, save_all=True, append_images=others, duration=20, **options)
    first.save(still, kind, **options)
    with Image.open(moving) as made:
        assert made.n_frames == 1000
    start = time.monotonic()
    status, _, content = service.send("/api/photos/embed/image", moving.getvalue())
    assert status == 200 and time.monotonic() - start < 1
    expected = json.loads(service.send("/api/photos/embed/image", still.getvalue())[2])
    np.testing.assert_allclose(json.loads(content)["embeddings"], expected["embeddings"], atol=1e-4)


def png_of(width, height):
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def webp_of(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif_of(width, height):
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


def icon_around(data):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(data), 22) + data


BOMB = png_of(25_000, 20_000)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (BOMB, 413, "25,000 x 20,000 pixels; 64 megapixels"),
        (webp_of(16_000, 16_000), 413, "16,000 x 16,000"),
        (icon_around(BOMB), 415, "is none, or of a kind that is not taken"),
        (gif_of(60_000, 60_000), 413, "60,000 x 60,000"),
        (png_of(100, 100), 415, "the picture that was sent"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "is none"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415, "is none"),
        (b"no picture", 415, "is none"),
        (b"", 415, "is none"),
        (png_of(1, 1), 415, "too small"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else None,
)
def test_what_is_sent_must_be_a_picture_of_a_size(service, data, status, says):
    for path in ("uploads", "search/picture", "embed/image"):
        told, _, content = service.send(f"/api/photos/{path}", data)
        error = json.loads(content)["error"]
        assert told == status and says in error, error
