"""Tokens, and names and sites by which a service may be asked."""

import pytest
from starlette.datastructures import Headers

from cliplet.errors import ConfigError
from cliplet.serve.access import Access, new_token
from cliplet.serve.refusals import Refused
from cliplet.serve.settings import Settings, is_loopback

TOKEN = "a-token-of-many-letters"


def scope(method="GET", path="/api/libraries", scheme="http"):
    return {"type": "http", "method": method, "path": path, "scheme": scheme, "server": ("127.0.0.1", 8300)}


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
    assert status_of(local, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}) == 403
    assert status_of(local, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) == 200
    assert status_of(local, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, method="POST") == 403


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


def test_a_client_that_guesses_is_not_told_whether_it_is_right(guarded):
    for _ in range(3):
        assert status_of(guarded, {"authorization": "Bearer wrong"}, client="guesser") == 401
    assert status_of(guarded, {"authorization": f"Bearer {TOKEN}"}, client="guesser") == 429
    with pytest.raises(Refused) as refused:
        guarded.session(TOKEN, scope(), "guesser")
    assert refused.value.status_code == 429 and int(refused.value.headers["retry-after"]) > 0
    assert status_of(guarded, {"authorization": f"Bearer {TOKEN}"}, client="other") == 200
    assert status_of(guarded, client="guesser") == 401  # whoever shows none guesses nothing


def test_no_cookie_is_made_without_a_token(local):
    assert local.session("anything", scope(), "a") == ""


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
