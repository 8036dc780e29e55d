"""Stores of teachers' embeddings: as written, for records in any order, refused where they are not what they say."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cliplet.config import AugmentConfig
from cliplet.data import teacher_shards
from cliplet.data.places import arrow_row, tar_member
from cliplet.data.records import ImageText, Records
from cliplet.data.teacher_store import (
    PictureLine,
    StoreManifest,
    StoreSettings,
    TeacherInfo,
    TeacherStore,
    distinct_captions,
    done_shards,
    finish,
    names_with,
    picture_names,
    shard_pictures,
    shard_stem,
    write_shard,
)
from cliplet.errors import DataError

COMMAND = "cliplet distil-store data store --teacher big"
SETTINGS = StoreSettings(3, False, AugmentConfig(), "float16", "train", 0, None)
BIG = TeacherInfo("big", "a" * 64, "t" * 64, 224, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 8, 100.0, "fp32")
SMALL = replace(BIG, name="small", weights="", embed_dim=5, image_size=32, logit_scale=None)
DEFAULT = ("a dog", "a cat", "ein “Hund”\u2028im Schnee", "a dog")  # captions, one of them twice


def rows_of(seed, *shape):
    """Random unit rows, float32."""
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pictures(folder, names, captions=None):
    """Records of files that hold their names; picture n has the caption "n" and two of DEFAULT."""
    records = []
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"the picture {name}".encode())
        own = (str(number), DEFAULT[number % 4], DEFAULT[(number + 1) % 4])
        records.append(ImageText(str(file), captions[number] if captions else own))
    return Records.of(records)


def write_store(
    folder, records, settings=SETTINGS, teachers=(BIG, SMALL), of_each=4, bad=(), finished=True, shards=None
):
    """A store of random embeddings; returns what it was given: views, and by teacher those of pictures and, by
    caption, of each shard's captions."""
    folder.mkdir()
    names, name_parts = picture_names(records)
    stop = -(-len(records) // of_each)
    manifest = StoreManifest("photos", "f", settings, teachers, stop, COMMAND, name_parts)
    manifest.write(folder)
    views = np.random.default_rng(9).random((len(records), settings.views, 8)).astype(np.float32)
    images = [rows_of(t, len(records), settings.views, teacher.embed_dim) for t, teacher in enumerate(teachers)]
    texts = {}
    for number in range(stop if shards is None else shards):
        these = range(number * of_each, min((number + 1) * of_each, len(records)))
        lines = []
        for row in these:
            file = Path(records.image(row))
            data = file.read_bytes() if file.is_file() else b""
            reason = "it is broken" if row in bad else None
            lines.append(PictureLine(names[row], len(data), zlib.crc32(data), records[row].captions, reason))
            if row in bad:
                views[row], images[0][row], images[1][row] = 0, 0, 0
        captions = distinct_captions(line.captions for line in lines)
        of_texts = [rows_of((t, number), len(captions), one.embed_dim) for t, one in enumerate(teachers)]
        texts |= {(number, text): [rows[at] for rows in of_texts] for at, text in enumerate(captions)}
        mine = slice(these.start, these.stop)
        write_shard(
            folder, shard_stem(number), lines, views[mine], [one[mine] for one in images], of_texts, settings.storage
        )
    if finished:
        finish(folder, manifest)
    return views, images, texts


@pytest.fixture
def photos(tmp_path):
    """Eleven pictures."""
    return pictures(tmp_path / "photos", [f"{n}.jpg" for n in range(11)])


def members(folder, stem):
    """The arrays of a shard as tarfile and NumPy read them."""
    with tarfile.open(folder / f"{stem}.tar") as tar:
        return {
            member.name.removeprefix(f"{stem}."): np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar
        }


# The form


def test_a_shard_is_a_tar_of_plain_arrays(tmp_path, photos):
    views, images, texts = write_store(tmp_path / "store", photos, bad=[5])
    files = {file.name for file in (tmp_path / "store").iterdir() if not file.name.startswith(".")}
    assert files == {"manifest.json", *(f"teacher-00000{n}.{end}" for n in range(3) for end in ("tar", "jsonl"))}
    arrays = members(tmp_path / "store", "teacher-000001")
    assert list(arrays) == ["views.npy", "image0.npy", "text0.npy", "image1.npy", "text1.npy"]
    assert arrays["views.npy"].dtype == np.float32 and np.array_equal(arrays["views.npy"], views[4:8])
    assert arrays["image1.npy"].dtype == np.float16
    assert np.array_equal(arrays["image1.npy"], images[1][4:8].astype(np.float16))
    lines = [json.loads(line) for line in (tmp_path / "store/teacher-000001.jsonl").read_bytes().split(b"\n")[:-1]]
    data = b"the picture 4.jpg"
    assert lines[0] == {
        "name": "4.jpg", "bytes": len(data), "crc32": zlib.crc32(data), "captions": ["4", DEFAULT[0], DEFAULT[1]]
    }  # fmt: skip
    assert lines[1] == {"name": "5.jpg", "reason": "it is broken", "captions": ["5", DEFAULT[1], DEFAULT[2]]}
    # captions in the order of first appearance; "a dog" is both the first and the last of DEFAULT
    order = ["4", "a dog", "a cat", "5", DEFAULT[2], "6", "7"]
    assert np.array_equal(arrays["text0.npy"], np.float16([texts[1, text][0] for text in order]))


def test_the_same_shard_is_written_as_the_same_bytes(tmp_path, photos):
    for name in ("one", "two"):
        write_store(tmp_path / name, photos)
    for file in (tmp_path / "one").glob("teacher-*"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_manifest_says_what_the_store_holds(tmp_path, photos):
    settings = replace(SETTINGS, whole=True, samples=20, augment=AugmentConfig(flip=0.25))
    write_store(tmp_path / "store", photos, settings, bad=[1, 10])
    manifest = StoreManifest.read(tmp_path / "store")
    assert manifest.complete and manifest.left_out == 2 and manifest.name_parts == 1
    assert manifest.settings == settings and manifest.settings.views == 4
    assert manifest.teachers == (BIG, SMALL)
    assert [shard.pictures for shard in manifest.shards] == [4, 4, 3]
    assert [shard.captions for shard in manifest.shards] == [7, 7, 6]
    content = json.loads((tmp_path / "store/manifest.json").read_text())
    assert (content["format"], content["version"]) == ("cliplet-teacher-store", 1)
    assert content["settings"]["augment"]["flip"] == 0.25
    store = TeacherStore.open(tmp_path / "store")
    assert store.bytes == sum(file.stat().st_size for file in (tmp_path / "store").glob("*.tar"))


def test_shards_are_no_more_than_can_be_open_at_once():
    assert shard_pictures(1) == shard_pictures(256_000) == 1000
    assert shard_pictures(256_001) == 1001
    assert -(-5_000_000 // shard_pictures(5_000_000)) <= 256


def test_embeddings_that_are_no_numbers_are_not_written(tmp_path):
    line = PictureLine("a", 1, 1, ("b",))
    image, text = rows_of(0, 1, 2, 3), rows_of(1, 1, 3)
    image[0, 1, 2] = np.nan
    with pytest.raises(DataError, match=r"teacher 1 are not finite numbers"):
        write_shard(tmp_path, "teacher-000000", [line], np.zeros((1, 2, 8)), [image], [text], "float16")
    assert not list(tmp_path.iterdir())
    image[0, 1, 2] = 0
    with pytest.raises(ValueError, match="not those of 1 captions"):
        write_shard(tmp_path, "teacher-000000", [line], np.zeros((1, 2, 8)), [image], [text[:0]], "int8")


# Reading


def test_float16_comes_back_as_unit_rows_near_the_teachers(tmp_path, photos):
    views, images, texts = write_store(tmp_path / "store", photos)
    targets = TeacherStore.open(tmp_path / "store").aligned(photos)
    assert len(targets) == 11 and targets.views == 3 and targets.whole is None
    rows, numbers = np.array([10, 0, 5, 5, 3, 4]), np.array([0, 2, 1, 0, 2, 2])
    for teacher, found in enumerate(targets.image_features(rows, numbers)):
        assert found.dtype == np.float32
        # float16 has 11 bits, so that each number is off by at most 2^-12 of itself
        assert np.abs(found - images[teacher][rows, numbers]).max() < 2**-11
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    captions = list(photos.captions())
    chosen = np.array([0, 32, 5, 12, 13, 12])
    for teacher, found in enumerate(targets.text_features(chosen)):
        wanted = np.array([texts[row // 3 // 4, captions[row]][teacher] for row in chosen])
        assert np.abs(found - wanted).max() < 2**-11
    for row in range(11):
        for number in range(3):
            assert targets.view(row, number).dtype == np.float32
            assert np.array_equal(targets.view(row, number), views[row, number])


def test_int8_is_off_by_half_a_step_at_most(tmp_path, photos):
    settings = replace(SETTINGS, storage="int8")
    _, images, texts = write_store(tmp_path / "store", photos, settings)
    arrays = members(tmp_path / "store", "teacher-000000")
    assert arrays["image0.npy"].dtype == np.int8 and arrays["image0.scale.npy"].shape == (4, 3)
    assert arrays["text1.scale.npy"].shape == (7,) and arrays["text1.scale.npy"].dtype == np.float32
    stored = arrays["image0.npy"] * arrays["image0.scale.npy"][..., None]
    steps = np.abs(images[0][:4]).max(-1, keepdims=True) / 127
    assert (np.abs(stored - images[0][:4]) <= steps / 2 * 1.0001).all()
    assert np.abs(arrays["image0.npy"]).max(-1).min() == 127  # all of the range is used
    targets = TeacherStore.open(tmp_path / "store").aligned(photos)
    found = targets.image_features(np.arange(4).repeat(3), np.tile(np.arange(3), 4))[0]
    assert np.allclose(found, unit(stored).reshape(12, 8), atol=1e-6)
    text = targets.text_features(np.array([1]))[1]
    assert np.allclose(text[0], unit(arrays["text1.npy"][1] * arrays["text1.scale.npy"][1]), atol=1e-6)
    assert np.abs(text[0] - texts[0, "a dog"][1]).max() < 1 / 127


def test_the_whole_view_is_the_last(tmp_path, photos):
    write_store(tmp_path / "store", photos, replace(SETTINGS, augmentations=2, whole=True))
    targets = TeacherStore.open(tmp_path / "store").aligned(photos)
    assert (targets.views, targets.whole) == (3, 2)


def test_records_in_another_order_and_only_some_of_them_get_their_own(tmp_path, photos):
    _, images, texts = write_store(tmp_path / "store", photos)
    store = TeacherStore.open(tmp_path / "store")
    picked = np.array([9, 2, 7, 0, 2])
    some = photos.picked(picked)
    found = store.aligned(some).image_features(np.arange(5), np.full(5, 1))
    assert np.allclose(found[0], images[0][picked, 1], atol=2**-11)
    turned = Records.of(ImageText(one.image, one.captions[::-1][:2]) for one in some)
    found = store.aligned(turned).text_features(np.arange(10))[1]
    for row, (text, number) in enumerate(zip(turned.captions(), picked.repeat(2), strict=True)):
        assert np.allclose(found[row], texts[number // 4, text][1], atol=2**-11), text


def test_a_picture_in_two_records_has_the_captions_of_both(tmp_path):
    photos = pictures(tmp_path / "photos", [f"{n}.jpg" for n in range(6)])
    twice = Records.of([*photos, ImageText(photos.image(0), ("once more",))])
    views, _, texts = write_store(tmp_path / "store", twice)
    store = TeacherStore.open(tmp_path / "store")
    joined = Records.of([ImageText(photos.image(0), ("once more", "0"))])
    found = store.aligned(joined).text_features(np.array([0, 1]))[0]
    assert np.allclose(found, [texts[1, "once more"][0], texts[0, "0"][0]], atol=2**-11)
    assert np.array_equal(store.aligned(twice).view(6, 0), views[0, 0])


def test_a_picture_that_could_not_be_read_has_a_reason_and_zeros(tmp_path, photos):
    write_store(tmp_path / "store", photos, bad=[2, 8])
    targets = TeacherStore.open(tmp_path / "store").aligned(photos.picked(np.array([8, 1, 2])))
    assert targets.reasons == {0: "it is broken", 2: "it is broken"}
    assert not targets.image_features(np.array([0]), np.array([0]))[0].any()
    targets.check(0, b"whatever it is by now")


def test_threads_may_ask_at_once(tmp_path, photos):
    views, _, _ = write_store(tmp_path / "store", photos, of_each=1)
    targets = TeacherStore.open(tmp_path / "store").aligned(photos)
    start, wrong = threading.Barrier(8), []

    def ask():
        start.wait()
        wrong.extend(row for row in range(11) if not np.array_equal(targets.view(row, 2), views[row, 2]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_no_more_than_one_file_is_open_for_each_shard(tmp_path, photos):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the system does not list open files")
    write_store(tmp_path / "store", photos, of_each=1)
    targets = TeacherStore.open(tmp_path / "store").aligned(photos)
    before = len(os.listdir("/proc/self/fd"))
    targets.image_features(np.arange(11), np.zeros(11, int))
    targets.text_features(np.arange(33))
    assert len(os.listdir("/proc/self/fd")) - before <= 11


# Names


def test_names_are_as_short_as_tells_pictures_apart(tmp_path):
    def named(*places):
        return picture_names(Records.of(ImageText(place, ("a",)) for place in places))

    assert named("/d/a.jpg", "/d/b.jpg") == (["a.jpg", "b.jpg"], 1)
    assert named("/d/x/a.jpg", "/d/y/a.jpg", "/c.jpg") == (["x/a.jpg", "y/a.jpg", "/c.jpg"], 2)
    assert named("/d/a.jpg", "/d/a.jpg") == (["a.jpg", "a.jpg"], 1)
    tars = tar_member("s/0.tar", "p/1.jpg", 512, 9), tar_member("s/1.tar", "p/1.jpg", 512, 9)
    assert named(*tars) == (["0.tar/p/1.jpg", "1.tar/p/1.jpg"], 3)
    cells = arrow_row("c/0.arrow", 7, "image"), arrow_row("c/1.arrow", 7, "image")
    assert named(*cells) == (["0.arrow/7", "1.arrow/7"], 2)
    moved = Records.of([ImageText("/elsewhere/x/a.jpg", ("a",))])
    assert names_with(moved, 2) == ["x/a.jpg"]
    assert names_with(moved, 9) == ["/elsewhere/x/a.jpg"]


def test_names_do_not_depend_on_how_the_data_are_named(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    spellings = [("./1.jpg", "sub/1.jpg"), ("1.jpg", "./sub/1.jpg"), ("../d/1.jpg", str(tmp_path / "d/sub/1.jpg"))]
    for places in spellings:
        names = picture_names(Records.of(ImageText(place, ("a",)) for place in places))
        assert names == (["d/1.jpg", "sub/1.jpg"], 2)


def test_folders_with_equal_file_names_are_told_apart_and_may_move(tmp_path):
    names = ["one/0.jpg", "two/0.jpg", "one/1.jpg", "two/1.jpg", "three/2.jpg"]
    photos = pictures(tmp_path / "photos", names)
    _, images, _ = write_store(tmp_path / "store", photos, of_each=2)
    moved = pictures(tmp_path / "moved", names)
    found = TeacherStore.open(tmp_path / "store").aligned(moved).image_features(np.arange(5), np.zeros(5, int))
    assert np.allclose(found[0], images[0][:, 0], atol=2**-11)


def test_members_of_tars_are_found_when_the_tar_is_made_again(tmp_path):
    def shard(folder, first):
        """The records of a tar whose members stand behind `first` bytes of another one."""
        folder.mkdir()
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, data in (("first", b"x" * first), ("k/0.jpg", b"zero"), ("k/1.jpg", b"one")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with tarfile.open(folder / "0.tar") as tar:
            found = [one for one in tar if one.name.endswith("jpg")]
        file = str(folder / "0.tar")
        return Records.of(
            ImageText(tar_member(file, one.name, one.offset_data, one.size), (one.name,)) for one in found
        )

    before, after = shard(tmp_path / "before", 10), shard(tmp_path / "after", 5000)
    folder = tmp_path / "store"
    folder.mkdir()
    names, name_parts = picture_names(before)
    manifest = StoreManifest("tars", "f", SETTINGS, (BIG,), 1, COMMAND, name_parts)
    lines = [
        PictureLine(name, len(data), zlib.crc32(data), one.captions)
        for name, one, data in zip(names, before, (b"zero", b"one"), strict=True)
    ]
    write_shard(folder, "teacher-000000", lines, np.zeros((2, 3, 8)), [rows_of(0, 2, 3, 8)], [rows_of(1, 2, 8)], "int8")
    finish(folder, manifest)
    store = TeacherStore.open(folder)
    assert len(store.aligned(after)) == len(store.aligned(before)) == 2


def test_names_that_are_no_utf8_are_kept(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    try:
        photos = pictures(tmp_path / "photos", ["a.jpg"])
        Path(photos.image(0)).rename(tmp_path / "photos" / name)
    except OSError:
        pytest.skip("the file system takes no such name")
    photos = Records.of([ImageText(str(tmp_path / "photos" / name), ("a dog",))])
    write_store(tmp_path / "store", photos)
    assert len(TeacherStore.open(tmp_path / "store").aligned(photos)) == 1


def test_thousands_of_pictures_are_found(tmp_path):
    count = 5000
    photos = Records.of(ImageText(f"/none/{n % 50}/{n // 50}.jpg", (f"c {n}", f"d {n % 7}")) for n in range(count))
    views, _, _ = write_store(tmp_path / "store", photos, of_each=shard_pictures(count))
    order = np.random.default_rng(1).permutation(count)
    targets = TeacherStore.open(tmp_path / "store").aligned(photos.picked(order))
    assert all(np.array_equal(targets.view(row, 0), views[order[row], 0]) for row in range(count))


# What is refused


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="is no store of teachers' embeddings") as error:
            TeacherStore.open(folder)
        assert "cliplet distil-store" in error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:500], "the manifest is damaged"),
        (
            lambda content: content.replace(b'"cliplet-teacher-store"', b'"cliplet-pack"'),
            "its format is 'cliplet-pack'",
        ),
        (lambda content: content.replace(b'"version": 1', b'"version": 2'), "the store is of version 2; this cliplet"),
        (lambda content: content.replace(b'"augmentations": 3', b'"augmentations": "3"'), "settings.augmentations"),
        (lambda content: content.replace(b"teacher-000001.tar", b"../../secret.tar"), r"shards\.1\.name"),
        (lambda content: content.replace(b"teacher-000001.tar", b"teacher-000007.tar"), "it names 3 of 3 shards"),
        (lambda content: content.replace(b'"flip": 0.5', b'"blur": 0.5'), r"settings\.augment\.blur"),
        (lambda content: content.replace(b'"source"', b'"sauce"'), "source"),
        (lambda content: b"[]", "the manifest is damaged"),
    ],
)
def test_a_damaged_or_newer_manifest_is_refused(tmp_path, photos, change, message):
    write_store(tmp_path / "store", photos)
    file = tmp_path / "store/manifest.json"
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    with pytest.raises(DataError, match=message):
        TeacherStore.open(tmp_path / "store")


def test_an_unfinished_store_says_how_to_go_on(tmp_path, photos):
    write_store(tmp_path / "store", photos, shards=2, finished=False)
    with pytest.raises(DataError, match="unfinished: 2 of 3 shards are there") as error:
        TeacherStore.open(tmp_path / "store")
    assert COMMAND in error.value.hint
    manifest = StoreManifest.read(tmp_path / "store")
    assert done_shards(tmp_path / "store", manifest) == ["teacher-000000", "teacher-000001"]
    with pytest.raises(DataError, match="1 of 3 shards are missing"):
        finish(tmp_path / "store", manifest)
    assert not StoreManifest.read(tmp_path / "store").complete


def test_a_shard_without_its_index_is_not_done(tmp_path, photos):
    write_store(tmp_path / "store", photos, finished=False)
    (tmp_path / "store/teacher-000001.jsonl").unlink()
    manifest = StoreManifest.read(tmp_path / "store")
    assert done_shards(tmp_path / "store", manifest) == ["teacher-000000", "teacher-000002"]


def test_a_store_without_one_picture_that_could_be_read_is_not_finished(tmp_path, photos):
    with pytest.raises(DataError, match="not one of 11 pictures could be read"):
        write_store(tmp_path / "store", photos, bad=range(11))
    assert not StoreManifest.read(tmp_path / "store").complete


def test_a_killed_writer_leaves_whole_shards_only(tmp_path):
    code = """
import numpy as np, sys
from pathlib import Path
from cliplet.data.teacher_shards import PictureLine, write_shard
rows, views = np.ones((200, 4, 256), np.float32), np.zeros((200, 4, 8))
lines = [PictureLine(f"{n}.jpg", 1, 1, ("a",)) for n in range(200)]
number = 0
print("begun", flush=True)
while True:
    write_shard(Path(sys.argv[1]), f"teacher-{number:06d}", lines, views, [rows], [rows[0, :1]], "float16")
    number += 1
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    writer.stdout.readline()
    limit = time.monotonic() + 60
    while not (tmp_path / "teacher-000003.tar").exists() and time.monotonic() < limit:
        time.sleep(0.002)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    done = sorted(tmp_path.glob("*.jsonl"))
    assert len(done) >= 3
    for index in done:
        assert len(index.read_text().splitlines()) == 200
        assert members(tmp_path, index.stem)["image0.npy"].shape == (200, 4, 256)


def cut(file):
    """Takes the end away."""
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)


def flip(file):
    """Changes one bit in the middle; size and time of change stay."""
    data, status = bytearray(file.read_bytes()), file.stat()
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["teacher-000001.tar", "teacher-000001.jsonl"])
def test_a_file_that_is_missing_cut_or_changed_is_refused_by_name(tmp_path, photos, name):
    write_store(tmp_path / "store", photos)
    file = tmp_path / "store" / name
    whole = file.read_bytes()
    stamps = tmp_path / "store/.verified.json"
    stamps.unlink()  # as in a copy of the store
    for harm, message in (
        (cut, r"has [\d,]+ bytes and not|its sha256"),
        (flip, "its sha256"),
        (Path.unlink, "is missing"),
    ):
        harm(file)
        with pytest.raises(DataError, match=f"{name}: .*({message})") as error:
            TeacherStore.open(tmp_path / "store")
        assert COMMAND in error.value.hint
        file.write_bytes(whole)
    TeacherStore.open(tmp_path / "store")


def test_what_was_seen_to_be_whole_is_read_again_only_when_it_has_changed(tmp_path, photos):
    write_store(tmp_path / "store", photos)
    file = tmp_path / "store/teacher-000002.tar"
    flip(file)  # which cannot be seen from outside
    TeacherStore.open(tmp_path / "store")
    os.utime(file)
    with pytest.raises(DataError, match=r"teacher-000002\.tar: is damaged"):
        TeacherStore.open(tmp_path / "store")


def test_a_shard_of_another_shape_than_the_manifest_says_is_refused(tmp_path, photos):
    write_store(tmp_path / "store", photos)
    file = tmp_path / "store/manifest.json"
    file.write_text(file.read_text().replace('"embed_dim": 8', '"embed_dim": 9'))
    with pytest.raises(DataError, match=r"teacher-000000\.tar: cannot be used: image0 is float16 \(4, 3, 8\)"):
        TeacherStore.open(tmp_path / "store").aligned(photos).view(0, 0)


@pytest.fixture
def store(tmp_path, photos):
    write_store(tmp_path / "store", photos)
    return TeacherStore.open(tmp_path / "store")


def test_the_stores_own_teachers_and_views_are_right(store):
    store.refuse_others([("small", ""), ("big", "a" * 64)], AugmentConfig())
    store.refuse_others([("small", "b" * 64), ("big", "")], None)  # one of the two does not know the weights
    store.refuse_others([("elsewhere/big", "a" * 64), ("small", "")], AugmentConfig())  # a folder that has moved
    store.refuse_others([], AugmentConfig())
    store.refuse_others([], None)


def test_every_difference_of_teachers_and_views_is_named(store):
    with pytest.raises(DataError) as error:
        store.refuse_others([("big", "b" * 64), ("other", "")], AugmentConfig(flip=0.0, crop_scale=(0.5, 1.0)))
    assert error.value.message.split("\n")[1:] == [
        "teacher big: has other weights by now than those the store was made with",
        "teacher other: is not in the store",
        "teacher small: is in the store, and not asked for",
        "augment.crop_scale: [0.9, 1.0] in the store -> [0.5, 1.0] in the run",
        "augment.flip: 0.5 in the store -> 0.0 in the run",
    ]
    assert COMMAND in error.value.hint
    with pytest.raises(DataError) as error:
        store.refuse_others([("big", "a" * 64)], None)
    assert error.value.message.split("\n")[1:] == ["teacher small: is in the store, and not asked for"]
    with pytest.raises(DataError, match=r"teacher big: is not in the store"):
        store.refuse_others([("big", ""), ("big", ""), ("small", "")], None)


def test_pictures_that_are_not_in_the_store_are_counted_and_named(store, photos, tmp_path):
    more = pictures(tmp_path / "photos", ["0.jpg", "new.jpg", "newer.jpg"])
    with pytest.raises(DataError, match=r"2 of 3 pictures are not in the store, the first .*new\.jpg") as error:
        store.aligned(more)
    assert "split train of photos" in error.value.hint and "--data.train-split train" in error.value.hint


def test_another_data_set_is_told_from_one_with_some_pictures_more(store, tmp_path):
    others = pictures(tmp_path / "others", ["x.jpg", "y.jpg"])
    with pytest.raises(DataError, match="is a store of other pictures: not one of 2 is in it"):
        store.aligned(others)


def test_two_pictures_of_one_name_are_not_taken_for_the_one_in_the_store(store, photos, tmp_path):
    both = Records.of([photos[0], ImageText(str(tmp_path / "elsewhere/0.jpg"), photos[0].captions)])
    with pytest.raises(DataError, match=r"1 of 2 pictures are not in the store, the first .*elsewhere/0\.jpg"):
        store.aligned(both)


def test_captions_that_are_not_in_the_store_are_counted_and_named(store, photos):
    # "1" is a caption in the store, but of another picture
    changed = Records.of([photos[1], ImageText(photos.image(0), ("0", "1", "new"))])
    with pytest.raises(DataError, match=r"2 captions are not in the store, the first '1' of .*0\.jpg"):
        store.aligned(changed)


def test_another_picture_of_the_same_name_is_refused(store, photos):
    file = Path(photos.image(7))
    data = file.read_bytes()
    targets = store.aligned(photos)
    targets.check(7, data)
    for other in (data[:-1], data + b"x", data[:-1] + b"x", b""):
        with pytest.raises(DataError, match=r"7\.jpg: is another picture than the one of that name") as error:
            targets.check(7, other)
        assert COMMAND in error.value.hint
    file.write_bytes(data[::-1])
    with pytest.raises(DataError, match=r"7\.jpg: is another picture"):
        store.aligned(photos)
    file.unlink()
    store.aligned(photos)  # the loader will say that it is gone


def test_the_reading_half_needs_no_torch(run_python, tmp_path):
    code = "import sys, cliplet.data.teacher_store; assert 'torch' not in sys.modules"
    assert run_python(code, tmp_path).returncode == 0


def test_a_view_has_as_many_numbers_as_transforms_gives():
    from cliplet.data.transforms import VIEW_NUMBERS

    assert teacher_shards.VIEW_NUMBERS == VIEW_NUMBERS
