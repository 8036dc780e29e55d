import numpy as np
import pytest

from cliplet.evaluation.intervals import bootstrap_intervals, paired_bootstrap
from cliplet.evaluation.retrieval import metrics_of_ranks


def ranks(pictures: int, captions: int = 5, seed: int = 0, scale: float = 6.0):
    """Ranks of pictures and of captions that are about as good as each other within a picture, and whose they are."""
    random = np.random.default_rng(seed)
    hardness = random.exponential(scale, size=pictures)
    owner = np.repeat(np.arange(pictures), captions)
    by_text = 1 + random.poisson(hardness[owner])
    return (1 + random.poisson(hardness), by_text), owner


def test_every_metric_has_the_interval_that_drawing_pictures_one_by_one_gives():
    both, owner = ranks(40, captions=3)
    ours = bootstrap_intervals(*both, owner, resamples=200, seed=5)
    # The same generator draws the same pictures: all resamples of so small a set are drawn at once.
    random = np.random.default_rng(5).integers(40, size=(200, 40))
    plainly = []
    for drawn in random:
        by_text = np.concatenate([both[1][owner == picture] for picture in drawn])
        plainly.append(metrics_of_ranks(both[0][drawn], by_text))
    assert ours.keys() == plainly[0].keys()
    for name, (low, high) in ours.items():
        expected = np.percentile([one[name] for one in plainly], [2.5, 97.5])
        assert (low, high) == pytest.approx(tuple(expected)), name


def test_resamples_in_many_blocks_are_as_good_as_in_one(monkeypatch):
    both, owner = ranks(50)
    whole = bootstrap_intervals(*both, owner, resamples=64)
    monkeypatch.setattr("cliplet.evaluation.intervals.WEIGHTS_AT_ONCE", 150)
    assert bootstrap_intervals(*both, owner, resamples=64).keys() == whole.keys()
    for name, (low, high) in bootstrap_intervals(*both, owner, resamples=64).items():
        assert (low, high) == pytest.approx(whole[name]), name


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    """200 sets of 150 pictures from one population; R@1 of the population is known by its first 200,000 pictures."""
    truth = metrics_of_ranks(*ranks(200_000, captions=1, seed=99)[0])["text_to_image_R@1"]
    held = 0
    for seed in range(200):
        both, owner = ranks(150, captions=5, seed=seed)
        low, high = bootstrap_intervals(*both, owner, resamples=200, seed=seed)["text_to_image_R@1"]
        held += low <= truth <= high
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_captions_of_one_picture_are_not_taken_for_independent():
    """Five captions a picture that all fare alike say no more than one: the interval must not shrink."""
    random = np.random.default_rng(0)
    one = 1 + (random.random(300) < 0.5) * 10
    alone = bootstrap_intervals(one, one, np.arange(300))["text_to_image_R@1"]
    five = bootstrap_intervals(one, np.repeat(one, 5), np.repeat(np.arange(300), 5))["text_to_image_R@1"]
    assert five[1] - five[0] == pytest.approx(alone[1] - alone[0], rel=1e-6)


def test_a_model_beside_itself_differs_by_nothing():
    both, owner = ranks(30)
    for difference in paired_bootstrap(both, both, owner, resamples=100).values():
        assert (difference.difference, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_a_pairwise_better_model_is_found_where_intervals_alone_overlap():
    """B is better on 12 of 200 pictures and worse on none: by itself either interval is 14 points wide."""
    both, owner = ranks(200, captions=1, scale=1.0)
    better = both[0].copy()
    better[np.flatnonzero(better > 1)[:12]] = 1
    found = paired_bootstrap(both, (better, both[1]), owner, resamples=2000)["image_to_text_R@1"]
    alone_a = bootstrap_intervals(*both, owner)["image_to_text_R@1"]
    alone_b = bootstrap_intervals(better, both[1], owner)["image_to_text_R@1"]
    assert alone_a[1] > alone_b[0]  # they overlap
    assert found.difference == pytest.approx(6.0) and found.low > 0 and found.p < 0.01
    assert found.difference == pytest.approx(found.b - found.a)


def test_p_is_never_zero_and_the_sign_follows_the_order():
    both, owner = ranks(50)
    perfect = np.ones_like(both[0]), np.ones_like(both[1])
    forth = paired_bootstrap(both, perfect, owner, resamples=500)["rsum"]
    back = paired_bootstrap(perfect, both, owner, resamples=500)["rsum"]
    assert forth.p == back.p == pytest.approx(2 / 501)
    assert forth.difference == pytest.approx(-back.difference) and forth.low == pytest.approx(-back.high)


def test_p_is_small_about_as_often_as_it_says_when_there_is_no_difference():
    small = 0
    for seed in range(100):
        (by_image, by_text), owner = ranks(80, seed=2 * seed, captions=1)
        (other_image, other_text), _ = ranks(80, seed=2 * seed + 1, captions=1)
        found = paired_bootstrap((by_image, by_text), (other_image, other_text), owner, resamples=400, seed=seed)
        small += found["image_to_text_mean_rank"].p < 0.05
    assert small <= 14
