"""Tokens, and names and sites by which a service may be asked."""

import pytest
from starlette.datastructures import Headers

from cliplet.errors import ConfigError
from cliplet.serve.access import Access, new_token
from cliplet.serve.refusals import Refused
from cliplet.serve.settings import Settings, is_loopback

TOKEN = "a-token-of-many-letters"


def scope(method="GET", path="/api/libraries", scheme="http"):
    ends = {"server": ("127.0.0.1", 8300), "client": ("127.0.0.1", 50000)}
    return {"type": "http", "method": method, "path": path, "scheme": scheme, **ends}


def status_of(access, headers=None, client="a", **keywords):
    headers = Headers({"host": "localhost:8300", **(headers or {})})
    try:
        access.check(scope(**keywords), headers, client)
    except Refused as refused:
        return refused.status_code
    return 200


@pytest.fixture
def local():
    return Access(Settings(), "127.0.0.1")


@pytest.fixture
def guarded():
    return Access(Settings(token=TOKEN, refused_tokens=3), "0.0.0.0")


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "LOCALHOST:8300", "127.0.0.1:8300", "[::1]:8300"])
def test_names_of_this_machine_are_answered(local, host):
    assert status_of(local, {"host": host}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:8300",
        "localhost@evil.example",
        "",
        "localhost:x",
    ],
)
def test_names_that_only_lead_here_are_not(local, host):
    assert status_of(local, {"host": host}) == 421


def test_a_name_that_it_was_started_with_is_answered():
    named = Access(Settings(host="pc.local"), "127.0.1.1")
    assert status_of(named, {"host": "pc.local:8300"}) == 200 and status_of(named, {"host": "other.local"}) == 421


def test_the_pages_of_others_cannot_post(local):
    own = {"origin": "http://localhost:8300"}
    assert status_of(local, own, method="POST") == 200 and status_of(local, method="POST") == 200
    for origin in ("http://evil.example", "null", "http://localhost:9999", "http://localhost"):
        assert status_of(local, {"origin": origin}, method="POST") == 403
    assert status_of(local, {"origin": "http://evil.example"}) == 200  # what it gets, it cannot read
    assert status_of(local, {"origin": "null", "host": ""}, method="POST") != 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_the_pages_of_others_lead_to_the_page_and_no_further(local, site):
    """A link may be followed; a frame, a picture or a window at another address would make the service work."""
    followed = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert status_of(local, followed, path="/") == 200
    assert status_of(local, followed, path="/", method="POST") == 403
    for path in ("/api/libraries", "/api/photos/search", "/docs", "/health", "/api/photos/pictures/1/original"):
        assert status_of(local, followed, path=path) == 403
    for dest in ("iframe", "frame", "embed", "object", "image", "empty", ""):
        assert status_of(local, {**followed, "sec-fetch-dest": dest}, path="/") == 403
    assert status_of(local, {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}) == 403
    for own in ("same-origin", "none"):
        assert status_of(local, {"sec-fetch-site": own, "sec-fetch-dest": "empty"}) == 200


def test_without_a_token_nothing_listens_to_others():
    with pytest.raises(ValueError, match="needs a token"):
        Access(Settings(), "0.0.0.0")


def test_a_token_opens_what_is_closed(guarded):
    assert status_of(guarded) == 401
    assert status_of(guarded, {"authorization": f"Bearer {TOKEN}"}) == 200
    assert status_of(guarded, {"authorization": f"bearer {TOKEN}", "host": "any.example"}) == 200
    for wrong in (f"Bearer {TOKEN}x", "Bearer", "Bearer é", f"Basic {TOKEN}"):
        assert status_of(guarded, {"authorization": wrong}, client=wrong) == 401
    for path in ("/", "/health", "/static/app.js", "/api/session"):
        assert status_of(guarded, path=path) == 200
    for path in ("/metrics", "/docs", "/openapi.json", "/api/x/search", "/staticx", "//static/x"):
        assert status_of(guarded, path=path) == 401


def test_a_cookie_stands_for_the_token_and_does_not_tell_it(guarded):
    cookie = guarded.session(TOKEN, scope(), "a")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    assert TOKEN not in cookie and "Secure" in guarded.session(TOKEN, scope(scheme="https"), "a")
    pair = cookie.partition(";")[0]
    assert status_of(guarded, {"cookie": f"other=1; {pair}"}) == 200
    assert status_of(guarded, {"cookie": pair + "0"}) == 401 and status_of(guarded, {"cookie": "cliplet-8300"}) == 401
    other = Access(Settings(token=TOKEN + "2"), "0.0.0.0")
    assert status_of(other, {"cookie": pair}) == 401


def test_a_client_that_guesses_has_to_wait_and_locks_nobody_out(guarded):
    """Behind a proxy, the guesser and all others have one address."""
    for _ in range(3):
        assert status_of(guarded, {"authorization": "Bearer wrong"}, client="one") == 401
    assert status_of(guarded, {"authorization": "Bearer wrong"}, client="one") == 429
    with pytest.raises(Refused) as refused:
        guarded.session("wrong", scope(), "one")
    assert refused.value.status_code == 429 and int(refused.value.headers["retry-after"]) > 0
    assert status_of(guarded, {"authorization": f"Bearer {TOKEN}"}, client="one") == 200
    cookie = guarded.session(TOKEN, scope(), "one").partition(";")[0]
    assert status_of(guarded, {"cookie": cookie}, client="one") == 200
    assert status_of(guarded, {"authorization": "Bearer wrong"}, client="other") == 401
    assert status_of(guarded, client="one") == 401  # whoever shows none guesses nothing


def test_the_cookie_of_the_service_before_is_no_attempt(guarded):
    for _ in range(30):
        assert status_of(guarded, {"cookie": "cliplet-8300=" + "0" * 64}) == 401
    assert status_of(guarded, {"authorization": "Bearer wrong"}) == 401


@pytest.mark.parametrize(
    "others",
    ['prefs={"dark":true}; ', "name=José; ", "a=b c; ", "flag; ", 'x="open; ', "a[b]=1; ", "=; ", "cliplet-8300=old; "],
)
def test_the_cookies_of_others_do_no_harm(guarded, others):
    """All services of a machine get each other's, and not all of them write what the standard says."""
    cookie = guarded.session(TOKEN, scope(), "a").partition(";")[0]
    for line in (others + cookie, f"{cookie}; {others}"):
        headers = Headers(raw=[(b"host", b"pc"), (b"cookie", line.encode("latin-1"))])
        assert guarded.check(scope(), headers, "a")


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ({"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}, 200),
        ({"client": ("::1", 1), "server": ("::1", 2)}, 200),
        ({"client": ("::ffff:127.0.0.1", 1), "server": ("::ffff:127.0.0.1", 2)}, 200),
        ({"client": ("192.0.2.1", 1), "server": ("192.0.2.2", 2)}, 403),
        ({"client": ("192.0.2.1", 1), "server": ("127.0.0.1", 2)}, 403),
        ({"client": ("192.0.2.2", 1), "server": ("192.0.2.2", 2)}, 403),
        ({"client": None, "server": ("/run/cliplet.sock", None)}, 403),
    ],
    ids=str,
)
def test_without_a_token_only_this_machine_is_answered(local, guarded, ends, status):
    """Whatever the server that runs the application listens to: uvicorn does not tell it."""
    headers = Headers({"host": "localhost", "authorization": f"Bearer {TOKEN}"})
    assert guarded.check({**scope(), **ends}, headers, "a")
    if status == 200:
        assert local.check({**scope(), **ends}, headers, "a")
    else:
        with pytest.raises(Refused) as refused:
            local.check({**scope(), **ends}, headers, "a")
        assert refused.value.status_code == status and "CLIPLET_TOKEN" in refused.value.hint


def test_no_cookie_is_made_without_a_token(local):
    assert local.session("anything", scope(), "a") == ""


def test_public_names_need_a_token():
    with pytest.raises(ConfigError, match="needs a token"):
        Access(Settings(names=("photos.example.org",)), "127.0.0.1")


@pytest.mark.parametrize(
    "name", ["https://photos.example.org", "photos.example.org/", "*.example.org", "", "a b", "é.org"]
)
def test_names_that_no_host_has_are_refused(name):
    with pytest.raises(ConfigError, match="is no name of a host"):
        Settings(token=TOKEN, names=("pc", name))


def test_public_names_are_answered_and_are_https():
    named = Access(Settings(token=TOKEN, names=("Photos.example.org", "pc.example:8443")), "127.0.0.1")
    shown = {"authorization": f"Bearer {TOKEN}"}
    for host in ("photos.example.org", "PHOTOS.EXAMPLE.ORG:443", "pc.example:8443", "localhost:8300"):
        assert status_of(named, {**shown, "host": host}) == 200
    assert status_of(named, {**shown, "host": "other.example.org"}) == 421
    for origin, status in (
        ("https://photos.example.org", 200),
        ("https://pc.example:8443", 200),
        ("http://photos.example.org", 403),
        ("https://photos.example.org:8443", 403),
        ("https://pc.example", 403),
        ("https://evil.example.org", 403),
    ):
        assert status_of(named, {**shown, "host": "127.0.0.1:8300", "origin": origin}, method="POST") == status
    for name, value, secure in (
        ("origin", "https://photos.example.org", True),
        ("host", "photos.example.org", True),
        ("host", "localhost:8300", False),
    ):
        asked = {**scope(), "headers": [(name.encode(), value.encode())]}
        assert ("Secure" in named.session(TOKEN, asked, "a")) is secure


@pytest.mark.parametrize("token", ["short", "é" * 20, "a" * 20 + "\n"])
def test_tokens_that_are_easily_guessed_or_cannot_be_sent_are_refused(token):
    with pytest.raises(ConfigError, match="at least 16 letters"):
        Settings(token=token)


def test_made_tokens_can_be_used():
    assert Settings(token=new_token()).token != new_token()


@pytest.mark.parametrize(
    ("address", "own"), [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False)]
)
def test_which_addresses_are_this_machines_alone(address, own):
    assert is_loopback(address) is own
