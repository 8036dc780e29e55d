"""How much one client may ask: requests a second, bytes of a body, and the time it takes to send them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from cliplet.serve.refusals import Refused
from cliplet.serve.settings import MAX_JSON, MAX_JSON_SESSION, MAX_JSON_TEXTS, Settings

SESSION_PATH, TEXTS_END = "/api/session", "/embed/text"
PICTURE_ENDS = ("/uploads", "/search/picture", "/embed/image")
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 64 * 2**20
CLIENTS = 4096  # that are remembered; of more, those that asked longest ago are taken for new ones


class Buckets:
    """A budget for each client, of `burst` and filled again by `rate` a second. A rate of 0 has no end."""

    def __init__(self, rate: float, burst: float, now: Callable[[], float] = time.monotonic):
        self._rate, self._burst, self._now = rate, max(1.0, float(burst)), now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and when it was so

    def take(self, client: str) -> float:
        """Takes one; the seconds to wait where there is none left, else 0."""
        wait = self.would_wait(client)
        if self._rate and not wait:
            self._left[client] = (self._filled(client) - 1, self._now())
            self._left.move_to_end(client)
            while len(self._left) > CLIENTS:
                self._left.popitem(last=False)
        return wait

    def would_wait(self, client: str) -> float:
        """The seconds until one can be taken."""
        return max(0.0, (1 - self._filled(client)) / self._rate) if self._rate else 0.0

    def _filled(self, client: str) -> float:
        left, since = self._left.get(client, (self._burst, 0.0))
        return min(self._burst, left + (self._now() - since) * self._rate)


def client_key(address: str) -> str:
    """Who counts as one client: an address, or the network of 64 bits that one gets in IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False)) if not parsed.is_loopback else str(parsed)
    return str(parsed)


def most_bytes(path: str, kind: str, settings: Settings) -> int:
    """How large the body of a request may be: as large as what is asked for there needs. `kind`: its content type."""
    if path == SESSION_PATH:
        most = MAX_JSON_SESSION
    elif path.endswith(PICTURE_ENDS) and kind.lower().startswith("multipart/"):
        most = settings.max_body
    else:
        most = MAX_JSON_TEXTS if path.endswith(TEXTS_END) else MAX_JSON
    return min(settings.max_body, most)


class Body:
    """A request's body as it comes in: no larger than `most` bytes, and no slower than allowed.

    It has `seconds`, and a second more for each `rate` bytes that have come, whatever its headers promise, but never
    more than `most_seconds`.
    """

    def __init__(
        self,
        receive: Receive,
        headers: Headers,
        most: int,
        seconds: float,
        rate: int,
        most_seconds: float = math.inf,
    ):
        self._receive, self._most, self._seconds, self._rate = receive, most, seconds, rate
        self._most_seconds = most_seconds
        self._announced = headers.get("content-length", "")
        self._start: float | None = None
        self._asked: float | None = None  # when the part was asked for that is being waited for
        self._waited = 0.0
        self._got = 0
        self._end_told = False
        self._whole, self._gone = asyncio.Event(), asyncio.Event()
        self.done = False
        self.left = False  # whether the client has gone
        if self._announced in ("", "0") and "transfer-encoding" not in headers:
            self._end()

    async def client_left(self) -> None:
        """Ends when the client has left, once its body is whole; who waits for it is alone to do so."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True
        self._gone.set()

    def _end(self) -> None:
        self.done = True
        self._whole.set()

    def refuse_announced(self) -> None:
        """Raises Refused where the headers say already that it is too large."""
        if self._announced.isdecimal() and int(self._announced) > self._most:
            raise self._too_large()

    def waited(self) -> float:
        """Seconds that were spent waiting for the client."""
        return self._waited + (time.monotonic() - self._asked if self._asked is not None else 0.0)

    async def receive(self) -> Message:
        """The next part; after the last one, the client's leaving. Raises Refused with 413 or 408."""
        if self.done:
            if self._end_told:
                await self._gone.wait()
                return {"type": "http.disconnect"}
            self._end_told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        left = self._start + min(self._seconds + self._got / self._rate, self._most_seconds) - now
        self._asked = now
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError:
            raise Refused(408, "the body of the request came too slowly", headers={"connection": "close"}) from None
        finally:
            self._waited, self._asked = self.waited(), None
        if message["type"] != "http.request":
            self.left = self.done = self._end_told = True
            self._gone.set()
            return message
        self._got += len(message.get("body", b""))
        if self._got > self._most:
            raise self._too_large()
        if not message.get("more_body", False):
            self._end_told = True
            self._end()
        return message

    async def drain(self) -> None:
        """Lets the rest come in and forgets it, for a while: who sends more than that is not listening."""

        async def pass_over() -> None:
            got = 0
            while not self.done and got < DRAIN_BYTES:
                message = await self._receive()
                got += len(message.get("body", b""))
                self.done = not message.get("more_body", False)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(pass_over(), DRAIN_SECONDS)

    def _too_large(self) -> Refused:
        """The connection is closed after it, for the rest need not come."""
        size = f"{self._most / 2**20:,.0f} MB" if self._most >= 2**20 else f"{self._most:,} bytes"
        return Refused(413, f"the body of the request is larger than {size}", headers={"connection": "close"})
