"""A data set with one of each fault: every count is exact, every fault is named, nothing is raised."""

import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cliplet.data.inspection import TokenCounter, inspect_source, inspection_table
from cliplet.data.inspection.captions import script_of
from cliplet.data.readers import read_source
from cliplet.data.records import ImageText, ImageTextSource, Problem, Records


def photograph(file, size=(60, 40), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return str(file)


def made(records, problems=()):
    return ImageTextSource("set.json", "made here", Records.of(records), list(problems))


@pytest.fixture
def source(tmp_path):
    """Nine records of eight paths: three faults, a copy across splits, a copy within one, a file in two splits."""
    good = photograph(tmp_path / "good.jpg", (60, 40), seed=1)
    tall = photograph(tmp_path / "tall.jpg", (30, 90), seed=2)
    sixteen = str(tmp_path / "sixteen.png")
    Image.fromarray(np.full((20, 10), 40_000, np.uint16)).save(sixteen)
    whole = Path(photograph(tmp_path / "cut.jpg", (64, 64), seed=3)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    leaked = shutil.copy(good, tmp_path / "leaked.jpg")
    twin = shutil.copy(tall, tmp_path / "twin.jpg")
    records = [
        ImageText(good, ("a dog runs", "a brown dog"), "train"),
        ImageText(tall, ("a tower",), "train"),
        ImageText(str(twin), ("the same tower again",), "train"),
        ImageText(sixteen, ("grey",), "train"),
        ImageText(str(tmp_path / "cut.jpg"), ("half",), "train"),
        ImageText(str(tmp_path / "gone.jpg"), ("nothing to see",), "val"),
        ImageText(str(tmp_path / "page.jpg"), ("an error page",), "val"),
        ImageText(str(leaked), ("a dog in the test",), "test"),
        ImageText(sixteen, ("grey", "very grey", "a grey wall in the fog"), "test"),
    ]
    return made(records, [Problem("set.json: image 9", "has no filename")])


def names(problems):
    return [Path(problem.where).name for problem in problems]


def test_counts_are_exact(source):
    found = inspect_source(source, workers=2)
    assert (found.pictures, found.captions, found.files, found.readable) == (9, 12, 8, 5)
    assert {name: (s.pictures, s.captions) for name, s in found.splits.items()} == {
        "train": (5, 6),
        "val": (2, 2),
        "test": (2, 4),
    }
    assert found.captions_per_picture == {1: 7, 2: 1, 3: 1}
    assert found.captions_mean == pytest.approx(12 / 9)
    assert found.words_max == 6
    assert found.words_mean == pytest.approx((3 + 3 + 2 + 4 + 1 + 1 + 3 + 3 + 5 + 1 + 2 + 6) / 12)
    assert found.words.at(0.5) == 3 and found.words.minimum == 1
    assert not found.made_splits
    assert not found.sound


def test_sizes_are_those_of_readable_files(source, tmp_path):
    found = inspect_source(source)
    # widths 60, 60 (its copy), 30, 30 (its copy), 10; the truncated 64 is not among them
    assert (found.width.minimum, found.width.median, found.width.maximum) == (10, 30, 60)
    assert (found.height.minimum, found.height.median, found.height.maximum) == (20, 40, 90)
    sizes = [(tmp_path / f"{name}.jpg").stat().st_size for name in ("good", "leaked", "tall", "twin")]
    assert found.file_size.maximum == max(sizes)


def test_sizes_are_upright_and_whole_though_pictures_are_decoded_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = photograph(tmp_path / "turned.jpg", (900, 500), exif=exif)
    found = inspect_source(made([ImageText(file, ("a",), "train")]))
    assert (found.width.maximum, found.height.maximum) == (500, 900)


def test_every_fault_is_named_with_its_reason(source, tmp_path):
    found = inspect_source(source)
    assert [problem.where for problem in found.missing] == [str(tmp_path / "gone.jpg")]
    assert found.missing[0].reason == "no such file"
    reasons = {problem.where: problem.reason for problem in found.unreadable}
    assert set(reasons) == {str(tmp_path / "cut.jpg"), str(tmp_path / "page.jpg")}
    assert "truncated" in reasons[str(tmp_path / "cut.jpg")]
    assert "not a picture" in reasons[str(tmp_path / "page.jpg")]
    assert not any(reason.startswith(str(tmp_path)) for reason in reasons.values()), "the path is not said twice"
    assert found.problems == (Problem("set.json: image 9", "has no filename"),)


def png(file, width, height, depth):
    """A PNG of RGB noise with a head that says so, whatever its data are."""
    rows = b"".join(b"\0" + np.random.default_rng(row).bytes(50 * 3 * depth // 8) for row in range(50))
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))


def test_bad_files_of_all_kinds_stop_nothing(tmp_path):
    (tmp_path / "zero.jpg").write_bytes(b"")
    png(tmp_path / "giga.png", 60_000, 60_000, 8)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    photograph(tmp_path / "under.jpg")
    listed = ["zero.jpg", "giga.png", "folder.jpg", "loop.jpg", "dangling.jpg", "pixel.png", "under.jpg/below.jpg"]
    listed.append("x" * 300 + ".jpg")
    found = inspect_source(made([ImageText(str(tmp_path / name), ("a",), "train") for name in listed]))
    assert found.readable == 0
    reasons = {Path(problem.where).name: problem.reason for problem in (*found.missing, *found.unreadable)}
    assert len(reasons) == len(listed)
    for name, reason in (("zero.jpg", "empty"), ("giga.png", "megapixels"), ("folder.jpg", "folder"),
                         ("loop.jpg", "symbolic"), ("pixel.png", "1x1"), ("dangling.jpg", "no such file")):  # fmt: skip
        assert reason in reasons[name]
    assert set(names(found.missing)) == {"dangling.jpg", "below.jpg"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_unreadable(tmp_path):
    file = photograph(tmp_path / "locked.jpg")
    Path(file).chmod(0)
    found = inspect_source(made([ImageText(file, ("a",), "train")]))
    assert "ermission" in found.unreadable[0].reason and not found.missing


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_noticed_though_it_is_decoded_small(tmp_path, progressive):
    whole = Path(photograph(tmp_path / "whole.jpg", (800, 600), progressive=progressive)).read_bytes()
    records = []
    for cut in (2, 3, 100, 5000, len(whole) // 2):
        (tmp_path / f"{cut}.jpg").write_bytes(whole[:-cut])
        records.append(ImageText(str(tmp_path / f"{cut}.jpg"), ("a",), "train"))
    assert len(inspect_source(made(records)).unreadable) == len(records)


def test_odd_files_are_named_and_are_no_fault(tmp_path):
    Image.open(photograph(tmp_path / "a.png")).save(tmp_path / "really.jpg", "PNG")
    photograph(tmp_path / "right.JPEG", seed=1)
    photograph(tmp_path / "noname", seed=2, format="JPEG")
    Image.open(photograph(tmp_path / "b.png", seed=3)).convert("CMYK").save(tmp_path / "ink.jpg")
    frames = [Image.open(photograph(tmp_path / f"{n}.png", seed=n)) for n in (4, 5)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.random.default_rng(6).integers(0, 2**16, (50, 50), dtype=np.uint16)).save(tmp_path / "deep.png")
    png(tmp_path / "deeper.png", 50, 50, 16)
    photograph(tmp_path / "tiny.png", (40, 20), seed=7)
    photograph(tmp_path / "long.png", (400, 100), seed=8)
    Image.new("RGB", (80, 80), "white").save(tmp_path / "white.jpg")
    Image.open(tmp_path / "a.png").convert("L").save(tmp_path / "grey.jpg")
    listed = ["really.jpg", "right.JPEG", "noname", "ink.jpg", "film.gif", "deep.png", "deeper.png", "tiny.png"]
    listed += ["long.png", "white.jpg", "grey.jpg"]
    found = inspect_source(made([ImageText(str(tmp_path / name), ("a",), "train") for name in listed]))
    assert found.readable == 11 and found.sound
    assert [(p.reason, Path(p.where).name) for p in found.mislabelled] == [("is PNG", "really.jpg")]
    assert found.formats == {"JPEG": 5, "PNG": 5, "GIF": 1}
    assert found.colours == {"RGB": 6, "CMYK": 1, "palette": 1, "16 bit": 2, "grey": 1}
    assert {Path(p.where).name: p.reason for p in found.unusual} == {
        "ink.jpg": "CMYK",
        "film.gif": "palette, animated",
        "deep.png": "16 bit",
        "deeper.png": "16 bit",
    }
    assert found.animated == 1
    assert names(found.small) == ["tiny.png"] and found.small[0].reason == "40x20 pixels"
    assert names(found.stretched) == ["long.png"]
    assert names(found.blank) == ["white.jpg"]


def test_a_decoder_that_raises_anything_is_one_unreadable_file(source, monkeypatch, tmp_path):
    from cliplet.data.inspection import looks

    real = looks.decode

    def broken(data, smallest_side, name):
        if name.endswith("good.jpg"):
            raise ZeroDivisionError("in a plug-in")
        return real(data, smallest_side, name)

    monkeypatch.setattr(looks, "decode", broken)
    found = inspect_source(source)
    assert Problem(str(tmp_path / "good.jpg"), "in a plug-in") in found.unreadable
    assert found.readable == 4


def test_progress_counts_each_file_once(source):
    calls = []
    inspect_source(source, workers=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 8) for n in range(1, 9)]


def test_more_files_than_are_taken_at_once(tmp_path, monkeypatch):
    from cliplet.data.inspection import looks

    monkeypatch.setattr(looks, "BLOCK", 5)
    monkeypatch.setattr(looks, "TASK", 2)
    files = [photograph(tmp_path / f"{n}.png", (40 + n, 40), seed=n) for n in range(12)]
    Path(files[7]).write_bytes(b"broken")
    found = inspect_source(made([ImageText(file, ("a",), "train") for file in files]), workers=2)
    assert found.readable == 11 and names(found.unreadable) == ["7.png"]
    assert found.survey.looks.width.tolist() == [40 + n if n != 7 else 0 for n in range(12)]


def test_an_empty_source():
    found = inspect_source(made([]))
    assert (found.pictures, found.captions, found.files) == (0, 0, 0)
    json.dumps(found.as_dict())
    Console(record=True, width=80, file=io.StringIO()).print(inspection_table(found))


CAPTIONS = {
    "0.png": ("Image.", "a dog", "A dog ."),
    "1.png": ("image", "собака бежит"),
    "2.png": ("IMAGE", "一只狗 in the snow", "一只狗在雪地里奔跑"),
    "3.png": ("a cat", "12345"),
}


def test_captions_under_many_pictures_twice_and_in_other_scripts(tmp_path):
    records = [
        ImageText(photograph(tmp_path / name, seed=n), captions, "train")
        for n, (name, captions) in enumerate(CAPTIONS.items())
    ]
    records.append(ImageText(str(tmp_path / "0.png"), ("a cat",), "test"))
    found = inspect_source(made(records))
    assert found.texts.repeated == 2, "image and a cat"
    assert [(one.caption, one.pictures) for one in found.texts.most_repeated] == [("Image.", 3)]
    assert names(found.twice) == ["0.png"]
    assert found.texts.scripts == {"Latin": 8, "Han": 1, "Cyrillic": 1, "no letters": 1}
    assert (
        found.texts.other_scripts == {"Han": 1, "Cyrillic": 1, "no letters": 1} or len(found.texts.other_scripts) == 3
    )
    assert found.texts.examples["Han"] == ("一只狗在雪地里奔跑",)


@pytest.mark.parametrize(
    ("caption", "script"),
    [("a dog", "Latin"), ("été à Łódź", "Latin"), ("12 ?!", "no letters"), ("🐕", "no letters"),
     ("犬が走る犬犬", "Han"), ("イヌ", "Kana"), ("ｄｏｇ", "Latin"),
     ("กขค", "Thai"), ("개가", "Hangul"), ("a собака", "Cyrillic")],
)  # fmt: skip
def test_scripts(caption, script):
    assert script_of(caption) == script


def words_tokenizer():
    """One token a word, and two special ones around the text."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return backend.to_str()


def test_tokens_are_counted_and_those_cut(source, monkeypatch):
    from cliplet.data.inspection import captions

    monkeypatch.setattr(captions, "ENCODED_AT_ONCE", 5)
    tokens = inspect_source(source, tokens=TokenCounter(words_tokenizer(), "words", 6)).texts.tokens
    assert tokens.lengths.counts == {3: 3, 4: 2, 5: 4, 6: 1, 7: 1, 8: 1}
    assert (tokens.cut, tokens.tokenizer, tokens.context_length) == (2, "words", 6)
    assert inspect_source(source).texts.tokens is None


def test_as_dict_is_plain_json(source):
    data = inspect_source(source, tokens=TokenCounter(words_tokenizer(), "words", 6)).as_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["captions_per_picture"] == {
        "min": 1,
        "mean": pytest.approx(12 / 9),
        "max": 3,
        "histogram": {"1": 7, "2": 1, "3": 1},
    }
    assert data["duplicates_across"][0]["places"][1]["split"] == "test"
    assert data["shared_by_splits"] == [{"splits": ["test", "train"], "pictures": 2}]
    assert data["leaks"] == [{"split": "test", "other": "train", "pictures": 2, "same_bytes": 2}]
    assert data["tokens"]["cut"] == 2 and data["words"]["max"] == data["words_max"] == 6
    assert data["bytes"]["minimum"] > 0 and data["formats"] == {"JPEG": 4, "PNG": 1}


def test_captions_are_as_readers_clean_them(tmp_path):
    photograph(tmp_path / "a.png")
    (tmp_path / "list.tsv").write_text("a.png\ta dog\x07 with a bell\na.png\tсобака\n", encoding="utf-8")
    found = inspect_source(read_source(tmp_path / "list.tsv"))
    assert found.texts.scripts == {"Latin": 1, "Cyrillic": 1}
    assert found.words.counts == {1: 1, 5: 1}


def printed(found, width=300) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(inspection_table(found))
    return console.export_text()


def test_the_table_names_each_kind_of_fault_with_its_count(source):
    text = printed(inspect_source(source))
    for line in (
        "2 pictures of test also stand in train: 2 in the same bytes\n",
        "Missing files: 1\n",
        "Unreadable files: 2\n",
        "Bad records in the annotations, left out: 1\n",
        "Pictures that stand in several splits (the same bytes): 2\n",
        "Pictures that stand more than once in a split (the same bytes): 1\n",
    ):
        assert line in text
    assert "gone.jpg: no such file" in text
    assert "Nothing is wrong" not in text
    assert text.index("also stand in train") < text.index("Missing files"), "leaks come first"
    assert "--model" in text


def test_the_table_shows_the_first_examples_and_takes_no_name_for_markup(tmp_path):
    records = [ImageText(str(tmp_path / f"[red]{n}[/nothing].jpg"), ("a",), "train") for n in range(8)]
    text = printed(inspect_source(made(records)))
    assert "[red]4[/nothing].jpg" in text
    assert "[red]5[/nothing].jpg" not in text
    assert "and 3 more" in text


def test_the_table_says_what_captions_are_like(tmp_path):
    records = [ImageText(photograph(tmp_path / f"{n}.png", seed=n), ("[b]image[/b]", "犬"), "train") for n in range(3)]
    text = printed(inspect_source(made(records), tokens=TokenCounter(words_tokenizer(), "some/words", 4)))
    assert "under 3: [b]image[/b]" in text
    assert "some/words" in text and "3 of 6 (50 %) at 4 tokens" in text
    assert "Latin 50 %, Han 50 %" in text and "In Han letters: 3 captions, such as: 犬" in text


def test_a_sound_source_is_said_to_be(tmp_path):
    records = [ImageText(photograph(tmp_path / f"{n}.png", seed=n), ("a",), "train") for n in range(3)]
    found = inspect_source(made(records))
    assert found.sound
    assert "Nothing is wrong" in printed(found)
