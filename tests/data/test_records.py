"""Splits that stay where they are, and a quarantine that loses nothing and repeats nothing."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText, ImageTextSource, Problem, Records
from cliplet.errors import DataError


def records(count, split="", start=0):
    return [ImageText(f"/set/{number}.jpg", (f"picture {number}",), split) for number in range(start, start + count)]


def source(*parts):
    return ImageTextSource("set.json", "made here", Records.of(record for part in parts for record in part))


# Splits


def test_named_splits():
    train, val = records(5, "train"), records(3, "val", start=5)
    mixed = source(train[:2], val, train[2:])
    assert mixed.splits == {"train": 5, "val": 3}
    assert mixed.select("train") == train
    assert mixed.select("val") == val
    assert mixed.select("all") == mixed.records


def test_unknown_split_names_those_there_are():
    with pytest.raises(DataError, match="there is no split 'test'") as raised:
        source(records(1234, "train"), records(2, "restval"), records(1)).select("test")
    assert raised.value.hint == "It has: train (1,234), restval (2); all takes everything."


def test_where_some_are_named_none_are_made():
    """A source that names only `train` has no `val`: a tenth of its training pictures would be no fair one."""
    with pytest.raises(DataError, match="no split 'val'"):
        source(records(50, "train")).select("val")
    with pytest.raises(DataError, match="no split 'val'"):
        source(records(50, "train"), records(50, start=50)).select("val")


def test_unnamed_source_becomes_train_and_val():
    whole = source(records(2000))
    train, val = whole.select("train"), whole.select("val")
    assert sorted(r.image for r in [*train, *val]) == sorted(r.image for r in whole.records)
    assert not set(train) & set(val)
    assert 150 <= len(val) <= 250  # a tenth, within four standard deviations
    assert train == [r for r in whole.records if r in set(train)]  # in the source's order


def test_unnamed_source_has_no_other_split():
    with pytest.raises(DataError, match="no split 'test'") as raised:
        source(records(50)).select("test")
    assert "train and val are made from it" in raised.value.hint


def test_adding_pictures_moves_no_old_one():
    before, after = source(records(300)), source(records(500, start=300), records(300))
    for split in ("train", "val"):
        old = set(before.select(split))
        assert old <= set(after.select(split))


def test_moving_the_folder_moves_no_picture():
    here = source(records(300)).select("val")
    there = [ImageText(r.image.replace("/set/", "/elsewhere/deep/"), r.captions) for r in records(300)]
    assert [r.captions for r in source(there).select("val")] == [r.captions for r in here]


def test_held_out_pictures_are_the_same_for_all_time():
    """Worked out once, apart from the code: a change would leak validation pictures of old runs into new training."""
    assert [r.image for r in source(records(40)).select("val")] == [
        "/set/29.jpg",
        "/set/33.jpg",
        "/set/35.jpg",
        "/set/37.jpg",
    ]


def test_empty_splits():
    with pytest.raises(DataError, match="holds no pictures"):
        source().select("all")
    one = source(records(1))
    empty = "val" if one.select("train") else "train"
    with pytest.raises(DataError, match=f"the split '{empty}' holds no pictures"):
        one.select(empty)


# Quarantine


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_each_is_written_once(tmp_path):
    file = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(file)
    assert not file.exists() and quarantine.summary() == "" and len(quarantine) == 0
    quarantine.add("a.jpg", "is truncated")
    quarantine.add("b.jpg", "no such file")
    quarantine.add("a.jpg", "is truncated, again")
    quarantine.extend([Problem("b.jpg", "again"), Problem("x.csv:3", "its caption is empty")])
    assert lines(file) == [
        {"where": "a.jpg", "reason": "is truncated"},
        {"where": "b.jpg", "reason": "no such file"},
        {"where": "x.csv:3", "reason": "its caption is empty"},
    ]
    assert len(quarantine) == 3 and "a.jpg" in quarantine and "c.jpg" not in quarantine
    assert quarantine.summary().startswith("3 bad records") and "a.jpg: is truncated" in quarantine.summary()


def test_without_a_file_it_counts_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quarantine = Quarantine()
    quarantine.add("a.jpg", "bad")
    quarantine.add("a.jpg", "bad")
    assert len(quarantine) == 1
    assert list(tmp_path.iterdir()) == []


NAMES = [
    "a.jpg",
    "é 犬.jpg",
    "line\nbreak.jpg",
    "\u2028.jpg",
    "\x85.jpg",
    "\x1e.jpg",
    'quo"te.jpg',
    "not-utf8-\udce9.jpg",
]


def test_opened_again_it_goes_on(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    first = Quarantine(file)
    for name in NAMES:
        first.add(name, f"reason of {name}")
    written = file.read_bytes()
    again = Quarantine(file, resume=True)
    assert len(again) == len(NAMES) and all(name in again for name in NAMES)
    for name in NAMES:
        again.add(name, "another reason")
    assert file.read_bytes() == written
    again.add("new.jpg", "new")
    assert [entry["where"] for entry in lines(file)] == [*NAMES, "new.jpg"]
    assert again.summary() == Quarantine(file, resume=True).summary()


@pytest.mark.parametrize(
    "torn", ['{"where": "b.jpg", "rea', "{", "\0\0\0\0", '"text"', "[1]", '{"where": "b.jpg"}', "\\"]
)
def test_a_line_torn_by_a_kill_costs_itself_alone(tmp_path, torn):
    file = tmp_path / "quarantine.jsonl"
    Quarantine(file).add("a.jpg", "bad")
    with file.open("a") as stream:
        stream.write(torn)
    again = Quarantine(file, resume=True)
    assert len(again) == 1 and "a.jpg" in again
    again.add("b.jpg", "bad too")
    third = Quarantine(file, resume=True)
    assert len(third) == 2 and "b.jpg" in third


def test_a_kill_within_a_character(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    Quarantine(file).add("a.jpg", "bad")
    with file.open("ab") as stream:
        stream.write('{"where": "é'.encode()[:-1])
    again = Quarantine(file, resume=True)
    again.add("b.jpg", "bad too")
    assert len(Quarantine(file, resume=True)) == 2


def test_many_threads_write_whole_lines_once(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(file)
    start = threading.Barrier(8)

    def work(worker):
        start.wait()
        for number in range(100):
            quarantine.add(f"{(number * 7 + worker) % 100}.jpg", "x" * 300)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(entry["where"] for entry in lines(file)) == sorted(f"{number}.jpg" for number in range(100))
    assert len(quarantine) == len(Quarantine(file, resume=True)) == 100
