"""Checkpoints: whole or not at all, noticed when damaged, the newest few kept, and what a resumed run may change."""

import dataclasses
import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from runs import files_no_larger_than

from cliplet.config import DataConfig, RunConfig, TrainConfig
from cliplet.errors import TrainingError
from cliplet.files import written_beside
from cliplet.training.checkpoint import FREE, SAID, Checkpoint, Checkpoints, DamagedCheckpoint, _write_sealed


def made(seed: int = 0, **fields) -> Checkpoint:
    """A checkpoint of a few kilobytes with every kind of value that a run puts into one; its step is the seed."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, betas=(0.9, 0.98))
    layer(torch.randn(3, 7)).square().mean().backward()
    optimizer.step()
    values = {
        "config": RunConfig(),
        "epoch": 3,
        "step": seed,
        "skipped": 1,
        "model": {**layer.state_dict(), "counted": torch.tensor(seed), "half": torch.randn(6).bfloat16()},
        "tokenizer": '{"word": "ünï"}',
        "image_architecture": None,
        "text_architecture": {"layers": 2, "names": ["a", "b"]},
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0},
        "averages": {"decay": 0.9, "shadow": {"weight": torch.randn(5, 7)}},
        "distillation": {"projections.0.weight": torch.randn(3, 5)},
        "circumstances": {"precision": "fp32", "training data": "5 pictures", "ranks": "1"},
        "best": {"epoch": 2, "metrics": {"rsum": 123.4}},
    }
    return Checkpoint(**{**values, **fields})


def same(one, other) -> bool:
    """Whether two values are equal to the bit, tensors and numbers within them included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    for name, value in vars(one).items():
        assert same(value, getattr(other, name)), f"{name} differs"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """The bytes of `made()` as saved."""
    file = tmp_path_factory.mktemp("good") / "step-00000000.pt"
    made().save(file)
    return file.read_bytes()


def test_all_that_is_saved_comes_back(tmp_path):
    checkpoint = made(5)
    checkpoint.save(tmp_path / "new folder" / "one.pt")
    loaded = Checkpoint.load(tmp_path / "new folder" / "one.pt")
    assert_same(checkpoint, loaded)
    assert loaded.progress == (3, 5)
    assert [file.name for file in tmp_path.rglob("*.pt")] == ["one.pt"]


# Damage


FILES = {
    "empty": b"",
    "text": b"a checkpoint\n" * 1000,
    "pickle": pickle.dumps({"format_version": 2}),
    "a seal alone": b"\x47\0sha256 " + bytes(64),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_another_kind_of_file_is_damaged(tmp_path, content):
    file = tmp_path / "step-00000007.pt"
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"step-00000007\.pt is damaged \((cut off|its checksum)"):
        Checkpoint.load(file)


class Mischief:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("content", [[1, 2], {"weight": 1}, {"format_version": 2, "model": Mischief()}])
def test_another_file_of_torch_is_damaged_and_nothing_unpickled(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "bare.pt")
    with pytest.raises(DamagedCheckpoint, match=r"damaged \(cut off, or another kind of file\)"):
        Checkpoint.load(Path("bare.pt"))
    _write_sealed(content, Path("sealed.pt"))
    with pytest.raises(DamagedCheckpoint, match=r"damaged \((another kind of file|Weights only load failed)"):
        Checkpoint.load(Path("sealed.pt"))
    assert names(tmp_path) == ["bare.pt", "sealed.pt"]


def test_cut_off_anywhere(tmp_path, good):
    file = tmp_path / "one.pt"
    file.write_bytes(good)
    Checkpoint.load(file)
    for length in reversed(range(len(good))):
        os.truncate(file, length)
        with pytest.raises(DamagedCheckpoint):
            Checkpoint.load(file)


def members(file: Path) -> list[range]:
    """Where in the file the bytes of each member of the zip are."""
    ranges = []
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                start = stream._orig_compress_start  # type: ignore[attr-defined]
            ranges.append(range(start, start + member.file_size))
    return ranges


def overwrite(file: Path, place: int, byte: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([byte]))


def test_a_flipped_bit_is_noticed_everywhere(tmp_path, good):
    """In each byte of the zip's directory and of the end, and in many others, in tensors and between them. Of the
    directory torch believes everything: with the mark of a folder on a tensor it reads memory instead of the file."""
    file = tmp_path / "one.pt"
    file.write_bytes(good)
    draw = random.Random(0)
    directory = range(good.index(b"PK\x01\x02"), len(good))
    inside = [place for member in members(file) for place in member]
    places = [*directory, *draw.sample(inside, 300), *draw.sample(range(directory.start), 300)]
    for place in places:
        flipped = good[place] ^ 1 << draw.randrange(8)
        overwrite(file, place, flipped)
        with pytest.raises(DamagedCheckpoint):
            Checkpoint.load(file)
            pytest.fail(f"not noticed: byte {place} is {flipped} instead of {good[place]}")
        overwrite(file, place, good[place])
    Checkpoint.load(file)


def test_bytes_too_many_are_noticed(tmp_path, good):
    for content in (good + b"\0", b"\0" + good, good + good):
        (tmp_path / "one.pt").write_bytes(content)
        with pytest.raises(DamagedCheckpoint):
            Checkpoint.load(tmp_path / "one.pt")


def test_a_tensor_lost_or_exchanged_for_another_is_noticed(tmp_path, good):
    """As when blocks of the disk are mixed up: 20 zeros, or another tensor's bytes, where a tensor was."""
    file = tmp_path / "one.pt"
    file.write_bytes(good)
    tensors = [member for member in members(file) if len(member) == 140]  # (5, 7) float32
    assert len(tensors) >= 3
    for replaced in (bytes(20), good[tensors[1].start : tensors[1].start + 20]):
        start = tensors[0].start
        file.write_bytes(good[:start] + replaced + good[start + 20 :])
        with pytest.raises(DamagedCheckpoint, match="its checksum is wrong"):
            Checkpoint.load(file)


def test_a_checkpoint_is_still_a_file_of_torch_and_a_zip(tmp_path, good):
    (tmp_path / "one.pt").write_bytes(good)
    content = torch.load(tmp_path / "one.pt", weights_only=True)
    assert same(content["model"], made().model)
    with zipfile.ZipFile(tmp_path / "one.pt") as archive:
        assert archive.testzip() is None and archive.comment == good[-71:]
    unsealed = good[:-73] + b"\0\0"
    assert archive.comment == b"sha256 " + hashlib.sha256(unsealed).hexdigest().encode()


@pytest.mark.parametrize(("version", "advice"), [(3, "Upgrade"), (1, "anew"), ("x", "anew")])
def test_another_version_is_no_damage(tmp_path, version, advice):
    _write_sealed({"format_version": version, "model": {}}, tmp_path / "one.pt")
    with pytest.raises(TrainingError, match=rf"one\.pt: is a checkpoint of version {version}; .* version 2") as caught:
        Checkpoint.load(tmp_path / "one.pt")
    assert not isinstance(caught.value, DamagedCheckpoint) and advice in caught.value.hint


def test_a_field_too_few(tmp_path):
    content = {"format_version": 2, **vars(made()), "config": RunConfig().model_dump(mode="json")}
    del content["averages"]
    _write_sealed(content, tmp_path / "one.pt")
    with pytest.raises(TrainingError, match=r"not whole: .*averages"):
        Checkpoint.load(tmp_path / "one.pt")


# The newest few


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(made(step), step)
    return checkpoints


def damage(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep)
    assert not checkpoints.exists()
    steps = [0, 9, 10, 99_999_999, 100_000_000]
    for number, step in enumerate(steps, 1):
        checkpoints.save(made(step), step)
        assert checkpoints.exists()
        assert names(folder) == sorted(f"step-{kept:08d}.pt" for kept in steps[max(0, number - keep) : number])
        assert_same(checkpoints.latest(pytest.fail), made(step))


def test_fewer_are_kept_when_fewer_are_asked_for(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, keep=4)
    saved(tmp_path, 5, keep=2)
    assert names(tmp_path) == ["step-00000004.pt", "step-00000005.pt"]


def test_a_second_one_of_the_same_step_takes_the_place_of_the_first(tmp_path):
    checkpoints = saved(tmp_path, 4, 8)
    checkpoints.save(made(8, epoch=4, step=0, best={"epoch": 4}), 8)
    assert names(tmp_path) == ["step-00000004.pt", "step-00000008.pt"]
    assert checkpoints.latest(pytest.fail).progress == (4, 0)


def test_leavings_of_killed_writers_go_and_what_is_anothers_stays(tmp_path):
    checkpoints = saved(tmp_path, 1)
    for name in (".step-00000002.4711.pt", f".step-00000001.{os.getpid()}.pt", "step-best.pt", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"half")
    assert_same(checkpoints.latest(pytest.fail), made(1))
    checkpoints.save(made(2), 2)
    assert names(tmp_path) == [".hidden", "notes.txt", "step-00000001.pt", "step-00000002.pt", "step-best.pt"]


def test_a_damaged_one_is_said_and_the_one_before_used(tmp_path):
    checkpoints = saved(tmp_path, 1100, 1200)
    damage(tmp_path / "step-00001200.pt")
    said = []
    assert_same(checkpoints.latest(said.append), made(1100))
    reason = "(cut off, or another kind of file)"
    going_on = "going on from step-00001100.pt, 100 steps earlier"
    assert said == [f"{tmp_path / 'step-00001200.pt'} is damaged {reason}; {going_on}"]


def test_several_damaged_ones_are_all_said(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 3000, keep=3)
    damage(tmp_path / "step-00000002.pt")
    (tmp_path / "step-00003000.pt").write_bytes(b"")
    said = []
    assert_same(checkpoints.latest(said.append), made(1))
    assert [line.rpartition(", ")[2] for line in said] == ["2,999 steps earlier", "1 step earlier"]


def test_when_none_is_good_all_are_named(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    damage(tmp_path / "step-00000001.pt")
    (tmp_path / "step-00000002.pt").write_bytes(b"")
    assert checkpoints.exists()
    with pytest.raises(TrainingError, match="no checkpoint is good") as caught:
        checkpoints.latest(pytest.fail)
    assert all(f"step-0000000{step}.pt is damaged (" in caught.value.message for step in (1, 2))
    assert "anew" in caught.value.hint


def test_none_at_all(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        checkpoints.latest(pytest.fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_ahead_never_push_out_a_good_one(tmp_path, keep):
    saved(tmp_path, 10, 20, 30, keep=3)
    for step in (20, 30):
        damage(tmp_path / f"step-000000{step}.pt")
    checkpoints = Checkpoints(tmp_path, keep)
    checkpoints.save(made(15), 15)  # as a run does that went on from 10
    assert names(tmp_path) == ["step-00000010.pt", "step-00000015.pt"][-keep:]
    assert_same(checkpoints.latest(pytest.fail), made(15))


def test_a_run_of_version_1_is_seen_and_its_version_named(tmp_path):
    torch.save({"format_version": 1, "random": {}}, tmp_path / "checkpoint.pt")
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    assert checkpoints.exists()
    with pytest.raises(TrainingError, match="of version 1; this cliplet reads version 2") as caught:
        checkpoints.latest(pytest.fail)
    assert "anew" in caught.value.hint


# Mishaps while writing


@pytest.mark.parametrize("missing", [1, 100, 4000, 5_000, 1_000_000])
def test_a_write_that_is_refused_leaves_the_earlier_ones(tmp_path, good, missing):
    big = made(3, model={"weight": torch.randn(300_000)})
    checkpoints = Checkpoints(tmp_path, 2)
    big.save(tmp_path / "step-00000001.pt")
    size = (tmp_path / "step-00000001.pt").stat().st_size
    checkpoints.save(made(2), 2)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with (
        files_no_larger_than(size - missing),
        pytest.raises(TrainingError, match=r"not be written.*too large") as caught,
    ):
        checkpoints.save(big, 3)
    assert "step-00000003.pt" in caught.value.message and "--resume" in caught.value.hint
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    checkpoints.save(big, 3)
    assert_same(checkpoints.latest(pytest.fail), big)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk that is small enough to be filled")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full(tiny_disk):
    checkpoints = Checkpoints(tiny_disk / "run" / "checkpoints", 2)
    third = made(3, model={"weight": torch.randn(80_000)})  # 320 kB: three do not fit
    for step in (1, 2):
        checkpoints.save(dataclasses.replace(third, step=step), step)
    (tiny_disk / "more").write_bytes(bytes(200_000))
    before = {file.name: file.read_bytes() for file in checkpoints.folder.iterdir()}
    with pytest.raises(TrainingError, match=r"could not be written: .*No space left on device"):
        checkpoints.save(third, 3)
    assert {file.name: file.read_bytes() for file in checkpoints.folder.iterdir()} == before
    assert_same(checkpoints.latest(pytest.fail), dataclasses.replace(third, step=2))
    (tiny_disk / "more").unlink()
    checkpoints.save(third, 3)
    assert names(checkpoints.folder) == ["step-00000002.pt", "step-00000003.pt"]


def test_leavings_make_room_before_the_next_is_written(tiny_disk):
    checkpoints = saved(tiny_disk, 1)
    (tiny_disk / ".step-00000002.4711.pt").write_bytes(bytes(800_000))
    checkpoints.save(made(2, model={"weight": torch.randn(100_000)}), 2)
    assert checkpoints.latest(pytest.fail).step == 2


def test_ctrl_c_in_the_middle_of_writing_stays_ctrl_c(tmp_path):
    checkpoints = saved(tmp_path, 1)
    big = made(2, model={"weight": torch.zeros(25_000_000)})
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(big, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert names(tmp_path) == ["step-00000001.pt"]


def test_the_disk_has_the_bytes_before_the_name_changes(tmp_path, monkeypatch):
    """What a power cut would show: the file flushed, then renamed, then its folder flushed."""
    done = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle):
        done.append(f"flush {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def noted_replace(self, target):
        done.append(f"rename {self.name} to {target.name}, of {self.stat().st_size} bytes")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    (tmp_path / "folder").mkdir()
    with written_beside(tmp_path / "folder" / "a.txt") as beside:
        beside.write_text("12345")
    name = f".a.{os.getpid()}.txt"
    assert done == [f"flush {name}", f"rename {name} to a.txt, of 5 bytes", "flush folder"]


WRITER = """
import dataclasses, os, sys
from pathlib import Path
import torch
from cliplet.training.checkpoint import Checkpoint, Checkpoints

for line in sys.stdin:  # each line starts a writer, by forking before anything was computed
    folder, first = line.split()
    process = os.fork()
    if process:
        print(process, flush=True)
        print("ended by", os.WTERMSIG(os.waitpid(process, 0)[1]), flush=True)
        continue
    checkpoint, step = Checkpoint.load(Path(sys.argv[1])), int(first)
    while True:
        weights = {"weight": torch.full((2_000_000,), float(step))}
        Checkpoints(Path(folder), 2).save(dataclasses.replace(checkpoint, model=weights, step=step), step)
        step += 1
"""


def wait_for(folder: Path, pattern: str, size: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in folder.glob(pattern):
            try:
                if file.stat().st_size >= size:
                    return
            except FileNotFoundError:
                pass  # renamed meanwhile
        time.sleep(0.0005)
    raise AssertionError(f"{pattern} of {size} bytes was never there")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_writing_the_newest_is_whole(tmp_path):
    """Killed when a file has just been begun, when it is half written, and whenever."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    made().save(tmp_path / "one.pt")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "one.pt")]
    draw, newest, half_written = random.Random(0), 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        for size in (1, 4_000_000, 7_900_000, None, None, None):
            print(folder, newest + 1, file=launcher.stdin, flush=True)
            process = int(launcher.stdout.readline())
            wait_for(folder, f"step-{newest + 2:08d}.pt", 1)  # another one is being written now
            if size:
                wait_for(folder, f".step-*.{process}.pt", size)
            else:
                time.sleep(draw.random() * 0.3)
            os.kill(process, signal.SIGKILL)
            assert launcher.stdout.readline() == "ended by 9\n"
            half_written += any(folder.glob(".step-*.pt"))
            checkpoint = Checkpoints(folder, 2).latest(pytest.fail)
            assert checkpoint.step >= newest + 2
            newest = checkpoint.step
            assert torch.equal(checkpoint.model["weight"], torch.full((2_000_000,), float(newest)))
        launcher.stdin.close()
    assert half_written >= 1
    saved(folder, newest + 1)
    assert names(folder) == [f"step-{step:08d}.pt" for step in (newest, newest + 1)]


# What a resumed run may change


def changed(config: RunConfig, key: str, value) -> RunConfig:
    section, name = key.split(".")
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})


ALLOWED = {
    "train.output": "elsewhere",
    "train.log_every": 3,
    "train.checkpoint_every": 7,
    "train.keep_checkpoints": 5,
    "train.max_skipped": 99,
    "train.rank_timeout": 5,
    "data.workers": 9,
    "data.path": "elsewhere",
    "distil.store": "elsewhere",
    "data.images": "elsewhere",
    "train.precision": "bf16",
    "train.chunk_size": "auto",
    "train.compile": True,
    "train.cache_features": False,
    "train.features": "features",
    "train.device": "cuda:1",
}


def test_every_key_that_may_change_is_tested():
    assert set(ALLOWED) == {*FREE, *SAID}


@pytest.mark.parametrize("key", ALLOWED)
def test_keys_that_change_only_how_a_run_computes(key):
    config = RunConfig()
    said = made().refuse_other_config(changed(config, key, ALLOWED[key]))
    section, name = key.split(".")
    old = getattr(getattr(config, section), name)
    assert said == ([f"{key}: {old} -> {ALLOWED[key]}"] if key in SAID else [])


def test_every_other_key_is_refused_and_all_are_named():
    config = RunConfig()
    train = config.train.model_copy(update={"seed": 7, "ema": 0.9, "compile": True, "log_every": 99})
    other = config.model_copy(update={"train": train, "data": DataConfig(path="elsewhere")})
    with pytest.raises(TrainingError, match="another configuration") as caught:
        made().refuse_other_config(other)
    named = [line.strip() for line in caught.value.message.splitlines()[1:]]
    assert named == ["train.seed: 0 -> 7", "train.ema: None -> 0.9"]  # where the data lie is left to their checksum
    assert made().refuse_other_config(config) == []


def test_a_key_that_begins_like_a_free_one_is_not_free():
    config = RunConfig(train=TrainConfig(stages=({"epochs": 2},)))
    with pytest.raises(TrainingError, match=r"train\.stages\.0\.epochs: 10 -> 2"):
        made().refuse_other_config(config)


@pytest.mark.parametrize(
    ("now", "said", "refused"),
    [
        ({}, [], ""),
        ({"ranks": "2"}, ["ranks: 1 -> 2"], ""),
        ({"precision": "bf16"}, [], "precision: fp32 -> bf16"),
        ({"training data": "6 pictures", "ranks": "2"}, [], "training data: 5 pictures -> 6 pictures"),
        ({"weather": "rain"}, [], r"weather: \(unknown\) -> rain"),
    ],
)
def test_circumstances(now, said, refused):
    checkpoint = made()
    circumstances = {**checkpoint.circumstances, **now}
    if not refused:
        assert checkpoint.refuse_other_circumstances(circumstances) == said
        return
    with pytest.raises(TrainingError, match=refused) as caught:
        checkpoint.refuse_other_circumstances(circumstances)
    assert "ranks" not in caught.value.message
