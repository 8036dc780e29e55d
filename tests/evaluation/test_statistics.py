"""Figures about features, against hand-worked values and brute force."""

import math
from itertools import permutations

import numpy as np
import pytest

from cliplet.evaluation import statistics
from cliplet.evaluation.retrieval import metrics_of_ranks
from cliplet.evaluation.statistics import MEANINGS, chance_metrics, feature_statistics


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_two_pairs_on_a_circle_by_hand():
    """Pictures at 0 and 90 degrees, captions at 60 and 90: cosines 1/2 and 1 of the pairs, 0 and √3/2 of the others."""
    image = np.array([[1, 0], [0, 1]], dtype=np.float32)
    text = np.array([[0.5, math.sqrt(3) / 2], [0, 1]], dtype=np.float32)
    found = feature_statistics(image, text, np.array([0, 1]))
    assert found["cosine_matching"] == pytest.approx(0.75)
    assert found["cosine_random"] == pytest.approx(math.sqrt(3) / 4)
    assert found["alignment"] == pytest.approx((1 + 0) / 2), "squared distances 1 and 0"
    assert found["uniformity_image"] == pytest.approx(-2 * 2), "the pictures lie √2 apart"
    assert found["uniformity_text"] == pytest.approx(-2 * (2 - math.sqrt(3)), abs=1e-6)
    assert found["modality_gap"] == pytest.approx(math.hypot(0.25, (math.sqrt(3) / 2 + 1) / 2 - 0.5))
    assert found["effective_rank_image"] == pytest.approx(2)
    assert found.keys() == MEANINGS.keys()


def test_features_in_one_point_have_collapsed():
    found = feature_statistics(np.tile([1.0, 0.0, 0.0], (9, 1)), np.tile([0.0, 1.0, 0.0], (9, 1)), np.arange(9))
    assert found["effective_rank_image"] == pytest.approx(1)
    assert found["uniformity_text"] == pytest.approx(0)
    assert found["modality_gap"] == pytest.approx(math.sqrt(2))
    assert found["alignment"] == pytest.approx(2)


def test_features_spread_over_the_sphere():
    """In D dimensions squared distances are 2 on average, so uniformity is near -4; all directions are made use of."""
    image = unit(np.random.default_rng(0).standard_normal((1500, 256)))
    found = feature_statistics(image, image, np.arange(1500))
    assert -4.05 < found["uniformity_image"] < -3.9
    assert found["effective_rank_image"] > 230
    assert found["alignment"] == pytest.approx(0, abs=1e-12) and found["modality_gap"] == pytest.approx(0, abs=1e-12)


def test_a_sample_stands_for_all_and_is_the_same_again(monkeypatch):
    random = np.random.default_rng(1)
    image = unit(random.standard_normal((400, 16)) + 1).astype(np.float32)
    owners = random.integers(0, 400, 900)
    text = unit(image[owners] + 0.2 * random.standard_normal((900, 16))).astype(np.float32)
    whole = feature_statistics(image, text, owners)
    monkeypatch.setattr(statistics, "ROWS", 100)
    sampled, other = feature_statistics(image, text, owners), feature_statistics(image, text, owners, seed=1)
    assert sampled == feature_statistics(image, text, owners)
    assert sampled["uniformity_image"] != other["uniformity_image"]
    for name, value in whole.items():
        exact = name in ("alignment", "modality_gap", "cosine_matching")
        assert sampled[name] == pytest.approx(value, rel=1e-6 if exact else 0.15)


def test_one_pair_has_no_others():
    found = feature_statistics(np.ones((1, 1)), np.ones((1, 1)), np.array([0]))
    assert math.isnan(found["uniformity_image"]) and math.isnan(found["cosine_random"])
    assert found["cosine_matching"] == 1 and found["effective_rank_text"] == 1


def test_guessing_as_the_mean_over_all_orders():
    """Three pictures with 1, 1 and 3 captions: every order of captions and of pictures is equally likely."""
    owners = np.array([0, 1, 2, 2, 2])
    images = [[order.index(n) + 1 for n in range(3)] for order in permutations(range(3))]
    texts = [
        [min(place for place, caption in enumerate(order, 1) if owners[caption] == n) for n in range(3)]
        for order in permutations(range(5))
    ]
    expected = metrics_of_ranks(np.concatenate(texts), np.concatenate(images))
    found = chance_metrics(owners)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name]), name


def test_guessing_among_many():
    found = chance_metrics(np.repeat(np.arange(1000), 5))
    assert found["text_to_image_R@10"] == pytest.approx(1)
    assert found["text_to_image_median_rank"] == 500.5
    assert found["text_to_image_mean_rank"] == pytest.approx(500.5)
    assert found["image_to_text_R@1"] == pytest.approx(0.1)
    assert found["image_to_text_mean_rank"] == pytest.approx(5001 / 6), "(M + 1) / (c + 1)"
