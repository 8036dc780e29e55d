"""Benchmarks are known by their pictures, whatever the folders, and what is not one is told by name."""

import gzip
import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cliplet.data.places import tar_member
from cliplet.data.readers import read_source
from cliplet.data.records import ImageText, Records
from cliplet.errors import ConfigError
from cliplet.evaluation import split_check
from cliplet.evaluation.known_splits import KNOWN_SPLITS
from cliplet.evaluation.split_check import check, claimed, in_order, named, recognise

SHARED = Path(os.environ.get("CLIPLET_SHARED", Path(__file__).resolve().parents[3] / "shared"))
NUMBERS = range(100, 140)
ALL_BUT_ONE = [*NUMBERS][1:]


@pytest.fixture
def real_facts():
    """Splits as they are in the world."""


@pytest.fixture(autouse=True)
def small(request, monkeypatch):
    """COCO's test has 40 pictures here, 100 to 139, of which 100 has six captions; 200 to 239 are val2017."""
    if "real_facts" in request.fixturenames:
        return
    benchmark = replace(named("coco-5k"), pictures=40, captions=201, sha256=digest(NUMBERS))
    other = replace(
        next(split for split in KNOWN_SPLITS if split.name == "coco-val2017"),
        pictures=40,
        captions=202,
        sha256=digest(range(200, 240)),
    )
    flickr = replace(named("flickr8k-1k"), pictures=3, captions=15, sha256=digest([7, 88, 999]))
    monkeypatch.setattr(split_check, "KNOWN_SPLITS", (benchmark, other, flickr))
    monkeypatch.setattr(split_check, "BENCHMARKS", {"coco": benchmark, "flickr8k": flickr})


def digest(numbers):
    return hashlib.sha256("\n".join(sorted(str(number) for number in numbers)).encode()).hexdigest()


def records_of(numbers, name="val2014/COCO_val2014_{:012}.jpg", sixth=(100,)):
    return [
        ImageText(name.format(number), tuple(f"caption {k}" for k in range(5 + (number in sixth))))
        for number in numbers
    ]


@pytest.mark.parametrize(
    "name",
    [
        "val2014/COCO_val2014_{:012}.jpg",
        "/elsewhere/COCO_train2014_{:012}.jpg",
        "{:012}.jpg",
        "deep/er/{}.png",
        "C:\\coco\\{:012}.JPG",
        "{:012}",
    ],
)
def test_a_picture_is_known_in_any_folder_and_by_any_of_its_names(name):
    assert recognise(records_of(NUMBERS, name)).name == "coco-5k"
    assert recognise(Records.of(records_of(reversed(NUMBERS), name))).name == "coco-5k"


def test_a_picture_is_known_in_a_shard():
    places = [tar_member("shards/00000.tar", f"x/COCO_val2014_{number:012}.jpg", 512, 9) for number in NUMBERS]
    assert recognise([ImageText(place, ("a",)) for place in places]).name == "coco-5k"


def test_a_record_for_each_caption_is_known_but_is_not_the_benchmark():
    """Copies of a picture would compete with it."""
    records = [ImageText(f"{number}.jpg", (f"caption {k}",)) for number in NUMBERS for k in range(5 + (number == 100))]
    assert recognise(records).name == "coco-5k"
    checked = check("coco.tsv", "", records)
    assert not checked.is_it and "they stand in 201 records instead of 40" in checked.note


def test_the_order_of_a_benchmark_is_known_where_folds_of_it_are_reported(monkeypatch):
    order = hashlib.sha256("\n".join(map(str, NUMBERS)).encode()).hexdigest()
    benchmark = replace(split_check.BENCHMARKS["coco"], order=order)
    assert in_order(benchmark, records_of(NUMBERS)) and not in_order(benchmark, records_of(reversed(NUMBERS)))
    assert in_order(split_check.BENCHMARKS["flickr8k"], records_of([88, 7]))


def test_flickr8ks_pictures_are_known_by_the_photographs_number():
    names = ["Images/88_4f7d7ce270.jpg", "7_0123456789.jpg", "999_abcdefabcd.jpeg"]
    assert recognise([ImageText(name, ("a",)) for name in names]).name == "flickr8k-1k"
    assert recognise([ImageText(name, ("a",)) for name in [*names[:2], "999_2.jpg"]]) is None  # no photograph's name


@pytest.mark.parametrize(
    "numbers",
    [[], ALL_BUT_ONE, [*NUMBERS, 140], [*ALL_BUT_ONE, 140], [*ALL_BUT_ONE, 101]],
    ids=["none", "missing", "additional", "changed", "twice"],
)
def test_another_set_of_pictures_is_not_recognised(numbers):
    assert recognise(records_of(numbers)) is None


def test_a_benchmark_as_it_should_be_passes_in_silence():
    for records in (records_of(NUMBERS), Records.of(records_of(NUMBERS))):
        checked = check("data/dataset_coco.json", "test", records)
        assert (checked.name, checked.claim, checked.is_it, checked.note) == ("coco-5k", "coco-5k", True, "")


def test_a_benchmark_that_does_not_say_so_is_told():
    checked = check("mine/photos.tsv", "all", records_of(NUMBERS, "{}.jpg", sixth=()))
    assert (checked.name, checked.claim, checked.is_it) == ("coco-5k", "", True)
    assert checked.note.startswith("These are COCO 5k (Karpathy's test)")


def test_missing_and_changed_pictures_are_told():
    missing = check("data/coco", "test", records_of([*NUMBERS][:-3]))
    assert (missing.name, missing.claim, missing.is_it) == ("", "coco-5k", False)
    assert missing.note == ("The data set calls itself COCO 5k (Karpathy's test), but holds 37 pictures instead of 40.")
    changed = check("data/coco", "test", records_of([*ALL_BUT_ONE, 999]))
    assert not changed.is_it and changed.note.endswith("has 40 pictures, but not those.")
    renamed = check("data/coco", "test", records_of(NUMBERS, "photo-{}.jpg"))
    assert not renamed.is_it and "names do not tell which they are" in renamed.note and "201 captions" in renamed.note


def test_another_known_split_is_told_by_its_name():
    others = records_of(range(200, 240))
    checked = check("data/dataset_coco.json", "test", others)
    assert (checked.name, checked.claim, checked.is_it) == ("coco-val2017", "coco-5k", False)
    assert checked.note.endswith("has 40 pictures, but not those: they are COCO val2017.")
    silent = check("photos.tsv", "val", records_of(range(200, 240), "{}.jpg"))
    assert (silent.name, silent.claim, silent.is_it) == ("coco-val2017", "", False)
    assert silent.note == "These are COCO val2017, not COCO 5k (Karpathy's test)."


def test_captions_are_counted():
    few = check("coco", "test", [ImageText(one.image, one.captions[:4]) for one in records_of(NUMBERS)])
    assert (few.name, few.is_it) == ("coco-5k", False)
    assert "there are 160 captions instead of 201: some pictures have fewer" in few.note
    more = check("coco", "test", records_of(NUMBERS, sixth=(100, 101)))
    assert not more.is_it and "202 captions instead of 201: some pictures have more" in more.note


def test_the_first_five_captions_of_each_picture_are_a_usual_variant():
    checked = check("coco", "test", records_of(NUMBERS, sixth=()))
    assert checked.is_it and "five captions of each picture: 200 of 201" in checked.note


@pytest.mark.parametrize(
    ("path", "split", "name", "expected"),
    [
        ("data/dataset_coco.json", "test", "{}.jpg", "coco-5k"),
        ("data/coco/test.tsv", "testing", "{}.jpg", "coco-5k"),
        ("data/MSCOCO_5k", "", "{}.jpg", "coco-5k"),  # by its count
        ("data/flickr8k/coco.tsv", "test", "{}.jpg", "coco-5k"),  # the nearer name
        ("flickr_8k/images/captions.txt", "test", "{}.jpg", "flickr8k-1k"),
        ("x.tsv", "test", "COCO_val2014_{:012}.jpg", "coco-5k"),
        ("x.tsv", "test", "{:012}.jpg", ""),
        ("coco", "val", "{}.jpg", ""),
        ("coco", "train", "{}.jpg", ""),
        ("coco/a/b/c.tsv", "test", "{}.jpg", ""),  # too far from the end
        ("cocoa_beans", "test", "{}.jpg", ""),
    ],
)
def test_what_a_data_set_calls_itself(path, split, name, expected):
    found = claimed(path, split, records_of(NUMBERS, name))
    assert (found.name if found else "") == expected


def test_a_count_far_from_the_benchmarks_claims_nothing():
    assert claimed("coco", "all", records_of(range(100, 120))) is None
    assert claimed("coco", "all", records_of(range(100, 139))).name == "coco-5k"
    assert claimed("coco", "all", []) is None


@pytest.mark.parametrize("text", ['{"dataset": "coco", "images": [%s]}', '{"images": [%s], "dataset": "coco"}'])
def test_karpathys_own_key_is_a_claim(text, tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text(text % ", ".join(["{}"] * 500))
    assert claimed(str(file), "test", records_of(NUMBERS, "{}.jpg")).name == "coco-5k"


def test_nothing_claimed_and_nothing_known_is_nothing_to_say():
    checked = check("photos", "test", records_of(range(3), "{}.jpg"))
    assert (checked.name, checked.claim, checked.is_it, checked.note) == ("", "", False, "")


def test_a_benchmark_that_is_named_is_what_is_asked_for():
    benchmark = named("coco-5k")
    assert check("photos", "val", records_of(NUMBERS), benchmark).is_it
    assert "holds 39 pictures" in check("photos", "val", records_of(ALL_BUT_ONE), benchmark).note


def test_an_unknown_benchmark_offers_near_ones():
    with pytest.raises(ConfigError, match="no benchmark 'coco5k'") as caught:
        named("coco5k")
    assert "coco-5k" in caught.value.hint
    with pytest.raises(ConfigError):
        named("coco-val2017")  # known, but no benchmark


def test_it_takes_no_time():
    records = Records.of(records_of(range(5000)))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        check("coco", "test", records)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2


# -- the real ones


@pytest.mark.usefixtures("real_facts")
def test_the_facts_fit_each_other():
    assert {split.name for split in KNOWN_SPLITS if split.benchmark} == {"coco-5k", "flickr30k-1k", "flickr8k-1k"}
    assert len({split.name for split in KNOWN_SPLITS}) == len({split.sha256 for split in KNOWN_SPLITS}) == 9
    for split in KNOWN_SPLITS:
        assert len(bytes.fromhex(split.sha256)) == 32
        assert 0 <= split.captions - split.five_each <= 14


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"no {name} to read: name the folder that holds it in CLIPLET_SHARED")
    return SHARED / name


@pytest.mark.usefixtures("real_facts")
def test_cocos_val2017_is_not_taken_for_karpathys_test():
    file = shared("coco_mini/captions_val2017.json")
    content = json.loads(file.read_bytes())
    captions = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    records = [ImageText(image["file_name"], tuple(captions[image["id"]])) for image in content["images"]]
    checked = check(str(file), "all", records)
    assert (checked.name, checked.claim, checked.is_it) == ("coco-val2017", "coco-5k", False)


@pytest.mark.usefixtures("real_facts")
def test_flickr30ks_splits_are_known():
    entries = json.loads(gzip.decompress(shared("flickr30k_captions.json.gz").read_bytes()))
    for split, expected in (("train", "flickr30k-train"), ("val", "flickr30k-val"), ("test", "flickr30k-1k")):
        records = [ImageText(one["filename"], tuple(one["captions"])) for one in entries if one["split"] == split]
        checked = check("flickr30k", split, records)
        assert checked.name == expected
        assert checked.is_it == (split == "test")


@pytest.mark.usefixtures("real_facts")
def test_flickr8ks_splits_are_known():
    source = read_source(shared("flickr8k/dataset_flickr8k.json"))
    for split in ("train", "val"):
        assert recognise(source.select(split)).name == f"flickr8k-{split}"
