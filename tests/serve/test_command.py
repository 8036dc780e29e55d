"""cliplet serve: from a command line to an address, until it is told to stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cliplet.cli import main
from cliplet.cli.serve import named_places
from cliplet.errors import ConfigError
from cliplet.library.library import Library
from cliplet.serve.server import listen, page_address, serve
from cliplet.serve.settings import Settings


@contextmanager
def started(client_of, *words, code="", **environment):
    """The command in a process of its own: the process, a client of it, and what it said until it was ready. `code`
    runs before it."""
    command = [sys.executable, "-m", "cliplet", "serve", *map(str, words)]
    if code:
        command = [
            sys.executable,
            "-c",
            f"{code}\nfrom cliplet.cli import main\nsys.exit(main(sys.argv[1:]))",
            *command[3:],
        ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        said = []
        while "ready at" not in "".join(said[-1:]):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said.append(line)
        port, token = re.fullmatch(r"ready at http://[^:]+:(\d+)/(?:#token=(\S+))?\n", said[-1]).groups()
        yield process, client_of(int(port), token or ""), "".join(said)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def client_of(service):
    return type(service)


def test_it_answers_and_ends_what_runs_when_it_is_told_to_stop(client_of, library_place, photos):
    with started(client_of, library_place, "--port", 0) as (process, client, said):
        assert said.startswith("photos: 24 pictures\n") and client.token == ""
        assert client.get("/api/libraries")[0]["pictures"] == 24
        assert client.get("/api/photos/search?q=noise&k=3")["hits"]
        body = b'{"terms": [{"text": "noise"}]}'
        with client.bare() as connection:  # half of a request, when the signal comes
            head = f"POST /api/photos/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            connection.say(head.encode() + b"Content-Type: application/json\r\n\r\n" + body[:5])
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            connection.say(body[5:])
            answer = connection.hear()
        assert answer.startswith(b"HTTP/1.1 200") and json.loads(answer.partition(b"\r\n\r\n")[2])["hits"]
        assert process.wait(10) == 0 and process.stderr.read() == ""


def test_others_are_asked_for_a_token_and_an_interrupt_is_told(client_of, library_place):
    with started(client_of, f"mine={library_place}", "--host", "0.0.0.0", "--port", 0, "--log") as started_one:
        process, client, said = started_one
        assert said.startswith("mine: 24 pictures\n") and len(client.token) >= 32
        assert client_of(client.port).refused("GET", "/api/libraries")[0] == 401
        assert client.get("/api/libraries")[0]["name"] == "mine"
        with client.bare() as idle:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130 and idle.hear() == b""
        errors = process.stderr.read()
        assert "interrupted" in errors and "Traceback" not in errors and client.token not in errors


# A decoder that cannot be stopped, a search too, and a service that stops sooner than in five seconds.
STUCK = """
import functools, sys, time
import cliplet.library.library as library
import cliplet.runtime.encoder as encoder
import cliplet.serve.settings as settings
settings.Settings = functools.partial(settings.Settings, stop_seconds={seconds})
encoder.Encoder.encode_image = library.Library.search = lambda *words, **options: time.sleep(60)
close = library.Library.close
library.Library.close = lambda self: (print("closed", flush=True), close(self))
"""


@pytest.mark.parametrize("what", ["the decoding of a picture", pytest.param("a search", marks=pytest.mark.slow)])
def test_it_stops_in_time_whatever_runs(client_of, library_place, photos, what):
    with started(client_of, library_place, "--port", 0, code=STUCK.format(seconds=1.4)) as (process, client, _):
        answers = []

        def ask():
            if what == "a search":
                answers.append(client.ask("GET", "/api/photos/search?q=noise"))
            else:
                answers.append(client.send("/api/photos/uploads", (photos / "001.jpg").read_bytes()))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0 and time.monotonic() - start < 4
        asking.join(5)
        ((status, headers, content),) = answers
        told = json.loads(content)
        assert (
            status == 503 and "is being stopped" in told["error"] and told["hint"] and headers["connection"] == "close"
        )
        line = process.stderr.read()
        assert line.count("\n") == 1 and f"stopped while something still ran: {what}" in line
        # What is read is not closed below its reader, all else is.
        assert process.stdout.read() == ("" if what == "a search" else "closed\n")


@pytest.mark.parametrize("second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_is_heard_at_once(client_of, library_place, photos, second):
    with started(client_of, library_place, "--port", 0, code=STUCK.format(seconds=60)) as (process, client, _):
        asking = threading.Thread(target=client.send, args=("/api/photos/uploads", (photos / "001.jpg").read_bytes()))
        asking.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        start = time.monotonic()
        process.send_signal(second)
        assert process.wait(10) == (0 if second == signal.SIGTERM else 130) and time.monotonic() - start < 2
        asking.join(5)


@pytest.mark.slow
def test_a_client_that_goes_on_for_ever_does_not_keep_it(client_of, library_place):
    given = {"CLIPLET_TOKEN": "a-token-of-many-letters"}
    with started(client_of, library_place, "--port", 0, **given) as (process, client, _):
        assert client.token == "a-token-of-many-letters"
        with client.bare() as connection:
            head = "POST /api/photos/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            head += f"Authorization: Bearer {client.token}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
            connection.say(head.encode() + b"--b\r\n")
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0 and process.stderr.read() == ""


def test_public_names_may_be_several(client_of, library_place):
    words = ["--name", "photos.example.org", "--name", "pc.example:8443", "--token", "a" * 20, "--port", 0]
    with started(client_of, library_place, *words) as (_, client, said):
        assert f"behind a proxy: https://photos.example.org/#token={'a' * 20}\n" in said
        for name in ("photos.example.org", "pc.example:8443"):
            origin = {"Host": name, "Origin": f"https://{name}"}
            status, headers, _ = client.ask("POST", "/api/session", {"token": "a" * 20}, origin)
            assert status == 200 and "Secure" in headers["set-cookie"]


def test_names_come_from_folders_or_are_given(tmp_path):
    places = ["a/photos.library", "/mnt/holidays/", "old=b/photos.library", "lance:s3://bucket/catalogue.lance"]
    assert named_places(places) == {
        "photos": "a/photos.library",
        "holidays": "/mnt/holidays/",
        "old": "b/photos.library",
        "catalogue": "lance:s3://bucket/catalogue.lance",
    }
    odd = tmp_path / "a=b.library"
    odd.mkdir()
    assert named_places([str(odd)]) == {"a=b": str(odd)}
    here = Path.cwd().name
    assert named_places(["."]) == {here: "."}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say what to serve"),
        (["a/x.library", "b/x.library"], "two libraries have the name x"),
        (["=a"], "no library"),
    ],
)
def test_names_that_cannot_be_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        named_places(words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere: is no library"),
        (["{place}", "--port", "99999"], "--port must be from 0 to 65535"),
        (["{place}", "--token", "short"], "at least 16 letters"),
        (["{place}", "--rate", "-1"], "--rate must be 0 or more"),
        (["{place}", "--name", "photos.example.org", "--port", "0"], "--name makes the service one for others"),
        (["{place}", "--name", "http://a", "--token", "a" * 20], "--name http://a: is no name of a host"),
        (["{place}", "--host", "no such host"], "no such host"),
        (["{place}", "--host", "192.0.2.1"], "cannot listen on port 8300 of 192.0.2.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_served_is_said(words, says, library_place, capsys):
    assert main(["serve", *(word.format(place=library_place) for word in words)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and says in printed.err and "Traceback" not in printed.err


def test_a_port_that_is_taken_is_told(library):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken") as refused:
            serve({"photos": library}, Settings(port=port))
    assert "--port" in refused.value.hint


def test_addresses_can_be_opened_in_a_browser():
    assert page_address("127.0.0.1", 8300, "") == "http://127.0.0.1:8300/"
    assert page_address("::1", 8300, "a b#c") == "http://[::1]:8300/#token=a%20b%23c"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_it_listens_to_ipv6():
    try:
        listening = listen("::1", 0)
    except ConfigError as error:
        pytest.skip(error.message)
    with listening, socket.create_connection(listening.getsockname()[:2], timeout=5):
        pass


def test_the_page_is_shown_when_it_can_be(monkeypatch, library_place, capsys):
    """In this very process, of which another thread asks and then stops the service."""
    shown = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda address: (shown.set(), os.kill(os.getpid(), signal.SIGTERM)))
    assert main(["serve", str(library_place), "--port", "0", "--open"]) == 0
    assert shown.is_set() and "ready at http://127.0.0.1:" in capsys.readouterr().out


def test_nothing_of_torch_is_needed_and_nothing_is_loaded_too_early(run_python, tmp_path, library_place):
    code = """
import sys
from cliplet.cli import main
assert not {"fastapi", "uvicorn", "numpy"} & set(sys.modules)
import threading, os, signal, time
from cliplet.serve import server
announce = server._announce
def announced(*words):
    announce(*words)
    print(sorted({"torch", "PIL", "lancedb", "ray", "pandas"} & set(sys.modules)))
    os.kill(os.getpid(), signal.SIGTERM)
server._announce = announced
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""
    done = run_python(code, tmp_path, library_place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_libraries_files_are_closed_at_the_end(library_place, monkeypatch):
    closed = []
    close = Library.close
    monkeypatch.setattr(Library, "close", lambda self: (closed.append(self), close(self)))
    assert main(["serve", str(library_place), "--host", "192.0.2.1"]) == 1
    assert len(closed) == 1
