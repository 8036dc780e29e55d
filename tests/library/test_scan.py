"""What is new, changed or gone in folders."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cliplet.errors import DataError
from cliplet.library.run_messages import say_looked
from cliplet.library.scan import Scan, check_folders, look
from cliplet.library.store import Known

from .conftest import paint


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


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_drive_below_another_folder_that_is_not_there_loses_nothing(photos, how):
    known = known_of(photos)
    shutil.rmtree(photos / "b")
    if how == "empty":
        (photos / "b" / "c").mkdir(parents=True)
    roots = [str(photos / "b"), str(photos)]
    scan = look(roots, known, {str(photos / "b" / "bad.jpg"): (1, 1)})
    assert scan.missing == [str(photos / "b")] and not scan.gone and not scan.gone_problems
    assert scan.unchanged == 6 and scan.hidden == 0
    path = str(photos / "b" / "c" / "07.jpg")
    known[path] = known[path]._replace(embedded=False)
    assert look(roots, known, {}).hidden == 1
    shutil.rmtree(photos / "a")
    scan = look([*roots, str(photos / "b" / "c")], known, {})
    assert str(photos) in scan.missing and not scan.gone


def test_a_folder_in_a_hidden_one_or_behind_a_link_is_looked_through(photos, tmp_path):
    shutil.copytree(photos / "a", photos / ".hidden" / "a")
    shutil.copytree(photos / "a", tmp_path / "outside")
    (photos / "link").symlink_to(tmp_path / "outside")
    roots = [str(photos), str(photos / ".hidden" / "a"), str(photos / "link")]
    assert len(look(roots, {}, {}).to_read) == 12 + 6 + 6


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


def test_links_to_what_is_not_found_without_them(photos):
    """As git-annex and programs that store files by their content leave it."""
    store = photos / ".git" / "annex"
    store.mkdir(parents=True)
    for name in ("x.png", "blob", "no picture"):
        shutil.copy(photos / "a" / "00.png", store / name)
    shutil.copy(photos / "a" / "00.png", photos / "a" / "blob")
    (photos / "1.png").symlink_to(store / "x.png")
    (photos / "a" / "2.png").symlink_to("../.git/annex/blob")
    (photos / "3.png").symlink_to(photos / "a" / "blob")
    (photos / "4.png").symlink_to(photos / "a" / "00.png")  # which is found anyway
    (photos / "5").symlink_to(store / "x.png")
    (photos / "6.png").symlink_to(store)
    (photos / "7.png").symlink_to(store / "dropped.png")
    scan = look([str(photos)], {}, {})
    assert len(scan.to_read) == 12 + 3 and {"1.png", "2.png", "3.png"} < set(names(scan))
    assert scan.links_out == 0
    both = look([str(photos), str(photos / ".git")], {}, {}).to_read  # x.png is found without its link then
    assert len(both) == 12 + 3 and str(store / "x.png") in [one.path for one in both]


def test_what_is_no_file_is_not_taken_for_a_picture(photos):
    os.mkfifo(photos / "pipe.jpg")
    (photos / "to_pipe.jpg").symlink_to(photos / "pipe.jpg")
    (photos / "null.jpg").symlink_to("/dev/null")
    assert len(look([str(photos)], {}, {}, follow_links=True).to_read) == 12


class Refused:
    """An entry of a folder that can be listed, and not entered."""

    def __init__(self, entry, kind_is_known):
        self.entry, self.name, self.path, self.kind_is_known = entry, entry.name, entry.path, kind_is_known

    def is_symlink(self):
        return self.entry.is_symlink()

    def is_dir(self):
        if not self.kind_is_known:
            raise PermissionError(13, "Permission denied")
        return self.entry.is_dir()

    def stat(self):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("kind_is_known", [True, False])
def test_folders_that_can_be_listed_and_not_entered_keep_their_pictures(photos, monkeypatch, kind_is_known):
    known, scandir, stat = known_of(photos), os.scandir, os.stat
    paint(photos / "b" / "new.png", 50)
    paint(photos / "b" / "12.png", 51)
    known[str(photos / "b" / "12.png")] = Known(99, 1, 1, True)
    known[str(photos / "b" / "13.png")] = Known(100, 1, 1, True)
    (photos / "a" / "00.png").unlink()

    @contextmanager
    def listed(folder):
        with scandir(folder) as entries:
            yield [Refused(one, kind_is_known) for one in entries] if folder == str(photos / "b") else entries

    def refused(path, **more):
        if str(path).startswith(str(photos / "b" / "c")):
            raise PermissionError(13, "Permission denied")
        return stat(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr("cliplet.library.scan.os.scandir", listed)
        patch.setattr("cliplet.library.scan.os.stat", refused)
        scan = look([str(photos)], known, {})
    assert sorted(scan.gone.values()) == [str(photos / "a" / "00.png"), str(photos / "b" / "13.png")]
    assert not scan.to_read and scan.unchanged == 5 and not scan.missing
    where = [problem.where for problem in scan.problems]
    assert str(photos / "b") in where and all("Permission denied" in problem.reason for problem in scan.problems)


def test_a_folder_of_another_user_keeps_its_pictures(tmp_path):
    """The same as a user who is not root."""
    if os.getuid():
        pytest.skip("only root can become another user")
    code = """
import os, sys
from cliplet.library.scan import look
from cliplet.library.store import Known
folder, path = sys.argv[1:]
os.setgid(65534); os.setuid(65534)
scan = look([folder], {path: Known(1, 1, 1, False)}, {})
print(len(scan.gone), scan.hidden, [problem.reason for problem in scan.problems])
"""
    folder = Path(tempfile.mkdtemp())
    try:
        path = paint(folder / "sub" / "x.png", 1)
        folder.chmod(0o755)
        path.parent.chmod(0o744)
        command = [sys.executable, "-c", code, str(folder), str(path)]
        said = subprocess.run(command, capture_output=True, text=True)
        if "ModuleNotFoundError" in said.stderr or "PermissionError" in said.stderr:
            pytest.skip("nobody may not read cliplet here")
        assert said.stdout == "0 1 ['1 of its entries cannot be looked at: Permission denied']\n", said.stderr
    finally:
        shutil.rmtree(folder)


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


def test_a_folder_without_a_name():
    with pytest.raises(DataError, match="named by nothing"):
        check_folders([""])


def test_links_that_lead_out_are_counted_in_words():
    said = []
    for count in (0, 1, 2):
        say_looked(Scan(links_out=count), said.append)
    assert said == [
        "1 link leads out of the folders and was not followed (--follow-links does)",
        "2 links lead out of the folders and were not followed (--follow-links does)",
    ]


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
