import numpy as np
import pytest

from cliplet.errors import DataError
from cliplet.evaluation import retrieval_metrics, right_answers
from cliplet.evaluation.retrieval import retrieval_ranks


def metrics_of_scores(scores: np.ndarray, owner: list[int], **kwargs):
    """Metrics of a given N x M score matrix: with unit images, a text's features are its column."""
    return retrieval_metrics(np.eye(len(scores)), scores.T, np.array(owner), **kwargs)


def test_hand_worked_three_by_seven_with_ties():
    # Pictures a, b, c; captions 0-2 are a's, 3-4 are b's, 5-6 are c's.
    scores = np.array(
        [
            [0.5, 0.9, 0.1, 0.9, 0.2, 0.3, 0.0],  # a: its best is 0.9; caption 3 ties with it, and a tie counts: rank 2
            [0.1, 0.2, 0.3, 0.4, 0.8, 0.7, 0.6],  # b: its best is 0.8; nothing of others reaches it: rank 1
            [0.6, 0.1, 0.9, 0.9, 0.8, 0.5, 0.2],  # c: its best is 0.5; 0.6, 0.9, 0.9 and 0.8 beat it: rank 5
        ]
    )
    # Caption by caption: 0: .5 against .6 -> 2; 1: .9 -> 1; 2: .1 against .3 and .9 -> 3; 3: .4 against .9 and .9 -> 3;
    # 4: .8 ties with c's .8 -> 2; 5: .5 against b's .7 -> 2; 6: .2 against b's .6 -> 2.
    metrics = metrics_of_scores(scores, [0, 0, 0, 1, 1, 2, 2])
    assert metrics["image_to_text_R@1"] == pytest.approx(100 / 3)
    assert metrics["image_to_text_R@5"] == 100 and metrics["image_to_text_R@10"] == 100
    assert metrics["image_to_text_median_rank"] == 2
    assert metrics["image_to_text_mean_rank"] == pytest.approx((2 + 1 + 5) / 3)
    assert metrics["text_to_image_R@1"] == pytest.approx(100 / 7)
    assert metrics["text_to_image_R@5"] == 100
    assert metrics["text_to_image_median_rank"] == 2
    assert metrics["text_to_image_mean_rank"] == pytest.approx((2 + 1 + 3 + 3 + 2 + 2 + 2) / 7)
    assert metrics["rsum"] == pytest.approx(100 / 3 + 200 + 100 / 7 + 200)
    assert metrics["images"] == 3 and metrics["captions"] == 7


def slow_ranks(scores: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    by_image = []
    for row in range(len(scores)):
        best = max(scores[row][owner == row])
        by_image.append(1 + sum(scores[row][owner != row] >= best))
    by_text = [
        1 + sum(scores[other, caption] >= scores[row, caption] for other in range(len(scores)) if other != row)
        for caption, row in enumerate(owner)
    ]
    return by_image, by_text


@pytest.mark.parametrize("block_scores", [1, 1000, 2**23])
def test_equals_a_slow_count_whatever_the_block(monkeypatch, block_scores):
    monkeypatch.setattr(right_answers, "BLOCK_SCORES", block_scores)
    random = np.random.default_rng(0)
    owner = random.permutation(np.concatenate([np.arange(37), random.integers(37, size=80)]))
    image, text = random.normal(size=(37, 8)), random.normal(size=(len(owner), 8))
    by_image, by_text = retrieval_ranks(image, text, owner)
    slow_image, slow_text = slow_ranks(image @ text.T, owner)
    assert by_image.tolist() == slow_image and by_text.tolist() == slow_text


def test_order_of_pictures_and_captions_does_not_matter():
    random = np.random.default_rng(1)
    owner = np.repeat(np.arange(20), 5)
    image, text = random.normal(size=(20, 8)), random.normal(size=(100, 8))
    pictures, captions = random.permutation(20), random.permutation(100)
    moved = np.argsort(pictures)[owner][captions]
    assert retrieval_metrics(image, text, owner) == retrieval_metrics(image[pictures], text[captions], moved)


@pytest.mark.parametrize("dim", [3, 64, 515])
def test_a_constant_encoder_scores_no_better_than_chance(dim):
    feature = np.random.default_rng(2).normal(size=dim).astype(np.float32)
    feature /= np.linalg.norm(feature)
    metrics = retrieval_metrics(np.tile(feature, (103, 1)), np.tile(feature, (515, 1)), np.repeat(np.arange(103), 5))
    assert metrics["image_to_text_R@1"] == 0 and metrics["text_to_image_R@10"] == 0
    assert metrics["text_to_image_mean_rank"] == 103


def test_a_perfect_encoder_scores_a_hundred():
    image = np.eye(50, dtype=np.float32)
    owner = np.repeat(np.arange(50), 5)
    metrics = retrieval_metrics(image, image[owner], owner)
    assert metrics["rsum"] == 600 and metrics["image_to_text_mean_rank"] == 1


def test_random_features_are_near_chance():
    random = np.random.default_rng(3)
    metrics = retrieval_metrics(random.normal(size=(500, 64)), random.normal(size=(2500, 64)), np.arange(2500) // 5)
    assert metrics["text_to_image_R@10"] == pytest.approx(100 * 10 / 500, abs=1.2)


def test_other_ks():
    assert metrics_of_scores(np.eye(3), [0, 1, 2], ks=(2,))["text_to_image_R@2"] == 100


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda image, text, owner: (image, text, np.where(owner == 2, 1, owner)), "picture 2 has no caption"),
        (lambda image, text, owner: (image, text, owner + 1), "caption 3 belongs to picture 3"),
        (lambda image, text, owner: (image, text, owner - 1), "caption 0 belongs to picture -1"),
        (lambda image, text, owner: (image, text, owner[:-1]), "caption_image"),
        (lambda image, text, owner: (image, text, owner.astype(float)), "caption_image"),
        (lambda image, text, owner: (image[:, :2], text, owner), "do not fit"),
        (lambda image, text, owner: (image[:0], text, owner), "do not fit"),
        (lambda image, text, owner: (np.where(image == 1, np.nan, image), text, owner), "row 0 are not finite"),
    ],
)
def test_bad_input_is_named(break_it, says):
    with pytest.raises(DataError, match=says):
        retrieval_metrics(*break_it(np.eye(3), np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 1, 2])))
