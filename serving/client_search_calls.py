"""What the methods of searching and embedding are sent, and how their answers are read; knows no channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from protos.imageretrieval.v1 import embedding_service_pb2, query_pb2, search_service_pb2
from serving.client_calls import Call, chunks, filter_text
from serving.client_errors import ServiceError, error_of_status
from serving.client_values import Example, ImageId, IndexCertificate, Search, SearchResults, SearchTimings
from serving.proto_attributes import attribute_of
from serving.vector_index import SearchHit

MAX_SEARCHES, MAX_TEXTS, MAX_IMAGES = 64, 256, 64


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
            search_service_pb2.BatchSearchRequest(requests=some),
            lambda response: [search_result(result) for result in response.results],
        )
        for some in chunks(map(search_request, map(as_search, searches)), MAX_SEARCHES, lambda one: one.ByteSize())
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
        filter=filter_text(wanted.filter),
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
        certificate_of(response),
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


def certificate_of(message: Any) -> IndexCertificate | None:
    """What an answer says about the index, if anything."""
    if not message.HasField("certificate"):
        return None
    told = message.certificate
    return IndexCertificate(told.index_recall, told.query_count, told.query_kind, told.kind)


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
        for some in chunks(images, MAX_IMAGES, len)
    ]


def _embeddings(response: Any) -> list[list[float]]:
    return [list(embedding.values) for embedding in response.embeddings]
