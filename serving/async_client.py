"""The typed Python client for asyncio, with the methods of `serving.client.SearchClient`; knows no model.

Example:
    async with AsyncSearchClient("127.0.0.1:50051") as client:
        for hit in await client.search("a red bicycle", k=5):
            print(hit.score, hit.image_id)
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import grpc

from serving import client_calls as calls
from serving import client_image_calls as images
from serving import client_index_calls as upkeep
from serving import client_search_calls as searching
from serving.client_connection import ConnectionKeywords, Readiness, from_environment, stubs
from serving.client_errors import ServiceError, error_of_call
from serving.client_values import (
    Image,
    IndexStatus,
    Operation,
    Receipt,
    Search,
    SearchKeywords,
    SearchResults,
    Snapshot,
    Upload,
)

if TYPE_CHECKING:
    from serving.filters import Filter

R = TypeVar("R")
T = TypeVar("T")


class AsyncSearchClient:
    """A connection to a server, for the event loop in which it was made; arguments and errors as of `SearchClient`."""

    def __init__(
        self,
        address: str | None = None,
        timeout: float = 10.0,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        self._connection = from_environment(address=address, **connection)
        self.address = self._connection.address
        self.timeout = timeout
        self._channel = self._connection.async_channel()
        self._stubs = stubs(self._channel)

    async def __aenter__(self) -> AsyncSearchClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def search(
        self, text: str | None = None, *, timeout: float | None = None, **options: Unpack[SearchKeywords]
    ) -> SearchResults:
        """As `SearchClient.search`."""
        return await self._run(searching.search(Search(text, **options)), timeout)

    async def search_pages(
        self, text: str | None = None, *, timeout: float | None = None, **options: Unpack[SearchKeywords]
    ) -> AsyncIterator[SearchResults]:
        """As `SearchClient.search_pages`."""
        call: calls.Call[SearchResults] | None = searching.search(Search(text, **options))
        while call is not None:
            results = await self._run(call, timeout)
            yield results
            call = searching.search_after(call, results)

    async def batch_search(
        self, searches: Sequence[Search | str], *, timeout: float | None = None
    ) -> list[SearchResults | ServiceError]:
        """As `SearchClient.batch_search`."""
        return await self._run_all(searching.batch_search(searches), timeout)

    def stream_search(
        self, searches: Iterable[Search | str] | AsyncIterable[Search | str], *, timeout: float | None = None
    ) -> AsyncIterator[tuple[int, SearchResults | ServiceError]]:
        """As `SearchClient.stream_search`; in this event loop."""
        return self._stream(searching.SearchStream(), searches, timeout)

    async def embed_texts(self, texts: Sequence[str], *, timeout: float | None = None) -> list[list[float]]:
        """As `SearchClient.embed_texts`."""
        return await self._run_all(searching.embed_texts(texts), timeout)

    async def embed_images(self, images: Sequence[bytes], *, timeout: float | None = None) -> list[list[float]]:
        """As `SearchClient.embed_images`."""
        return await self._run_all(searching.embed_images(images), timeout)

    async def get_image(self, image_id: str, *, fields: Sequence[str] = (), timeout: float | None = None) -> Image:
        """As `SearchClient.get_image`."""
        return await self._run(images.get_image(image_id, fields), timeout)

    async def get_images(
        self, image_ids: Sequence[str], *, fields: Sequence[str] = (), timeout: float | None = None
    ) -> list[Image | None]:
        """As `SearchClient.get_images`."""
        return await self._run_all(images.get_images(image_ids, fields), timeout)

    async def list_images(
        self,
        *,
        filter: str | Filter = "",
        fields: Sequence[str] = (),
        page_size: int = 100,
        timeout: float | None = None,
    ) -> AsyncIterator[Image]:
        """As `SearchClient.list_images`."""
        call: calls.Call[images.ImagePage] | None = images.list_images(filter, fields, page_size)
        while call is not None:
            page = await self._run(call, timeout)
            for image in page.images:
                yield image
            call = images.list_after(call, page)

    async def upsert_image(self, upload: Upload, *, timeout: float | None = None) -> Receipt:
        """As `SearchClient.upsert_image`."""
        return await self._run(images.upsert_image(upload), timeout)

    def upsert_images(
        self, uploads: Iterable[Upload] | AsyncIterable[Upload], *, timeout: float | None = None
    ) -> AsyncIterator[tuple[Upload, Receipt | ServiceError]]:
        """As `SearchClient.upsert_images`; in this event loop."""
        return self._stream(images.UpsertStream(), uploads, timeout)

    async def delete_image(
        self, image_id: str, *, if_version: int | None = None, request_id: str = "", timeout: float | None = None
    ) -> int:
        """As `SearchClient.delete_image`."""
        return await self._run(images.delete_image(image_id, if_version, request_id), timeout)

    async def delete_images(self, image_ids: Sequence[str], *, timeout: float | None = None) -> list[int]:
        """As `SearchClient.delete_images`."""
        return await self._run_all(images.delete_images(image_ids), timeout)

    async def status(self, *, timeout: float | None = None) -> IndexStatus:
        """As `SearchClient.status`."""
        return await self._run(upkeep.status(), timeout)

    async def snapshots(self, *, timeout: float | None = None) -> list[Snapshot]:
        """As `SearchClient.snapshots`."""
        return await self._run(upkeep.snapshots(), timeout)

    async def build(self, source: str, *, timeout: float | None = None) -> Operation:
        """As `SearchClient.build`."""
        return await self._run(upkeep.begin("BuildIndex", source=source), timeout)

    async def publish(self, *, timeout: float | None = None) -> Operation:
        """As `SearchClient.publish`."""
        return await self._run(upkeep.begin("PublishIndex"), timeout)

    async def roll_back(self, snapshot: str = "", *, timeout: float | None = None) -> Operation:
        """As `SearchClient.roll_back`."""
        return await self._run(upkeep.begin("RollBackIndex", snapshot=snapshot), timeout)

    async def verify(self, *, timeout: float | None = None) -> Operation:
        """As `SearchClient.verify`."""
        return await self._run(upkeep.begin("VerifyIndex"), timeout)

    async def back_up(self, name: str, *, timeout: float | None = None) -> Operation:
        """As `SearchClient.back_up`."""
        return await self._run(upkeep.begin("BackUpIndex", name=name), timeout)

    async def operations(self, *, timeout: float | None = None) -> list[Operation]:
        """As `SearchClient.operations`."""
        return await self._run(upkeep.list_operations(), timeout)

    async def get_operation(self, name: str, *, timeout: float | None = None) -> Operation:
        """As `SearchClient.get_operation`."""
        return await self._run(upkeep.get_operation(name), timeout)

    async def cancel_operation(self, name: str, *, timeout: float | None = None) -> None:
        """As `SearchClient.cancel_operation`."""
        await self._run(upkeep.cancel_operation(name), timeout)

    async def wait(
        self,
        operation: Operation | str,
        *,
        timeout: float | None = None,
        report: Callable[[Operation], object] = lambda operation: None,
    ) -> Operation:
        """As `SearchClient.wait`."""
        patience = upkeep.Patience(operation, timeout)
        while True:
            current = await self._run(patience.call(), patience.call_timeout(self.timeout))
            if patience.is_over(current):
                return current
            report(current)

    async def health(self, *, timeout: float | None = None) -> str:
        """As `SearchClient.health`."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check = health_pb2_grpc.HealthStub(self._channel).Check
        try:
            response = await check(health_pb2.HealthCheckRequest(), timeout=timeout or self.timeout)
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """As `SearchClient.wait_until_ready`."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check, readiness = health_pb2_grpc.HealthStub(self._channel).Check, Readiness(self.address, timeout)
        while True:
            try:
                response = await check(
                    health_pb2.HealthCheckRequest(), timeout=readiness.remaining, wait_for_ready=True
                )
                if readiness.is_there(response):
                    return
            except grpc.RpcError as error:
                readiness.refused(error)
            await asyncio.sleep(readiness.pause())

    async def _run(self, call: calls.Call[R], timeout: float | None) -> R:
        try:
            response = await self._method(call.method)(
                call.request, timeout=self.timeout if timeout is None else timeout, metadata=self._metadata()
            )
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None
        return call.read(response)

    async def _run_all(self, several: Iterable[calls.Call[list[R]]], timeout: float | None) -> list[R]:
        return [one for call in several for one in await self._run(call, timeout)]

    async def _stream(
        self, stream: calls.Stream[T, R], items: Iterable[T] | AsyncIterable[T], timeout: float | None
    ) -> AsyncIterator[R]:
        """The answers to `items`, of which at most `calls.IN_FLIGHT` have none yet."""
        room = asyncio.Semaphore(calls.IN_FLIGHT)
        failures: list[Exception] = []

        async def sending() -> AsyncIterator[Any]:
            try:
                iterator = _iterator(items)
                for place in itertools.count():
                    await room.acquire()
                    try:
                        item = await anext(iterator)
                    except StopAsyncIteration:
                        return
                    yield stream.request(place, item)
            except Exception as error:
                failures.append(error)  # raised below, when what was sent is answered

        answers = self._method(stream.method)(sending(), timeout=timeout, metadata=self._metadata())
        try:
            async for answer in answers:
                room.release()
                yield stream.read(answer)
        except grpc.RpcError as error:
            raise await self._told(error, stream, timeout) from None
        finally:
            answers.cancel()
        if failures:
            raise failures[0]

    async def _told(self, error: grpc.RpcError, stream: calls.Stream[T, R], timeout: float | None) -> ServiceError:
        """What the server said when it ended a stream.

        grpc.aio, which still wrote to it, tells INTERNAL instead; a stream without an item is told the reason. Where it
        is told none, the server refuses nothing: the connection broke, or another server answers now.
        """
        if error.code() is not grpc.StatusCode.INTERNAL or error.details() != "Internal error from Core":
            return error_of_call(error, self.address)
        try:
            async for _ in self._method(stream.method)(_nothing(), timeout=timeout, metadata=self._metadata()):
                pass
        except grpc.RpcError as told:
            return error_of_call(told, self.address)
        return ServiceError("UNAVAILABLE", "", f"the stream to {self.address} broke; send again what has no answer")

    def _metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*self._connection.metadata)

    def _method(self, name: str) -> Any:
        service, _, method = name.partition(".")
        return getattr(self._stubs[service], method)


async def _nothing() -> AsyncIterator[Any]:
    """No item."""
    return
    yield


async def _iterator(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
