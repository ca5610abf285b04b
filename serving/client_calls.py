"""What each method is sent and how its answer is read, for the sync and the async client; knows no channel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from protos.imageretrieval.v1 import (
    embedding_service_pb2,
    image_service_pb2,
    index_service_pb2,
    operation_service_pb2,
    query_pb2,
    search_service_pb2,
)
from serving.client_errors import ServiceError, error_of_status
from serving.client_values import (
    AttributeSummary,
    Example,
    Image,
    ImageId,
    IndexCertificate,
    IndexStatus,
    Operation,
    Receipt,
    Search,
    SearchResults,
    SearchTimings,
    Snapshot,
    Upload,
    new_request_id,
)
from serving.filter_syntax import unparse
from serving.filters import Filter
from serving.proto_attributes import attribute_message, attribute_of
from serving.vector_index import SearchHit

MAX_TEXTS, MAX_IMAGES, MAX_IDS, MAX_SEARCHES = 256, 64, 1_000, 64
MAX_IMAGE_BYTES = 32 * 1024 * 1024  # of all images of one request
IN_FLIGHT = 32  # requests of a stream that have no answer yet

R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


@dataclass(frozen=True)
class Call(Generic[R]):
    """One call: the method as "Service.Method", the request, and how the answer is read."""

    method: str
    request: Any
    read: Callable[[Any], R]


class Stream(Protocol[Item, Answer]):
    """A method that answers a stream of items with a stream, in any order."""

    method: str

    def request(self, place: int, item: Item) -> Any:
        """The message of the item at `place`."""

    def read(self, response: Any) -> Answer:
        """Read an answer."""


# Searching


def search(wanted: Search) -> Call[SearchResults]:
    """One search."""
    return Call("SearchService.Search", search_request(wanted), search_results)


def search_after(call: Call[SearchResults], results: SearchResults) -> Call[SearchResults] | None:
    """The call for the hits that follow; None when there are none."""
    if not results.next_page_token:
        return None
    request = search_service_pb2.SearchRequest()
    request.CopyFrom(call.request)
    request.page_token = results.next_page_token
    return Call(call.method, request, call.read)


def batch_search(searches: Sequence[Search | str]) -> list[Call[list[SearchResults | ServiceError]]]:
    """Several searches, in calls of as many as one takes."""
    return [
        Call(
            "SearchService.BatchSearch",
            search_service_pb2.BatchSearchRequest(requests=[search_request(as_search(one)) for one in some]),
            lambda response: [search_result(result) for result in response.results],
        )
        for some in chunks(searches, MAX_SEARCHES)
    ]


class SearchStream:
    """A stream of searches; answers are told apart by place."""

    method = "SearchService.StreamSearch"

    def request(self, place: int, item: Search | str) -> Any:
        """The message of the search at `place`."""
        return search_service_pb2.StreamSearchRequest(tag=place, request=search_request(as_search(item)))

    def read(self, response: Any) -> tuple[int, SearchResults | ServiceError]:
        """The place of the search and its answer."""
        return response.tag, search_result(response.result)


def as_search(wanted: Search | str) -> Search:
    """A text alone is a search for it."""
    return Search(wanted) if isinstance(wanted, str) else wanted


def search_request(wanted: Search) -> search_service_pb2.SearchRequest:
    """The message of a search."""
    return search_service_pb2.SearchRequest(
        query=_query(wanted),
        page_size=wanted.k,
        page_token=wanted.page_token,
        min_score=wanted.min_score,
        filter=_filter(wanted.filter),
        exact=wanted.exact,
        oversampling=0.0 if wanted.oversampling == 1 else wanted.oversampling,
        deduplicate_similarity=wanted.deduplicate_similarity,
        read_mask=FieldMask(paths=wanted.fields) if wanted.fields else None,
        with_timings=wanted.with_timings,
        with_certificate=wanted.with_certificate,
    )


def _query(wanted: Search) -> query_pb2.Query:
    if wanted.composition is not None:
        parts = [
            query_pb2.WeightedQuery(query=_example(example), weight=weight)
            for example, weight in wanted.composition.parts
        ]
        return query_pb2.Query(composition=query_pb2.Composition(parts=parts))
    if wanted.vector is not None:
        return _example(wanted.vector)
    return query_pb2.Query(text=wanted.text, image=wanted.image, image_id=wanted.image_id)


def _example(example: Example) -> query_pb2.Query:
    if isinstance(example, str):
        return query_pb2.Query(text=example)
    if isinstance(example, bytes | bytearray):
        return query_pb2.Query(image=bytes(example))
    if isinstance(example, ImageId):
        return query_pb2.Query(image_id=example.image_id)
    return query_pb2.Query(vector=query_pb2.Vector(values=example))


def _filter(where: str | Filter) -> str:
    return where if isinstance(where, str) else unparse(where)


def search_results(response: search_service_pb2.SearchResponse) -> SearchResults:
    """Read an answer."""
    timings = None
    if response.HasField("timings"):
        names = ("embedding", "queueing", "search", "lookup", "total")
        timings = SearchTimings(*(getattr(response.timings, name).ToNanoseconds() / 1e9 for name in names))
    return SearchResults(
        [_hit(hit) for hit in response.hits],
        response.model_revision,
        response.index_revision,
        response.next_page_token,
        response.match_probability if response.HasField("match_probability") else None,
        timings,
        _certificate(response),
    )


def search_result(result: search_service_pb2.SearchResult) -> SearchResults | ServiceError:
    """Read the answer to one of several."""
    if result.HasField("error"):
        return error_of_status(result.error)
    return search_results(result.response)


def _hit(hit: search_service_pb2.SearchHit) -> SearchHit:
    return SearchHit(
        hit.image_id,
        hit.score,
        hit.rank,
        tuple(hit.captions),
        {name: attribute_of(value) for name, value in hit.attributes.items()},
        hit.probability if hit.HasField("probability") else None,
        list(hit.vector.values) if hit.HasField("vector") else None,
    )


def _certificate(message: Any) -> IndexCertificate | None:
    if not message.HasField("certificate"):
        return None
    told = message.certificate
    return IndexCertificate(told.index_recall, told.query_count, told.query_kind, told.kind)


# Embedding


def embed_texts(texts: Sequence[str]) -> list[Call[list[list[float]]]]:
    """An embedding for each text, in calls of as many as one takes."""
    return [
        Call("EmbeddingService.EmbedTexts", embedding_service_pb2.EmbedTextsRequest(texts=some), _embeddings)
        for some in chunks(texts, MAX_TEXTS)
    ]


def embed_images(images: Sequence[bytes]) -> list[Call[list[list[float]]]]:
    """An embedding for each encoded image, in calls of as many as one takes."""
    return [
        Call("EmbeddingService.EmbedImages", embedding_service_pb2.EmbedImagesRequest(images=some), _embeddings)
        for some in chunks(images, MAX_IMAGES, MAX_IMAGE_BYTES)
    ]


def _embeddings(response: Any) -> list[list[float]]:
    return [list(embedding.values) for embedding in response.embeddings]


def chunks(items: Sequence[T], most: int, most_bytes: int | None = None) -> Iterator[list[T]]:
    """`items` in order, at most so many at once, and with no more bytes than told unless one alone has more."""
    some: list[T] = []
    size = 0
    for item in items:
        more = 0 if most_bytes is None else len(item)  # type: ignore[arg-type]
        if some and (len(some) == most or (most_bytes is not None and size + more > most_bytes)):
            yield some
            some, size = [], 0
        some.append(item)
        size += more
    if some:
        yield some


# Images


def get_image(image_id: str, fields: Sequence[str]) -> Call[Image]:
    """What is known about an image."""
    request = image_service_pb2.GetImageRequest(image_id=image_id, read_mask=FieldMask(paths=fields))
    return Call("ImageService.GetImage", request, lambda response: _image(response.image))


def get_images(image_ids: Sequence[str], fields: Sequence[str]) -> list[Call[list[Image | None]]]:
    """What is known about each image, in calls of as many as one takes."""

    def one_call(some: list[str]) -> Call[list[Image | None]]:
        mask = FieldMask(paths=fields)
        if fields and "image_id" not in fields:
            mask.paths.append("image_id")  # tells which of them are there

        def read(response: image_service_pb2.BatchGetImagesResponse) -> list[Image | None]:
            found = {image.image_id: _image(image) for image in response.images}
            return [found.get(image_id) for image_id in some]

        request = image_service_pb2.BatchGetImagesRequest(image_ids=some, read_mask=mask)
        return Call("ImageService.BatchGetImages", request, read)

    return [one_call(some) for some in chunks(image_ids, MAX_IDS)]


@dataclass(frozen=True)
class ImagePage:
    """Some of the images and the token of those that follow, empty for the last."""

    images: list[Image]
    next_page_token: str


def list_images(where: str | Filter, fields: Sequence[str], page_size: int) -> Call[ImagePage]:
    """The first images in the order of their ids."""
    request = image_service_pb2.ListImagesRequest(
        filter=_filter(where), read_mask=FieldMask(paths=fields), page_size=page_size
    )
    return Call("ImageService.ListImages", request, _image_page)


def list_after(call: Call[ImagePage], page: ImagePage) -> Call[ImagePage] | None:
    """The call for the images that follow; None when there are none."""
    if not page.next_page_token:
        return None
    request = image_service_pb2.ListImagesRequest()
    request.CopyFrom(call.request)
    request.page_token = page.next_page_token
    return Call(call.method, request, call.read)


def _image_page(response: image_service_pb2.ListImagesResponse) -> ImagePage:
    return ImagePage([_image(image) for image in response.images], response.next_page_token)


def _image(image: image_service_pb2.Image) -> Image:
    return Image(
        image.image_id,
        tuple(image.captions),
        {name: attribute_of(value) for name, value in image.attributes.items()},
        image.version,
        image.digest,
        list(image.vector.values) if image.HasField("vector") else None,
    )


def upsert_image(upload: Upload) -> Call[Receipt]:
    """Add or replace an image."""
    return Call("ImageService.UpsertImage", _upsert_request(upload), _receipt)


class UpsertStream:
    """A stream of images to add or replace; remembers those that have no answer yet."""

    method = "ImageService.StreamUpsertImages"

    def __init__(self) -> None:
        self._waiting: dict[int, Upload] = {}

    def request(self, place: int, item: Upload) -> Any:
        """The message of the image at `place`."""
        self._waiting[place] = item
        return image_service_pb2.StreamUpsertImagesRequest(tag=place, request=_upsert_request(item))

    def read(self, response: Any) -> tuple[Upload, Receipt | ServiceError]:
        """The image, and its receipt or why it has none."""
        upload = self._waiting.pop(response.tag)
        if response.HasField("error"):
            return upload, error_of_status(response.error)
        return upload, _receipt(response.response)


def _upsert_request(upload: Upload) -> image_service_pb2.UpsertImageRequest:
    return image_service_pb2.UpsertImageRequest(
        image_id=upload.image_id,
        data=upload.image,
        vector=None if upload.vector is None else query_pb2.Vector(values=upload.vector),
        captions=upload.captions,
        attributes={name: attribute_message(value) for name, value in upload.attributes.items()},
        if_version=upload.if_version,
        request_id=upload.request_id,
    )


def _receipt(response: image_service_pb2.UpsertImageResponse) -> Receipt:
    return Receipt(response.version, response.model_revision)


def delete_image(image_id: str, if_version: int | None, request_id: str) -> Call[int]:
    """Remove an image."""
    request = image_service_pb2.DeleteImageRequest(
        image_id=image_id, if_version=if_version, request_id=request_id or new_request_id()
    )
    return Call("ImageService.DeleteImage", request, lambda response: response.version)


def delete_images(image_ids: Sequence[str]) -> list[Call[list[int]]]:
    """Remove images, in calls of as many as one takes."""
    return [
        Call(
            "ImageService.BatchDeleteImages",
            image_service_pb2.BatchDeleteImagesRequest(image_ids=some, request_id=new_request_id()),
            lambda response: list(response.versions),
        )
        for some in chunks(image_ids, MAX_IDS)
    ]


# The index and its upkeep


def status() -> Call[IndexStatus]:
    """What the server serves."""
    return Call(
        "IndexService.GetIndex", index_service_pb2.GetIndexRequest(), lambda response: _index_status(response.index)
    )


def _index_status(index: index_service_pb2.Index) -> IndexStatus:
    names = ("snapshot", "image_count", "dimension", "kind", "model_name", "model_revision", "source", "revision")
    return IndexStatus(
        **{name: getattr(index, name) for name in (*names, "writable", "change_count")},
        create_time=_moment(index.create_time),
        certificate=_certificate(index),
        attributes=tuple(
            AttributeSummary(one.name, one.kind, one.image_count, tuple(one.frequent_values))
            for one in index.attributes
        ),
    )


def snapshots() -> Call[list[Snapshot]]:
    """The snapshots that are kept."""

    def read(response: index_service_pb2.ListSnapshotsResponse) -> list[Snapshot]:
        names = ("name", "live", "image_count", "model_revision", "source")
        return [
            Snapshot(**{name: getattr(one, name) for name in names}, create_time=_moment(one.create_time))
            for one in response.snapshots
        ]

    return Call("IndexService.ListSnapshots", index_service_pb2.ListSnapshotsRequest(), read)


def begin(method: str, **fields: str) -> Call[Operation]:
    """Begin an operation by a method of IndexService."""
    request = getattr(index_service_pb2, f"{method}Request")(**fields)
    return Call(f"IndexService.{method}", request, _read_operation)


def get_operation(name: str) -> Call[Operation]:
    """How an operation stands."""
    request = operation_service_pb2.GetOperationRequest(name=name)
    return Call("OperationService.GetOperation", request, _read_operation)


def list_operations() -> Call[list[Operation]]:
    """The operations, newest first."""
    return Call(
        "OperationService.ListOperations",
        operation_service_pb2.ListOperationsRequest(),
        lambda response: [_operation(one) for one in response.operations],
    )


def wait_operation(name: str, seconds: float) -> Call[Operation]:
    """Wait so long for an operation."""
    timeout = Duration()
    timeout.FromMilliseconds(max(0, round(1_000 * seconds)))
    request = operation_service_pb2.WaitOperationRequest(name=name, timeout=timeout)
    return Call("OperationService.WaitOperation", request, _read_operation)


def cancel_operation(name: str) -> Call[None]:
    """Stop an operation."""
    request = operation_service_pb2.CancelOperationRequest(name=name)
    return Call("OperationService.CancelOperation", request, lambda response: None)


def _read_operation(response: Any) -> Operation:
    return _operation(response.operation)


def _operation(told: operation_service_pb2.Operation) -> Operation:
    return Operation(
        told.name,
        told.method,
        _moment(told.create_time),
        _moment(told.end_time) if told.HasField("end_time") else None,
        told.progress,
        told.done,
        error_of_status(told.error) if told.HasField("error") else None,
        told.result,
    )


def _moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


class Patience:
    """Waits for an operation call by call, `timeout` seconds in all; knows no clock but that of this machine."""

    LONGEST = 20.0  # seconds that one call waits

    def __init__(self, operation: Operation | str, timeout: float | None) -> None:
        self._name = operation if isinstance(operation, str) else operation.name
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def call(self) -> Call[Operation]:
        """The next call."""
        return wait_operation(self._name, self._seconds())

    def call_timeout(self, usual: float) -> float:
        """The deadline of that call."""
        return self._seconds() + usual

    def is_over(self, operation: Operation) -> bool:
        """Whether it is done; `ServiceError` when it failed, or when the time is over."""
        if operation.error is not None:
            raise operation.error
        if not operation.done and self._end is not None and time.monotonic() >= self._end:
            raise ServiceError("DEADLINE_EXCEEDED", "", f"{self._name} was not done after {self._timeout:g} s")
        return operation.done

    def _seconds(self) -> float:
        return self.LONGEST if self._end is None else min(self.LONGEST, max(0.0, self._end - time.monotonic()))
