"""What a client is told when it does not get what it asked for: {"error": ..., "hint": ...}, whatever went wrong."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from cliplet.errors import ClipletError, ImageError
from cliplet.library.store import ChangedError

log = logging.getLogger("cliplet.serve")

WORDS = {
    400: "the request cannot be understood",
    404: "there is nothing here",
    405: "this address does not take that method",
    413: "the request is too large",
}
SHOWN = 200  # letters of what a client sent that are sent back to it
FILTER = "where"  # the field whose errors say that they are about it
MAX_STRINGS = 1000  # in a body of JSON, names of fields with them; 256 texts to embed are the most of use
MAX_PARTS = 200_000  # in it, of lists and objects, told by brackets and commas, of which texts may hold many too
LISTED = 5  # problems of a request that are named


class Refused(HTTPException):
    """A request that gets no answer. `headers` go with the refusal; `about` is the field that is at fault."""

    def __init__(
        self, status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None, about: str = ""
    ):
        super().__init__(status, message, dict(headers or {}))
        self.hint, self.about = hint, about

    def response(self) -> Response:
        """As it goes to the client."""
        return problem(self.status_code, self.detail, self.hint, self.headers, self.about)


def problem(
    status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None, about: str = ""
) -> Response:
    """The answer of a request that went wrong."""
    told = {"error": message, "hint": hint, **({"about": about} if about else {})}
    content = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json")


class CountingRoute(APIRoute):
    """A route that takes JSON of as many parts as there can be, and counts them before anybody reads it: of hundreds
    of thousands of fields, each an object and an error, all other clients would feel the time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As every route's."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def counted(request: Request) -> Response:
            body = await request.body()
            strings = body.count(b'"') - body.count(b'\\"')  # quotes of strings, not within them
            if strings > 2 * MAX_STRINGS or sum(map(body.count, (b"[", b"{", b","))) > MAX_PARTS:
                raise Refused(
                    422, f"the body has more than {MAX_STRINGS:,} texts and names of fields, or far more parts"
                )
            return await handler(request)

        return counted


def install_handlers(app: FastAPI) -> None:
    """Makes every error of `app` a `problem`."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ClipletError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def unexpected(error: BaseException, method: str, route: str) -> Response:
    """Of an error that nobody foresaw: the client gets a number, and the log what happened, under that number."""
    number = secrets.token_hex(6)
    log.error("%s: %s %s failed", number, method, route, exc_info=error)
    return problem(500, "the service failed at this request", f"Its log tells more, under {number}.")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClipletError)
    if isinstance(error, ChangedError):
        return problem(503, error.message, error.hint, {"retry-after": "5"})
    return problem(415 if isinstance(error, ImageError) else 422, error.message, error.hint)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    at_filter = all(one["loc"][1:] == (FILTER,) for one in errors)
    return problem(422, readable(errors), about=FILTER if at_filter else "")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, headers = WORDS.get(error.status_code, str(error.detail)), dict(error.headers or {})
    if error.status_code == 405:  # the error knows of one route of this address alone
        headers = {"allow": ", ".join(method for method in ("GET", "POST") if _takes(request, method))}
    return problem(error.status_code, message, "GET /docs lists what there is.", headers)


def _takes(request: Request, method: str) -> bool:
    """Whether the address of a request takes another method."""
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


def readable(errors: Sequence[Any]) -> str:
    """Pydantic's list of problems as text: `k: Input should be less than or equal to 1000; terms.0: ...`."""
    told = []
    for one in errors[:LISTED]:
        if one["type"] == "json_invalid":
            place, message = "the body", f"is not JSON: {one.get('ctx', {}).get('error', one['msg'])}"
        else:
            place = ".".join(str(part) for part in one["loc"][1:]) or "the body"
            message = str(one["msg"]).removeprefix("Value error, ")
        told.append(f"{place[:SHOWN]}: {message[:SHOWN]}")
    if len(errors) > LISTED:
        told.append(f"and {len(errors) - LISTED} more")
    return "; ".join(told)
