"""What is new, changed or gone in folders."""

import os
import shutil
import time
from pathlib import Path

import pytest

from cliplet.errors import DataError
from cliplet.library.scan import check_folders, look
from cliplet.library.store import Known


def names(scan):
    return sorted(os.path.basename(one.path) for one in scan.to_read)


def known_of(folder, start=1):
    """All pictures below a folder, as a library would know them."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".jpg", ".png"))
    return {
        str(path): Known(number, path.stat().st_size, path.stat().st_mtime_ns, True)
        for number, path in enumerate(found, start)
    }


def test_everything_is_new_at_first(photos):
    (photos / ".hidden").mkdir()
    shutil.copy(photos / "a" / "00.png", photos / ".hidden" / "x.png")
    shutil.copy(photos / "a" / "00.png", photos / ".x.png")
    shutil.copy(photos / "a" / "00.png", photos / "SHOUTED.JPG")
    scan = look([str(photos)], {}, {})
    assert len(scan.to_read) == 13 and "SHOUTED.JPG" in names(scan) and "notes.txt" not in names(scan)
    assert not scan.gone and not scan.problems and not scan.missing and scan.unchanged == 0
    first = next(one for one in scan.to_read if one.path.endswith("00.png"))
    assert (first.bytes, first.id) == ((photos / "a" / "00.png").stat().st_size, None)


def test_by_size_and_time(photos):
    known = known_of(photos)
    os.utime(photos / "a" / "01.jpg", ns=(1, 1))
    (photos / "a" / "02.png").write_bytes(b"another")
    (photos / "a" / "03.jpg").unlink()
    shutil.copy(photos / "a" / "00.png", photos / "new.png")
    path = str(photos / "b" / "c" / "07.jpg")
    known[path] = known[path]._replace(embedded=False)
    scan = look([str(photos)], known, {})
    assert names(scan) == ["01.jpg", "02.png", "07.jpg", "new.png"]
    assert {os.path.basename(one.path): one.id for one in scan.to_read}["01.jpg"] == known[
        str(photos / "a" / "01.jpg")
    ].id
    assert list(scan.gone.values()) == [str(photos / "a" / "03.jpg")]
    assert scan.unchanged == 8


def test_what_could_not_be_read_is_left_alone_until_it_changes(photos):
    path = str(photos / "a" / "00.png")
    status = os.stat(path)
    problems = {path: (status.st_size, status.st_mtime_ns), "/gone.png": (1, 1)}
    scan = look([str(photos)], {}, problems)
    assert "00.png" not in names(scan) and scan.gone_problems == ["/gone.png"]
    assert "00.png" in names(look([str(photos)], {}, {path: (status.st_size, 5)}))


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_drive_that_is_not_there_loses_nothing(photos, how):
    known = known_of(photos)
    shutil.rmtree(photos)
    if how == "empty":
        photos.mkdir()
    scan = look([str(photos)], known, {})
    assert scan.missing == [str(photos)] and not scan.gone and not scan.to_read


def test_a_folder_that_was_emptied_beside_one_that_was_not(photos):
    known = known_of(photos)
    shutil.rmtree(photos / "b")
    assert len(look([str(photos)], known, {}).gone) == 6
    assert len(look([str(photos / "a"), str(photos / "b")], known, {}).gone) == 0


def test_pictures_of_a_folder_that_is_no_longer_looked_through_are_gone(photos):
    assert len(look([str(photos / "a")], known_of(photos), {}).gone) == 6


def test_links(photos, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(photos / "a", outside)
    (photos / "to_outside").symlink_to(outside)
    (photos / "file_outside.png").symlink_to(outside / "00.png")
    (photos / "inside").symlink_to(photos / "a")
    (photos / "circle").symlink_to(photos)
    (photos / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    scan = look([str(photos)], {}, {})
    assert len(scan.to_read) == 12 and scan.links_out == 2
    followed = look([str(photos)], {}, {}, follow_links=True)
    assert len(followed.to_read) == 12 + 6 + 1


def test_a_folder_in_another_is_looked_through_once(photos):
    scan = look([str(photos), str(photos / "a"), str(photos)], {}, {})
    assert len(scan.to_read) == 12 == len({one.path for one in scan.to_read})


def test_libraries_are_no_photographs(photos):
    (photos / "a" / "library.json").write_text("{}")
    (photos / "a" / "records.sqlite").write_text("")
    assert len(look([str(photos)], {}, {}).to_read) == 6


def test_names_of_all_kinds(photos):
    odd = ["two\nlines.png", "猫.png", "ёлка.jpg", "quote'\".png", "\u202etfel.png", "-k.png", "%41.png"]
    for name in odd:
        shutil.copy(photos / "a" / "00.png", photos / name)
    bad = os.path.join(os.fsencode(photos), b"\xff\xfe.png")
    with open(bad, "wb") as stream:
        stream.write((photos / "a" / "00.png").read_bytes())
    assert {*odd, os.fsdecode(b"\xff\xfe.png")} <= set(names(look([str(photos)], {}, {})))


def test_folders_that_are_none(photos):
    with pytest.raises(DataError, match="is not there"):
        check_folders([photos / "x"])
    with pytest.raises(DataError, match="is a file"):
        check_folders([photos / "notes.txt"])
    assert check_folders([photos / "a" / ".." / "b"]) == [str(photos / "b")]


@pytest.mark.slow
def test_a_hundred_thousand_files_are_looked_at_in_seconds(tmp_path):
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    known = {
        path: Known(number, 0, os.stat(path).st_mtime_ns, True)
        for number, path in enumerate(str(path) for path in tmp_path.rglob("*.jpg"))
    }
    began = time.monotonic()
    scan = look([str(tmp_path)], known, {})
    assert scan.unchanged == 100_000 and not scan.to_read
    assert time.monotonic() - began < 5
