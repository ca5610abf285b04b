"""Searching and embedding, and the list of all services: translates between protos and Python; nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from protos.imageretrieval.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    image_service_pb2,
    index_service_pb2,
    operation_service_pb2,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
    status_pb2,
)
from serving.bounded_requests import BoundedServer
from serving.call_guard import Call, CallGuard
from serving.grpc_methods import add_service
from serving.image_service import ImageService
from serving.index_service import IndexService
from serving.method_policies import Scope
from serving.operation_service import OperationService
from serving.overload import Overloaded
from serving.proto_values import HIT_FIELDS, options_of, query_of, read_mask, response_of, set_certificate
from serving.queries import check_count, texts_of
from serving.streams import as_they_come

MAX_SEARCHES = 64

_SERVICES = {
    search_service_pb2.DESCRIPTOR.services_by_name["SearchService"]: lambda guard: SearchService(guard),
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]: lambda guard: EmbeddingService(guard),
    image_service_pb2.DESCRIPTOR.services_by_name["ImageService"]: lambda guard: ImageService(guard),
    index_service_pb2.DESCRIPTOR.services_by_name["IndexService"]: lambda guard: IndexService(guard),
    operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"]: lambda guard: OperationService(guard),
}
SERVICES = tuple(descriptor.full_name for descriptor in _SERVICES)


def add_services(server: BoundedServer, guard: CallGuard, admin: bool = False) -> None:
    """Register the services; `admin` where operators may call."""
    for descriptor, make in _SERVICES.items():
        add_service(server, descriptor, make(guard), guard, admin)


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """See protos/imageretrieval/v1/search_service.proto."""

    def __init__(self, guard: CallGuard) -> None:
        self.guard = guard

    async def Search(self, request: search_service_pb2.SearchRequest, call: Call) -> search_service_pb2.SearchResponse:
        """Rank the indexed images."""
        return await _search(request, call)

    async def BatchSearch(
        self, request: search_service_pb2.BatchSearchRequest, call: Call
    ) -> search_service_pb2.BatchSearchResponse:
        """Answer several searches."""
        check_count("requests", len(request.requests), MAX_SEARCHES)
        call.charge(len(request.requests) - 1)
        results = await asyncio.gather(*(self._result(one, call) for one in request.requests))
        return search_service_pb2.BatchSearchResponse(results=results)

    def StreamSearch(
        self, requests: AsyncIterator[search_service_pb2.StreamSearchRequest], call: Call
    ) -> AsyncIterator[search_service_pb2.StreamSearchResponse]:
        """Answer searches as they come."""

        async def answer(request: search_service_pb2.StreamSearchRequest) -> search_service_pb2.StreamSearchResponse:
            result = await self._result(request.request, call, in_stream=True)
            return search_service_pb2.StreamSearchResponse(tag=request.tag, result=result)

        return as_they_come(requests, answer)

    async def _result(
        self, request: search_service_pb2.SearchRequest, call: Call, in_stream: bool = False
    ) -> search_service_pb2.SearchResult:
        try:
            if not in_stream:
                return search_service_pb2.SearchResult(response=await _search(request, call, bulk=True))
            call.charge()
            with call.now() as current:
                return search_service_pb2.SearchResult(response=await _search_in_stream(request, current))
        except Exception as error:
            status = self.guard.status(error, call.method, call.request_id)
            told = status_pb2.Status(code=status.code, message=status.message, details=status.details)
            return search_service_pb2.SearchResult(error=told)


async def _search_in_stream(request: search_service_pb2.SearchRequest, call: Call) -> search_service_pb2.SearchResponse:
    """A stream waits, among the bulk work, where a call is refused: its client sees by that how fast it may send."""
    full = call.engine.encoder.texts.refusal() is not None
    try:
        return await _search(request, call, bulk=full)
    except Overloaded:
        if full:
            raise
        return await _search(request, call, bulk=True)


async def _search(
    request: search_service_pb2.SearchRequest, call: Call, bulk: bool = False
) -> search_service_pb2.SearchResponse:
    mask = read_mask(request.read_mask, HIT_FIELDS)
    if "vector" in mask.fields:
        call.require(Scope.VECTORS)
    query = query_of(request.query)
    answer = await call.engine.search(query, options_of(request, mask), call.deadline, bulk=bulk)
    call.searched(answer, texts_of(query))
    response = response_of(answer, mask, call.engine.runtime.fingerprint, request.with_timings)
    if not request.with_certificate:
        return response
    certified = search_service_pb2.SearchResponse()
    certified.CopyFrom(response)
    with call.engine.store.view() as view:
        set_certificate(certified, view.describe().certificate)
    return certified


class EmbeddingService(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """See protos/imageretrieval/v1/embedding_service.proto."""

    def __init__(self, guard: CallGuard) -> None:
        self.guard = guard

    async def EmbedTexts(
        self, request: embedding_service_pb2.EmbedTextsRequest, call: Call
    ) -> embedding_service_pb2.EmbedTextsResponse:
        """Embed texts."""
        call.charge(len(request.texts) - 1)
        embeddings = await call.engine.embed_texts(request.texts, call.deadline)
        return embedding_service_pb2.EmbedTextsResponse(
            embeddings=[query_pb2.Vector(values=row) for row in embeddings.tolist()],
            model_revision=call.engine.runtime.fingerprint,
        )

    async def EmbedImages(
        self, request: embedding_service_pb2.EmbedImagesRequest, call: Call
    ) -> embedding_service_pb2.EmbedImagesResponse:
        """Embed images."""
        call.charge(len(request.images) - 1)
        embeddings = await call.engine.embed_images(request.images, call.deadline)
        return embedding_service_pb2.EmbedImagesResponse(
            embeddings=[query_pb2.Vector(values=row) for row in embeddings.tolist()],
            model_revision=call.engine.runtime.fingerprint,
        )
