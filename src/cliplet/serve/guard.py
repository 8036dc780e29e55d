"""What stands between the network and the service: every request passes here, and every answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliplet.serve.access import ADMITTED, SECURITY_HEADERS, Access
from cliplet.serve.limits import Body, Buckets, client_key, most_bytes
from cliplet.serve.metrics import Metrics
from cliplet.serve.pools import CLIENT
from cliplet.serve.refusals import Refused, log, unexpected
from cliplet.serve.settings import Settings

UNKNOWN = "other"  # the route of a request that none fits
LEFT = 499  # what is counted for a client that left before its answer began


class Guard:
    """Access, limits, the time of a request, security headers, counting and logging, around any ASGI application."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access, metrics: Metrics):
        self._app, self._settings, self._access, self._metrics = app, settings, access, metrics
        self._rate = Buckets(settings.rate, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        method, headers = scope["method"], Headers(scope=scope)
        client = client_key((scope.get("client") or ("",))[0])
        CLIENT.set(client)
        body = self._body(scope["path"], headers, receive)
        seen = _Seen(send, body)
        try:
            self._admit(scope, headers, body, client)
            if method == "HEAD":  # the server leaves the content away; the application need not know
                scope = {**scope, "method": "GET", "head": True}
            await self._timed(scope, body, seen)
        except Refused as refused:
            await refused.response()(scope, receive, seen.send)
        except Exception as error:
            if not isinstance(error, ClientDisconnect):  # which is none of the service's errors
                answer = unexpected(error, method, _route(scope))
                if seen.status:  # half an answer is out, and only the connection's end can tell that there is no more
                    raise
                await answer(scope, receive, seen.send)
        finally:
            seconds, status = time.perf_counter() - start, seen.status or LEFT
            self._metrics.request(method, _route(scope), status, seconds)
            if self._settings.log:  # without the query, which says what people look for
                log.info("%s %s %s %d %.1f ms", client, method, ascii(scope["path"]), status, 1000 * seconds)

    def _body(self, path: str, headers: Headers, receive: Receive) -> Body:
        settings = self._settings
        most = most_bytes(path, headers.get("content-type", ""), settings)
        return Body(receive, headers, most, settings.body_seconds, settings.body_rate, settings.body_most_seconds)

    def _admit(self, scope: Scope, headers: Headers, body: Body, client: str) -> None:
        """Raises Refused for a request that may not go on."""
        wait = self._rate.take(client)
        if wait:
            raise Refused(
                429, f"more than {self._settings.rate:g} requests a second", headers={"retry-after": str(int(wait) + 1)}
            )
        scope[ADMITTED] = self._access.check(scope, headers, client)
        body.refuse_announced()

    async def _timed(self, scope: Scope, body: Body, seen: _Seen) -> None:
        """Runs the application; raises Refused where its answer does not begin in time, for which the body's time does
        not count, or where the service is being stopped. Nothing is done any more for a client that has left."""
        task = asyncio.current_task()
        assert task is not None
        clock = _Clock(task, self._settings.request_seconds, body, seen)
        watch = asyncio.create_task(_watch(task, body, seen))
        try:
            await self._app(scope, body.receive, seen.send)
        except asyncio.CancelledError:
            if seen.status:
                raise
            if hasattr(task, "uncancel"):  # from Python 3.11 on, a task counts how often it was cancelled
                task.uncancel()
            if body.left:
                return
            if clock.late:
                raise self._too_late() from None
            body.done = True  # there is no time to let the rest of it come in
            raise Refused(
                503, "the service is being stopped", "Try again when it runs.", {"connection": "close"}
            ) from None
        finally:
            watch.cancel()
            clock.stop()

    def _too_late(self) -> Refused:
        return Refused(
            503, f"no answer within {self._settings.request_seconds:g} seconds", headers={"retry-after": "5"}
        )


class _Seen:
    """Passes an answer on, with the headers that every answer has; its status, once it began.

    Before its end it lets the rest of an unread body come in: a client that sends all before it listens would lose the
    answer, were the connection closed on it.
    """

    def __init__(self, send: Send, body: Body):
        self._send, self._body = send, body
        self.status = 0

    async def send(self, message: Message) -> None:
        if self._body.left and not self.status:
            return  # nobody hears it, and it is not counted as an answer
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
            message = {**message, "headers": headers.raw}
            self.status = message["status"]
        elif not message.get("more_body", False) and not self._body.done:
            await self._send({**message, "more_body": True})
            await self._body.drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)


class _Clock:
    """Cancels a task whose answer does not begin in time. The time that a body takes is not counted."""

    def __init__(self, task: asyncio.Task[Any], seconds: float, body: Body, seen: _Seen):
        self._task, self._seconds, self._body, self._seen = task, seconds, body, seen
        self._start, self.late = time.monotonic(), False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def stop(self) -> None:
        """It is not needed any more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._start + self._seconds + self._body.waited() - time.monotonic()
        if self._seen.status:
            return
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self.late = True
            self._task.cancel()


async def _watch(task: asyncio.Task[Any], body: Body, seen: _Seen) -> None:
    """Cancels a task for whose answer nobody waits any more, before it began."""
    await body.client_left()
    if not seen.status:
        task.cancel()


def _route(scope: Scope) -> str:
    """The route as it is written, so that what is counted does not grow with what is asked."""
    return getattr(scope.get("route"), "path", UNKNOWN)
