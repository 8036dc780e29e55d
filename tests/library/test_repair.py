"""What is kept of a damaged library. N pictures, whose vectors no model made."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cliplet.errors import DataError
from cliplet.library import repair as repair_module
from cliplet.library.damaged import KEYS
from cliplet.library.database import Database
from cliplet.library.repair import repair
from cliplet.library.store import open_store

from .stores import DIMS, changed, content_of, entry, filled, identity, vector

N = 60
PAGE = 4096
ENDINGS = ("", "-wal", "-shm")


def embed_captions(writer):
    texts = writer.captions_without_vectors(1000)
    writer.write_captions(texts, np.stack([vector(int.from_bytes(content_of(text)[:4], "big")) for text in texts]))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A library's folder; to be copied."""
    entries = [entry(number, captions=(f"number {number}, {'a word ' * 15}", "mine")) for number in range(1, N + 1)]
    store = filled("local", tmp_path_factory.mktemp("base"), entries, [("/photos/bad.jpg", 1, 2, "why")])
    changed(store, embed_captions)
    changed(store, lambda writer: writer.finish(lambda: np.stack([vector(n) for n in range(20)])))
    store.close()
    return Path(store.place)


@pytest.fixture
def library(base, tmp_path):
    """One that may be damaged."""
    return Path(shutil.copytree(base, tmp_path / "l.library"))


def rows_of(file):
    with closing(sqlite3.connect(file)) as database:
        return {table: set(database.execute(f"SELECT * FROM {table}")) for table in KEYS}


def sequences(file):
    with closing(sqlite3.connect(file)) as database:
        return dict(database.execute("SELECT name, seq FROM sqlite_sequence"))


def readable_one_by_one(file, before):
    """Rows, of those that were there before, that a question for them alone still gives."""
    found = {table: set() for table in KEYS}
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        for table, rows in before.items():
            names = [row[1] for row in _of(database, f"PRAGMA table_info({table})")]
            condition = " AND ".join(f"{key} = ?" for key in KEYS[table])
            for row in rows if names else ():
                keys = [row[names.index(key)] for key in KEYS[table]]
                found[table].update(_of(database, f"SELECT * FROM {table} NOT INDEXED WHERE {condition}", keys))
        return {table: rows & before[table] for table, rows in found.items()}


def _of(database, statement, values=()):
    try:
        return database.execute(statement, values).fetchall()
    except sqlite3.Error:
        return []


def damage(file, *pages, random=random):
    """Writes something else over pages, of which the first is 1."""
    with open(file, "r+b") as stream:
        for page in pages:
            stream.seek((page - 1) * PAGE)
            stream.write(random.randbytes(PAGE))


def pages_of(file):
    return file.stat().st_size // PAGE


def root_page(file, name):
    with closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [name]).fetchone()[0]


def repaired(folder):
    said = []
    repair(folder, said.append)
    return said


def assert_kept(folder, before, readable):
    """All that could be read is there, another repair finds nothing, and the library works."""
    file = folder / "records.sqlite"
    after = rows_of(file)
    ids = {row[0] for row in after["pictures"]}
    for table, rows in readable.items():
        if table == "captions":  # but those of pictures of which nothing else is left, not even the name
            rows = {row for row in rows if row[0] in ids}
        assert rows <= after[table], table
    assert sequences(file)["pictures"] >= N and sequences(file)["generations"] >= 1
    again = repaired(folder)
    assert again[0] == "the records are whole" and not any("damaged" in line for line in again)
    assert rows_of(file) == after
    assert not [one for one in folder.iterdir() if one.name.startswith(".")]
    with closing(open_store(str(folder))) as store, store.writing(print) as writer:
        writer.begin(identity())
        assert sum(row[5] == -1 for row in after["pictures"]) <= len(before["pictures"]) == N
    return after


def test_captions_that_are_lost_are_said_to_be(library):
    (library / "records.sqlite").unlink()
    said = repaired(library)
    assert "captions that came by --captions are lost; give the file again, with --captions FILE" in said
    assert not any("of captions are whole" in line for line in said)
    assert not any("--captions" in line for line in repaired(library))


def test_words_of_sqlite_stand_behind_plain_ones(library):
    file = library / "records.sqlite"
    page = root_page(file, "pictures_by_content")
    damage(file, page)
    said = repaired(library)
    assert said[0].startswith(f"the records are damaged: page {page} of records.sqlite (")
    assert not any("--captions" in line for line in said)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_can_be_read_is_kept(library, seed):
    file, before = library / "records.sqlite", rows_of(library / "records.sqlite")
    chance = random.Random(seed)
    damage(file, *chance.sample(range(1, pages_of(file) + 1), 1 + seed % 2), random=chance)
    readable = readable_one_by_one(file, before)
    said = repaired(library)
    assert said[0].startswith("the records are damaged: ")
    after = assert_kept(library, before, readable)
    if seed % 2 == 0:  # one page: all the rest of what is known of a picture stands in another one, too
        assert {row[:2] for row in after["pictures"]} == {row[:2] for row in before["pictures"]}
        assert after["captions"] == before["captions"] and after["roots"] == before["roots"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["page", "zeros", "two", "bytes", "another", "cut"])
def test_damage_of_many_kinds(library, tmp_path, how):
    before, chance = rows_of(library / "records.sqlite"), random.Random(how)
    pages = pages_of(library / "records.sqlite")
    for number in range(40):
        copy = Path(shutil.copytree(library, tmp_path / f"{number}.library"))
        file = copy / "records.sqlite"
        data = bytearray(file.read_bytes())
        page = (number % pages) * PAGE
        if how == "cut":
            del data[chance.randrange(1, len(data)) :]
        elif how == "bytes":
            place, count = chance.randrange(len(data) - 512), chance.choice([1, 4, 16, 64, 512])
            data[place : place + count] = chance.randbytes(count)
        elif how == "another":
            other = chance.randrange(pages) * PAGE
            data[page : page + PAGE] = data[other : other + PAGE]
        else:
            places = [page, chance.randrange(pages) * PAGE] if how == "two" else [page]
            for place in places:
                data[place : place + PAGE] = bytes(PAGE) if how == "zeros" else chance.randbytes(PAGE)
        file.write_bytes(data)
        readable = readable_one_by_one(file, before)
        repaired(copy)
        assert_kept(copy, before, readable)


def test_row_numbers_that_cannot_be(library):
    file, before = library / "records.sqlite", rows_of(library / "records.sqlite")
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE vectors SET row = -1 WHERE kind = 0 AND row = 5")
    assert repaired(library)[0] == "the records are damaged: the table vectors holds what cannot be"
    assert rows_of(file)["vectors"] == before["vectors"]


@pytest.mark.parametrize("table", ["pictures", "captions", "generations", "vectors", "meta", "roots"])
def test_damage_at_the_root_of_a_table(library, table):
    file, before = library / "records.sqlite", rows_of(library / "records.sqlite")
    damage(file, root_page(file, table))
    repaired(library)
    after = rows_of(file)
    for one in ("roots", "generations", "vectors", "captions", "meta"):
        if one != "generations":
            assert after[one] == before[one], one
    assert [row[:6] for row in after["generations"]] == [row[:6] for row in before["generations"]]
    assert {row[:2] for row in after["pictures"]} == {row[:2] for row in before["pictures"]}


def test_a_table_whose_first_page_is_lost_is_known_by_its_places(library):
    file, before = library / "records.sqlite", rows_of(library / "records.sqlite")
    damage(file, 1)
    said = repaired(library)
    assert "the records are damaged: file is not a database" in said
    assert rows_of(file) == before and sequences(file) == {"pictures": N, "generations": 1}


def test_numbers_are_never_given_twice(library):
    file = library / "records.sqlite"
    with closing(open_store(str(library))) as store:
        changed(store, lambda writer: writer.remove([N, N - 1]))
    page, sequence = root_page(file, "pictures_by_content"), root_page(file, "sqlite_sequence")
    copy = Path(shutil.copytree(library, library.with_name("copy.library")))
    damage(file, page)
    repaired(library)
    assert sequences(file)["pictures"] == N
    damage(copy / "records.sqlite", sequence)
    repaired(copy)
    assert sequences(copy / "records.sqlite")["pictures"] > N


def test_values_that_sqlite_does_not_look_at(library):
    file, before = library / "records.sqlite", rows_of(library / "records.sqlite")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"jpeg", b"jp\xff\xfe", 1))  # no UTF-8: whoever lists pictures would fail
    said = repaired(library)
    assert said[0] == "the records are damaged: the table pictures holds what cannot be"
    after = rows_of(file)
    assert len(after["pictures"] & before["pictures"]) == N - 1 and len(after["pictures"]) == N
    assert after["captions"] == before["captions"]
    identities = file.read_bytes().replace(b'"engine": "onnxruntime"', b'"engine": "onnx\x22untime"', 1)
    file.write_bytes(identities)
    assert "generations" in repaired(library)[0]
    assert {row[1] for row in rows_of(file)["generations"]} == {identity().to_json()}


@pytest.mark.parametrize("name", ["f#1.library", "is it?.library", "100%41.library", "ü ü.library"])
def test_folders_of_any_name(library, name):
    folder = library.rename(library.with_name(name))
    before = rows_of(folder / "records.sqlite")
    damage(folder / "records.sqlite", root_page(folder / "records.sqlite", "pictures_by_content"))
    repaired(folder)
    assert rows_of(folder / "records.sqlite") == before


# The write-ahead log


@pytest.fixture
def in_log(library):
    """A library whose last pictures are in the log only, as after a kill."""
    writer = Database(library / "records.sqlite", write=True)
    writer.run("UPDATE pictures SET camera = 'in the log'")
    away = library.with_name("killed.library")
    shutil.copytree(library, away)
    writer.close()
    assert (away / "records.sqlite-wal").stat().st_size
    return away


def cameras(folder):
    with closing(open_store(str(folder))) as store:
        return {picture.camera for picture in store.newest(N)}, len(store)


@pytest.mark.parametrize("how", ["damaged", "first page", "empty", "gone"])
def test_what_is_in_the_log_is_kept(in_log, how):
    file = in_log / "records.sqlite"
    if how == "gone":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "first page":
        damage(file, 1)
    else:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            page = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'problems'").fetchone()[0]
        damage(file, page)
    repaired(in_log)
    seen, count = cameras(in_log)
    assert "in the log" in seen
    if how in ("damaged", "first page"):
        assert (seen, count) == ({"in the log"}, N)


def test_an_empty_file_is_refused_before_sqlite_throws_its_log_away(in_log):
    (in_log / "records.sqlite").write_bytes(b"")
    size = (in_log / "records.sqlite-wal").stat().st_size
    for write in (False, True):
        with pytest.raises(DataError, match="is empty"):
            Database(in_log / "records.sqlite", write=write)
    assert (in_log / "records.sqlite-wal").stat().st_size == size


def test_a_writer_leaves_nothing_in_the_log_though_readers_close_last(tmp_path):
    store = filled("local", tmp_path, [entry(number) for number in range(20)])
    log = Path(store.place) / "records.sqlite-wal"
    assert log.stat().st_size == 0
    store.close()
    assert len(rows_of(Path(store.place) / "records.sqlite")["pictures"]) == 20


def test_a_writer_closes_while_somebody_reads(library):
    with closing(sqlite3.connect(library / "records.sqlite", isolation_level=None)) as reader:
        writer = Database(library / "records.sqlite", write=True)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM pictures").fetchone() == (N,)
        writer.run("DELETE FROM pictures WHERE id = 1")
        writer.close()
        assert reader.execute("SELECT count(*) FROM pictures").fetchone() == (N,)
    assert len(rows_of(library / "records.sqlite")["pictures"]) == N - 1


# What goes wrong meanwhile

FULL = """
import resource, signal, sys
from pathlib import Path
from cliplet.library import repair
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    repair.repair(Path(sys.argv[1]), print)
except OSError as error:
    print("OSError", error)
"""


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_a_full_disk_leaves_what_was_there(library):
    damage(library / "records.sqlite", root_page(library / "records.sqlite", "captions_by_content"))
    files = {one.name: one.read_bytes() for one in library.iterdir() if one.suffix != ".lock"}
    done = run_python(FULL, library)
    assert "OSError" in done.stdout, done.stderr
    assert {one.name: one.read_bytes() for one in library.iterdir() if one.suffix != ".lock"} == files
    repaired(library)
    assert_kept(library, {"pictures": range(N)}, {})


def test_new_records_that_could_not_be_brought_into_their_file_are_not_used(library, monkeypatch):
    damage(library / "records.sqlite", root_page(library / "records.sqlite", "captions_by_content"))
    data = (library / "records.sqlite").read_bytes()
    monkeypatch.setattr(repair_module, "has_log", lambda file: file.name.endswith(".new"))
    with pytest.raises(OSError, match="could not be written to its end"):
        repaired(library)
    assert (library / "records.sqlite").read_bytes() == data
    assert not [one for one in library.iterdir() if one.name.startswith(".")]


def test_the_damaged_file_is_kept_as_it_was_and_nothing_is_written_over(library, monkeypatch):
    monkeypatch.setattr(repair_module.time, "strftime", lambda *_: "now")
    datas = []
    for page in (9, 7, 9):
        damage(library / "records.sqlite", page)
        datas.append((library / "records.sqlite").read_bytes())
        repaired(library)
    aside = sorted(library.glob("records.sqlite.damaged-*"))
    assert [one.name for one in aside] == [f"records.sqlite.damaged-now{more}" for more in ("", "_2", "_3")]
    assert [one.read_bytes() for one in aside] == datas


def test_a_file_system_without_links(library, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(repair_module.os, "link", refuse)
    before = rows_of(library / "records.sqlite")
    damage(library / "records.sqlite", root_page(library / "records.sqlite", "pictures_by_content"))
    assert "is kept as" in " ".join(repaired(library))
    assert rows_of(library / "records.sqlite") == before and len(list(library.glob("*.damaged-*"))) == 1


def test_another_version_is_no_damage(library):
    with closing(sqlite3.connect(library / "records.sqlite")) as database, database:
        database.execute("UPDATE meta SET value = '2'")
    with pytest.raises(DataError, match="is of format version 2"):
        repaired(library)
    with closing(sqlite3.connect(library / "records.sqlite")) as database, database:
        database.execute("UPDATE meta SET value = '1'")
    about = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps(about | {"format_version": 2}))
    with pytest.raises(DataError, match="a library of version 2"):
        repaired(library)
    assert json.loads((library / "library.json").read_text())["format_version"] == 2


def test_somebody_elses_library_json_is_left_alone(tmp_path):
    text = '{"name": "a library for microcontrollers"}'
    (tmp_path / "library.json").write_text(text)
    with pytest.raises(DataError, match="nothing of a library"):
        repaired(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["library.json"]
    assert (tmp_path / "library.json").read_text() == text


# Vectors, and what is told of them


def lose_records(folder):
    for ending in ENDINGS:
        (folder / f"records.sqlite{ending}").unlink(missing_ok=True)


def vectors_known(folder):
    with closing(open_store(str(folder))) as store, store.writing(print) as writer:
        writer.begin(identity())
        return sum(writer.has_vector(content_of(f"picture {number}")) for number in range(1, N + 1))


def test_a_mended_library_json_holds_the_model(library):
    whole = json.loads((library / "library.json").read_text())
    assert whole["identity"] and whole["generation"] == 1
    (library / "library.json").write_text("{")
    assert "library.json is damaged, and written anew" in repaired(library)
    assert json.loads((library / "library.json").read_text()) == whole
    assert [one.read_text() for one in library.glob("library.json.damaged-*")] == ["{"]
    lose_records(library)
    repaired(library)
    assert vectors_known(library) == N


def test_a_library_json_that_lacks_the_model_gets_it(library):
    whole = json.loads((library / "library.json").read_text())
    without = {key: value for key, value in whole.items() if key not in ("generation", "identity")}
    (library / "library.json").write_text(json.dumps(without))
    repaired(library)
    assert json.loads((library / "library.json").read_text()) == whole


@pytest.mark.parametrize("wrong", [{"roots": ["zz"]}, {"roots": 7}, {"identity": "{"}, {"generation": "1"}])
def test_a_library_json_that_holds_nonsense(library, wrong):
    whole = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps(whole | wrong))
    repaired(library)
    assert json.loads((library / "library.json").read_text()) == whole
    (library / "library.json").write_text(json.dumps(whole | wrong))
    lose_records(library)
    repaired(library)
    open_store(str(library)).close()


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_vectors_of_which_nothing_is_known_any_more_are_not_thrown_away(library, how):
    vectors = (library / "vectors-1.f16").read_bytes()
    (library / "library.json").write_text("{")
    if how == "gone":
        lose_records(library)
    else:
        damage(library / "records.sqlite", root_page(library / "records.sqlite", "generations"))
    said = repaired(library)
    assert any("index again with -m MODEL" in line for line in said)
    assert any("they are kept as lost-vectors-1.f16" in line for line in said)
    with closing(open_store(str(library))) as store, store.writing(print) as writer:
        writer.begin(identity("another"))
        writer.write([entry(1)] if how == "gone" else [], [])
        writer.finish(lambda: np.stack([vector(n) for n in range(20)]))
    assert (library / "lost-vectors-1.f16").read_bytes() == vectors and (library / "lost-captions-1.rows").exists()


def test_records_that_are_older_than_the_vectors(library):
    """As where only they were put back from a copy."""
    for file in [*library.glob("vectors-1.*"), *library.glob("captions-1.*")]:
        file.rename(file.with_name(file.name.replace("-1.", "-2.")))
    about = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps(about | {"generation": 2}))
    repaired(library)
    assert vectors_known(library) == N
    assert sequences(library / "records.sqlite")["generations"] == 2


def test_vectors_that_a_kill_left_behind_of_a_generation_that_was_given_up_stay_where_they_are(library):
    with closing(sqlite3.connect(library / "records.sqlite")) as database, database:
        database.execute("UPDATE sqlite_sequence SET seq = 7 WHERE name = 'generations'")
    (library / "vectors-5.f16").write_bytes(b"1234")
    repaired(library)
    assert (library / "vectors-5.f16").exists() and not list(library.glob("lost-*"))
    vectors_known(library)
    assert not (library / "vectors-5.f16").exists()


def test_what_a_row_is_of_is_held_against_the_records(library):
    with open(library / "vectors-1.rows", "r+b") as stream:
        stream.seek(4 * 20)
        stream.write(b"\xee" * 16)
    said = repaired(library)
    assert f"1 of {N} vectors of pictures are damaged; they are embedded again" in said
    assert vectors_known(library) == N - 1
    assert f"{N - 1} vectors of pictures are whole" in repaired(library)
    with closing(open_store(str(library))) as store:
        changed(store, lambda writer: writer.write([entry(5, id=5)], []))
        assert store.nearest(vector(5), 1)[0].picture.id == 5
    assert vectors_known(library) == N
    assert f"{N} vectors of pictures are whole" in repaired(library)


def test_numbers_that_are_none_do_not_disturb_a_search_after_a_repair(library):
    with open(library / "vectors-1.f16", "r+b") as stream:
        stream.seek(4 * DIMS * 2)
        stream.write(np.full(DIMS, np.nan, dtype=np.float16).tobytes())
    repaired(library)
    with closing(open_store(str(library))) as store:
        assert not np.isnan(store.sample(1000)).any()
        assert [store.nearest(vector(n), 1)[0].picture.id for n in (1, 4, 6, N)] == [1, 4, 6, N]


@pytest.mark.parametrize("lost", ["vectors-1.rows", "vectors-1.f16"])
def test_half_of_the_vectors_is_none(library, lost):
    (library / lost).unlink()
    assert f"{N} of {N} vectors of pictures are damaged; they are embedded again" in repaired(library)
    assert vectors_known(library) == 0
    with closing(open_store(str(library))) as store:
        changed(store, lambda writer: writer.write([entry(n, id=n) for n in range(1, N + 1)], []))
        assert store.nearest(vector(7), 1)[0].picture.id == 7


def test_vectors_that_were_written_after_what_the_records_tell_are_taken_up(library):
    with closing(sqlite3.connect(library / "records.sqlite")) as database, database:
        database.execute("UPDATE generations SET image_rows = 50")
        database.execute("DELETE FROM vectors WHERE kind = 0 AND row >= 50")
    os.truncate(library / "vectors-1.f16", (library / "vectors-1.f16").stat().st_size - 3)
    repaired(library)
    assert vectors_known(library) == N - 1
