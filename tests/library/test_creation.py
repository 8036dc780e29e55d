"""How a library comes to be where creating it fails, is done twice at once, or where nothing may be written."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from cliplet.errors import DataError
from cliplet.library.database import Database
from cliplet.library.locks import Busy, only_writer
from cliplet.library.store import create_store, open_store

from .stores import entry, filled

FULL = """
import resource, signal, sys
from cliplet.library.store import create_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    create_store(sys.argv[1])
    print("made")
except OSError as error:
    print("OSError", error)
"""


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("room", [0, 8192, 50_000])
def test_a_library_whose_creation_failed_is_made_when_there_is_room(tmp_path, room):
    place = tmp_path / "l.library"
    done = run_python(FULL, place, room)
    assert done.stdout.startswith("OSError"), done.stdout + done.stderr
    assert not [one.name for one in place.iterdir() if one.name.startswith(".")]
    with closing(create_store(place)) as store:
        assert len(store) == 0


@pytest.mark.parametrize(
    "left",
    [
        [".records.sqlite.123"],
        [".records.sqlite.123", ".records.sqlite.123-journal", "writer.lock"],
        [".library.99.json", "records.sqlite-journal"],
    ],
)
def test_what_a_kill_left_of_a_creation_is_cleared_away(tmp_path, left):
    for name in left:
        (tmp_path / name).write_bytes(b"x" * 100)
    create_store(tmp_path).close()
    assert not [one.name for one in tmp_path.iterdir() if one.name.startswith(".")]
    open_store(tmp_path).close()


def test_a_kill_before_library_json(tmp_path):
    Database.create(tmp_path / "records.sqlite").close()
    with pytest.raises(DataError, match=r"library\.json: is missing"):
        open_store(tmp_path)
    create_store(tmp_path).close()
    assert json.loads((tmp_path / "library.json").read_text())["roots"] == []


def test_records_that_hold_something_are_never_written_over(tmp_path):
    store = filled("local", tmp_path, [entry(1)])
    store.close()
    place = Path(store.place)
    for keep in (place.iterdir(), ["records.sqlite"]):
        names = {Path(one).name for one in keep} - {"library.json"}
        for one in list(place.iterdir()):
            if one.name not in names:
                one.unlink()
        with pytest.raises(DataError, match=r"library\.json: is missing") as refused:
            create_store(place)
        assert "--repair" in refused.value.hint
    with closing(Database(place / "records.sqlite")) as database:
        assert len(database.rows("SELECT * FROM pictures")) == 1


RACE = """
import sys
from pathlib import Path
from cliplet.library.local import LocalStore
folder = Path(sys.argv[1])
for turn in range(8):
    print("ready", flush=True)
    while not (folder / f"gate {turn}").exists():
        pass
    store = LocalStore.open_or_create(folder / f"{turn}.library")
    assert len(store) == 0
    store.close()
"""


def test_two_processes_that_create_one_library_both_have_it(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", RACE, tmp_path], **pipes) for _ in range(2)]
    for turn in range(8):
        said = [process.stdout.readline() for process in processes]
        if said != ["ready\n"] * 2:
            break  # one of them says why below
        (tmp_path / f"gate {turn}").touch()
    for process in processes:
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 0, err
    names = {one.name for place in tmp_path.glob("*.library") for one in place.iterdir()}
    assert names - {"records.sqlite-wal", "records.sqlite-shm"} == {"library.json", "records.sqlite", "writer.lock"}


def test_who_creates_for_long_is_waited_for_a_while_only(tmp_path, monkeypatch):
    from cliplet.library import local

    monkeypatch.setattr(local, "CREATING_SECONDS", 0.1)
    with only_writer(tmp_path, print, wait=False), pytest.raises(Busy, match="another process is writing"):
        create_store(tmp_path)
    create_store(tmp_path).close()


def test_a_library_that_was_made_meanwhile_is_opened_though_somebody_writes_into_it(tmp_path):
    create_store(tmp_path).close()
    (tmp_path / "vectors-1.f16").touch()
    with only_writer(tmp_path, print, wait=False):
        create_store(tmp_path).close()


READ_ONLY = """
import os, sys
from cliplet.errors import DataError
from pathlib import Path
from cliplet.library.local import LocalStore  # before it may not be read any more
if not os.getuid():
    os.setgid(65534)
    os.setuid(65534)
try:
    print(len(LocalStore.open(Path(sys.argv[1]))))
except DataError as error:
    print(error.message)
    print(error.hint)
"""


@pytest.fixture
def read_only():
    """A folder that everybody may reach, and a way to open a library in it as somebody who may not write."""
    if not hasattr(os, "getuid"):
        pytest.skip("folders are not closed like this here")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)

    def opened(place):
        for one in place.iterdir():
            one.chmod(0o444)
        place.chmod(0o555)
        done = run_python(READ_ONLY, place)
        place.chmod(0o755)
        assert not done.returncode, done.stderr
        return done.stdout

    yield folder, opened
    shutil.rmtree(folder)


def test_what_is_in_a_log_that_cannot_be_read_is_not_passed_over(read_only):
    folder, opened = read_only
    store = filled("local", folder, [entry(n) for n in range(20)])
    store.close()
    place = Path(store.place)
    killed = folder / "killed.library"
    with closing(Database(place / "records.sqlite", write=True)) as writer:
        writer.run("DELETE FROM pictures WHERE id = 1")
        shutil.copytree(place, killed)
    (killed / "records.sqlite-shm").unlink()
    said = opened(killed)
    assert "what was written last is in records.sqlite-wal, which cannot be read here" in said
    assert "Make the folder writable and open the library once" in said
    with closing(Database(killed / "records.sqlite", write=True)):
        pass  # as whoever may write
    assert opened(killed) == "19\n"
    for ending in ("-wal", "-shm"):
        (killed / f"records.sqlite{ending}").unlink(missing_ok=True)
    assert opened(killed) == "19\n"


def test_a_full_disk_does_not_keep_a_writer_from_the_lock(tmp_path, monkeypatch):
    from cliplet.library import locks

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locks.os, "write", full)
    first, second = (only_writer(tmp_path, print, wait=False) for _ in range(2))
    with first, pytest.raises(Busy, match="process unknown"), second:
        pass
