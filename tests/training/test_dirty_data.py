"""Data as people have it: every fault at once, from the annotations to the pictures. The run goes on and names each."""

import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cliplet.config import RunConfig, StageConfig
from cliplet.data.places import file_name
from cliplet.data.quarantine import Quarantine
from cliplet.data.readers import read_source
from cliplet.evaluation import evaluate
from cliplet.runtime.encoder import load
from cliplet.training import train

GOOD = 16


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gigapixel():
    """A PNG of 40,000 x 40,000 pixels by its header."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def dirty(tmp_path):
    """COCO's captions JSON over good and bad pictures; gives its file and, by name, what is said of each bad one."""
    folder = tmp_path / "dirty"
    images = folder / "images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    listed, captions = [], []

    def add(name, *texts, number=None):
        number = len(listed) if number is None else number
        listed.append({"id": number, "file_name": name})
        captions.extend({"image_id": number, "caption": text} for text in texts)

    for number in range(GOOD):
        picture = Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        picture.save(images / f"{number}.jpg")
        add(f"{number}.jpg", f"picture {number}", f"boat {number}\x07 with a bell")
    whole = (images / "0.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "zero.jpg").touch()
    (images / "page.jpg").write_text("<html>404</html>")
    (images / "giga.png").write_bytes(gigapixel())
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    (images / "folder.jpg").mkdir()
    (images / "dot.gif").write_bytes(
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    )
    faults = {
        "truncated.jpg": "cannot be decoded",
        "zero.jpg": "is empty",
        "page.jpg": "not a picture",
        "giga.png": "over the limit of 200 megapixels",
        "loop.jpg": "cannot be read",
        "folder.jpg": "is a folder",
        "dot.gif": "too small",
        "gone.jpg": "no such file",
    }
    if os.geteuid():
        (images / "secret.jpg").write_bytes(whole)
        (images / "secret.jpg").chmod(0)
        faults["secret.jpg"] = "cannot be read"
    for name in faults:
        add(name, f"a caption of {name}")
    (images / "named.jpg").write_bytes(b"")
    Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(images / "named.jpg", "PNG")
    add("named.jpg", "a PNG under another name", "ein Boot", "一只狗在雪地里", "كلب في الثلج")
    add("silent.jpg")
    add("empty.jpg", "   ")
    add("7-again.jpg", number=7)
    captions.append({"image_id": 999, "caption": "of nobody"})
    file = folder / "captions_dirty.json"
    file.write_text(json.dumps({"images": listed, "annotations": captions}))
    annotations = {
        "silent.jpg": "has no usable caption",
        "empty.jpg": "its caption is empty|has no usable caption",
        "7-again.jpg": "has the id 7 of another picture",
        "annotation": "is of image 999, which is not there",
    }
    return file, {**faults, **annotations}


def assert_named(entries, faults):
    """Each fault is among the entries by name and reason, and nothing else is but the second words of some."""
    texts = [f"{entry['where']}: {entry['reason']}" for entry in entries]
    for name, reason in faults.items():
        assert any(name in text and re.search(reason, text) for text in texts), (name, reason, texts)
    assert all(any(name in text for name in faults) for text in texts), texts


def test_a_run_over_every_fault_goes_through_and_names_each(dirty, tiny_config, tmp_path):
    file, faults = dirty
    config = RunConfig(
        data={"path": str(file), "train_split": "all", "val_split": "all", "workers": 3},
        model=tiny_config,
        train={"output": str(tmp_path / "run"), "batch_size": 6, "stages": (StageConfig(epochs=3),)},
    )
    run = train(config)
    lines = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert_named([json.loads(line) for line in lines], faults)
    assert run.evaluation.metrics["images"] == GOOD + 1
    assert run.evaluation.metrics["captions"] == 2 * GOOD + 4


def test_no_row_is_shifted(dirty, saved_model):
    """What is measured is each picture with its own captions: the same as measured on the good ones alone."""
    file, faults = dirty
    source = read_source(file)
    quarantine = Quarantine()
    quarantine.extend(source.problems)
    encoder = load(saved_model)
    found = evaluate(encoder, source.select("all"), quarantine)
    assert_named(quarantine.entries(), faults)
    own = {file_name(record.image): record.captions for record in found.records}
    assert own == {
        **{f"{number}.jpg": (f"picture {number}", f"boat {number} with a bell") for number in range(GOOD)},
        "named.jpg": ("a PNG under another name", "ein Boot", "一只狗在雪地里", "كلب في الثلج"),
    }
    alone = encoder.encode_image([record.image for record in found.records])
    np.testing.assert_allclose(found.image_ND, alone, atol=1e-5)
    for row, owner in enumerate(found.caption_image_M):
        assert found.captions[row] in found.records[owner].captions
