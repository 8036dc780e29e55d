"""The rendered data set: the same everywhere, whole or absent, and never a false word in a caption."""

import json
import re
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from cliplet.data.readers import read_source
from cliplet.data.scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    Scene,
    SceneObject,
    describe,
    draw_scene,
    render_scenes,
    sample_scene,
)
from cliplet.errors import DataError

COUNTS = {"train": 20, "val": 6, "test": 10}


def files(folder):
    """Every file of a folder by its name, with its content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def scenes(split, count, seed=0):
    rngs = [np.random.default_rng((seed, index)) for index in range(count)]
    return [(sample_scene(split, rng), rng) for rng in rngs]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    render_scenes(folder, **COUNTS)
    return folder


# ---- the files


def test_same_arguments_give_same_bytes_with_any_number_of_workers(rendered, tmp_path):
    render_scenes(tmp_path, **COUNTS, workers=2)
    assert files(tmp_path) == files(rendered)


def test_another_seed_gives_other_pictures_and_captions(rendered, tmp_path):
    render_scenes(tmp_path, **COUNTS, seed=1)
    old, new = files(rendered), files(tmp_path)
    assert old.keys() == new.keys()
    assert not set(old.values()) & set(new.values())


def test_a_picture_does_not_depend_on_how_many_there_are(rendered, tmp_path):
    render_scenes(tmp_path, train=2, val=1, test=1)
    old = files(rendered)
    assert all(old[name] == data for name, data in files(tmp_path).items() if name.endswith(".png"))


def test_no_two_pictures_are_alike(rendered):
    pictures = [np.asarray(Image.open(file)) for file in (rendered / "images").iterdir()]
    assert {(picture.shape, picture.dtype.name) for picture in pictures} == {((96, 96, 3), "uint8")}
    assert len({sha256(picture.tobytes()).digest() for picture in pictures}) == sum(COUNTS.values())


def test_is_read_as_any_other_data_set(rendered):
    source = read_source(rendered)
    assert not source.problems
    assert source.splits == COUNTS
    for record in source.records:
        assert Image.open(record.image).size == (96, 96)
        assert len(set(record.captions)) == 5


def test_annotations_are_in_karpathys_format(rendered):
    data = json.loads((rendered / "dataset_scenes.json").read_text())
    assert data["dataset"] == "scenes"
    assert [image["imgid"] for image in data["images"]] == list(range(36))
    sentences = [sentence for image in data["images"] for sentence in image["sentences"]]
    assert [s["sentid"] for s in sentences] == [i for image in data["images"] for i in image["sentids"]]
    assert [s["sentid"] for s in sentences] == list(range(5 * 36))
    assert all(s["tokens"] == re.findall(r"[\w-]+", s["raw"]) for s in sentences)


def test_a_second_call_renders_nothing(rendered):
    before = {file: file.stat().st_mtime_ns for file in rendered.rglob("*")}
    steps = []
    path = render_scenes(rendered, **COUNTS, progress=lambda done, total: steps.append((done, total)))
    assert path == rendered / "dataset_scenes.json" and not steps
    assert {file: file.stat().st_mtime_ns for file in rendered.rglob("*")} == before


def test_an_interrupted_rendering_is_no_data_set_and_is_completed(rendered, tmp_path):
    def stop(done, total):
        assert total == 36
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_scenes(tmp_path, **COUNTS, progress=stop)
    with pytest.raises(DataError):
        read_source(tmp_path)
    render_scenes(tmp_path, **COUNTS)
    assert files(tmp_path) == files(rendered)


def test_an_interruption_of_another_rendering_leaves_no_old_annotations(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    render_scenes(tmp_path, train=2, val=0, test=1)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(tmp_path, train=2, val=0, test=1, seed=1, progress=stop)
    assert not (tmp_path / "dataset_scenes.json").exists()


def test_a_lost_picture_is_made_again(tmp_path):
    render_scenes(tmp_path, train=2, val=0, test=1)
    before = files(tmp_path)
    (tmp_path / "images" / "train_00001.png").unlink()
    render_scenes(tmp_path, train=2, val=0, test=1)
    assert files(tmp_path) == before


def test_other_arguments_render_anew_and_touch_no_other_file(tmp_path):
    render_scenes(tmp_path, train=3, val=0, test=1)
    (tmp_path / "images" / "mine.png").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    render_scenes(tmp_path, train=1, val=1, test=1, image_size=48)
    source = read_source(tmp_path / "dataset_scenes.json")
    assert source.splits == {"train": 1, "val": 1, "test": 1}
    assert {Image.open(record.image).size for record in source.records} == {(48, 48)}
    assert (tmp_path / "images" / "mine.png").read_bytes() == b"mine"
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["dataset_scenes.json", "images/train_00000.png"])
def test_a_file_of_another_origin_is_never_overwritten(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_bytes(b'{"images": []}')
    with pytest.raises(DataError, match="another folder"):
        render_scenes(tmp_path, train=1, val=0, test=1)
    assert (tmp_path / name).read_bytes() == b'{"images": []}'


def test_arguments_out_of_range_are_named(tmp_path):
    for wrong in (
        {"train": -1},
        {"train": 0, "val": 0, "test": 0},
        {"seed": -1},
        {"image_size": 8},
        {"workers": 0},
        {"workers": -1},
    ):
        with pytest.raises(DataError):
            render_scenes(tmp_path / "new", **wrong)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        render_scenes(tmp_path / "file")


# ---- the scenes


def test_held_out_pairs_are_a_quarter_even_over_shapes_and_colours():
    assert Counter(shape for shape, _ in HELD_OUT) == dict.fromkeys(SHAPES, 2)
    assert Counter(colour for _, colour in HELD_OUT) == dict.fromkeys(COLOURS, 2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_held_out_pairs_are_never_seen_but_all_others_are(split):
    pairs = {(thing.shape, thing.colour) for scene, _ in scenes(split, 400) for thing in scene.objects}
    assert pairs == {(shape, colour) for shape in SHAPES for colour in COLOURS} - HELD_OUT


def test_each_test_picture_shows_a_held_out_pair(rendered):
    for scene, _ in scenes("test", 300):
        assert any((thing.shape, thing.colour) in HELD_OUT for thing in scene.objects)
    for image in json.loads((rendered / "dataset_scenes.json").read_text())["images"]:
        pairs = {(thing["shape"], thing["colour"]) for thing in image["scene"]["objects"]}
        assert bool(pairs & HELD_OUT) == (image["split"] == "test")


def test_objects_are_apart_inside_and_unlike():
    for scene, _ in scenes("test", 300):
        assert len({(thing.shape, thing.colour) for thing in scene.objects}) == len(scene.objects) in (2, 3)
        for i, a in enumerate(scene.objects):
            assert a.radius < min(a.x, a.y, 1 - a.x, 1 - a.y)
            for b in scene.objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
            assert a.radius < 0.12 if a.size == "small" else a.radius > 0.16


def test_the_picture_shows_the_objects_where_the_scene_says():
    big = SceneObject("circle", "red", "large", "plain", 0.25, 0.3, 0.18)
    little = SceneObject("square", "blue", "small", "plain", 0.8, 0.7, 0.1)
    pixels = np.asarray(draw_scene(Scene("grey", (big, little)), np.random.default_rng(0), 100)).astype(int)
    assert pixels[30, 25].argmax() == 0 and np.ptp(pixels[30, 25]) > 100
    assert pixels[70, 80].argmax() == 2 and np.ptp(pixels[70, 80]) > 100
    assert np.ptp(pixels[50, 50]) < 20
    coloured = np.ptp(pixels, axis=2) > 60
    assert coloured[:50, :50].sum() == pytest.approx(np.pi * 18**2, rel=0.15)
    assert coloured.sum() == coloured[:50, :50].sum() + coloured[55:85, 65:95].sum()


# ---- the captions: read back by a parser that shares no word list with the grammar

NOUNS = {"disc": "circle", "round shape": "circle", "box": "square", "plus sign": "cross", "hoop": "ring"}
NOUNS |= {"circle": "circle", "square": "square", "triangle": "triangle", "star": "star", "cross": "cross"}
NOUNS |= {"ring": "ring", "heart": "heart", "rhombus": "diamond", "diamond": "diamond"}
LOOKS = {"striped": "striped", "stripy": "striped", "dotted": "dotted", "spotted": "dotted", "plain": "plain"}
LOOKS |= {"solid": "plain", "checked": "checked", "chequered": "checked"}
LOOKS |= {"stripes": "striped", "dots": "dotted", "checks": "checked"}
MEASURES = dict.fromkeys(("small", "little", "tiny"), "small") | dict.fromkeys(("large", "big", "huge"), "large")
GROUNDS = {"grey": "grey", "beige": "beige", "cream": "beige", "brown": "brown", "navy": "navy", "dark blue": "navy"}
VIEWS = {"a meadow": "meadow", "grass and sky": "meadow", "a field of grass": "meadow", "a beach": "beach"}
VIEWS |= {"sand and sea": "beach", "the seaside": "beach", "a sunset": "sunset", "an evening sky": "sunset"}
VIEWS |= {"a sunset sky": "sunset", "snow": "snow", "a snowy field": "snow", "a winter landscape": "snow"}


def any_of(words):
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


THING = re.compile(
    rf"\b(?P<article>an?) (?:(?P<size>{any_of(MEASURES)}) )?(?:(?P<before>{any_of(LOOKS)}) )?"
    rf"(?P<colour>{any_of(COLOURS)}) (?P<noun>{any_of(NOUNS)})(?: with (?P<after>stripes|dots|checks))?\b"
)
GROUND = re.compile(rf"(?:on|against) a (?:plain )?(?P<name>{any_of(GROUNDS)}) (?:background|backdrop)")
VIEW = re.compile(rf"(?:in front of|with) (?P<name>{any_of(VIEWS)})(?: in the background| behind)?\b")
RELATION = re.compile(
    r"<(\d)>(?: is| that is| which is)? (?:(?:(?:to|on) the )?(left|right) of|"
    r"(above|over|higher than|below|under|beneath|larger than|bigger than|smaller than)) <(\d)>"
)
PLACE = (
    r"(?:(?:at|in) the (?:top|bottom|upper|lower) (?:left|right)|(?:on|at) the (?:left|right)(?: side)?|"
    r"(?:at|near) the (?:top|bottom)|in the (?:middle|centre))"
)
PLACED = re.compile(rf"<(\d)>(?: is)? ({PLACE})(?! of)")
PLACED_BEFORE = re.compile(rf"({PLACE}) there is <(\d)>")
EDGES = {"left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "upper": ("y", -1)}
EDGES |= {"bottom": ("y", 1), "lower": ("y", 1)}


def check(caption, scene):
    """Asserts that every word of a caption is understood and true of the scene; gives the facts it states."""
    named, facts = [], []

    def name(match):
        thing = next(t for t in scene.objects if (t.colour, t.shape) == (match["colour"], NOUNS[match["noun"]]))
        assert (match["article"] == "an") == (match[0].split()[1][0] in "aeiou")
        looks = [LOOKS[word] for word in (match["before"], match["after"]) if word]
        assert thing not in named and all(look == thing.texture for look in looks)
        assert match["size"] is None or MEASURES[match["size"]] == thing.size
        facts.extend(["object", *looks, *["size"] * bool(match["size"])])
        named.append(thing)
        return f"<{len(named) - 1}>"

    def ground(match):
        assert (GROUNDS | VIEWS)[match["name"]] == scene.background
        facts.append("background")
        return "{}"

    def relation(match):
        a, b = named[int(match[1])], named[int(match[4])]
        right, down = a.x - b.x, a.y - b.y
        word = (match[2] or match[3]).split()[0]
        if word in ("larger", "bigger", "smaller"):
            assert a.radius > 1.4 * b.radius if word != "smaller" else 1.4 * a.radius < b.radius
        else:
            along = {"left": -right, "right": right, "above": -down, "over": -down, "higher": -down}.get(word, down)
            assert along > 0.2 and along > 1.4 * min(abs(right), abs(down))
            assert along == max(abs(right), abs(down))
        facts.append(word)
        return f"<{match[1]}> <{match[4]}>"

    def place(thing, words):
        edges = [EDGES[word] for word in words.split() if word in EDGES]
        for axis, sign in edges:
            assert sign * (getattr(thing, axis) - 0.5) > 0.13
        if not edges:
            assert max(abs(thing.x - 0.5), abs(thing.y - 0.5)) < 0.1
        facts.append("place")

    rest = THING.sub(name, caption)
    rest = VIEW.sub(ground, GROUND.sub(ground, rest))
    rest = RELATION.sub(relation, rest)
    for match in PLACED_BEFORE.finditer(rest):
        place(named[int(match[2])], match[1])
    rest = PLACED_BEFORE.sub("<>", rest)
    for match in PLACED.finditer(rest):
        place(named[int(match[1])], match[2])
    rest = PLACED.sub("<>", rest)
    number = re.match(r"(?:there are )?(two|three) (?:shapes|objects|figures): ", rest)
    if number:
        assert {"two": 2, "three": 3}[number[1]] == len(named) == len(scene.objects)
    rest = re.sub(r"^(?:\{\}, )?(?:there is|we see|a (?:picture|drawing) of|a picture with) ", "", rest)
    rest = rest[number.end() :] if number else rest
    left = set(re.findall(r"\w+|[^\w\s<>{},]", re.sub(r"<\d?>", "", rest))) - {"and", "together", "with"}
    assert not left, (caption, left)
    return facts


def test_captions_are_true_and_say_enough():
    told = Counter()
    for split in ("train", "test"):
        for scene, rng in scenes(split, 500, seed=7):
            captions = describe(scene, rng)
            assert len(set(captions)) == 5
            for caption in captions:
                assert caption == caption.lower().strip() and "  " not in caption
                facts = check(caption, scene)
                alone = {"size", "background"} <= set(facts) and {"plain", "striped", "dotted", "checked"} & set(facts)
                assert facts.count("object") >= 2 or alone
                told.update(facts)
    assert {"left", "right", "above", "below", "larger", "smaller", "place", "background"} <= told.keys()
    assert min(told.values()) >= 20


def test_the_parser_sees_what_is_false():
    a = SceneObject("circle", "red", "large", "striped", 0.25, 0.3, 0.18)
    b = SceneObject("square", "blue", "small", "plain", 0.8, 0.4, 0.1)
    scene = Scene("grey", (a, b))
    check("a big red disc with stripes is to the left of a tiny blue box on a grey background", scene)
    for false in (
        "a red circle to the right of a blue square",
        "a red circle above a blue square",
        "a small red circle and a blue square",
        "a dotted red circle and a blue square",
        "a red circle and a blue square in front of snow",
        "a red circle on the right and a blue square on the right",
        "a blue square larger than a red circle",
        "a red circle at the top left and a blue square at the top right",
        "three shapes: a red circle and a blue square",
        "a red circle and a blue square nearby",
    ):
        with pytest.raises(AssertionError):
            check(false, scene)


def test_nothing_is_said_where_it_is_not_clear():
    a = SceneObject("circle", "red", "small", "plain", 0.4, 0.4, 0.1)
    b = SceneObject("square", "blue", "small", "plain", 0.61, 0.61, 0.1)
    captions = {text for seed in range(20) for text in describe(Scene("grey", (a, b)), np.random.default_rng(seed))}
    unclear = re.compile(r"left|right|top|bottom|above|below|over|under|beneath|higher|middle|centre|than")
    assert not [caption for caption in captions if unclear.search(caption)]
