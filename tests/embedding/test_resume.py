"""A command that is killed, stopped by a full disk or interrupted goes on, and ends with the very same bytes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import embed_stub
import numpy as np
import pytest
from embed_stub import write_pictures

from cliplet.embedding import Sentences, embed, find_pictures, work
from cliplet.embedding.work import Interrupted
from cliplet.errors import DataError
from cliplet.runtime import pipeline

PICTURES = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and 120 pictures, every eleventh of them none."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    for file in write_pictures(folder / "photos", PICTURES)[::11]:
        file.write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(place):
    """The bytes of a file that was written in one go, and of what stands beside it."""
    out = place / "whole.npy"
    embed(find_pictures([place / "photos"]), model_of(place), out)
    return contents(out)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Every block is saved, and few are under way."""
    monkeypatch.setattr(work, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "cores", lambda: 2)


def model_of(place, name="model"):
    return embed_stub.encoder(place / name)


def contents(out):
    files = [out, *(out.with_name(out.name + ending) for ending in (".names.jsonl", ".json"))]
    return [file.read_bytes() for file in files]


def start(place, out, *more):
    command = [sys.executable, embed_stub.__file__, place / "photos", out, *more]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def ended(process):
    """Status, and what was said."""
    said = "".join(process.communicate(timeout=60))
    assert "Traceback" not in said
    return process.returncode, said


def rows_saved(out):
    journal = Path(f"{out}.partial") / "done.jsonl"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return max((json.loads(line)["rows"] for line in lines if line), default=0)


def run_until(place, out, rows, signal_sent):
    """Ends a run by a signal once so many rows are saved."""
    process = start(place, out)
    while rows_saved(out) < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal_sent)
    return ended(process)


def test_killed_again_and_again_it_ends_with_the_same_bytes(place, whole, tmp_path):
    out = tmp_path / "out.npy"
    for rows in (16, 64):
        status, _ = run_until(place, out, rows, signal.SIGKILL)
        assert status == -signal.SIGKILL and not out.exists()
    saved = rows_saved(out)
    status, said = ended(start(place, out))
    assert status == 0 and f"going on after {saved} of 120 rows" in said and f'"resumed_from": {saved}' in said
    assert contents(out) == whole
    assert sorted(os.listdir(tmp_path)) == ["out.npy", "out.npy.json", "out.npy.names.jsonl"]


def test_ctrl_c_says_how_to_go_on(place, whole, tmp_path):
    out = tmp_path / "out.npy"
    status, said = run_until(place, out, 40, signal.SIGINT)
    assert status == 130 and "embedding was interrupted after" in said and "the same command goes on" in said
    assert ended(start(place, out))[0] == 0 and contents(out) == whole


def test_two_at_once(place, whole, tmp_path):
    out = tmp_path / "out.npy"
    first = start(place, out)
    try:
        while rows_saved(out) < 16:
            assert first.poll() is None
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(DataError, match="another command is writing it"):
            embed(find_pictures([place / "photos"]), model_of(place), out)
    finally:
        first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0 and contents(out) == whole


def test_a_full_disk_in_another_process(place, whole, tmp_path):
    status, said = ended(start(place, tmp_path / "out.npy", "--limit", 2000))
    assert status == 1 and "out.npy: cannot be written: File too large" in said and "Make room" in said
    status, said = ended(start(place, tmp_path / "out.npy"))
    assert status == 0 and "going on after" in said and contents(tmp_path / "out.npy") == whole


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".lance"])
@pytest.mark.parametrize("bytes_free", [100, 900, 2500])
def test_a_full_disk_wherever_it_comes(place, tmp_path, ending, bytes_free):
    """Of what is computed nothing is lost: the second call computes the rest, or only writes the table."""
    out, model = tmp_path / f"out{ending}", model_of(place)
    pictures = find_pictures([place / "photos"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            embed(pictures, model, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not out.exists() and Path(f"{out}.partial").exists()
    saved = rows_saved(out)
    assert embed(pictures, model, out).resumed_from == saved
    assert (saved == PICTURES) == (bytes_free == 2500)  # room for the vectors, and not for what is made of them


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".lance"])
def test_interrupted_while_the_files_take_their_places(place, whole, tmp_path, monkeypatch, ending):
    """At each of the renames; nothing is computed again, and nothing mixed with what was there."""
    monkeypatch.setattr(work, "SAVE_SECONDS", 9.0)
    pictures, replace, rename = find_pictures([place / "photos"]), Path.replace, Path.rename
    for stop in range(1, 7):
        out, model, calls = tmp_path / f"{stop}{ending}", model_of(place), [0]
        embed(find_pictures([place / "photos" / "001.png"]), model, out)  # what is to be replaced

        def moved(self, target, how, calls=calls, stop=stop):
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return how(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", lambda self, target, moved=moved: moved(self, target, replace))
            patched.setattr(Path, "rename", lambda self, target, moved=moved: moved(self, target, rename))
            try:
                embed(pictures, model, out, overwrite=True)
            except Interrupted:
                pass
            else:
                break
        computed = model.engine.pictures
        embed(pictures, model, out, overwrite=True)
        assert ending != ".npy" or contents(out) == whole
        assert stop == 1 or model.engine.pictures == computed  # the first is the job's own
        assert embed(pictures, model, out).resumed_from == PICTURES
        assert not Path(f"{out}.partial").exists()
    else:
        pytest.fail("there are more renames than were tried")
    assert stop > 1


def broken(place, out, after=60, inputs=None, **options):
    """A run that ends by an error of its engine, and leaves its work."""
    model = model_of(place)
    model.engine.fails_after = after
    with pytest.raises(RuntimeError, match="the engine broke"):
        embed(inputs or find_pictures([place / "photos"]), model, out, **options)
    saved = rows_saved(out)
    assert 0 < saved < PICTURES and saved % 8 == 0
    return saved


def test_an_error_of_the_engine_keeps_what_was_computed(place, whole, tmp_path):
    out, bad = tmp_path / "out.npy", tmp_path / "bad.jsonl"
    saved = broken(place, out, quarantine=bad)
    summary = embed(find_pictures([place / "photos"]), model_of(place), out, quarantine=bad)
    assert summary.resumed_from == saved and contents(out) == whole
    assert len(bad.read_text().splitlines()) == summary.failed == 11


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("model", "another model"),
        ("inputs", "other inputs"),
        ("half", "another precision of the vectors"),
        ("dims", "other dimensions"),
    ],
)
def test_another_job_begins_anew_and_says_so(place, tmp_path, what, named):
    out, pictures, model = tmp_path / "out.npy", find_pictures([place / "photos"]), model_of(place)
    broken(place, out)
    if what == "model":
        (place / "other").mkdir()
        (place / "other" / "config.json").write_text("other")
        model = model_of(place, "other")
    elif what == "inputs":
        pictures = find_pictures([place / "photos" / "001.png", place / "photos"])
    elif what == "dims":
        model.embed_dim = 3
        model.engine.image_features = lambda pixels: np.zeros((len(pixels), 3), np.float32)
    heard = []
    summary = embed(pictures, model, out, half=what == "half", say=heard.append)
    assert summary.resumed_from == 0 and heard == [f"{out}.partial was begun with {named}: beginning anew"]
    assert len(np.load(out)) == len(pictures)


def test_a_model_that_was_never_saved_is_not_known_again(place, tmp_path):
    pictures, out = find_pictures([place / "photos"]), tmp_path / "out.npy"
    embed(pictures, embed_stub.encoder(), out)
    with pytest.raises(DataError, match="is there already"):
        embed(pictures, embed_stub.encoder(), out)


@pytest.mark.parametrize("damage", ["torn line", "lost end of the rows", "lost end of the failed", "no journal"])
def test_a_power_cut_costs_no_more_than_what_it_took(place, whole, tmp_path, damage):
    out = tmp_path / "out.npy"
    saved, folder = broken(place, out), Path(f"{tmp_path / 'out.npy'}.partial")
    if damage == "torn line":
        with (folder / "done.jsonl").open("a") as stream:
            stream.write('{"rows": 99, "fai')
    elif damage == "no journal":
        (folder / "done.jsonl").unlink()
    else:
        file = folder / ("features.npy" if "rows" in damage else "failed.jsonl")
        os.truncate(file, file.stat().st_size - 1)
    summary = embed(find_pictures([place / "photos"]), model_of(place), out)
    lost = {"torn line": summary.resumed_from == saved, "no journal": summary.resumed_from == 0}
    assert lost.get(damage, 0 < summary.resumed_from < saved) and contents(out) == whole


def test_sentences_go_on_at_a_block(place, tmp_path, monkeypatch):
    monkeypatch.setattr("cliplet.embedding.run.TEXTS_AT_ONCE", 16)
    texts = Sentences([f"{'x' * (number % 7)} {number}" for number in range(100)])
    embed(texts, model_of(place), tmp_path / "whole.npy")
    model, calls = model_of(place), [0]
    encode = model.encode_text

    def failing(texts, **options):
        calls[0] += 1
        if calls[0] == 4:
            raise RuntimeError
        return encode(texts, **options)

    model.encode_text = failing
    with pytest.raises(RuntimeError):
        embed(texts, model, tmp_path / "out.npy")
    assert embed(texts, model, tmp_path / "out.npy").resumed_from == 48
    assert contents(tmp_path / "out.npy") == contents(tmp_path / "whole.npy")
