"""Who may ask: tokens, and what a browser must not be made to ask by the page of another."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.types import Scope

from cliplet.serve.limits import Buckets
from cliplet.serve.refusals import Refused
from cliplet.serve.settings import Settings, is_loopback

OPEN = ("/", "/health", "/favicon.ico", "/api/session")  # what holds nothing of a library
OPEN_BELOW = "/static/"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:@/\[\]]+)(:\d{1,5})?")
SECURITY_HEADERS = {
    # Pages load nothing from elsewhere, nothing elsewhere shows or reads what is served, and no file is taken for
    # another kind than it is said to be.
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Access:
    """Checks requests against the token and against where they come from."""

    def __init__(self, settings: Settings, address: str):
        """`address`: where the service listens, in numbers; anything but loopback needs a token."""
        self._local = is_loopback(address)
        if not self._local and not settings.token:
            raise ValueError("a service that others can reach needs a token")
        self._token = settings.token.encode()
        self._names = {*LOCAL_NAMES, settings.host.lower()}
        self._refused = Buckets(settings.refused_tokens / 60, settings.refused_tokens)

    def check(self, scope: Scope, headers: Headers, client: str) -> None:
        """Raises Refused for a request that may not be answered."""
        path = scope["path"]
        if self._local:
            self._refuse_other_names(headers)
        self._refuse_other_sites(scope, headers)
        if self._token and path not in OPEN and not path.startswith(OPEN_BELOW):
            self._refuse_strangers(scope, headers, client)

    def session(self, token: str, scope: Scope, client: str) -> str:
        """The cookie of a client that shows the token, as a header's value. Raises Refused for a wrong one."""
        if not self._token:
            return ""
        self._refuse_unless(self._is_token(token), client)
        cookie: SimpleCookie = SimpleCookie()
        name = _cookie_name(scope)
        cookie[name] = self._session_value()
        cookie[name]["path"] = "/"
        cookie[name]["httponly"] = True
        cookie[name]["samesite"] = "Strict"
        if scope.get("scheme") == "https":
            cookie[name]["secure"] = True
        return cookie[name].OutputString()

    def _refuse_other_names(self, headers: Headers) -> None:
        """A name that leads here is no proof that the page was loaded from here: names can be bound to any address."""
        match = HOST.fullmatch(headers.get("host", "").lower())
        if not match or match[1] not in self._names:
            raise Refused(
                421,
                "this service answers only to localhost, and was asked by another name",
                "To be reached by other names, it is started with --host, and asks for a token.",
            )

    @staticmethod
    def _refuse_other_sites(scope: Scope, headers: Headers) -> None:
        origin, reads = headers.get("origin"), scope["method"] in ("GET", "HEAD", "OPTIONS")
        followed = reads and headers.get("sec-fetch-mode") == "navigate"  # a link that a person went by
        foreign = headers.get("sec-fetch-site") == "cross-site" and not followed
        if origin is not None and not reads:
            # The scheme may be another outside of a proxy that ends TLS; the name and port are the browser's.
            foreign = foreign or origin.partition("://")[2].lower() != headers.get("host", "").lower()
        if foreign:
            raise Refused(403, "this was asked by the page of another site")

    def _refuse_strangers(self, scope: Scope, headers: Headers, client: str) -> None:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            self._refuse_unless(self._is_token(shown.strip()), client)
            return
        session = _cookie(headers, _cookie_name(scope))
        self._refuse_unless(
            hmac.compare_digest(session.encode(), self._session_value().encode()), client, bool(session)
        )

    def _refuse_unless(self, right: bool, client: str, shown: bool = True) -> None:
        """Raises Refused. A client that has shown many wrong tokens is not told whether the next one is right."""
        wait = self._refused.would_wait(client)
        if shown and wait:
            raise Refused(429, "too many wrong tokens", headers={"retry-after": str(int(wait) + 1)})
        if right:
            return
        if shown:
            self._refused.take(client)
        raise Refused(
            401,
            "the token is not right" if shown else "this service asks for its token",
            "Send it as 'Authorization: Bearer TOKEN'; it was printed when the service was started.",
            {"www-authenticate": "Bearer"},
        )

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "replace"), self._token)

    def _session_value(self) -> str:
        """What the cookie holds: it proves the token was shown once, and does not tell it."""
        return hmac.new(self._token, b"cliplet session", hashlib.sha256).hexdigest()


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(24)


def _cookie_name(scope: Scope) -> str:
    """Browsers keep one set of cookies for all ports of a machine, on which several services may run."""
    return f"cliplet-{(scope.get('server') or ('', 0))[1]}"


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""
