"""What is asked of the service itself: what it serves, whether it lives, and a cookie for browsers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cliplet.serve.access import Access
from cliplet.serve.forms import Health, LibraryAnswer, SessionAnswer, SessionRequest
from cliplet.serve.limits import client_key
from cliplet.serve.metrics import CONTENT_TYPE, Metrics
from cliplet.serve.pages import docs_page
from cliplet.serve.refusals import CountingRoute
from cliplet.serve.service import Service


def service_router(
    service: Service, access: Access, metrics: Metrics, described: Callable[[], dict[str, Any]]
) -> APIRouter:
    """The routes. `described`: the interface in OpenAPI."""
    router = APIRouter(route_class=CountingRoute)
    as_json = cache(lambda: json.dumps(described()))

    @router.get("/api/libraries")
    async def libraries() -> list[LibraryAnswer]:
        """The libraries that are served."""
        return [await served.described() for served in service.all()]

    @router.post("/api/session")
    async def session(asked: SessionRequest, request: Request, response: Response) -> SessionAnswer:
        """A cookie that stands for the token: browsers can send no other proof with a picture's address."""
        client = client_key(request.client.host if request.client else "")
        cookie = access.session(asked.token, request.scope, client)
        if cookie:
            response.headers["set-cookie"] = cookie
        return SessionAnswer(token_needed=bool(cookie))

    @router.get("/health")
    async def health() -> Health:
        """That the service is there. It asks for no token."""
        return Health(libraries=len(service.all()))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Counters."}},
    )
    async def counters() -> Response:
        """Counters for Prometheus: answers, seconds, sizes of batches, pictures, memory."""
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(as_json(), media_type="application/json")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page(described())

    return router
