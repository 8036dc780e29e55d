"""Making a store of teachers' embeddings: it holds what the teachers give, whoever interrupts it and however often."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cliplet.cli import main
from cliplet.config import (
    AugmentConfig,
    DataConfig,
    DistilConfig,
    PreprocessConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
)
from cliplet.data import teacher_shards
from cliplet.data.images import decode
from cliplet.data.pack_plan import Interrupted
from cliplet.data.readers import read_source
from cliplet.data.teacher_store import StoreManifest, StoreSettings, TeacherStore
from cliplet.data.transforms import View, apply_view
from cliplet.errors import ConfigError, DataError, ModelError, TrainingError
from cliplet.models import DualEncoder
from cliplet.recipes.recipe import RECIPES, Recipe
from cliplet.training import store_making
from cliplet.training.store_making import make_store

COUNT, A_SHARD, VIEWS = 11, 4, 3
AUGMENT = AugmentConfig(crop_scale=(0.2, 0.8), brightness=0.3, saturation=0.5)
BAD = 6  # the row of a picture that is none


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(teacher_shards, "SHARD_PICTURES", A_SHARD)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, captions):
    """Karpathy's JSON over smooth pictures of several sizes and kinds, of which one is none; two captions each, the
    second of which every third has."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    images = []
    for number in range(COUNT):
        small = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        name = f"{number}.{'png' if number % 3 else 'jpg'}"
        small.resize((200 + 10 * number, 150), Image.Resampling.BICUBIC).save(folder / name)
        if number == BAD:
            (folder / name).write_bytes(b"no picture")
        sentences = [{"raw": f"{captions[number % 5]} {number}"}, {"raw": f"a picture of kind {number % 3}"}]
        images.append({"filename": name, "split": "train", "sentences": sentences})
    images.append({"filename": "1.png", "split": "val", "sentences": [{"raw": "not asked for"}]})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture(scope="module")
def wide_model(tiny_config, captions, tmp_path_factory):
    """A second teacher: pictures of 48 pixels, width 24."""
    torch.manual_seed(1)
    config = tiny_config.model_copy(update={"embed_dim": 24, "preprocess": PreprocessConfig(image_size=48)})
    folder = tmp_path_factory.mktemp("wide") / "model"
    DualEncoder.build(config, captions).save_pretrained(folder)
    return folder


def settings(**changes):
    values = {"augmentations": VIEWS - 1, "whole": True, "augment": AUGMENT, "storage": "float16"}
    return StoreSettings(**{**values, "split": "train", "seed": 7, "samples": None, **changes})


def make(photos, out, teachers, **changes):
    names = ("images", "device", "precision", "workers", "say", "tell", "command")
    options = {name: changes.pop(name) for name in names if name in changes}
    options = {"device": "cpu", "precision": "fp32", "workers": 2, **options}
    return make_store(str(photos), out, list(map(str, teachers)), settings(**changes), **options)


@pytest.fixture(scope="module")
def store(photos, saved_model, wide_model, tmp_path_factory):
    """A complete store of two teachers, to be read only."""
    out = tmp_path_factory.mktemp("made") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_shards, "SHARD_PICTURES", A_SHARD)
        return make(photos, out, [saved_model, wide_model]).manifest, out


def content(folder):
    """Every file of a store by name, but for what only saves time."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def arrays(folder, number):
    """The arrays of a shard by name, read with tarfile and NumPy alone."""
    stem = f"teacher-{number:06d}"
    with tarfile.open(folder / f"{stem}.tar") as tar:
        return {
            member.name.removeprefix(f"{stem}.").removesuffix(".npy"): np.load(
                io.BytesIO(tar.extractfile(member).read()), allow_pickle=False
            )
            for member in tar
        }


# -- what is stored


def expected_features(model, place, views):
    """What a model gives for views of a picture, each computed by itself."""
    size = model.config.preprocess.image_size
    pixels = decode(Path(place).read_bytes(), int(size * 1.5), place).array()
    with torch.no_grad():
        return np.concatenate(
            [model.encode_image(apply_view(pixels, View.of(one), size).permute(2, 0, 1)[None]).numpy() for one in views]
        )


def test_a_store_holds_each_teachers_features_of_each_view_and_caption(store, photos, saved_model, wide_model):
    _, folder = store
    records = read_source(str(photos)).select("train")
    models = [DualEncoder.from_pretrained(one) for one in (saved_model, wide_model)]
    for number in range(3):
        rows = range(number * A_SHARD, min(COUNT, (number + 1) * A_SHARD))
        found = arrays(folder, number)
        index = [json.loads(line) for line in (folder / f"teacher-{number:06d}.jsonl").read_text().splitlines()]
        assert [line["name"] for line in index] == [Path(records.image(row)).name for row in rows]
        texts = list(dict.fromkeys(text for row in rows for text in records[row].captions))
        for teacher, model in enumerate(models):
            for at, row in enumerate(rows):
                if row == BAD:
                    assert not found[f"image{teacher}"][at].any() and not found["views"][at].any()
                    continue
                expected = expected_features(model, records.image(row), found["views"][at])
                np.testing.assert_allclose(found[f"image{teacher}"][at], expected, atol=1e-3)
                assert np.abs(np.diff(expected, axis=0)).max() > 5e-3  # the views differ, so their order counts
                data = Path(records.image(row)).read_bytes()
                assert (index[at]["bytes"], index[at]["crc32"]) == (len(data), zlib.crc32(data))
            with torch.no_grad():
                text_CT = [model.encode_text(*map(torch.from_numpy, model.tokenizer([text]))).numpy() for text in texts]
            np.testing.assert_allclose(found[f"text{teacher}"], np.concatenate(text_CT), atol=1e-3)


def test_views_are_drawn_from_the_seed_and_the_place_in_the_split(store):
    _, folder = store
    stored_views = np.concatenate([arrays(folder, number)["views"] for number in range(3)])
    assert stored_views.shape == (COUNT, VIEWS, 8) and stored_views.dtype == np.float32
    for row in set(range(COUNT)) - {BAD}:
        draws = np.random.default_rng((7, row)).random((VIEWS - 1, 8))
        area = (stored_views[row, :2, 2] - stored_views[row, :2, 0]) * (
            stored_views[row, :2, 3] - stored_views[row, :2, 1]
        )
        np.testing.assert_allclose(area, 0.2 + draws[:, 0] * 0.6, rtol=1e-5)
        np.testing.assert_array_equal(stored_views[row, :2, 4], draws[:, 4] < 0.5)
        np.testing.assert_allclose(stored_views[row, :2, 5], 1 + (2 * draws[:, 5] - 1) * 0.3, rtol=1e-6)
        np.testing.assert_array_equal(stored_views[row, :2, 6], 1)
        np.testing.assert_allclose(stored_views[row, :2, 7], 1 + (2 * draws[:, 7] - 1) * 0.5, rtol=1e-6)
        np.testing.assert_array_equal(stored_views[row, 2], [0, 0, 1, 1, 0, 1, 1, 1])  # the whole picture


def test_the_store_opens_for_the_records_it_was_made_of(store, photos, saved_model):
    manifest, folder = store
    records = read_source(str(photos)).select("train")
    targets = TeacherStore.open(folder).aligned(records)
    assert (targets.views, targets.whole, len(targets)) == (VIEWS, 2, COUNT)
    assert list(targets.reasons) == [BAD]
    teacher = DualEncoder.from_pretrained(saved_model)
    image_BT, _ = targets.image_features(np.array([9, 2]), np.array([1, 2]))
    for at, (row, number) in enumerate(((9, 1), (2, 2))):
        expected = expected_features(teacher, records.image(row), [targets.view(row, number)])
        np.testing.assert_allclose(image_BT[at], expected[0], atol=1e-3)
    assert manifest.left_out == 1 and [shard.pictures for shard in manifest.shards] == [4, 4, 3]


def test_int8_is_off_by_half_a_step_at_most(store, photos, saved_model, wide_model, tmp_path):
    make(photos, tmp_path / "store", [saved_model], storage="int8")
    _, exact = store
    for number in range(3):
        coarse, fine = arrays(tmp_path / "store", number), arrays(exact, number)
        for name in ("image0", "text0"):
            assert coarse[name].dtype == np.int8
            scale = coarse[f"{name}.scale"][..., None]
            assert np.abs(coarse[name] * scale - fine[name].astype(np.float32)).max() <= scale.max() / 2 + 5e-4


def test_a_bad_picture_is_written_down_and_stops_nothing(store, photos):
    _, folder = store
    (entry,) = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert entry["where"].endswith(f"{BAD}.jpg") and entry["reason"]
    assert str(photos) not in entry["reason"]


def test_where_not_one_picture_can_be_read_there_is_no_store(photos, saved_model, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    content = json.loads((photos / "dataset.json").read_text())
    for entry in content["images"]:
        (data / entry["filename"]).write_bytes(b"nothing")
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="not one of 11 pictures could be read"):
        make(data, tmp_path / "store", [saved_model])
    assert len((tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()) == COUNT
    with pytest.raises(DataError, match="3 of 3 shards"):
        TeacherStore.open(tmp_path / "store")


# -- going on


def test_a_store_that_was_interrupted_goes_on_to_the_same_bytes(store, photos, saved_model, wide_model, tmp_path):
    out = tmp_path / "store"

    def interrupted(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="was interrupted") as caught:
        make(photos, out, [saved_model, wide_model], tell=interrupted)
    assert "the same command goes on" in caught.value.hint
    assert (out / "teacher-000000.jsonl").is_file() and not (out / "teacher-000001.tar").exists()
    assert not StoreManifest.read(out).complete
    before = (out / "teacher-000000.tar").stat().st_mtime_ns
    told = []
    result = make(photos, out, [saved_model, wide_model], tell=lambda *counts: told.append(counts), workers=1)
    assert (out / "teacher-000000.tar").stat().st_mtime_ns == before
    assert result.computed == 7 and told[-1] == (7, 7)
    assert content(out) == content(store[1])


def test_what_is_complete_is_left_as_it_is(store, photos, saved_model, wide_model, monkeypatch):
    monkeypatch.setattr(store_making, "open_teacher", None)  # no teacher is opened for it
    before = content(store[1])
    result = make(photos, store[1], [saved_model, wide_model])
    assert result.computed == 0 and result.quarantine is None and result.manifest == store[0]
    assert content(store[1]) == before


def test_a_complete_store_that_was_damaged_is_mended(store, photos, saved_model, wide_model, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_shards, "SHARD_PICTURES", A_SHARD)
    _, whole = store
    broken = shutil.copytree(whole, tmp_path / "store")
    tar = broken / "teacher-000001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 4
    tar.write_bytes(data)
    (broken / "teacher-000002.jsonl").unlink()
    with pytest.raises(DataError, match=r"is damaged|is missing") as caught:
        TeacherStore.open(broken)
    assert "mends it" in caught.value.hint
    said = []
    result = make(photos, broken, [saved_model, wide_model], say=said.append)
    assert "teacher-000001.tar is damaged" in said[0] and "teacher-000002.jsonl is missing" in said[0]
    assert result.computed == sum(shard.pictures for shard in result.manifest.shards[1:3])
    assert content(broken) == content(whole)
    TeacherStore.open(broken)


def test_each_difference_from_what_was_begun_is_named(store, photos, saved_model, wide_model, tmp_path):
    def refusal(teachers, data=photos, **changes):
        with pytest.raises(DataError, match="was begun otherwise") as caught:
            make(data, store[1], teachers, **changes)
        return caught.value.message

    both = [saved_model, wide_model]
    said = refusal(both, augmentations=4, storage="int8", augment=AUGMENT.model_copy(update={"flip": 0.0}))
    assert "--augmentations was 2 and is 4" in said and "--storage was float16 and is int8" in said
    assert "augment.flip: 0.5 -> 0.0" in said and "seed" not in said and "brightness" not in said
    assert f"the teachers were {saved_model}, {wide_model} and are {wide_model}" in refusal([wide_model])
    assert "the precision was fp32 and is bf16" in refusal(both, precision="bf16")
    other = tmp_path / "other"
    other.mkdir()
    text = (photos / "dataset.json").read_text().replace("a picture of kind 1", "a picture of another kind")
    (other / "dataset.json").write_text(text)
    assert "has other pictures or captions" in refusal(both, data=other / "dataset.json", images=photos)


def test_a_teacher_with_other_weights_is_refused(photos, model_copy, tmp_path):
    make(photos, tmp_path / "store", [model_copy], samples=4)
    weights = model_copy / "model.safetensors"
    model = DualEncoder.from_pretrained(model_copy)
    weights.unlink()
    with torch.no_grad():
        model.temperature.log_scale.add_(0.1)
    model.save_pretrained(model_copy)
    with pytest.raises(DataError, match=f"the teacher {model_copy} has other weights by now"):
        make(photos, tmp_path / "store", [model_copy], samples=4)


# -- what cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentations": 0, "whole": False}, "there are no views to store"),
        ({"augmentations": -1}, "--augmentations is -1"),
        ({"samples": 0}, "--samples is 0"),
        ({"workers": 0}, "--workers is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message, photos, saved_model, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(photos, tmp_path / "store", [saved_model], **changes)
    assert not (tmp_path / "store").exists()


def test_teachers_that_cannot_be_are_refused(photos, saved_model, tmp_path):
    with pytest.raises(ConfigError, match="no teacher is named"):
        make(photos, tmp_path / "store", [])
    with pytest.raises(ConfigError, match="named twice"):
        make(photos, tmp_path / "store", [saved_model, saved_model])
    with pytest.raises(ModelError, match="nowhere"):
        make(photos, tmp_path / "store", [tmp_path / "nowhere"])
    with pytest.raises(TrainingError, match="cannot be used") as caught:
        make(photos, tmp_path / "store", [saved_model], device="cuda:77")
    assert caught.value.hint == "Use --device auto."
    with pytest.raises(DataError, match="no split 'tast'"):
        make(photos, tmp_path / "store", [saved_model], split="tast")
    assert not (tmp_path / "store").exists()


def test_a_store_gets_between_no_other_files(photos, saved_model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "teacher-000000.tar").write_text("mine")
    for out, message in ((tmp_path / "file", "is a file"), (tmp_path / "full", "holds other files"), (photos, "data")):
        with pytest.raises(DataError, match=message):
            make(photos, out, [saved_model])
    assert not (photos / "manifest.json").exists()


def test_two_commands_do_not_write_the_same_store(photos, saved_model, tmp_path):
    def another(done, total):
        with pytest.raises(DataError, match="another command is writing there"):
            make(photos, tmp_path / "store", [saved_model], samples=4)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        make(photos, tmp_path / "store", [saved_model], tell=another, samples=4)


@pytest.mark.skipif(os.name == "nt" or (os.geteuid() == 0 and not Path("/dev/full").exists()), reason="no /dev/full")
def test_a_full_disk_is_explained(photos, saved_model, tmp_path, monkeypatch):
    def full(*arguments):
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")

    monkeypatch.setattr(store_making, "write_shard", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left") as caught:
        make(photos, tmp_path / "store", [saved_model])
    assert "the same command goes on" in caught.value.hint


# -- the command


def test_the_command_says_what_was_stored_and_what_comes_next(photos, saved_model, tmp_path, capsys):
    out = tmp_path / "a store"
    words = ["distil-store", str(photos), str(out), "--teacher", str(saved_model), "--augmentations", "2"]
    words += ["--augment.crop-scale", "0.5", "1.0", "--augment.flip", "0", "--whole", "--storage", "int8"]
    assert main([*words, "--device", "cpu", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "10 pictures with 3 views each, " in said and "1 teacher, 3 shards; 1 picture left out" in said
    assert "GB per million pictures" in said and "pictures/s" in said and "1 bad records" in said
    # What the store has as the recipe has it needs no flag.
    assert said.strip().endswith(
        f"next: cliplet train student --data.path {photos} --distil.store '{out}' --augment.flip 0.0"
    )
    manifest = StoreManifest.read(out)
    augment = AugmentConfig(crop_scale=(0.5, 1.0), flip=0.0)
    assert manifest.settings == StoreSettings(2, True, augment, "int8", "train", 3, None)
    assert manifest.command.startswith(f"cliplet distil-store {photos} ")
    assert main([*words, "--device", "cpu", "--seed", "3"]) == 0
    assert "complete already; nothing was done" in capsys.readouterr().out


def test_a_recipe_gives_what_is_not_said(photos, saved_model, tmp_path, capsys, monkeypatch):
    learns = RunConfig(
        data=DataConfig(train_split="train+val"),
        augment=AugmentConfig(crop_scale=(0.3, 0.6), flip=0.1),
        distil=DistilConfig(teachers=(str(saved_model),)),
        train=TrainConfig(stages=(StageConfig(augment=False), StageConfig())),
    )
    monkeypatch.setitem(RECIPES, "learns", Recipe("learns", lambda name: learns, 1.0, ""))
    words = ["distil-store", str(photos), str(tmp_path / "store"), "--samples", "2", "--recipe", "learns"]
    assert main([*words, "--augment.flip", "0.2", "--augmentations", "1", "--device", "cpu"]) == 0
    manifest = StoreManifest.read(tmp_path / "store")
    # One of its stages sees whole pictures, so these are stored too.
    augment = AugmentConfig(crop_scale=(0.3, 0.6), flip=0.2)
    assert manifest.settings == StoreSettings(1, True, augment, "float16", "train+val", 0, 2)
    assert [info.name for info in manifest.teachers] == [str(saved_model)]
    said = capsys.readouterr().out
    assert f"next: cliplet train learns --data.path {photos} --distil.store {tmp_path / 'store'} " in said
    # What comes next is accepted: what the store has otherwise than the recipe stands there, and no more.
    assert said.strip().endswith(f"{tmp_path / 'store'} --data.samples 2 --augment.flip 0.2")


def test_after_a_store_of_whole_pictures_comes_a_run_without_augmentation(photos, saved_model, tmp_path, capsys):
    words = ["distil-store", str(photos), str(tmp_path / "store"), "--teacher", str(saved_model), "--whole"]
    assert main([*words, "--augmentations", "0", "--recipe", "finetune", "--device", "cpu"]) == 0
    flags = "--train.stages.0.augment False --train.stages.1.augment False"
    assert capsys.readouterr().out.strip().endswith(flags)


def test_a_teacher_has_one_name_however_it_is_spelled(photos, saved_model, tmp_path):
    with pytest.raises(ConfigError, match="named twice"):
        make(photos, tmp_path / "store", [saved_model, f"{saved_model}/"])


def test_a_store_is_no_data_set(store):
    with pytest.raises(DataError, match="is a store of teachers' embeddings and no data set") as caught:
        read_source(str(store[1]))
    assert "--distil.store" in caught.value.hint


def test_views_that_are_all_alike_are_told_of(photos, saved_model, tmp_path):
    said = []
    still = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    make(photos, tmp_path / "store", [saved_model], augment=still, augmentations=2, samples=2, say=said.append)
    assert any("all alike" in line for line in said)


def test_mistakes_end_in_two_lines(tmp_path, capsys):
    assert main(["distil-store", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    assert "error: no teacher is named" in capsys.readouterr().err
    assert main(["distil-store", "data", "out", "--recipe", "finetun"]) == 1
    assert "Did you mean finetune" in capsys.readouterr().err


# -- killed, and in ranks

# The command line with small shards; where KILL_AT is set, it kills itself in the midst of writing that file.
COMMAND = """
import os, signal, sys
from contextlib import contextmanager
from cliplet.data import teacher_shards

begun, original = 0, teacher_shards.replacing

@contextmanager
def replacing(file):
    global begun
    begun += 1
    with original(file) as stream:
        yield stream
        if begun == int(os.environ.get("KILL_AT", "0")):
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

teacher_shards.SHARD_PICTURES, teacher_shards.replacing = 4, replacing
from cliplet.cli import main
sys.exit(main(sys.argv[1:]))
"""


def words(photos, out, teachers):
    """The command line of the store that all tests here compare with."""
    named = [word for teacher in teachers for word in ("--teacher", str(teacher))]
    augment = ["--augment.crop-scale", "0.2", "0.8", "--augment.brightness", "0.3", "--augment.saturation", "0.5"]
    options = ["--augmentations", "2", "--whole", "--seed", "7", "--device", "cpu", "--precision", "fp32"]
    return ["distil-store", str(photos), str(out), *named, *options, *augment]


def shards(folder):
    """What a store holds, but for the command that made it."""
    return {name: data for name, data in content(folder).items() if name.startswith("teacher-")}


@pytest.mark.slow
def test_a_store_that_was_killed_goes_on_to_the_same_bytes(store, photos, saved_model, wide_model, tmp_path):
    out = tmp_path / "store"
    command = [sys.executable, "-c", COMMAND, *words(photos, out, [saved_model, wide_model])]

    def run(kill_at):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL_AT": str(kill_at)}
        return subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode

    assert run(1) == -signal.SIGKILL  # in the manifest
    assert not (out / "manifest.json").exists()
    assert run(5) == -signal.SIGKILL  # in the index of the second shard: its tar is whole, but the shard not done
    assert (out / "teacher-000001.tar").exists() and not (out / "teacher-000001.jsonl").exists()
    first = (out / "teacher-000000.tar").stat().st_mtime_ns
    assert run(4) == -signal.SIGKILL  # in the tar of the third
    assert (out / "teacher-000001.jsonl").exists() and (out / "teacher-000002.tar.part").exists()
    assert not StoreManifest.read(out).complete
    assert run(0) == 0
    assert (out / "teacher-000000.tar").stat().st_mtime_ns == first
    assert shards(out) == shards(store[1]) and StoreManifest.read(out).shards == store[0].shards
    assert content(out).keys() == content(store[1]).keys()


@pytest.mark.slow
def test_two_ranks_make_the_same_store(store, photos, saved_model, wide_model, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, processes = tmp_path / "store", []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", COMMAND, *words(photos, out, [saved_model, wide_model])]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "10 pictures with 3 views each" in said[0] and said[1] == ""
    assert shards(out) == shards(store[1])
    manifest = StoreManifest.read(out)
    assert manifest.complete and manifest.shards == store[0].shards
    assert content(out)["quarantine.jsonl"] == content(store[1])["quarantine.jsonl"]
