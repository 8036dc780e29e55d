"""Equal ranks from every engine, exact where float32 is not."""

import numpy as np
import pytest

from cliplet.errors import ConfigError
from cliplet.evaluation import ranking, right_answers
from cliplet.evaluation.retrieval import fold_metrics, mean_metrics, retrieval_metrics, retrieval_ranks

ENGINES = ("numpy", "torch", "faiss")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(pictures: int = 60, dim: int = 24, noise: float = 1.5, seed: int = 0):
    """Pictures, captions near them (one to six each, in no order), and whose they are."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(pictures), random.integers(1, 7, size=pictures))
    owner = random.permutation(owner)
    image = random.normal(size=(pictures, dim))
    return unit(image), unit(image[owner] + noise * random.normal(size=(len(owner), dim))), owner


def exact_ranks(image: np.ndarray, text: np.ndarray, owner: np.ndarray, tie: float):
    """The definition in float64: a competitor counts that scores no more than `tie` below the right answer."""
    scores = image.astype(np.float64) @ text.astype(np.float64).T
    own = scores[owner, np.arange(len(owner))]
    best = np.array([own[owner == row].max() for row in range(len(image))])
    others = owner != np.arange(len(image))[:, None]
    by_image = 1 + ((scores >= best[:, None] - tie) & others).sum(1)
    by_text = 1 + ((scores >= own - tie) & others).sum(0)
    return by_image, by_text


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("noise", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("block", [50, 2**20])
def test_every_engine_gives_the_exact_ranks_in_any_block(monkeypatch, engine, noise, block):
    monkeypatch.setattr(right_answers, "BLOCK_SCORES", block)
    image, text, owner = pairs(noise=noise)
    ranks = retrieval_ranks(image, text, owner, engine)
    expected = exact_ranks(image, text, owner, tie=1.2e-7)
    np.testing.assert_array_equal(ranks[0], expected[0])
    np.testing.assert_array_equal(ranks[1], expected[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_that_float32_confuses_are_told_apart_in_float64(engine):
    """Differences of 1e-6 between products of 2,048 terms: float32 sums err by as much, float64 does not."""
    random = np.random.default_rng(3)
    text = unit(random.normal(size=(1, 2048)))
    right = unit(random.normal(size=(1, 2048)) + 2 * text)
    # Rivals score a little less than the right picture, or a little more, by a step along the text's direction.
    steps = np.concatenate([np.linspace(-3e-6, -1e-6, 40), np.linspace(1e-6, 3e-6, 40)])
    rivals = right.astype(np.float64) + steps[:, None] * text
    image = np.concatenate([right, rivals.astype(np.float32)])
    captions = np.concatenate([text, unit(random.normal(size=(80, 2048)))])
    owner = np.arange(81)
    ranks = retrieval_ranks(image, captions, owner, engine)
    expected = exact_ranks(image, captions, owner, tie=1.2e-7)
    assert ranks[1][0] == expected[1][0]
    assert 30 < ranks[1][0] < 60  # about the half that score more, so both kinds were told apart


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dense", [-1.0, 1.0])
@pytest.mark.parametrize(
    "feature",
    [
        unit(np.random.default_rng(1).normal(size=(1, 515))),
        np.random.default_rng(2).normal(size=(1, 777)),
        np.ones((1, 384)) / np.sqrt(384),
        np.zeros((1, 7)),
    ],
    ids=["float32", "float64", "ones", "zeros"],
)
def test_a_constant_encoder_is_last_everywhere_whichever_way_its_ties_are_looked_at(
    monkeypatch, engine, dense, feature
):
    monkeypatch.setattr(ranking, "DENSE", dense)
    image, text, owner = np.tile(feature, (41, 1)), np.tile(feature, (123, 1)), np.repeat(np.arange(41), 3)
    by_image, by_text = retrieval_ranks(image, text, owner, engine)
    assert (by_image == 121).all() and (by_text == 41).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_that_are_in_the_set_twice_tie_against_the_model(engine):
    image, text, owner = pairs(pictures=10, noise=0.01)
    image[3] = image[7]
    _, by_text = retrieval_ranks(image, text, owner, engine)
    assert (by_text[(owner == 3) | (owner == 7)] >= 2).all() and (by_text[(owner != 3) & (owner != 7)] == 1).all()


def test_float64_features_are_ranked_by_differences_that_float32_cannot_hold():
    image = np.array([[1.0, 0.0], [1.0 + 1e-10, 0.0]])
    by_image, by_text = retrieval_ranks(image, np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert by_text.tolist() == [2, 1]
    assert by_image.tolist() == [2, 2]  # both captions are the same to each picture: a tie


def test_features_of_any_length_are_ranked_as_they_are():
    image, text, owner = pairs()
    once = retrieval_ranks(image, text, owner)
    for other in (retrieval_ranks(1000 * image, text, owner), retrieval_ranks(image, 1e-3 * text, owner)):
        assert (once[0] == other[0]).all() and (once[1] == other[1]).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_one_long_row_makes_no_ties_of_others(engine):
    lengths = np.array([1e6, 1, 1], np.float32)
    by_image, by_text = retrieval_ranks(np.diag(lengths), np.diag(lengths), np.arange(3), engine)
    assert by_image.tolist() == by_text.tolist() == [1, 1, 1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "length"), [(np.float32, 1e25), (np.float32, 1e-30), (np.float64, 1e200)])
def test_products_that_float32_cannot_hold_are_ranked_all_the_same(engine, kind, length):
    image, text, owner = pairs()
    expected = retrieval_ranks(image, text, owner)
    long = retrieval_ranks((image.astype(kind) * kind(length)), text.astype(kind) * kind(length), owner, engine)
    if kind is np.float32:  # float64 tells apart what float32 holds for equal
        assert (long[0] == expected[0]).all() and (long[1] == expected[1]).all()
    assert np.abs(long[0] - expected[0]).max() <= 1 and np.abs(long[1] - expected[1]).max() <= 1


def test_torchs_newer_precision_settings_are_kept_and_not_mixed(run_python, tmp_path):
    done = run_python(
        "import numpy as np, torch\n"
        "if not hasattr(torch.backends.cuda.matmul, 'fp32_precision'): raise SystemExit\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "from cliplet.evaluation import retrieval_ranks\n"
        "ranks = retrieval_ranks(np.eye(5), np.eye(5), np.arange(5), engine='torch')\n"
        "assert ranks[0].tolist() == [1] * 5\n"
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_engine_is_refused_by_the_nearest_name():
    image, text, owner = pairs(pictures=3)
    with pytest.raises(ConfigError) as refused:
        retrieval_metrics(image, text, owner, engine="fais")
    assert "faiss" in refused.value.hint


def test_folds_are_searched_alone():
    image, text, owner = pairs(pictures=11)
    every = fold_metrics(image, text, owner, 5)
    assert [metrics["images"] for metrics in every] == [2] * 5  # the eleventh picture is in none
    for fold, metrics in enumerate(every):
        of_fold = np.isin(owner, [2 * fold, 2 * fold + 1])
        alone = retrieval_metrics(image[2 * fold : 2 * fold + 2], text[of_fold], owner[of_fold] - 2 * fold)
        assert metrics == alone
    mean = mean_metrics(every)
    assert mean["text_to_image_R@1"] == pytest.approx(np.mean([metrics["text_to_image_R@1"] for metrics in every]))


def test_recalls_equal_clip_benchmarks_own():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    from cliplet.evaluation.retrieval import clip_benchmark_names

    image, text, owner = pairs(pictures=90, dim=16, noise=1.0)
    ours = clip_benchmark_names(retrieval_metrics(image, text, owner))
    scores = torch.from_numpy(text @ image.T)
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(owner)] = True
    for k in (1, 5, 10):
        for name, matrix, right in (("image", scores, positive), ("text", scores.T, positive.T)):
            recall = theirs.batchify(theirs.recall_at_k, matrix, right, 32, "cpu", k=k)
            assert ours[f"{name}_retrieval_recall@{k}"] == pytest.approx((recall > 0).float().mean().item(), abs=1e-6)
    assert len(ours) == 6
