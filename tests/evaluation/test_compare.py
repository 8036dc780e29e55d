"""A difference is found where there is one, not found where there is none, and intervals hold what they say."""

import re

import numpy as np
import pytest
from PIL import Image

from cliplet.data.records import ImageText
from cliplet.errors import DataError
from cliplet.evaluation.compare import Query, compare, metric_name, p_text, short_names, verdict
from cliplet.evaluation.comparison_page import write_comparison_page
from cliplet.evaluation.intervals import Difference, paired_bootstrap
from cliplet.evaluation.measure import Evaluation, assembled

D = 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_records(count, folder="/data"):
    return [ImageText(f"{folder}/{n}.png", (f"caption 0 of {n}", f"caption 1 of {n}")) for n in range(count)]


def model(records, noise, seed=0, failed=()):
    """Features of a model that is the worse, the more noise it has."""
    random = np.random.default_rng(seed)
    image_ND = random.normal(size=(len(records), D))
    owners = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    text_MD = image_ND[owners] + noise * random.normal(size=(len(owners), D))
    return assembled(records, unit(image_ND), unit(text_MD), dict.fromkeys(failed, "torn"))


def ranked(image_rank_N, text_rank_M):
    """An evaluation of which only the ranks count, one caption a picture."""
    records = [ImageText(f"{n}.png", (f"text {n}",)) for n in range(len(image_rank_N))]
    rows = np.eye(len(records), dtype=np.float32)
    ranks = np.asarray(image_rank_N), np.asarray(text_rank_M)
    return Evaluation({}, records, [r.captions[0] for r in records], rows, rows, np.arange(len(records)), *ranks)


def difference(difference, low, high, p):
    return Difference(a=50, b=50 + difference, difference=difference, low=low, high=high, p=p)


def test_a_model_does_not_differ_from_itself():
    one = model(some_records(60), 1.0)
    found = compare(one, one, resamples=200)
    assert found.unshared == 0 and found.evaluation_a is one
    for value in found.differences.values():
        assert (value.difference, value.low, value.high, value.p) == (0, 0, 0, 1)
    assert found.most_different() == []
    assert found.verdict() == ["No difference at all: every recall is the same."]


def test_a_clear_difference_is_found_with_its_sign():
    records = some_records(200)
    good, bad = model(records, 0.6), model(records, 1.6)
    found, turned = compare(bad, good, resamples=1000), compare(good, bad, resamples=1000)
    for name in ("image_to_text_R@1", "text_to_image_R@5", "rsum"):
        one, other = found.differences[name], turned.differences[name]
        assert 0 < one.low < one.difference < one.high and one.p == 2 / 1001
        assert one.difference == pytest.approx(good.metrics[name] - bad.metrics[name])
        assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low))
    assert found.differences["text_to_image_mean_rank"].high < 0
    assert all("B is better" in line for line in found.verdict())
    assert all("A is better" in line and "-" not in line for line in turned.verdict())


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Sets of pictures from two models whose true recalls at 1 differ by 15 points, on queries that are
    hard or easy for both."""
    random = np.random.default_rng(0)
    pictures, sets, held = 150, 120, 0
    for _ in range(sets):
        hard = random.random(pictures) < 0.5
        right_a = np.where(hard, 0.1, 0.8) > random.random(pictures)
        right_b = np.where(hard, 0.3, 0.9) > random.random(pictures)
        ranks_a, ranks_b = (np.where(right, 1, 50) for right in (right_a, right_b))
        owners = np.arange(pictures)
        one = paired_bootstrap((ranks_a, ranks_a), (ranks_b, ranks_b), owners, ks=(1,), resamples=200, seed=1)
        held += one["text_to_image_R@1"].low <= 15 <= one["text_to_image_R@1"].high
    assert 0.89 <= held / sets <= 0.99


def test_chance_alone_is_seldom_called_a_difference():
    random = np.random.default_rng(5)
    pictures, sets, called = 100, 150, 0
    for _ in range(sets):
        ranks = [np.where(random.random(pictures) < 0.4, 1, 50) for _ in range(2)]
        found = paired_bootstrap((ranks[0],) * 2, (ranks[1],) * 2, np.arange(pictures), ks=(1,), resamples=200)
        called += found["image_to_text_R@1"].p < 0.05
    assert 0.01 <= called / sets <= 0.10


def test_pictures_that_one_could_not_read_are_left_out_of_both():
    records = some_records(40)
    rows = np.random.default_rng(1).permutation(38)[:31]
    a, b = model(records, 1.0, failed=(3, 4)), model(records, 1.2, seed=1, failed=(4, 9, 11))
    found = compare(a, b, resamples=100)
    common = [record for row, record in enumerate(records) if row not in (3, 4, 9, 11)]
    assert found.unshared == 3  # the fourth is in neither
    assert found.evaluation_a.records == found.evaluation_b.records == common
    again = model(records, 1.2, seed=1, failed=(3, 4, 9, 11))
    assert found.evaluation_b.metrics == again.metrics
    assert np.array_equal(found.evaluation_b.text_MD, again.text_MD)
    turned = assembled(
        [a.records[row] for row in rows], a.image_ND[rows], a.text_MD[np.stack([2 * rows, 2 * rows + 1], 1).ravel()], {}
    )
    found = compare(a, turned, resamples=100)  # in another order, and not all
    assert found.evaluation_a.records == found.evaluation_b.records and len(found.evaluation_a.records) == 31
    assert all(one.difference == 0 for one in found.differences.values())


def test_a_picture_listed_twice_is_two():
    records = some_records(20)
    twice = [*records, records[3], records[3]]
    found = compare(model(twice, 1.0), model([*records, records[3]], 1.0), resamples=100)
    assert len(found.evaluation_a.records) == 21 and found.unshared == 1


def test_nothing_in_common_is_an_error():
    with pytest.raises(DataError, match="no picture with its captions is in all"):
        compare(model(some_records(9), 1), model(some_records(9, "/other"), 1))


def test_the_most_different_queries_by_hand():
    a = ranked([1, 1, 1, 1, 1], [1, 2, 100, 7, 10])
    b = ranked([1, 1, 1, 1, 1], [50, 2, 1, 1, 900])
    found = compare(a, b, ks=(1,), resamples=100)
    assert found.most_different() == [
        Query("text_to_image", 0, 1, 50),  # 1 - 1/50
        Query("text_to_image", 4, 10, 900),  # 1/10 - 1/900
        Query("text_to_image", 2, 100, 1),
        Query("text_to_image", 3, 7, 1),
    ]
    assert [(query.row, query.better) for query in found.most_different(1)] == [(0, "A"), (2, "B")]
    assert found.most_different(0) == []
    assert found.wins() == {"text_to_image": (2, 1, 2), "image_to_text": (0, 5, 0)}


def test_ties_keep_the_datas_order():
    a, b = ranked([3] * 8, [1] * 8), ranked([1] * 8, [1] * 8)
    found = compare(a, b, ks=(1,), resamples=100).most_different(3)
    assert [(query.direction, query.row) for query in found] == [("image_to_text", row) for row in range(3)]


def test_the_verdict_in_words():
    differences = {
        "image_to_text_R@1": difference(3.14, 0.9, 5.4, 0.006),
        "text_to_image_R@1": difference(-2.0, -3.5, -0.5, 0.0124),
        "text_to_image_R@5": difference(0.4, -1.25, 2.1, 0.61),
        "text_to_image_mean_rank": difference(9, 8, 10, 0.001),
        "rsum": difference(9, 8, 10, 0.001),
    }
    assert verdict(differences, 1000) == [
        "image→text R@1: B is better by 3.1 points (0.9 to 5.4), p 0.006",
        "text→image R@1: A is better by 2.0 points (0.5 to 3.5), p 0.012",
        "No difference that 1,000 pictures could show, B − A being within: text→image R@5 (-1.2 to +2.1).",
    ]
    none = verdict({"text_to_image_R@5": differences["text_to_image_R@5"]}, 20)
    assert none[0].startswith("No difference that 20 pictures could show, B − A being within: text→image R@5 (")
    assert none[1] == "Only 20 pictures: intervals from so few are too narrow, and p too small."


def test_names_and_numbers_for_people():
    assert metric_name("image_to_text_mrr") == "image→text MRR" and metric_name("rsum") == "rsum"
    assert [p_text(p) for p in (1, 0.123, 0.0449, 0.0061, 0.0001, 1e-6)] == [
        "1.00",
        "0.12",
        "0.045",
        "0.006",
        "0.0001",
        "< 0.0001",
    ]
    assert short_names("runs/a/model", "runs/b/model") == ("a", "b")
    assert short_names("runs/a", "open_clip:ViT-B-32/openai") == ("a", "openai")
    assert short_names("x/y/model", "y/model") == ("x/y", "y")
    assert short_names("runs/a", "runs/a/model") == ("a", "model")
    assert short_names("x/a.npz", "x/a.npz") == ("a.npz", "a.npz")
    assert short_names("runs/a/model", "runs/b", "old/b") == ("runs/a", "runs/b", "old/b")


def test_the_result_holds_what_was_compared():
    found = compare(model(some_records(30), 1.0), model(some_records(30), 1.5, failed=(2,)), (1, 3), 200, 7)
    result = found.result("a", "b", "flickr8k", "test", 31)
    assert (result.images, result.captions, result.left_out, result.resamples, result.seed) == (29, 58, 2, 200, 7)
    assert result.metrics_a["images"] == 29 and result.metrics_b["captions"] == 58
    for name, one in result.differences.items():
        assert result.metrics_a[name] == pytest.approx(one.a) and result.metrics_b[name] == pytest.approx(one.b)
    assert "image_to_text_R@3" in result.metrics_a and "image_to_text_R@5" not in result.differences
    again = type(result).model_validate_json(result.to_json())
    assert again.format == "cliplet-comparison" and again == result


@pytest.fixture
def pictures(tmp_path):
    records = []
    for number in range(30):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (12, 9), (8 * number, 0, 0)).save(file)
        records.append(ImageText(str(file), (f"<b>caption</b> 0 of {number}", f"caption 1 of {number}")))
    return records


def test_the_page_shows_both_and_marks_the_right_answers(pictures, tmp_path):
    found = compare(model(pictures, 0.7), model(pictures, 1.3), resamples=200)
    result = found.result("runs/<a>", "runs/b", "data/flickr8k", "test", 30)
    file = tmp_path / "out" / "comparison.html"
    write_comparison_page(file, found, result, "cliplet compare runs/a runs/b", queries=2)
    text = file.read_text(encoding="utf-8")
    assert "<b>caption" not in text and "&lt;b&gt;caption" in text and "runs/&lt;a&gt;" in text
    assert "<script" not in text and "http://" not in text and "https://" not in text
    assert "Content-Security-Policy" in text
    one = found.differences["text_to_image_R@1"]
    assert f"<td>{one.a:.1f}</td><td>{one.b:.1f}</td><td>{one.difference:+.1f}<small>" in text
    blocks = re.findall(r'<div class="versus">.*?(?=<div class="versus">|</section>)', text, re.DOTALL)
    queries = found.most_different(2)
    assert len(blocks) == len(queries) and {query.direction for query in queries} == {"text_to_image", "image_to_text"}
    for query, block in zip(queries, blocks, strict=True):
        first = re.findall(r"(\d+)\. [\d.-]+ <b>✓ right", block)
        notes = re.findall(r"right (?:picture|caption) at (\d+)", block)
        assert notes == [str(query.rank_a), str(query.rank_b)]
        assert set(notes) <= set(first), "the right answer is shown at its rank, however far down"


def test_the_page_of_equals_and_of_pictures_that_are_gone(pictures, tmp_path):
    one = model(pictures, 1.0)
    same = compare(one, one, resamples=100)
    write_comparison_page(tmp_path / "a.html", same, same.result("a", "a", "d", "test", 30))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "No difference at all" in text and "finds sooner" not in text
    for record in pictures:
        (tmp_path / record.image).unlink()
    other = compare(one, model(pictures, 1.5), resamples=100)
    write_comparison_page(tmp_path / "a.html", other, other.result("a", "b", "d", "test", 30), queries=1)
    assert "no such file" in (tmp_path / "a.html").read_text(encoding="utf-8")
