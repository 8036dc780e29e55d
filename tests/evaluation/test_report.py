"""The page stands alone, shows what it is given, and takes no text for HTML."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cliplet.evaluation.report import Series, binned, line_chart, ticks, write_report

VOID = {"meta", "img", "link", "br", "hr", "input"}
METRICS = {
    "image_to_text_R@1": 36.94,
    "image_to_text_R@5": 66.2,
    "image_to_text_R@10": 78.4,
    "image_to_text_median_rank": 3.0,
    "image_to_text_mean_rank": 11.26,
    "text_to_image_R@1": 27.8,
    "text_to_image_R@5": 57.5,
    "text_to_image_R@10": 70.9,
    "text_to_image_median_rank": 4.0,
    "text_to_image_mean_rank": 1234.5,
    "rsum": 337.7,
    "images": 1000,
    "captions": 5000,
}
HISTORY = [
    {
        "kind": "train",
        "step": step,
        "epoch": step / 10,
        "loss": 5 - step / 10,
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


@pytest.fixture
def pictures(tmp_path):
    files = []
    for name, colour, size in (("red.jpg", "red", (640, 480)), ("blue.png", "blue", (20, 30))):
        Image.new("RGB", size, colour).save(tmp_path / name)
        files.append(tmp_path / name)
    return files


def written(tmp_path, **changes) -> tuple[str, Page]:
    given = {"title": "a run", "metrics": METRICS, "history": HISTORY, "queries": [], "facts": {}} | changes
    write_report(tmp_path / "out" / "report.html", **given)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_whole_and_loads_nothing(tmp_path, pictures):
    queries = [("a red wall", [(pictures[0], 0.4, True), (pictures[1], 0.3, False)])]
    text, page = written(tmp_path, queries=queries, facts={"data": "flickr8k"}, notes=["a note"], chance=4.85)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert not page.all("script") and not page.all("link")
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "$" not in text, "no placeholder is left"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_text_is_never_markup(tmp_path, pictures):
    evil = '<script>alert("x")</script> & $title \' </style>'
    odd = tmp_path / 'a"><img onerror=x>.jpg'
    Image.new("RGB", (9, 9)).save(odd)
    text, page = written(
        tmp_path,
        title=evil,
        queries=[(evil, [(odd, 0.5, False), (tmp_path / "<script>gone", 0.1, False)])],
        facts={evil: evil},
        notes=[evil],
        history=[{"kind": "warning", "step": 1, "message": evil}],
    )
    assert "<script" not in text
    assert page.text.count(evil) == 7, "title twice, query, fact twice, note, warning"
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.all("img", alt=odd.name)


def test_the_recall_table_holds_both_ways_and_what_guessing_gives(tmp_path):
    _, page = written(tmp_path)
    cells = [line for line in page.text.splitlines() if line]
    start = cells.index("image → text")
    assert cells[start : start + 6] == ["image → text", "36.9", "66.2", "78.4", "3.0", "11.3"]
    assert cells[start + 6 : start + 12] == ["text → image", "27.8", "57.5", "70.9", "4.0", "1,234.5"]
    assert "1,000 pictures and 5,000 captions" in page.text
    assert "R@1 of 0.10" in page.text


def test_absent_numbers_are_dashes_not_zeros(tmp_path):
    _, page = written(tmp_path, metrics={"image_to_text_R@1": math.nan})
    assert page.text.splitlines().count("–") == 10
    assert "rsum" not in page.text and "nan" not in page.text.lower()


def test_curves_lie_where_their_numbers_say(tmp_path):
    text, page = written(tmp_path, chance=4.85)
    curves = page.all("polyline")
    assert len(curves) == 3
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
        _, page = written(tmp_path, chance=chance)
        assert not page.all("line", class_="level")


def test_nothing_to_show_leaves_its_section_out(tmp_path):
    _, page = written(tmp_path, history=[], queries=[], facts={}, notes=[])
    assert not page.all("svg") and not page.all("h2")
    _, page = written(tmp_path, history=[HISTORY[0] | {"loss": math.nan}])
    assert not page.all("polyline")
    _, page = written(tmp_path, history=[HISTORY[0]])
    assert len(page.all("polyline")) == 1, "one point is drawn too"
    _, page = written(tmp_path, queries=[("no answers", [])])
    assert "no answers" in page.text


def test_a_step_done_again_after_a_resume_counts_once(tmp_path):
    again = [*HISTORY, HISTORY[0] | {"loss": 4.9}]
    _, page = written(tmp_path, history=again)
    assert len(page.all("polyline")[0]["points"].split()) == 6


def test_the_right_answer_is_marked_by_a_word_and_a_miss_is_said(tmp_path, pictures):
    queries = [
        ("hit", [(pictures[0], 0.41, False), (pictures[1], 0.3, True)]),
        ("miss", [(pictures[0], 0.4, False)]),
    ]
    text, page = written(tmp_path, queries=queries)
    items = re.findall(r"<li.*?</li>", text)
    assert ["✓ right" in item for item in items] == [False, True, False]
    assert len(page.all("li", class_="right")) == 1
    hit, miss = re.findall(r"<article>.*?</article>", text, re.DOTALL)
    assert "not among them" in miss and "not among them" not in hit
    assert "0.410" in hit


def test_thumbnails_are_small_pictures_of_the_right_file(tmp_path, pictures):
    _, page = written(tmp_path, queries=[("a", [(pictures[0], 0.4, True)])])
    data = page.all("img", alt="red.jpg")[0]["src"].split(",", 1)[1]
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (224, 168)
    red, green, blue = image.getpixel((100, 100))
    assert red > 240 and green < 15 and blue < 15


def test_an_unreadable_picture_leaves_its_reason(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    answers = [(tmp_path / "gone.jpg", 0.4, True), (tmp_path / "bad.jpg", 0.3, False)]
    _, page = written(tmp_path, queries=[("a", answers)])
    assert len(page.all("span", class_="missing")) == 2
    assert "gone.jpg: no such file" in page.text and "bad.jpg: not a picture" in page.text


def test_half_a_character_does_not_cost_the_report(tmp_path):
    _, page = written(tmp_path, notes=["half \ud800 character"])
    assert "character" in page.text


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    old, _ = written(tmp_path, title="old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path, title="new")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == old
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2.5, 5, 7.5, 10]),
        (0.03, 0.19, [0, 0.05, 0.1, 0.15, 0.2]),
        (7, 7, [6.5, 6.75, 7, 7.25, 7.5]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize("low", [-3.7, 0, 1e-6, 12345.6])
@pytest.mark.parametrize("length", [1e-5, 0.3, 1, 99, 1e7])
def test_ticks_span_any_values(low, length):
    found = ticks(low, low + length, 6)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + length * 1e-6 and found[-1] >= low + length * (1 - 1e-6)


def test_long_curves_are_drawn_as_means():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    short = binned(points, 300)
    assert len(short) <= 300
    assert all(0.4 < y < 0.6 for _, y in short)
    assert binned(points[:300], 300) == points[:300]
    assert line_chart([Series("none", [])], "t", "x") == ""
