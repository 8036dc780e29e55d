"""COCO's annotations, and Karpathy's JSON over COCO's folders: each caption by its picture, each fault by itself."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from cliplet.data.readers import read_source
from cliplet.errors import DataError

SHARED = Path(os.environ.get("CLIPLET_SHARED", Path(__file__).resolve().parents[4] / "shared"))


def picture(identity, name, **others):
    return {"license": 3, "file_name": name, "height": 427, "width": 640, "id": identity, **others}


def annotation(image, caption, **others):
    return {"image_id": image, "id": 48, "caption": caption, **others}


def coco(images, annotations, **others):
    return json.dumps({"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations, **others})


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"picture")


@pytest.fixture
def read(tmp_path):
    """Writes an annotation file beside pictures and reads it; gives captions by name, and reasons by place."""
    touch(*(tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")))

    def read(content, name="captions.json", images=None):
        (tmp_path / name).write_text(content, encoding="utf-8")
        source = read_source(tmp_path / name, images)
        problems = {problem.where: problem.reason for problem in source.problems}
        assert len(problems) == len(source.problems), "one place, two problems"
        return {Path(r.image).name: r.captions for r in source.records}, problems

    return read


# COCO's captions


def test_captions_stand_by_their_pictures_in_the_order_of_pictures(read):
    captions, problems = read(
        coco(
            [picture(7, "b.jpg"), picture(3, "a.jpg")],
            [annotation(3, "A dog ."), annotation(7, "A boat\n"), annotation(3, "A  brown dog.")],
        )
    )
    assert list(captions.items()) == [("b.jpg", ("A boat",)), ("a.jpg", ("A dog .", "A brown dog."))]
    assert problems == {}


@pytest.mark.parametrize("year", ["2014", "2017"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_the_folder_named_in_the_annotations_own_name_is_found_beside_theirs(tmp_path, year, part):
    name = f"COCO_{part}2014_000000000009.jpg" if year == "2014" else "000000000009.jpg"
    for folder in ("train2014", "val2014", "train2017", "val2017"):  # each may hold a file of that name
        touch(tmp_path / folder / name)
    annotations = tmp_path / "annotations" / f"captions_{part}{year}.json"
    annotations.parent.mkdir()
    annotations.write_text(coco([picture(9, name)], [annotation(9, "A cat")]))
    for path in (annotations, tmp_path):
        source = read_source(path)
        assert source.form == "COCO captions JSON"
        assert [Path(record.image).resolve() for record in source.records] == [tmp_path / f"{part}{year}" / name]


def test_a_folder_of_both_parts_asks_which_one_is_meant(tmp_path):
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        (tmp_path / "annotations" / f"captions_{part}2014.json").write_text(coco([], []))
    with pytest.raises(DataError, match=r"captions_train2014\.json, captions_val2014\.json") as raised:
        read_source(tmp_path)
    assert "Name the one" in raised.value.hint


def test_pictures_elsewhere_are_named_by_images(tmp_path):
    touch(tmp_path / "far" / "pictures" / "a.jpg")
    annotations = tmp_path / "here" / "captions_val2017.json"
    annotations.parent.mkdir()
    annotations.write_text(coco([picture(1, "a.jpg")], [annotation(1, "A cat")]))
    with pytest.raises(DataError, match=r"its pictures are not there, a\.jpg for example"):
        read_source(annotations)
    source = read_source(annotations, tmp_path / "far" / "pictures")
    assert [record.image for record in source.records] == [str(tmp_path / "far" / "pictures" / "a.jpg")]


def test_names_come_from_the_file_and_never_from_the_id(read):
    captions, _ = read(coco([picture(2, "a.jpg"), picture(1, "b.jpg")], [annotation(1, "A boat")]))
    assert captions == {"b.jpg": ("A boat",)}


def test_images_may_stand_after_annotations_and_between_unknown_keys(read):
    document = {
        "annotations": [annotation(1, "A dog", bbox=[1.5, 2, 1e3], extra={"deep": [[{}]]})],
        "categories": [{"id": 1, "images": [{"id": 1, "file_name": "not me.jpg"}]}],
        "images": [picture(1, "a.jpg", flickr_url=None, score=0.1, tags=["x"])],
        "type": "captions",
    }
    assert read(json.dumps(document)) == ({"a.jpg": ("A dog",)}, {})
    assert read(json.dumps(document, indent=2)) == ({"a.jpg": ("A dog",)}, {})
    assert read(json.dumps(document) + "\n") == ({"a.jpg": ("A dog",)}, {})


def test_ids_may_be_texts_but_a_number_is_no_text(read):
    images = [picture("000a", "a.jpg"), picture("1", "b.jpg"), picture(2, "c.jpg")]
    captions, problems = read(
        coco(images, [annotation("000a", "A dog"), annotation(1, "Whose?"), annotation(2, "A cat")])
    )
    assert captions == {"a.jpg": ("A dog",), "c.jpg": ("A cat",)}
    assert problems == {
        "captions.json: annotation 1": "is of image 1, which is not there",
        "captions.json: b.jpg": "has no usable caption",
    }


def test_ids_larger_than_any_machine_number(read):
    captions, problems = read(coco([picture(10**30, "a.jpg")], [annotation(10**30, "A dog")]))
    assert (captions, problems) == ({"a.jpg": ("A dog",)}, {})


def test_an_id_given_twice_keeps_its_first_picture(read):
    images = [picture(1, "a.jpg"), picture(1, "b.jpg"), picture(2, "c.jpg")]
    captions, problems = read(coco(images, [annotation(1, "A dog"), annotation(2, "A cat")]))
    assert captions == {"a.jpg": ("A dog",), "c.jpg": ("A cat",)}
    assert problems == {
        "captions.json: image 1 (b.jpg)": "has the id 1 of another picture before it",
        "captions.json: b.jpg": "has no usable caption",
    }


def test_the_same_picture_listed_twice_is_one(read):
    images = [picture(1, "a.jpg"), picture(1, "a.jpg"), picture(2, "./a.jpg")]
    captions, problems = read(coco(images, [annotation(1, "A dog"), annotation(2, "A brown dog")]))
    assert (captions, problems) == ({"a.jpg": ("A dog", "A brown dog")}, {})


@pytest.mark.parametrize("bad", [None, 5, "a.jpg", [], {}, {"id": 1}, {"id": 1, "file_name": None}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_picture_costs_itself_alone_even_the_first(read, bad, place):
    images = [picture(2, "b.jpg"), picture(3, "c.jpg")]
    images.insert(place, bad)
    captions, problems = read(coco(images, [annotation(2, "A boat"), annotation(3, "A cat"), annotation(1, "Whose?")]))
    assert captions == {"b.jpg": ("A boat",), "c.jpg": ("A cat",)}
    assert problems == {
        f"captions.json: image {place}": "has no file_name",
        "captions.json: annotation 2": "is of image 1, which is not there",
    }


@pytest.mark.parametrize("identity", [None, 1.5, [1], {}])
def test_a_picture_needs_an_id(read, identity):
    captions, problems = read(coco([picture(identity, "a.jpg"), picture(2, "b.jpg")], [annotation(2, "A boat")]))
    assert captions == {"b.jpg": ("A boat",)}
    assert problems == {"captions.json: image 0 (a.jpg)": "has no id"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "has no image_id"),
        ("A dog", "has no image_id"),
        ([], "has no image_id"),
        ({"caption": "A dog"}, "has no image_id"),
        (annotation(None, "A dog"), "has no image_id"),
        (annotation([1], "A dog"), "has no image_id"),
        (annotation(9, "A dog"), "is of image 9, which is not there"),
        ({"image_id": 1}, "has no caption"),
        (annotation(1, None), "its caption is no text but NoneType"),
        (annotation(1, ["A dog"]), "its caption is no text but list"),
        (annotation(1, " \n\x00"), "its caption is empty"),
        (annotation(1, "word " * 1001), "its caption has 1,001 words, more than 1,000"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_annotation_costs_itself_alone_even_the_first(read, bad, reason, place):
    annotations = [annotation(1, "A dog")]
    annotations.insert(place, bad)
    captions, problems = read(coco([picture(1, "a.jpg")], annotations))
    assert captions == {"a.jpg": ("A dog",)}
    assert problems == {f"captions.json: annotation {place}": reason}


def test_a_picture_without_annotation_is_named(read):
    captions, problems = read(coco([picture(1, "a.jpg"), picture(2, "b.jpg")], [annotation(2, "A boat")]))
    assert captions == {"b.jpg": ("A boat",)}
    assert problems == {"captions.json: a.jpg": "has no usable caption"}


def test_brackets_in_captions_are_no_nesting(read):
    """So many are never closed that the file would look like a bomb of brackets."""
    odd = ['open [ "', "open { \\", 'quoted \\" [', "[[[[ x"]
    annotations = [annotation(1, f"{odd[number % 4]} {number}") for number in range(12_000)]
    captions, problems = read(coco([picture(1, "a.jpg")], annotations))
    assert captions == {"a.jpg": tuple(item["caption"] for item in annotations)}
    assert problems == {}


def test_brackets_that_nest_are_refused_though_texts_close_as_many(read):
    bomb = '{"images": [' + json.dumps(picture(1, "]" * 50_000)) + ', {"id": ' + "[" * 40_000
    with pytest.raises(DataError, match="is not JSON: is nested too deeply"):
        read(bomb)


def test_annotations_of_another_kind_are_not_taken_for_captions(read):
    boxes = [{"image_id": 1, "bbox": [1.5, 2, 3, 4], "category_id": 18}]
    with pytest.raises(DataError, match=r"holds no picture with a caption.*annotation 0 has no caption"):
        read(coco([picture(1, "a.jpg")], boxes))
    with pytest.raises(DataError, match="is JSON with the keys info, licenses, images, annotations, but of no form"):
        read(coco([picture(1, "a.jpg")], []))


def test_a_file_cut_short_is_refused_and_not_read_by_half(read):
    whole = coco([picture(1, "a.jpg"), picture(2, "b.jpg")], [annotation(1, "A dog"), annotation(2, "A boat")])
    for length in range(20, len(whole), 7):
        with pytest.raises(DataError, match="is not JSON") as raised:
            read(whole[:length])
        assert "cut short" in raised.value.hint


# Karpathy's JSON over COCO's folders


def entry(filename, split, *captions, **others):
    return {"filename": filename, "split": split, "sentences": [{"raw": caption} for caption in captions], **others}


KARPATHY = [
    entry("COCO_val2014_000000000042.jpg", "test", "A shoe", filepath="val2014", cocoid=42),
    entry("COCO_train2014_000000000009.jpg", "train", "A meal", "A plate", filepath="train2014"),
    entry("COCO_val2014_000000000073.jpg", "restval", "A bike", filepath="val2014"),
    entry("COCO_val2014_000000000074.jpg", "val", "A dog", filepath="val2014"),
]


@pytest.mark.parametrize("beside", ["", "images", "annotations"])
def test_karpathys_split_of_coco_over_both_folders(tmp_path, beside):
    """The JSON stands beside train2014 and val2014, beside the folder that holds them, or beside a folder with it."""
    root = tmp_path / ("images" if beside == "images" else "")
    for item in KARPATHY:
        touch(root / item["filepath"] / item["filename"])
    file = tmp_path / ("annotations" if beside == "annotations" else "") / "dataset_coco.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"images": KARPATHY, "dataset": "coco"}))
    source = read_source(file)
    assert source.form == "Karpathy JSON" and source.problems == []
    assert all(Path(record.image).is_file() for record in source.records)
    assert source.splits == {"test": 1, "train": 1, "restval": 1, "val": 1}
    joined = [Path(record.image).name for record in source.select("train+restval")]
    assert joined == ["COCO_train2014_000000000009.jpg", "COCO_val2014_000000000073.jpg"]


def test_karpathys_json_lies_elsewhere_and_images_names_the_folder(tmp_path):
    root, file = tmp_path / "coco", tmp_path / "splits" / "dataset_coco.json"
    for item in KARPATHY:
        touch(root / item["filepath"] / item["filename"])
    file.parent.mkdir()
    file.write_text(json.dumps({"images": KARPATHY}))
    with pytest.raises(DataError, match=r"its pictures are not there, val2014/COCO_val2014_000000000042\.jpg"):
        read_source(file)
    source = read_source(file, root)
    assert [record.image for record in source.records] == [
        str(root / item["filepath"] / item["filename"]) for item in KARPATHY
    ]
    assert [record.captions for record in source.select("train+restval")] == [("A meal", "A plate"), ("A bike",)]
    with pytest.raises(DataError, match="there is no split 'restvall'"):
        source.select("train+restvall")


def test_karpathys_json_whose_first_pictures_are_bad(tmp_path):
    touch(tmp_path / "a.jpg")
    bad = [None, 3, {"filename": "b.jpg", "split": "train"}]
    (tmp_path / "x.json").write_text(json.dumps({"images": [*bad, entry("a.jpg", "train", "A dog")]}) + "\n")
    source = read_source(tmp_path / "x.json")
    assert [record.captions for record in source.records] == [("A dog",)]
    assert [problem.where for problem in source.problems] == [
        "x.json: image 0",
        "x.json: image 1",
        "x.json: image 2 (b.jpg)",
    ]


# COCO's own file


@pytest.fixture(scope="module")
def val2017():
    file = SHARED / "coco_mini" / "captions_val2017.json"
    if not file.is_file():
        pytest.skip("no COCO to read: name the folder that holds coco_mini in CLIPLET_SHARED")
    return file


def by_hand(file):
    """Captions by file name, with the whole document in memory."""
    document = json.loads(file.read_bytes())
    captions = {image["id"]: [] for image in document["images"]}
    for item in document["annotations"]:
        captions[item["image_id"]].append(" ".join(item["caption"].split()))
    return {image["file_name"]: tuple(captions[image["id"]]) for image in document["images"]}


def test_all_of_cocos_validation_captions_come_out(val2017):
    source = read_source(val2017)
    expected = by_hand(val2017)
    assert source.form == "COCO captions JSON" and source.problems == [] and source.splits == {"": 5000}
    assert [Path(record.image).name for record in source.records] == list(expected)
    assert {Path(record.image).name: record.captions for record in source.records} == expected
    assert int(source.records.caption_counts().sum()) == 25_014
    assert Counter(source.records.caption_counts().tolist()) == Counter(map(len, expected.values()))


def test_the_small_part_of_coco_is_read_with_its_pictures(val2017):
    file = val2017.with_name("captions_val2017_mini.json")
    source = read_source(file)
    expected = by_hand(file)
    assert len(source.records) == 159 and source.problems == []
    assert {Path(record.image).name: record.captions for record in source.records} == expected
    assert all(Path(record.image).is_file() for record in source.records)


# Where the pictures are


def karpathy_coco(folder, *names, **paths):
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": f"a caption of {name}"}], **paths} for name in names
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return folder / "dataset_coco.json"


TRAIN, VAL = "COCO_train2014_000000000009.jpg", "COCO_val2014_000000391895.jpg"


@pytest.mark.parametrize("given", [False, True])
def test_names_without_folders_are_found_over_both(tmp_path, given):
    """Some versions of Karpathy's file give no filepath; COCO's names say where they stand."""
    touch(tmp_path / "coco" / "train2014" / TRAIN, tmp_path / "coco" / "val2014" / VAL)
    file = karpathy_coco(tmp_path if given else tmp_path / "coco", VAL, TRAIN)
    records = read_source(file, tmp_path / "coco" if given else None).records
    assert all(Path(record.image).is_file() for record in records)
    assert [record.captions for record in records] == [(f"a caption of {VAL}",), (f"a caption of {TRAIN}",)]


def test_names_with_folders_are_found_in_one_flat_folder(tmp_path):
    touch(tmp_path / "images" / TRAIN, tmp_path / "images" / VAL)
    images = [
        {"filename": TRAIN, "filepath": "train2014", "split": "train", "sentences": [{"raw": "one"}]},
        {"filename": VAL, "filepath": "val2014", "split": "val", "sentences": [{"raw": "two"}]},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    source = read_source(tmp_path / "dataset_coco.json")
    assert [(Path(r.image).name, r.captions, r.split) for r in source.records] == [
        (TRAIN, ("one",), "train"),
        (VAL, ("two",), "val"),
    ]
    assert all(Path(record.image).is_file() for record in source.records)


def test_a_flat_folder_never_makes_one_picture_of_two(tmp_path):
    touch(tmp_path / "1.jpg")
    with pytest.raises(DataError, match="its pictures are not there"):
        images = [{"filename": "1.jpg", "filepath": f, "split": "", "sentences": [{"raw": f}]} for f in ("a", "b")]
        (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
        read_source(tmp_path / "dataset.json")


def test_the_folder_named_may_be_the_one_above(tmp_path):
    touch(tmp_path / "coco" / "val2017" / "000000000139.jpg")
    (tmp_path / "captions_val2017.json").write_text(
        coco([picture(139, "000000000139.jpg")], [annotation(139, "A room")])
    )
    (record,) = read_source(tmp_path / "captions_val2017.json", tmp_path / "coco").records
    assert Path(record.image).is_file()
