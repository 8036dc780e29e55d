"""Tar shards of every kind and every fault: the right captions with the right pictures, and each fault named."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import webdataset
from PIL import Image

from cliplet.data.images import load_image
from cliplet.data.packing import pack
from cliplet.data.places import read_bytes
from cliplet.data.readers import read_source
from cliplet.data.readers.webdataset import is_shards, read_shards
from cliplet.data.shards import MANIFEST, VERIFIED, Settings
from cliplet.errors import DataError

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def picture(number, form="JPEG"):
    pixels = np.full((20, 24, 3), (number * 37 % 256, number * 11 % 256, 90), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_tar(file, members, form=tarfile.USTAR_FORMAT):
    """Members are (name, bytes or text) or TarInfo."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            data = member[1].encode() if isinstance(member[1], str) else member[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def sample(number, caption=None, **more):
    """A sample as img2dataset stores it."""
    key, caption = f"{number:09d}", caption or f"picture {number}"
    about = {"caption": caption, "url": f"https://example.org/{number}", "key": key, "status": "success", **more}
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps(about)), (f"{key}.txt", caption)]


def samples(numbers):
    return [member for number in numbers for member in sample(number)]


def found(source):
    """Captions and splits, after each picture's bytes were seen to be the ones of its caption's number."""
    for record in source.records:
        assert read_bytes(record.image, 10**6) == picture(int(record.captions[0].split()[-1]))
    return [(record.captions, record.split) for record in source.records]


def plain(numbers, split=""):
    return [((f"picture {number}",), split) for number in numbers]


def reasons(source):
    return {problem.where: problem.reason for problem in source.problems}


# What shards are


def test_what_is_taken_for_shards(tmp_path):
    write_tar(tmp_path / "shards" / "00000.tar", samples([1]))
    write_tar(tmp_path / "splits" / "validation" / "00000.tar", samples([1]))
    write_tar(tmp_path / "elsewhere" / "other" / "00000.tar", samples([1]))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "00000.tar.gz").touch()
    (tmp_path / "empty").mkdir()
    shards = [
        "shards",
        "shards/00000.tar",
        "shards/{00000..00009}.tar",
        "splits",
        "packed",
        "shards/00000.TAR.GZ",
        "x.tgz",
    ]
    shards += ["http://h/a.tar", "https://h/{0..9}.tar?download=true", "s3://bucket/{a,b}.tar", "memory://d/x.tar"]
    others = [
        "elsewhere",
        "empty",
        "nowhere",
        "x.json",
        "http://h/a.json",
        "hf:owner/name",
        "http://[/a.tar",
        "",
        "a\0.tar",
    ]
    assert [path for path in shards if not is_shards(path if "://" in path else str(tmp_path / path))] == []
    assert [path for path in others if is_shards(path if ":" in path or not path else str(tmp_path / path))] == []


def test_an_archive_of_pictures_beside_annotations_is_not_the_data(tmp_path):
    write_tar(tmp_path / "images.tar", [(f"images/{n}.jpg", picture(n)) for n in range(3)])
    assert is_shards(str(tmp_path))  # what else could it be
    (tmp_path / "captions.tsv").write_text("1.jpg\tpicture 1\n")
    assert not is_shards(str(tmp_path))
    write_tar(tmp_path / "0.tar", samples(range(3)))
    assert is_shards(str(tmp_path))


def test_what_img2dataset_leaves_beside_its_shards_is_no_annotation(tmp_path):
    write_tar(tmp_path / "00000.tar", samples(range(3)))
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    source = read_source(tmp_path)
    assert source.form == "WebDataset tars" and found(source) == plain(range(3)) and not source.problems


# Good shards


@pytest.mark.parametrize("mtime", [None, 0.0], ids=["pax times", "no times"])
def test_shards_of_webdatasets_own_writer(tmp_path, mtime):
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"{shard:05d}.tar"), mtime=mtime) as tar:
            for number in range(shard * 10, shard * 10 + 10):
                about = {"caption": f"picture {number}", "url": "x", "sha256": "0", "exif": None, "width": 24}
                tar.write(
                    {"__key__": f"{number:09d}", "jpg": picture(number), "txt": f"picture {number}", "json": about}
                )
    source = read_shards(str(tmp_path))
    assert found(source) == plain(range(30)) and not source.problems
    assert load_image(source.records[7].image).size == (24, 20)


def test_where_captions_are_taken_from(tmp_path):
    image = picture(1)
    cases = {
        "a": [("json", '{"caption": "of a"}'), ("txt", "not this")],
        "b": [("json", '{"captions": ["of b", " and \\n more "], "caption": "not this"}')],
        "c": [("json", '{"caption": ["of c", "twice"]}')],
        "d": [("json", '{"caption": null, "width": 3}'), ("txt", "of d\n\n  second line \n")],
        "e": [("caption", "of e")],
        "f": [("TXT", "\ufeffof f")],
        "x/g.h": [("txt", "not of x/g")],
    }
    members = [
        pair
        for key, fields in cases.items()
        for pair in [(f"{key}.jpg", image), *((f"{key}.{e}", t) for e, t in fields)]
    ]
    source = read_shards(str(write_tar(tmp_path / "a.tar", members)))
    captions = [record.captions for record in source.records]
    expected = [("of a",), ("of b", "and more"), ("of c", "twice"), ("of d", "second line"), ("of e",), ("of f",)]
    assert captions == expected
    # WebDataset's key ends at the first dot, so that the last of them is a field h.jpg of x/g and nothing else.
    assert not source.problems


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_pictures_by_their_endings(tmp_path, ending):
    source = read_shards(
        str(write_tar(tmp_path / "a.tar", [(f"./d/k.{ending}", picture(3)), ("./d/k.txt", "picture 3")]))
    )
    assert found(source) == plain([3]) and source.records[0].image.endswith(f"name=./d/k.{ending}")


def test_splits_by_json_folder_and_file_name(tmp_path):
    write_tar(tmp_path / "a" / "train-000.tar", samples([1]))
    write_tar(tmp_path / "a" / "cc3m-val-000.tar", samples([2]) + sample(3, split="restval") + sample(4, split=""))
    write_tar(tmp_path / "a" / "00000.tar", samples([5]) + sample(6, split=7) + sample(7, split="long" * 50))
    write_tar(tmp_path / "a" / "Validation" / "train-1.tar", samples([8]))
    splits = {record.captions[0]: record.split for record in read_shards(str(tmp_path / "a")).records}
    expected = ["train", "val", "restval", "", "", "", "", "val"]
    assert splits == {f"picture {number}": split for number, split in enumerate(expected, 1)}
    assert found(read_shards(str(tmp_path / "a/{Validation/train-1,train-000}.tar"))) == plain([8], "val") + plain(
        [1], "train"
    )


def test_a_field_split_that_means_something_else(tmp_path):
    members = [
        member
        for n in range(1500)
        for member in (sample(n, split=f"s{n}")[0], (f"{n:09d}.json", f'{{"caption": "picture {n}", "split": "s{n}"}}'))
    ]
    source = read_shards(str(write_tar(tmp_path / "train-0.tar", members)))
    splits = [split for _, split in found(source)]
    assert splits == [f"s{n}" for n in range(900)] + ["train"] * 600 and len(source.problems) == 1


def test_braces(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"{number:03d}.tar", samples([number]))
    write_tar(tmp_path / "{literal}.tar", samples([99]))
    read = lambda name: found(read_shards(str(tmp_path / name)))  # noqa: E731
    assert read("{008..011}.tar") == plain([8, 9, 10, 11])
    assert read("{000,011,000}.tar") == plain([0, 11])
    assert read("0{0..1}{0..1}.tar") == plain([0, 1, 10, 11])
    assert read("{literal}.tar") == plain([99])
    source = read_shards(str(tmp_path / "{010..013}.tar"))
    assert found(source) == plain([10, 11]) and len(source.problems) == 2
    assert all("No such file" in problem.reason for problem in source.problems)
    for pattern in ("{0..99999999999999}.tar", "{5..1}.tar"):
        with pytest.raises(DataError, match="names"):
            read(pattern)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_and_many_shards_keep_their_order(tmp_path, form):
    names = ["n" * 90, "f/" * 60 + "k", "ü中" * 10, "q?offset=1&size=2&name=z"]
    for shard in range(20):
        members = []
        for number, name in enumerate(names[shard % 2 :: 2] if form == tarfile.USTAR_FORMAT else names):
            number += shard * 10
            members += [(f"{name}{number}.jpg", picture(number)), (f"{name}{number}.txt", f"picture {number}")]
        write_tar(tmp_path / f"{shard:02d}.tar", members, form)
    source = read_shards(str(tmp_path))
    assert not source.problems and len(source.records) == (40 if form == tarfile.USTAR_FORMAT else 80)
    numbers = [int(captions[0].split()[-1]) for captions, _ in found(source)]
    assert numbers == sorted(numbers)


def test_a_name_that_is_no_utf8_and_one_with_line_ends(tmp_path):
    members = [
        ("a\nb.jpg", picture(1)),
        ("a\nb.txt", "picture 1"),
        ("\udcff.jpg", picture(2)),
        ("\udcff.txt", "picture 2"),
    ]
    source = read_shards(str(write_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)))
    assert found(source) == plain([1, 2])
    assert all(record.image.encode() for record in source.records)


# Bad shards: each fault is named, and nothing shifts


def test_faults_of_samples_are_named_and_nothing_shifts(tmp_path):
    link, folder, device, hard = (tarfile.TarInfo(name) for name in ("l.jpg", "folder", "dev.jpg", "h.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "000000001.jpg"
    folder.type, device.type = tarfile.DIRTYPE, tarfile.CHRTYPE
    members = [
        *sample(1),
        folder,
        ("alone.jpg", picture(50)),
        *sample(2),
        link,
        ("l.txt", "picture 51"),
        ("../up.jpg", picture(52)),
        ("../up.txt", "picture 52"),
        ("/abs.jpg", picture(53)),
        ("/abs.txt", "picture 53"),
        ("d/..\\up.jpg", picture(54)),
        device,
        hard,
        *sample(3),
        ("words.txt", "picture 55"),
        ("empty.jpg", b""),
        ("empty.txt", "picture 56"),
        ("void.jpg", picture(57)),
        ("void.txt", ""),
        ("bad.jpg", picture(4)),
        ("bad.json", '{"caption": '),
        ("bad.txt", "picture 4"),
        ("list.jpg", picture(58)),
        ("list.json", "[" * 100_000),
        ("number.jpg", picture(59)),
        ("number.json", '{"caption": 5}'),
        ("latin.jpg", picture(60)),
        ("latin.txt", b"caf\xe9"),
        *sample(1),
        *sample(5),
        ("000000005.jpg", picture(61)),
        ("two.jpg", picture(6)),
        ("two.png", picture(62)),
        ("two.txt", "picture 6"),
        ("huge.jpg", picture(63)),
        ("huge.txt", "x" * (2**22 + 1)),
        ("README", "no key"),
        (".hidden.jpg", picture(64)),
        ("__meta__/index.json", "{}"),
        ("class.cls", "7"),
        *sample(7),
    ]
    source = read_shards(str(write_tar(tmp_path / "a.tar", members)))
    assert found(source) == plain([1, 2, 3, 4, 5, 6, 7])
    label = str(tmp_path / "a.tar") + ": "
    assert {where.removeprefix(label): reason for where, reason in reasons(source).items()} == {
        "alone.jpg": "has no usable caption",
        "l.jpg": "is a link; it is left out",
        "l": "has no picture",
        "../up.jpg": "its name leads out of the shard; it is left out",
        "../up.txt": "its name leads out of the shard; it is left out",
        "/abs.jpg": "its name leads out of the shard; it is left out",
        "/abs.txt": "its name leads out of the shard; it is left out",
        "d/..\\up.jpg": "its name leads out of the shard; it is left out",
        "dev.jpg": "is no file but a device or the like; it is left out",
        "h.jpg": "is a link; it is left out",
        "words": "has no picture",
        "empty.jpg": "is empty",
        "void.txt": "is empty",
        "void.jpg": "has no usable caption",
        "bad.json": "is not JSON, or no JSON object",
        "list.json": "is not JSON, or no JSON object",
        "list.jpg": "has no usable caption",
        "number.json": "its caption is no text but int",
        "number.jpg": "has no usable caption",
        "latin.txt": "is not UTF-8 at byte 4",
        "latin.jpg": "has no usable caption",
        "000000001": "its key stands earlier in the shard; the first is taken",
        "000000005.jpg": "stands twice in the shard; the first is taken",
        "two.png": "is a second picture of its key; two.jpg is taken",
        "huge.txt": "is larger than 4 MB, which no caption is",
        "huge.jpg": "has no usable caption",
    }
    assert not (tmp_path.parent / "up.jpg").exists() and list(tmp_path.iterdir()) == [tmp_path / "a.tar"]


@pytest.fixture(scope="module")
def three_samples(tmp_path_factory):
    return write_tar(tmp_path_factory.mktemp("whole") / "a.tar", samples([1, 2, 3])).read_bytes()


def test_a_shard_cut_anywhere_gives_what_stands_before_the_cut(tmp_path, three_samples):
    file = tmp_path / "a.tar"
    counts, refusals = [], []
    with tarfile.open(fileobj=io.BytesIO(three_samples)) as tar:
        ends = [-(-(info.offset_data + info.size) // 512) * 512 for info in tar if info.name.endswith("txt")]
    for cut in range(0, ends[-1] + 1024, 128):
        file.write_bytes(three_samples[:cut])
        expected = [number for number, end in zip([1, 2, 3], ends, strict=True) if end <= cut]
        try:
            source = read_shards(str(file))
        except DataError as error:
            refusals.append(error.message)
            assert not expected
            continue
        numbers = [int(captions[0].split()[-1]) for captions, _ in found(source)]
        # The last caption's file may end anywhere in its last block.
        assert numbers in (expected, [*expected, len(expected) + 1])
        assert len(source.problems) == (cut < ends[-1] + 512)
        assert all("is cut short" in problem.reason for problem in source.problems)
        counts.append(len(numbers))
    assert counts == sorted(counts) and set(counts) == {1, 2, 3}
    assert all("is cut short" in message for message in refusals[4:]) and "is empty" in refusals[0]


def test_a_sample_that_lost_its_split_to_the_cut_is_left_out(tmp_path):
    order = [("jpg", 0), ("txt", 2), ("json", 1)]  # the split comes last
    members = [sample(number, split="val")[place] for number in (1, 2) for _, place in order]
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        last = tar.getmembers()[-1]
    for cut in (last.offset, last.offset + 100, last.offset_data + 10):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        source = read_shards(str(tmp_path / "a.tar"))
        assert found(source) == plain([1], "val")
        assert source.problems[0].reason.endswith("its last picture, 000000002, is left out")


def test_a_damaged_header_is_named_and_what_stands_before_is_kept(tmp_path, three_samples):
    with tarfile.open(fileobj=io.BytesIO(three_samples)) as tar:
        headers = [info.offset for info in tar]
    for at in headers[3:]:
        data = bytearray(three_samples)
        data[at + 5] ^= 255
        (tmp_path / "a.tar").write_bytes(data)
        source = read_shards(str(tmp_path / "a.tar"))
        assert found(source) == plain(range(1, 1 + (headers.index(at)) // 3))
        (problem,) = source.problems
        assert f"is damaged at byte {at:,}" in problem.reason


def test_sizes_that_lie_do_not_hang_or_crash(tmp_path):
    whole = write_tar(tmp_path / "a.tar", samples([1, 2])).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        at = tar.getmembers()[3].offset
    for kind in b"0xLKgS5\0":
        for size in (
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"\xff" * 10 + b"\xfe\x00",
            b"77777777777\0",
            b"-1\0".ljust(12, b"\0"),
        ):
            header = bytearray(whole[at : at + 512])
            header[124:136], header[156:157] = size, bytes([kind])
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            (tmp_path / "a.tar").write_bytes(whole[:at] + bytes(header) + whole[at + 512 :])
            source = read_shards(str(tmp_path / "a.tar"))
            assert found(source)[:1] == plain([1]) and source.problems


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_crashes_and_never_gives_one_pictures_caption_to_another(tmp_path, three_samples, seed):
    random = np.random.default_rng(seed)
    for _ in range(60):
        data = bytearray(three_samples)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(256)
        (tmp_path / "a.tar").write_bytes(data)
        try:
            source = read_shards(str(tmp_path / "a.tar"))
        except DataError:
            continue
        for record in source.records:
            offset = int(record.image.partition("offset=")[2].partition("&")[0])
            nearest = min((1, 2, 3), key=lambda number: abs(three_samples.find(picture(number)) - offset))
            assert three_samples.find(picture(nearest)) == offset


def test_shards_that_are_none_are_named_and_the_others_read(tmp_path):
    write_tar(tmp_path / "0.tar", samples([1]))
    (tmp_path / "1.tar").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "2.tar").touch()
    (tmp_path / "3.tar").write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    (tmp_path / "4.tar").symlink_to(tmp_path / "gone.tar")
    (tmp_path / "7.tar").mkdir()
    write_tar(tmp_path / "5.tar", [])
    write_tar(tmp_path / "6.tar", samples([2]))
    source = read_shards(str(tmp_path))
    assert found(source) == plain([1, 2])
    assert {where: reason.split(";")[0] for where, reason in reasons(source).items()} == {
        "1.tar": "is not a tar",
        "2.tar": "is empty",
        "3.tar": "is compressed (gzip)",
        "4.tar": "cannot be read: No such file or directory",
        "7.tar": "cannot be read: it is a folder, or no file of another kind",
    }


def test_a_folder_with_a_tar_s_name_makes_no_shards_of_pictures(tmp_path):
    (tmp_path / "photos.tar").mkdir()
    assert not is_shards(str(tmp_path))
    (tmp_path / "photos.tsv").touch()
    write_tar(tmp_path / "z.tar", samples([1]))
    assert is_shards(str(tmp_path))  # the real tar decides


def test_tars_joined_to_one_file_are_read_to_the_last(tmp_path):
    tars = [write_tar(tmp_path / f"{n}.tar", samples([2 * n, 2 * n + 1])).read_bytes() for n in range(3)]
    bare = [data.rstrip(b"\0") for data in tars]
    short = [data + bytes(-len(data) % 512 + 1024) for data in bare]  # some programs write no more zeros than they must
    for parts in (tars, short, [tars[0], bytes(10240), *tars[1:]], [short[0], *tars[1:]]):
        file = tmp_path / "x.tar"
        file.write_bytes(b"".join(parts))
        source = read_shards(str(file))
        assert found(source) == plain(range(6)) and not source.problems
    os.truncate(file, file.stat().st_size - 10240)
    assert found(read_shards(str(file))) == plain(range(6))[: len(read_shards(str(file)).records)]


def test_what_stands_after_the_end_mark_is_named(tmp_path, three_samples):
    for more in (b"signed by nobody", b"x" * 5000, bytes(2**21) + b"x" * 5000):
        (tmp_path / "a.tar").write_bytes(three_samples + more)
        source = read_shards(str(tmp_path / "a.tar"))
        assert found(source) == plain([1, 2, 3])
        (problem,) = source.problems
        count = len(more.lstrip(b"\0"))
        assert problem.reason.startswith(f"holds {count:,} bytes after its end mark that are no tar members")
    (tmp_path / "a.tar").write_bytes(three_samples + bytes(3 * 2**20))
    assert not read_shards(str(tmp_path / "a.tar")).problems


def test_zeros_in_the_middle_cost_what_they_cover_and_are_named(tmp_path):
    whole = write_tar(tmp_path / "a.tar", samples(range(20))).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [-(-(info.offset_data + info.size) // 512) * 512 for info in tar if info.name.endswith("txt")]
        starts = [info.offset for info in tar if info.name.endswith("jpg")]
    for begin in range(ends[3], ends[6], 512):
        for length in (512, 1536, 5000, 9216, 20_000):
            (tmp_path / "a.tar").write_bytes(whole[:begin] + bytes(length) + whole[begin + length :])
            source = read_shards(str(tmp_path / "a.tar"))
            captions = [record.captions[0] for record in source.records]  # a text may lie in the zeros
            numbers = [int(caption.split()[-1]) for caption in captions if caption.strip("\0")]
            spared = [n for n in range(20) if ends[n] <= begin or starts[n] >= begin + length]
            assert set(spared) <= set(numbers) and numbers == sorted(numbers)
            if len(numbers) < 20:
                assert source.problems
            # Two blocks of zeros, or zeros up to a multiple of 10240, are what a tar ends with: these might be joined.
            like_an_end = length <= 1536 or any(0 <= at - begin - length < 512 for at in range(0, len(whole), 10240))
            if not like_an_end and any(begin <= start <= begin + length - 512 for start in starts):
                assert any("no tar members" in problem.reason for problem in source.problems)


def test_a_sample_beside_a_gap_that_may_have_lost_its_split_is_left_out(tmp_path):
    members = [sample(n, split="val", exif="x" * 600)[place] for n in range(6) for place in (1, 0, 2)]  # split first
    whole = bytearray(write_tar(tmp_path / "a.tar", members).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        lost = next(info for info in tar if info.name == "000000003.json")
    whole[lost.offset : lost.offset_data + 1024] = bytes(1536)
    (tmp_path / "a.tar").write_bytes(whole)
    source = read_shards(str(tmp_path / "a.tar"))
    assert found(source) == plain([0, 1, 2, 4, 5], "val")
    assert "no tar members" in source.problems[0].reason
    assert "may have lost a part" in source.problems[1].reason and "000000003" in source.problems[1].where


@pytest.mark.skipif(ROOT, reason="root may read every file, so that no file is unreadable")
def test_a_shard_that_may_not_be_read(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", samples([number]))
    (tmp_path / "0.tar").chmod(0)
    source = read_shards(str(tmp_path))
    assert found(source) == plain([1]) and reasons(source) == {"0.tar": "cannot be read: Permission denied"}


@pytest.mark.parametrize("name", ["00000.tar.gz", "00000.tgz", "00000.tar.zst"])
def test_compressed_shards_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match="compressed") as caught:
            read_source(path)
        assert "Decompress" in caught.value.hint


@pytest.mark.parametrize("members", [[], [("a.txt", "x")], [("a.jpg", picture(1)), ("b.txt", "x")]])
def test_shards_without_a_sample_are_refused(tmp_path, members):
    file = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match="no picture with a caption"):
        read_shards(str(file))


def test_a_tar_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="No such file") as caught:
        read_source(tmp_path / "gone.tar")
    assert "Check the path" in caught.value.hint
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="cannot be read: it is a folder"):
        read_source(tmp_path / "pipe.tar")


# By URL


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address that it is served at."""
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cliplet.data.downloads.WAITS", (0.01, 0.01))
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_shards_at_a_url_and_one_that_is_missing(served):
    folder, url = served
    write_tar(folder / "val" / "0.tar", samples([1, 2]))
    write_tar(folder / "val" / "2.tar", samples([3]))
    source = read_source(url + "/val/{0..2}.tar?download=true")
    assert found(source) == plain([1, 2, 3], "val")
    assert reasons(source) == {f"{url}/val/1.tar": "the server answers 404 File not found"}
    with pytest.raises(DataError, match="404") as caught:
        read_source(url + "/val/7.tar")
    assert caught.value.hint == "Check the address."
    write_tar(folder / "8.tar", [("a.jpg", picture(1))])
    with pytest.raises(DataError, match="holds no picture") as caught:
        read_source(url + "/{7..8}.tar")
    assert "one after the other" in caught.value.hint


def test_shards_by_fsspec(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/train-0.tar", write_tar(tmp_path / "0.tar", samples([1, 2])).read_bytes())
    source = read_source("memory://shards/train-{0..1}.tar")
    assert found(source) == plain([1, 2], "train") and len(source.problems) == 1
    memory.rm("/shards", recursive=True)


# Packs of our own


@pytest.fixture
def packed(tmp_path):
    """A pack of 10 pictures in shards of 3, and its records."""
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = ["image\tcaption\tsplit"]
    for number in range(10):
        (photos / f"{number}.jpg").write_bytes(picture(number))
        split = "train" if number < 7 else "val"
        lines += [f"{number}.jpg\tpicture {number}\t{split}", f"{number}.jpg\tagain {number}\t{split}"]
    (photos / "list.tsv").write_text("\n".join(lines))
    out = tmp_path / "pack"
    pack(str(photos), out, Settings(size=0, shard_pictures=3))
    return out


def expected(numbers):
    return [((f"picture {n}", f"again {n}"), "train" if n < 7 else "val") for n in numbers]


def test_a_pack_is_read_by_its_manifest(packed):
    for path in (packed, packed / MANIFEST):
        source = read_source(path)
        assert source.form == "cliplet's pack" and not source.problems
        assert [(r.captions, r.split) for r in source.records] == expected(range(10))
        assert found(source)
    assert [len(source.select(split)) for split in ("train", "val", "all")] == [7, 3, 10]


def test_a_shard_of_a_pack_is_a_good_shard_for_others_too(packed):
    source = read_source(packed / "val-000000.tar")
    assert source.form == "WebDataset tars" and found(source) == expected([7, 8, 9])
    (packed / MANIFEST).rename(packed / "manifest.old")
    assert found(read_source(packed)) == expected(range(10))


def test_shards_are_hashed_once_and_again_when_they_change(packed, monkeypatch):
    import cliplet.data.readers.packs as packs

    hashed = []
    whole = packs.file_sha256
    monkeypatch.setattr(packs, "file_sha256", lambda file: hashed.append(file.name) or whole(file))
    for count in (4, 0):
        assert len(read_source(packed).records) == 10 and len(hashed) == count
        hashed.clear()
    shard = packed / "train-000001.tar"
    os.utime(shard)
    assert len(read_source(packed).records) == 10 and hashed == [shard.name]
    hashed.clear()
    (packed / VERIFIED).write_text('["damaged"')
    assert not read_source(packed).problems and len(hashed) == 4


@pytest.mark.skipif(ROOT, reason="root may write to every folder")
def test_a_pack_that_may_only_be_read(packed):
    packed.chmod(0o555)
    try:
        assert len(read_source(packed).records) == 10 and not (packed / VERIFIED).exists()
    finally:
        packed.chmod(0o755)


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def place(source, number):
    image = next(r.image for r in source.records if r.captions[0] == f"picture {number}")
    return int(image.partition("offset=")[2].partition("&")[0])


def test_a_flipped_byte_costs_one_picture_and_no_more(packed):
    at, misfit = place(read_source(packed), 4), "is not what was packed: its sha256 does not fit"
    flip(packed / "train-000001.tar", at + 100)
    for _ in range(2):  # a bad shard is not remembered as a good one
        source = read_source(packed)
        assert [(r.captions, r.split) for r in source.records] == expected([0, 1, 2, 3, 5, 6, 7, 8, 9])
        assert reasons(source) == {
            "train-000001.tar": f"{misfit}; 2 of its 3 pictures are whole and kept",
            "train-000001.tar: train-000001-000001.jpg": misfit,
        }


def test_a_flipped_byte_in_a_header_costs_no_picture(packed):
    flip(packed / "train-000001.tar", 3)
    source = read_source(packed)
    assert found(source) == expected(range(10)) and len(source.problems) == 1


def test_a_pack_s_shard_cut_short(packed):
    source = read_source(packed)
    os.truncate(packed / "train-000001.tar", place(source, 5) + 50)
    source = read_source(packed)
    assert found(source) == expected([0, 1, 2, 3, 4, 6, 7, 8, 9])
    assert [problem.where for problem in source.problems] == [
        "train-000001.tar",
        "train-000001.tar: train-000001-000002.jpg",
    ]


def test_shards_and_indexes_that_are_missing_or_damaged(packed):
    (packed / "train-000000.tar").unlink()
    (packed / "train-000001.jsonl").unlink()
    flip(packed / "val-000000.jsonl", 30)
    source = read_source(packed)
    assert found(source) == expected(range(3, 10))
    assert reasons(source) == {
        "train-000000.tar": "cannot be read: No such file or directory; its 3 pictures are left out",
        "train-000001.jsonl": "its index cannot be used: No such file or directory; the shard itself was read instead",
        "val-000000.jsonl": "its index cannot be used: its sha256 does not fit; the shard itself was read instead",
    }
    flip(packed / "val-000000.tar", 3000)  # nothing is left to check its pictures by
    source = read_source(packed)
    assert (
        found(source) == expected(range(3, 7))
        and "has been changed, and its index" in reasons(source)["val-000000.tar"]
    )


def test_a_damaged_manifest_is_refused(packed):
    os.truncate(packed / MANIFEST, 500)
    with pytest.raises(DataError, match="manifest is damaged"):
        read_source(packed)
    (packed / MANIFEST).write_text("")
    with pytest.raises(DataError, match="manifest is damaged"):
        read_source(packed)


def test_a_manifest_cannot_lead_out_of_its_folder(packed, tmp_path):
    shutil.copy(packed / "val-000000.tar", tmp_path / "x-000000.tar")
    content = json.loads((packed / MANIFEST).read_text())
    content["shards"][-1]["name"] = "../x-000000.tar"
    (packed / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="no name of a shard"):
        read_source(packed)


def test_an_unfinished_pack_is_read_as_far_as_it_goes(packed):
    from cliplet.data.shards import JOURNAL, Manifest, journal_line

    manifest = Manifest.read(packed)
    begun = dataclasses.replace(manifest, complete=False, shards=(), left_out=0)
    begun.write(packed)
    (packed / JOURNAL).write_bytes(
        b"".join(journal_line(shard, []) for shard in manifest.shards[:2]) + b'{"shard": {"na'
    )
    source = read_source(packed)
    assert found(source) == expected(range(6))
    assert "unfinished: 2 of 4 shards are missing" in source.problems[0].reason
    (packed / JOURNAL).unlink()
    with pytest.raises(DataError, match="4 of 4 shards are missing"):
        read_source(packed)
