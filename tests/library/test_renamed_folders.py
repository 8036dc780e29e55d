"""Folders that were renamed, that are links to one another, or lie in one another."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from cliplet.errors import DataError
from cliplet.library import Library
from cliplet.library.same_folders import other_names
from cliplet.library.scan import look
from cliplet.models import DualEncoder

from .conftest import paint
from .quick import few_sentences, workers_here
from .stores import KINDS, place_of


@pytest.fixture(params=KINDS)
def library(request, tmp_path, encoder, monkeypatch):
    few_sentences(monkeypatch)
    with Library.create(place_of(request.param, tmp_path), encoder) as library:
        yield library


@pytest.fixture
def folder(tmp_path):
    """Four pictures, one of them in a folder below."""
    for number in range(4):
        paint(tmp_path / "aa" / ("in" if number == 3 else "") / f"{number}.png", number)
    return tmp_path / "aa"


def filled(library, folder):
    """With captions by the names of files; what is known of each."""
    library.add(folder, captions={str(path): [f"this is {path.name}"] for path in Path(folder).rglob("*.png")})
    return known(library)


def known(library):
    return {one.name: (one.id, one.captions, one.added) for one in library.newest(50)}


# The top folder was renamed


def test_a_top_folder_that_was_renamed_keeps_what_is_known(library, folder, tmp_path):
    before, said = filled(library, folder), []
    renamed = folder.rename(tmp_path / "aa2")
    paint(renamed / "new.png", 50)
    summary = library.add(renamed, say=said.append)
    assert (summary.moved, summary.added, summary.embedded, summary.pictures) == (4, 1, 1, 5)
    after = known(library)
    assert {name: after[name] for name in before} == before
    assert {one.folder for one in library.newest(9)} == {str(renamed), str(renamed / "in")}
    assert f"{folder}: is not there, or empty now; no picture is left in it" in said[-1]
    library.add(forget=[str(folder)])
    assert known(library) == after and library.add().unchanged == 5


def test_what_was_not_found_elsewhere_is_kept(library, folder, tmp_path):
    before, said = filled(library, folder), []
    shutil.copytree(folder / "in", tmp_path / "bb")
    shutil.rmtree(folder)
    summary = library.add(tmp_path / "bb", say=said.append)
    assert (summary.moved, summary.removed, summary.pictures) == (1, 0, 4) and known(library) == before
    assert said == [f"{folder}: is not there, or empty now; its 3 pictures are kept (--forget {folder} removes them)"]


def test_a_copy_beside_the_picture_is_a_new_one(library, folder, tmp_path):
    before = filled(library, folder)
    shutil.copytree(folder, tmp_path / "bb")
    summary = library.add(tmp_path / "bb")
    assert (summary.moved, summary.added, summary.pictures) == (0, 4, 8)
    assert {one.path: one.id for one in library.newest(9)}[str(folder / "0.png")] == before["0.png"][0]


def test_a_file_of_which_the_disk_says_nothing_is_there(library, folder, tmp_path, monkeypatch):
    """As on a drive whose folder cannot be listed."""
    before, lstat = filled(library, folder), os.lstat
    shutil.copytree(folder, tmp_path / "bb")
    shutil.rmtree(folder)

    def refused(path, **more):
        if str(path).startswith(str(folder)):
            raise OSError(5, "Input/output error")
        return lstat(path, **more)

    monkeypatch.setattr("cliplet.library.scan.os.lstat", refused)
    assert library.add(tmp_path / "bb").moved == 0
    assert {name: one[0] for name, one in before.items()}.items() <= {
        Path(one.path).name: one.id for one in library.newest(9) if one.path.startswith(str(folder))
    }.items()


def test_two_drives_by_turns_lose_nothing(library, folder, tmp_path):
    """They hold the same pictures."""
    before, drives = filled(library, folder), (folder, tmp_path / "bb")
    shutil.copytree(folder, drives[1])
    for turn in (1, 0, 1):
        drives[1 - turn].rename(tmp_path / "unplugged")
        assert library.add(drives[turn]).moved == 4 and known(library) == before
        (tmp_path / "unplugged").rename(drives[1 - turn])


def test_a_folder_is_renamed_while_an_upgrade_is_made(library, folder, tmp_path, tiny_config):
    torch.manual_seed(1)
    other = tmp_path / "other"
    DualEncoder.build(tiny_config, ["some other words"]).eval().save_pretrained(other, card="# card\n")
    before = filled(library, folder)
    renamed = folder.rename(tmp_path / "aa2")
    summary = library.add(renamed, model=other, upgrade=True)  # none is hidden any more
    assert (summary.moved, summary.pictures) == (4, 4) and known(library) == before


def test_workers_of_ray_find_a_folder_that_was_renamed(folder, encoder, tmp_path, monkeypatch):
    few_sentences(monkeypatch)
    with Library.create(place_of("lance", tmp_path), encoder) as library, workers_here():
        before = filled(library, folder)
        summary = library.add(folder.rename(tmp_path / "aa2"), workers="ray")
        assert (summary.moved, summary.added, summary.pictures) == (4, 0, 4) and known(library) == before


# One place under two names


@pytest.mark.parametrize("first", ["the link", "the folder"])
def test_a_link_to_a_folder_is_the_same_folder(library, folder, tmp_path, first):
    link, said = tmp_path / "nl", []
    link.symlink_to(folder)
    one, other = (link, folder) if first == "the link" else (folder, link)
    before = filled(library, one)
    summary = library.add(other, say=said.append)
    assert said == [
        f"{link}: is the same folder as {folder}, and is looked through once (--forget {link} forgets this name)"
    ]
    moved = 4 if first == "the link" else 0
    assert (summary.moved, summary.added, summary.embedded, summary.pictures) == (moved, 0, 0, 4)
    assert known(library) == before and library.add().unchanged == 4
    assert all(one.path.startswith(str(folder)) for one in library.newest(9))
    assert library.add(forget=[str(link)]).pictures == 4 and known(library) == before


def test_pictures_that_are_there_twice_become_one(library, folder, tmp_path, monkeypatch):
    """As earlier versions left it."""
    link = tmp_path / "nl"
    link.symlink_to(folder)
    with monkeypatch.context() as patch:
        patch.setattr("cliplet.library.indexing.other_names", lambda roots: {})
        before = filled(library, link)
        library.add(folder)
        assert len(library) == 8
    summary = library.add()
    assert (summary.removed, summary.moved, summary.pictures, summary.unchanged) == (4, 4, 4, 4)
    assert known(library) == before and library.search("a boat")[0].path.startswith(str(folder))


def test_a_link_while_an_upgrade_is_made(library, folder, tmp_path, tiny_config):
    torch.manual_seed(1)
    other = tmp_path / "other"
    DualEncoder.build(tiny_config, ["some other words"]).eval().save_pretrained(other, card="# card\n")
    (tmp_path / "nl").symlink_to(folder)
    before = filled(library, tmp_path / "nl")
    assert library.add(folder, model=other, upgrade=True).pictures == 4 and known(library) == before
    assert all(one.path.startswith(str(folder)) for one in library.newest(9))


def test_which_folders_are_the_same(folder, tmp_path):
    link, below, hidden = tmp_path / "link", tmp_path / "below", tmp_path / "hidden"
    for one, target in ((link, folder), (below, folder / "in"), (hidden, folder / ".hidden")):
        one.symlink_to(target)
    (folder / ".hidden").mkdir()
    roots = [str(one) for one in (folder, folder / "in", link, below, hidden)]
    assert other_names(roots) == {str(link): str(folder), str(below): str(folder / "in")}
    assert other_names([str(folder), str(below)]) == {str(below): str(folder / "in")}
    assert other_names([str(link), str(below)]) == {str(below): str(link / "in")}
    shutil.rmtree(folder)
    assert other_names(roots) == {}


# What is not looked into, and what cannot be forgotten


def test_folders_that_systems_keep_for_themselves_are_left_out(folder):
    for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".thumbnails"):
        paint(folder / "in" / name / "x.png", 9)
    assert len(look([str(folder)], {}, {}).to_read) == 4
    assert len(look([str(folder / "in" / "@eaDir")], {}, {}).to_read) == 1  # it was named


def test_a_folder_in_another_cannot_be_forgotten(library, folder):
    filled(library, folder)
    for root in (str(folder / "in"), str(folder / "nowhere")):
        with pytest.raises(DataError, match=f"lies in {folder}, which is a folder of the library"):
            library.add(forget=[root])
    library.add(folder / "in")
    with pytest.raises(DataError, match="lies in"):
        library.add(forget=[str(folder / "in")])
    assert library.add(forget=[str(folder / "in"), str(folder)]).removed == 4  # whatever their order
    with pytest.raises(DataError, match="named by nothing"):
        library.add(forget=[""])


def test_a_drive_in_another_folder_can_be_forgotten_while_it_is_away(library, folder):
    library.add(folder, folder / "in")
    shutil.rmtree(folder / "in")
    assert library.add().pictures == 4
    assert library.add(forget=[str(folder / "in")]).pictures == 3


def test_a_folder_without_a_name_is_none(library):
    with pytest.raises(DataError, match="named by nothing"):
        library.add("")
