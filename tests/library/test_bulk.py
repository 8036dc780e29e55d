"""Indexing over Ray: workers that die, a driver that dies, machines that lack the model or the folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliplet.data.quarantine import Quarantine
from cliplet.errors import ConfigError, DataError, ModelError
from cliplet.library import bulk
from cliplet.library.bulk import RayIndexing, _Taking
from cliplet.library.bulk_worker import Job, Model, Reading, Task, model_files, opened, tasks_of, tasks_table
from cliplet.library.identity import identity_of
from cliplet.library.indexing import Batch, Counts, Indexing
from cliplet.library.lance_rows import Before
from cliplet.library.records import Identity
from cliplet.library.scan import Seen
from cliplet.library.store import create_store, open_store
from cliplet.runtime.identity import features_hashes

from .conftest import paint
from .quick import workers_here
from .stores import s3_server


def index(place, folder, encoder, kind=Indexing, tell=lambda done, total: None, captions=None, upgrade=False):
    """One run of `cliplet index`, but for calibration."""
    store = create_store(place)
    with store.writing(print) as writer:
        writer.begin(identity_of(encoder), upgrade)
        writer.add_roots([str(folder)])
        run = kind(writer, lambda: encoder, Quarantine(None), tell)
        run.run([str(folder)], captions)
        if upgrade:
            writer.finish(lambda: encoder.encode_text(["a boat"]))
    store.close()
    return run.counts


def rows(place):
    """Path, number, captions and vector of each picture, by name; fails where one is there twice."""
    store = open_store(place)
    pictures = store.newest(10_000)
    assert len(pictures) == len(store) == len({one.path for one in pictures}) == len({one.id for one in pictures})
    features_ND = store.features([one.id for one in pictures])
    return {one.path: (one, vector_D) for one, vector_D in zip(pictures, features_ND, strict=True)}


def same(place, other):
    """Whether two libraries hold the same pictures with the same vectors."""
    left, right = rows(place), rows(other)
    assert left.keys() == right.keys()
    for path, (one, vector_D) in left.items():
        other, other_D = right[path]
        assert vector_D @ other_D > 0.9999 * np.linalg.norm(vector_D) * np.linalg.norm(other_D)
        assert (one.width, one.format, one.captions) == (other.width, other.format, other.captions)


@pytest.fixture
def job(tmp_path, encoder):
    """For a worker that is called here, and a writer that takes what it gives."""
    store = create_store(f"lance:{tmp_path / 'tables'}")
    with store.writing(print) as writer:
        writer.begin(identity_of(encoder))
        writer.pictures.opened()
        folder = Path(encoder.source)
        model = Model(str(folder), features_hashes(folder), "onnxruntime", "fp32", None, True)
        yield Job(model, writer.place, writer.pictures.name, writer.pictures.version, frozenset()), writer


def taking(writer, seens):
    run = RayIndexing(writer, None, Quarantine(None), counts=Counts())
    return run, _Taking(run, writer, Batch(writer, run.counts, set()), seens, {})


def test_a_block_that_is_done_twice_is_in_the_library_once(job, photos, encoder):
    job, writer = job
    paths = sorted(str(path) for path in photos.rglob("*.*") if path.suffix != ".txt")
    first = writer.reserve(12)
    tasks = [Task(n, path, first + n, True, None, None) for n, path in enumerate(paths)]
    seens = [Seen(path, 1, 1) for path in paths]
    worker = Reading(job)
    run, taker = taking(writer, seens)
    for _ in range(2):  # another worker had died over it, and its report came all the same
        (report,) = worker(tasks_table(tasks)).to_pylist()
        taker.take(json.loads(report["said"]), report["features"])
    taker.commit()
    assert run.counts.added == run.counts.embedded == 12
    found = rows(writer.place.text)
    assert sorted(found) == paths and sorted(one.id for one, _ in found.values()) == list(range(first, first + 12))
    for path, vector_D in zip(paths, encoder.encode_image(paths), strict=True):
        assert found[path][1] @ vector_D > 0.9999 * np.linalg.norm(found[path][1])


def test_what_workers_could_not_read(job, photos):
    job, writer = job
    broken, away = photos / "a" / "00.png", photos / "a" / "01.jpg"
    broken.write_bytes(b"no picture")
    tasks = [Task(0, str(broken), 1, True, None, None), Task(1, str(away), 2, True, None, None)]
    seens = [Seen(str(broken), 10, 5), Seen(str(away), 10, 5)]
    content = away.read_bytes()
    away.unlink()
    (report,) = Reading(job)(tasks_table(tasks)).to_pylist()
    run, taker = taking(writer, seens)
    taker.take(json.loads(report["said"]), report["features"])
    taker.commit()
    assert run.counts.failed == 1 and list(writer.problems()) == [str(broken)]
    away.write_bytes(content)  # here it is, and there it was not
    _, taker = taking(writer, seens)
    with pytest.raises(DataError, match=f"01.jpg: is not there on {os.uname().nodename}") as error:
        taker.take(json.loads(report["said"]), report["features"])
    assert "shared file system" in error.value.hint


def test_changed_and_moved_pictures_keep_their_numbers(job, photos, encoder):
    job, writer = job
    index_here(job, writer, photos)
    before = {one.name: one for one, _ in rows(writer.place.text).values()}
    os.utime(photos / "a" / "00.png", ns=(1, 1))
    paint(photos / "a" / "01.jpg", 77)
    for name in ("one.png", "two.png"):
        shutil.copy(photos / "a" / "02.png", photos / name)
    (photos / "a" / "02.png").unlink()
    (photos / "b" / "c" / "07.jpg").unlink()
    run = index_here(job, writer, photos)
    counts = run.counts
    assert (counts.changed, counts.moved, counts.added, counts.removed, counts.unchanged) == (2, 1, 1, 1, 8)
    after = {one.name: one for one, _ in rows(writer.place.text).values()}
    assert after.keys() == before.keys() - {"02.png", "07.jpg"} | {"one.png", "two.png"}
    assert before["02.png"].id in (after["one.png"].id, after["two.png"].id)
    assert all(after[name].id == before[name].id for name in after.keys() & before.keys())
    picture, vector_D = rows(writer.place.text)[str(photos / "a" / "01.jpg")]
    assert vector_D @ encoder.encode_image([picture.path])[0] > 0.999


def index_here(job, writer, folder):
    """A run whose worker is called here instead of by Ray."""
    with workers_here():
        run = RayIndexing(writer, lambda: opened(job.model), Quarantine(None))
        run.run([str(folder)])
    return run


def test_an_upgrade_keeps_numbers_captions_and_dates(job, photos):
    job, writer = job
    index_here(job, writer, photos)
    known = writer.known()
    path = str(photos / "a" / "00.png")
    writer.caption([(known[path].id, ("a boat",))])
    before = {path: one for path, (one, _) in rows(writer.place.text).items()}
    writer.begin(replace(Identity.from_json(writer.about.active.identity), hashes={"another": "model"}), upgrade=True)
    (photos / "a" / "01.jpg").rename(photos / "b" / "moved.jpg")
    counts = index_here(job, writer, photos).counts
    assert (counts.changed, counts.moved, counts.embedded, counts.removed) == (11, 1, 12, 0)
    writer.finish(lambda: np.ones((1, 16), np.float32))
    after = {path: one for path, (one, _) in rows(writer.place.text).items()}
    assert after[path] == before[path] and after[path].captions == ("a boat",)
    moved = after.pop(str(photos / "b" / "moved.jpg"))
    assert moved.id == before.pop(str(photos / "a" / "01.jpg")).id and after == before


def test_tasks_go_to_workers_and_arrive():
    tasks = [
        Task(0, "/a\udcff\nb.jpg", 2**40, True, None, None),
        Task(7, "/b.jpg", 3, False, ("a dog", "two"), Before((), ("own",), "2026-01-01T00:00:00")),
        Task(8, "/c.jpg", 4, True, (), Before(("x",), (), "2026-01-01T00:00:00")),
    ]
    assert tasks_of(tasks_table(tasks)) == tasks


def test_a_machine_without_the_model_gets_it(exported_model, encoder, tmp_path, monkeypatch):
    files = model_files(Path(encoder.source), weights=False)
    assert "model.safetensors" not in files and any(name.endswith(".onnx") for name in files)
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "cache"))
    hashes = features_hashes(encoder.source)
    model = Model("/not/there", hashes, "onnxruntime", "fp32", None, True, lambda: files)
    for _ in range(2):
        got = opened(model)
        assert np.array_equal(got.encode_text(["a boat"]), encoder.encode_text(["a boat"]))
    assert (
        Path(got.source).is_relative_to(tmp_path / "cache")
        and len(list((tmp_path / "cache" / "models").iterdir())) == 1
    )
    assert opened(Model(encoder.source, hashes, "openvino", "fp32", None, True)).source == encoder.source
    (Path(got.source) / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not the model"):
        opened(model)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ModelError, match="/not/there: is not on"):
        opened(Model("/not/there", hashes, "onnxruntime", "fp32", None, True))


def test_a_library_of_files_is_refused(photos, tmp_path, encoder):
    with pytest.raises(ConfigError, match="workers of Ray write into LanceDB"):
        index(str(tmp_path / "files"), photos, encoder, RayIndexing)


# From here on with Ray itself.


@pytest.fixture(scope="module")
def ray():
    """Two workers, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def s3():
    """A bucket."""
    with s3_server() as place:
        yield place


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """160 pictures that take a while to decode, all different."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    for number in range(8):
        pixels = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((2400, 1800), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
        data = (folder / f"{number}.jpg").read_bytes()
        for copy in range(1, 20):
            (folder / f"{number}-{copy}.jpg").write_bytes(data + bytes([copy]))
    return folder


@pytest.fixture(scope="module")
def alone(large, tmp_path_factory, encoder):
    """A library of them that one process made."""
    place = f"lance:{tmp_path_factory.mktemp('alone') / 'tables'}"
    index(place, large, encoder)
    return place


def workers_of_ray():
    """Processes of Ray's that read, on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"ray::") and b"Reading" in words:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle(ray, large, alone, tmp_path, encoder):
    killed = []

    def tell(done, total):
        if done and not killed:
            killed.extend(workers_of_ray()[:1])
            os.kill(killed[0], signal.SIGKILL)

    place = f"lance:{tmp_path / 'tables'}"
    counts = index(place, large, encoder, RayIndexing, tell)
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    assert (counts.added, counts.embedded, counts.failed) == (160, 160, 0)
    same(place, alone)
    again = index(place, large, encoder, RayIndexing)
    assert (again.unchanged, again.embedded) == (160, 0)


@pytest.mark.slow
def test_a_file_that_kills_every_worker_is_said_to_be_to_blame(ray, photos, tmp_path, encoder, monkeypatch):
    class Dying(Reading):
        def __call__(self, block):
            if any(task.path.endswith("07.jpg") for task in tasks_of(block)):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(block)

    monkeypatch.setattr(bulk, "Reading", Dying)
    monkeypatch.setattr(bulk, "DEATHS", 1)
    monkeypatch.setattr(bulk, "IN_BLOCK", 4)
    monkeypatch.setattr(bulk, "IN_BLOCK_LEAST", 1)
    place = f"lance:{tmp_path / 'tables'}"
    with pytest.raises(DataError, match="Ray could not go on") as error:
        index(place, photos, encoder, RayIndexing)
    assert "2 workers died" in error.value.hint
    (photos / "b" / "c" / "07.jpg").unlink()
    monkeypatch.undo()
    index(place, photos, encoder, RayIndexing)
    assert len(rows(place)) == 11


@pytest.mark.slow
def test_workers_write_to_object_storage(ray, s3, photos, encoder, tmp_path):
    place, other = f"{s3}/by workers", f"lance:{tmp_path / 'tables'}"
    assert index(place, photos, encoder, RayIndexing).embedded == 12
    index(other, photos, encoder)
    same(place, other)


@pytest.mark.slow
def test_a_worker_that_cannot_open_the_model_says_why(ray, photos, encoder, tmp_path, monkeypatch):
    made = bulk._model

    def damaged(encoder, cluster):
        return replace(made(encoder, cluster), folder="/not/there", files=lambda: {"config.json": b"{}"})

    monkeypatch.setattr(bulk, "_model", damaged)
    with pytest.raises(ModelError, match="is not the model /not/there as it was sent"):
        index(f"lance:{tmp_path / 'tables'}", photos, encoder, RayIndexing)


@pytest.mark.slow
def test_the_driver_is_killed_in_the_middle(large, alone, tmp_path, encoder):
    place = f"lance:{tmp_path / 'tables'}"
    code = """
import sys
import cliplet
from cliplet.data.quarantine import Quarantine
from cliplet.library.bulk import RayIndexing
from cliplet.library.identity import identity_of
from cliplet.library.store import create_store

place, folder, model = sys.argv[1:]
encoder = cliplet.load(model, engine="onnxruntime", precision="fp32")
with create_store(place).writing(print) as writer:
    writer.begin(identity_of(encoder))
    writer.add_roots([folder])
    RayIndexing(writer, lambda: encoder, Quarantine(None)).run([folder])
print("whole")
"""
    command = [sys.executable, "-c", code, place, str(large), encoder.source]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    store = create_store(place)
    while not len(store):
        assert driver.poll() is None
        time.sleep(0.05)
        store.refresh()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    store.refresh()
    there = len(store)
    assert 0 < there < 160
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "whole\n" and run.stderr == ""
    same(place, alone)
