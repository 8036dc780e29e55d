"""Behind a proxy that ends TLS, browsers ask by a public name and the proxy from here; and another ASGI server."""

import contextlib
import http.client
import json
import re
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from cliplet.serve.app import create_app
from cliplet.serve.server import listen
from cliplet.serve.settings import Settings

TOKEN = "a-token-of-many-letters"
NAME = "photos.example.org"


@contextmanager
def proxy_to(port, host):
    """A proxy for one request a connection. `host`: the name that it passes on; None is the one it was asked by."""

    def passed(request):
        return re.sub(rb"(?im)^host: [^\r]*", b"Host: " + host.encode(), request) if host else request

    def serve(inner):
        with inner, socket.create_connection(("127.0.0.1", port)) as outer:
            request = b""
            while b"\r\n\r\n" not in request:
                request += inner.recv(65536)
            outer.sendall(passed(request))
            length = int((re.search(rb"(?i)content-length: (\d+)", request) or [0, 0])[1])
            sent = len(request.partition(b"\r\n\r\n")[2])
            while sent < length and (part := inner.recv(65536)):
                outer.sendall(part)
                sent += len(part)
            outer.settimeout(5)
            answer = b""
            while part := outer.recv(65536):
                answer += part
                inner.sendall(part)
                head, found, body = answer.partition(b"\r\n\r\n")
                size = re.search(rb"(?i)content-length: (\d+)", head)
                if found and (not size or len(body) >= int(size[1])):
                    break

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    inner, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(inner,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def behind(running, library):
    with running({"photos": library}, token=TOKEN, names=(NAME,)) as client:
        yield client


@pytest.mark.parametrize("host", [None, "127.0.0.1:8300"], ids=["its own name", "the service's address"])
def test_the_page_works_behind_a_proxy(behind, host):
    browser = {"Host": NAME, "Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin"}
    with proxy_to(behind.port, host) as port:
        person = type(behind)(port)
        assert person.ask("GET", "/", headers={"Host": NAME})[0] == 200
        status, headers, _ = person.ask("POST", "/api/session", {"token": TOKEN}, browser)
        assert status == 200 and "Secure" in headers["set-cookie"]
        cookie = {"Cookie": headers["set-cookie"].partition(";")[0]}
        reads = {"Host": NAME, "Sec-Fetch-Site": "same-origin", **cookie}
        assert json.loads(person.ask("GET", "/api/libraries", headers=reads)[2])[0]["name"] == "photos"
        terms = {"terms": [{"text": "noise"}]}
        assert person.ask("POST", "/api/photos/search", terms, {**browser, **cookie})[0] == 200
        evil = {**browser, **cookie, "Origin": "https://evil.example.org"}
        assert person.refused("POST", "/api/photos/search", terms, evil)[0] == 403
        assert person.refused("GET", "/api/libraries", headers={"Host": NAME})[0] == 401


def test_other_names_are_still_refused(behind):
    assert behind.refused("GET", "/api/libraries", headers={"Host": "evil.example.org"})[0] == 421
    assert behind.ask("GET", "/api/libraries")[0] == 200


def test_a_guesser_behind_it_locks_nobody_out(behind):
    """All come from the proxy's address."""
    stranger = type(behind)(behind.port)
    statuses = [stranger.refused("POST", "/api/session", {"token": "wrong"})[0] for _ in range(25)]
    assert statuses[0] == 401 and statuses[-1] == 429
    status, headers, _ = stranger.ask("POST", "/api/session", {"token": TOKEN})
    assert status == 200 and behind.ask("GET", "/api/libraries")[0] == 200
    cookie = {"Cookie": headers["set-cookie"].partition(";")[0]}
    assert stranger.ask("GET", "/api/libraries", headers=cookie)[0] == 200


def own_address():
    """An address of this machine that others reach; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        asked.connect(("192.0.2.1", 9))  # nothing is sent
        return asked.getsockname()[0]


def test_another_server_that_listens_to_all_serves_nobody_else_without_a_token(library):
    """As `uvicorn --host 0.0.0.0 module:app` does, which tells the application nothing of it."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but its own")
    with listen("0.0.0.0", 0) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app({"photos": library}, Settings()), log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            for host, status in ((address, 403), ("127.0.0.1", 200)):
                connection = http.client.HTTPConnection(host, port, timeout=10)
                connection.request("GET", "/api/libraries", headers={"Host": "localhost"})
                answer = connection.getresponse()
                content = json.loads(answer.read())
                connection.close()
                assert answer.status == status and (status == 200 or "CLIPLET_TOKEN" in content["hint"])
        finally:
            server.should_exit = True
            thread.join(10)
