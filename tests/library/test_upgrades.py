"""Upgrades to another model that cannot see all pictures, and models that are not where they were."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cliplet.errors import DataError, ModelError
from cliplet.library import Library, adding, indexing
from cliplet.library.identity import open_again
from cliplet.models import DualEncoder

from .conftest import paint
from .quick import few_sentences, refusing, workers_here
from .stores import KINDS, place_of


@pytest.fixture(scope="module")
def other(tiny_config, tmp_path_factory):
    """A model with other vectors."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other") / "model"
    DualEncoder.build(tiny_config, ["some other words"]).eval().save_pretrained(folder, card="# card\n")
    return folder


@pytest.fixture(params=KINDS)
def library(request, tmp_path, photos, encoder, monkeypatch):
    """Twelve pictures with captions, in two folders."""
    few_sentences(monkeypatch)
    captions = {str(path): [f"this is {path.name}"] for path in photos.rglob("*.*")}
    with Library.create(place_of(request.param, tmp_path), encoder) as library:
        library.add(photos / "a", photos / "b", captions=captions)
        yield library


def captioned(library):
    return {picture.name: picture.id for picture in library.newest(50) if f"this is {picture.name}" in picture.captions}


def test_an_upgrade_without_a_folder_is_not_finished(library, photos, other):
    before, found = captioned(library), [hit.id for hit in library.search("a boat", k=20)]
    (photos / "b").rename(photos.with_name("away"))
    with pytest.raises(DataError, match="not finished: 6 pictures are in places") as refused:
        library.add(model=other, upgrade=True)
    assert "drive" in refused.value.hint and "--forget" in refused.value.hint
    library.refresh()
    assert captioned(library) == before and [hit.id for hit in library.search("a boat", k=20)] == found
    photos.with_name("away").rename(photos / "b")
    summary = library.add(model=other, upgrade=True)
    assert (summary.embedded, summary.pictures, summary.removed) == (6, 12, 0) and captioned(library) == before
    with Library.open(library.store.place) as upgraded:
        assert len(upgraded.search("a boat", k=20)) == 12 and upgraded.identity.source == str(other)


def test_an_upgrade_goes_on_without_a_folder_that_is_forgotten(library, photos, other):
    shutil.rmtree(photos / "b")
    with pytest.raises(DataError, match="not finished"):
        library.add(model=other, upgrade=True)
    summary = library.add(model=other, upgrade=True, forget=[str(photos / "b")])
    assert summary.pictures == 6
    with Library.open(library.store.place) as upgraded:
        assert len(upgraded.search("a boat", k=20)) == 6


def test_an_upgrade_of_nothing_but_a_missing_folder(library, photos, other):
    for folder in "ab":
        (photos / folder).rename(photos.with_name(f"away {folder}"))
    with pytest.raises(DataError, match="not finished: 12 pictures"):
        library.add(model=other, upgrade=True)
    assert len(library.search("a boat", k=20)) == 12


def test_a_file_that_cannot_be_read_does_not_hold_an_upgrade_up(library, other, tmp_path):
    before, said = captioned(library), []
    with refusing("00.png", "07.jpg"):
        summary = library.add(model=other, upgrade=True, say=said.append, quarantine=tmp_path / "q.jsonl")
        assert (summary.failed, summary.removed) == (2, 0)
        assert any(line.startswith("2 pictures of the library cannot be read now") for line in said)
        assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2
        with Library.open(library.store.place) as upgraded:
            assert len(upgraded.search("a boat", k=20)) == 10
            assert upgraded.add().failed == 2  # they are tried again, and kept again
    with Library.open(library.store.place) as upgraded:
        summary = upgraded.add()
        assert (summary.embedded, summary.added, summary.pictures) == (2, 0, 12)
        assert captioned(upgraded) == before and len(upgraded.search("a boat", k=20)) == 12


def test_pictures_that_wait_for_their_file_go_through_another_upgrade(library, encoder, other):
    before = captioned(library)
    with refusing("00.png"):
        library.add(model=other, upgrade=True)
        with Library.open(library.store.place) as upgraded:
            upgraded.add(model=encoder.source, engine="onnxruntime", precision="fp32", upgrade=True)
    with Library.open(library.store.place) as upgraded:
        assert upgraded.add().pictures == 12 and captioned(upgraded) == before


def test_pictures_that_wait_for_their_file_and_workers_of_ray(photos, encoder, exported_model, tmp_path, monkeypatch):
    """An upgrade by them, too: all is embedded anew, though it is the same model."""
    few_sentences(monkeypatch)
    with Library.create(place_of("lance", tmp_path), encoder) as library, workers_here():
        library.add(photos, captions={str(path): [f"this is {path.name}"] for path in photos.rglob("*.*")})
        before = captioned(library)
        with refusing("00.png", "07.jpg"), monkeypatch.context() as patch:
            patch.setattr("cliplet.library.bulk_worker.read_file", indexing.read_file)
            summary = library.add(model=exported_model, upgrade=True, workers="ray")
            assert (summary.failed, summary.removed, summary.pictures) == (2, 0, 10)
        summary = library.add(workers="ray")
        assert (summary.embedded, summary.added, summary.pictures) == (2, 0, 12) and captioned(library) == before
        summary = library.add()
        assert (summary.unchanged, summary.pictures, summary.failed) == (12, 12, 0)


def test_pictures_that_wait_for_their_file_and_are_removed(library, photos, other):
    with refusing("00.png", "01.jpg"):
        library.add(model=other, upgrade=True)
    (photos / "a" / "00.png").unlink()
    (photos / "a" / "01.jpg").write_bytes(b"no picture any more")
    with Library.open(library.store.place) as upgraded:
        summary = upgraded.add()
        assert (summary.removed, summary.failed, summary.pictures) == (1, 1, 10)
        assert upgraded.add().unchanged == 10


def test_files_that_cannot_be_read_are_more_than_a_few(library, other, monkeypatch):
    monkeypatch.setattr(adding, "UNREAD_LEAST", 1)
    with (
        refusing("00.png", "07.jpg"),
        pytest.raises(DataError, match="2 pictures cannot be read now; the old vectors go on") as refused,
    ):
        library.add(model=other, upgrade=True)
    assert "--quarantine" in refused.value.hint
    assert len(library.search("a boat", k=20)) == 12


def test_files_that_vanish_while_an_upgrade_is_made(library, photos, other, monkeypatch):
    """As of a drive below one of the folders."""
    monkeypatch.setattr(adding, "UNREAD_LEAST", 1)
    read = indexing.read_file

    def vanishing(path):
        if (photos / "b" / "c").exists():
            (photos / "b" / "c").rename(photos / "away")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "read_file", vanishing)
        with pytest.raises(DataError, match="6 pictures cannot be read now"):
            library.add(model=other, upgrade=True)
    assert len(library.search("a boat", k=20)) == 12
    (photos / "away").rename(photos / "b" / "c")
    assert library.add(model=other, upgrade=True).pictures == 12


def test_a_known_picture_that_cannot_be_read_is_kept(library, photos):
    before = captioned(library)
    paint(photos / "a" / "00.png", 99)
    with refusing("00.png"):
        summary = library.add()
    assert (summary.failed, summary.removed, summary.pictures) == (1, 0, 12) and captioned(library) == before
    assert library.add().changed == 1 and captioned(library) == before


def test_a_picture_whose_decoder_is_gone_is_kept(library, other, monkeypatch):
    import cliplet.data.images as images

    before = captioned(library)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_formats", lambda: ["PNG"])
        patch.setattr(adding, "UNREAD_SHARE", 1)
        library.add(model=other, upgrade=True)
    with Library.open(library.store.place) as upgraded:
        assert upgraded.add().pictures == 12 and captioned(upgraded) == before


def test_an_unfinished_upgrade_that_is_given_up_is_said_to_be(library, photos, other):
    (photos / "b").rename(photos.with_name("away"))
    with pytest.raises(DataError, match="not finished"):
        library.add(model=other, upgrade=True)
    said = []
    library.add(say=said.append)
    assert any("was not finished, and is given up: the 6 vectors" in line and str(other) in line for line in said)
    said.clear()
    library.add(say=said.append)
    assert not any("given up" in line for line in said)


def test_a_model_that_was_moved(library, exported_model, tmp_path, photos):
    model = Path(shutil.copytree(exported_model, tmp_path / "model"))
    library.add(model=model)
    moved = model.rename(tmp_path / "elsewhere")
    with Library.open(library.store.place) as again, pytest.raises(ModelError, match="cannot be opened") as error:
        again.search("a boat")
    assert "cliplet index --library LIBRARY -m MODEL" in error.value.hint
    with Library.open(library.store.place) as again:
        assert again.add(model=moved).unchanged == 12
    with Library.open(library.store.place) as again:
        assert again.identity.source == str(moved) and len(again.search("a boat")) == 10
        paint(photos / "a" / "new.png", 80)
        assert again.add().added == 1
    if not str(library.store.place).startswith("lance:"):
        about = json.loads(Path(library.store.place, "library.json").read_text())
        assert json.loads(about["identity"])["source"] == str(moved)


def test_a_folder_that_is_no_model_any_more(library, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError) as error:
        open_again("l", replace(library.identity, source=str(tmp_path / "empty")))
    assert error.value.hint == "Name where it is now: cliplet index --library LIBRARY -m MODEL."
