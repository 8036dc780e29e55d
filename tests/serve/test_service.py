"""The service as a whole: errors, addresses, pages, its description, its counters, and what others write meanwhile."""

import json
import logging
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cliplet.errors import ConfigError, DataError
from cliplet.library.library import Library
from cliplet.serve import pages
from cliplet.serve.app import create_app
from cliplet.serve.refusals import Refused
from cliplet.serve.settings import Settings
from cliplet.serve.shown import printable
from cliplet.serve.uploads import Receiving, Upload, Uploads

TRICKS = [
    "/api/photos/pictures/..%2f..%2fetc%2fpasswd/original",
    "/api/photos/pictures/../../etc/passwd",
    "/api/photos/pictures/%2e%2e/original",
    "/api/photos/pictures/1%00/original",
    "/api/photos/pictures/-1/original",
    "/api/photos/pictures/1.0/thumbnail",
    "/api/photos/pictures/%EF%BC%91/thumbnail",
    "/api/photos/pictures/99999999999999999999/thumbnail",
    "/api/photos/pictures/999999999999999999/thumbnail",
    "/api/photos/pictures/0",
    "/api/photos/pictures/1' OR '1'='1",
    "/api/photos/pictures/%2Fetc%2Fpasswd/original",
    "/api/../photos/pictures",
    "/api/%2e%2e/pictures",
    "/api/..%2fphotos/pictures",
    "/api//pictures",
    "/api/photos%00/pictures",
    "/api/PHOTOS/pictures",
    "/api/other/search?q=a",
    "/static/../app.py",
    "/static/..%2fapp.py",
    "/static/%2e%2e/app.py",
    "/static//etc/passwd",
    "/static/%2Fetc%2Fpasswd",
    "/static/",
    "/static",
    "/static/.",
    "/static/app.js%00.html",
    "/static/..\\app.py",
    "//etc/passwd",
    "/etc/passwd",
    "/..",
    "/%ff%fe",
    "/library.json",
    "/records.sqlite",
]


@pytest.mark.parametrize("path", TRICKS)
def test_there_is_nothing_at_other_addresses(service, path):
    with service.bare() as connection:
        line = f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.say(line.encode("latin-1"))
        answer = connection.hear()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404"), head
    assert set(json.loads(body)) == {"error", "hint"} and b"root:" not in answer and b"Traceback" not in answer


def test_wrong_methods_and_names_are_told(service):
    assert service.refused("DELETE", "/api/photos/pictures/1")[0] == 405
    assert service.ask("PUT", "/api/libraries")[1]["allow"] == "GET"
    assert service.ask("PUT", "/api/photos/search")[1]["allow"] == "GET, POST"
    status, _, hint = service.refused("GET", "/api/photoz/search?q=a")
    assert status == 404 and "photos" in hint


def test_an_error_that_nobody_foresaw_is_a_number_to_the_client(service, monkeypatch):
    def broken(*words, **options):
        raise RuntimeError("a secret of the house")

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(handler.format(record))
    logging.getLogger("cliplet.serve").addHandler(handler)
    monkeypatch.setattr(Library, "search", broken)
    try:
        status, error, hint = service.refused("GET", "/api/photos/search?q=what+people+look+for")
    finally:
        logging.getLogger("cliplet.serve").removeHandler(handler)
    assert status == 500 and "secret" not in error + hint
    number = re.search(r"[0-9a-f]{12}", hint)[0]
    assert len(said) == 1 and number in said[0] and "a secret of the house" in said[0] and "look" not in said[0]


def test_the_log_holds_neither_queries_nor_tokens(running, library):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("cliplet.serve")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with running({"photos": library}, log=True, token="t" * 20) as client:
            client.get("/api/photos/search?q=secret")
    finally:
        log.removeHandler(handler)
    (line,) = said
    assert "GET '/api/photos/search' 200" in line and "secret" not in line and "ttt" not in line


class Places(HTMLParser):
    """What a page would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.places = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.places += [value for name, value in attributes if name in ("src", "href")]


def test_the_description_is_complete_and_loads_nothing(service):
    described = service.get("/openapi.json")
    assert described["openapi"].startswith("3.")
    operations = [one for path in described["paths"].values() for one in path.values()]
    assert len(operations) >= 16
    for operation in operations:
        assert operation["description"] and "422" in operation["responses"]
        refusal = operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"]
        assert refusal.endswith("/Problem")
        for parameter in operation.get("parameters", []):
            assert parameter["in"] == "path" or parameter["description"]
    for name in ("Answer", "SearchRequest", "SearchTerm", "HitAnswer", "Vectors"):
        assert all(one["description"] for one in described["components"]["schemas"][name]["properties"].values())
    assert "HTTPValidationError" not in described["components"]["schemas"]
    assert described["components"]["schemas"]["Problem"]["properties"]["about"]["description"]
    status, headers, content = service.ask("GET", "/docs")
    page, text = Places(), content.decode()
    page.feed(text)
    assert status == 200 and headers["content-type"].startswith("text/html") and "script" not in page.tags
    assert page.places == ["/openapi.json"] and "'sha256-" in headers["content-security-policy"]
    assert "/api/{library}/search" in text and "What is looked for, in words." in text


def test_pages_are_those_of_one_folder(tmp_path):
    for name, content in (("index.html", "<p>page"), ("app.js", "1"), ("a/b.css", "c"), ("notes.py", "secret")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    files = pages.web_files(tmp_path)
    assert sorted(files) == ["a/b.css", "app.js", "index.html"]
    assert pages.web_files(tmp_path / "nowhere") == {}


def test_the_page_is_sent_with_its_type_and_once(service):
    files = pages.web_files()
    for name, file in files.items():
        status, headers, content = service.ask("GET", f"/static/{name}")
        assert status == 200 and content == file.read_bytes()
        assert headers["content-type"] == pages.TYPES[file.suffix] and headers["cache-control"] == "no-cache"
        assert service.ask("GET", f"/static/{name}", headers={"If-None-Match": headers["etag"]})[0] == 304
    status, headers, content = service.ask("GET", "/")
    assert status == (200 if "index.html" in files else 404)


def samples(text):
    """Values by what stands before them."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_what_is_counted(running, library):
    with running({"photos": library}) as client:
        client.get("/api/photos/search?q=noise")
        client.refused("GET", "/api/photos/search?q=noise&k=0")
        for number in range(5):
            client.refused("GET", f"/there/is/nothing/{number}")
            client.refused("GET", f"/api/photos/pictures/{10**9 + number}")
        counted = samples(client.ask("GET", "/metrics")[2].decode())
    route = 'route="/api/{library}/search"'
    assert counted[f'cliplet_requests_total{{method="GET",{route},status="200"}}'] == 1
    assert counted[f'cliplet_requests_total{{method="GET",{route},status="422"}}'] == 1
    assert counted['cliplet_requests_total{method="GET",route="other",status="404"}'] == 5
    assert counted['cliplet_requests_total{method="GET",route="/api/{library}/pictures/{id}",status="404"}'] == 5
    assert counted[f"cliplet_request_seconds_count{{{route}}}"] == 2
    assert counted['cliplet_pictures{library="photos"}'] == 24
    assert counted['cliplet_batch_size_count{kind="text"}'] == 1
    assert counted["process_resident_memory_bytes"] > 10**7


def test_texts_of_many_clients_go_through_the_model_together(running, library, encoder, monkeypatch):
    encode, batches = encoder.encode_text, []

    def slowly(texts, **options):
        batches.append(list(texts))
        time.sleep(0.05)
        return encode(texts, **options)

    with running({"photos": library}) as client, ThreadPoolExecutor(30) as pool:
        queries = [f"query number {number}" for number in range(30)]
        expected = [[hit.id for hit in library.search(query)] for query in queries]
        monkeypatch.setattr(encoder, "encode_text", slowly)
        answers = list(pool.map(lambda query: client.get("/api/photos/search?q=" + query.replace(" ", "+")), queries))
        assert [[int(hit["id"]) for hit in answer["hits"]] for answer in answers] == expected
        assert sorted(text for batch in batches for text in batch) == sorted(queries)
        assert len(batches) <= 10 and max(map(len, batches)) > 5
        before = len(batches)
        again = list(pool.map(lambda query: client.get("/api/photos/search?q=" + query.replace(" ", "+")), queries))
        assert len(batches) == before and [one["hits"] for one in again] == [one["hits"] for one in answers]
        counted = samples(client.ask("GET", "/metrics")[2].decode())
        assert counted['cliplet_batch_size_sum{kind="text"}'] == 30
        assert counted['cliplet_batch_size_count{kind="text"}'] == len(batches)


def test_what_others_write_is_seen(running, encoder, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photos / "000.png", folder)
    with (
        Library.create(tmp_path / "a.library", encoder) as writer,
        Library.open(tmp_path / "a.library", encoder) as read,
    ):
        writer.add(folder)
        read.refresh()
        with running({"a": read}, refresh_seconds=0.05) as client:
            assert client.get("/api/a/pictures")["total"] == 1
            shutil.copy(photos / "003.png", folder)
            writer.add(folder)
            time.sleep(0.1)
            assert client.get("/api/a/pictures")["total"] == 2
            names = [hit["name"] for hit in client.get("/api/a/search?q=noise")["hits"]]
            assert sorted(names) == ["000.png", "003.png"]


def test_searches_go_on_while_others_write(running, encoder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()

    def more(start):
        for number in range(start, start + 20):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")

    more(0)
    with (
        Library.create(tmp_path / "a.library", encoder) as writer,
        Library.open(tmp_path / "a.library", encoder) as read,
    ):
        writer.add(folder)
        read.refresh()
        with running({"a": read}, refresh_seconds=0.0) as client, ThreadPoolExecutor(4) as pool:
            writing = pool.submit(lambda: [(more(start), writer.add(folder)) for start in (20, 40, 60)])
            paths = ["search?q=noise&k=50", "pictures?k=100", "search?q=noise&k=5&where=width+%3E+3"]
            seen = []
            while not writing.done():
                seen += list(pool.map(lambda path: client.ask("GET", f"/api/a/{path}")[0], paths))
            writing.result()
            assert set(seen) == {200}
            assert client.get("/api/a/pictures?k=100")["total"] == 80


def test_libraries_side_by_side_share_their_model(running, library, library_place, encoder):
    with Library.open(library_place) as other, running({"one": library, "two photos": other}) as client:
        assert [told["name"] for told in client.get("/api/libraries")] == ["one", "two photos"]
        first = client.get("/api/one/search?q=noise")["hits"]
        assert first == client.get("/api/two%20photos/search?q=noise")["hits"]
        counted = samples(client.ask("GET", "/metrics")[2].decode())
        assert counted['cliplet_batch_size_count{kind="text"}'] == 1  # the second had its vector already


def test_names_that_cannot_stand_in_an_address_are_refused(library):
    for name in ("a/b", "..", "", "a\0b", "a\nb", "a" * 101):
        with pytest.raises(ConfigError, match="cannot be a library's name"):
            create_app({name: library}, Settings())


def test_a_library_without_pictures_is_refused(tmp_path, encoder):
    with (
        Library.create(tmp_path / "empty.library", encoder) as empty,
        pytest.raises(DataError, match="no pictures yet"),
    ):
        create_app({"empty": empty}, Settings())


def test_a_library_whose_model_is_another_by_now_says_so(running, library_place, encoder, tmp_path):
    place = shutil.copytree(library_place, tmp_path / "copy.library")
    with Library.open(place, encoder) as library, running({"a": library}, refresh_seconds=0.0) as client:
        assert client.ask("GET", "/api/a/search?q=noise")[0] == 200
        view = library.store._view
        library.store._view = replace(view, identity=replace(view.identity, hashes={"other": "0"}))
        for path in ("search?q=other", "pictures/1/scores?q=other"):
            status, headers, content = client.ask("GET", f"/api/a/{path}")
            assert status == 503 and b"is being replaced" in content and headers["retry-after"]
        assert client.ask("GET", "/api/a/pictures/1")[0] == 200
        library.store._view = view
        assert client.ask("GET", "/api/a/search?q=noise")[0] == 200


def test_uploads_are_forgotten_by_time_and_number():
    now = [0.0]
    uploads = Uploads(2, 10.0, lambda: now[0])
    one, two = (uploads.put(Upload(np.zeros(2), number, 1)) for number in (1, 2))
    assert uploads.get(one).width == 1 and one != two and len(one) > 16
    three = uploads.put(Upload(np.zeros(2), 3, 1))
    with pytest.raises(Refused):
        uploads.get(two)  # the one that was not asked for
    now[0] = 11.0
    for name in (one, three, ""):
        with pytest.raises(Refused, match="not remembered"):
            uploads.get(name)


def test_only_so_many_pictures_are_received_at_once():
    receiving = Receiving(2, 1)
    with receiving.one("a"):
        with pytest.raises(Refused, match="too many pictures"), receiving.one("a"):
            pass
        with receiving.one("b"), pytest.raises(Refused, match="too many pictures"), receiving.one("c"):
            pass
        with receiving.one("c"):
            pass
    with receiving.one("a"):
        pass


def test_names_that_are_no_utf8_can_be_shown():
    assert printable("/photos/é \udcff.png") == "/photos/é \\udcff.png"
