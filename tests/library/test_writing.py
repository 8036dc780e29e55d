"""What the writer of a library's folder does at the end of a run, and with what others left behind."""

import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cliplet.library import Library, lance_care, local_compact
from cliplet.library.approximate import opened
from cliplet.library.local import LocalStore
from cliplet.library.nearest import Neighbours

from .quick import few_sentences
from .stores import DIMS, KINDS, changed, entry, filled, identity, vector


@pytest.fixture
def every_library_is_large(monkeypatch):
    """So that any has an approximate index."""
    plain = Neighbours.__init__

    def init(self, *arguments, **named):
        plain(self, *arguments, **{"exact_bytes": 0, **named})

    monkeypatch.setattr(Neighbours, "__init__", init)


def entries(count):
    return [entry(number) for number in range(count)]


def queries():
    return np.stack([vector(10_000 + number) for number in range(20)])


@pytest.fixture
def large(tmp_path, every_library_is_large):
    """A library without the index that it should have, as after a kill."""
    store = filled("local", tmp_path, entries(300))
    yield store
    store.close()


def finished(store):
    changed(store, lambda writer: writer.finish(queries))


def test_the_index_is_made_by_a_run_that_has_nothing_else_to_do(large):
    finished(large)
    index = large.folder / "vectors-1.usearch"
    assert index.exists() and opened(index, large._view.image_ND).rows == 300
    index.unlink()  # as --repair does, and people who need the room
    finished(large)
    assert index.exists()


def test_readers_see_an_index_that_was_made_while_they_looked(large, monkeypatch):
    reader, update = LocalStore.open(large.folder), Neighbours.update
    looked = []

    def looking(self, *arguments):
        reader.refresh()
        looked.append(reader._view.images.index)
        update(self, *arguments)

    monkeypatch.setattr(Neighbours, "update", looking)
    with large.writing(print) as writer:
        writer.begin(identity())
        writer.finish(queries)
        assert looked == [None]
        reader.refresh()  # while the writer is there still
        assert reader._view.images.index is not None
    reader.close()


def test_readers_look_again_when_the_index_was_made_and_not_when_nothing_was_due(large):
    reader, versions = LocalStore.open(large.folder), []
    with large.writing(print) as writer:
        writer.begin(identity())
        for _ in range(2):
            writer.finish(queries)
            versions.append(reader._database.version())
            reader.refresh()
            assert reader._view.images.index is not None
    assert versions[0] == versions[1]
    reader.close()


def never():
    raise AssertionError("the model was asked for features")


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_run_that_changed_nothing_writes_nothing(kind, tmp_path):
    store = filled(kind, tmp_path, entries(20))
    changed(store, lambda writer: writer.finish(never))
    files = {file: file.stat().st_mtime_ns for file in Path(tmp_path).rglob("*") if file.suffix in (".f16", ".lance")}
    with store.writing(print) as writer:
        writer.begin(identity())
        view = store._view
        writer.finish(never)
        store.refresh()
        assert store._view is view and files
    assert {file: file.stat().st_mtime_ns for file in files} == files
    store.close()


def test_tables_in_lancedb_whose_index_is_due(tmp_path, monkeypatch):
    for name, value in (("INDEXED_FROM", 200), ("ROWS_IN_PARTITION", 60), ("TESTED", 5)):
        monkeypatch.setattr(lance_care, name, value)
    store = filled("lance", tmp_path, entries(250))
    with monkeypatch.context() as patch:
        patch.setattr(lance_care, "_tuned", lambda *arguments: 1 / 0)  # a kill in the middle
        with pytest.raises(ZeroDivisionError):
            finished(store)
    finished(store)
    assert "pictures" in store._view.about.active.search
    changed(store, lambda writer: writer.finish(never))
    changed(store, lambda writer: writer.remove([1]))
    changed(store, lambda writer: writer.finish(never))
    changed(store, lambda writer: writer.write([entry(1000)], []))
    asked = []
    changed(store, lambda writer: writer.finish(lambda: asked.append(1) or queries()))
    assert asked
    store.close()


@pytest.mark.parametrize("what", ["removed", "captions"])
def test_matrices_are_cleared_when_pictures_were_only_removed(tmp_path, monkeypatch, what):
    monkeypatch.setattr(local_compact, "DEAD_LEAST", 3)
    store = filled("local", tmp_path, [entry(number, captions=(f"number {number}",)) for number in range(20)])

    def embed(writer):
        texts = writer.captions_without_vectors(100)
        writer.write_captions(texts, np.stack([vector(number) for number in range(len(texts))]))

    changed(store, embed)
    ids = [picture.id for picture in store.newest(50)]

    def less(writer):
        if what == "removed":
            writer.remove(ids[:15])
        else:
            writer.caption([(id, ()) for id in ids[:15]])
        writer.finish(never)

    changed(store, less)
    rows = {name: (store.folder / f"{name}-2.f16").stat().st_size // (2 * DIMS) for name in ("vectors", "captions")}
    assert rows == {"vectors": 5 if what == "removed" else 20, "captions": 5}
    store.close()


def test_nothing_is_measured_where_there_is_no_vector(tmp_path, photos, encoder, monkeypatch):
    few_sentences(monkeypatch)
    with Library.create(tmp_path / "l", encoder) as library:
        library.add(photos / "a")
        with closing(sqlite3.connect(tmp_path / "l" / "records.sqlite")) as records, records:
            records.execute("DELETE FROM vectors")
            records.execute("UPDATE generations SET image_rows = 0, calibration = '{}'")
        shutil.rmtree(photos / "a")
        assert library.add().pictures == 6


def test_runs_with_nothing_new_do_what_others_left_undone(
    tmp_path, photos, encoder, monkeypatch, every_library_is_large
):
    few_sentences(monkeypatch)
    monkeypatch.setattr(local_compact, "DEAD_LEAST", 3)
    folder = tmp_path / "l"
    with Library.create(folder, encoder) as library:
        with monkeypatch.context() as patch:
            patch.setattr(Neighbours, "update", lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                library.add(photos)
        assert not (folder / "vectors-1.usearch").exists()
        assert library.add().embedded == 0 and (folder / "vectors-1.usearch").exists()
        for file in folder.glob("vectors-1.usearch*"):
            file.unlink()
        assert library.add().embedded == 0 and (folder / "vectors-1.usearch").exists()
        shutil.rmtree(photos / "a")
        (photos / "b" / "c" / "07.jpg").unlink()
        summary = library.add()
        assert (summary.removed, summary.embedded) == (7, 0)
        assert (folder / "vectors-2.usearch").exists() and not list(folder.glob("vectors-1*"))
        assert (folder / "vectors-2.f16").stat().st_size == 5 * 2 * encoder.embed_dim


# What is left of other writers


@pytest.mark.parametrize("times", [1, 2])
def test_vectors_that_the_records_do_not_know_are_kept(tmp_path, times):
    store = filled("local", tmp_path, entries(5))
    place, before = store.folder, (store.folder / "vectors-1.f16").read_bytes()
    (place / "background-1.npy").write_bytes(b"x")
    store.close()
    said = []
    for _ in range(times):
        for name in ("records.sqlite", "library.json"):
            (place / name).unlink()
        shutil.copytree(place, tmp_path / "aside", dirs_exist_ok=True)
        for file in place.iterdir():
            file.unlink()
        store = LocalStore.open_or_create(place)
        for file in (tmp_path / "aside").iterdir():
            shutil.copy(file, place)
        with store.writing(said.append) as writer:
            writer.begin(identity())
            writer.write(entries(2), [])
        store.close()
    assert (place / "lost-vectors-1.f16").read_bytes() == before and (place / "lost-vectors-1.rows").exists()
    assert (place / "lost-vectors-1.2.f16").exists() == (times == 2)
    assert "vectors-1: the records know nothing of these vectors; they are kept as lost-vectors-1.f16" in said
    assert not (place / "background-1.npy").exists() and (place / "vectors-1.f16").stat().st_size == 2 * 2 * DIMS


def test_files_of_a_model_that_was_given_up_are_removed(tmp_path):
    store = filled("local", tmp_path, entries(5))
    with store.writing(print) as writer:
        writer.begin(identity("new", dims=8), upgrade=True)
        one = entry(0, id=1)
        one.features_D = vector(1, 8)
        writer.write([one], [])
    kept = (store.folder / "vectors-2.f16").read_bytes()
    said = []
    with store.writing(said.append) as writer:
        writer.begin(identity())
    assert said == ["the upgrade to new was not finished, and is given up: the 1 vectors that it has made are removed"]
    (store.folder / "vectors-2.f16").write_bytes(kept)  # as if this run had been killed before it removed the file
    changed(store, lambda writer: None)
    assert sorted(file.name for file in store.folder.glob("*vectors*.f16")) == ["vectors-1.f16"]
    store.close()


# Captions


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_given_out_once(kind, tmp_path):
    texts = [f"caption {number}" for number in range(50)]
    store = filled(kind, tmp_path, [entry(number, captions=tuple(texts[number::10])) for number in range(10)])
    given = []

    def embed(writer):
        assert len(writer.captions_without_vectors(7)) == 7  # which are not written, and come again
        while some := writer.captions_without_vectors(7):
            given.extend(some)
            writer.write_captions(some, np.stack([vector(number) for number in range(len(some))]))
            if len(given) == 21:
                writer.caption([(1, ("another", *texts[:3]))])
            if len(given) == 28:
                writer.write([entry(60, captions=("one more", texts[0]))], [])

    changed(store, embed)
    assert len(given) == len(set(given)) and set(given) >= {"another", "one more"}
    assert store.captions_count() == len(given)
    left = {text for picture in store.newest(50) for text in picture.captions}
    assert left <= set(given)
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_not_looked_through_again_for_each_batch(kind, tmp_path):
    """The time of a batch does not grow with what is embedded already."""
    pictures = [entry(number, captions=tuple(f"{number} {n}" for n in range(400))) for number in range(50)]
    store = filled(kind, tmp_path, pictures)
    times = []

    def embed(writer):
        features = np.stack([vector(number) for number in range(500)])
        while True:
            began = time.process_time()
            some = writer.captions_without_vectors(500)
            times.append(time.process_time() - began)
            if not some:
                break
            writer.write_captions(some, features[: len(some)])

    changed(store, embed)
    assert len(times) == 41 and sum(times[30:40]) < 3 * sum(times[1:11]) + 0.02
    store.close()


def test_another_place_of_the_model_is_remembered(tmp_path):
    for kind in KINDS:
        store = filled(kind, tmp_path, entries(2))
        moved = replace(identity(), source="/new/place", engine="torch")
        with store.writing(print) as writer:
            writer.begin(moved)
        store.refresh()
        assert (store.identity.source, store.identity.engine) == ("/new/place", "onnxruntime")
        store.close()
