"""Thumbnails: asked for anew each time, kept in one place, and not without an end."""

import os

from PIL import Image

from cliplet.library.library import Library
from cliplet.serve import thumbnails


def test_a_thumbnail_is_asked_for_again_each_time_and_sent_when_it_is_another(running, encoder, tmp_path, monkeypatch):
    """Its address has the picture's number alone, and the picture may change."""
    (tmp_path / "photos").mkdir()
    file = tmp_path / "photos" / "a.png"
    Image.new("RGB", (60, 40), "red").save(file)
    with Library.create(tmp_path / "a.library", encoder) as library:
        library.add(file.parent)
        with running({"a": library}, refresh_seconds=0.0) as client:
            path = f"/api/a/pictures/{library.newest(1)[0].id}/thumbnail"
            _, headers, red = client.ask("GET", path)
            assert headers["cache-control"] == "private, no-cache"
            has_it = {"If-None-Match": headers["etag"]}
            with monkeypatch.context() as patched:  # what the client has needs no file, and is not read
                patched.setattr(thumbnails.Thumbnails, "get", None)
                status, again, content = client.ask("GET", path, headers=has_it)
            assert (status, content, again["etag"]) == (304, b"", headers["etag"])
            Image.new("RGB", (60, 40), "blue").save(file)
            library.add(file.parent)
            status, headers, blue = client.ask("GET", path, headers=has_it)
            assert status == 200 and blue != red and headers["etag"] != has_it["If-None-Match"]
        with running({"a": library}, thumbnail_side=30) as client:  # nor is one of another size the same
            assert client.ask("GET", path, headers={"If-None-Match": headers["etag"]})[0] == 200


def test_the_oldest_thumbnails_go_when_there_are_too_many(tmp_path):
    for number in range(20):
        file = tmp_path / f"{number % 3:02x}" / f"{number:032x}-512"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(1000))
        os.utime(file, (1000 + number, 1000 + number))
    others = [tmp_path / "notes.txt", tmp_path / "00" / "notes.txt", tmp_path / "elsewhere" / ("0" * 32 + "-512")]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(bytes(100_000))
    thumbnails.shrink_folder(tmp_path, 20_000)
    assert len({file.name for file in tmp_path.rglob("*-512")}) == 20
    thumbnails.shrink_folder(tmp_path, 10_000)
    left = {int(file.name[:32], 16) for file in tmp_path.rglob("*-512") if file not in others}
    assert left == set(range(11, 20)) and all(other.exists() for other in others)
    thumbnails.shrink_folder(tmp_path / "nowhere", 10)


def test_where_thumbnails_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.library").mkdir()
    assert thumbnails.thumbnails_folder(str(tmp_path / "a.library")) == tmp_path / "a.library" / "thumbnails"
    tables = [thumbnails.thumbnails_folder(f"lance:s3://bucket/{name}") for name in ("a", "b")]
    assert len(set(tables)) == 2 and all(one.is_relative_to(tmp_path / "cache") and one.is_dir() for one in tables)
    (tmp_path / "b.library").mkdir()
    (tmp_path / "b.library" / "thumbnails").write_bytes(b"")  # nothing can be written there, whoever asks
    assert thumbnails.thumbnails_folder(str(tmp_path / "b.library")).is_relative_to(tmp_path / "cache")
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "b.library" / "thumbnails" / "cache"))
    assert thumbnails.thumbnails_folder(str(tmp_path / "b.library")) is None
