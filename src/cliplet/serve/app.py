"""The service as an application: its parts put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cliplet import __version__
from cliplet.serve.access import Access
from cliplet.serve.forms import Problem
from cliplet.serve.guard import Guard
from cliplet.serve.metrics import Metrics
from cliplet.serve.pages import pages_router, web_files
from cliplet.serve.picture_routes import picture_router
from cliplet.serve.refusals import install_handlers
from cliplet.serve.search_routes import search_router
from cliplet.serve.service import Service
from cliplet.serve.service_routes import service_router
from cliplet.serve.settings import THREADS_SECONDS, Settings

if TYPE_CHECKING:
    from cliplet.library.library import Library

DESCRIPTION = """Libraries of pictures, searched by what the pictures show. Errors are {"error", "hint"}. Where the
service was started with a token, all but /health asks for it: 'Authorization: Bearer TOKEN'."""
PROBLEMS = {
    400: "the request cannot be understood",
    401: "the token is missing or wrong",
    403: "asked by the page of another site, or by another machine without a token",
    404: "no such library, picture or address",
    408: "the body came too slowly",
    409: "the file was changed since it was indexed",
    413: "the body is too large",
    415: "what was sent is no picture, or one that is made to keep its decoder busy",
    421: "asked by a name that is not this machine's own",
    422: "a value that is not allowed",
    429: "too many requests or wrong tokens; Retry-After says when to come again",
    500: "an error of the service; its log tells more",
    503: "busy, for which Retry-After says when to come again, or being stopped",
}


def create_app(libraries: Mapping[str, Library], settings: Settings, address: str = "127.0.0.1") -> FastAPI:
    """The application, for any ASGI server; `serve` runs it with one that also limits slow clients.

    `libraries`: by the names that they get in addresses. `address`: where it will listen, in numbers: anywhere but on
    loopback, `settings.token` has to be set. Without a token it answers only to clients of this machine, wherever it
    is made to listen. Raises ConfigError for names that cannot stand in an address, ValueError without that token.
    """
    access = Access(settings, address)
    metrics = Metrics(lambda: service.sizes())
    service = Service(libraries, settings, metrics)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close, THREADS_SECONDS)

    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": told} for status, told in PROBLEMS.items()
    }
    app = FastAPI(
        title="cliplet",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # served with all else, below the same guard and by our own route
        redirect_slashes=False,
        lifespan=running,
        responses=responses,
    )
    app.state.service = service
    install_handlers(app)
    app.include_router(service_router(service, access, metrics, cache(lambda: _described(app))))
    app.include_router(search_router(service))
    app.include_router(picture_router(service))
    app.include_router(pages_router(web_files()))
    app.add_middleware(Guard, settings=settings, access=access, metrics=metrics)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The interface in OpenAPI."""
    return get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
