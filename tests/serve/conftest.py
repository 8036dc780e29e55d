"""A library of noise, and services of it that really run."""

import contextlib
import http.client
import json
import logging
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

import cliplet
from cliplet.library.library import Library
from cliplet.serve.app import create_app
from cliplet.serve.server import Server, listen, server_config
from cliplet.serve.settings import Settings

FORMATS = ("png", "jpg", "webp")
PICTURES = 24


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twenty-four pictures: 000.png, 001.jpg, 002.webp and so on; picture i is 64 + i pixels wide."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{FORMATS[number % 3]}")
    return folder


@pytest.fixture(scope="session")
def encoder(exported_model):
    return cliplet.load(exported_model)


@pytest.fixture(scope="session")
def library_place(photos, encoder, tmp_path_factory):
    """A library of them with captions, not to be changed."""
    place = tmp_path_factory.mktemp("libraries") / "photos.library"
    captions = {str(file): [f"a picture of {file.stem}", "noise"] for file in sorted(photos.iterdir())}
    with Library.create(place, encoder) as library:
        library.add(photos, captions=captions)
    return place


@pytest.fixture(scope="session")
def library(library_place, encoder):
    with Library.open(library_place, encoder) as library:
        yield library


class Client:
    """Asks a service, each time over a connection of its own."""

    def __init__(self, port, token=""):
        self.port, self.token = port, token

    def ask(self, method, path, body=None, headers=None, timeout=20, source=None):
        """Status, headers with small letters, and content. What is no bytes goes as JSON. `source`: the address that
        it comes from, 127.0.0.2 say."""
        headers = dict(headers or {})
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        if body is not None and not isinstance(body, bytes):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=timeout, source_address=(source, 0) if source else None
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path, headers=None):
        """What a good answer holds, from JSON."""
        status, _, content = self.ask("GET", path, headers=headers)
        assert status == 200, content
        return json.loads(content)

    def post(self, path, body):
        status, _, content = self.ask("POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, method, path, body=None, headers=None):
        """Status, error and hint of a request that is refused; what is said about a filter may say so."""
        status, headers, content = self.ask(method, path, body, headers)
        assert status >= 400 and headers["content-type"] == "application/json", (status, content)
        told = json.loads(content)
        assert set(told) - {"about"} == {"error", "hint"} and told["error"], told
        assert told.get("about", "where") == "where"
        return status, told["error"], told["hint"]

    def send(self, path, data, name="x.png", **options):
        """Sends a file as a form does."""
        head = f'--b\r\nContent-Disposition: form-data; name="any"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + b"\r\n--b--\r\n"
        return self.ask("POST", path, body, {"Content-Type": "multipart/form-data; boundary=b"}, **options)

    def bare(self, source=None):
        """A connection of bytes."""
        return Bare(("127.0.0.1", self.port), source)


class Bare:
    """A connection to which anything can be said; closed at the end of a block."""

    def __init__(self, address, source=None):
        self.socket = socket.create_connection(address, timeout=20, source_address=(source, 0) if source else None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()

    def say(self, *parts, every=0.0):
        """Sends parts, each after a while, until the other side has had enough; whether all could be sent."""
        try:
            for part in parts:
                self.socket.sendall(part)
                time.sleep(every)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def hear(self):
        """All that comes until the other side closes."""
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := self.socket.recv(65536):
                got += part
        return got


@pytest.fixture(scope="session")
def running():
    """Starts a service for the block: `with running({"name": library}, rate=5.0) as client`."""
    return _running


@contextmanager
def _running(libraries, address="127.0.0.1", **settings):
    """A service in a thread; a client of it."""
    chosen = Settings(port=0, **settings)
    with listen("127.0.0.1", 0) as listening:
        app = create_app(libraries, chosen, address)
        server = Server(server_config(app, chosen))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.005)
        client = Client(listening.getsockname()[1], chosen.token)
        client.server = server
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def said():
    """What the service's log says, line by line, with tracebacks."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(handler.format(record))
    log = logging.getLogger("cliplet.serve")
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


@pytest.fixture(scope="module")
def service(library):
    """A service of one library, `photos`, with plain settings."""
    with _running({"photos": library}) as client:
        yield client
