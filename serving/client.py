"""Typed Python client of the search server, and `python -m serving.client`; knows no model and imports no NumPy.

Example:
    with SearchClient("127.0.0.1:50051") as client:
        for hit in client.search("a red bicycle", k=5):
            print(hit.score, hit.image_id)
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import grpc

from data import console
from serving import client_calls as calls
from serving import client_image_calls as images
from serving import client_index_calls as upkeep
from serving import client_search_calls as searching
from serving.client_connection import DEFAULT_ADDRESS, ConnectionKeywords, Readiness, from_environment, stubs
from serving.client_errors import FieldViolation, ServiceError, error_of_call
from serving.client_values import (
    Composition,
    Image,
    ImageId,
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

__all__ = [
    "DEFAULT_ADDRESS",
    "Composition",
    "FieldViolation",
    "Image",
    "ImageId",
    "IndexStatus",
    "Operation",
    "Receipt",
    "Search",
    "SearchClient",
    "SearchResults",
    "ServiceError",
    "Snapshot",
    "Upload",
]

R = TypeVar("R")
T = TypeVar("T")


class SearchClient:
    """A connection to a server; safe to share between threads. Every call raises `ServiceError` on failure.

    `client_connection.Connection` tells what `connection` can say; what is not given comes from the environment, see
    `client_connection.from_environment`. `timeout` is in seconds and holds for each call that is not given its own.
    Calls that may come twice are repeated for a while when the server is away or has too much to do.
    """

    def __init__(
        self,
        address: str | None = None,
        timeout: float = 10.0,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        self._connection = from_environment(address=address, **connection)
        self.address = self._connection.address
        self.timeout = timeout
        self._channel = self._connection.channel()
        self._stubs = stubs(self._channel)

    def __enter__(self) -> SearchClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def search(
        self, text: str | None = None, *, timeout: float | None = None, **options: Unpack[SearchKeywords]
    ) -> SearchResults:
        """The best images for a text, or for what the keywords say; see `Search`."""
        return self._run(searching.search(Search(text, **options)), timeout)

    def search_pages(
        self, text: str | None = None, *, timeout: float | None = None, **options: Unpack[SearchKeywords]
    ) -> Iterator[SearchResults]:
        """The hits page by page, `k` each, of the index as it was at the first; 1,000 hits at most."""
        call: calls.Call[SearchResults] | None = searching.search(Search(text, **options))
        while call is not None:
            results = self._run(call, timeout)
            yield results
            call = searching.search_after(call, results)

    def batch_search(
        self, searches: Sequence[Search | str], *, timeout: float | None = None
    ) -> list[SearchResults | ServiceError]:
        """The answer to each search, in order; a text is a search for it. The server gives way to others meanwhile."""
        return self._run_all(searching.batch_search(searches), timeout)

    def stream_search(
        self, searches: Iterable[Search | str], *, timeout: float | None = None
    ) -> Iterator[tuple[int, SearchResults | ServiceError]]:
        """The place of each search and its answer, as soon as it is there; other searches may overtake it.

        Searches are taken, in another thread, while fewer than 32 have no answer yet. `timeout` is for all of them
        together; none by default.
        """
        return self._stream(searching.SearchStream(), searches, timeout)

    def embed_texts(self, texts: Sequence[str], *, timeout: float | None = None) -> list[list[float]]:
        """An embedding of unit length for each text."""
        return self._run_all(searching.embed_texts(texts), timeout)

    def embed_images(self, images: Sequence[bytes], *, timeout: float | None = None) -> list[list[float]]:
        """An embedding of unit length for each encoded image."""
        return self._run_all(searching.embed_images(images), timeout)

    def get_image(self, image_id: str, *, fields: Sequence[str] = (), timeout: float | None = None) -> Image:
        """What is known about an image; `fields` as of `Search`. `ServiceError` "NOT_FOUND" when it is not there."""
        return self._run(images.get_image(image_id, fields), timeout)

    def get_images(
        self, image_ids: Sequence[str], *, fields: Sequence[str] = (), timeout: float | None = None
    ) -> list[Image | None]:
        """What is known about each image; None for those that are not there."""
        return self._run_all(images.get_images(image_ids, fields), timeout)

    def list_images(
        self,
        *,
        filter: str | Filter = "",
        fields: Sequence[str] = (),
        page_size: int = 100,
        timeout: float | None = None,
    ) -> Iterator[Image]:
        """Every image that `filter` matches, in the order of the ids, fetched page by page."""
        call: calls.Call[images.ImagePage] | None = images.list_images(filter, fields, page_size)
        while call is not None:
            page = self._run(call, timeout)
            yield from page.images
            call = images.list_after(call, page)

    def upsert_image(self, upload: Upload, *, timeout: float | None = None) -> Receipt:
        """Add or replace an image; when this returns, it is durable and searched."""
        return self._run(images.upsert_image(upload), timeout)

    def upsert_images(
        self, uploads: Iterable[Upload], *, timeout: float | None = None
    ) -> Iterator[tuple[Upload, Receipt | ServiceError]]:
        """Each image with its receipt, or why it has none, as soon as that is known.

        Images are taken, in another thread, while fewer than 32 have no answer yet, however many there are. When the
        stream breaks, `ServiceError` is raised; those without an answer may be durable or not, and can be sent again.
        """
        return self._stream(images.UpsertStream(), uploads, timeout)

    def delete_image(
        self, image_id: str, *, if_version: int | None = None, request_id: str = "", timeout: float | None = None
    ) -> int:
        """Remove an image, and return the version at which it went; one that is not there counts as removed."""
        return self._run(images.delete_image(image_id, if_version, request_id), timeout)

    def delete_images(self, image_ids: Sequence[str], *, timeout: float | None = None) -> list[int]:
        """Remove images, a thousand at a time all or none, and return the version at which each went."""
        return self._run_all(images.delete_images(image_ids), timeout)

    def status(self, *, timeout: float | None = None) -> IndexStatus:
        """What the server serves."""
        return self._run(upkeep.status(), timeout)

    def snapshots(self, *, timeout: float | None = None) -> list[Snapshot]:
        """The published states of the index that are kept, newest first."""
        return self._run(upkeep.snapshots(), timeout)

    def build(self, source: str, *, timeout: float | None = None) -> Operation:
        """Begin to embed a data set on the server's machine and to go over to it; see `wait`."""
        return self._run(upkeep.begin("BuildIndex", source=source), timeout)

    def publish(self, *, timeout: float | None = None) -> Operation:
        """Begin to publish a snapshot that holds every change up to now."""
        return self._run(upkeep.begin("PublishIndex"), timeout)

    def roll_back(self, snapshot: str = "", *, timeout: float | None = None) -> Operation:
        """Begin to make an earlier snapshot live again, by default the one before."""
        return self._run(upkeep.begin("RollBackIndex", snapshot=snapshot), timeout)

    def verify(self, *, timeout: float | None = None) -> Operation:
        """Begin to check every file of the index."""
        return self._run(upkeep.begin("VerifyIndex"), timeout)

    def back_up(self, name: str, *, timeout: float | None = None) -> Operation:
        """Begin to copy a consistent state to the server's directory for backups."""
        return self._run(upkeep.begin("BackUpIndex", name=name), timeout)

    def operations(self, *, timeout: float | None = None) -> list[Operation]:
        """The operations that the server remembers, newest first."""
        return self._run(upkeep.list_operations(), timeout)

    def get_operation(self, name: str, *, timeout: float | None = None) -> Operation:
        """How an operation stands."""
        return self._run(upkeep.get_operation(name), timeout)

    def cancel_operation(self, name: str, *, timeout: float | None = None) -> None:
        """Stop an operation; the index stays as it was."""
        self._run(upkeep.cancel_operation(name), timeout)

    def wait(
        self,
        operation: Operation | str,
        *,
        timeout: float | None = None,
        report: Callable[[Operation], object] = lambda operation: None,
    ) -> Operation:
        """Return the operation when it is done; its own `ServiceError` when it failed.

        `ServiceError` "DEADLINE_EXCEEDED" after `timeout` seconds, if they are given. `report` is called now and then.
        """
        patience = upkeep.Patience(operation, timeout)
        while True:
            current = self._run(patience.call(), patience.call_timeout(self.timeout))
            if patience.is_over(current):
                return current
            report(current)

    def health(self, *, timeout: float | None = None) -> str:
        """What the server says of itself: "SERVING", or "NOT_SERVING" while it loads or stops."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check = health_pb2_grpc.HealthStub(self._channel).Check
        try:
            response = check(health_pb2.HealthCheckRequest(), timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return when the server's health is SERVING; `ServiceError` "DEADLINE_EXCEEDED" after `timeout` seconds."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        check, readiness = health_pb2_grpc.HealthStub(self._channel).Check, Readiness(self.address, timeout)
        while True:
            try:
                response = check(health_pb2.HealthCheckRequest(), timeout=readiness.remaining, wait_for_ready=True)
                if readiness.is_there(response):
                    return
            except grpc.RpcError as error:
                readiness.refused(error)
            time.sleep(readiness.pause())

    def _run(self, call: calls.Call[R], timeout: float | None) -> R:
        try:
            response = self._method(call.method)(
                call.request, timeout=self.timeout if timeout is None else timeout, metadata=self._connection.metadata
            )
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None
        return call.read(response)

    def _run_all(self, several: Iterable[calls.Call[list[R]]], timeout: float | None) -> list[R]:
        return [one for call in several for one in self._run(call, timeout)]

    def _stream(self, stream: calls.Stream[T, R], items: Iterable[T], timeout: float | None) -> Iterator[R]:
        """The answers to `items`, of which at most `calls.IN_FLIGHT` have none yet."""
        room, ended = threading.Semaphore(calls.IN_FLIGHT), threading.Event()
        failures: list[Exception] = []

        def sending() -> Iterator[Any]:  # in a thread of gRPC
            try:
                iterator = iter(items)
                for place in itertools.count():
                    room.acquire()
                    if ended.is_set():
                        return
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                    yield stream.request(place, item)
            except Exception as error:
                failures.append(error)  # raised below, when what was sent is answered

        answers = self._method(stream.method)(sending(), timeout=timeout, metadata=self._connection.metadata)
        try:
            for answer in answers:
                room.release()
                yield stream.read(answer)
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None
        finally:
            ended.set()
            room.release()
            answers.cancel()
        if failures:
            raise failures[0]

    def _method(self, name: str) -> Any:
        service, _, method = name.partition(".")
        return getattr(self._stubs[service], method)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, ask the server, print the answer."""
    from serving import client_commands

    return client_commands.main(argv)


if __name__ == "__main__":
    console.run(main)
