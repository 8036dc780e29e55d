"""A folder of small photographs, and a library of them."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cliplet
from cliplet.library import Library


def paint(file: Path, seed: int, size=(48, 36)) -> Path:
    """A picture of coloured noise, another for each seed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture(scope="session")
def encoder(exported_model):
    return cliplet.load(exported_model, engine="onnxruntime", precision="fp32")


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures in two folders, and a file that is none."""
    folder = tmp_path / "photos"
    for number in range(12):
        paint(folder / ("a" if number < 6 else "b/c") / f"{number:02d}.{'jpg' if number % 2 else 'png'}", number)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def made_library(tmp_path_factory, encoder):
    """A library of twelve pictures with captions; to be read only, and copied for tests that change it."""
    folder = tmp_path_factory.mktemp("made")
    captions = {}
    for number in range(12):
        path = paint(folder / "photos" / f"{number:02d}.png", number, (48 + number, 36))
        captions[str(path)] = [f"picture number {number}", "one of twelve" if number % 2 else "a boat on the lake"]
    with Library.create(folder / "made.library", encoder) as library:
        library.add(folder / "photos", captions=captions)
    return folder / "made.library"


@pytest.fixture
def opened(made_library, encoder):
    with Library.open(made_library, encoder) as library:
        yield library


@pytest.fixture
def library_copy(made_library, tmp_path):
    """A library that a test may change or damage; its pictures are those of the original."""
    copy = Path(shutil.copytree(made_library, tmp_path / "copy.library"))
    with closing(sqlite3.connect(copy / "records.sqlite")) as records:
        records.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else pages may still lie beside the file
    return copy


@pytest.fixture
def new_library(tmp_path, encoder):
    """An empty one."""
    with Library.create(tmp_path / "new.library", encoder) as library:
        yield library
