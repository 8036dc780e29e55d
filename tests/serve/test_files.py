"""Pictures' files and thumbnails: only what the library knows, as what it is, in parts, and made once."""

import asyncio
import io
import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliplet.library.library import Library
from cliplet.serve import thumbnails
from cliplet.serve.originals import FileAnswer


@pytest.fixture(scope="module")
def own(encoder, tmp_path_factory):
    """A library whose files tests may damage, each its own: pictures of 900 x 600 in folders of their own."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (600, 900, 3), dtype=np.uint8)
        (folder / "photos" / str(number)).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "photos" / str(number) / f"{number}.jpg")
    with Library.create(folder / "own.library", encoder) as library:
        library.add(folder / "photos")
        yield library


@pytest.fixture(scope="module")
def client(running, own):
    with running({"own": own}) as client:
        yield client


@pytest.fixture(scope="module")
def _unused(own):
    return own.newest(100)


@pytest.fixture
def picture(_unused):
    """One that no other test has."""
    return _unused.pop()


def by_name(library):
    return {picture.name: picture for picture in library.newest(100)}


def test_an_original_is_the_file(service, library):
    for name, kind in (("000.png", "image/png"), ("001.jpg", "image/jpeg"), ("002.webp", "image/webp")):
        picture = by_name(library)[name]
        status, headers, content = service.ask("GET", f"/api/photos/pictures/{picture.id}/original")
        assert status == 200 and headers["content-type"] == kind and headers["x-content-type-options"] == "nosniff"
        with open(picture.path, "rb") as stream:
            assert content == stream.read()
        assert headers["content-disposition"].startswith(f'inline; filename="{name}"')
        assert "sandbox" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None), ("bytes=5-999999999", 5, None)],
)
def test_parts_are_sent(service, library, asked, start, end):
    picture = by_name(library)["000.png"]
    with open(picture.path, "rb") as stream:
        whole = stream.read()
    status, headers, content = service.ask(
        "GET", f"/api/photos/pictures/{picture.id}/original", headers={"Range": asked}
    )
    assert status == 206 and content == whole[start:end] and int(headers["content-length"]) == len(content)
    first, last, size = map(int, re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers["content-range"]).groups())
    assert whole[first : last + 1] == content and size == len(whole)


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "bytes=-", "lines=0-3", "bytes=0-1,4-5", "bytes=--1", ""])
def test_ranges_that_mean_nothing_are_passed_over(service, library, asked):
    picture = by_name(library)["000.png"]
    path = f"/api/photos/pictures/{picture.id}/original"
    status, _, content = service.ask("GET", path, headers={"Range": asked})
    assert (status, len(content)) == ((416, 0) if asked == "bytes=5-2" else (200, picture.bytes))


def test_ranges_beyond_the_end_are_told_so(service, library):
    picture = by_name(library)["000.png"]
    path = f"/api/photos/pictures/{picture.id}/original"
    status, headers, content = service.ask("GET", path, headers={"Range": f"bytes={picture.bytes}-"})
    assert (status, content, headers["content-range"]) == (416, b"", f"bytes */{picture.bytes}")
    assert service.ask("GET", path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})[0] == 200


def test_what_the_client_has_is_not_sent_again(service, library):
    id = by_name(library)["000.png"].id
    for what in ("original", "thumbnail"):
        path = f"/api/photos/pictures/{id}/{what}"
        tag = service.ask("GET", path)[1]["etag"]
        status, headers, content = service.ask("GET", path, headers={"If-None-Match": f'"x", {tag}'})
        assert (status, content, headers["etag"]) == (304, b"", tag)
        assert service.ask("GET", path, headers={"If-None-Match": '"x"'})[0] == 200


def test_head_is_answered_without_content(service, library):
    picture = by_name(library)["000.png"]
    for what in ("original", "thumbnail"):
        status, headers, content = service.ask("HEAD", f"/api/photos/pictures/{picture.id}/{what}")
        assert status == 200 and content == b"" and int(headers["content-length"]) > 0
    assert service.ask("HEAD", "/health")[0] == 200


def test_a_large_file_comes_in_parts(client, picture, monkeypatch):
    monkeypatch.setattr("cliplet.serve.originals.PART", 1000)
    assert client.ask("GET", f"/api/own/pictures/{picture.id}/original")[2] == Path(picture.path).read_bytes()


def swapped(path, how, secret):
    if how == "gone":
        path.unlink()
    elif how == "changed":
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(data)
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    elif how == "a link to another file of the same size and time":
        shutil.copystat(path, secret)
        path.unlink()
        path.symlink_to(secret)
    elif how == "in a folder that is a link by now":
        elsewhere = secret.parent / "elsewhere"
        elsewhere.mkdir()
        shutil.copy(secret, elsewhere / path.name)
        shutil.move(path.parent, path.parent.with_name("before"))
        path.parent.symlink_to(elsewhere)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("gone", 404),
        ("changed", 409),
        ("longer", 409),
        ("a link to another file of the same size and time", 409),
        ("in a folder that is a link by now", 409),
        ("a folder", 409),
        ("a pipe", 409),
    ],
)
def test_nothing_else_is_sent_in_a_pictures_place(client, picture, tmp_path, how, status):
    path, secret = Path(picture.path), tmp_path / "secret"
    secret.write_bytes(b"s" * picture.bytes)
    os.utime(secret, ns=(path.stat().st_mtime_ns,) * 2)
    assert client.ask("GET", f"/api/own/pictures/{picture.id}/original")[0] == 200
    swapped(path, how, secret)
    for what in ("original", "thumbnail"):
        told, error, hint = client.refused("GET", f"/api/own/pictures/{picture.id}/{what}")
        assert told == status and "cliplet index" in hint and "secret" not in error


def test_a_file_that_was_only_touched_is_still_the_one(client, picture):
    os.utime(picture.path)
    assert client.ask("GET", f"/api/own/pictures/{picture.id}/original")[0] == 200


def kept(own):
    return {file for file in (own.store.folder / "thumbnails").rglob("*") if file.is_file()}


def test_a_thumbnail_is_small_and_kept(running, own, picture):
    before = kept(own)
    with running({"own": own}, thumbnail_side=120) as client:
        path = f"/api/own/pictures/{picture.id}/thumbnail"
        status, headers, content = client.ask("GET", path)
        assert status == 200 and headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(content)).size == (120, 80)
        (made,) = kept(own) - before
        assert made.read_bytes() == content
        Path(picture.path).unlink()  # the thumbnail is the library's own, and needs no file
        assert client.ask("GET", path)[2] == content
        made.write_bytes(b"")  # as a power cut leaves it
        assert client.refused("GET", path)[0] == 404


def test_thumbnails_are_sharp_on_fine_screens(service, client, picture):
    content = client.ask("GET", f"/api/own/pictures/{picture.id}/thumbnail")[2]
    assert Image.open(io.BytesIO(content)).size == (512, 341)


def test_nobody_waits_while_old_thumbnails_go(running, own, picture, monkeypatch):
    began, end = threading.Event(), threading.Event()
    monkeypatch.setattr(thumbnails, "shrink_folder", lambda folder, most: (began.set(), end.wait(10)))
    with running({"own": own}, thumbnail_side=50, thumbnail_bytes=10) as client:
        try:
            start = time.monotonic()
            assert client.ask("GET", f"/api/own/pictures/{picture.id}/thumbnail")[0] == 200
            assert began.wait(5) and time.monotonic() - start < 3
        finally:
            end.set()


def test_thumbnails_that_nobody_waits_for_any_more_are_not_made(running, own, picture, monkeypatch):
    """A client that asks for many and leaves keeps no thread busy with them."""
    begun, end = [], threading.Event()
    monkeypatch.setattr(
        thumbnails,
        "thumbnail",
        lambda data, picture, side: (begun.append(1), end.wait(10), Image.new("RGB", (9, 9)))[2],
    )
    with running({"own": own}, thumbnail_side=40) as client:
        ids = [one.id for one in own.newest(16) if Path(one.path).is_file()][:8]
        leaving = [client.bare() for _ in ids]
        for one, id in zip(leaving, ids, strict=True):
            one.say(f"GET /api/own/pictures/{id}/thumbnail HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(0.3)
        for one in leaving:
            one.socket.close()
        time.sleep(0.3)
        before = len(begun)
        end.set()
        assert client.ask("GET", f"/api/own/pictures/{picture.id}/thumbnail")[0] == 200
        assert before <= 4 and len(begun) == before + 1


def test_a_thumbnail_that_many_ask_for_is_made_once(client, picture, monkeypatch):
    made, make = [], thumbnails.thumbnail
    monkeypatch.setattr(thumbnails, "thumbnail", lambda data, *rest: (made.append(len(data)), make(data, *rest))[1])
    with ThreadPoolExecutor(12) as pool:
        path = f"/api/own/pictures/{picture.id}/thumbnail"
        answers = list(pool.map(lambda _: client.ask("GET", path), range(12)))
    assert len(made) == 1 and {status for status, *_ in answers} == {200}
    assert len({content for *_, content in answers}) == 1


def test_a_picture_that_cannot_be_decoded_has_no_thumbnail(client, own, picture, monkeypatch):
    monkeypatch.setattr(thumbnails, "read_original", lambda picture, content: b"no picture")
    status, error, _ = client.refused("GET", f"/api/own/pictures/{picture.id}/thumbnail")
    assert status == 415 and picture.name in error and str(own.store.folder) not in error


def test_a_disk_that_is_full_costs_no_thumbnail(client, own, picture, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    before = {*(own.store.folder / "thumbnails").rglob("*")}
    monkeypatch.setattr("pathlib.Path.replace", full)
    assert client.ask("GET", f"/api/own/pictures/{picture.id}/thumbnail")[0] == 200
    left = {*(own.store.folder / "thumbnails").rglob("*")} - before
    assert all(one.is_dir() for one in left)


def test_a_file_is_read_no_further_when_the_client_has_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("cliplet.serve.originals.PART", 10)
    file = tmp_path / "x"
    file.write_bytes(b"x" * 1000)
    sent, told = [], iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def send(message):
        sent.append(message)
        await asyncio.sleep(0.01)

    async def receive():
        await asyncio.sleep(0.03)
        return next(told)

    answer = FileAnswer(file.open("rb", buffering=0), 1000, {"etag": '"a"', "content-type": "image/png"})
    asyncio.run(answer({"type": "http", "method": "GET", "headers": []}, receive, send))
    assert 2 < len(sent) < 50 and answer._stream.closed


def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection(tmp_path):
    """The client can tell, for it was promised more."""
    file = tmp_path / "x"
    file.write_bytes(b"x" * 10)
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        await asyncio.sleep(60)

    answer = FileAnswer(file.open("rb", buffering=0), 20, {"etag": '"a"', "content-type": "image/png"})
    with pytest.raises(OSError, match="shorter"):
        asyncio.run(answer({"type": "http", "method": "GET", "headers": []}, receive, send))
    assert sent[-1]["more_body"] is True
