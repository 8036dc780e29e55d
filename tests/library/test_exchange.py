"""Files that have each other's names now: what is known of pictures follows their contents."""

import os
import shutil
from pathlib import Path

import pytest

from cliplet.library import Library, Query, indexing

from .conftest import paint
from .quick import few_sentences, refusing, workers_here
from .stores import KINDS, place_of


@pytest.fixture(params=KINDS)
def place(request, tmp_path, monkeypatch):
    few_sentences(monkeypatch)
    return place_of(request.param, tmp_path)


@pytest.fixture(params=["at once", "one by one"])
def library(request, place, encoder, monkeypatch):
    """Empty; what is written is committed at once, or picture by picture."""
    if request.param == "one by one":
        monkeypatch.setattr(indexing, "COMMIT_SECONDS", -1.0)
    with Library.create(place, encoder) as library:
        yield library


@pytest.fixture
def numbered(tmp_path):
    """Four pictures, alike in size, so that only their contents tell them apart."""
    folder = tmp_path / "numbered"
    for number in range(4):
        file = paint(folder / f"IMG_{number}.png", number)
        file.write_bytes(file.read_bytes().ljust(9000, b"\0"))
    return folder


def filled(library, folder):
    """With captions that name what the pictures are; returns each picture's number by its content."""
    library.add(folder, captions={str(path): [f"was {path.stem}"] for path in folder.iterdir()}, batch_size=1)
    return {Path(picture.path).read_bytes(): picture for picture in library.newest(50)}


def assert_follows(library, before, encoder, new=()):
    """Each picture whose content was known has its number, captions, date and vector."""
    now = library.newest(50)
    assert len({picture.path for picture in now}) == len(now) == len(library)
    assert {Path(picture.path).name for picture in now} == {picture.name for picture in now}
    vectors = library.store.features([picture.id for picture in now])
    for picture, vector_D in zip(now, vectors, strict=True):
        content = Path(picture.path).read_bytes()
        if picture.name in new:
            assert picture.captions == () and picture.id not in {one.id for one in before.values()}
        else:
            was = before[content]
            assert (picture.id, picture.captions, picture.added) == (was.id, was.captions, was.added)
        assert vector_D @ encoder.encode_image([picture.path])[0] > 0.999
    return now


def rename(folder, *pairs):
    """All at once: (before, after)."""
    for before, _ in pairs:
        (folder / f"IMG_{before}.png").rename(folder / f"x{before}")
    for before, after in pairs:
        (folder / f"x{before}").rename(folder / f"IMG_{after}.png")
        os.utime(folder / f"IMG_{after}.png")  # as some programs leave it, and the tests must not be too quick


@pytest.mark.parametrize(
    "pairs", [[(0, 1), (1, 2), (2, 3), (3, 4)], [(3, 2), (2, 1), (1, 0), (0, 9)], [(0, 1), (1, 0)]], ids=str
)
def test_captions_follow_files_that_are_renumbered_or_swapped(library, numbered, encoder, pairs):
    before = filled(library, numbered)
    rename(numbered, *pairs)
    summary = library.add(batch_size=1)
    assert len(assert_follows(library, before, encoder)) == 4
    done = (summary.moved, summary.added, summary.changed, summary.removed, summary.embedded)
    assert done == (len(pairs), 0, 0, 0, 0)
    assert library.add().unchanged == 4


def test_a_file_that_takes_the_place_of_one_that_is_gone(library, numbered, encoder):
    before = filled(library, numbered)
    (numbered / "IMG_1.png").unlink()
    rename(numbered, (0, 1))
    summary = library.add(batch_size=1)
    assert (summary.moved, summary.removed, summary.embedded) == (1, 1, 0)
    assert len(assert_follows(library, before, encoder)) == 3


def test_the_original_that_is_kept_under_another_name(library, numbered, encoder):
    before = filled(library, numbered)
    for name in ("z_original.png", "original.png"):
        shutil.copy(numbered / "IMG_0.png", numbered / name)
    paint(numbered / "IMG_0.png", 50)
    for number in range(60, 63):
        paint(numbered / f"b{number}.png", number)
    new = {"IMG_0.png", "b60.png", "b61.png", "b62.png"}
    summary = library.add(batch_size=1)
    assert (summary.moved, summary.added, summary.changed, summary.embedded) == (1, 5, 0, 4)
    copies = {picture.name: picture.captions for picture in library.newest(9) if picture.name.endswith("original.png")}
    assert sorted(copies.values()) == [(), ("was IMG_0",)]
    (copy,) = (name for name, captions in copies.items() if not captions)
    assert_follows(library, before, encoder, {*new, copy})


def test_pictures_that_only_have_another_time_or_content_keep_their_numbers(library, numbered, encoder):
    before = filled(library, numbered)
    os.utime(numbered / "IMG_0.png", ns=(1, 1))
    shutil.copy(numbered / "IMG_0.png", numbered / "copy.png")
    paint(numbered / "IMG_1.png", 51)
    summary = library.add(batch_size=1)
    assert (summary.changed, summary.added, summary.moved, summary.removed) == (2, 1, 0, 0)
    now = {picture.name: picture for picture in library.newest(9)}
    was = {picture.name: picture for picture in before.values()}
    assert all((now[name].id, now[name].captions) == (was[name].id, was[name].captions) for name in was)


def test_a_run_that_dies_among_renumbered_files_loses_nothing(library, numbered, encoder, monkeypatch):
    before = filled(library, numbered)
    rename(numbered, (0, 1), (1, 2), (2, 3), (3, 4))
    with monkeypatch.context() as patch:
        read, seen = indexing.read_file, []

        def dying(path):
            seen.append(path)
            if len(seen) > 2:
                raise KeyboardInterrupt
            return read(path)

        patch.setattr(indexing, "read_file", dying)
        with pytest.raises(KeyboardInterrupt):
            library.add(batch_size=1)
    library.refresh()
    assert len(library) == 4
    library.add(batch_size=1)
    assert len(assert_follows(library, before, encoder)) == 4


def test_a_renumbered_file_that_cannot_be_read_yet(library, numbered, encoder, monkeypatch):
    before = filled(library, numbered)
    rename(numbered, (0, 1), (1, 0))
    read = indexing.read_file

    with monkeypatch.context() as patch:  # it could be, when contents were compared

        def failing(path):
            if path.endswith("IMG_1.png"):
                raise indexing.ImageError(f"{path}: cannot be read: Input/output error")
            return read(path)

        patch.setattr(indexing, "read_file", failing)
        summary = library.add(batch_size=1)
        assert (summary.removed, summary.failed) == (0, 1)
    library.add(batch_size=1)
    assert len(assert_follows(library, before, encoder)) == 4
    with refusing("IMG_0.png"):
        rename(numbered, (0, 1), (1, 0))
        assert library.add(batch_size=1).removed == 0
    library.add(batch_size=1)
    assert len(library) == 4 and sorted(one.captions for one in library.newest(9)) == sorted(
        one.captions for one in before.values()
    )


def test_files_are_renumbered_while_an_upgrade_is_made(library, numbered, tiny_config, tmp_path):
    import torch

    from cliplet.models import DualEncoder

    before = filled(library, numbered)
    torch.manual_seed(1)
    other = tmp_path / "other"
    DualEncoder.build(tiny_config, ["some other words"]).eval().save_pretrained(other, card="# card\n")
    rename(numbered, (0, 1), (1, 2), (2, 0))
    library.add(model=other, upgrade=True, batch_size=1)
    with Library.open(library.store.place) as upgraded:
        assert_follows(upgraded, before, upgraded.encoder)


def test_a_content_that_vanishes_while_it_is_read_is_embedded_again(library, numbered, encoder, monkeypatch):
    """Files that change during the run: nobody could know before."""
    filled(library, numbered)
    content = (numbered / "IMG_0.png").read_bytes()
    paint(numbered / "IMG_0.png", 50)
    late = paint(numbered / "IMG_00.png", 64)  # it is read before the other one is written
    looked = indexing.exchanged

    def then_changing(*arguments):
        found = looked(*arguments)
        late.write_bytes(content)
        return found

    monkeypatch.setattr(indexing, "exchanged", then_changing)
    library.add(batch_size=1)
    assert library.search(Query.of_picture(late))[0].path == str(late)
    names = {picture.name: picture.id for picture in library.newest(50)}
    vectors = library.store.features([names["IMG_00.png"], names["IMG_0.png"]])
    for name, vector_D in zip(("IMG_00.png", "IMG_0.png"), vectors, strict=True):
        assert vector_D @ encoder.encode_image([str(numbered / name)])[0] > 0.999


def test_workers_of_ray_follow_contents_too(numbered, encoder, tmp_path, monkeypatch):
    few_sentences(monkeypatch)

    with Library.create(place_of("lance", tmp_path), encoder) as library:
        before = filled(library, numbered)
        rename(numbered, (0, 1), (1, 0), (2, 5))
        shutil.copy(numbered / "IMG_3.png", numbered / "copy.png")
        paint(numbered / "IMG_3.png", 70)
        with workers_here():
            summary = library.add(workers="ray")
        assert (summary.moved, summary.added, summary.changed, summary.removed) == (4, 1, 0, 0)
        assert len(assert_follows(library, before, encoder, {"IMG_3.png"})) == 5
