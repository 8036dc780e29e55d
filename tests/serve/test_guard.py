"""What a service takes from whom: tokens, sites, sizes, rates, and clients that are slow on purpose."""

import contextlib
import json
import re
import socket
import time

import pytest
from PIL import Image

from cliplet.library.library import Library

TOKEN = "a-token-of-many-letters"
SECURITY = ("content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-resource-policy")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What a client still sends after a refusal is waited for less long than usual."""
    monkeypatch.setattr("cliplet.serve.limits.DRAIN_SECONDS", 0.4)


@pytest.fixture(scope="module")
def strict(running, library):
    """A service with small limits."""
    limits = {"head_seconds": 0.4, "body_seconds": 0.4, "body_rate": 10**6, "write_seconds": 0.4, "idle_seconds": 1.0}
    with running({"photos": library}, max_body=100_000, request_seconds=0.5, **limits) as client:
        yield client


def test_every_answer_has_the_headers_that_browsers_heed(service):
    for path in ("/api/libraries", "/health", "/docs", "/static/none.js", "/nothing", "/api/photos/search?k=0"):
        headers = service.ask("GET", path)[1]
        assert all(name in headers for name in SECURITY) and headers["x-content-type-options"] == "nosniff"
        assert "default-src" in headers["content-security-policy"] and "frame-ancestors 'none'" in str(headers)
        assert "server" not in headers


def test_a_page_that_was_led_here_by_its_name_gets_nothing(service):
    status, error, _ = service.refused("GET", "/api/libraries", headers={"Host": "evil.example"})
    assert status == 421 and "localhost" in error
    assert service.ask("GET", "/api/libraries", headers={"Host": "localhost:1234"})[0] == 200
    with service.bare() as connection:
        connection.say(b"GET /api/libraries HTTP/1.0\r\n\r\n")
        assert b" 421 " in connection.hear()


def test_the_page_of_another_site_cannot_post(service):
    terms = {"terms": [{"text": "noise"}]}
    own = {"Origin": f"http://127.0.0.1:{service.port}"}
    assert service.ask("POST", "/api/photos/search", terms, own)[0] == 200
    assert service.refused("POST", "/api/photos/search", terms, {"Origin": "http://evil.example"})[0] == 403
    assert service.refused("GET", "/api/libraries", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_a_token_is_asked_for(running, library):
    with running({"photos": library}, address="0.0.0.0", token=TOKEN) as client:
        stranger = type(client)(client.port)
        assert stranger.get("/health") == {"status": "ok", "libraries": 1}
        assert stranger.refused("GET", "/api/libraries")[0] == 401
        assert stranger.ask("GET", "/api/libraries")[1]["www-authenticate"] == "Bearer"
        assert stranger.refused("GET", "/metrics")[0] == stranger.refused("GET", "/docs")[0] == 401
        assert client.get("/api/libraries")[0]["name"] == "photos"
        assert stranger.refused("POST", "/api/session", {"token": "wrong"})[0] == 401
        status, headers, content = stranger.ask("POST", "/api/session", {"token": TOKEN})
        assert status == 200 and json.loads(content) == {"token_needed": True}
        cookie = {"Cookie": headers["set-cookie"].partition(";")[0]}
        id = client.get("/api/photos/pictures?k=1")["pictures"][0]["id"]
        assert stranger.ask("GET", f"/api/photos/pictures/{id}/thumbnail", headers=cookie)[0] == 200
        assert stranger.refused("GET", f"/api/photos/pictures/{id}/thumbnail")[0] == 401


def test_a_session_without_a_token_needs_none(service):
    assert service.post("/api/session", {"token": ""}) == {"token_needed": False}


def test_a_client_that_asks_too_often_is_told_when_to_come_again(running, library):
    with running({"photos": library}, rate=4.0, burst=5) as client:
        statuses = [client.ask("GET", "/health")[0] for _ in range(8)]
        assert statuses[:5] == [200] * 5 and 429 in statuses
        status, headers, _ = client.ask("GET", "/health")
        if status == 429:
            assert int(headers["retry-after"]) >= 1
        time.sleep(0.5)
        assert client.ask("GET", "/health")[0] == 200


def chunked(data, size=10_000):
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]


def post_head(path, *headers):
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=b", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def test_bodies_that_are_too_large_are_refused(strict):
    status, error, _ = strict.refused("POST", "/api/photos/uploads", b"x" * 100_001, {"Content-Type": "multipart/x"})
    assert status == 413 and "100,000 bytes" in error
    with strict.bare() as connection:  # before any of it has come
        connection.say(post_head("/api/photos/uploads", "Content-Length: 100001"))
        assert b" 413 " in connection.socket.recv(65536)


def test_a_body_without_a_length_is_counted_as_it_comes(strict):
    path, head = "/api/photos/uploads", b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    with strict.bare() as connection:  # a client that sends all before it listens hears the answer all the same
        sent = connection.say(post_head(path, "Transfer-Encoding: chunked"), *chunked(head + b"x" * 2_000_000))
        answer = connection.hear()
        assert sent and b" 413 " in answer and b"larger than" in answer
    with strict.bare() as connection:
        fits = head + b"x" * (100_000 - len(head) - 9) + b"\r\n--b--\r\n"
        connection.say(post_head(path, "Transfer-Encoding: chunked", "Connection: close"), *chunked(fits))
        assert b" 415 " in connection.hear()  # it was read, and is no picture


@pytest.mark.parametrize(
    ("path", "kind", "most"),
    [
        ("/api/session", "application/json", 4 * 2**10),
        ("/api/session", "multipart/form-data; boundary=b", 4 * 2**10),
        ("/api/photos/search", "application/json", 256 * 2**10),
        ("/api/photos/search", "multipart/form-data; boundary=b", 256 * 2**10),
        ("/api/photos/captions", "a/json", 256 * 2**10),
        ("/api/photos/uploads", "application/json", 256 * 2**10),
        ("/api/nothing", "application/json", 256 * 2**10),
        ("/api/photos/embed/text", "application/json", 4 * 2**20),
    ],
)
def test_a_body_is_as_large_as_what_is_asked_for_needs(service, path, kind, most):
    assert service.ask("POST", path, b" " * most, {"Content-Type": kind})[0] not in (200, 413)
    status, error, _ = service.refused("POST", path, b" " * (most + 1), {"Content-Type": kind})
    assert status == 413 and ("4 MB" if most == 4 * 2**20 else f"{most:,} bytes") in error


def test_the_largest_queries_fit_in_any_letters(service):
    """As JSON writes them that keeps to ASCII: six letters for one."""
    terms = [{"text": "\u00e9" * 2000, "weight": 0.25 + number} for number in range(16)]
    asked = {"terms": terms, "where": "name like '" + "\u00e9" * 3900 + "'"}
    assert len(json.dumps(asked)) > 200_000 and service.post("/api/photos/search", asked)["hits"] == []
    texts = {"texts": ["\u00e9" * 2000] * 256}
    assert len(json.dumps(texts)) > 3_000_000
    assert len(service.post("/api/photos/embed/text", texts)["embeddings"]) == 256


@pytest.mark.parametrize("path", ["session", "photos/search", "photos/captions", "photos/embed/text"])
def test_fields_that_nobody_knows_are_one_error_however_many(service, path):
    """Pydantic would make an error of each, and nobody else would be answered meanwhile."""
    size = {"session": 4 * 2**10, "photos/embed/text": 2**20}.get(path, 256 * 2**10)
    many = {f"k{number}": 1 for number in range(size // 16)}
    for asked in (many, {"terms": [many]}):
        body = json.dumps(asked).encode()
        start = time.monotonic()
        status, error, _ = service.refused("POST", f"/api/{path}", body, {"Content-Type": "application/json"})
        assert status == 422 and not re.search(r"and \d+ more$", error) and time.monotonic() - start < 2
    few = {f"k{number}": 1 for number in range(100)}
    for many_parts in ("1", "[]", "{}"):
        body = f'{{"terms": [{",".join([many_parts] * (size // 4))}]}}'.encode()
        assert service.refused("POST", f"/api/{path}", body, {"Content-Type": "application/json"})[0] in (413, 422)
    assert "100 fields" in service.refused("POST", f"/api/{path}", few)[1]
    status, error, _ = service.refused("POST", f"/api/{path}", {"a": 1})
    assert status == 422 and "a: Extra inputs" in error


def test_a_body_that_is_not_as_long_as_it_says(strict):
    with strict.bare() as connection:
        connection.say(post_head("/api/photos/uploads", "Content-Length: 1000") + b"--b\r\n")
        start = time.monotonic()
        answer = connection.hear()
        assert b" 408 " in answer and time.monotonic() - start < 5
    with strict.bare() as connection:
        connection.say(post_head("/api/photos/uploads", "Content-Length: 3") + b"x" * 1000)
        answer = connection.hear()
        assert answer.count(b"HTTP/1.1") <= 2 and b" 200 " not in answer


def test_headers_that_trickle_in_are_cut_off(strict):
    for beginning in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
        with strict.bare() as connection:
            start = time.monotonic()
            assert not connection.say(beginning, *[b"X-A: b\r\n"] * 100, every=0.02) or connection.hear() == b""
            assert time.monotonic() - start < 3
    with strict.bare() as connection:  # nor does it help to say nothing at all
        start = time.monotonic()
        assert connection.hear() == b"" and 0.2 < time.monotonic() - start < 3


def test_headers_that_trickle_in_after_an_answer_are_cut_off(strict):
    with strict.bare() as connection:
        connection.say(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.socket.recv(65536).startswith(b"HTTP/1.1 200")
        assert not connection.say(*[b"G"] * 200, every=0.02) or connection.hear() == b""


def test_a_body_that_nobody_reads_is_cut_off(strict):
    with strict.bare() as connection:
        head = post_head("/nothing", "Transfer-Encoding: chunked")
        start = time.monotonic()
        assert not connection.say(head, *[b"1\r\nx\r\n"] * 400, every=0.01) or connection.hear() is not None
        assert time.monotonic() - start < 4


def test_a_connection_that_is_used_stays(strict):
    """The timers are those of a request, not of the connection."""
    with strict.bare() as connection:
        for _ in range(4):
            connection.say(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.socket.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.25)


def test_requests_that_are_sent_together_are_all_answered(strict):
    with strict.bare() as connection:
        connection.say(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        connection.say(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert connection.hear().count(b"HTTP/1.1 200") == 4


def test_headers_that_are_too_large_are_refused(strict):
    with strict.bare() as connection:
        connection.say(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 2**20 + b"\r\n\r\n")
        assert b" 200 " not in connection.hear()


def test_bytes_that_are_no_request_are_refused(strict):
    for noise in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"):
        with strict.bare() as connection:
            connection.say(noise)
            answer = connection.hear()
            assert b" 200 " not in answer and b"Traceback" not in answer


def test_a_client_that_does_not_read_is_cut_off_and_holds_nobody_up(strict, library):
    """Eight clients that ask for 15 MB each, and read nothing of it."""
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    size = len(strict.ask("GET", "/openapi.json")[2])
    readers = []
    for _ in range(8):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", strict.port))
        reader.sendall(request * (15_000_000 // size))
        readers.append(reader)
    time.sleep(0.1)
    start = time.monotonic()
    assert strict.ask("GET", f"/api/photos/pictures/{library.newest(1)[0].id}/thumbnail")[0] == 200
    assert time.monotonic() - start < 5
    while strict.server.server_state.connections:  # all of them are cut off
        time.sleep(0.02)
        assert time.monotonic() - start < 15
    for reader in readers:
        got = 0
        reader.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while part := reader.recv(2**20):
                got += len(part)
        reader.close()
        assert got < 14_000_000


def test_what_takes_too_long_is_given_up(strict, library, monkeypatch):
    monkeypatch.setattr(Library, "search", lambda *words, **options: time.sleep(1.5))
    start = time.monotonic()
    status, error, _ = strict.refused("GET", "/api/photos/search?q=noise")
    assert status == 503 and "0.5 seconds" in error and time.monotonic() - start < 1.4
    assert strict.get("/health")["status"] == "ok"


def test_the_time_of_a_body_is_not_the_answers(strict):
    with strict.bare() as connection:
        body = b'{"terms": [{"text": "noise"}]}'
        head = f"POST /api/photos/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
        connection.say(head.encode(), body[:10], body[10:20], body[20:], every=0.1)
        assert b"HTTP/1.1 200" in connection.hear()


def test_a_picture_that_lies_on_its_side_is_measured_upright(service, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    told = json.loads(service.send("/api/photos/uploads", (tmp_path / "a.jpg").read_bytes())[2])
    assert (told["width"], told["height"]) == (40, 60)


def test_forms_without_one_file_are_refused(service):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    path = "/api/photos/uploads"
    assert service.refused("POST", path, b"x", {"Content-Type": "image/png"})[0] == 415
    assert service.refused("POST", path, b"", {})[0] == 415
    words = b'--b\r\nContent-Disposition: form-data; name="picture"\r\n\r\nwords\r\n--b--\r\n'
    assert service.refused("POST", path, words, kind)[0] == 422
    two = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nx\r\n' * 2 + b"--b--\r\n"
    for broken in (two, b"x", b"--b\r\n\r\n", words[:50], b""):
        assert service.refused("POST", path, broken, kind)[0] in (400, 422)
    assert service.refused("POST", path, words, {"Content-Type": "multipart/form-data"})[0] in (400, 422)
