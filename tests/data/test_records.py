"""Records as small as they are, splits that stay where they are, a quarantine that loses and repeats nothing."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText, ImageTextSource, Problem, Records, RecordsBuilder, Texts
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
    with pytest.raises(DataError, match="no split 'val'"):
        source(records(50, "train"), records(50, start=50)).select("val")


def test_unnamed_source_becomes_train_and_val():
    whole = source(records(2000))
    train, val = whole.select("train"), whole.select("val")
    assert sorted(r.image for r in [*train, *val]) == sorted(r.image for r in whole.records)
    assert not set(train) & set(val)
    assert 150 <= len(val) <= 250  # a tenth, within four standard deviations
    taken = set(train)
    assert train == [r for r in whole.records if r in taken]  # in the source's order


def test_a_source_of_training_pictures_alone_is_split_as_an_unnamed_one():
    """Else nothing could be trained on it; what is held out is taken from the training."""
    alone, unnamed = source(records(200, "train")), source(records(200))
    for split in ("train", "val"):
        assert [r.image for r in alone.select(split)] == [r.image for r in unnamed.select(split)]
    with pytest.raises(DataError, match="no split 'test'") as raised:
        alone.select("test")
    assert "train (200) and val, which is made from it" in raised.value.hint
    whole = dataclasses.replace(alone, records=source(records(9, "train"), records(9, "test", 9)).records)
    assert whole.makes_splits  # it is a matter of the source, not of a part taken from it


def test_usual_names_of_splits_mean_the_same():
    named = source(records(3, "Training"), records(3, "valid", 3), records(3, "TEST", 6), records(3, "restval", 9))
    assert named.splits == {"train": 3, "val": 3, "test": 3, "restval": 3}
    assert source(records(3, "dev"), records(3, "validation", 3)).splits == {"dev": 3, "validation": 3}


def test_a_column_that_names_no_splits():
    with pytest.raises(DataError, match=r"1,500 splits are named \(0, 1, 2, \.\.\.\), which are none"):
        source(*(records(1, str(number), number) for number in range(1500)))


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


# Records, against a list of the same


NAMED = [
    "a.jpg",
    "deep/b.jpg",
    "/abs/c.jpg",
    "é 犬.jpg",
    "no-utf8-\udce9.jpg",
    "x.tar?offset=5&size=6&name=y.jpg",
    "../d.jpg",
]
TEXTS = ["a dog", "犬", "👩‍👩‍👧", "x" * 500, "é", "a"]


def some_records(random, count, root=""):
    """Records of every kind as a list, and as the builder makes them, their captions coming in any order."""
    listed = [
        ImageText(f"{number}/{random.choice(NAMED)}", tuple(random.choices(TEXTS, k=random.randint(1, 5))), split)
        for number, split in enumerate(random.choices(["train", "val", "", "é"], k=count))
    ]
    builder = RecordsBuilder()
    numbers = [builder.picture(record.image, record.split) for record in listed]
    captions = [(at, number) for at, record in enumerate(listed) for number in range(len(record.captions))]
    if random.random() < 0.7:  # else one picture after the other, as most files have them
        captions.sort(key=lambda place: (place[1], random.random()))
    for at, number in captions:
        builder.caption(numbers[at], listed[at].captions[number])
    return [replace(r, image=os.path.join(root, r.image)) for r in listed], builder.build(root)


def assert_same(records, listed):
    assert len(records) == len(listed) and bool(records) == bool(listed)
    assert list(records) == listed and records == listed and list(reversed(records)) == listed[::-1]
    assert records == Records.of(listed) and (records != [*listed, ImageText("more.jpg", ("x",))])
    assert [records.image(row) for row in range(len(records))] == [record.image for record in listed]
    assert records.caption_counts().tolist() == [len(record.captions) for record in listed]
    assert list(records.captions()) == [caption for record in listed for caption in record.captions]
    assert dict(records.splits) == dict(Counter(record.split for record in listed))
    for row in range(-len(listed), len(listed)):
        assert records[row] == listed[row] and records.image(row) == listed[row].image
    for row in (len(listed), -len(listed) - 1):
        with pytest.raises(IndexError):
            records[row]


@pytest.mark.parametrize("seed", range(25))
def test_records_are_as_a_list_of_them_would_be(seed):
    """Views of views of views, each held against what the same does to a list."""
    random = Random(seed)
    listed, records = some_records(random, random.choice([0, 1, 2, 7, 30]), random.choice(["", "/root", "rel/é", "."]))
    assert_same(records, listed)
    for _ in range(6):
        kind = random.choice(["slice", "rows", "range", "mask", "splits", "first"])
        size = len(listed)
        if kind == "slice":
            ends = [random.choice([None, random.randint(-size - 2, size + 2)]) for _ in range(2)]
            part = slice(*ends, random.choice([None, 1, 2, 3, -1, -2]))
            listed, records = listed[part], records[part]
        elif kind == "rows":
            rows = random.choices(range(size), k=random.randint(0, size + 3)) if size else []
            listed, records = [listed[row] for row in rows], records.picked(np.array(rows, dtype=np.int64))
        elif kind == "range":
            rows = random.choice([range(size), range(0, size, 2), range(size - 1, -1, -1), range(size // 2, size)])
            listed, records = [listed[row] for row in rows], records.picked(rows)
        elif kind == "mask":
            mask = np.array([random.random() < 0.8 for _ in range(size)], dtype=bool)
            listed, records = (
                [r for r, kept in zip(listed, mask, strict=True) if kept],
                records.picked(np.flatnonzero(mask)),
            )
        elif kind == "splits":
            names = random.sample(["train", "val", "", "é", "none"], k=4)
            listed, records = [r for r in listed if r.split in names], records.in_splits(iter(names))
        else:
            count, seen = random.randint(0, 5), Counter()
            kept = []
            for record in listed:
                seen[record.split] += 1
                kept += [record] if seen[record.split] <= count else []
            listed, records = kept, records.first_of_each_split(count)
        assert_same(records, listed)


def test_records_equal_nothing_else():
    made = Records.of(records(3))
    assert made == made[:] and made == tuple(records(3)) and made != records(2) and made != records(3)[::-1]
    assert made != "abc" and made != 3 and made is not None and made != [1, 2, 3]
    with pytest.raises(TypeError):
        hash(made)
    assert repr(Records.of(records(1234))) == "<1,234 records>"


def test_records_can_be_sent_to_another_process():
    _, made = some_records(Random(1), 20, "/root")
    for part in (made, made[::-2], made.in_splits(["train"])):
        assert pickle.loads(pickle.dumps(part)) == part


def test_the_same_picture_taken_up_twice_stays_twice():
    twice = [ImageText("a.jpg", ("one",)), ImageText("a.jpg", ("two",)), ImageText("a.jpg", ("one",), "val")]
    assert Records.of(twice) == twice


def test_a_million_records_take_less_than_two_hundred_megabytes():
    """A tenth of them, in a process of its own; a list of ImageText would take six times as much."""
    code = (
        "import tracemalloc; from cliplet.data.records import RecordsBuilder; tracemalloc.start()\n"
        "builder = RecordsBuilder()\n"
        "for n in range(100_000): builder.caption(builder.picture(f'{n:012d}.jpg'), f'a dog runs over the field {n}')\n"
        "records = builder.build('/root'); del builder; print(tracemalloc.get_traced_memory()[0], len(records))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    memory, count = map(int, done.stdout.split())
    assert count == 100_000 and memory < 20e6


# The builder


def test_captions_far_apart_are_gathered_in_their_order():
    builder = RecordsBuilder()
    for number in range(300):
        builder.caption(builder.picture(f"{number % 7}.jpg", "train"), f"caption {number}")
    assert builder.build() == [
        ImageText(f"{n}.jpg", tuple(f"caption {k}" for k in range(n, 300, 7)), "train") for n in range(7)
    ]


def test_pictures_keep_the_order_of_their_first_appearance_and_those_without_caption_are_named():
    builder = RecordsBuilder()
    numbers = [
        builder.picture(name, split) for name, split in [("b", "x"), ("a", "x"), ("b", "y"), ("c", ""), ("b", "x")]
    ]
    assert numbers == [0, 1, 2, 3, 0]
    builder.caption(2, "two")
    builder.caption(0, "zero")
    assert list(builder.names()) == ["b", "a", "b", "c"] and builder.names()[-1] == "c"
    assert list(builder.without_caption()) == ["a", "c"]
    made = builder.build("root")
    assert made == [ImageText("root/b", ("zero",), "x"), ImageText("root/b", ("two",), "y")]
    assert made.splits == {"x": 1, "y": 1} and made.caption_counts().tolist() == [1, 1]


def test_nothing_makes_no_records():
    for made in (RecordsBuilder().build(), Records.of([])):
        assert_same(made, [])
        assert made.first_of_each_split(3) == [] and made.in_splits(["train"]) == []
    builder = RecordsBuilder()
    builder.picture("a.jpg")
    assert builder.build() == []


# Texts


@pytest.mark.parametrize("seed", range(10))
def test_texts_are_as_a_list_of_them_would_be(seed):
    random = Random(seed)
    listed = random.choices([*NAMED, *TEXTS, "", "\0", "\n"], k=random.choice([0, 1, 5, 50]))
    texts = Texts()
    for text in listed:
        texts.append(text)
    for _ in range(4):
        assert len(texts) == len(listed) and list(texts) == listed and list(reversed(texts)) == listed[::-1]
        assert texts[:] == listed and texts[::-2] == listed[::-2] and texts[1:-1] == listed[1:-1]
        for row in range(-len(listed), len(listed)):
            assert texts[row] == texts[np.int64(row)] == listed[row]
        for row in (len(listed), -len(listed) - 1, 10**6, -(10**6)):
            with pytest.raises(IndexError):
                texts[row]
        rows = random.choices(range(len(listed)), k=random.randint(0, len(listed))) if listed else []
        listed, texts = [listed[row] for row in rows], texts.picked(np.array(rows, dtype=np.int64))


def test_texts_grow_on_after_a_view_was_taken():
    texts = Texts()
    texts.append("one")
    view = texts.picked(np.array([0, 0]))
    texts.append("two")
    assert list(texts) == ["one", "two"] and list(view) == ["one", "one"]


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
