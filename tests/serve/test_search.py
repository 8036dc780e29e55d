"""Searches over HTTP: the same answers as a library's own, for texts, pictures, sums, captions and vectors."""

import json
from urllib.parse import quote

import numpy as np
import pytest

from cliplet.errors import ConfigError
from cliplet.library.library import Library
from cliplet.library.query import Query, Term

PICTURES = 24


def same(answer, hits):
    """Whether an answer is what the library itself found."""
    assert [hit["id"] for hit in answer["hits"]] == [str(hit.id) for hit in hits]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in hits], atol=2e-3)
    assert [hit["path"] for hit in answer["hits"]] == [hit.path for hit in hits]
    assert answer["nothing_fits"] == hits.nothing_fits and answer["total"] == hits.total
    return True


def test_the_libraries_are_told(service, library):
    (told,) = service.get("/api/libraries")
    assert told["name"] == "photos" and told["pictures"] == PICTURES and told["captions"] is True
    assert told["dims"] == 16 and told["engine"] == library.identity.engine
    assert {"name": "width", "type": "int"} in told["columns"] and {"name": "taken", "type": "text"} in told["columns"]
    assert len(told["examples"]) >= 3 and all(isinstance(example, str) for example in told["examples"])


def test_a_text_finds_what_the_library_finds(service, library):
    answer = service.get("/api/photos/search?q=a+red+boat&k=7")
    assert same(answer, library.search("a red boat", 7)) and len(answer["hits"]) == 7
    first = answer["hits"][0]
    record = library.picture(int(first["id"]))
    assert (first["name"], first["width"], first["height"]) == (record.name, record.width, record.height)
    assert 0 <= first["fit"] <= 100 and first["copies"] == 0 and first["caption"] is None
    assert 0 < answer["milliseconds"] < 20_000


def test_pages_follow_each_other(service, library):
    whole = service.get("/api/photos/search?q=noise&k=10")["hits"]
    parts = [service.get(f"/api/photos/search?q=noise&k=5&offset={offset}")["hits"] for offset in (0, 5)]
    assert parts[0] + parts[1] == whole
    assert service.get("/api/photos/search?q=noise&k=5&offset=1000")["hits"] == []


def test_filters_and_captions_are_searched(service, library):
    where = "width > 70 and format = 'png'"
    answer = service.get(f"/api/photos/search?q=noise&where={quote(where)}")
    assert same(answer, library.search("noise", where=where)) and answer["total"] == 5
    answer = service.get("/api/photos/search?q=a+picture+of+003&by=captions&k=3")
    assert same(answer, library.search("a picture of 003", 3, by="captions"))
    assert answer["hits"][0]["caption"] == "a picture of 003" and answer["hits"][0]["name"] == "003.png"


def test_terms_are_added_up(service, library):
    id = library.search("noise", 1)[0].id
    terms = [{"text": "a red boat"}, {"weight": 0.5, "id": str(id)}, {"weight": -0.7, "text": "snow"}]
    answer = service.post("/api/photos/search", {"terms": terms, "k": 5, "where": "width < 85"})
    query = Query((Term(1.0, "text", "a red boat"), Term(0.5, "id", id), Term(-0.7, "text", "snow")))
    assert same(answer, library.search(query, 5, where="width < 85"))


def test_a_picture_that_is_sent_finds_itself(service, photos, library):
    data = (photos / "004.jpg").read_bytes()
    status, _, content = service.send("/api/photos/search/picture?k=3", data)
    answer = json.loads(content)
    assert status == 200 and answer["hits"][0]["name"] == "004.jpg" and answer["hits"][0]["score"] > 0.999
    assert same(answer, library.search(Query.of_picture(data), 3))


def test_an_upload_is_part_of_queries(service, photos, library):
    data = (photos / "006.png").read_bytes()
    status, _, content = service.send("/api/photos/uploads", data)
    upload = json.loads(content)
    assert status == 200 and (upload["width"], upload["height"]) == (70, 48)
    terms = [{"upload": upload["upload"]}, {"text": "a red boat", "weight": -0.3}]
    answer = service.post("/api/photos/search", {"terms": terms})
    query = Query((Term(1.0, "picture", data), Term(-0.3, "text", "a red boat")))
    assert same(answer, library.search(query))


def test_captions_of_a_picture_and_of_a_text(service, library, photos):
    upload = json.loads(service.send("/api/photos/uploads", (photos / "002.webp").read_bytes())[2])["upload"]
    found = service.post("/api/photos/captions", {"terms": [{"upload": upload}], "k": 4, "offset": 1})["captions"]
    expected = library.captions(Query.of_picture((photos / "002.webp").read_bytes()), 4, offset=1)
    assert [(one["text"], one["id"], one["path"]) for one in found] == [
        (one.text, str(one.id), one.path) for one in expected
    ]
    (best,) = service.post("/api/photos/captions", {"terms": [{"text": "a picture of 011"}], "k": 1})["captions"]
    assert best["text"] == "a picture of 011" and best["score"] > 0.999 and best["path"].endswith("011.webp")


def test_how_well_texts_fit_a_picture(service, library):
    picture = library.newest(1)[0]
    told = service.get(f"/api/photos/pictures/{picture.id}/scores?q=a+red+boat&q=noise")
    expected = library.scores(picture.id, ["a red boat", "noise", *picture.captions])
    assert [one["text"] for one in told["texts"]] == ["a red boat", "noise"]
    assert [one["text"] for one in told["captions"]] == list(picture.captions) and len(picture.captions) == 2
    scores = [(one["score"], one["fit"]) for one in told["texts"] + told["captions"]]
    np.testing.assert_allclose(scores, expected, atol=0.06)  # fits are rounded


def test_a_record_has_all_columns_and_the_gallery_is_newest_first(service, library):
    newest = service.get("/api/photos/pictures?k=5&offset=2")
    expected = library.newest(5, offset=2)
    assert [one["id"] for one in newest["pictures"]] == [str(one.id) for one in expected]
    assert newest["total"] == PICTURES
    record = service.get(f"/api/photos/pictures/{expected[0].id}")
    assert record == newest["pictures"][0] and record["captions"] == list(expected[0].captions)
    for name in ("path", "name", "folder", "format", "bytes", "width", "taken", "year", "latitude", "camera", "added"):
        assert record[name] == getattr(expected[0], name)
    filtered = service.get("/api/photos/pictures?where=" + quote("format = 'webp'"))
    assert filtered["total"] == 8 == len(filtered["pictures"])


def test_vectors_are_the_models_own(service, library, photos):
    texts = ["a red boat", "", "two dogs run in the deep snow"]
    told = service.post("/api/photos/embed/text", {"texts": texts})
    assert told["dims"] == 16
    np.testing.assert_allclose(told["embeddings"], library.encoder.encode_text(texts), atol=1e-5)
    many = [f"number {number}" for number in range(100)]
    told = service.post("/api/photos/embed/text", {"texts": many})
    np.testing.assert_allclose(told["embeddings"], library.encoder.encode_text(many), atol=1e-4)
    data = (photos / "000.png").read_bytes()
    told = json.loads(service.send("/api/photos/embed/image", data)[2])
    np.testing.assert_allclose(told["embeddings"], library.encoder.encode_image([data]), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/photos/search", "q: Field required"),
        ("/api/photos/search?q=a&k=0", "k: Input should be greater than or equal to 1"),
        ("/api/photos/search?q=a&k=1001", "k: "),
        ("/api/photos/search?q=a&k=many", "k: "),
        ("/api/photos/search?q=a&offset=-1", "offset: "),
        ("/api/photos/search?q=a&offset=100000000000000000000", "offset: "),
        ("/api/photos/search?q=a&by=names", "by: "),
        ("/api/photos/search?q=" + "a" * 2001, "q: String should have at most 2000 characters"),
        ("/api/photos/search?q=%20", "a text is empty"),
        ("/api/photos/search?q=a&where=widht+%3E+3", "widht"),
        ("/api/photos/search?q=a&where=" + quote("1=1; DROP TABLE pictures"), ""),
        ("/api/photos/search?q=a&where=" + quote("name = 'x' UNION SELECT * FROM meta"), ""),
        ("/api/photos/search?q=a&where=" + "a" * 4001, "where: "),
        ("/api/photos/pictures?where=" + quote("id = 1 or 1 = 1"), ""),
        ("/api/photos/pictures/1/scores?" + "&".join(["q=a"] * 17), "q: "),
        ("/api/photos/pictures/1/scores?q=", "a text is empty"),
    ],
)
def test_what_cannot_be_asked_is_said(service, path, says):
    status, error, _ = service.refused("GET", path)
    assert status == 422 and says in error


def test_what_is_wrong_with_a_filter_is_said_to_be_about_it(service, photos, monkeypatch):
    """The page has to know where to show it."""

    def about(method, path, body=None, headers=None):
        status, _, content = service.ask(method, path, body, headers)
        assert status == 422, content
        return json.loads(content).get("about")

    for where in ("widht+%3E+3", "width+%3E", "(", "a" * 4001):
        assert about("GET", f"/api/photos/search?q=a&where={where}") == "where"
        assert about("GET", f"/api/photos/pictures?where={where}") == "where"
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        assert about("POST", f"/api/photos/search/picture?where={where}", b"", form) == "where"
    assert about("POST", "/api/photos/search", {"terms": [{"text": "a"}], "where": "widht > 3"}) == "where"
    assert about("POST", "/api/photos/search", {"terms": [{"text": "a"}], "where": 3}) == "where"
    assert about("GET", "/api/photos/search?q=a&k=0") is None
    assert about("GET", "/api/photos/search?q=a&k=0&where=" + "a" * 4001) is None  # not that alone
    assert about("GET", "/api/photos/search?q=%20&where=width+%3E+3") is None

    def late(*words, **options):
        raise ConfigError("the filter takes too long")

    monkeypatch.setattr(Library, "search", late)
    assert about("GET", "/api/photos/search?q=a&where=width+%3E+3") == "where"
    assert about("GET", "/api/photos/search?q=a") is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"terms": []}, "terms: "),
        ({"terms": [{"text": "a"}] * 17}, "terms: "),
        ({"terms": [{}]}, "exactly one of text, id and upload"),
        ({"terms": [{"text": "a", "id": "1"}]}, "exactly one of text, id and upload"),
        ({"terms": [{"text": "a", "weight": 1e9}]}, "weight: "),
        ({"terms": [{"text": "a", "weight": 0}]}, "all weights of the query are 0"),
        ({"terms": [{"text": "a"}, {"text": "a", "weight": -1}]}, "cancel"),
        ({"terms": [{"text": "a"}], "unknown": 1}, "unknown: "),
        ({"terms": [{"id": "999999"}]}, "no picture 999999"),
        ({"terms": [{"id": "x" * 100}]}, "id: "),
        ({}, "terms: Field required"),
        ([], "the body: "),
    ],
)
def test_terms_that_cannot_be_are_refused(service, body, says):
    status, error, _ = service.refused("POST", "/api/photos/search", body)
    assert status == 422 and says in error


def test_bodies_that_are_no_json_are_refused(service):
    kind = {"Content-Type": "application/json"}
    for body in (b"{", b'{"terms": [{"text": "a", "weight": NaN}]}', b"[" * 100_000, b"\xff\xfe", b'"\\ud800"'):
        status, error, _ = service.refused("POST", "/api/photos/search", body, kind)
        assert status in (400, 422) and error
    status, *_ = service.refused("POST", "/api/photos/embed/text", {"texts": ["a"] * 257})
    assert status == 422
    status, *_ = service.refused("POST", "/api/photos/embed/text", {"texts": ["a" * 2001]})
    assert status == 422
    half_a_letter = b'{"terms": [{"text": "a \\ud83d"}]}'
    assert service.refused("POST", "/api/photos/search", half_a_letter, kind)[0] == 422


def test_uploads_of_one_library_are_not_anothers_nor_forever(service):
    status, error, hint = service.refused("POST", "/api/photos/search", {"terms": [{"upload": "unknown"}]})
    assert status == 404 and "not remembered" in error and "again" in hint
