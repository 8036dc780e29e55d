"""HTTP connections that end by themselves: clients that send or read too slowly do not hold them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cliplet.serve.access import ADMITTED
from cliplet.serve.limits import client_key
from cliplet.serve.settings import Settings


def protocol_for(settings: Settings) -> type[H11Protocol]:
    """uvicorn's protocol with the limits of `settings`; one class for one server, for it counts connections."""

    class Connection(LimitedConnection):
        pass

    Connection.settings, Connection.clients, Connection.opened = settings, Counter(), {}
    return Connection


class LimitedConnection(H11Protocol):
    """One connection. uvicorn has no limit on the time that a request's headers take, nor on that of a client that
    reads nothing of its answer; both are timers here."""

    settings: Settings
    clients: Counter[str]  # connections of each
    opened: dict[LimitedConnection, None]  # the oldest first

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._client = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection; where there is room for none, it is told so and closed."""
        super().connection_made(transport)
        self._client = client_key(self.client[0] if self.client else "")
        if not self._make_room():
            transport.write(_busy())
            transport.close()
            return
        self.opened[self] = None
        self.clients[self._client] += 1
        self._expect_head()

    def _make_room(self) -> bool:
        """Whether there is room for one more. The connection is closed for it that is needed least, so that whoever
        opens many and says nothing, or shows no token, keeps nobody out."""
        if self.clients[self._client] >= self.settings.max_connections_of_one:
            others = [one for one in self.opened if one._client == self._client]
        elif len(self.opened) >= self.settings.max_connections:
            others = list(self.opened)
        else:
            return True
        least = max(others, key=lambda one: one._needless(), default=None)  # of several, the oldest
        if least is None or not least._needless()[0]:
            return False
        least._forget()
        least.transport.abort()
        return True

    def _needless(self) -> tuple[int, int]:
        """2 for a connection on which nobody has shown yet that he may ask, 1 for one that waits for its next request,
        0 for one that is needed; and how many its client has."""
        admitted = self.scope is not None and bool(self.scope.get(ADMITTED))
        at_work = self.cycle is not None and not self.cycle.response_complete
        return (2 if not admitted else 0 if at_work else 1), self.clients[self._client]

    def _forget(self) -> None:
        if self in self.opened:
            del self.opened[self]
            self.clients[self._client] -= 1
            if not self.clients[self._client]:
                del self.clients[self._client]

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._forget()
        self._stop_head()
        self._stop_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and not self._unread():
            self._stop_head()

    def on_response_complete(self) -> None:
        """An answer is out. What is left of a body that nobody reads has as long as headers have."""
        super().on_response_complete()
        if self._unread() or (self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]):
            self._expect_head()

    def pause_writing(self) -> None:
        """The client reads slower than it is sent to."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._stop_write()

    def _unread(self) -> bool:
        """Whether the answer is complete and the request is not."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.head_seconds, self._cut)

    def _stop_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cut(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def _busy() -> bytes:
    content = json.dumps({"error": "too many connections", "hint": "Try again in a few seconds."}).encode()
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)
    )
