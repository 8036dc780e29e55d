"""Where a picture's bytes are: each place gives its own bytes, or says why not, and never waits."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from cliplet.data.places import arrow_row, exists, file_name, read_bytes, tar_member
from cliplet.errors import ImageError

LIMIT = 1000
ODD_NAMES = [
    "a.jpg",
    "what?.jpg",
    "a=b&c=d.jpg",
    "?offset=1&size=2&name=b.jpg",
    "x?row=1&column=b.jpg",
    "é 犬 🐕.jpg",
    "line\nbreak.jpg",
    "no-utf8-\udce9.jpg",
    " space .jpg",
    "%3F+%20#.jpg",
    "x.tar.jpg",
    "x" * 250 + ".jpg",
]


def tar_with(file, members):
    """A tar of members; gives their places by name."""
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(file) as tar:
        return {m.name: tar_member(str(file), m.name, m.offset_data, m.size) for m in tar.getmembers()}


# Files


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_by_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    assert read_bytes(tmp_path / name, LIMIT) == name.encode("utf-8", "surrogateescape")
    assert read_bytes(str(tmp_path / name), LIMIT) == name.encode("utf-8", "surrogateescape")
    assert exists(str(tmp_path / name)) and not exists(str(tmp_path / name) + "x")
    assert file_name(str(tmp_path / name)) == name


@pytest.mark.parametrize("kind", ["folder", "empty", "pipe", "loop", "gone", "beyond a file", "zero", "long", "device"])
def test_what_is_no_picture_is_told_and_not_waited_for(tmp_path, kind):
    place = tmp_path / "it"
    (tmp_path / "file").write_bytes(b"x")
    if kind == "folder":
        place.mkdir()
    elif kind == "empty":
        place.touch()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "device":
        place = Path("/dev/zero")
    else:
        place = {"gone": place, "beyond a file": tmp_path / "file" / "x", "zero": "a\0b", "long": "x" * 5000}[kind]
    reasons = {
        "folder": "is a folder",
        "empty": "is empty",
        "pipe": "is empty",
        "device": "is empty",
        "gone": "no such",
    }
    with pytest.raises(ImageError, match=reasons.get(kind, "cannot be read")) as raised:
        read_bytes(place, LIMIT)
    assert raised.value.message.startswith(f"{place}: ")
    assert exists(str(place)) == (kind == "empty")


def test_the_limit_is_the_last_size_that_is_read(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"x" * LIMIT)
    assert len(read_bytes(file, LIMIT)) == LIMIT
    with file.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ImageError, match="over the limit"):
        read_bytes(file, LIMIT)
    with file.open("wb") as stream:
        stream.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ImageError, match=r"1048576 MB, over the limit of 0 MB"):
        read_bytes(file, LIMIT)


# Members of tars


@pytest.mark.parametrize("tar", ["x.tar", "X.TAR", "a?b=1&c.tar", "é 犬.tar", "x.tar.tar"])
def test_members_by_any_name_in_tars_of_any_name(tmp_path, tar):
    members = {name: f"bytes of {name}".encode("utf-8", "surrogateescape") * 3 for name in ODD_NAMES}
    members |= {f"deep/{name}": b"deep " + data for name, data in members.items()}
    places = tar_with(tmp_path / tar, members)
    assert places.keys() == members.keys()
    for name, place in places.items():
        assert read_bytes(place, LIMIT) == members[name]
        assert exists(place)
        assert file_name(place) == name.rpartition("/")[2]


def test_a_shard_cut_short_gives_the_members_before_the_cut(tmp_path):
    file = tmp_path / "x.tar"
    places = tar_with(file, {f"{number}.jpg": bytes([number]) * 600 for number in range(4)})
    ends = [int(place.partition("offset=")[2].partition("&")[0]) + 600 for place in places.values()]
    for cut in (ends[2], ends[2] - 1, ends[1] + 1, ends[0], 10):
        os.truncate(file, cut)
        for place, end in zip(places.values(), ends, strict=True):
            if end <= cut:
                assert len(read_bytes(place, LIMIT)) == 600
            else:
                with pytest.raises(ImageError, match="the shard ends before it"):
                    read_bytes(place, LIMIT)


@pytest.mark.parametrize(
    ("offset", "size", "reason"),
    [
        ("0", "0", "is empty"),
        ("0", "1001", "over the limit"),
        ("512", "9" * 18, "over the limit"),
        ("9" * 18, "5", "the shard ends before it|cannot be read"),
        ("9" * 19, "5", "no such file"),
        ("0", "9" * 5000, "cannot be read: File name too long"),
        ("-1", "5", "no such file"),
    ],
)
def test_numbers_that_fit_no_shard(tmp_path, offset, size, reason):
    (tmp_path / "x.tar").write_bytes(b"\0" * 2048)
    with pytest.raises(ImageError, match=reason):
        read_bytes(f"{tmp_path}/x.tar?offset={offset}&size={size}&name=a", LIMIT)


def test_a_shard_that_is_gone_or_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for name, reason in (
        ("gone", "no such file"),
        ("pipe", "its shard is no file"),
        ("folder", "its shard is no file"),
    ):
        place = tar_member(str(tmp_path / f"{name}.tar"), "a.jpg", 512, 9)
        with pytest.raises(ImageError, match=reason) as raised:
            read_bytes(place, LIMIT)
        assert raised.value.message.startswith(f"{place}: ") and not exists(place)


def test_many_reads_leave_no_file_open(tmp_path):
    places = list(tar_with(tmp_path / "x.tar", {"a.jpg": b"x" * 9}).values())
    (tmp_path / "a.jpg").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else pytest.skip("no /proc")
    for _ in range(200):
        read_bytes(places[0], LIMIT)
        read_bytes(tmp_path / "a.jpg", LIMIT)
        with pytest.raises(ImageError):
            read_bytes(tar_member(str(tmp_path / "x.tar"), "b", 10**9, 9), LIMIT)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("place", ["x.tar?offset=0&size=10&name=y.jpg", "x.arrow?row=0&column=y.jpg"])
def test_a_file_whose_name_looks_like_a_place(tmp_path, place):
    (tmp_path / place).write_bytes(b"literal")
    assert read_bytes(tmp_path / place, LIMIT) == b"literal" and exists(str(tmp_path / place))
    (tmp_path / "x.tar").write_bytes(b"the shard's own")
    if "tar" in place:
        assert read_bytes(tmp_path / place, LIMIT) == b"the shard'"


# Rows of Arrow files


def test_a_row_has_the_name_that_its_path_says(tmp_path):
    pa = pytest.importorskip("pyarrow")
    paths = ["a.jpg", "some/b.jpg", None, "", "folder/", "é.jpg"]
    cells = [*({"bytes": b"x", "path": path} for path in paths), None]
    table = pa.table({"image": pa.array(cells), "bare": [b"x"] * 7})
    file = str(tmp_path / "x.arrow")
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    names = [file_name(arrow_row(file, row, "image")) for row in range(8)]
    row = "x.arrow?row={}&column=image".format
    assert names == ["a.jpg", "b.jpg", row(2), row(3), row(4), "é.jpg", row(6), row(7)]
    assert file_name(arrow_row(file, 0, "bare")) == "x.arrow?row=0&column=bare"
    assert file_name(arrow_row(file, 0, "none")) == "x.arrow?row=0&column=none"
    assert file_name(arrow_row(str(tmp_path / "gone.arrow"), 0, "image")) == "gone.arrow?row=0&column=image"


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("column", ["image", "b&c=d", "é ?", "x.arrow?row=1&column=image"])
def test_rows_of_arrow_files(tmp_path, kind, column):
    pa = pytest.importorskip("pyarrow")
    cells = [b"first", None, b"", b"x" * (LIMIT + 1), b"last"]
    file = tmp_path / "a?row=1&column=b.arrow"
    table = pa.table({column: cells, "struct": [{"bytes": cell, "path": "p"} for cell in cells], "text": ["t"] * 5})
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with make(str(file), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    for name in (column, "struct"):
        assert [read_bytes(arrow_row(str(file), row, name), LIMIT) for row in (0, 4)] == [b"first", b"last"]
        for row, reason in ((1, "holds no picture"), (2, "is empty"), (3, "over the limit"), (5, "cannot be read")):
            with pytest.raises(ImageError, match=reason):
                read_bytes(arrow_row(str(file), row, name), LIMIT)
    for row, name in ((0, "text"), (0, "none of this name"), (10**17, column)):
        with pytest.raises(ImageError, match=r"holds no picture|cannot be read"):
            read_bytes(arrow_row(str(file), row, name), LIMIT)
    assert exists(arrow_row(str(file), 0, column))


@pytest.mark.parametrize("content", [b"", b"no Arrow file", b"ARROW1\0\0", b"\0" * 100])
def test_what_is_no_arrow_file_is_told(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.arrow\?row=0&column=image: cannot be read"):
        read_bytes(f"{tmp_path}/x.arrow?row=0&column=image", LIMIT)
    with pytest.raises(ImageError, match="no such file"):
        read_bytes(f"{tmp_path}/gone.arrow?row=0&column=image", LIMIT)
