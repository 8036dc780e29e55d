"""Packing: the right bytes, the same bytes every time, and nothing broken whatever ends it."""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from cliplet.cli import main
from cliplet.data.images import load_image
from cliplet.data.packing import default_workers, pack, pack_picture, write_shard
from cliplet.data.places import TAR_MEMBER, read_bytes
from cliplet.data.readers import read_source
from cliplet.data.records import ImageText, Problem
from cliplet.data.shards import JOURNAL, MANIFEST, Manifest, Original, Packed, Settings
from cliplet.errors import ConfigError, DataError

SMALL = Settings(size=32, shard_pictures=4)


def encoded(image, form="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def ramp(width, height):
    """A picture that says where each of its points was: red to the right, green downwards."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, np.full_like(across, 80)], -1).astype(np.uint8))


def colour(number):
    return (number * 53 % 256, number * 29 % 256, number * 97 % 256)


@pytest.fixture
def photos(tmp_path):
    """18 pictures of one colour each in two splits, with two captions each; numbers 3 and 9 are broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["image\tcaption\tsplit"]
    for number in range(18):
        (folder / f"{number}.png").write_bytes(encoded(Image.new("RGB", (60, 48), colour(number)), "PNG"))
        split = "train" if number < 13 else "val"
        lines += [f"{number}.png\tpicture {number}\t{split}", f"{number}.png\tonce more “{number}”\t{split}"]
    (folder / "3.png").write_bytes(b"\x89PNG broken")
    (folder / "9.png").unlink()
    (folder / "list.tsv").write_text("\n".join(lines))
    return folder


def digests(folder):
    """The pack's files, each by its content."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def check_colours(records):
    """Each picture has the colour of the number in its caption."""
    for record in records:
        number = int(record.captions[0].split()[-1])
        pixel = load_image(record.image).getpixel((5, 5))
        assert max(abs(a - b) for a, b in zip(pixel, colour(number), strict=True)) < 6, record


# One picture


def packed(data, tmp_path, **settings):
    file = tmp_path / "picture"
    file.write_bytes(data)
    return pack_picture(Settings(**{"size": 100, **settings}), ("train", ImageText(str(file), ("a", "b"))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((400, 200), (200, 100)),
        ((200, 400), (100, 200)),
        ((301, 200), (150, 100)),
        ((100, 100), (100, 100)),
        ((99, 300), (99, 300)),
        ((5, 5), (5, 5)),
        ((2000, 2), (2000, 2)),
        ((1999, 1601), (125, 100)),
        ((60, 6000), (60, 6000)),
    ],
)
def test_the_shorter_side_is_made_smaller_and_never_larger(tmp_path, before, after):
    data = encoded(ramp(*before), quality=95)
    result = packed(data, tmp_path)
    image = Image.open(io.BytesIO(result.data))
    assert image.size == after and image.format == "JPEG" and image.mode == "RGB" and result.ending == "jpg"
    assert result.original == Original("picture", hashlib.sha256(data).hexdigest(), *before)
    assert (result.captions, result.split) == (("a", "b"), "train")
    if min(after) > 50:
        expected = ramp(*before).resize(after, Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_and_their_size_is_the_upright_one(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = packed(encoded(ramp(300, 200), quality=95, exif=exif, comment="hello"), tmp_path)
    image = Image.open(io.BytesIO(result.data))
    swapped = orientation >= 5
    assert image.size == ((100, 150) if swapped else (150, 100))
    assert (result.original.width, result.original.height) == ((200, 300) if swapped else (300, 200))
    assert not image.getexif() and "comment" not in image.info
    upright = np.asarray(load_image(tmp_path / "picture").resize(image.size), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - upright).mean() < 3


def test_no_detail_turns_into_false_patterns(tmp_path):
    """Fine stripes become grey; a filter that skips pixels would make broad ones."""
    stripes = np.zeros((400, 400, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = np.asarray(Image.open(io.BytesIO(packed(encoded(Image.fromarray(stripes), "PNG"), tmp_path).data)), int)
    assert pixels[10:-10, 10:-10].std() < 6 and abs(pixels.mean() - 127) < 6


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("stored", ["jpeg", "webp"])
def test_pictures_of_all_kinds_are_stored_as_one(tmp_path, form, stored):
    result = packed(encoded(ramp(300, 200), form), tmp_path, format=stored)
    image = Image.open(io.BytesIO(result.data))
    assert (image.format, image.size, image.mode) == (stored.upper(), (150, 100), "RGB")
    assert result.ending == {"jpeg": "jpg", "webp": "webp"}[stored]


def test_transparency_is_laid_on_white(tmp_path):
    result = packed(encoded(Image.new("RGBA", (50, 50), (200, 0, 0, 0)), "PNG"), tmp_path)
    assert min(load_image(result.data).getpixel((20, 20))) > 250


def test_quality_decides_the_size(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    sizes = [len(packed(encoded(Image.fromarray(random), "PNG"), tmp_path, quality=q).data) for q in (30, 90)]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize(("form", "ending"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_size_0_keeps_the_bytes(tmp_path, form, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(ramp(300, 200), form, exif=exif)
    result = packed(data, tmp_path, size=0)
    assert result.data == data and result.ending == ending
    assert (result.original.width, result.original.height) == (200, 300)


def test_size_0_stores_other_kinds_at_their_size(tmp_path):
    result = packed(encoded(ramp(300, 200), "BMP"), tmp_path, size=0)
    image = Image.open(io.BytesIO(result.data))
    assert image.format == "JPEG" and image.size == (300, 200) and result.ending == "jpg"


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not a picture"),
        (encoded(ramp(300, 200))[:3000], "cannot be decoded"),
        (encoded(Image.new("RGB", (1, 1))), "too small"),
    ],
    ids=["empty", "text", "cut", "1x1"],
)
def test_what_cannot_be_read_is_named(tmp_path, data, reason, size):
    problem = packed(data, tmp_path, size=size)
    assert isinstance(problem, Problem) and problem.where == str(tmp_path / "picture") and reason in problem.reason


def test_what_is_missing_a_folder_or_cannot_be_stored_is_named(tmp_path):
    def reason(image, **settings):
        return pack_picture(Settings(**settings), ("", ImageText(str(image), ("a",)))).reason

    assert reason(tmp_path / "gone.jpg") == "no such file"
    assert "is a folder" in reason(tmp_path)
    assert "no such file" in reason(f"{tmp_path}/gone.tar?offset=0&size=9&name=a.jpg")
    (tmp_path / "wide.png").write_bytes(encoded(Image.new("RGB", (17_000, 2)), "PNG"))
    assert "17000x2 pixels cannot be stored as webp" in reason(tmp_path / "wide.png", format="webp")


def test_a_shard_holds_what_it_is_given_and_names_the_rest(tmp_path):
    pictures = [Packed(bytes([n]) * 1000, "jpg", (f"picture {n}",), "val", Original("o", "s", 3, 4)) for n in range(3)]
    given = [pictures[0], Problem("x", "bad"), *pictures[1:], Problem("y", "worse")]
    shard, left_out = write_shard(tmp_path, "val-000007.tar", "val", iter(given))
    assert left_out == [given[1], given[4]]
    assert (shard.pictures, shard.captions, shard.bytes) == (3, 3, (tmp_path / shard.name).stat().st_size)
    lines = [json.loads(line) for line in (tmp_path / shard.index).read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"val-000007-00000{n}" for n in range(3)]
    for number, line in enumerate(lines):
        data = (tmp_path / shard.name).read_bytes()[line["offset"] :][: line["size"]]
        assert data == pictures[number].data and line["sha256"] == hashlib.sha256(data).hexdigest()


# A whole pack


def test_a_pack_gives_back_captions_and_splits_and_leaves_no_gap(photos, tmp_path):
    out = tmp_path / "pack"
    result = pack(str(photos), out, SMALL)
    source, before = read_source(out), read_source(photos)
    good = [record for record in before.records if Path(record.image).name not in ("3.png", "9.png")]
    assert [(r.captions, r.split) for r in source.records] == [(r.captions, r.split) for r in good]
    check_colours(source.records)
    assert not source.problems and result.packed == 18
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["complete"] and manifest["left_out"] == 2 and manifest["source"] == "photos"
    assert manifest["splits"] == {"train": {"pictures": 11, "captions": 22}, "val": {"pictures": 5, "captions": 10}}
    assert [shard["pictures"] for shard in manifest["shards"]] == [3, 4, 3, 1, 4, 1]
    assert not (out / JOURNAL).exists() and not list(out.glob("*.part"))
    keys = [TAR_MEMBER.fullmatch(record.image)["name"] for record in source.records[:3]]
    assert keys == [f"train-000000-00000{n}.jpg" for n in range(3)]
    problems = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(p["where"]).name: p["reason"].split(":")[0] for p in problems} == {
        "3.png": "not a picture, or of a kind that Pillow does not read",
        "9.png": "no such file",
    }


def test_each_picture_says_what_it_was(photos, tmp_path):
    pack(str(photos), tmp_path / "pack", SMALL)
    line = json.loads((tmp_path / "pack" / "val-000000.jsonl").read_text().splitlines()[0])
    before = (photos / "13.png").read_bytes()
    original = {"name": "13.png", "sha256": hashlib.sha256(before).hexdigest(), "width": 60, "height": 48}
    assert line["original"] == original and line["split"] == "val"
    assert line["captions"] == ["picture 13", "once more “13”"]


def test_other_readers_of_webdataset_find_the_same(photos, tmp_path):
    pack(str(photos), tmp_path / "pack", SMALL)
    shards = [str(tmp_path / "pack" / f"train-{number:06d}.tar") for number in range(4)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"))
    ours = read_source(tmp_path / "pack").select("train")
    assert [tuple(sample["json"]["captions"]) for sample in samples] == [record.captions for record in ours]
    assert [sample["txt"] for sample in samples] == [record.captions[0] for record in ours]
    for sample, record in zip(samples, ours, strict=True):
        assert np.array_equal(np.asarray(sample["jpg"]), np.asarray(load_image(record.image)))
        assert sample["__key__"] + ".jpg" == TAR_MEMBER.fullmatch(record.image)["name"]


def test_a_shard_of_which_nothing_could_be_read_is_an_empty_one(photos, tmp_path):
    for number in range(4, 8):
        (photos / f"{number}.png").write_bytes(b"bad")
    pack(str(photos), tmp_path / "pack", SMALL)
    source = read_source(tmp_path / "pack")
    assert [Path(r.captions[0]).name.split()[-1] for r in source.records[:4]] == ["0", "1", "2", "8"]
    shards = [str(file) for file in sorted((tmp_path / "pack").glob("train*.tar"))]
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    assert len(shards) == 4 and len(list(samples)) == 7


def test_a_data_set_of_which_nothing_can_be_read_is_an_error(photos, tmp_path):
    for file in photos.glob("*.png"):
        file.write_bytes(b"bad")
    with pytest.raises(DataError, match="not one of 18 pictures could be read"):
        pack(str(photos), tmp_path / "pack", SMALL)


def test_the_same_data_gives_the_same_bytes_with_any_number_of_threads(photos, tmp_path):
    packs = []
    for workers in (1, 5):
        pack(str(photos), tmp_path / f"pack{workers}", SMALL, workers=workers)
        packs.append(digests(tmp_path / f"pack{workers}"))
    assert packs[0] == packs[1] and len(packs[0]) == 14
    moved = photos.rename(tmp_path / "elsewhere")
    (moved.parent / "elsewhere2").symlink_to(moved)
    pack(str(tmp_path / "elsewhere2" / "list.tsv"), tmp_path / "pack9", SMALL)
    shards = {name: digest for name, digest in digests(tmp_path / "pack9").items() if name[0] in "tv"}
    assert shards == {name: digest for name, digest in packs[0].items() if name[0] in "tv"}


@pytest.mark.parametrize(("split", "count"), [("train", 11), ("val", 5), ("train+val", 16), ("all", 16)])
def test_a_split_alone(photos, tmp_path, split, count):
    pack(str(photos), tmp_path / "pack", Settings(split=split, size=32))
    assert len(read_source(tmp_path / "pack").records) == count
    with pytest.raises(DataError, match="there is no split 'test'"):
        pack(str(photos), tmp_path / "other", Settings(split="test"))


def test_the_first_pictures_alone(photos, tmp_path):
    pack(str(photos), tmp_path / "pack", Settings(size=32, samples=5))
    assert read_source(tmp_path / "pack").splits == {"train": 4, "val": 5}  # of the first five, one is broken


def test_splits_that_cliplet_makes_stay_the_same_in_the_pack(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number}.png").write_bytes(encoded(Image.new("RGB", (8, 8), colour(number)), "PNG"))
    (photos / "list.tsv").write_text("".join(f"{number}.png\tpicture {number}\n" for number in range(60)))
    pack(str(photos), tmp_path / "pack", Settings(size=0))
    pack(str(photos), tmp_path / "val", Settings(size=0, split="val"))
    before, after, val = (read_source(tmp_path / name) for name in ("photos", "pack", "val"))
    for split in ("train", "val"):
        captions = [record.captions for record in before.select(split)]
        assert captions == [record.captions for record in after.select(split)]
    assert [record.captions for record in val.select("val")] == captions and len(captions) > 1


def test_splits_with_odd_names_have_shards_of_their_own(tmp_path):
    names = ["a/b", "a_b_2", "a_b", "A_B", "ü", "", "x" * 80]
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = ["image\tcaption\tsplit"]
    for number, split in enumerate(names):
        (photos / f"{number}.png").write_bytes(encoded(Image.new("RGB", (8, 8), colour(number)), "PNG"))
        lines.append(f"{number}.png\tpicture {number}\t{split}")
    (photos / "list.tsv").write_text("\n".join(lines))
    pack(str(photos), tmp_path / "pack", SMALL)
    source = read_source(tmp_path / "pack")
    assert [record.split for record in source.records] == names
    check_colours(source.records)
    shards = [shard.name.lower() for shard in Manifest.read(tmp_path / "pack").shards]
    assert len(set(shards)) == 7 and all(re.fullmatch(r"\w{1,50}-000000\.tar", name, re.ASCII) for name in shards)


def test_a_pack_can_be_packed_again_smaller(photos, tmp_path):
    pack(str(photos), tmp_path / "large", Settings(size=0))
    pack(str(tmp_path / "large"), tmp_path / "small", Settings(size=16))
    source = read_source(tmp_path / "small")
    assert load_image(source.records[0].image).size == (20, 16)
    check_colours(source.records)
    assert [r.captions for r in source.records] == [r.captions for r in read_source(tmp_path / "large").records]


def test_a_pack_of_a_pack_or_of_places_in_one_names_the_first_originals(photos, tmp_path):
    pack(str(photos), tmp_path / "large", Settings(size=0))
    pack(str(tmp_path / "large"), tmp_path / "small", SMALL)
    records = read_source(tmp_path / "large").records
    lines = [f"{record.image}\t{record.captions[0]}\t{record.split}" for record in records]
    (tmp_path / "list.tsv").write_text("\n".join(["image\tcaption\tsplit", *lines]))
    pack(str(tmp_path / "list.tsv"), tmp_path / "listed", SMALL)
    before = originals(tmp_path / "large")
    assert before == originals(tmp_path / "small") == originals(tmp_path / "listed")
    assert [one["name"] for one in before[:4]] == ["0.png", "1.png", "2.png", "4.png"]


def originals(folder):
    indexes = sorted(folder.glob("*-*.jsonl"))
    return [json.loads(line)["original"] for file in indexes for line in file.read_text().splitlines()]


def test_tars_named_like_a_pack_s_have_their_own_originals(tmp_path):
    data = encoded(Image.new("RGB", (60, 48), colour(1)))
    for original in ({"name": "x"}, ["x"], "[" * 10_000):
        about = original if isinstance(original, str) else json.dumps({"caption": "picture 1", "original": original})
        with tarfile.open(tmp_path / "a-000000.tar", "w") as tar:
            for name, content in (("k.jpg", data), ("k.json", about.encode()), ("k.txt", b"picture 1")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        (record,) = read_source(tmp_path / "a-000000.tar").records
        expected = Original("k.jpg", hashlib.sha256(data).hexdigest(), 60, 48)
        assert pack_picture(SMALL, ("train", record)).original == expected


def test_a_picture_of_an_arrow_row_keeps_its_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    data = encoded(Image.new("RGB", (60, 48), colour(1)))
    table = pa.table({"image": [{"bytes": data, "path": "photos/name.jpg"}]})
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    record = ImageText(f"{tmp_path}/x.arrow?row=0&column=image", ("a",))
    expected = Original("name.jpg", hashlib.sha256(data).hexdigest(), 60, 48)
    assert pack_picture(SMALL, ("train", record)).original == expected


def test_progress_is_told_for_each_picture(photos, tmp_path):
    told = []
    pack(str(photos), tmp_path / "pack", SMALL, tell=lambda done, total: told.append((done, total)))
    assert told == [(number, 18) for number in range(1, 19)]


def test_threads_are_as_many_as_cores():
    assert 1 <= default_workers() <= 32


# What is refused


def test_a_complete_pack_is_left_alone(photos, tmp_path):
    out = tmp_path / "pack"
    pack(str(photos), out, SMALL)
    before, times = digests(out), {file: file.stat().st_mtime_ns for file in out.iterdir()}
    result = pack(str(photos), out, SMALL)
    assert result.packed == 0 and result.manifest == Manifest.read(out)
    assert digests(out) == before and {file: file.stat().st_mtime_ns for file in out.iterdir()} == times


def test_other_settings_are_refused_and_named(photos, tmp_path):
    pack(str(photos), tmp_path / "pack", SMALL)
    before = digests(tmp_path / "pack")
    for change, named in [
        ({"size": 64}, "--size was 32 and is 64"),
        ({"format": "webp"}, "--format was jpeg and is webp"),
        ({"quality": 80, "shard_pictures": 5}, "--quality was 90 and is 80; --shard-pictures was 4 and is 5"),
        ({"split": "val"}, "--split was all and is val"),
        ({"samples": 3}, "--samples was None and is 3"),
    ]:
        with pytest.raises(DataError, match=named) as caught:
            pack(str(photos), tmp_path / "pack", Settings(**{"size": 32, "shard_pictures": 4, **change}))
        assert "another folder" in caught.value.hint
    assert digests(tmp_path / "pack") == before


@pytest.mark.parametrize("change", ["caption", "picture", "split", "more"])
def test_other_data_is_refused(photos, tmp_path, change):
    pack(str(photos), tmp_path / "pack", SMALL)
    text = (photos / "list.tsv").read_text()
    if change == "caption":
        text = text.replace("picture 5", "painting 5")
    elif change == "split":
        text = text.replace("picture 12\ttrain", "picture 12\tval").replace("“12”\ttrain", "“12”\tval")
    elif change == "more":
        text += "\n0.png\tand one more\ttrain"
    else:
        (photos / "5.png").write_bytes(encoded(ramp(60, 48), "PNG"))
    (photos / "list.tsv").write_text(text)
    with pytest.raises(DataError, match=r"the data \(photos\) has other pictures, captions or splits"):
        pack(str(photos), tmp_path / "pack", SMALL)


def test_a_folder_with_other_files_is_refused(photos, tmp_path):
    out = tmp_path / "pack"
    out.mkdir()
    (out / ".DS_Store").touch()
    for name in ("notes.txt", "train-000000.tar", "quarantine.jsonl.bak"):
        (out / name).write_text("mine")
        with pytest.raises(DataError, match=rf"holds other files: {name}"):
            pack(str(photos), out, SMALL)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    pack(str(photos), out, SMALL)
    (out / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes\.txt"):
        pack(str(photos), out, SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        pack(str(photos), tmp_path / "file", SMALL)


def test_a_folder_that_holds_the_data_is_refused(photos, tmp_path):
    for out in (photos, tmp_path, photos / ".." / "photos"):
        for data in (photos, photos / "list.tsv"):
            with pytest.raises(DataError, match="holds the data"):
                pack(str(data), out, SMALL)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="holds the data"):
        pack(str(photos / "list.tsv"), tmp_path / "pictures", SMALL, images=tmp_path / "photos" / ".." / "pictures")


def test_a_manifest_of_another_program_is_refused(photos, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / MANIFEST).write_text('{"name": "a web app"}')
    with pytest.raises(DataError, match="manifest"):
        pack(str(photos), tmp_path / "pack", SMALL)
    assert (tmp_path / "pack" / MANIFEST).read_text() == '{"name": "a web app"}'


def test_a_complete_pack_that_lost_a_shard_says_so(photos, tmp_path):
    pack(str(photos), tmp_path / "pack", SMALL)
    (tmp_path / "pack" / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        pack(str(photos), tmp_path / "pack", SMALL)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": -1}, "--size"),
        ({"quality": 0}, "--quality"),
        ({"quality": 101}, "--quality"),
        ({"format": "gif"}, "--format"),
        ({"shard_pictures": 0}, "--shard-pictures"),
        ({"samples": 0}, "--samples"),
    ],
)
def test_settings_that_cannot_be(photos, tmp_path, settings, named):
    with pytest.raises(ConfigError, match=named):
        pack(str(photos), tmp_path / "pack", Settings(**settings))
    assert not (tmp_path / "pack").exists()


def test_no_threads_is_too_few(photos, tmp_path):
    with pytest.raises(ConfigError, match="--workers"):
        pack(str(photos), tmp_path / "pack", SMALL, workers=0)


# Whatever ends it: real processes


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """60 pictures that take some time each, three of them broken."""
    folder = tmp_path_factory.mktemp("heavy")
    random = np.random.default_rng(0)
    tile = Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for number in range(60):
        (folder / f"{number}.jpg").write_bytes(encoded(tile.resize((1300 + number, 1000)), quality=90))
    for number in (2, 17, 41):
        (folder / f"{number}.jpg").write_bytes(b"broken")
    (folder / "list.tsv").write_text("".join(f"{n}.jpg\tpicture {n}\n{n}.jpg\tagain\n" for n in range(60)))
    return folder


def command(heavy, out, *more):
    words = ["pack", str(heavy), str(out), "--shard-pictures", "5", "--size", "200", "--workers", "2", *more]
    # Whoever runs the tests in the background of a shell script passes on that SIGINT is ignored.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    return [sys.executable, "-c", code + "from cliplet.cli import main; sys.exit(main(sys.argv[1:]))", *words]


@pytest.fixture(scope="module")
def uninterrupted(heavy, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "pack"
    done = subprocess.run(command(heavy, out), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return digests(out)


def interrupted(heavy, out, shard, how):
    """A process that is sent a signal when a shard's file appears; what it said."""
    process = subprocess.Popen(command(heavy, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (out / shard).exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(how)
    return process, *process.communicate(timeout=60)


@pytest.mark.parametrize("shard", ["manifest.json", "train-000000.tar.part", "train-000003.tar", "train-000006.jsonl"])
def test_a_killed_run_goes_on_to_the_same_bytes(heavy, uninterrupted, tmp_path, shard):
    out = tmp_path / "pack"
    process, _, _ = interrupted(heavy, out, shard, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not Manifest.read(out).complete
    finished = {}
    if (out / JOURNAL).exists():
        for line in (out / JOURNAL).read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                name = json.loads(line)["shard"]["name"]
                finished[name] = (out / name).stat().st_mtime_ns, (out / name).stat().st_ino
    done = subprocess.run(command(heavy, out), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {n: ((out / n).stat().st_mtime_ns, (out / n).stat().st_ino) for n in finished} == finished
    quarantine = (out / "quarantine.jsonl").read_text()
    assert digests(out) == uninterrupted and len(quarantine.splitlines()) == 3


def test_a_run_killed_again_and_again(heavy, uninterrupted, tmp_path):
    out = tmp_path / "pack"
    for number in (1, 3, 5):
        interrupted(heavy, out, f"train-{number:06d}.tar", signal.SIGKILL)
        assert len(read_source(out).records) >= 4  # what is there can be read
    done = subprocess.run(command(heavy, out), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and digests(out) == uninterrupted


def test_a_finished_shard_that_was_lost_meanwhile_is_written_again(heavy, uninterrupted, tmp_path):
    out = tmp_path / "pack"
    interrupted(heavy, out, "train-000004.tar", signal.SIGKILL)
    (out / "train-000001.tar").unlink()
    os.truncate(out / "train-000002.tar", 1000)
    assert subprocess.run(command(heavy, out), capture_output=True, timeout=120).returncode == 0
    assert digests(out) == uninterrupted


def test_ctrl_c_ends_with_a_line_and_no_part(heavy, uninterrupted, tmp_path):
    out = tmp_path / "pack"
    process, _, said = interrupted(heavy, out, "train-000002.tar", signal.SIGINT)
    assert process.returncode == 130 and "packing was interrupted" in said and "goes on after them" in said
    assert "Traceback" not in said and not list(out.glob("*.part"))
    assert subprocess.run(command(heavy, out), capture_output=True, timeout=120).returncode == 0
    assert digests(out) == uninterrupted


def test_a_killed_run_with_other_settings_is_refused(heavy, tmp_path):
    out = tmp_path / "pack"
    interrupted(heavy, out, "train-000001.tar", signal.SIGKILL)
    done = subprocess.run(command(heavy, out, "--quality", "80"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--quality was 90 and is 80" in done.stderr


def test_a_full_disk_ends_with_a_message_and_no_broken_shard(heavy, uninterrupted, tmp_path):
    out = tmp_path / "pack"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
    code = limit + "from cliplet.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *command(heavy, out)[3:]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "cannot be written: File too large" in done.stderr and "Make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*.tar")) and not list(out.glob("*.part"))
    assert subprocess.run(command(heavy, out), capture_output=True, timeout=120).returncode == 0
    assert digests(out) == uninterrupted


def test_two_at_once_do_not_mix(heavy, tmp_path):
    out = tmp_path / "pack"
    first = subprocess.Popen(command(heavy, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not (out / "train-000000.tar").exists():
            assert first.poll() is None
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command(heavy, out), capture_output=True, text=True, timeout=120)
        assert second.returncode == 1 and "another command is writing there" in second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
        first.kill()
        first.communicate()


# The command


def test_the_command_says_what_was_packed_and_what_comes_next(photos, tmp_path, capsys):
    out = tmp_path / "my pack"
    words = ["pack", str(photos / "list.tsv"), str(out), "--size", "32", "--images", str(photos), "--format", "webp"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "16 pictures (train 11, val 5), 32 captions, 2 shards" in said and "2 pictures left out" in said
    assert "pictures/s" in said and f"next: cliplet train RECIPE --data.path '{out}'" in said
    assert "quarantine.jsonl" in said
    check_colours(read_source(out).records)
    assert main(words) == 0
    assert "complete already; nothing was done" in capsys.readouterr().out


def test_the_command_s_other_options(photos, tmp_path, capsys):
    out, quarantine = tmp_path / "pack", tmp_path / "bad.jsonl"
    words = [
        "pack",
        str(photos),
        str(out),
        "--split",
        "train",
        "--samples",
        "6",
        "--shard-pictures",
        "2",
        "--size",
        "0",
    ]
    assert main([*words, "--workers", "1", "--quarantine", str(quarantine), "--quality", "70"]) == 0
    assert len(quarantine.read_text().splitlines()) == 1 and not (out / "quarantine.jsonl").exists()
    records = read_source(out).records
    assert [read_bytes(r.image, 10**6) for r in records] == [
        (photos / f"{n}.png").read_bytes() for n in (0, 1, 2, 4, 5)
    ]


def test_the_command_s_mistakes_end_in_two_lines(tmp_path, capsys):
    assert main(["pack", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_speed(monkeypatch, terminal):
    from rich.console import Console

    from cliplet import console

    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    screen = io.StringIO()
    with console.speed_bar("packing", Console(file=screen, force_terminal=terminal, width=120)) as tell:
        for done in range(1, 4):
            tell(done, 3)
            time.sleep(0.02)
    assert "3 of 3" in screen.getvalue() or "3/3" in screen.getvalue()
    assert re.search(r"[1-9]\d* pictures/s", screen.getvalue())
