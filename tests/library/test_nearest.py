"""Nearest rows, exactly and approximately, against sorting all scores; damage is refused before usearch sees it."""

import itertools
import json
import resource
import shutil
import signal
import sys
import threading

import numpy as np
import pytest

from cliplet.errors import DataError
from cliplet.library import approximate, approximate_making
from cliplet.library import exact as scanning
from cliplet.library.approximate_making import build, extend
from cliplet.library.exact import exact
from cliplet.library.nearest import Neighbours

DIMS, ROWS = 32, 2400
LEVEL = {"k": 10, "expansion_search": 64, "candidates": 20, "recall_texts": 1.0, "texts": 1, "recall_pictures": 1.0}
LEVEL |= {"pictures": 1}
LITTLE = 1000  # bytes, beyond which searching is approximate in these tests


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def clouds(rows, queries, dims=DIMS, seed=0):
    """Pictures and sentences as such models embed them: two clouds around different means, spread alike."""
    random = np.random.default_rng(seed)
    spread = np.arange(1, dims + 1) ** -0.5
    means = unit(random.standard_normal((2, dims)))
    pictures = unit(means[0] + 0.8 * random.standard_normal((rows, dims)) * spread).astype(np.float16)
    sentences = unit(means[1] + 0.8 * random.standard_normal((queries, dims)) * spread).astype(np.float32)
    return pictures, sentences


def best(vectors, query, k, rows=None):
    """The reference: every score, sorted; equal scores by row number."""
    with np.errstate(invalid="ignore"):
        scores = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    rows = np.arange(len(vectors)) if rows is None else np.asarray(rows, dtype=np.int64)
    rows = rows[np.isfinite(scores[rows])]
    rows = rows[np.lexsort((rows, -scores[rows]))][:k]
    return rows, scores[rows]


def assert_same(found, expected):
    assert found[0].dtype == np.int64 and found[1].dtype == np.float32
    assert found[0].tolist() == expected[0].tolist()
    assert found[1].tolist() == expected[1].tolist()


def recall(neighbours, vectors, queries, k=10):
    found = [len(set(neighbours.search(q, k)[0]) & set(best(vectors, q, k)[0])) / k for q in queries]
    return float(np.mean(found))


@pytest.fixture(scope="module")
def data():
    return clouds(ROWS, 260)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """An index of 2,400 rows; to be read only."""
    file = tmp_path_factory.mktemp("index") / "vectors-1.usearch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate_making, "cores", lambda: 1)
        build(data[0], file, data[1][:200])
    return file


@pytest.fixture(autouse=True)
def quick_and_the_same_each_time(made, monkeypatch):
    """One thread makes the same graph each time. Settings are sought for fewer numbers of results than usual, but for
    the index of `made`."""
    monkeypatch.setattr(approximate_making, "LEVELS", (10, 50))
    monkeypatch.setattr(approximate_making, "cores", lambda: 1)


@pytest.fixture
def copied(made, tmp_path):
    """The same, for a test that damages it."""
    for one in (made, approximate.about_file(made)):
        shutil.copy(one, tmp_path / one.name)
    return tmp_path / made.name


@pytest.fixture(params=["numkong", "numpy"])
def kernel(request, monkeypatch):
    """What computes rough scores."""
    if request.param == "numpy":
        monkeypatch.setattr(scanning, "_numkong", lambda dims: None)
    elif scanning._numkong(DIMS) is None:
        pytest.skip("NumKong is not here, or not exact enough")


# -- exact


def test_three_vectors_by_hand():
    vectors = np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float16)
    rows, scores = exact(vectors, np.array([2, 1], dtype=np.float32), 3)
    assert rows.tolist() == [0, 2, 1] and scores.tolist() == [2.0, 1.5, 1.0]
    rows, scores = exact(vectors, np.array([-1, -1], dtype=np.float32), 2)
    assert rows.tolist() == [0, 1] and scores.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("dims", [1, 3, 32, 100])
def test_it_finds_what_sorting_finds(kernel, monkeypatch, dims):
    monkeypatch.setattr(scanning, "BLOCK_BYTES", 50 * dims)  # 25 rows at once
    vectors, queries = clouds(400, 5, dims)
    for query in [*queries, *vectors[:3].astype(np.float32), -7.5 * queries[0], np.zeros(dims, np.float32)]:
        for k in (1, 10, 150, 400, 1000):
            assert_same(exact(vectors, query, k), best(vectors, query, k))


def test_equal_rows_come_in_their_order(kernel, monkeypatch):
    monkeypatch.setattr(scanning, "BLOCK_BYTES", 2 * DIMS * 7)
    vectors, _ = clouds(100, 1)
    vectors[10:60] = vectors[5]
    for k in (1, 20, 49, 51, 52):
        found = exact(vectors, vectors[5].astype(np.float32), k)
        assert_same(found, best(vectors, vectors[5].astype(np.float32), k))
        assert found[0][:k].tolist() == [5, *range(10, 60)][:k] + found[0][51:].tolist()


def test_scores_that_half_precision_cannot_tell_apart_are_told_apart(kernel):
    """The rough kernel rounds the query to half precision, by which these two change places."""
    vectors = np.array([[0.5, 0.5], [0.5005, 0.5]], dtype=np.float16)
    small = np.float32(2.0**-12)
    query = np.array([1 + small / 4, 1], dtype=np.float32)
    assert exact(vectors, query, 2)[0].tolist() == [1, 0]
    query = np.array([-1 - small / 4, -1], dtype=np.float32)
    assert exact(vectors, query, 1)[0].tolist() == [0]


def test_only_given_rows_come_back(kernel, monkeypatch):
    monkeypatch.setattr(scanning, "BLOCK_BYTES", 2 * DIMS * 64)
    vectors, queries = clouds(500, 4)
    random = np.random.default_rng(0)
    for rows in ([], [7], [498, 499], np.arange(100, 300), np.sort(random.permutation(500)[:120])):
        rows = np.asarray(rows, dtype=np.int64)
        for query in queries:
            assert_same(exact(vectors, query, 20, rows=rows), best(vectors, query, 20, rows))


def test_rows_that_are_no_numbers_never_come_back(kernel):
    vectors, queries = clouds(50, 1)
    vectors[[3, 30]] = np.nan
    vectors[4, 0] = np.inf
    vectors[5] = -np.inf
    found = exact(vectors, queries[0], 50)
    assert_same(found, best(vectors, queries[0], 50))
    assert len(found[0]) == 46 and not {3, 4, 5, 30} & set(found[0].tolist())
    assert len(exact(vectors, np.full(DIMS, np.nan, np.float32), 5)[0]) == 0


def test_nothing_is_found_in_nothing(kernel):
    for vectors, k in ((np.empty((0, 8), np.float16), 10), (np.eye(8, dtype=np.float16), 0)):
        rows, scores = exact(vectors, np.ones(8, np.float32), k)
        assert rows.shape == scores.shape == (0,)


def test_a_kernel_that_rounds_too_much_is_not_used(monkeypatch):
    numkong = pytest.importorskip("numkong")
    monkeypatch.setattr(
        numkong, "cdist", lambda a, b, metric: (a.astype(np.float32) @ b.T.astype(np.float32)).astype(np.float16)
    )
    assert scanning._numkong.__wrapped__(48) is None
    monkeypatch.delattr(numkong, "cdist")
    assert scanning._numkong.__wrapped__(48) is None


# -- approximate


def test_an_index_finds_nearly_all_and_says_how_much(data, made):
    vectors, queries = data
    about = json.loads(approximate.about_file(made).read_text())
    assert about["rows"] == about["entries"] == ROWS and about["dims"] == DIMS
    assert about["precision"] == "i8" and about["bytes"] == made.stat().st_size
    first = about["levels"][0]
    assert first["k"] == 10 and first["recall_texts"] >= 0.99 and first["recall_pictures"] >= 0.99
    assert first["texts"] == 200 and first["candidates"] <= first["expansion_search"]
    neighbours = Neighbours(vectors, made, exact_bytes=LITTLE)
    assert neighbours.index is not None and neighbours.problem == ""
    assert recall(neighbours, vectors, queries[200:]) >= 0.97
    assert recall(neighbours, vectors, vectors[:50].astype(np.float32)) >= 0.97
    for query in queries[200:210]:
        rows, scores = neighbours.search(query, 10)
        assert scores.tolist() == best(vectors, query, ROWS, rows)[1].tolist()  # those of the vectors themselves


def test_below_a_size_no_index_is_looked_for(data, made):
    neighbours = Neighbours(data[0], made)
    assert neighbours.index is None and neighbours.problem == "" and neighbours.due() is None
    assert_same(neighbours.search(data[1][0], 10), best(data[0], data[1][0], 10))


def test_more_results_begin_with_those_of_fewer(data, made):
    vectors, queries = data
    neighbours = Neighbours(vectors, made, exact_bytes=LITTLE)
    for query in queries[200:220]:
        most = neighbours.search(query, 50)[0].tolist()
        assert neighbours.search(query, 11)[0].tolist() == most[:11]
        assert neighbours.search(query, 40)[0].tolist() == most[:40]
    same = [neighbours.search(q, 50)[0][:10].tolist() == neighbours.search(q, 10)[0].tolist() for q in queries[200:]]
    assert np.mean(same) >= 0.8
    assert recall(neighbours, vectors, queries[200:230], 1000) >= 0.97
    for k in (1001, ROWS, ROWS + 10):  # more than was measured
        assert_same(neighbours.search(queries[200], k), best(vectors, queries[200], k))


def test_rows_that_are_not_allowed_never_come_back(data, made, monkeypatch):
    vectors, queries = data
    neighbours = Neighbours(vectors, made, exact_bytes=LITTLE)
    random = np.random.default_rng(0)
    for count in (0, 5, 200, 1500, 2390):
        allowed = np.sort(random.permutation(ROWS)[:count])
        found = [neighbours.search(q, 10, allowed) for q in queries[200:230]]
        right = [best(vectors, q, 10, allowed) for q in queries[200:230]]
        assert all(set(rows) <= set(allowed) and len(rows) == min(10, count) for rows, _ in found)
        same = [len(set(a[0]) & set(b[0])) / max(1, len(b[0])) for a, b in zip(found, right, strict=True)]
        assert count == 0 or np.mean(same) >= 0.97
    worst = np.sort(best(vectors, queries[200], ROWS)[0][-1400:])  # a filter that leaves out all that is near
    assert_same(neighbours.search(queries[200], 10, worst), best(vectors, queries[200], 10, worst))


def test_rows_the_index_does_not_hold_yet_are_found(data, made):
    vectors, queries = data
    more = np.concatenate([vectors, clouds(400, 1, seed=1)[0]])
    neighbours = Neighbours(more, made, exact_bytes=LITTLE)
    assert neighbours.index is not None and neighbours.index.rows == ROWS
    assert recall(neighbours, more, queries[200:]) >= 0.97
    for row in (ROWS, ROWS + 399):
        assert neighbours.search(more[row].astype(np.float32), 1)[0].tolist() == [row]
    last = np.arange(1500, ROWS + 200)
    rows, _ = neighbours.search(more[ROWS + 300].astype(np.float32), 10, last)
    assert set(rows) <= set(last) and len(rows) == 10


def test_an_extended_index_finds_as_much_as_one_made_at_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate_making, "cores", lambda: 2)
    vectors, queries = data
    file = tmp_path / "vectors.usearch"
    calls = []
    build(vectors[:1200], file, queries[:200], progress=lambda done, of: calls.append((done, of)))
    assert calls[-1] == (1200, 1200)
    about = extend(vectors, file, queries[:200])
    assert about.rows == about.entries == ROWS and about.levels
    neighbours = Neighbours(vectors, file, exact_bytes=LITTLE)
    assert neighbours.index is not None and neighbours.index.rows == ROWS
    assert recall(neighbours, vectors, queries[200:]) >= 0.97


def test_rows_that_are_no_numbers_are_left_out(data, tmp_path):
    vectors, queries = data[0][:600].copy(), data[1]
    vectors[100:110] = np.nan
    vectors[550] = np.inf
    file = tmp_path / "vectors.usearch"
    assert build(vectors[:500], file, queries).entries == 490
    about = extend(vectors, file, queries)
    assert (about.rows, about.entries) == (600, 589)
    index = approximate.opened(file, vectors)
    found = np.concatenate([index.search(vectors, query, 50)[0] for query in queries])
    assert not np.isin(found, [*range(100, 110), 550]).any()


def test_many_equal_rows_do_not_hide_the_others(tmp_path):
    vectors, queries = clouds(2000, 120)
    vectors[500:1500] = vectors[:10].repeat(100, axis=0)
    file = tmp_path / "vectors.usearch"
    about = build(vectors, file, queries[:60])
    neighbours = Neighbours(vectors, file, exact_bytes=LITTLE)
    assert about.levels and neighbours.index is not None
    right = [neighbours.search(q, 10)[1] >= best(vectors, q, 10)[1][-1] for q in queries[60:]]
    assert np.mean(right) >= 0.97


def test_an_index_that_finds_too_little_is_not_used(data, tmp_path, monkeypatch):
    vectors, queries = data
    monkeypatch.setattr(approximate_making, "EXPANSIONS", (10, 12))
    monkeypatch.setattr(approximate_making, "WANTED_RECALL", 0.9999)
    file, said = tmp_path / "vectors.usearch", []
    assert build(vectors, file, queries[:100], said.append).levels == ()
    assert "stays exact" in said[-1]
    neighbours = Neighbours(vectors, file, exact_bytes=LITTLE)
    assert neighbours.index is None and "not find enough" in neighbours.problem
    assert_same(neighbours.search(queries[0], 10), best(vectors, queries[0], 10))
    assert neighbours.due() is None
    assert Neighbours(vectors.repeat(3, axis=0), file, exact_bytes=LITTLE).due() == "build"
    assert build(vectors, file, queries[:0]).levels == ()  # nothing to measure with


def test_the_least_that_is_enough_is_found():
    """Whatever is enough, with as few measurements as doubling and halving take."""
    steps = approximate_making.EXPANSIONS
    for enough, at_least in itertools.product(steps, (1, 10, 50, 1000)):
        asked: list[int] = []

        def level_at(expansion, enough=enough, asked=asked):
            asked.append(expansion)
            return expansion if expansion >= enough else None

        assert approximate_making._least(level_at, at_least) == min(e for e in steps if e >= max(enough, at_least))
        assert len(asked) == len(set(asked)) <= 11
    assert approximate_making._least(lambda e: None, 10) is None


def test_the_index_is_made_and_extended_when_it_is_due(data, tmp_path, monkeypatch):
    vectors, queries = data
    file, asked, said = tmp_path / "vectors.usearch", [], []

    def sentences():
        asked.append(1)
        return queries[:200]

    Neighbours(vectors, file).update(sentences)  # few vectors
    assert not asked and not file.exists()
    neighbours = Neighbours(vectors[:1600], file, exact_bytes=LITTLE * 40)
    assert neighbours.due() == "build" and neighbours.index is None
    neighbours.update(sentences, said.append)
    assert neighbours.index is not None and neighbours.due() is None and "making" in said[0]
    neighbours.update(sentences)
    assert len(asked) == 1
    assert Neighbours(vectors[:1610], file, exact_bytes=LITTLE * 40).due() is None
    grown = Neighbours(vectors, file, exact_bytes=LITTLE * 40)
    assert grown.due() == "extend"
    grown.update(sentences, said.append)
    assert len(asked) == 2 and grown.index is not None and grown.index.rows == ROWS and "extending" in said[2]


def test_many_threads_find_what_one_finds(data, made, monkeypatch):
    vectors, queries = data
    monkeypatch.setattr(approximate, "cores", lambda: 3)
    neighbours = Neighbours(vectors, made, exact_bytes=LITTLE)
    approximate._open.clear()  # which was opened when there were fewer cores
    allowed = np.arange(0, ROWS, 2)
    queries = queries[:60]
    expected = [(neighbours.search(q, 10), neighbours.search(q, 50, allowed)) for q in queries]
    wrong = []

    def search(start):
        for place in [*range(start, len(queries)), *range(start)]:
            found = neighbours.search(queries[place], 10), neighbours.search(queries[place], 50, allowed)
            for got, right in zip(found, expected[place], strict=True):
                if got[0].tolist() != right[0].tolist() or got[1].tolist() != right[1].tolist():
                    wrong.append(place)

    threads = [threading.Thread(target=search, args=(7 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)
    assert neighbours.index is not None and neighbours.index._views.qsize() <= 3
    approximate._open.clear()


# -- damage


def refused(file, vectors):
    with pytest.raises(DataError) as caught:
        approximate.opened(file, vectors)
    return caught.value.message


def flip(file, place, bits=0x55):
    content = bytearray(file.read_bytes())
    content[place] ^= bits
    file.write_bytes(content)


def test_an_index_that_is_cut_off_is_refused(data, copied):
    whole = copied.read_bytes()
    for size in (0, 5, 64, len(whole) // 2, len(whole) - 1):
        copied.write_bytes(whole[:size])
        assert "is damaged" in refused(copied, data[0])
    copied.write_bytes(whole + b"\0")
    assert "is damaged" in refused(copied, data[0])
    copied.unlink()
    assert str(copied) in refused(copied, data[0])
    copied.write_bytes(whole)
    assert approximate.opened(copied, data[0]).rows == ROWS


def test_a_flipped_byte_of_the_graph_is_noticed_wherever_it_is(data, copied, monkeypatch):
    monkeypatch.setattr(approximate, "REPLACED_SECONDS", 0)
    vectors = approximate.vector_bytes(approximate.About.read(copied))
    size = copied.stat().st_size
    for place in [0, 3, 7, vectors, vectors + 1, *np.linspace(vectors, size - 1, 25, dtype=int).tolist()]:
        flip(copied, place)
        assert "is damaged" in refused(copied, data[0]), place
        flip(copied, place)
    assert approximate.opened(copied, data[0]).rows == ROWS


def test_the_vectors_of_the_file_begin_it(data, made):
    """The part of which only samples are looked at holds vectors and nothing else: none of its bits end a process."""
    about = approximate.About.read(made)
    stored = np.frombuffer(made.read_bytes()[approximate.HEAD : approximate.vector_bytes(about)], np.int8)
    cosines = unit(stored.reshape(ROWS, DIMS).astype(np.float32)) @ unit(data[0].astype(np.float32)).T
    assert cosines.max(axis=0).min() > 0.99 and cosines.max(axis=1).min() > 0.99


def test_a_hole_in_the_vectors_is_noticed(data, copied):
    flip(copied, approximate.HEAD + 10)
    assert "is damaged" in refused(copied, data[0])


def test_an_index_of_other_vectors_is_refused(data, copied):
    vectors = data[0]
    assert "other vectors" in refused(copied, vectors[::-1].copy())
    assert "other vectors" in refused(copied, vectors[:-1])
    changed = vectors.copy()
    changed[0, 0] += 0.25
    assert "other vectors" in refused(copied, changed)
    assert "dims" in refused(copied, np.ones((ROWS, DIMS + 1), np.float16))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("format", "another", "cannot be read"),
        ("format_version", 2, "cannot be read"),
        ("rows", "many", "cannot be read"),
        ("rows", -1, "cannot be read"),
        ("rows", ROWS + 1, "other vectors"),
        ("levels", [{"k": 10}], "cannot be read"),
        ("checksums", [1], "cannot be read"),
        ("checksums", [1, 2], "is damaged"),
        ("entries", ROWS - 1, "is damaged"),
        ("surplus", 1, "cannot be read"),
        ("usearch", [], "cannot be read"),
        ("levels", [LEVEL | {"k": 0}], "cannot be read"),
        ("levels", [LEVEL | {"candidates": 9}], "cannot be read"),
        ("levels", [LEVEL | {"expansion_search": 2**40}], "cannot be read"),
        ("levels", [LEVEL | {"expansion_search": "64"}], "cannot be read"),
    ],
)
def test_a_changed_description_is_refused(data, copied, name, value, expected):
    about = approximate.about_file(copied)
    about.write_text(json.dumps(json.loads(about.read_text()) | {name: value}))
    assert expected in refused(copied, data[0])
    neighbours = Neighbours(data[0], copied, exact_bytes=LITTLE)
    assert_same(neighbours.search(data[1][0], 10), best(data[0], data[1][0], 10))
    assert neighbours.problem and neighbours.due() == "build"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"\x00" * 100])
def test_a_description_that_is_none_is_refused(data, copied, content):
    approximate.about_file(copied).write_bytes(content)
    assert "cannot be read" in refused(copied, data[0])


def test_an_older_file_under_a_newer_description_is_refused(data, copied):
    few = data[0][:300]
    build(few[::-1], copied, data[1][:20])
    old = copied.read_bytes()
    build(few, copied, data[1][:20])
    assert copied.stat().st_size == len(old)
    copied.write_bytes(old)
    assert "is damaged" in refused(copied, few)


def test_an_opened_index_is_not_opened_again(data, made, monkeypatch):
    first = approximate.opened(made, data[0])
    monkeypatch.setattr(approximate, "checksums", lambda *_: pytest.fail("looked at again"))
    assert approximate.opened(made, data[0]) is first


def test_a_replaced_index_is_opened_anew_and_the_old_one_goes_on(data, copied):
    vectors, queries = data
    old = Neighbours(vectors, copied, exact_bytes=LITTLE)
    before = old.search(queries[0], 10)
    build(vectors, copied, queries[:50])
    assert old.index is not None
    old.index._more = 1
    with old.index._borrowed():  # so that another view of the file is opened, which is that of before
        assert_same(old.search(queries[0], 10), before)
    new = Neighbours(vectors, copied, exact_bytes=LITTLE)
    assert new.index is not None and new.index is not old.index
    assert recall(new, vectors, queries[200:]) >= 0.97


def test_a_disk_that_fills_leaves_the_old_index(data, copied):
    if not hasattr(resource, "RLIMIT_FSIZE"):
        pytest.skip("no such limit here")
    before = {file.name: file.read_bytes() for file in copied.parent.iterdir()}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            build(data[0], copied, data[1][:50])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in copied.parent.iterdir()} == before


def test_what_a_killed_writer_left_is_removed(data, copied):
    left = copied.with_name(f".{copied.stem}.12345{copied.suffix}")
    left.write_bytes(b"half of it")
    build(data[0][:100], copied, data[1][:20])
    assert not left.exists()


def test_without_usearch_searching_is_exact(data, copied, monkeypatch):
    approximate._open.clear()
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    neighbours = Neighbours(data[0], copied, exact_bytes=LITTLE)
    assert_same(neighbours.search(data[1][0], 10), best(data[0], data[1][0], 10))
    with pytest.raises(DataError, match="needs usearch"):
        build(data[0], copied, data[1][:20])
