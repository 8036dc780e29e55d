"""The form of a pack: what is written comes back, and what was damaged is noticed."""

import dataclasses
import io
import json
import tarfile
import threading
import time

import pytest

from cliplet.data.records import Problem
from cliplet.data.shards import (
    JOURNAL,
    MANIFEST,
    Manifest,
    Settings,
    Shard,
    TarWriter,
    in_order,
    is_pack,
    journal_line,
    read_journal,
    replacing,
    threads,
)
from cliplet.errors import DataError

SHARDS = (
    Shard("train-000000.tar", "train", 3, 7, 10240, "a" * 64, "b" * 64),
    Shard("val-000000.tar", "val", 1, 2, 20480, "c" * 64, "d" * 64),
)
MANIFEST_OF_TWO = Manifest("photos.tsv", "f" * 64, Settings(samples=4), 2, True, 5, SHARDS)


# The manifest


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    MANIFEST_OF_TWO.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST_OF_TWO
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert (content["format"], content["version"]) == ("cliplet-pack", 1)
    assert content["splits"] == {"train": {"pictures": 3, "captions": 7}, "val": {"pictures": 1, "captions": 2}}
    assert list(content)[-1] == "shards"  # people read the top of the file
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST]


def test_an_unfinished_manifest_names_no_shards_and_is_sound(tmp_path):
    begun = dataclasses.replace(MANIFEST_OF_TWO, complete=False, left_out=0, shards=())
    begun.write(tmp_path)
    assert Manifest.read(tmp_path) == begun


def damaged(change):
    def apply(folder):
        content = json.loads((folder / MANIFEST).read_text())
        change(content)
        (folder / MANIFEST).write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MANIFEST).write_text(""), "damaged"),
        (lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:200]), "damaged"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), "damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[1]"), "damaged"),
        (lambda folder: (folder / MANIFEST).unlink(), "cannot be read"),
        (damaged(lambda content: content.pop("fingerprint")), "it lacks 'fingerprint'"),
        (damaged(lambda content: content.update(format="another")), "its format is 'another'"),
        (damaged(lambda content: content.update(version=2)), "of version 2; this cliplet reads 1"),
        (damaged(lambda content: content.update(complete="yes")), "complete is 'yes'"),
        (damaged(lambda content: content.update(settings=[])), "damaged"),
        (damaged(lambda content: content["settings"].update(size="256")), "size is '256'"),
        (damaged(lambda content: content["shards"].pop()), "do not add up"),
        (damaged(lambda content: content["shards"][0].update(pictures=4)), "do not add up"),
        (damaged(lambda content: content.update(planned_shards=3)), "names 2 of 3 shards"),
        (damaged(lambda content: content["shards"][0].update(name="../x-000000.tar")), "is no name of a shard"),
        (damaged(lambda content: content["shards"][0].update(name="/etc/x-000000.tar")), "is no name of a shard"),
        (damaged(lambda content: content["shards"][0].update(name="passwd")), "is no name of a shard"),
    ],
)
def test_a_damaged_manifest_is_refused_with_the_reason(tmp_path, damage, reason):
    MANIFEST_OF_TWO.write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=reason) as caught:
        Manifest.read(tmp_path)
    assert MANIFEST in caught.value.message


def test_a_pack_is_known_by_its_manifest_even_if_that_is_damaged(tmp_path):
    assert not is_pack(tmp_path)
    (tmp_path / MANIFEST).write_text('{"name": "a web app"}')
    assert not is_pack(tmp_path)
    (tmp_path / "train-000000.tar").touch()
    (tmp_path / "train-000000.jsonl").touch()
    assert is_pack(tmp_path)
    MANIFEST_OF_TWO.write(tmp_path)
    assert is_pack(tmp_path)
    assert not is_pack(tmp_path / "nowhere")


# The journal


def test_a_journal_torn_by_a_kill_gives_its_whole_lines(tmp_path):
    assert read_journal(tmp_path) == {}
    left_out = [Problem("a.jpg", "no such file"), Problem("b\nc.jpg", "is “empty”")]
    lines = journal_line(SHARDS[0], left_out) + journal_line(SHARDS[1], [])
    (tmp_path / JOURNAL).write_bytes(lines)
    assert read_journal(tmp_path) == {SHARDS[0].name: (SHARDS[0], left_out), SHARDS[1].name: (SHARDS[1], [])}
    for cut in range(len(journal_line(SHARDS[0], left_out)), len(lines) - 1):
        (tmp_path / JOURNAL).write_bytes(lines[:cut])
        assert list(read_journal(tmp_path)) == [SHARDS[0].name]


def test_a_journal_that_names_files_elsewhere_is_passed_over(tmp_path):
    (tmp_path / JOURNAL).write_bytes(journal_line(dataclasses.replace(SHARDS[0], name="../../x-000000.tar"), []))
    assert read_journal(tmp_path) == {}


# Tars and files


def test_a_tar_is_one_that_python_reads_and_offsets_point_at_contents():
    stream = io.BytesIO()
    tar = TarWriter(stream)
    contents = {"a.jpg": b"x" * 511, "b.json": b"", "c.txt": b"y" * 512, "d.jpg": b"z" * 1025}
    offsets = {name: tar.add(name, data) for name, data in contents.items()}
    tar.close()
    data = stream.getvalue()
    assert len(data) == tar.size and len(data) % 10240 == 0
    assert all(data[offsets[name] : offsets[name] + len(content)] == content for name, content in contents.items())
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        assert {info.name: read.extractfile(info).read() for info in read} == contents
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in read} == {(0, 0, 0, "", "")}
        assert [info.offset_data for info in read] == list(offsets.values())


def test_an_error_leaves_neither_the_file_nor_a_part_of_it(tmp_path):
    file = tmp_path / "a"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(file) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]
    with replacing(file) as stream:
        stream.write(b"whole")
    assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]


def test_results_come_in_order_and_few_wait():
    waiting, most, lock = 0, 0, threading.Lock()

    def items():
        nonlocal waiting, most
        for number in range(50):
            with lock:
                waiting += 1
                most = max(most, waiting)
            yield number

    def work(number):
        time.sleep(0.002 * (number % 3))
        return number

    with threads(4, "test") as pool:
        results = []
        for result in in_order(pool, work, items(), ahead=6):
            with lock:
                waiting -= 1
            results.append(result)
    assert results == list(range(50)) and most <= 7


def test_an_error_ends_the_pool_without_waiting_for_what_has_not_begun():
    done = []

    def work(number):
        if number == 0:
            raise ValueError("bad")
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(ValueError, match="bad"), threads(1, "test") as pool:
        list(in_order(pool, work, range(1000), ahead=500))
    assert len(done) < 10
