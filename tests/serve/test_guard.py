"""What a service takes from whom: tokens, sites, sizes, rates, and clients that are slow on purpose."""

import contextlib
import json
import socket
import struct
import time
import zlib

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


def test_a_body_of_json_may_not_be_as_large_as_a_picture(service):
    status, error, _ = service.refused("POST", "/api/photos/search", b" " * (4 * 2**20 + 1), {"Content-Type": "a/json"})
    assert status == 413 and "4 MB" in error


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


@pytest.mark.parametrize("limit", [{"max_connections": 3}, {"max_connections_of_one": 3}], ids=str)
def test_more_connections_than_may_be_are_told_so(running, library, limit):
    with running({"photos": library}, **limit) as client:
        held = [client.bare() for _ in range(3)]
        time.sleep(0.1)
        with client.bare() as fourth:
            answer = fourth.hear()
        assert b" 503 " in answer and b"too many connections" in answer and b"retry-after" in answer
        for one in held:
            one.socket.close()
        time.sleep(0.1)
        assert client.ask("GET", "/health")[0] == 200


def png_of(width, height):
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def webp_of(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif_of(width, height):
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


def icon_around(data):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(data), 22) + data


BOMB = png_of(25_000, 20_000)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (BOMB, 413, "25,000 x 20,000 pixels; 64 megapixels"),
        (webp_of(16_000, 16_000), 413, "16,000 x 16,000"),
        (icon_around(BOMB), 415, "is none, or of a kind that is not taken"),
        (gif_of(60_000, 60_000), 413, "60,000 x 60,000"),
        (png_of(100, 100), 415, "the picture that was sent"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "is none"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415, "is none"),
        (b"no picture", 415, "is none"),
        (b"", 415, "is none"),
        (png_of(1, 1), 415, "too small"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else None,
)
def test_what_is_sent_must_be_a_picture_of_a_size(service, data, status, says):
    for path in ("uploads", "search/picture", "embed/image"):
        told, _, content = service.send(f"/api/photos/{path}", data)
        error = json.loads(content)["error"]
        assert told == status and says in error, error


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
