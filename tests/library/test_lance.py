"""What is a library's own in LanceDB: tables that change together, two writers, storage of others, indexes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from cliplet.errors import DataError, ModelError
from cliplet.library import Library, lance_care, lance_lease, lance_tables
from cliplet.library.lance_tables import Place, storage_options
from cliplet.library.lance_writer import LanceWriter
from cliplet.library.store import create_store, open_store
from cliplet.library.where import parse

from .conftest import paint
from .stores import changed, entry, filled, identity, s3_server, vector


@pytest.fixture
def store(tmp_path):
    with_pictures = filled("lance", tmp_path, [entry(n, captions=(f"number {n}",)) for n in range(1, 6)])
    yield with_pictures
    with_pictures.close()


def test_a_library_is_used_like_any_other(photos, tmp_path, encoder):
    place = f"lance:{tmp_path / 'tables'}"
    with Library.create(place, encoder) as library:
        summary = library.add(photos, captions={str(photos / "a" / "00.png"): ["a boat on the lake"]})
        assert (summary.added, summary.embedded, summary.captions) == (12, 12, 1)
    files = tmp_path / "files"
    with Library.create(files, encoder) as other:
        other.add(photos)
        with Library.open(place, encoder) as library:
            for query in ("a red boat", "two dogs"):
                expected, got = other.search(query, 12), library.search(query, 12)
                assert [hit.path for hit in got] == [hit.path for hit in expected]
                assert [hit.score for hit in got] == pytest.approx([hit.score for hit in expected], abs=1e-3)
                assert got.nothing_fits == expected.nothing_fits
            assert library.captions("a boat on the lake")[0].text == "a boat on the lake"
            assert library.search("a boat", by="captions")[0].path == str(photos / "a" / "00.png")
            (photos / "a" / "01.jpg").rename(photos / "moved.jpg")
            (photos / "a" / "03.jpg").unlink()
            paint(photos / "a" / "05.jpg", 99)
            summary = library.add()
            done = (summary.moved, summary.removed, summary.changed, summary.embedded, summary.unchanged)
            assert done == (1, 1, 1, 1, 9) and len(library) == 11
            assert library.add().unchanged == 11
            assert library.search("a boat", where="name = 'moved.jpg'")[0].path == str(photos / "moved.jpg")


@pytest.mark.slow
def test_lancedb_itself_opens_the_tables(store, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(str(tmp_path / "tables")).open_table("pictures")
    found = table.search(vector(3)).metric("cosine").where("year > 2001", prefilter=True).limit(2).to_list()
    assert [one["path"] for one in found[:1]] == ["/photos/003.jpg"] and table.count_rows() == 5


def test_names_that_are_not_utf8_are_problems(tmp_path):
    store = create_store(f"lance:{tmp_path / 'tables'}")
    with store.writing(print) as writer:
        writer.begin(identity())
        writer.write([entry(1), entry(2, path="/photos/\udcff.jpg")], [])
        assert writer.refusal("/photos/\udcff.jpg") and not writer.refusal("/photos/日本\n.jpg")
        assert writer.problems() == {"/photos/\udcff.jpg": (1002, 2 * 10**9)} and list(writer.known()) == [
            "/photos/001.jpg"
        ]


def test_texts_that_are_not_utf8_are_written_as_they_can_be(store):
    changed(store, lambda writer: writer.write([entry(9, camera="a\udcff", captions=("b\ud800", "c's"))], []))
    picture = store.newest(1)[0]
    assert picture.camera == "a\\udcff" and picture.captions == ("b\\ud800", "c's")
    assert changed(store, lambda writer: writer.captions_without_vectors(9))[-2:] == ["b\\ud800", "c's"]


def test_what_was_never_named_is_taken_back(store, monkeypatch):
    def dies(*arguments):
        raise KeyboardInterrupt

    with store.writing(print) as writer:
        writer.begin(identity())
        with monkeypatch.context() as patch:
            patch.setattr("cliplet.library.lance_session.publish", dies)
            with pytest.raises(KeyboardInterrupt):
                writer.write([entry(2, id=2), entry(9)], [("/photos/001.jpg", 1, 1, "bad")])
        with pytest.raises(DataError, match="a change failed before"):
            writer.write([entry(10)], [])
    store.refresh()
    assert len(store) == 5 and store.picture(2).captions == ("number 2",)
    known, problems = changed(store, lambda writer: (writer.known(), writer.problems()))
    assert len(known) == 5 and problems == {}
    changed(store, lambda writer: writer.write([entry(9)], []))
    assert len(store) == 6 and len({one.path for one in store.newest(10)}) == 6


def test_of_two_writers_one_fails(store):
    """As on object storage, where nothing but the commits keeps them apart."""
    place = Place.of(store.place)
    one, other = LanceWriter(place), LanceWriter(place)
    for writer in (one, other):
        writer.begin(identity())
    one.write([entry(8)], [])
    with pytest.raises(DataError, match="another process has written to the library meanwhile"):
        other.write([entry(9)], [])
    with pytest.raises(DataError, match="another process has written to the library meanwhile"):
        one.write([entry(10)], [])  # upon what the other left in the table of pictures
    store.refresh()
    assert sorted(one.name for one in store.newest(10)) == [*(f"00{n}.jpg" for n in range(1, 6)), "008.jpg"]
    changed(store, lambda writer: writer.write([entry(9)], []))
    assert len(store) == len({one.id for one in store.newest(10)}) == 7


def test_a_table_that_is_damaged_is_said_to_be(store, tmp_path):
    for file in (tmp_path / "tables" / "pictures.lance" / "data").iterdir():
        file.write_bytes(b"nothing")
    again = open_store(store.place)
    with pytest.raises(DataError, match="cannot be read") as error:
        again.nearest(vector(1), 3)
    assert ".rs:" not in error.value.message
    for file in (tmp_path / "tables" / "library.lance" / "_versions").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        open_store(store.place)


def test_tables_of_others_and_of_other_versions(tmp_path, monkeypatch):
    import lance
    import pyarrow as pa

    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "tables" / "library.lance"))
    with pytest.raises(DataError, match="none of cliplet's"):
        open_store(f"lance:{tmp_path / 'tables'}")
    monkeypatch.setattr(lance_tables, "FORMAT_VERSION", 9)
    place = create_store(f"lance:{tmp_path / 'newer'}").place
    monkeypatch.undo()
    with pytest.raises(DataError, match="version 9"):
        open_store(place)
    assert Place.of("lance:file:///a/b/").folder == Path("/a/b") == Place.of("lance:/a/b").folder
    assert Place.of("lance:s3://bucket/b").folder is None
    with pytest.raises(DataError, match="names no place"):
        open_store("lance:")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package pylance") as error:
        open_store(place)
    assert "[scale]" in error.value.hint


def test_the_usual_variables_say_where_s3_is(monkeypatch):
    for name in (*lance_tables.AWS, *lance_tables.ENDPOINTS):
        monkeypatch.delenv(name, raising=False)
    assert storage_options("s3://bucket/x") == {} == storage_options("/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    options = storage_options("s3://bucket/x")
    assert options == {"aws_access_key_id": "key", "aws_endpoint": "http://127.0.0.1:9", "allow_http": "true"}
    assert storage_options("/x") == {} and "key" not in repr(Place.of("lance:s3://bucket/x"))


def test_small_files_are_put_together_and_old_tables_go(store, tmp_path, monkeypatch):
    monkeypatch.setattr(lance_care, "LOOSE", 4)

    def write(writer):
        for number in range(10, 30):
            writer.write([entry(number)], [])
        return len(writer.pictures.dataset.get_fragments())

    assert changed(store, write) < 8 and len(store) == 25
    with store.writing(print) as writer:
        writer.begin(identity("new", dims=8), upgrade=True)
        one = entry(1, id=1)
        one.features_D = vector(1, 8)
        writer.write([one], [])
        writer.finish(lambda: np.stack([vector(1, 8)]))
        assert [name for name, _ in writer.about.retired] == ["pictures"] and (
            tmp_path / "tables" / "pictures.lance"
        ).is_dir()
    assert store.nearest(vector(3), 1)[0].picture.id == 3  # a reader that has not looked since
    store.refresh()
    assert len(store) == 1
    monkeypatch.setattr(lance_care, "KEPT_FOR", lance_care.timedelta(0))
    changed(store, lambda writer: writer.finish(lambda: np.stack([vector(1, 8)])))
    assert not (tmp_path / "tables" / "pictures.lance").exists() and len(open_store(store.place)) == 1


def test_many_rows_get_an_index_that_finds_what_comparing_all_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(lance_care, "INDEXED_FROM", 600)
    monkeypatch.setattr(lance_care, "ROWS_IN_PARTITION", 60)
    monkeypatch.setattr("cliplet.library.lance_view.FEW", 20)
    entries = [entry(n, captions=(f"number {n}",)) for n in range(700)]
    store = filled("lance", tmp_path, entries)
    queries_QD = np.stack([vector(10_000 + n) for n in range(40)])
    exactly = [store.nearest(query_D, 10) for query_D in queries_QD]
    few, many = parse("year < 2015"), parse("year < 2400")
    filtered = [store.nearest(query_D, 10, many) for query_D in queries_QD]
    changed(store, lambda writer: writer.finish(lambda: queries_QD))
    search = store._view.about.active.search["pictures"]
    assert search["recall"] >= 0.98

    def recall(right, where=None):
        found = [store.nearest(query_D, 10, where) for query_D in queries_QD]
        pairs = zip(*([{hit.picture.id for hit in hits} for hits in side] for side in (right, found)), strict=True)
        return np.mean([len(one & other) / 10 for one, other in pairs])

    assert recall(exactly) >= 0.97 and recall(filtered, many) >= 0.9
    assert len(store.nearest(queries_QD[0], 10, few)) == 10
    assert {one.picture.year for one in store.nearest(queries_QD[0], 15, few)} == set(range(2000, 2015))
    assert [store.picture(id).name for _, id in store.captioned(["number 77"])["number 77"]] == ["077.jpg"]
    changed(store, lambda writer: writer.write([entry(9000)], []))  # it is found though the index does not know it
    assert store.nearest(vector(9000), 1)[0].picture.name == "9000.jpg"
    changed(store, lambda writer: writer.finish(lambda: queries_QD))
    assert store.nearest(vector(9000), 1)[0].picture.name == "9000.jpg" and recall(exactly) >= 0.97


@pytest.fixture(scope="module")
def s3():
    """A bucket."""
    with s3_server() as place:
        yield place


@pytest.mark.slow
def test_a_library_on_object_storage(s3, photos, encoder):
    place = f"{s3}/photographs"
    with pytest.raises(DataError, match="is no library"):
        Library.open(place)
    with Library.create(place, encoder) as library:
        assert library.add(photos).added == 12
        expected = [hit.path for hit in library.search("a red boat", 12)]
    cosine_N = encoder.encode_image(expected) @ encoder.encode_text(["a red boat"])[0]
    assert list(cosine_N) == sorted(cosine_N, reverse=True)
    with Library.open(place) as library:
        assert [hit.path for hit in library.search("a red boat", 12)] == expected
        assert library.add().unchanged == 12


@pytest.mark.slow
def test_two_writers_on_object_storage(s3, monkeypatch):
    monkeypatch.setattr(lance_lease, "ASK_EVERY", 0.1)
    store = create_store(f"{s3}/two")
    with store.writing(print) as writer:
        writer.begin(identity())
        with pytest.raises(DataError, match=f"another process is writing to the library: process {os.getpid()}"):
            changed(open_store(store.place), lambda writer: None)
    said = []
    lease = lance_lease._Lease(Place.of(store.place))
    assert lease.taken() == ""
    lease._ended.set()  # as one that was killed
    monkeypatch.setattr(lance_lease, "STALE", 1.0)
    with store.writing(said.append, wait=True) as writer:
        writer.begin(identity())
        writer.write([entry(1)], [])
    assert said and "waiting for another process" in said[0]
    place = Place.of(store.place)
    one, other = LanceWriter(place), LanceWriter(place)
    for writer in (one, other):
        writer.begin(identity())
    one.write([entry(2)], [])
    with pytest.raises(DataError, match="meanwhile"):
        other.write([entry(3)], [])
    store.refresh()
    assert [picture.name for picture in store.newest(5)] == ["002.jpg", "001.jpg"]


def _race(place, number, begin):
    begin.wait()
    try:
        with open_store(place).writing(lambda message: None) as writer:
            writer.begin(identity())
            for n in range(5):
                writer.write([entry(100 * number + n)], [])
        return 5
    except DataError:
        return 0


@pytest.mark.slow
def test_writers_that_begin_at_once(s3):
    """Each that says it wrote has, and nothing else is there."""
    store = create_store(f"{s3}/race")
    changed_by = Barrier(4)
    with store.writing(print) as writer:
        writer.begin(identity())
    with ThreadPoolExecutor(4) as pool:
        wrote = list(pool.map(lambda number: _race(store.place, number, changed_by), range(4)))
    store.refresh()
    names = sorted(one.name for one in store.newest(100))
    assert len(names) == len(set(names)) == sum(wrote) > 0
