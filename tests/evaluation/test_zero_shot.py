"""Figures of zero-shot classification against hand-worked values, and what prompts are made of."""

import json

import numpy as np
import pytest
from PIL import Image

from cliplet.config import PreprocessConfig
from cliplet.data.labelled import read_labelled
from cliplet.data.quarantine import Quarantine
from cliplet.errors import ConfigError, DataError, ModelError
from cliplet.evaluation.class_scores import by_cosine, by_score, figures, unit
from cliplet.evaluation.classes import TEMPLATES, are_words, class_words, prompts, templates_of
from cliplet.evaluation.confusion import confusion_picture, most_confused, write_confusion
from cliplet.evaluation.zero_shot import class_features, zero_shot
from cliplet.runtime.encoder import Encoder

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


class Engine:
    """Pictures are their mean colours; sentences are the sums of the colours that they name, and grey for none."""

    logit_scale = None

    def image_features(self, pixels_BSS3):
        return unit(pixels_BSS3.mean((1, 2)) - 100).astype(np.float32)

    def text_features(self, input_ids_CL, attention_mask_CL):
        return unit(input_ids_CL - 100).astype(np.float32)


def tokenizer(texts):
    named = [[COLOURS[word] for word in text.split() if word in COLOURS] or [(130, 130, 130)] for text in texts]
    ids = np.array([np.sum(colours, axis=0) for colours in named])
    return ids, np.ones_like(ids)


@pytest.fixture
def encoder():
    return Encoder(Engine(), tokenizer, PreprocessConfig(image_size=8), 3)


@pytest.fixture
def data(tmp_path):
    """Four red, three green and two blue pictures; one that is called red is blue, one that is called green is red."""
    colours = {"red": ["red"] * 3 + ["blue"], "green": ["green"] * 2 + ["red"], "blue": ["blue"] * 2}
    for name, painted in colours.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, colour in enumerate(painted):
            Image.new("RGB", (10, 8 + number), COLOURS[colour]).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def measured(encoder, folder, templates=("a {}",), **keywords):
    pictures = read_labelled(folder)
    words, _ = class_words(pictures.classes)
    return zero_shot(encoder, pictures, words, templates, model="m", split="all", **keywords)


def test_figures_are_those_worked_out_by_hand(encoder, data):
    result = measured(encoder, data)
    assert [one.name for one in result.classes] == ["blue", "green", "red"]
    assert result.confusion == [[2, 0, 0], [0, 2, 1], [1, 0, 3]]
    assert result.top1.value == pytest.approx(100 * 7 / 9)
    assert result.mean_class_recall.value == pytest.approx(100 * (1 + 2 / 3 + 3 / 4) / 3)
    assert result.top5 is None, "there are but three classes"
    assert result.chance == pytest.approx(100 / 3)
    assert 0 <= result.top1.low < result.top1.value < result.top1.high <= 100
    blue, green, red = result.classes
    assert (blue.recall, blue.confused_with, blue.confused) == (100, None, 0)
    assert (green.pictures, green.right, green.confused_with, green.confused) == (3, 2, "red", 1)
    assert (red.recall, red.confused_with) == (75, "blue")
    assert json.loads(result.to_json())["format"] == "cliplet-zero-shot"


def test_few_pictures_are_said_and_copies_only_of_what_can_be_read(encoder, data):
    for name in ("red", "blue"):
        (data / name / "broken.png").write_bytes(b"no picture")
    (data / "green" / "2.png").unlink()  # the same as one that is called red
    few = "only 8 pictures to test on: intervals from so few are too narrow"
    assert measured(encoder, data, notes=["first"]).notes == ["first", few]
    (data / "green" / "copy.png").write_bytes((data / "red" / "0.png").read_bytes())
    copies, _ = measured(encoder, data).notes
    assert copies.startswith("1 picture stands in more than one class") and "green/copy.png of green" in copies
    for number in range(4, 45):  # with nine that are there
        Image.new("RGB", (10, 8 + number), COLOURS["red"]).save(data / "red" / f"{number}.png")
    result = measured(encoder, data)
    assert result.pictures == 50 and len(result.notes) == 1, "fifty are enough"


def test_a_picture_that_cannot_be_read_is_left_out_and_named(encoder, data):
    whole = (data / "red" / "0.png").read_bytes()
    (data / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    quarantine = Quarantine()
    result = measured(encoder, data, quarantine=quarantine)
    assert result.confusion == [[2, 0, 0], [0, 2, 1], [1, 0, 2]] and result.pictures == 8
    assert result.left_out == len(quarantine) == 1 and result.problems[0]["where"].endswith("red/0.png")
    for file in data.glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of 9 pictures could be read"):
        measured(encoder, data)


@pytest.mark.parametrize("constant", ["pictures", "sentences"])
def test_an_encoder_that_gives_one_answer_to_all_scores_nothing(encoder, data, constant):
    row = unit(np.array([[0.3, 0.5, 0.7]])).astype(np.float32)
    if constant == "pictures":
        encoder.engine.image_features = lambda pixels: np.repeat(unit(np.ones((1, 3))), len(pixels), axis=0)
    else:
        encoder.engine.text_features = lambda ids, mask: np.repeat(row, len(ids), axis=0)
    result = measured(encoder, data, TEMPLATES["photo"])
    assert result.top1.value == result.mean_class_recall.value == result.top1.high == 0
    assert np.trace(result.confusion) == 0 and np.sum(result.confusion) == 9


def test_features_without_numbers_are_refused(encoder, data):
    encoder.engine.image_features = lambda pixels: np.full((len(pixels), 3), np.nan, np.float32)
    with pytest.raises(ModelError, match="not finite"):
        measured(encoder, data)


def test_ties_and_ranks():
    scores = np.array([[0.9, 0.5, 0.1], [0.5, 0.5, 0.1], [0.2, 0.3, 0.1], [0.5, 0.5 - 1e-9, 0.0]])
    exact = by_score(scores, np.array([0, 0, 2, 0]))
    assert exact.rank_N.tolist() == [1, 2, 3, 1] and exact.said_N.tolist() == [0, 1, 1, 0]
    within = by_score(scores, np.array([0, 0, 2, 0]), tie=1e-6)
    assert within.rank_N.tolist() == [1, 2, 3, 2] and within.said_N.tolist() == [0, 1, 1, 1]


def test_blocks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    images, classes = unit(random.normal(size=(50, 8))), unit(random.normal(size=(7, 8)))
    labels = random.integers(0, 7, 50)
    whole = by_cosine(images, classes, labels)
    monkeypatch.setattr("cliplet.evaluation.class_scores.BLOCK_SCORES", 21)
    parts = by_cosine(images, classes, labels)
    assert (whole.rank_N == parts.rank_N).all() and (whole.said_N == parts.said_N).all()
    own = (images * classes[labels]).sum(1)
    assert (whole.rank_N == 1 + ((images @ classes.T) > own[:, None] + 1e-12).sum(1)).all()


def test_top_five_and_the_recall_of_classes_that_have_pictures():
    labels = np.array([0, 0, 0, 1, 6])
    ranked = by_score(np.zeros((5, 7)), labels)
    assert ranked.rank_N.tolist() == [7] * 5
    ranked = type(ranked)(labels, labels, np.array([1, 5, 6, 1, 2]))
    top1, top5, recall = figures(ranked, 7)
    assert top1.value == pytest.approx(40) and top5.value == pytest.approx(80)
    assert recall.value == pytest.approx(100 * (1 / 3 + 1 + 0) / 3), "four of seven classes have no pictures"


def test_intervals_are_those_of_pictures_drawn_one_by_one():
    random = np.random.default_rng(1)
    labels = random.integers(0, 6, 300)
    ranks = random.choice([1, 1, 2, 3, 6], 300)
    classified = type(by_score(np.zeros((1, 2)), np.zeros(1, int)))(labels, labels, ranks)
    shares = []
    for _ in range(4000):
        rows = random.integers(0, 300, 300)
        recalls = [np.mean(ranks[rows][labels[rows] == label] == 1) for label in range(6)]
        shares.append([np.mean(ranks[rows] == 1), np.mean(ranks[rows] <= 5), np.mean(recalls)])
    low, high = 100 * np.percentile(shares, [2.5, 97.5], axis=0)
    for place, figure in enumerate(figures(classified, 6)):
        assert (figure.low, figure.high) == pytest.approx((low[place], high[place]), abs=1.0)
    assert figures(classified, 6) == figures(classified, 6) != figures(classified, 6, seed=1)


def test_prompts_are_averaged_as_unit_vectors(encoder):
    templates = ("{}", "{} and red")
    (found,) = class_features(encoder, [("green", "blue")], templates)
    vectors = [unit(np.array([np.sum([COLOURS[c] for c in text.split() if c in COLOURS], axis=0) - 100.0]))[0]
               for text in ("green", "green red", "blue", "blue red")]  # fmt: skip
    np.testing.assert_allclose(found, unit(np.mean(vectors, axis=0)[None])[0], atol=1e-6)
    assert prompts(("green", "blue"), templates) == ["green", "green and red", "blue", "blue and red"]


def test_templates_by_name_by_file_and_by_themselves(tmp_path):
    assert templates_of("simple") == ("a photo of a {}",)
    assert templates_of("one {} only") == ("one {} only",)
    file = tmp_path / "templates.txt"
    file.write_text("a {}\n\n  the {} \n")
    assert templates_of(str(file)) == ("a {}", "the {}")
    assert all(template.count("{}") == 1 for several in TEMPLATES.values() for template in several)


@pytest.mark.parametrize("text", ["a photo of a dog", "{} and {}", "a {} {}"])
def test_a_template_without_exactly_one_gap_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"has [02] places"):
        templates_of(text)
    (tmp_path / "bad.txt").write_text(f"a {{}}\n{text}\n")
    with pytest.raises(ConfigError, match=r"bad.txt: the template .* has [02] places"):
        templates_of(str(tmp_path / "bad.txt"))
    with pytest.raises(ConfigError, match=r"no templates 'foto'(.|\n)*photo"):
        templates_of("foto")


def test_folders_are_words_with_spaces():
    words, notes = class_words(("polar_bear", "t-shirt", "_", "a__b"))
    assert words == [("polar bear",), ("t shirt",), ("_",), ("a b",)] and notes == []
    _, notes = class_words(("fire-truck", "Fire_Truck"))
    assert len(notes) == 1 and "fire-truck and Fire_Truck have the same words" in notes[0]


def test_numbers_and_wordnet_names_are_no_words():
    assert not are_words([("0",), ("1",)]) and not are_words([("n02123045",), ("n02123046",)])
    assert are_words([("cat",), ("7",), ("dog",)])
    assert "called by no words (0, 1)" in class_words(("0", "1"))[1][0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "n01: cat | house  cat\nn02: dog\nn03: never used\n"),
        ("c.txt", "n01\tcat|house cat\nn02\tdog\n"),
        ("c.csv", "class,words\nn01,cat|house cat\nn02,dog\n"),
        ("c.tsv", "n02\tdog\nn01\tcat|house cat\n"),
        ("c.json", '{"n01": ["cat", "house cat"], "n02": "dog"}'),
    ],
)
def test_a_file_names_classes(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert class_words(("n01", "n02"), tmp_path / name)[0] == [("cat", "house cat"), ("dog",)]


@pytest.mark.parametrize(("name", "text"), [("c.txt", "cat\ndog\nbird\n"), ("c.json", '["cat", "dog", "bird"]')])
def test_words_in_order_name_numbers_only(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert class_words(("0", "02"), tmp_path / name)[0] == [("cat",), ("bird",)]
    with pytest.raises(DataError, match="does not say which words are whose"):
        class_words(("cat", "dog"), tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "cat: a\nfog: b\n", r"does not name 1 of 2 classes: dog\nIts 'fog' may be meant for 'dog'\.$"),
        ("c.txt", "cat: a\nzebu: b\n", r"does not name 1 of 2 classes: dog\nIt names cat, zebu\.$"),
        ("c.json", "{}", r"does not name 2 of 2 classes: cat, dog\nIt names no class\.$"),
        ("c.txt", "cat: a\ndog\n", "'dog' is not of the form"),
        ("c.txt", "cat: a\ncat: b\ndog: c\n", "names 'cat' twice"),
        ("c.txt", "cat: |\ndog: b\n", "no words for the class 'cat'"),
        ("c.csv", "cat,a\ndog\n", "c.csv:2 has no two columns"),
        ("c.json", '{"cat": 3, "dog": "b"}', "words of 'cat' are neither"),
        ("c.json", "{", "is no JSON"),
    ],
)
def test_files_of_names_that_are_no_good(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        class_words(("cat", "dog"), tmp_path / name)


def test_the_confusion_picture_is_green_where_right_and_red_where_wrong(tmp_path):
    picture = confusion_picture(np.array([[10, 0, 0], [9, 1, 0], [0, 0, 0]]), ["a", "b", "c" * 200], "title")
    side = 72
    left, top = picture.width - 16 - 3 * side, picture.height - 16 - 3 * side

    def colour(row, column):
        return picture.getpixel((left + column * side + 5, top + row * side + 5))

    red, green, _ = colour(0, 0)
    assert green > red
    red, green, _ = colour(1, 0)
    assert red > green
    assert colour(0, 1) == colour(2, 2) == (255, 255, 255)
    write_confusion([[1, 0], [0, 1]], ["a", "b"], tmp_path / "c.png", "t")
    assert Image.open(tmp_path / "c.png").size[0] >= 420
    with pytest.raises(DataError, match="no picture format"):
        write_confusion([[1]], ["a"], tmp_path / "c.docx")


def test_of_many_classes_the_most_confused_are_drawn():
    confusion = np.eye(60, dtype=int) * 5
    for place in range(25, 55):
        confusion[place, (place + 1) % 60] = 1 + place
    assert most_confused(confusion) == list(range(26, 56))
    assert most_confused(confusion[:40, :40]) == list(range(40))
    assert confusion_picture(confusion, [f"class {n}" for n in range(60)]).width < 1600
