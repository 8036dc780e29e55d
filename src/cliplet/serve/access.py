"""Who may ask: tokens, and what a browser must not be made to ask by the page of another."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from http.cookies import SimpleCookie

from starlette.datastructures import Headers
from starlette.types import Scope

from cliplet.errors import ConfigError
from cliplet.serve.limits import Buckets, client_key
from cliplet.serve.refusals import Refused
from cliplet.serve.settings import Settings, is_loopback

OPEN = ("/", "/health", "/favicon.ico", "/api/session")  # what holds nothing of a library
OPEN_BELOW = "/static/"
ADMITTED = "cliplet.admitted"  # in a request's scope: whether its client has shown that it may ask
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
TOKEN_HINT = "Start it with one: in CLIPLET_TOKEN, or Settings(token=...)."
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
        """`address`: where the service listens, in numbers; anything but loopback needs a token.

        Raises ConfigError where it has public names and no token.
        """
        self._local = is_loopback(address)
        if not self._local and not settings.token:
            raise ValueError("a service that others can reach needs a token")
        if settings.names and not settings.token:
            raise ConfigError("--name makes the service one for others, so it needs a token", TOKEN_HINT)
        self._token = settings.token.encode()
        public = [name.lower().removesuffix(":443") for name in settings.names]
        self._public_names = {name.partition(":")[0] for name in public}
        self._public_origins = {f"https://{name}" for name in public}
        self._names = {*LOCAL_NAMES, settings.host.lower(), *self._public_names}
        self._refused = Buckets(settings.refused_tokens / 60, settings.refused_tokens)

    def check(self, scope: Scope, headers: Headers, client: str) -> bool:
        """Whether the client has shown that it may ask; False for what strangers may ask as well.

        Raises Refused for a request that may not be answered.
        """
        path = scope["path"]
        if not self._token:
            _refuse_other_machines(scope)
        if self._local:
            self._refuse_other_names(headers)
        self._refuse_other_sites(scope, headers)
        if not self._token:
            return True
        if path in OPEN or path.startswith(OPEN_BELOW):
            return False
        self._refuse_strangers(scope, headers, client)
        return True

    def session(self, token: str, scope: Scope, client: str) -> str:
        """The cookie of a client that shows the token, as a header's value. Raises Refused for a wrong one."""
        if not self._token:
            return ""
        if not self._is_token(token):
            raise self._wrong(client)
        cookie: SimpleCookie = SimpleCookie()
        name = _cookie_name(scope)
        cookie[name] = self._session_value()
        cookie[name]["path"] = "/"
        cookie[name]["httponly"] = True
        cookie[name]["samesite"] = "Strict"
        if scope.get("scheme") == "https" or self._is_public(Headers(raw=scope.get("headers", []))):
            cookie[name]["secure"] = True
        return cookie[name].OutputString()

    def _refuse_other_names(self, headers: Headers) -> None:
        """A name that leads here is no proof that the page was loaded from here: names can be bound to any address."""
        if _host_name(headers) not in self._names:
            raise Refused(
                421,
                "this service answers only to localhost, and was asked by another name",
                "To be reached by other names, it is started with --host, or behind a proxy with --name.",
            )

    def _refuse_other_sites(self, scope: Scope, headers: Headers) -> None:
        """Pages of others may lead a person to the page here, and no more: neither frames nor windows that they open
        may make the service work. Other ports and names beside this one are other sites too."""
        origin, reads = headers.get("origin"), scope["method"] in ("GET", "HEAD", "OPTIONS")
        followed = reads and scope["path"] == "/" and headers.get("sec-fetch-dest") == "document"
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not followed
        if origin is not None and not reads:
            foreign = foreign or not self._is_own(origin.lower(), headers.get("host", "").lower())
        if foreign:
            raise Refused(403, "this was asked by the page of another site")

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is this service's. A proxy may pass another name on than it was asked by."""
        # The scheme may be another outside of a proxy that ends TLS; the name and port are the browser's.
        return origin in self._public_origins or (host != "" and origin.partition("://")[2] == host)

    def _is_public(self, headers: Headers) -> bool:
        """Whether a browser asked by a public name, which is to say by https."""
        asked = headers.get("origin", "").lower() in self._public_origins
        return asked or _host_name(headers) in self._public_names

    def _refuse_strangers(self, scope: Scope, headers: Headers, client: str) -> None:
        right = self._session_value().encode()
        cookies = _cookies(headers, _cookie_name(scope))
        if any(hmac.compare_digest(value.encode(), right) for value in cookies):
            return
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":  # a cookie is no attempt: it may be that of the service that ran before
            raise _unknown("this service asks for its token")
        if not self._is_token(shown.strip()):
            raise self._wrong(client)

    def _wrong(self, client: str) -> Refused:
        """Of a wrong token. The right one passes however many wrong ones came before: behind a proxy all clients have
        one address, and nobody shall lock out the others."""
        wait = self._refused.take(client)
        if wait:
            return Refused(429, "too many wrong tokens", headers={"retry-after": str(int(wait) + 1)})
        return _unknown("the token is not right")

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


def _cookies(headers: Headers, name: str) -> list[str]:
    """The values of all cookies of a name. Those of others on this machine may be written in any way."""
    pairs = [pair.partition("=") for line in headers.getlist("cookie") for pair in line.split(";")]
    return [value.strip().strip('"') for found, _, value in pairs if found.strip() == name]


def _host_name(headers: Headers) -> str:
    """The name by which the service is asked, without its port; empty for none that can be."""
    match = HOST.fullmatch(headers.get("host", "").lower())
    return match[1] if match else ""


def _refuse_other_machines(scope: Scope) -> None:
    """Without a token, whatever the server that runs the application listens to, only this machine is answered."""
    ends = [scope.get("client"), scope.get("server")]
    if not all(end and is_loopback(client_key(str(end[0]))) for end in ends):
        raise Refused(403, "without a token this service answers only to its own machine", TOKEN_HINT)


def _unknown(message: str) -> Refused:
    hint = "Send it as 'Authorization: Bearer TOKEN'; it was printed when the service was started."
    return Refused(401, message, hint, {"www-authenticate": "Bearer"})
