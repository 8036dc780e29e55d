"""Searches and vectors."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from cliplet.library.records import Hits
from cliplet.serve.forms import (
    Answer,
    By,
    CaptionsAnswer,
    CaptionsRequest,
    Filter,
    K,
    Offset,
    SearchRequest,
    SearchTerm,
    Sentence,
    TextsRequest,
    UploadAnswer,
    Vectors,
)
from cliplet.serve.libraries import parsed
from cliplet.serve.refusals import CountingRoute
from cliplet.serve.service import Service
from cliplet.serve.shown import caption_answer, hit_answer
from cliplet.serve.uploads import PICTURE_BODY


def search_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/{library}", route_class=CountingRoute)

    @router.get("/search")
    async def search(
        library: str,
        q: Annotated[Sentence, Query(description="What is looked for, in words.")],
        k: Annotated[K, Query(description="How many pictures.")] = 10,
        offset: Annotated[Offset, Query(description="How many of the best are passed over.")] = 0,
        where: Annotated[Filter, Query(description="A filter: year = 2024 and width > 2000.")] = "",
        by: Annotated[By, Query(description="Whether pictures are compared with it, or their captions.")] = "pictures",
    ) -> Answer:
        """Pictures that fit a text."""
        start = time.perf_counter()
        return _answer(await service.library(library).search([SearchTerm(text=q)], k, offset, where, by), start)

    @router.post("/search")
    async def search_by_terms(library: str, asked: SearchRequest) -> Answer:
        """Pictures that fit a sum of texts and pictures."""
        start, served = time.perf_counter(), service.library(library)
        return _answer(await served.search(asked.terms, asked.k, asked.offset, asked.where, asked.by), start)

    @router.post("/search/picture", openapi_extra=PICTURE_BODY)
    async def search_by_picture(
        library: str,
        request: Request,
        k: Annotated[K, Query(description="How many pictures.")] = 10,
        where: Annotated[Filter, Query(description="A filter: year = 2024 and width > 2000.")] = "",
    ) -> Answer:
        """Pictures that are like the one that is sent."""
        start, served = time.perf_counter(), service.library(library)
        condition = parsed(where)  # before anything is received
        return _answer(await served.search_like(await served.receive(request), k, condition), start)

    @router.post("/uploads", openapi_extra=PICTURE_BODY)
    async def upload(library: str, request: Request) -> UploadAnswer:
        """A picture that is to be part of queries. Its vector is remembered for half an hour, and no more of it."""
        served = service.library(library)
        received = await served.receive(request)
        return UploadAnswer(upload=served.uploads.put(received), width=received.width, height=received.height)

    @router.post("/captions")
    async def captions(library: str, asked: CaptionsRequest) -> CaptionsAnswer:
        """Captions of the library that fit a text or a picture."""
        start = time.perf_counter()
        hits = await service.library(library).captions(asked.terms, asked.k, asked.offset)
        return CaptionsAnswer(captions=[caption_answer(hit) for hit in hits], milliseconds=_since(start))

    @router.post("/embed/text")
    async def embed_texts(library: str, asked: TextsRequest) -> Vectors:
        """Vectors of texts, by the library's model."""
        vectors_ND = await service.library(library).model.texts(asked.texts)
        return Vectors(dims=vectors_ND.shape[1], embeddings=vectors_ND.tolist())

    @router.post("/embed/image", openapi_extra=PICTURE_BODY)
    async def embed_picture(library: str, request: Request) -> Vectors:
        """The vector of a picture, by the library's model."""
        received = await service.library(library).receive(request)
        return Vectors(dims=len(received.vector_D), embeddings=[received.vector_D.tolist()])

    return router


def _answer(hits: Hits, start: float) -> Answer:
    return Answer(
        hits=[hit_answer(hit) for hit in hits],
        nothing_fits=hits.nothing_fits,
        total=hits.total,
        milliseconds=_since(start),
    )


def _since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)
