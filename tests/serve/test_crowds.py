"""Many clients at once, of whom some hold what others need: connections, places for pictures, threads."""

import threading
import time

import pytest

from cliplet.errors import ConfigError
from cliplet.library.deadline import current
from cliplet.library.library import Library
from cliplet.serve.access import ADMITTED

TOKEN = "a-token-of-many-letters"


def one_answer(connection, request):
    """What comes on a connection that stays open, a list in JSON."""
    connection.say(request)
    answer = b""
    while not answer.endswith(b"]") and (part := connection.socket.recv(65536)):
        answer += part
    return answer


HALF_A_SEARCH = b"POST /api/photos/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"


@pytest.mark.parametrize("limit", [{"max_connections": 3}, {"max_connections_of_one": 3}], ids=str)
def test_more_connections_than_may_be_are_told_so(running, library, limit):
    with running({"photos": library}, **limit) as client:
        held = [client.bare() for _ in range(3)]
        assert all(one.say(HALF_A_SEARCH) for one in held)
        connections, end = client.server.server_state.connections, time.monotonic() + 5
        while sum(one.scope is not None and ADMITTED in one.scope for one in connections) < 3:  # all are at work
            assert time.monotonic() < end
            time.sleep(0.01)
        with client.bare() as fourth:
            answer = fourth.hear()
        assert b" 503 " in answer and b"too many connections" in answer and b"retry-after" in answer
        for one in held:
            one.socket.close()
        time.sleep(0.1)
        assert client.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "said_by_them",
    [b"", b"GET /api/libraries HTTP/1.1\r\nX-A:", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", HALF_A_SEARCH],
    ids=["nothing", "half of a request", "what strangers may ask", "no token"],
)
def test_strangers_who_hold_all_connections_keep_nobody_out(running, library, said_by_them):
    limits = {"max_connections": 8, "max_connections_of_one": 4}
    with running({"photos": library}, address="0.0.0.0", token=TOKEN, **limits) as client:
        mine = client.bare()
        request = f"GET /api/libraries HTTP/1.1\r\nHost: pc\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        assert one_answer(mine, request).startswith(b"HTTP/1.1 200")
        held = [client.bare(source) for source in ("127.0.0.2", "127.0.0.3") for _ in range(4)]
        assert all(one.say(said_by_them) for one in held[:4])
        time.sleep(0.1)
        assert [client.ask("GET", "/api/libraries")[0] for _ in range(10)] == [200] * 10
        # This one waited for its next request, and strangers had to go first.
        assert one_answer(mine, request).startswith(b"HTTP/1.1 200")
        for one in [*held, mine]:
            one.socket.close()


def test_of_two_that_wait_for_requests_the_older_goes(running, library):
    with running({"photos": library}, max_connections=2) as client:
        request = b"GET /api/libraries HTTP/1.1\r\nHost: localhost\r\n\r\n"
        older, younger = client.bare(), client.bare()
        for one in (older, younger):
            assert one_answer(one, request).startswith(b"HTTP/1.1 200")
        assert client.ask("GET", "/api/libraries")[0] == 200
        assert older.hear() == b""
        assert one_answer(younger, request).startswith(b"HTTP/1.1 200")
        younger.socket.close()


def trickling(client, source=None):
    """An upload that has begun and does not go on."""
    connection = client.bare(source)
    head = b"POST /api/photos/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    connection.say(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: x\r\n")
    return connection


def test_whoever_sends_pictures_slowly_keeps_nobody_from_sending_one(running, library, photos):
    with running({"photos": library}) as client:
        held = [trickling(client) for _ in range(32)]
        time.sleep(0.2)
        data = (photos / "001.jpg").read_bytes()
        assert client.send("/api/photos/uploads", data, source="127.0.0.2")[0] == 200
        status, headers, _ = client.send("/api/photos/uploads", data)
        assert status == 503 and headers["retry-after"]
        for one in held:
            one.socket.close()
        time.sleep(0.2)
        assert client.send("/api/photos/uploads", data)[0] == 200


@pytest.mark.parametrize("what", ["a picture", "a query"])
def test_a_client_that_leaves_while_it_sends_is_no_error(running, library, said, what):
    with running({"photos": library}) as client:
        path = "uploads" if what == "a picture" else "search"
        connection = trickling(client)
        if what == "a query":
            connection.socket.close()
            connection = client.bare()
            connection.say(
                HALF_A_SEARCH.replace(b"Content-Length", b"Content-Type: application/json\r\nContent-Length")
            )
        time.sleep(0.1)
        connection.socket.close()
        counted, end = "", time.monotonic() + 5
        line = f'cliplet_requests_total{{method="POST",route="/api/{{library}}/{path}",status="499"}} 1.0'
        while line not in counted and time.monotonic() < end:
            time.sleep(0.05)
            counted = client.ask("GET", "/metrics")[2].decode()
        assert line in counted and 'status="500"' not in counted and 'status="400"' not in counted
    assert said == []


def test_a_search_that_nobody_waits_for_any_more_is_given_up(running, library, monkeypatch):
    began, ended = threading.Event(), []

    def search(*words, **options):
        began.set()
        start = time.monotonic()
        while not current().is_over and time.monotonic() - start < 10:
            time.sleep(0.01)
        ended.append(time.monotonic() - start)
        raise ConfigError("too late")

    monkeypatch.setattr(Library, "search", search)
    with running({"photos": library}) as client:
        with client.bare() as connection:
            connection.say(b"GET /api/photos/search?q=noise HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert began.wait(5)
        time.sleep(0.3)
        assert len(ended) == 1 and ended[0] < 2
        counted = client.ask("GET", "/metrics")[2].decode()
        assert 'route="/api/{library}/search",status="499"} 1.0' in counted


def test_one_client_cannot_have_all_threads(running, library, monkeypatch):
    """Searches that cannot be stopped, and a client that leaves each of them and asks for the next."""
    end, search = threading.Event(), Library.search
    monkeypatch.setattr(Library, "search", lambda *words, **options: end.wait(10) and search(*words, **options))
    with running({"photos": library}, threads=2) as client:
        for _ in range(6):
            with client.bare() as connection:
                connection.say(b"GET /api/photos/search?q=noise HTTP/1.1\r\nHost: localhost\r\n\r\n")
                time.sleep(0.05)
        start = time.monotonic()
        assert client.ask("GET", "/api/photos/pictures", source="127.0.0.2")[0] == 200
        assert time.monotonic() - start < 2
        end.set()
        assert client.ask("GET", "/api/photos/search?q=noise")[0] == 200
