"""Single pictures of a library: what is known of them, how well texts fit them, and their files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from cliplet.library.query import MAX_TERMS
from cliplet.serve.forms import (
    Filter,
    GalleryAnswer,
    K,
    Offset,
    PictureAnswer,
    ScoresAnswer,
    Sentence,
)
from cliplet.serve.originals import FileAnswer, file_headers, same_tag
from cliplet.serve.service import Service
from cliplet.serve.shown import picture_answer

SEVERAL = "A text; may stand several times."
Responses = dict[int | str, dict[str, Any]]
BINARY = {"schema": {"type": "string", "format": "binary"}}
THUMBNAIL: Responses = {
    200: {"content": {"image/webp": BINARY, "image/jpeg": BINARY}, "description": "A small picture."},
    304: {"description": "The client has it."},
}
ORIGINAL: Responses = {
    200: {"content": {"image/*": BINARY}, "description": "The file."},
    206: {"content": {"image/*": BINARY}, "description": "The bytes that Range asked for."},
    304: {"description": "The client has it."},
    416: {"description": "The file has no such bytes."},
}


def picture_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/{library}/pictures")

    @router.get("")
    async def newest(
        library: str,
        k: Annotated[K, Query(description="How many pictures.")] = 60,
        offset: Annotated[Offset, Query(description="How many are passed over.")] = 0,
        where: Annotated[Filter, Query(description="A filter: year = 2024 and width > 2000.")] = "",
    ) -> GalleryAnswer:
        """All pictures, the newest first."""
        pictures, total = await service.library(library).newest(k, offset, where)
        return GalleryAnswer(pictures=[picture_answer(one) for one in pictures], total=total)

    @router.get("/{id}")
    async def picture(library: str, id: str) -> PictureAnswer:
        """All that is known of a picture."""
        return picture_answer(await service.library(library).picture(id))

    @router.get("/{id}/scores")
    async def scores(
        library: str,
        id: str,
        q: Annotated[list[Sentence] | None, Query(max_length=MAX_TERMS, description=SEVERAL)] = None,
    ) -> ScoresAnswer:
        """How well texts fit a picture, and its own captions."""
        return await service.library(library).scores(id, q or [])

    @router.get("/{id}/thumbnail", response_class=Response, responses=THUMBNAIL)
    async def thumbnail(library: str, id: str, request: Request) -> Response:
        """A small picture, WebP or JPEG. A client that has it sends its ETag, and gets it no second time."""
        served = service.library(library)
        headers = {"cache-control": "private, no-cache"}  # the address says nothing of what the file holds
        if "if-none-match" in request.headers:
            tag = served.thumbnails.tag(await served.content(id))
            if same_tag(request.headers, tag):
                return Response(None, 304, {**headers, "etag": tag})
        shown, content = await served.file(id)
        data, kind = await served.thumbnails.get(shown, content)
        return Response(data, 200, {**headers, "content-type": kind, "etag": served.thumbnails.tag(content)})

    @router.get("/{id}/original", response_class=Response, responses=ORIGINAL)
    async def original(library: str, id: str) -> Response:
        """The picture's file as it is. Range is understood."""
        served = service.library(library)
        shown, content = await served.file(id)
        stream = await served.original(shown, content)
        return FileAnswer(stream, shown.bytes, file_headers(shown, content), served.read)

    return router
