"""What is learned from, what is tested on, and the figures of both classifiers against independent ones."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from cliplet.config import PreprocessConfig
from cliplet.data.labelled import LabelledPictures, read_labelled
from cliplet.errors import ConfigError, DataError, ModelError
from cliplet.evaluation.class_scores import unit
from cliplet.evaluation.few_shot import few_shot, few_shot_rows
from cliplet.evaluation.probes import STRENGTHS, USUAL_STRENGTH, chosen_strength, class_means, linear_probe
from cliplet.evaluation.shots import divided, drawn, pooled, split_up
from cliplet.runtime.encoder import Encoder


def clusters(classes=4, each=20, noise=0.8, seed=0, width=16):
    """Unit features around a centre for each class, and their labels."""
    random = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(classes), each)
    return unit(
        random.normal(size=(classes, width))[label_N] + noise * random.normal(size=(len(label_N), width))
    ), label_N


def pictures(label_N, split_of):
    names = tuple(f"/nowhere/{row}.png" for row in range(len(label_N)))
    classes = tuple("abcdefgh"[: int(np.max(label_N)) + 1])
    return LabelledPictures("data", classes, names, np.asarray(label_N), tuple(split_of))


def test_without_a_split_to_train_on_half_of_each_class_is_held_out():
    label_N = np.repeat([0, 1, 2], [10, 6, 21])
    division = divided(label_N, 3, None, 4, seed=0)
    assert sorted([*division.train, *division.test]) == list(range(37)), "every picture once"
    assert np.bincount(label_N[division.test]).tolist() == [5, 2, 10], "four to learn from are left in each"
    again, other = divided(label_N, 3, None, 4, seed=0), divided(label_N, 3, None, 4, seed=1)
    assert (division.test == again.test).all() and set(division.test) != set(other.test)


def test_with_one_the_rest_is_tested_on():
    label_N = np.array([0, 0, 0, 1, 1, 1, 1])
    train_N = np.array([True, False, True, True, True, True, False])
    division = divided(label_N, 2, train_N, 2, seed=0)
    assert division.train.tolist() == [0, 2, 3, 4, 5] and division.test.tolist() == [1, 6]


def test_classes_with_too_few_pictures_are_left_out_of_every_row():
    label_N = np.repeat([0, 1, 2, 3], [5, 4, 1, 9])
    division = divided(label_N, 5, None, 4, seed=0)
    assert division.kept == [0, 3] and division.left_out == [1, 2, 4]
    assert set(label_N[division.train]) == set(label_N[division.test]) == {0, 3}
    with pytest.raises(DataError, match=r"only 1 of 5 classes has 8 pictures to learn from.*\n.*--shots"):
        divided(label_N, 5, None, 8, seed=0)
    tested_on_none = np.array([True] * 5 + [False] * 14)
    with pytest.raises(DataError, match=r"only 0 of 4 .* 1 picture to learn from and one to test on\nFew-shot needs a"):
        divided(label_N, 4, tested_on_none, 1, seed=0)


@pytest.mark.parametrize(
    ("counts", "asked", "advice"),
    [
        ([5, 4, 1, 9], 8, "The largest number that works is --shots 4."),
        ([5, 4, 3, 9], 8, "The largest number that works is --shots 4, with all classes --shots 2."),
        ([3, 3], 3, "The largest number that works is --shots 2."),
        ([1, 1], 1, "Few-shot needs at least 2 pictures of each class: to learn from, and to test on."),
        ([9, 1], 2, "Few-shot needs at least 2 pictures of each class: to learn from, and to test on."),
    ],
)
def test_the_number_of_shots_that_is_advised_works(counts, asked, advice):
    label_N = np.repeat(np.arange(len(counts)), counts)
    with pytest.raises(DataError) as caught:
        divided(label_N, len(counts), None, asked, seed=0)
    assert caught.value.hint == advice
    for most in map(int, re.findall(r"--shots (\d+)", advice)):
        assert len(divided(label_N, len(counts), None, most, seed=0).kept) >= 2
        assert most == 2 or len(divided(label_N, len(counts), None, most, seed=0).kept) == 2
    with_split = np.array([row % 4 != 0 for row in range(16)])  # of each eight, six to learn from
    with pytest.raises(DataError, match=r"have 7 pictures to learn from and one to test on\n.*--shots 6\."):
        divided(np.repeat([0, 1], 8), 2, with_split, 7, seed=0)


def test_which_splits_are_learned_from_and_tested_on():
    both = pictures([0, 1] * 3, ["train"] * 2 + ["test"] * 2 + ["val"] * 2)
    for asked, learned, tested, count in (
        (None, "train", "test", 4),
        ("val", "train", "val", 4),
        ("all", "", "all", 6),
    ):
        found, train, test = split_up(both, asked)
        assert (train, test, len(found.images)) == (learned, tested, count)
    assert split_up(pictures([0, 1], ["test"] * 2), None)[1:] == ("", "test")
    assert split_up(pictures([0, 1], [""] * 2), None)[1:] == ("", "all")
    with pytest.raises(DataError, match="no split 'test'"):
        split_up(pictures([0, 1], ["train", "val"]), None)


def test_of_many_pictures_to_learn_from_some_are_enough_and_all_are_tested():
    data = pictures([0] * 50 + [1] * 12 + [0] * 40, ["train"] * 62 + ["test"] * 40)
    some = pooled(data, "train", 2, seed=0)
    counts = {name: some.select(name).label_N.tolist() for name in ("train", "test")}
    assert counts == {"train": [0] * 20 + [1] * 12, "test": [0] * 40}
    assert some.images == pooled(data, "train", 2, seed=0).images != pooled(data, "train", 2, seed=1).images
    assert pooled(data, "", 2, seed=0).images == data.images


def test_draws_are_of_each_class_without_repetition():
    label_N = np.repeat([0, 1, 2], 9)
    rows = drawn(np.arange(1, 27, 2), label_N, 3, np.random.default_rng(0))
    assert len(set(rows)) == 9 and (rows % 2 == 1).all()
    assert label_N[rows].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_nearest_class_mean_is_what_scikit_learn_finds():
    from sklearn.neighbors import KNeighborsClassifier

    image_ND, label_N = clusters()
    division = divided(label_N, 4, None, 4, seed=3)
    rows, _ = few_shot_rows(image_ND, label_N, division, [1, 4], repeats=3, seed=3)
    for count in (1, 4):
        row = next(row for row in rows if row.method == "nearest_class_mean" and row.shots == count)
        for repeat, value in enumerate(row.each):
            learned = drawn(division.train, label_N, count, np.random.default_rng([3, count, repeat]))
            means = class_means(image_ND[learned], label_N[learned])
            reference = KNeighborsClassifier(1, metric="cosine").fit(means, np.arange(4))
            right = reference.predict(image_ND[division.test]) == label_N[division.test]
            assert value == pytest.approx(100 * right.mean())
    assert 30 < rows[0].top1 < rows[1].top1 <= 100


def test_means_and_intervals_over_repeats():
    image_ND, label_N = clusters(noise=1.5)
    division = divided(label_N, 4, None, 2, seed=0)
    rows, _ = few_shot_rows(image_ND, label_N, division, [2], repeats=5)
    for row in rows:
        assert len(set(row.each)) > 1 and row.top1 == pytest.approx(np.mean(row.each))
        half = 2.776445 * np.std(row.each, ddof=1) / 5**0.5  # t of four degrees of freedom, from a table
        assert row.high - row.top1 == pytest.approx(half, abs=1e-4) and row.top1 - row.low == pytest.approx(
            half, abs=1e-4
        )
    again, _ = few_shot_rows(image_ND, label_N, division, [1, 2], repeats=5)
    assert [row.each for row in again if row.shots == 2] == [row.each for row in rows], "whatever else is asked for"
    other, _ = few_shot_rows(image_ND, label_N, division, [2], repeats=5, seed=1)
    assert [row.each for row in other] != [row.each for row in rows]
    single, _ = few_shot_rows(image_ND, label_N, division, [2], repeats=1)
    assert all(row.low is row.high is None for row in single)


def test_an_interval_ends_at_a_hundred():
    image_ND, label_N = clusters(noise=0.55, seed=5)
    rows, _ = few_shot_rows(image_ND, label_N, divided(label_N, 4, None, 8, seed=0), [8], repeats=4)
    assert all(row.top1 > 90 and row.high <= 100 for row in rows)


def test_the_probe_is_multinomial_logistic_regression():
    image_ND, label_N = clusters(classes=3, each=8)
    found, ended = linear_probe(image_ND, label_N, image_ND, label_N, strength=0.05)
    # Its optimum, found by plain gradient descent on the same objective: C times the summed loss and half the weights.
    weights, bias, target = np.zeros((16, 3)), np.zeros(3), np.eye(3)[label_N]
    for _ in range(5000):
        logits = image_ND @ weights + bias
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        weights -= 0.1 * (0.05 * image_ND.T @ (share - target) + weights)
        bias -= 0.1 * 0.05 * (share - target).sum(0)
    assert ended and (found.said_N == (image_ND @ weights + bias).argmax(1)).all()


def test_the_probe_tells_two_classes_apart():
    image_ND, label_N = clusters(classes=2, each=10, noise=0.3)
    found, _ = linear_probe(image_ND[::2], label_N[::2], image_ND[1::2], label_N[1::2], 10.0)
    assert found.top1 == 100 and found.rank_N.tolist() == [1] * 10
    swapped, _ = linear_probe(image_ND[::2], label_N[::2], image_ND[1::2], 1 - label_N[1::2], 10.0)
    assert swapped.top1 == 0 and swapped.rank_N.tolist() == [2] * 10


def test_the_test_pictures_have_no_say_in_what_is_learned():
    image_ND, label_N = clusters(noise=1.2)
    division = divided(label_N, 4, None, 8, seed=0)
    rows, _ = few_shot_rows(image_ND, label_N, division, [8], repeats=2)
    spoiled = image_ND.copy()
    spoiled[division.test] = unit(np.random.default_rng(9).normal(size=(len(division.test), 16)))
    others, _ = few_shot_rows(spoiled, label_N, division, [8], repeats=2)
    assert rows[-1].strength == others[-1].strength and rows[-1].top1 > others[-1].top1 + 20


def test_the_strength_follows_from_what_is_learned():
    image_ND, label_N = clusters(noise=0.2, each=6)
    assert chosen_strength(image_ND, label_N) == STRENGTHS[0], "of several that are as good the most cautious"
    assert chosen_strength(image_ND[::6], label_N[::6]) == USUAL_STRENGTH
    # Classes apart by a faint direction, beneath a strong one that means nothing: only a probe that is let learns it.
    random = np.random.default_rng(0)
    label_N = np.repeat([0, 1], 30)
    faint = np.stack([random.normal(size=60), 0.02 * (2 * label_N - 1), np.ones(60)], axis=1)
    assert chosen_strength(unit(faint), label_N) > STRENGTHS[1]


def test_features_that_are_all_alike_score_nothing():
    label_N = np.repeat(np.arange(3), 8)
    same = np.tile(unit(np.array([[0.2, 0.5, 0.9]])), (24, 1))
    rows, _ = few_shot_rows(same, label_N, divided(label_N, 3, None, 4, seed=0), [1, 4], 2, class_KD=same[:3])
    assert len(rows) == 5 and all(row.top1 == 0 for row in rows)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    data = pictures([0] * 9 + [1] * 9, [""] * 18)
    with pytest.raises(ModelError, match=r"needs scikit-learn(.|\n)*\[train\]"):
        few_shot(None, data, None, (), [1], model="m")


@pytest.mark.parametrize(("shots", "repeats", "seed"), [([0, 1], 5, 0), ([], 5, 0), ([1], 0, 0), ([1], 5, -1)])
def test_numbers_that_make_no_sense_are_refused_before_anything_is_opened(shots, repeats, seed):
    with pytest.raises(ConfigError, match=r"--shots|--repeats|--seed"):
        few_shot(None, pictures([0, 1], ["", ""]), None, (), shots, model="m", repeats=repeats, seed=seed)


class Engine:
    """Pictures are their mean colours; every sentence is the colour that its length stands for."""

    calls = 0

    logit_scale = None

    def image_features(self, pixels_BSS3):
        self.calls += len(pixels_BSS3)
        return unit(pixels_BSS3.mean((1, 2)) - 100).astype(np.float32)

    def text_features(self, input_ids_CL, attention_mask_CL):
        return unit(input_ids_CL - 100).astype(np.float32)


COLOURS = {"red": (220, 60, 40), "green": (40, 220, 60), "blue": (60, 40, 220)}


@pytest.fixture
def encoder():
    def tokenizer(texts):
        ids = np.array([COLOURS[text] for text in texts])
        return ids, np.ones_like(ids)

    return Encoder(Engine(), tokenizer, PreprocessConfig(image_size=8), 3)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shade = (np.array(colour) + random.integers(-20, 20, 3)).astype(np.uint8)
                Image.fromarray(np.tile(shade, (9, 9, 1))).save(folder / f"{number}.png")
    return tmp_path


def test_the_whole_from_pictures_to_figures(encoder, data):
    (data / "train" / "red" / "0.png").write_bytes(b"broken")
    (data / "test" / "blue" / "copy.png").write_bytes((data / "train" / "blue" / "0.png").read_bytes())
    words = [(name,) for name in ("blue", "green", "red")]
    result = few_shot(encoder, read_labelled(data), words, ("{}",), [3, 1], model="m", repeats=2)
    assert [(row.method, row.shots) for row in result.rows] == [
        ("zero_shot", 0),
        ("nearest_class_mean", 1),
        ("nearest_class_mean", 3),
        ("linear_probe", 1),
        ("linear_probe", 3),
    ]
    assert all(row.top1 == 100 for row in result.rows), "colours are far apart"
    assert (result.train_split, result.test_split, result.train_pictures, result.test_pictures) == (
        "train",
        "test",
        14,
        13,
    )
    assert result.fewest == 4 and result.left_out == 1 and encoder.engine.calls == 27, "each picture once"
    assert "smallest class has 4 pictures" in result.notes[0] and "copy.png" in result.notes[1]
    assert result.notes[2:] == [
        "only 13 pictures to test on: intervals from so few are too narrow",
        "an interval from 2 draws says little; --repeats 5 is usual",
    ]
    assert result.chance == pytest.approx(100 / 3)


def test_broken_files_are_no_picture_in_two_classes(encoder, data):
    for name in ("red", "blue"):
        (data / "test" / name / "broken.png").write_bytes(b"no picture")
    result = few_shot(encoder, read_labelled(data), None, (), [1], model="m", repeats=3)
    assert result.left_out == 2 and len(result.notes) == 1 and "to test on" in result.notes[0]
    (data / "test" / "red" / "broken.png").write_bytes((data / "test" / "blue" / "0.png").read_bytes())
    assert "more than one class" in few_shot(encoder, read_labelled(data), None, (), [1], model="m").notes[0]
    single = few_shot(encoder, read_labelled(data), None, (), [1], model="m", repeats=1).notes
    assert single[-1] == "a single draw has no interval; --repeats 5 is usual"


def test_a_class_that_loses_its_pictures_is_left_out(encoder, data):
    for file in (data / "train" / "red").iterdir():
        file.write_bytes(b"")
    result = few_shot(encoder, read_labelled(data), None, (), [1], model="m", repeats=2)
    assert result.classes == ["blue", "green"] and result.classes_left_out == ["red"]
    assert result.test_pictures == 8 and result.templates == []
    assert "too few pictures for 1 shot: red" in result.notes[0]
