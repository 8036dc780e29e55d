"""The report shows what was measured, chooses its examples fairly, and takes no text for HTML."""

import base64
import io
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from runs import files_no_larger_than

from cliplet.data.records import ImageText
from cliplet.evaluation import gallery as choice
from cliplet.evaluation.measure import assembled
from cliplet.evaluation.protocol import Benchmark, EvaluationResult, measurement
from cliplet.evaluation.report import rank_shares, report_evaluation, write_report

VOID = {"meta", "img", "wbr"}
HISTORY = [
    {
        "kind": "train",
        "step": step,
        "epoch": step / 10,
        "loss": 5 - step / 10,
        "logit_scale": 14 + step / 30,
        "images_per_second": 300,
        "data_wait": 0.04,
    }
    for step in range(0, 30, 5)
] + [
    {
        "kind": "validation",
        "step": 10 * epoch,
        "epoch": epoch,
        "image_to_text_R@1": 9 * epoch,
        "text_to_image_R@1": 7 * epoch,
    }
    for epoch in (1, 2, 3)
]


class Page(HTMLParser):
    """Checks that tags balance, and keeps tags, attributes and visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]


def measured(folder, pictures=4, captions=2, seed=0, texts=None, unit=None):
    """An evaluation of noise; its pictures are files of one colour each."""
    random = np.random.default_rng(seed)
    records = []
    for n in range(pictures):
        file = folder / f"{n}.png"
        Image.new("RGB", (32, 24), (40 * n % 256, 90, 200)).save(file)
        own = texts[n] if texts else tuple(f"caption {n}.{m}" for m in range(captions))
        records.append(ImageText(str(file), own, "test"))
    owners = np.repeat(np.arange(pictures), [len(record.captions) for record in records])
    image_ND = random.standard_normal((pictures, 8)) if unit is None else unit
    text_MD = image_ND[owners] + 0.8 * random.standard_normal((len(owners), image_ND.shape[1])) * (unit is None)
    image_ND, text_MD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_ND, text_MD))
    return assembled(records, image_ND.astype(np.float32), text_MD.astype(np.float32), {})


def written(folder, evaluation=None, **changes) -> tuple[str, Page]:
    evaluation = evaluation or measured(folder)
    write_report(folder / "out" / "report.html", evaluation, **({"title": "a run", "facts": {}} | changes))
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    text, page = written(
        tmp_path, history=HISTORY, facts={"data": "flickr8k"}, notes=["a note"], chance=4.85, config_text="a: 1\n"
    )
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert not page.all("script") and not page.all("link")
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "$" not in text, "no placeholder is left"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]
    for link in page.all("a"):
        assert any(tag.get("id") == link["href"].removeprefix("#") for tag in page.all("section"))


def test_text_is_never_markup(tmp_path):
    evil = '<script>alert("x")</script> & $title \' </style>'
    evaluation = measured(tmp_path, texts=[(evil,), ("b",), ("c",)], pictures=3)
    evaluation.records[0] = ImageText(str(tmp_path / 'a"><img onerror=x>.png'), (evil,), "test")
    evaluation.records[1] = ImageText(str(tmp_path / "<script>gone.png"), ("b",), "test")
    (tmp_path / "0.png").rename(tmp_path / 'a"><img onerror=x>.png')
    text, page = written(
        tmp_path,
        evaluation,
        title=evil,
        facts={evil: evil},
        notes=[evil],
        history=[{"kind": "warning", "step": 1, "message": evil}],
        baselines={evil: {}},
        config_text=evil,
    )
    assert "<script" not in text
    assert page.text.count(evil) >= 12, "title twice, fact twice, note, warning, baseline, configuration, captions"
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.all("img", alt='a"><img onerror=x>.png')


def test_the_table_holds_figures_intervals_baselines_and_what_guessing_gives(tmp_path):
    evaluation = measured(tmp_path)
    evaluation.metrics.update({"image_to_text_R@1": 36.94, "text_to_image_mean_rank": 1234.5, "text_to_image_mrr": 0.5})
    intervals = {"image_to_text_R@1": (30.06, 41.0), "text_to_image_mrr": (0.45, 0.55)}
    _, page = written(
        tmp_path, evaluation, intervals=intervals, baselines={"another": {"image_to_text_R@1": 12.34}}, notes=["split"]
    )
    cells = [line for line in page.text.splitlines() if line]
    start = cells.index("image→text")
    assert cells[start + 1 : start + 8] == ["R@1", "R@5", "R@10", "MRR", "median rank", "mean rank", "this model"]
    assert cells[start + 8 : start + 11] == ["36.9", "30.1–", "41.0"]
    assert cells[cells.index("another") + 1 :][:6] == ["12.3", "–", "–", "–", "–", "–"]
    guessing = cells[cells.index("guessing") + 1 :][:2]
    assert guessing == ["25.0", "89.3"], "1 - C(6, 5) / C(8, 5) of eight captions of which two are right"
    assert "1,234.5" in cells and "0.450–" in cells
    assert "Among 4 pictures" in page.text and "split" in page.text
    assert len(page.all("div", class_="ranges")) == 2, "with baselines, bars show the difference"


def test_absent_numbers_are_dashes_not_zeros(tmp_path):
    evaluation = measured(tmp_path)
    evaluation.metrics.clear()
    evaluation.metrics["image_to_text_R@1"] = math.nan
    _, page = written(tmp_path, evaluation)
    assert page.text.splitlines().count("–") == 12
    assert "rsum" not in page.text and "nan" not in page.text.lower()


def test_curves_lie_where_their_numbers_say(tmp_path):
    text, page = written(tmp_path, history=HISTORY, chance=4.85)
    curves = page.all("polyline")
    assert len(curves) == 4, "loss, two recalls, logit scale"
    loss = [tuple(map(float, pair.split(","))) for pair in curves[0]["points"].split()]
    assert len(loss) == 6
    across, down = zip(*loss, strict=True)
    assert np.allclose(np.diff(across), across[1] - across[0], atol=0.11), "even steps are evenly apart"
    assert list(down) == sorted(down), "a falling loss runs down the page"
    level = float(page.all("line", class_="level")[0]["y1"])
    expected = down[0] + (5 - 4.85) * (down[1] - down[0]) / 0.5  # the loss falls from 5 to 4.5 in the first stretch
    assert level == pytest.approx(expected, abs=0.2)
    assert "chance 4.85" in text
    assert "300 pictures a second" in page.text and "4%" in page.text


def test_no_chance_no_level(tmp_path):
    for chance in (None, math.inf):
        _, page = written(tmp_path, history=HISTORY, chance=chance)
        assert not page.all("line", class_="level")


def test_nothing_to_show_leaves_its_section_out(tmp_path):
    _, page = written(tmp_path)
    assert not page.all("polyline")
    assert not {"Training", "Facts", "Configuration", "Warnings"} & set(page.text.splitlines())
    _, page = written(tmp_path, history=[{"kind": "train", "step": 1, "loss": math.nan}])
    assert not page.all("polyline")
    _, page = written(tmp_path, history=[HISTORY[0]])
    assert len(page.all("polyline")) == 2, "one point is drawn too"


def test_a_step_done_again_after_a_resume_counts_once(tmp_path):
    _, page = written(tmp_path, history=[*HISTORY, HISTORY[0] | {"loss": 4.9}])
    assert len(page.all("polyline")[0]["points"].split()) == 6


def test_a_run_has_its_whole_configuration_and_its_temperature(tmp_path):
    evaluation = replace(measured(tmp_path), logit_scale=20.0)
    _, page = written(tmp_path, evaluation, config_text="train:\n  epochs: 3\n")
    assert "train:\n  epochs: 3\n" in page.text and page.all("details")
    assert "0.0500" in page.text and f"{math.exp(2):.1f} times" in page.text


def test_an_unreadable_picture_leaves_its_reason(tmp_path):
    evaluation = measured(tmp_path)
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"not a picture")
    _, page = written(tmp_path, evaluation)
    assert page.all("span", class_="missing")
    assert "0.png: no such file" in page.text and "1.png: not a picture" in page.text


def test_pictures_in_a_tar_are_shown_under_their_own_names(tmp_path):
    import tarfile

    from cliplet.data.places import tar_member

    evaluation = measured(tmp_path, pictures=2)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "0.png", "inside.png")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        member = tar.getmember("inside.png")
    place = tar_member(str(tmp_path / "shard.tar"), "inside.png", member.offset_data, member.size)
    gone = tar_member(str(tmp_path / "shard.tar"), "beyond.png", 10**6, 100)
    evaluation.records[:] = [ImageText(place, ("a", "b"), ""), ImageText(gone, ("c", "d"), "")]
    _, page = written(tmp_path, evaluation)
    assert page.all("img", alt="inside.png") and "inside.png" in page.text.splitlines()
    assert any("beyond.png" in line and "offset" not in line for line in page.text.splitlines())


def test_half_a_character_does_not_cost_the_report(tmp_path):
    evaluation = measured(tmp_path, texts=[("half \ud800 character",), ("b",), ("c",)], pictures=3)
    _, page = written(tmp_path, evaluation)
    assert "half" in page.text and "character" in page.text


def test_a_failed_write_leaves_the_old_page(tmp_path):
    old, _ = written(tmp_path, title="old")

    with files_no_larger_than(100), pytest.raises(OSError, match="too large"):
        written(tmp_path, title="new")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == old
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_the_smallest_sets_have_a_page(tmp_path, pictures):
    _, page = written(tmp_path, measured(tmp_path, pictures, captions=1))
    assert f"Among {pictures} pictures" in page.text and len(page.all("table", class_="heat compact")) == 1


def test_thumbnails_are_small_pictures_of_the_right_file(tmp_path):
    evaluation = measured(tmp_path, pictures=3)
    Image.new("RGB", (640, 480), "red").save(tmp_path / "0.png")
    _, page = written(tmp_path, evaluation)
    data = [image["src"].split(",", 1)[1] for image in page.all("img", alt="0.png")]
    sizes = {Image.open(io.BytesIO(base64.b64decode(one))).size for one in data}
    assert sizes == {(192, 144), (96, 72)}
    red, green, blue = Image.open(io.BytesIO(base64.b64decode(data[-1]))).getpixel((40, 40))
    assert red > 240 and green < 15 and blue < 15


def test_a_query_shows_its_best_answers_by_brute_force(tmp_path):
    found = measured(tmp_path, pictures=30, captions=3, seed=3)
    cosine = found.text_MD.astype(np.float64) @ found.image_ND.T.astype(np.float64)
    for caption in range(0, 90, 7):
        query = choice.text_query(found, caption, k=5)
        best = np.argsort(-cosine[caption])
        own = found.caption_image_M[caption]
        assert [answer.picture for answer in query.answers[:5]] == [found.records[row].image for row in best[:5]]
        place = list(best).index(own) + 1
        rights = [
            n + 1 if answer.rank is None else answer.rank for n, answer in enumerate(query.answers) if answer.right
        ]
        assert rights == [place] and len(query.answers) == 5 + (place > 5)
        assert (f"place {place}" in query.note) == (place > 5)
    for picture in range(30):
        query = choice.picture_query(found, picture, k=4)
        best = np.argsort(-cosine[:, picture])
        assert [answer.text for answer in query.answers[:4]] == [found.captions[row] for row in best[:4]]
        assert [answer.right for answer in query.answers[:4]] == [
            found.caption_image_M[row] == picture for row in best[:4]
        ]
        assert query.answers[-1].right or any(answer.right for answer in query.answers)


def test_equal_scores_are_shown_against_the_model_as_they_are_counted(tmp_path):
    found = measured(tmp_path, pictures=4, captions=2, unit=np.ones((4, 8)))
    query = choice.text_query(found, 0, k=3)
    assert [answer.right for answer in query.answers] == [False, False, False, True]
    assert query.answers[-1].rank == 4
    query = choice.picture_query(found, 0, k=3)
    assert [answer.right for answer in query.answers] == [False, False, False, True]
    assert query.answers[-1].rank == 7, "six captions of others score as high"
    _, page = written(tmp_path, found)
    assert "Captions surest of their picture" not in page.text and "Captions that miss" in page.text


def test_surest_and_worst_by_brute_force(tmp_path, monkeypatch):
    found = measured(tmp_path, pictures=25, captions=2, seed=5)
    cosine = found.text_MD.astype(np.float64) @ found.image_ND.T.astype(np.float64)
    own = found.caption_image_M
    leads = {}
    for caption in range(50):
        lead = cosine[caption, own[caption]] - np.delete(cosine[caption], own[caption]).max()
        leads[own[caption]] = max(leads.get(own[caption], (-9, 0)), (lead, caption))
    expected = [found.captions[caption] for _, caption in sorted(leads.values(), reverse=True)[:3]]
    monkeypatch.setattr(choice, "BLOCK_SCORES", 60)
    surest = choice.surest_texts(found, 3)
    assert [query.heading for query in surest] == expected
    assert all(query.answers[0].right for query in surest)
    assert f"{max(leads.values())[0]:.3f}" in surest[0].note
    worst = choice.worst_texts(found, 3)
    assert all(query.answers[-1].right and query.answers[-1].rank > 4 for query in worst)
    ranks = found.text_rank_M.reshape(25, 2).max(axis=1)
    assert found.captions.index(worst[0].heading) // 2 == int(np.argmax(ranks))
    assert len({found.captions.index(query.heading) // 2 for query in worst}) == 3, "one caption a picture"
    best = choice.surest_pictures(found, 2)
    lead_N = [cosine[own == n, n].max() - cosine[own != n, n].max() for n in range(25)]
    assert [query.heading for query in best] == [f"{n}.png" for n in np.argsort(lead_N)[::-1][:2]]
    assert choice.worst_pictures(found, 1)[0].heading == f"{int(np.argmax(found.image_rank_N))}.png"


def test_pairs_of_the_matrix_belong_together(tmp_path):
    found = measured(tmp_path, pictures=30, captions=3)
    pictures, captions, cosine = choice.some_pairs(found, 12)
    assert pictures.tolist() == list(range(0, 24, 2)) and captions.tolist() == [6 * n for n in range(12)]
    assert cosine[3, 5] == pytest.approx(float(found.text_MD[18] @ found.image_ND[10]), abs=1e-6)


def test_a_large_set_is_not_multiplied_as_a_whole(tmp_path):
    """30,000 pictures with 150,000 captions would be 18 GB of scores."""
    import resource

    random = np.random.default_rng(0)
    image_ND = random.standard_normal((30_000, 8)).astype(np.float32)
    image_ND /= np.linalg.norm(image_ND, axis=1, keepdims=True)
    owners = np.repeat(np.arange(30_000), 5)
    found = measured(tmp_path)
    records = [ImageText("gone.png", ("a", "b", "c", "d", "e"), "")] * 30_000
    ranks = {"image_rank_N": random.integers(1, 99_999, 30_000), "text_rank_M": np.ones(150_000, np.int64)}
    features = {"image_ND": image_ND, "text_MD": image_ND[owners], "caption_image_M": owners}
    large = type(found)(found.metrics, records, ["a", "b", "c", "d", "e"] * 30_000, **features, **ranks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    written(tmp_path, large)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 * 1024, "kilobytes"


def test_shares_of_ranks_hold_every_query():
    shares = rank_shares(np.array([1, 1, 2, 5, 6, 11, 50, 60, 100, 7]), 100)
    assert shares == pytest.approx({"1": 20, "≤5": 20, "≤10": 20, "≤50": 20, "≤100": 20})
    many = rank_shares(np.array([1, 10_000, 10_001, 99_999]), 150_000)
    assert many["≤10k"] == 25 and many[">10k"] == 50 and sum(many.values()) == pytest.approx(100)
    assert list(rank_shares(np.array([1]), 1)) == ["1"]


def test_an_evaluation_with_baselines_folds_and_a_doubtful_split(tmp_path):
    found = measured(tmp_path, pictures=6)
    own, other = (measurement(name, found, resamples=100, folds=2) for name in ("runs/mine", "open_clip:other"))
    result = EvaluationResult(
        data="flickr8k",
        split="test",
        left_out=3,
        problems=[],
        resamples=100,
        seed=0,
        benchmark=Benchmark(name="", claimed="flickr8k-1k", is_it=False, note="this is no split that is known"),
        chance={},
        notes=["Only 6 pictures"],
        statistics={},
        logit_scale=None,
        baselines=[other],
        **own.model_dump(),
    )
    report_evaluation(tmp_path / "out" / "report.html", result, found, "cliplet evaluate runs/mine flickr8k")
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    lines = text.splitlines()
    assert lines.count("open_clip:other") == 4, "in both tables and both charts"
    low, high = other.intervals["image_to_text_R@1"]
    start = lines.index("open_clip:other")
    assert [line for line in lines[start:] if line][2:4] == [f"{low:.1f}–", f"{high:.1f}"]
    assert "this is no split that is known" in text and "Only 6 pictures" in text
    assert "Left out, for they could not be used: 3 records" in text
    assert f"Mean of 2 folds of 3 pictures: image→text R@1 {own.folds.metrics['image_to_text_R@1']:.1f}" in text
    assert "cliplet evaluate runs/mine flickr8k" in text and "100 resamples, seed 0" in text
