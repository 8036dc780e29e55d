"""What a library lives through: kills, full disks, damage, other processes."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cliplet.errors import DataError
from cliplet.library import Library, Query
from cliplet.library.locks import only_writer
from cliplet.library.repair import repair

from .conftest import paint

SLOW_INDEX = """
import sys, time
import cliplet
from cliplet.library import Library, indexing
indexing.COMMIT_SECONDS = 0.0
plain = indexing.read_file
def slow(path):
    time.sleep(0.02)
    return plain(path)
indexing.read_file = slow
with Library.create(sys.argv[1], cliplet.load(sys.argv[2], engine="onnxruntime", precision="fp32")) as library:
    library.add(sys.argv[3], batch_size=4)
"""


def started(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def pictures_in(folder):
    try:
        with Library.open(folder) as library:
            return len(library)
    except DataError:
        return 0


def assert_whole(library, encoder):
    """Each picture is there once, under its own vector."""
    pictures = library.newest(1000)
    assert len({picture.path for picture in pictures}) == len(pictures) == len(library)
    features = library.store.features([picture.id for picture in pictures])
    expected = encoder.encode_image([picture.path for picture in pictures])
    np.testing.assert_allclose(features, expected, atol=2e-3)


def test_a_killed_run_goes_on_and_readers_never_wait(tmp_path, exported_model, encoder):
    for number in range(60):
        paint(tmp_path / "photos" / f"{number:02d}.png", number)
    place = tmp_path / "l.library"
    process = started(SLOW_INDEX, place, exported_model, tmp_path / "photos")
    wait_for(lambda: pictures_in(place) >= 12)
    with Library.open(place, encoder) as reader:
        began = time.monotonic()
        assert reader.search("boat", k=5)
        assert time.monotonic() - began < 5
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        committed = len(reader)
        reader.refresh()
        assert committed <= len(reader) < 60
        assert_whole(reader, encoder)
    with Library.open(place, encoder) as library:
        before = len(library)
        summary = library.add()
        assert (summary.unchanged, summary.added, summary.embedded) == (before, 60 - before, 60 - before)
        assert_whole(library, encoder)


UPGRADE = """
import os, sys, cliplet
from cliplet.library import Library, indexing
indexing.COMMIT_SECONDS = 0.0
plain, read = indexing.read_file, []
def dying(path):
    read.append(path)
    if len(read) > 7:
        os.kill(os.getpid(), 9)
    return plain(path)
indexing.read_file = dying
with Library.open(sys.argv[1]) as library:
    library.add(model=sys.argv[2], upgrade=True, batch_size=1)
"""


def test_a_killed_upgrade_answers_with_the_old_vectors_and_goes_on(library_copy, encoder, tiny_config, tmp_path):
    import torch

    import cliplet
    from cliplet.models import DualEncoder

    torch.manual_seed(1)
    other = tmp_path / "other"
    DualEncoder.build(tiny_config, ["some other words"]).eval().save_pretrained(other, card="# card\n")
    assert started(UPGRADE, library_copy, other).wait() == -signal.SIGKILL
    with Library.open(library_copy) as library:
        assert_whole(library, encoder)
        summary = library.add(model=other, upgrade=True)
        assert 0 < summary.embedded < 12
        assert_whole(library, cliplet.load(other))
        assert library.captions("picture number 7")[0].text == "picture number 7"
        assert library.search("boat").nothing_fits in (True, False)


def test_what_a_kill_left_of_a_batch_is_cut_off(library_copy, encoder):
    with open(library_copy / "vectors-1.f16", "ab") as stream:
        stream.write(bytes(77))
    with Library.open(library_copy, encoder) as library:
        assert_whole(library, encoder)
        library.add()
        assert_whole(library, encoder)
    assert (library_copy / "vectors-1.f16").stat().st_size == 12 * 16 * 2


def test_a_second_writer_says_who_holds_the_library(library_copy, encoder):
    with Library.open(library_copy, encoder) as library, only_writer(library_copy, print, wait=False):
        with pytest.raises(DataError, match=f"process {os.getpid()} on") as refused:
            library.add()
        assert "--wait" in refused.value.hint
        assert len(library.search("boat")) == 10  # readers do not mind


def test_a_second_writer_may_wait(library_copy, exported_model):
    code = """
import sys, cliplet
from cliplet.library import Library
with Library.open(sys.argv[1]) as library:
    print(library.add(wait=True, say=lambda message: print(message, flush=True)).unchanged)
"""
    with only_writer(library_copy, print, wait=False):
        process = started(code, library_copy)
        assert "waiting for another process" in process.stdout.readline()
        assert process.poll() is None
    assert process.communicate(timeout=60)[0].strip() == "12"


def test_a_disk_that_is_really_full_loses_nothing(tmp_path, encoder, photos):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk that is small enough to be filled")
    try:
        with Library.create(disk / "l.library", encoder) as library:
            library.add(photos / "a")
            filler = disk / "filler"
            with open(filler, "wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
                while True:  # to the last byte
                    stream.write(bytes(4096))
            with pytest.raises((OSError, DataError)):
                library.add(photos)
            filler.unlink()
            library.refresh()
            assert len(library) == 6
            assert_whole(library, encoder)
            assert library.add(photos).pictures == 12
            assert_whole(library, encoder)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_vanishes_while_it_is_indexed(new_library, photos, monkeypatch):
    from cliplet.library import indexing

    plain, read = indexing.read_file, []

    def vanishing(path):
        read.append(path)
        if len(read) == 4:
            photos.rename(photos.with_name("away"))
        return plain(path)

    monkeypatch.setattr(indexing, "read_file", vanishing)
    with pytest.raises(DataError, match="vanished while it was being indexed"):
        new_library.add(photos, batch_size=1)
    new_library.refresh()
    kept = len(new_library)
    assert 1 <= kept < 12
    assert new_library.add().pictures == kept  # and nothing is taken out for its being away


def test_a_file_that_changes_while_it_is_read_is_read_again(new_library, photos, monkeypatch):
    from cliplet.library import indexing

    changing = str(photos / "a" / "00.png")
    plain = os.fstat

    def fstat(handle):
        status = plain(handle)
        if str(Path(f"/proc/self/fd/{handle}").readlink()) == changing and not seen:
            seen.append(1)
            os.utime(changing, ns=(7, 7))
        return status

    seen = []
    monkeypatch.setattr(indexing.os, "fstat", fstat)
    new_library.add(photos)
    assert (new_library.add().changed, new_library.add().changed) == (1, 0)


def test_a_file_that_may_not_be_read_is_tried_again(new_library, photos, monkeypatch):
    from cliplet.library import indexing

    closed = str(photos / "a" / "00.png")
    plain = open

    def refusing(path, *rest, **named):
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest, **named)

    monkeypatch.setattr(indexing, "open", refusing, raising=False)
    assert new_library.add(photos).failed == 1
    monkeypatch.undo()
    assert new_library.add().added == 1


# Damage and repair


def corrupted(file, place, count=4096):
    with open(file, "r+b") as stream:
        stream.seek(place)
        stream.write(os.urandom(count))


@pytest.mark.parametrize("how", ["head", "gone", "random", "empty"])
def test_damaged_records_are_made_again_without_embedding(library_copy, encoder, how):
    with Library.open(library_copy, encoder) as library:
        before = {picture.path: picture for picture in library.newest(20)}
    records = library_copy / "records.sqlite"
    if how == "gone":
        records.unlink()
    elif how == "empty":
        records.write_bytes(b"")
    elif how == "random":
        records.write_bytes(os.urandom(records.stat().st_size))
    else:
        corrupted(records, 0)
    pictures = {path: Path(path).read_bytes() for path in before}
    with pytest.raises(DataError) as refused:
        Library.open(library_copy)
    assert "--repair" in refused.value.hint
    said = []
    repair(library_copy, said.append)
    with Library.open(library_copy, encoder) as library:
        summary = library.add()
        assert summary.pictures == 12 and summary.embedded == 0
        assert_whole(library, encoder)
    assert {path: Path(path).read_bytes() for path in before} == pictures
    if how != "gone":
        assert list(library_copy.glob("records.sqlite.damaged-*"))


def test_damage_in_the_middle_is_found_and_mended(library_copy, encoder):
    records = library_copy / "records.sqlite"
    with sqlite3.connect(records) as database:
        page = database.execute("PRAGMA page_size").fetchone()[0]
        root = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'pictures_by_content'").fetchone()[0]
    database.close()
    corrupted(records, (root - 1) * page, page)
    said = []
    repair(library_copy, said.append)
    assert any("damaged" in line for line in said) and any("12" in line or "rows" in line for line in said)
    with Library.open(library_copy, encoder) as library:
        assert library.add().embedded == 0
        assert_whole(library, encoder)
        assert library.has_captions


@pytest.mark.parametrize("lost", [["pictures"], ["pictures", "sqlite_autoindex_pictures_1"]])
def test_pictures_whose_rows_are_lost_keep_their_numbers_and_captions(library_copy, encoder, lost):
    records = library_copy / "records.sqlite"
    with Library.open(library_copy, encoder) as library:
        before = {picture.id: replace(picture, added="") for picture in library.newest(20)}
    with closing(sqlite3.connect(records)) as database:
        (size,) = database.execute("PRAGMA page_size").fetchone()
        roots = [
            database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [one]).fetchone() for one in lost
        ]
    for (root,) in roots:
        corrupted(records, (root - 1) * size, size)
    said = []
    repair(library_copy, said.append)
    assert "of 12 more pictures the number and captions were kept; their files are read again" in said
    with Library.open(library_copy, encoder) as library:
        summary = library.add()
        assert (summary.pictures, summary.embedded) == (12, 0)
        assert {picture.id: replace(picture, added="") for picture in library.newest(20)} == before
        assert_whole(library, encoder)


def test_a_damaged_vector_is_embedded_again_and_it_alone(library_copy, encoder):
    corrupted(library_copy / "vectors-1.f16", 5 * 32, 8)
    said = []
    repair(library_copy, said.append)
    assert "1 of 12 vectors of pictures are damaged; they are embedded again" in said
    with Library.open(library_copy, encoder) as library:
        assert library.add().embedded == 1
        assert_whole(library, encoder)


def test_vectors_that_are_cut_off(library_copy, encoder):
    os.truncate(library_copy / "vectors-1.f16", 9 * 32 + 5)
    with pytest.raises(DataError, match="does not hold the 12 rows"):
        Library.open(library_copy)
    repair(library_copy, print)
    with Library.open(library_copy, encoder) as library:
        assert library.add().embedded == 3
        assert_whole(library, encoder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "another"}'])
def test_library_json_that_is_damaged(library_copy, encoder, content):
    (library_copy / "library.json").write_text(content)
    with pytest.raises(DataError):
        Library.open(library_copy)
    repair(library_copy, print)
    with Library.open(library_copy, encoder) as library:
        assert (library.add().unchanged, len(library)) == (12, 12)
    assert json.loads((library_copy / "library.json").read_text())["roots"]


def test_nothing_to_repair(library_copy, encoder, tmp_path):
    before = {file.name: file.read_bytes() for file in library_copy.iterdir() if file.suffix in (".f16", ".rows")}
    said = []
    repair(library_copy, said.append)
    assert said == ["the records are whole", "12 vectors of pictures are whole", "14 vectors of captions are whole"]
    assert {name: (library_copy / name).read_bytes() for name in before} == before
    with pytest.raises(DataError, match="nothing of a library"):
        repair(tmp_path, print)


def test_rows_of_what_is_gone_are_cleared_away_when_they_are_most(new_library, photos, encoder, monkeypatch):
    from cliplet.library import local_compact

    monkeypatch.setattr(local_compact, "DEAD_LEAST", 3)
    new_library.add(photos, captions={str(photos / "a" / "00.png"): ["one"]})
    shutil.rmtree(photos / "b")
    paint(photos / "new.png", 80)
    for number in range(3):
        (photos / "a" / f"{number:02d}.{'jpg' if number % 2 else 'png'}").unlink()
    new_library.add()
    assert (Path(new_library.store.place) / "vectors-2.f16").stat().st_size == 4 * 16 * 2
    assert not (Path(new_library.store.place) / "vectors-1.f16").exists()
    assert_whole(new_library, encoder)
    assert new_library.search(Query.of_picture(photos / "new.png"))[0].path == str(photos / "new.png")
