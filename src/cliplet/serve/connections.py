"""HTTP connections that end by themselves: clients that send or read too slowly do not hold them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cliplet.serve.limits import client_key
from cliplet.serve.settings import Settings


def protocol_for(settings: Settings) -> type[H11Protocol]:
    """uvicorn's protocol with the limits of `settings`; one class for one server, for it counts connections."""
    clients: Counter[str] = Counter()

    class Connection(LimitedConnection):
        pass

    Connection.settings, Connection.clients = settings, clients
    return Connection


class LimitedConnection(H11Protocol):
    """One connection. uvicorn has no limit on the time that a request's headers take, nor on that of a client that
    reads nothing of its answer; both are timers here."""

    settings: Settings
    clients: Counter[str]

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._counted = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection; one too many is told so and closed."""
        super().connection_made(transport)
        self._counted = client_key(self.client[0] if self.client else "")
        self.clients[self._counted] += 1
        of_one, most = self.clients[self._counted], self.settings
        if len(self.connections) > most.max_connections or of_one > most.max_connections_of_one:
            transport.write(_busy())
            transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.clients[self._counted] -= 1
        if self.clients[self._counted] <= 0:
            del self.clients[self._counted]
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
