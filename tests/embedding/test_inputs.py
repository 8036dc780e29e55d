"""What is embedded, and in which order."""

import io
import os
import sys
import tracemalloc

import pytest
from PIL import Image

from cliplet.data.endings import ENDINGS, HEIC_ENDINGS
from cliplet.data.images import FORMATS
from cliplet.embedding import Pictures, find_pictures, read_list, read_sentences
from cliplet.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Pictures by their names only, and other files among them."""
    names = ["b.jpg", "a.JPEG", "a/z.png", "a/b/y.webp", "a-1.gif", "c/.hidden.jpg", ".thumbs/t.jpg", "notes.txt"]
    for name in [*names, "no_ending", "a/x.jpg.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def below(folder, pictures):
    return [os.path.relpath(path, folder) for path in pictures]


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_paths(folder):
    pictures = find_pictures([folder])
    assert below(folder, pictures) == ["a-1.gif", "a.JPEG", "a/b/y.webp", "a/z.png", "b.jpg"]
    assert list(pictures) == sorted(pictures)
    assert pictures.sizes.tolist() == [1] * 5 and all(time > 0 for time in pictures.times)


def test_what_is_named_stands_in_its_order_and_as_often_as_it_is_named(folder):
    named = [folder / "notes.txt", folder / "a", folder / "b.jpg", folder / "b.jpg", folder / "c/.hidden.jpg"]
    found = below(folder, find_pictures([*named, folder / "a"]))
    assert found == ["notes.txt", "a/b/y.webp", "a/z.png", "b.jpg", "b.jpg", "c/.hidden.jpg", "a/b/y.webp", "a/z.png"]


def test_a_hidden_folder_that_is_named_is_meant(folder, monkeypatch):
    assert below(folder, find_pictures([folder / ".thumbs"])) == [".thumbs/t.jpg"]
    monkeypatch.chdir(folder / "a")
    assert list(find_pictures(["."])) == ["./b/y.webp", "./z.png"]


def test_links_in_circles_end_and_links_to_pictures_count(folder):
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "a" / "b" / "up").symlink_to("..")
    (folder / "c" / "linked.png").symlink_to(folder / "b.jpg")
    (folder / "c" / "broken.png").symlink_to(folder / "gone.jpg")
    pictures = find_pictures([folder])
    assert below(folder, pictures)[-3:] == ["b.jpg", "c/broken.png", "c/linked.png"]
    assert len(pictures) == 7 and pictures.sizes[-2] == -1  # nothing is left out without a word


def test_what_is_named_must_be_there_and_what_is_listed_need_not(folder):
    with pytest.raises(DataError, match=r"gone\.jpg: no such file or folder"):
        find_pictures([folder / "b.jpg", folder / "gone.jpg"])
    pictures = find_pictures([folder / "b.jpg"], [folder / "gone.jpg", folder / "a.JPEG", "nul\0byte"])
    assert below(folder, pictures[:3]) == ["b.jpg", "gone.jpg", "a.JPEG"]
    assert pictures.sizes.tolist() == [1, -1, 1, -1]


def test_no_pictures_at_all(folder):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty") as caught:
        find_pictures([folder / "empty"])
    assert ".jpg" in caught.value.hint
    with pytest.raises(DataError, match="named or listed"):
        find_pictures([], [])


def test_a_folder_that_cannot_be_listed_is_a_problem_and_no_end(folder, monkeypatch):
    scan = os.scandir

    def refusing(path):
        if path.rstrip("/").endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    pictures = find_pictures([folder])
    assert len(pictures) == 4
    assert [(one.where, one.reason) for one in pictures.problems] == [
        (f"{folder}/a/b/", "cannot be listed: Permission denied")
    ]
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        find_pictures([folder / "a" / "b"])


def test_every_format_is_known_by_its_endings():
    Image.init()
    of_pillow = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    assert of_pillow - {*ENDINGS, *HEIC_ENDINGS} <= {".icb", ".vda", ".vst"}
    assert set(ENDINGS) - of_pillow <= {".avif", ".avifs"}  # not in every Pillow


def test_the_fingerprint_tells_names_order_sizes_and_times(folder):
    first = find_pictures([folder]).fingerprint()
    assert find_pictures([folder]).fingerprint() == first
    os.utime(folder / "b.jpg", ns=(1, 1))
    second = find_pictures([folder]).fingerprint()
    (folder / "b.jpg").write_bytes(b"xx")
    os.utime(folder / "b.jpg", ns=(1, 1))
    marks = {first, second, find_pictures([folder]).fingerprint(), find_pictures([folder / "a"]).fingerprint()}
    files = [folder / "b.jpg", folder / "a.JPEG"]
    assert len(marks | {find_pictures(files).fingerprint(), find_pictures(files[::-1]).fingerprint()}) == 6


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"\xef\xbb\xbfa.jpg\r\n\r\n\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        ("jalapeño 犬.png\n".encode(), ["jalapeño 犬.png"]),
        (b"\xff\xf0.jpg\n", ["\udcff\udcf0.jpg"]),
        (b"", []),
    ],
    ids=["lines", "windows", "zeros", "scripts", "not UTF-8", "empty"],
)
def test_lists(tmp_path, monkeypatch, content, expected):
    (tmp_path / "list").write_bytes(content)
    assert list(read_list(tmp_path / "list")) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert list(read_list("-")) == expected


def test_a_list_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("cliplet.embedding.inputs.READ_AT_ONCE", 7)
    names = [f"{'x' * (number % 23)}{number}.jpg" for number in range(100)]
    (tmp_path / "list").write_text("\n".join(names) + "\n")
    assert list(read_list(tmp_path / "list")) == names


def test_sentences_keep_their_lines(tmp_path):
    (tmp_path / "texts").write_bytes("a dog\r\n\n un été \u2028same line\n".encode())
    assert list(read_sentences(tmp_path / "texts")) == ["a dog", "", " un été \u2028same line"]
    (tmp_path / "texts").write_bytes(b"a dog\nol\xe9\n")
    with pytest.raises(DataError, match=r"texts:2: is not UTF-8 at byte 3"):
        read_sentences(tmp_path / "texts")
    (tmp_path / "texts").write_bytes("a dog\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read_sentences(tmp_path / "texts")
    with pytest.raises(DataError, match="nowhere: cannot be read: No such file"):
        read_sentences(tmp_path / "nowhere")


def test_a_million_paths_would_take_less_than_200_MB():
    count = 50_000
    names = (f"/photographs/2024/holidays at the sea/IMG_{number:07d}.jpg" for number in range(count))
    tracemalloc.start()
    try:
        pictures = find_pictures([], names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(pictures, Pictures) and len(pictures) == count
    assert peak / count < 200
