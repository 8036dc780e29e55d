"""A library as people use it: pictures found, embedded once, searched; moved, changed and removed ones noticed."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cliplet
from cliplet.errors import ConfigError, DataError, ImageError
from cliplet.library import Library, Query, Term, adding, fit, indexing

from .conftest import paint
from .quick import few_sentences
from .stores import KINDS, entry, filled, place_of


def paths(hits):
    return [os.path.basename(hit.path) for hit in hits]


def test_search_is_the_order_of_cosines(opened, encoder):
    pictures = sorted({picture.path for picture in opened.newest(100)})
    cosine_N = encoder.encode_image(pictures) @ encoder.encode_text(["a red boat"])[0]
    hits = opened.search("a red boat", k=12)
    assert [hit.path for hit in hits] == [pictures[row] for row in np.argsort(-cosine_N)]
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosine_N, reverse=True), abs=2e-3)
    assert all(0 <= hit.fit <= 100 for hit in hits) and hits.total is None
    assert hits[0].picture.width == 48 + int(hits[0].picture.name[:2]) and hits[0].picture.format == "png"


def test_pages_continue_one_another(opened):
    whole = paths(opened.search("boat", k=12))
    assert paths(opened.search("boat", k=5)) + paths(opened.search("boat", k=5, offset=5)) == whole[:10]
    assert paths(opened.search("boat", k=50)) == whole and not opened.search("boat", offset=12)


def test_a_picture_finds_itself_first(opened):
    for picture in opened.newest(3):
        assert opened.search(Query.of_picture(picture.path))[0].id == picture.id
        assert opened.search(Query((Term(1.0, "id", picture.id),)))[0].id == picture.id
        with open(picture.path, "rb") as stream:
            assert opened.search(Query.of_picture(stream.read()))[0].id == picture.id


def test_minus_turns_the_order_around(opened):
    there = paths(opened.search("boat", k=12))
    assert paths(opened.search(Query((Term(-1.0, "text", "boat"),)), k=12)) == there[::-1]


def test_filters(opened):
    hits = opened.search("boat", k=12, where="width > 52 and width <= 56")
    assert sorted(paths(hits)) == ["05.png", "06.png", "07.png", "08.png"] and hits.total == 4
    assert paths(opened.search("boat", k=2, where="name = '11.png'")) == ["11.png"]
    assert opened.search("boat", where="width > 1000") == [] and opened.search("boat", where="width > 1000").total == 0
    with pytest.raises(ConfigError, match="widht"):
        opened.search("boat", where="widht > 3")
    with pytest.raises(ConfigError):
        opened.search("boat", where="1=1) UNION SELECT path FROM pictures --")


def test_captions(opened, encoder):
    assert opened.has_captions
    found = opened.captions("picture number 7", k=3)
    assert found[0].text == "picture number 7" and found[0].score == pytest.approx(1, abs=2e-3)
    assert os.path.basename(found[0].path) == "07.png" and found[0].fit >= 99
    picture = next(one for one in opened.newest(12) if one.name == "03.png")
    texts = sorted({f"picture number {number}" for number in range(12)} | {"one of twelve", "a boat on the lake"})
    cosine_C = encoder.encode_text(texts) @ encoder.encode_image([picture.path])[0]
    expected = [texts[row] for row in np.argsort(-cosine_C)]
    assert [one.text for one in opened.captions(Query.of_picture(picture.path), k=20)] == expected


def test_one_result_a_picture_though_it_has_several_captions(opened):
    hits = opened.search("one of twelve", k=12, by="captions")
    assert len({hit.id for hit in hits}) == 12
    assert sorted(paths(hits[:6])) == [f"{number:02d}.png" for number in (1, 3, 5, 7, 9, 11)]
    assert {hit.caption for hit in hits[:6]} == {"one of twelve"}
    filtered = opened.search("one of twelve", k=3, by="captions", where="width <= 50")
    assert sorted(paths(filtered)) == ["00.png", "01.png", "02.png"] and paths(filtered)[0] == "01.png"


@pytest.mark.parametrize("where", ["", "width > 50", "width = 1", "caption = 'one of twelve'"])
def test_pictures_by_captions_are_those_of_comparing_every_caption(opened, encoder, where):
    passing = {picture.id: picture for picture in opened.newest(20, where=where)}
    query_D = encoder.encode_text(["a dog in the snow"])[0]
    scores = {
        id: max(float(encoder.encode_text([text])[0] @ query_D) for text in picture.captions)
        for id, picture in passing.items()
    }
    hits = opened.search("a dog in the snow", k=20, by="captions", where=where)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(scores, abs=2e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.caption in passing[hit.id].captions for hit in hits)
    assert hits.total == (len(passing) if where else None)
    pages = [opened.search("a dog in the snow", k=5, offset=at, by="captions", where=where) for at in range(0, 20, 5)]
    assert [hit.id for page in pages for hit in page] == [hit.id for hit in hits]


def test_scores_of_one_picture(opened, encoder):
    picture = opened.newest(1)[0]
    (score, fit), _ = opened.scores(picture.id, ["a boat", "a dog"])
    expected = float(encoder.encode_image([picture.path])[0] @ encoder.encode_text(["a boat"])[0])
    assert score == pytest.approx(expected, abs=2e-3) and 0 <= fit <= 100


@pytest.mark.parametrize("k", [0, 1001])
def test_how_many_can_be_asked_for(opened, k):
    with pytest.raises(ConfigError, match="hits can be asked for"):
        opened.search("boat", k=k)


def test_pictures_that_are_not_there(opened, tmp_path):
    for id in (999, -1, 2**70):
        with pytest.raises(DataError, match="no picture"):
            opened.picture(id)
        with pytest.raises(DataError, match="no picture"):
            opened.search(Query((Term(1.0, "id", id),)))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        opened.search(Query.of_picture(tmp_path / "bad.jpg"))


# Adding


def test_a_second_run_has_nothing_to_do(new_library, photos, monkeypatch):
    first = new_library.add(photos)
    assert (first.added, first.embedded, first.pictures, first.failed) == (12, 12, 12, 0)
    before = {picture.path: picture.id for picture in new_library.newest(20)}
    with Library.open(new_library.store.place) as again:
        monkeypatch.setattr("cliplet.runtime.encoder.load", None)  # the model is not even opened
        second = again.add()
    assert (second.added, second.embedded, second.unchanged, second.pictures) == (0, 0, 12, 12)
    assert {picture.path: picture.id for picture in new_library.newest(20)} == before


def test_new_changed_moved_and_removed(new_library, photos):
    new_library.add(photos)
    ids = {picture.name: picture.id for picture in new_library.newest(20)}
    (photos / "a" / "00.png").rename(photos / "b" / "moved.png")
    (photos / "a" / "01.jpg").unlink()
    paint(photos / "a" / "02.png", 99, (64, 64))
    paint(photos / "new.png", 100)
    os.utime(photos / "a" / "03.jpg", ns=(5, 5))
    summary = new_library.add()
    done = (summary.added, summary.changed, summary.moved, summary.removed, summary.embedded, summary.unchanged)
    assert done == (1, 2, 1, 1, 2, 8)
    now = {picture.name: picture for picture in new_library.newest(20)}
    assert now["moved.png"].id == ids["00.png"] and now["moved.png"].folder == str(photos / "b")
    assert now["02.png"].id == ids["02.png"] and now["02.png"].width == 64
    assert "01.jpg" not in now and "00.png" not in now and len(now) == 12
    for name in ("moved.png", "02.png", "new.png"):
        assert new_library.search(Query.of_picture(now[name].path))[0].id == now[name].id
    assert all(hit.picture.name != "01.jpg" for hit in new_library.search("boat", k=50))
    assert (new_library.add().unchanged, new_library.add().changed) == (12, 0)


def test_what_was_removed_and_comes_back_is_not_embedded_again(new_library, photos):
    new_library.add(photos)
    data = (photos / "a" / "00.png").read_bytes()
    (photos / "a" / "00.png").unlink()
    assert new_library.add().removed == 1
    (photos / "a" / "00.png").write_bytes(data)
    summary = new_library.add()
    assert (summary.added, summary.embedded) == (1, 0)


def test_copies_are_one_result(new_library, photos):
    shutil.copy(photos / "a" / "00.png", photos / "b" / "copy.png")
    summary = new_library.add(photos)
    assert summary.added == 13 and summary.pictures == 13
    hit = new_library.search(Query.of_picture(photos / "a" / "00.png"))[0]
    assert sorted([hit.path, *hit.copies]) == [str(photos / "a" / "00.png"), str(photos / "b" / "copy.png")]
    assert len(new_library.search("boat", k=50)) == 12
    (photos / "a" / "00.png").unlink()
    new_library.add()
    hit = new_library.search(Query.of_picture(photos / "b" / "copy.png"))[0]
    assert hit.path == str(photos / "b" / "copy.png") and hit.copies == ()


def test_files_that_are_no_pictures(new_library, photos, tmp_path):
    (photos / "broken.jpg").write_bytes((photos / "a" / "01.jpg").read_bytes()[:300])
    (photos / "text.png").write_text("no picture")
    (photos / "empty.gif").touch()
    Image.new("1", (30_000, 17_000)).save(photos / "bomb.png")
    quarantine = tmp_path / "bad.jsonl"
    summary = new_library.add(photos, quarantine=quarantine)
    assert (summary.added, summary.failed) == (12, 4)
    written = quarantine.read_text()
    assert "over the limit of 200 megapixels" in written and "text.png" in written
    assert (new_library.add().failed, new_library.add().added) == (0, 0)  # they have not changed
    shutil.copy(photos / "a" / "00.png", photos / "text.png")
    assert new_library.add().added == 1


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_an_earlier_run_could_not_read_are_written_down(kind, tmp_path, photos, encoder, monkeypatch):
    few_sentences(monkeypatch)
    (photos / "text.png").write_text("no picture")
    (photos / "a" / "cut.jpg").write_bytes((photos / "a" / "01.jpg").read_bytes()[:300])
    said = []
    with Library.create(place_of(kind, tmp_path), encoder) as library:
        summary = library.add(photos, say=said.append)
        assert (summary.failed, summary.unreadable) == (2, 2)
        assert [line.partition(": ")[0] for line in said] == [str(photos / "text.png"), str(photos / "a" / "cut.jpg")]
        assert all(line.partition(": ")[2] for line in said)
        summary = library.add(quarantine=tmp_path / "q.jsonl", say=said.append)  # they have not changed
        assert (summary.failed, summary.unreadable, len(said)) == (0, 2, 2)
        written = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
        assert sorted(f"{one['where']}: {one['reason']}" for one in written) == sorted(said)
        (photos / "text.png").unlink()
        assert library.add(quarantine=tmp_path / "q.jsonl").unreadable == 1
        assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_fits_are_known_before_the_first_run_is_at_its_end(kind, tmp_path, photos, encoder, monkeypatch):
    """And after a kill."""
    few_sentences(monkeypatch)
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", -1.0)
    place, seen, taken = place_of(kind, tmp_path), [], []
    calibrate = adding.calibrate
    monkeypatch.setattr(adding, "calibrate", lambda store, *more: taken.append(len(store)) or calibrate(store, *more))

    def looking(done, total):
        if done == 11:
            with Library.open(place, encoder) as reader:
                seen.extend(hit.fit for hit in reader.search("a boat", k=3))
            raise KeyboardInterrupt

    with Library.create(place, encoder) as library:
        with pytest.raises(KeyboardInterrupt):
            library.add(photos, batch_size=1, tell=looking)
        assert max(seen) > 0 and taken == [1, 3, 7]  # whenever there are twice as many
    with Library.open(place, encoder) as library:
        assert library.store.calibration.rows == 7 and library.search("a boat")[0].fit > 0
        library.add(batch_size=1)
        assert library.store.calibration.rows == 7  # as few are new
    with Library.create(place_of(kind, tmp_path / "whole"), encoder) as library:
        library.add(photos, batch_size=1)
        assert library.store.calibration.rows == 12  # at the end of a run that did so on the way


def test_a_small_library_is_measured_as_searches_would(opened, encoder, monkeypatch):
    queries_QD = encoder.encode_text(["a bus", "a cake on a table", "two dogs"])
    quick = fit.calibrate(opened.store, queries_QD, queries_QD)
    monkeypatch.setattr(fit, "AT_ONCE", 0)
    slow = fit.calibrate(opened.store, queries_QD, queries_QD)
    assert quick.tops == pytest.approx(slow.tops, abs=1e-6) and quick.rows == slow.rows == 12
    assert quick.least_fit == pytest.approx(slow.least_fit, abs=1e-6)


def test_a_picture_that_goes_bad_is_no_longer_found(new_library, photos):
    new_library.add(photos)
    (photos / "a" / "00.png").write_text("overwritten")
    assert new_library.add().failed == 1
    assert len(new_library) == 11 and "00.png" not in paths(new_library.search("boat", k=50))


def test_names_of_all_kinds_come_back(new_library, photos):
    odd = ["two\nlines.png", "猫.png", "quote'\".png", "\u202etfel.png", os.fsdecode(b"\xff\xfe.png")]
    for number, name in enumerate(odd):
        paint(photos / "x.png", 50 + number)
        (photos / "x.png").rename(photos / name)
    new_library.add(photos)
    for name in odd:
        hit = new_library.search(Query.of_picture(os.path.join(photos, name)))[0]
        assert hit.path == os.path.join(photos, name) and hit.picture.name == name
    assert new_library.add().unchanged == 17


def test_a_library_inside_its_own_folder(photos, encoder):
    with Library.create(photos / "photos.library", encoder) as library:
        library.add(photos)
        thumbnails = Path(library.store.place, "thumbnails")
        thumbnails.mkdir()
        shutil.copy(photos / "a" / "00.png", thumbnails / "x.png")
        assert library.add().added == 0 and len(library) == 12


def test_captions_from_a_data_set_and_by_path(new_library, photos, tmp_path):
    paint(photos / "captioned.jpg", 70)
    table = tmp_path / "captions.tsv"
    table.write_text("00.png\tthe first\n01.jpg\tthe second\n01.jpg\tthe second again\n")
    first = new_library.add(photos / "a", captions=table)
    assert first.captions == 3
    by_name = {picture.name: picture.captions for picture in new_library.newest(20)}
    assert by_name["01.jpg"] == ("the second", "the second again") and by_name["02.png"] == ()
    second = new_library.add(captions={str(photos / "a" / "00.png"): ["another\n line", "the second"]})
    assert second.captions == 1  # what is there already is not embedded again
    by_name = {picture.name: picture.captions for picture in new_library.newest(20)}
    assert by_name["00.png"] == ("another line", "the second")
    assert new_library.search("x", where="caption = 'the second'").total == 2
    assert len(new_library.search("the second", by="captions")) == 2


def test_two_folders_and_forgetting_one(new_library, photos):
    new_library.add(photos / "a")
    new_library.add(photos / "b")
    assert len(new_library) == 12
    shutil.rmtree(photos / "a")
    kept = []
    assert new_library.add(say=kept.append).pictures == 12
    assert "is not there" in kept[0] and "--forget" in kept[0]
    assert new_library.add(forget=[str(photos / "a")]).removed == 6
    assert len(new_library) == 6
    with pytest.raises(DataError, match="no folder of the library"):
        new_library.add(forget=[str(photos / "a")])


def test_another_model_is_refused_and_upgraded_to(new_library, photos, tiny_config, tmp_path):
    import torch

    from cliplet.models import DualEncoder

    torch.manual_seed(1)
    other = tmp_path / "other"
    DualEncoder.build(tiny_config, ["some other words"]).eval().save_pretrained(other, card="# card\n")
    new_library.add(photos)
    before = [hit.path for hit in new_library.search("boat", k=12)]
    with pytest.raises(DataError, match="another model") as refused:
        new_library.add(model=other)
    assert "--upgrade" in refused.value.hint
    with pytest.raises(DataError, match="another model"):
        Library.create(new_library.store.place, cliplet.load(other))
    assert [hit.path for hit in new_library.search("boat", k=12)] == before
    summary = new_library.add(model=other, upgrade=True)
    assert (summary.embedded, summary.changed, summary.pictures) == (12, 12, 12)
    with Library.open(new_library.store.place) as upgraded:
        expected = cliplet.load(other)
        pictures = sorted(picture.path for picture in upgraded.newest(20))
        cosine_N = expected.encode_image(pictures) @ expected.encode_text(["boat"])[0]
        assert [hit.path for hit in upgraded.search("boat", k=12)] == [pictures[row] for row in np.argsort(-cosine_N)]
    generations = {file.name.split(".")[0] for file in Path(new_library.store.place).glob("vectors-*")}
    assert generations == {"vectors-2"}  # the old ones are gone


def test_the_model_may_be_exported_later(photos, saved_model, exported_model, tmp_path):
    """Its features are the same, so the library goes on with either."""
    model = Path(shutil.copytree(saved_model, tmp_path / "model"))
    with Library.create(tmp_path / "l", cliplet.load(model)) as library:
        library.add(photos / "a")
    with Library.create(tmp_path / "l", cliplet.load(exported_model)) as library:
        assert library.add(photos / "b").added == 6


def test_a_folder_that_is_no_library(tmp_path, encoder):
    with pytest.raises(DataError, match="is no library"):
        Library.open(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").touch()
    with pytest.raises(DataError, match="no library of cliplet"):
        Library.create(tmp_path / "full", encoder)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["x.txt"]
    with pytest.raises(DataError, match="no folder"):
        Library.create(tmp_path / "full" / "x.txt", encoder)
    with Library.create(tmp_path / "new", encoder) as library, pytest.raises(DataError, match="no pictures yet"):
        library.search("boat")


def test_a_library_of_a_later_version(library_copy):
    with sqlite3.connect(library_copy / "records.sqlite") as records:
        records.execute("UPDATE meta SET value = '2' WHERE key = 'format_version'")
    records.close()
    with pytest.raises(DataError, match="format version 2"):
        Library.open(library_copy)


def test_the_model_that_is_gone(library_copy, tmp_path):
    with sqlite3.connect(library_copy / "records.sqlite") as records:
        records.execute("UPDATE generations SET identity = json_set(identity, '$.source', '/nowhere/model')")
    records.close()
    with Library.open(library_copy) as library, pytest.raises(cliplet.ClipletError, match="nowhere"):
        library.search("boat")


def test_duplicates(new_library, photos):
    random = np.random.default_rng(5)
    grain = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    detailed = grain.resize((640, 480), Image.Resampling.BICUBIC)
    detailed.save(photos / "large.png")
    detailed.resize((320, 240)).save(photos / "small.jpg", quality=70)
    shutil.copy(photos / "a" / "00.png", photos / "b" / "copy.png")
    new_library.add(photos)
    groups = [[picture.name for picture in group] for group in new_library.duplicates()]
    assert sorted(groups) == [["00.png", "copy.png"], ["large.png", "small.jpg"]]
    assert len(new_library.duplicates(alike=0.01)[0]) > 2


def test_what_a_file_says_of_itself_becomes_columns(new_library, photos):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "Canon EOS R5"
    exif[0x010E] = "a heron at the pond"
    exif.get_ifd(0x8769)[0x9003] = "2024:07:01 12:30:05"
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 0.0), 3: "E", 4: (151.0, 0.0, 0.0)})
    with Image.open(photos / "a" / "01.jpg") as image:
        image.save(photos / "heron.jpg", exif=exif)
    new_library.add(photos)
    (picture,) = new_library.newest(5, where="camera like 'canon%' and taken = '2024-07'")
    assert (picture.name, picture.year, picture.month, picture.day, picture.hour) == ("heron.jpg", 2024, 7, 1, 12)
    assert (picture.latitude, picture.longitude) == (-33.5, 151.0) and picture.captions == ("a heron at the pond",)
    assert new_library.search("x", where="near(-33.5, 151, 1)").total == 1
    assert new_library.captions("a heron at the pond")[0].score == pytest.approx(1, abs=2e-3)
    new_library.add(captions={picture.path: ["another"]})
    assert new_library.picture(picture.id).captions == ("another",)
    os.utime(picture.path, ns=(9, 9))
    new_library.add()
    assert new_library.picture(picture.id).captions == ("another",)  # read again, and not lost


def test_heic_pictures(new_library, photos):
    heif = pytest.importorskip("pillow_heif")
    with Image.open(photos / "a" / "00.png") as image:
        heif.from_pillow(image).save(photos / "x.HEIC", quality=90)
    summary = new_library.add(photos)
    assert (summary.added, summary.failed) == (13, 0)
    (picture,) = new_library.newest(5, where="name = 'x.heic'")
    assert (picture.width, picture.height) == (48, 36) and picture.format in ("heic", "heif")


def test_heic_pictures_without_their_decoder(new_library, photos, monkeypatch, tmp_path):
    import cliplet.data.images as images

    (photos / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr(images, "_formats", lambda: ["JPEG", "PNG"])
    assert new_library.add(photos, quarantine=tmp_path / "q.jsonl").failed == 1
    assert "[heic]" in (tmp_path / "q.jsonl").read_text()
    assert new_library.add().failed == 1  # tried again, for the decoder may be there by now


def test_pipes_are_no_pictures(photos, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (indexing.read_file, indexing.content_of_file):
        (tmp_path / "link.jpg").unlink(missing_ok=True)
        (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")  # it was a file when it was looked at
        if read is indexing.content_of_file:
            assert read(str(tmp_path / "link.jpg")) is None
        else:
            with pytest.raises(ImageError, match="is no file"):
                read(str(tmp_path / "link.jpg"))
    assert (
        indexing.content_of_file(str(photos / "a" / "00.png"))
        == indexing.read_file(str(photos / "a" / "00.png"))[1].content
    )


@pytest.mark.parametrize("kind", KINDS)
def test_captions_that_are_no_text_in_utf8(kind, tmp_path, photos, encoder, monkeypatch):
    few_sentences(monkeypatch)
    path = str(photos / "a" / "00.png")
    given = {path: ["bad \udc80 text", "\ud83d", "  ", "", "fine", "fine "]}
    with Library.create(place_of(kind, tmp_path), encoder) as library:
        assert library.add(photos / "a", captions=given).captions == 3
        (picture,) = library.newest(9, where="name = '00.png'")
        assert picture.captions == ("bad \\udc80 text", "\\ud83d", "fine")
        os.utime(path, ns=(1, 1))
        assert library.add(captions={path: [" "]}).changed == 1
        assert library.picture(picture.id).captions == ()
    with Library.open(place_of(kind, tmp_path), encoder) as library:
        assert library.add().unchanged == 6 and len(library.newest(9)) == 6


def test_writers_take_captions_that_are_no_text_in_utf8(tmp_path):
    store = filled(
        "local", tmp_path, [entry(1, captions=("b\ud800", "c's"), own_captions=("o\ud800",), tags=("t\udc80",))]
    )
    (picture,) = store.newest(5)
    assert picture.captions == ("b\\ud800", "c's") and picture.tags == ("t\\udc80",)
    store.close()
