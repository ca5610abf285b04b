"""Translates between protos and Python, and sets status codes; nothing else."""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import grpc
from grpc_status import rpc_status

from data.errors import QueryError
from data.pairs import AttributeValue
from protos.imageretrieval.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
)
from serving.error_details import NotReady, status_of
from serving.search_engine import (
    DEFAULT_K,
    ImageIdQuery,
    ImageQuery,
    Query,
    SearchEngine,
    TextQuery,
    VectorQuery,
)
from serving.vector_index import SearchHit

SERVICES = tuple(
    descriptor.services_by_name[name].full_name
    for descriptor, name in (
        (search_service_pb2.DESCRIPTOR, "SearchService"),
        (embedding_service_pb2.DESCRIPTOR, "EmbeddingService"),
        (index_service_pb2.DESCRIPTOR, "IndexService"),
    )
)

# What the engine calls a field → where the field stands in a request.
_FIELDS = {
    "text": "query.text",
    "image": "query.image",
    "image_id": "query.image_id",
    "vector": "query.vector.values",
    "k": "page_size",
}

_log = logging.getLogger(__name__)
_Response = TypeVar("_Response")


@dataclass
class LiveEngine:
    """What answers now; None until the model and the index are loaded."""

    engine: SearchEngine | None = None


def add_services(server: grpc.aio.Server, live: LiveEngine) -> None:
    """Register the three services."""
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(SearchService(live), server)
    embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(EmbeddingService(live), server)
    index_service_pb2_grpc.add_IndexServiceServicer_to_server(IndexService(live), server)


def _answering(handler: Callable[..., Awaitable[_Response]]) -> Callable[..., Awaitable[_Response]]:
    """Give a handler the live engine and the deadline (event-loop time or None), and clients a status for every error.

    A handler is called as `handler(service, engine, request, deadline)`.
    """

    @functools.wraps(handler)
    async def answer(service: Any, request: Any, context: grpc.aio.ServicerContext) -> _Response:
        try:
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                raise TimeoutError
            if service.live.engine is None:
                raise NotReady
            deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
            return await handler(service, service.live.engine, request, deadline)
        except Exception as error:
            if isinstance(error, QueryError):
                error.field = _FIELDS.get(error.field, error.field)
            request_id = uuid.uuid4().hex
            status = rpc_status.to_status(status_of(error, request_id))
            if status.code is grpc.StatusCode.INTERNAL:
                _log.exception("request %s failed in %s", request_id, handler.__qualname__)
        await context.abort(status.code, status.details, status.trailing_metadata)
        raise AssertionError("abort always raises")

    return answer


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """See protos/imageretrieval/v1/search_service.proto."""

    def __init__(self, live: LiveEngine) -> None:
        self.live = live

    @_answering
    async def Search(
        self, engine: SearchEngine, request: search_service_pb2.SearchRequest, deadline: float | None
    ) -> search_service_pb2.SearchResponse:
        """Rank the indexed images."""
        k = request.page_size or DEFAULT_K
        min_score = request.min_score if request.HasField("min_score") else None
        answer = await engine.search(_query(request.query), k, min_score, deadline, request.filter)
        return search_service_pb2.SearchResponse(
            hits=[_hit(hit) for hit in answer.hits],
            model_revision=engine.runtime.fingerprint,
            index_revision=answer.index_revision,
        )


class EmbeddingService(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """See protos/imageretrieval/v1/embedding_service.proto."""

    def __init__(self, live: LiveEngine) -> None:
        self.live = live

    @_answering
    async def EmbedTexts(
        self, engine: SearchEngine, request: embedding_service_pb2.EmbedTextsRequest, deadline: float | None
    ) -> embedding_service_pb2.EmbedTextsResponse:
        """Embed texts."""
        embeddings = await engine.embed_texts(request.texts, deadline)
        return embedding_service_pb2.EmbedTextsResponse(
            embeddings=[query_pb2.Vector(values=row) for row in embeddings.tolist()],
            model_revision=engine.runtime.fingerprint,
        )

    @_answering
    async def EmbedImages(
        self, engine: SearchEngine, request: embedding_service_pb2.EmbedImagesRequest, deadline: float | None
    ) -> embedding_service_pb2.EmbedImagesResponse:
        """Embed images."""
        embeddings = await engine.embed_images(request.images, deadline)
        return embedding_service_pb2.EmbedImagesResponse(
            embeddings=[query_pb2.Vector(values=row) for row in embeddings.tolist()],
            model_revision=engine.runtime.fingerprint,
        )


class IndexService(index_service_pb2_grpc.IndexServiceServicer):
    """See protos/imageretrieval/v1/index_service.proto."""

    def __init__(self, live: LiveEngine) -> None:
        self.live = live

    @_answering
    async def GetIndex(
        self, engine: SearchEngine, request: index_service_pb2.GetIndexRequest, deadline: float | None
    ) -> index_service_pb2.GetIndexResponse:
        """Describe the index."""
        with engine.store.view() as view:
            described = view.describe()
        index = index_service_pb2.Index(
            snapshot=described.snapshot,
            image_count=described.image_count,
            dimension=described.dimension,
            kind=described.kind,
            model_name=described.model_name,
            model_revision=described.model_fingerprint,
            source=described.source,
        )
        index.create_time.FromDatetime(described.create_time)
        return index_service_pb2.GetIndexResponse(index=index)


def _query(query: query_pb2.Query) -> Query:
    match query.WhichOneof("input"):
        case "text":
            return TextQuery(query.text)
        case "image":
            return ImageQuery(query.image)
        case "image_id":
            return ImageIdQuery(query.image_id)
        case "vector":
            return VectorQuery(query.vector.values)
    raise QueryError("query", "a text, an image, an image_id or a vector", "none", "set one input of the query")


def _hit(hit: SearchHit) -> search_service_pb2.SearchHit:
    return search_service_pb2.SearchHit(
        image_id=hit.image_id,
        score=hit.score,
        rank=hit.rank,
        captions=hit.captions,
        attributes={name: _attribute(value) for name, value in hit.attributes.items()},
    )


def _attribute(value: AttributeValue) -> query_pb2.AttributeValue:
    if isinstance(value, bool):  # before int, of which it is a subclass
        return query_pb2.AttributeValue(bool_value=value)
    if isinstance(value, int):
        return query_pb2.AttributeValue(int_value=value)
    if isinstance(value, float):
        return query_pb2.AttributeValue(double_value=value)
    if isinstance(value, str):
        return query_pb2.AttributeValue(string_value=value)
    if isinstance(value, datetime):
        return query_pb2.AttributeValue(timestamp_value=value)
    return query_pb2.AttributeValue(string_list_value=query_pb2.StringList(values=value))
