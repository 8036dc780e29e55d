"""What holds of a library wherever it is kept: in files, and in LanceDB."""

import numpy as np
import pytest

from cliplet.errors import DataError
from cliplet.library.store import Calibration, create_store, open_store
from cliplet.library.where import parse

from .stores import DIMS, KINDS, changed, content_of, entry, filled, identity, place_of, reopened, vector

TWELVE = [entry(number, captions=(f"number {number}", "one of twelve")) for number in range(1, 13)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def store(kind, tmp_path):
    """Twelve pictures."""
    with_pictures = filled(kind, tmp_path, TWELVE)
    yield with_pictures
    with_pictures.close()


def ids(store):
    return {one.path: one.id for one in store.newest(1000)}


def test_what_is_written_is_read(store):
    (found,) = store.nearest(vector(5), 1)
    picture = found.picture
    assert (picture.path, picture.name, picture.folder) == ("/photos/005.jpg", "005.jpg", "/photos")
    assert (picture.format, picture.bytes, picture.width, picture.height) == ("jpeg", 1005, 105, 80)
    assert (picture.year, picture.month, picture.camera, picture.latitude) == (2005, None, None, None)
    assert picture.tags == ("tag 5",) and picture.captions == ("number 5", "one of twelve")
    assert found.copies == () and found.score == pytest.approx(float(vector(5) @ vector(5)), abs=1e-6)
    assert len(store) == 12 and store.picture(picture.id) == picture
    assert store.content(picture.id) == content_of("picture 5").hex() and store.changed(picture.id) == 5 * 10**9
    assert len(picture.added) == 19 and picture.added.startswith("20")


def test_nearest_is_what_comparing_all_gives(store):
    query_D = vector(99) * 3
    found = store.nearest(query_D, 12)
    products = sorted(((float(vector(n) @ query_D), n) for n in range(1, 13)), reverse=True)
    assert [one.picture.name for one in found] == [f"{n:03d}.jpg" for _, n in products]
    assert [one.score for one in found] == pytest.approx([product for product, _ in products], abs=1e-5)
    assert [one.picture for one in store.nearest(query_D, 3)] == [one.picture for one in found[:3]]
    assert len(store.nearest(query_D, 100)) == 12


def test_both_kinds_give_the_same(tmp_path):
    entries = [entry(n, content=f"{n // 2}", camera="it's" if n % 3 else None) for n in range(1, 60)]
    for one in entries[:]:
        one.features_D = vector(int.from_bytes(one.content[:4], "big"))
    one, other = (filled(kind, tmp_path, entries) for kind in KINDS)
    for where in (
        None,
        parse("year > 2010 and camera = 'IT''S'"),
        parse("width < 0"),
        parse("camera is null or year = 2004"),
    ):
        assert (one.count(where), other.count(where)) if where else True
        for seed in range(5):
            expected, got = (store.nearest(vector(1000 + seed), 10, where) for store in (one, other))
            assert [hit.picture.path for hit in got] == [hit.picture.path for hit in expected]
            assert [hit.copies for hit in got] == [hit.copies for hit in expected]
            assert [hit.score for hit in got] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        names = [[picture.path for picture in store.newest(7, 3, where)] for store in (one, other)]
        assert names[0] == names[1]


def test_filters(store):
    where = parse("year >= 2010")
    assert store.count(where) == 3
    assert {one.picture.year for one in store.nearest(vector(1), 12, where)} == {2010, 2011, 2012}
    assert [one.year for one in store.newest(2, where=where)] == [2012, 2011]
    assert store.count(parse("tag = 'TAG 3'")) == 1 and store.count(parse("caption = 'one of twelve'")) == 12
    assert store.nearest(vector(1), 3, parse("year = 1999")) == [] and store.newest(3, where=parse("year = 1999")) == []


def test_the_newest_first(store):
    assert [one.name for one in store.newest(3)] == ["012.jpg", "011.jpg", "010.jpg"]
    assert [one.name for one in store.newest(3, 10)] == ["002.jpg", "001.jpg"]
    changed(store, lambda writer: writer.write([entry(20)], []))
    assert [one.name for one in store.newest(2)] == ["020.jpg", "012.jpg"]


def test_files_with_the_same_content_are_one_result(kind, tmp_path):
    copies = [entry(n, path=f"/photos/{name}.jpg", content="the same") for n, name in ((3, "b"), (3, "a"), (3, "c"))]
    copies[1].features_D = None
    store = filled(kind, tmp_path, [entry(1), *copies, entry(2)])
    first, *others = store.nearest(vector(3), 5)
    assert first.picture.name == "b.jpg" and first.copies == ("/photos/a.jpg", "/photos/c.jpg")
    assert sorted(one.picture.name for one in others) == ["001.jpg", "002.jpg"] and len(store) == 5
    assert store.nearest(vector(3), 1) == [first]
    where = parse("name in ('c.jpg', 'a.jpg')")
    assert [one.copies for one in store.nearest(vector(3), 5, where)] == [("/photos/c.jpg",)]
    blocks = [
        (group, row) for groups, rows in store.features_in_blocks() for group, row in zip(groups, rows, strict=True)
    ]
    assert sorted([one.name for one in group] for group, _ in blocks) == [
        ["001.jpg"],
        ["002.jpg"],
        ["b.jpg", "a.jpg", "c.jpg"],
    ]
    for group, row in blocks:
        assert np.array_equal(row, vector(3 if len(group) > 1 else group[0].year - 2000))


def test_many_copies_do_not_hide_others(kind, tmp_path):
    copies = [entry(3, path=f"/photos/copy {n}.jpg", content="the same") for n in range(60)]
    store = filled(kind, tmp_path, [*copies, entry(1), entry(2)])
    found = store.nearest(vector(3), 3)
    assert [len(one.copies) for one in found] == [59, 0, 0]


def test_features_in_the_order_that_is_asked_for(store):
    numbers = ids(store)
    wanted = [numbers[f"/photos/{n:03d}.jpg"] for n in (7, 2, 7)]
    assert np.array_equal(store.features(wanted), np.stack([vector(7), vector(2), vector(7)]))
    sample_SD = store.sample(5)
    assert sample_SD.shape == (5, DIMS) and sample_SD.dtype == np.float32
    assert len({row.tobytes() for row in store.sample(100)}) == 12
    assert {row.tobytes() for row in sample_SD} <= {vector(n).tobytes() for n in range(1, 13)}


def test_numbers_that_no_picture_has(store):
    for id in (10**6, -1, 2**70):
        with pytest.raises(DataError, match="there is no picture"):
            store.picture(id)
        with pytest.raises(DataError, match="there is no picture"):
            store.features([id])
    with pytest.raises(DataError, match="there is no picture"):
        store.content(10**6)


def test_captions(store):
    def write(writer):
        texts = writer.captions_without_vectors(100)
        assert sorted(texts) == sorted(["one of twelve", *(f"number {n}" for n in range(1, 13))])
        assert len(writer.captions_without_vectors(4)) == 4
        writer.write_captions(texts, np.stack([vector(hash_of(text)) for text in texts]))
        assert writer.captions_without_vectors(100) == []

    assert store.captions_count() == 0 and store.nearest_captions(vector(1), 3) == []
    changed(store, write)
    assert store.captions_count() == 13
    found = store.nearest_captions(vector(hash_of("number 4")), 3)
    assert (found[0].text, found[0].path) == ("number 4", "/photos/004.jpg") and found[0].id == ids(store)[
        found[0].path
    ]
    assert found[0].score == pytest.approx(1, abs=1e-3) and found[0].score > found[1].score > found[2].score
    having = store.captioned(["number 4", "number", "one of twelve"])
    ((content, id),) = having["number 4"]
    assert store.picture(id).name == "004.jpg" and content == store.content(id)
    assert set(having) == {"number 4", "one of twelve"} and len(having["one of twelve"]) == 12
    assert having["one of twelve"] == sorted(having["one of twelve"], key=lambda one: one[1])
    ((_, id),) = store.captioned(["one of twelve"], parse("year = 2003"))["one of twelve"]
    assert store.picture(id).year == 2003
    other = having["number 4"][0][1]
    assert [[one.id for one in group] for group in store.alike([id, 10**9, 2**70, other])] == [[id], [other]]
    assert store.alike([id, other], parse("year = 2003")) == [[store.picture(id)]]
    passing = store.nearest_captions(vector(hash_of("number 4")), 5, parse("year = 2003"))
    assert {store.picture(one.id).year for one in passing} == {2003}
    assert {one.text for one in passing} == set(store.picture(id).captions)
    assert store.nearest_captions(vector(1), 5, parse("year = 1999")) == []


def hash_of(text):
    return int.from_bytes(content_of(text)[:4], "big")


def test_captions_of_pictures_that_are_gone_are_not_found(store):
    def write(writer):
        texts = writer.captions_without_vectors(100)
        writer.write_captions(texts, np.stack([vector(hash_of(text)) for text in texts]))

    changed(store, write)
    numbers = ids(store)
    changed(store, lambda writer: writer.remove([numbers["/photos/004.jpg"], numbers["/photos/012.jpg"]]))
    found = store.nearest_captions(vector(hash_of("number 4")), 20)
    assert "number 4" not in [one.text for one in found] and len(found) == 11
    assert next(one for one in found if one.text == "one of twelve").path in ids(store)
    changed(store, lambda writer: writer.caption([(numbers["/photos/005.jpg"], ("number 4", "it's new"))]))
    assert store.nearest_captions(vector(hash_of("number 4")), 1)[0].path == "/photos/005.jpg"
    assert store.picture(numbers["/photos/005.jpg"]).captions == ("number 4", "it's new")
    assert changed(store, lambda writer: writer.captions_without_vectors(9)) == ["it's new"]


def test_captions_stay_as_they_are_but_for_the_files_own(kind, tmp_path):
    store = filled(
        kind, tmp_path, [entry(1, own_captions=("own",)), entry(2, captions=("given",), own_captions=("own",))]
    )
    one, two = (ids(store)[f"/photos/00{n}.jpg"] for n in (1, 2))
    assert (store.picture(one).captions, store.picture(two).captions) == (("own",), ("given",))
    changed(store, lambda writer: writer.caption([(one, ("own", "added"))]))
    changed(store, lambda writer: writer.write([entry(1, id=one, own_captions=("own",)), entry(2, id=two)], []))
    assert store.picture(one).captions == ("own", "added") and store.picture(two).captions == ("given",)
    changed(store, lambda writer: writer.write([entry(1, id=one, own_captions=("other",))], []))
    assert store.picture(one).captions == ("added", "other")


def test_a_picture_that_changes_keeps_its_number(store):
    id = ids(store)["/photos/003.jpg"]
    added = store.picture(id).added
    new = entry(40, path="/photos/003.jpg", id=id)
    changed(store, lambda writer: writer.write([new], []))
    picture = store.picture(id)
    assert (picture.width, picture.captions, picture.added) == (140, ("number 3", "one of twelve"), added)
    assert len(store) == 12 and np.array_equal(store.features([id])[0], vector(40))
    assert store.nearest(vector(3), 1)[0].picture.id != id


def test_a_picture_that_moved(store):
    numbers = ids(store)
    gone = {numbers["/photos/003.jpg"], numbers["/photos/004.jpg"]}

    def move(writer):
        assert writer.has_vector(content_of("picture 4")) and not writer.has_vector(content_of("picture 44"))
        assert writer.moved(content_of("picture 5"), gone) is None
        id = writer.moved(content_of("picture 4"), gone)
        writer.write([entry(4, path="/photos/new/4.jpg", id=id, features=False)], [])
        return id

    id = changed(store, move)
    assert id == numbers["/photos/004.jpg"]
    assert store.picture(id).path == "/photos/new/4.jpg" and store.picture(id).folder == "/photos/new"
    assert np.array_equal(store.features([id])[0], vector(4)) and len(store) == 12


def test_known_and_problems(store):
    problem = ("/photos/bad.jpg", 5, 6, "it's no picture")

    def look(writer):
        return writer.known(), writer.problems()

    changed(store, lambda writer: writer.write([], [problem, ("/photos/\udcff.jpg", 1, 2, "why")]))
    known, problems = changed(store, look)
    assert len(known) == 12 and known["/photos/002.jpg"][1:] == (1002, 2 * 10**9, True)
    assert problems == {"/photos/bad.jpg": (5, 6), "/photos/\udcff.jpg": (1, 2)}
    changed(store, lambda writer: writer.write([entry(50, path="/photos/bad.jpg")], []))
    changed(store, lambda writer: writer.remove([], ["/photos/\udcff.jpg"]))
    known, problems = changed(store, look)
    assert problems == {} and "/photos/bad.jpg" in known
    changed(
        store, lambda writer: writer.write([], [("/photos/bad.jpg", 7, 8, "again"), ("/photos/bad.jpg", 9, 9, "last")])
    )
    known, problems = changed(store, look)
    assert problems == {"/photos/bad.jpg": (9, 9)} and "/photos/bad.jpg" not in known and len(store) == 12


def test_renamed_pictures_keep_all_but_their_names(store):
    before = {id: store.picture(id) for id in ids(store).values()}
    id, other = ids(store)["/photos/002.jpg"], ids(store)["/photos/003.jpg"]
    changed(store, lambda writer: writer.rename({id: "/elsewhere/x.jpg", other: "/photos/002.jpg"}))
    now = store.picture(id)
    assert (now.path, now.folder, now.name) == ("/elsewhere/x.jpg", "/elsewhere", "x.jpg")
    assert store.picture(other).path == "/photos/002.jpg" and len(store) == len(before)
    assert (now.added, now.captions, now.year) == (before[id].added, before[id].captions, before[id].year)
    assert np.array_equal(store.features([id])[0], vector(2))


def test_reasons_of_problems_are_kept(store):
    problems = [("/photos/bad.jpg", 5, 6, "it's no picture"), ("/photos/\udcff.jpg", 1, 2, "why")]
    changed(store, lambda writer: writer.write([], problems))
    assert changed(store, lambda writer: writer.reasons()) == {path: why for path, _, _, why in problems}


def test_folders_are_remembered_and_forgotten(store):
    changed(store, lambda writer: writer.add_roots(["/photos/a", "/other", "/photos"]))
    changed(store, lambda writer: writer.write([entry(30, path="/photos/a/x.jpg"), entry(31, path="/other/x.jpg")], []))
    assert changed(store, lambda writer: writer.roots()) == ["/other", "/photos", "/photos/a"]
    with pytest.raises(DataError, match="no folder of the library"):
        changed(store, lambda writer: writer.forget("/photo"))
    assert changed(store, lambda writer: writer.forget("/photos")) == 12  # what lies in /photos/a stays
    assert sorted(ids(store)) == ["/other/x.jpg", "/photos/a/x.jpg"]


def test_vectors_of_another_model_are_refused(store):
    for other in (identity("another"), identity(dims=8)):
        with store.writing(print) as writer, pytest.raises(DataError, match="holds vectors of another model"):
            writer.begin(other)
    changed(store, lambda writer: writer.write([entry(20)], []))
    assert store.identity == identity() and len(store) == 13


def upgraded(writer, numbers, new, until):
    """Embeds pictures with another model."""
    writer.begin(identity("new", dims=8), upgrade=True)
    for number in range(new, until):
        one = entry(number, id=numbers.get(f"/photos/{number:03d}.jpg"))
        one.features_D = vector(number + 500, 8)
        writer.write([one], [])


def test_an_upgrade_answers_with_the_old_until_it_is_whole(store):
    numbers = ids(store)
    with store.writing(print) as writer:
        upgraded(writer, numbers, 1, 7)
        assert sum(one.embedded for one in writer.known().values()) == 6 and len(writer.known()) == 12
        assert not writer.has_vector(content_of("picture 7")) and writer.has_vector(content_of("picture 6"))
    store.refresh()
    assert store.identity == identity() and store.nearest(vector(3), 1)[0].picture.id == numbers["/photos/003.jpg"]
    with store.writing(print) as writer:  # as after a kill
        upgraded(writer, numbers, 7, 13)
        assert all(one.embedded for one in writer.known().values())
        writer.finish(lambda: np.stack([vector(n, 8) for n in range(20)]))
        writer.set_calibration(Calibration(np.ones((3, 8), np.float32), 0.1, 0.2, 0.3, 12))
    store.refresh()
    assert store.identity == identity("new", dims=8) and len(store) == 12 and ids(store) == numbers
    (found,) = store.nearest(vector(503, 8), 1)
    assert found.picture.id == numbers["/photos/003.jpg"] and found.picture.captions == ("number 3", "one of twelve")
    assert store.calibration.rows == 12 and store.calibration.background_QD.shape == (3, 8)
    assert reopened(store).identity == identity("new", dims=8)


def test_an_upgrade_that_is_given_up_leaves_nothing(store):
    numbers = ids(store)
    with store.writing(print) as writer:
        upgraded(writer, numbers, 1, 7)
    changed(store, lambda writer: writer.write([entry(20)], []))
    with store.writing(print) as writer:
        writer.begin(identity("new", dims=8), upgrade=True)
        assert not any(one.embedded for one in writer.known().values())
    assert store.identity == identity() and np.array_equal(store.features([numbers["/photos/003.jpg"]])[0], vector(3))


def test_calibration(store):
    background_QD = np.stack([vector(n) for n in range(9)])
    assert store.calibration.rows == 0 and len(store.calibration.background_QD) == 0
    changed(store, lambda writer: writer.set_calibration(Calibration(background_QD, 0.1, 0.2, 2.5, 12)))
    for one in (store, reopened(store)):
        got = one.calibration
        assert np.array_equal(got.background_QD, background_QD) and got.background_QD.dtype == np.float32
        assert (got.text_spread, got.image_spread, got.least_fit, got.rows) == (0.1, 0.2, 2.5, 12)


def test_readers_see_one_moment_until_they_refresh(store):
    other = open_store(store.place)
    numbers = ids(store)
    with store.writing(print) as writer:
        writer.begin(store.identity)
        writer.write([entry(20)], [])
        writer.remove([numbers["/photos/001.jpg"], numbers["/photos/002.jpg"]])
        other.refresh()
    assert (len(store), len(other)) == (12, 11)
    assert len(other.nearest(vector(1), 100)) == 11
    store.refresh()
    assert len(store) == 11 and {one.path for one in store.newest(100)} == {one.path for one in other.newest(100)}


def test_a_second_writer_is_told_who_writes(store):
    other = open_store(store.place)
    with store.writing(print), pytest.raises(DataError, match="another process is writing to the library: process"):
        changed(other, lambda writer: None)
    changed(other, lambda writer: writer.write([entry(20)], []))
    assert len(other) == 13


def test_an_empty_library(kind, tmp_path):
    store = create_store(place_of(kind, tmp_path))
    assert (len(store), store.identity, store.captions_count()) == (0, None, 0)
    assert store.nearest(vector(1), 5) == [] and store.newest(5) == [] and store.count(parse("year = 1")) == 0
    assert len(store.sample(5)) == 0 and list(store.features_in_blocks()) == [] and store.calibration.rows == 0
    assert create_store(store.place).identity is None
    with pytest.raises(DataError, match="there is no picture 1"):
        store.picture(1)


def test_places_that_are_no_library(kind, tmp_path):
    place = place_of(kind, tmp_path)
    with pytest.raises(DataError, match="is no library"):
        open_store(place)
    folder = tmp_path / ("tables" if kind == "lance" else "files")
    folder.mkdir()
    (folder / "something.txt").write_text("of somebody")
    with pytest.raises(DataError, match="no library of cliplet"):
        create_store(place)
    assert (folder / "something.txt").read_text() == "of somebody"
