"""Sums and differences from the words of a command line."""

import pytest

from cliplet.errors import ConfigError
from cliplet.library import Query, Term
from cliplet.library.fit import Part, combine
from cliplet.library.store import Calibration


@pytest.fixture
def picture(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_bytes(b"any")
    monkeypatch.chdir(tmp_path)
    return "x.jpg"


def parsed(words):
    return [(term.weight, term.kind, term.value) for term in Query.parse(words).terms]


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        (["a dog in the snow"], [(1.0, "text", "a dog in the snow")]),
        (["a", "dog", "in", "the", "snow"], [(1.0, "text", "a dog in the snow")]),
        ("a t-shirt - red", [(1.0, "text", "a t-shirt - red")]),
        (["2", "dogs"], [(1.0, "text", "2 dogs")]),
        (["x.jpg"], [(1.0, "picture", "x.jpg")]),
        (["a", "+", "x.jpg", "-", "b c"], [(1, "text", "a"), (1, "picture", "x.jpg"), (-1, "text", "b c")]),
        (["-", "people"], [(-1.0, "text", "people")]),
        (['"beach" + x.jpg - "people"'], [(1, "text", "beach"), (1, "picture", "x.jpg"), (-1, "text", "people")]),
        (['"a b" - 0.5 "c + d"'], [(1, "text", "a b"), (-0.5, "text", "c + d")]),
        (["2", "beach", "-", ".5*", "people"], [(2.0, "text", "beach"), (-0.5, "text", "people")]),
        (["-", "2 dogs", "+", "snow"], [(-1.0, "text", "2 dogs"), (1.0, "text", "snow")]),
    ],
)  # fmt: skip
def test_words_to_terms(picture, words, terms):
    assert parsed(words) == terms


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing"),
        ([""], "empty"),
        (["   "], "empty"),
        (["beach", "+"], "missing beside a sign"),
        (["+", "+", "beach"], "missing"),
        (["missing.jpg"], "no such picture"),
        (['"beach'], "not closed"),
        (["x" * 2001], "2,000 characters"),
        (["a"] + ["+", "a"] * 16, "at most 16 terms"),
        (["0", "beach", "+", "0", "sea"], "query is empty"),
        (["101", "beach", "+", "sea"], "between -100 and 100"),
    ],
)
def test_what_is_no_query(picture, words, message):
    with pytest.raises(ConfigError, match=message):
        Query.parse(words)


def test_weights_that_are_no_numbers():
    with pytest.raises(ConfigError, match="weight"):
        Term(float("nan"), "text", "beach")


def test_terms_are_added_up_each_kind_by_its_spread(rng):
    text_D, picture_D = unit(rng.normal(size=4)), unit(rng.normal(size=4))
    calibration = Calibration(text_spread=0.05, image_spread=0.2)
    combined = combine([Part(1.0, False, text_D), Part(-0.5, True, picture_D)], calibration)
    expected = text_D / 0.05 - 0.5 * picture_D / 0.2
    assert combined.vector_D == pytest.approx(expected / (expected**2).sum() ** 0.5, abs=1e-6)


def test_terms_that_cancel(rng):
    text_D = unit(rng.normal(size=4))
    with pytest.raises(ConfigError, match="cancel"):
        combine([Part(1.0, False, text_D), Part(-1.0, False, text_D)], Calibration())


def unit(vector):
    return vector / (vector**2).sum() ** 0.5


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)
