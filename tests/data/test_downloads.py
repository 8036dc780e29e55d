"""Files by URL: loaded once, taken up where they broke off, and never two versions in one."""

import hashlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cliplet.data import remotes
from cliplet.data.downloads import downloads_folder, fetch
from cliplet.errors import DataError

DATA = bytes(range(256)) * 20_000  # 5 MB


class Server:
    """A server of one file, whose ways can be changed; it notes what it was asked."""

    def __init__(self):
        self.data, self.etag, self.modified = DATA, '"one"', ""
        self.ranges, self.if_range, self.head, self.length = True, True, True, True
        self.break_after: list[int] = []  # bytes after which answers to come break off
        self.answers: list[int] = []  # status codes of answers to come
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                owner.asked.append("HEAD")
                if not owner.head:
                    self.send_error(405)
                    return
                self.answer(200, len(owner.data))

            def do_GET(self):
                owner.asked.append(f"GET {self.headers.get('Range', 'all')}")
                if owner.answers and (status := owner.answers.pop(0)) != 200:
                    self.send_error(status)
                    return
                owner.get(self)

            def answer(self, status, length, **more):
                self.send_response(status)
                headers = {"ETag": owner.etag, "Last-Modified": owner.modified, **more}
                headers["Content-Length"] = str(length) if owner.length else ""
                for name, value in headers.items():
                    if value:
                        self.send_header(name.replace("_", "-"), value)
                self.end_headers()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/shards/00000.tar"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def get(self, handler):
        asked = handler.headers.get("Range", "")
        same = not self.if_range or handler.headers.get("If-Range") in (self.etag, self.modified)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges and same else 0
        if asked and start >= len(self.data):
            handler.send_error(416)
            return
        body = self.data[start:]
        if start:
            handler.answer(206, len(body), Content_Range=f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        else:
            handler.answer(200, len(body))
        if self.break_after:
            body = body[: self.break_after.pop(0)]
        handler.wfile.write(body)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cliplet.data.downloads.WAITS", (0.01, 0.01))
    monkeypatch.setattr(remotes, "_silent", set())
    server = Server()
    yield server
    server.close()


def names():
    return sorted(file.name.partition("-")[2] for file in downloads_folder().iterdir())


def test_a_file_is_loaded_once(server):
    told = []
    file = fetch(server.url, lambda done, total: told.append((done, total)))
    assert file.read_bytes() == DATA and file.name.endswith("-00000.tar")
    assert told[-1] == (len(DATA), len(DATA)) and len(told) > 3
    assert fetch(server.url) == file and server.asked == ["GET all", "HEAD"]
    assert names() == ["00000.tar", "00000.tar.json"]


def test_an_address_that_fails_leaves_nothing_in_the_cache(server):
    server.answers = [404]
    with pytest.raises(DataError, match="404"):
        fetch(server.url)
    assert names() == []


def test_two_addresses_with_one_name_are_two_files(server):
    first = fetch(server.url)
    server.data = b"another"
    second = fetch(server.url.replace("/shards/", "/others/"))
    assert first.read_bytes() == DATA and second.read_bytes() == b"another"


def test_what_breaks_off_is_taken_up_where_it_broke(server):
    server.break_after = [3_000_000, 1_000_000]
    assert fetch(server.url).read_bytes() == DATA
    first, second, third = server.asked
    assert first == "GET all" and second == "GET bytes=3000000-" and third == "GET bytes=4000000-"


def test_after_three_tries_the_next_call_goes_on(server):
    server.break_after = [1_000_000] * 3
    with pytest.raises(DataError, match=r"broke off after 3,000,000 of 5,120,000 bytes") as caught:
        fetch(server.url)
    assert "goes on where it broke off" in caught.value.hint and server.url in caught.value.message
    assert "00000.tar" not in names()  # no broken file under a good one's name
    assert fetch(server.url).read_bytes() == DATA
    assert server.asked[-1] == "GET bytes=3000000-"


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_part(server, knows_if_range):
    server.break_after = [1_000_000] * 3
    with pytest.raises(DataError):
        fetch(server.url)
    server.data, server.etag, server.if_range = bytes(len(DATA)), '"two"', knows_if_range
    assert fetch(server.url).read_bytes() == bytes(len(DATA))


@pytest.mark.parametrize("way", ["no ranges", "no name", "weak name", "shorter by now"])
def test_without_a_safe_way_to_go_on_it_begins_anew(server, way):
    server.break_after = [1_000_000]
    server.ranges = way != "no ranges"
    server.etag = {"no name": "", "weak name": 'W/"x"'}.get(way, '"one"')
    if way == "shorter by now":
        server.break_after = [1_000_000] * 3
        with pytest.raises(DataError):
            fetch(server.url)
        server.data = DATA[:1000]
    assert fetch(server.url).read_bytes() == server.data


def test_a_time_of_change_serves_where_there_is_no_tag(server):
    server.etag, server.modified, server.break_after = "", "Wed, 21 Oct 2015 07:28:00 GMT", [1_000_000]
    assert fetch(server.url).read_bytes() == DATA and server.asked[-1] == "GET bytes=1000000-"
    server.data, server.modified = b"new", "Wed, 21 Oct 2016 07:28:00 GMT"
    assert fetch(server.url).read_bytes() == b"new"


@pytest.mark.parametrize("change", ["etag", "size"])
def test_a_file_that_changed_is_loaded_again(server, change):
    fetch(server.url)
    if change == "etag":
        server.data, server.etag = bytes(len(DATA)), '"two"'
    else:
        server.data, server.etag = DATA[:-1], ""
    assert fetch(server.url).read_bytes() == server.data


def test_a_cached_file_serves_where_head_is_refused_or_nobody_answers(server):
    file = fetch(server.url)
    server.head = False
    assert fetch(server.url) == file
    server.close()
    for _ in range(2):
        assert fetch(server.url) == file and file.read_bytes() == DATA
    assert len(remotes._silent) == 1  # asked no more


@pytest.mark.parametrize("damage", ["cut", "gone", "unknown"])
def test_a_cached_file_that_was_damaged_is_loaded_again(server, damage):
    file = fetch(server.url)
    if damage == "cut":
        file.write_bytes(DATA[:100])
    elif damage == "gone":
        file.unlink()
    else:
        file.with_name(file.name + ".json").write_text("[")
    assert fetch(server.url).read_bytes() == DATA


def test_a_server_that_is_busy_is_asked_again(server):
    server.answers = [503, 429]
    assert fetch(server.url).read_bytes() == DATA and len(server.asked) == 3
    server.answers = [500, 502, 504]
    with pytest.raises(DataError, match="504"):
        fetch(server.url + ".other")


@pytest.mark.parametrize(
    ("status", "advice"), [(404, "Check the address"), (410, "Check"), (403, "password"), (401, "password")]
)
def test_a_refusal_is_final_and_says_what_to_do(server, status, advice):
    server.answers = [status]
    with pytest.raises(DataError, match=f"the server answers {status}") as caught:
        fetch(server.url)
    assert advice in caught.value.hint and len(server.asked) == 1


def test_an_unknown_length_is_loaded_to_its_end(server):
    server.length = False
    assert fetch(server.url).read_bytes() == DATA
    server.length = True
    assert fetch(server.url).read_bytes() == DATA


def test_nobody_there_and_addresses_that_are_none(server, tmp_path):
    server.close()
    with pytest.raises(DataError, match="could not be loaded"):
        fetch(server.url)
    with pytest.raises(DataError, match="http"):
        fetch("http://")
    with pytest.raises(DataError):
        fetch("nosuchscheme://bucket/a.tar")


def test_an_address_for_a_package_that_is_not_there(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match="is read by the package fsspec") as caught:
        fetch("s3://bucket/a.tar")
    assert "pip install fsspec" in caught.value.hint


def test_an_address_for_which_fsspec_lacks_a_package(server, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3://bucket/a\.tar: cannot be read by fsspec: Install s3fs") as caught:
        fetch("s3://bucket/a.tar")
    assert "fsspec, which is not installed" not in caught.value.message and "pip install s3fs" in caught.value.hint


def test_a_password_in_an_address_is_not_shown(server):
    server.answers = [404]
    with pytest.raises(DataError) as caught:
        fetch(server.url + "?signature=hush")
    assert "hush" not in str(caught.value)
    assert remotes.shown("https://me:hush@host/a.tar?key=hush#x") == "https://host/a.tar"


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written") as caught:
        fetch(server.url)
    assert "CLIPLET_CACHE" in caught.value.hint


def test_a_full_disk_is_no_fault_of_the_network(server, tmp_path):
    code = (
        "import resource, sys\n"
        "from cliplet.data.downloads import fetch\n"
        "from cliplet.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try:\n    fetch(sys.argv[1])\nexcept DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=60)
    assert "cannot be written: File too large" in done.stdout and len(server.asked) == 1, done.stderr
    assert fetch(server.url).read_bytes() == DATA


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "a"))
    assert downloads_folder() == tmp_path / "a" / "downloads"
    monkeypatch.delenv("CLIPLET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert downloads_folder() == tmp_path / "b" / "cliplet" / "downloads"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert downloads_folder() == tmp_path / "c" / ".cache" / "cliplet" / "downloads"


def test_many_who_want_one_file_load_it_once(server):
    files = []
    threads = [threading.Thread(target=lambda: files.append(fetch(server.url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(files)) == 1 and files[0].read_bytes() == DATA
    assert sum(asked.startswith("GET") for asked in server.asked) == 1


def test_a_process_killed_while_loading_leaves_what_another_goes_on_with(server):
    code = "import sys\nfrom cliplet.data.downloads import fetch\nfetch(sys.argv[1])"
    sent = threading.Event()
    hold = threading.Event()

    def slow(handler):
        handler.answer(200, len(DATA))
        handler.wfile.write(DATA[:3_500_000])
        sent.set()
        hold.wait(20)

    fast, server.get = server.get, slow
    process = subprocess.Popen([sys.executable, "-c", code, server.url])
    assert sent.wait(20)
    (part,) = _until(lambda: [*downloads_folder().glob("*.part")])
    _until(lambda: part.stat().st_size >= 2**20)
    process.kill()
    process.wait()
    hold.set()
    server.get = fast
    have = part.stat().st_size
    assert hashlib.sha256(fetch(server.url).read_bytes()).digest() == hashlib.sha256(DATA).digest()
    assert server.asked[-1] == f"GET bytes={have}-"


def _until(condition):
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value
