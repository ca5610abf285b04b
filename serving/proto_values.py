"""Translates values between protos and Python: queries, vectors, attributes, hits, masks; knows no call."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask

from data.errors import QueryError
from data.pairs import AttributeValue
from protos.imageretrieval.v1 import index_service_pb2, query_pb2, search_service_pb2
from serving.proto_attributes import set_attribute
from serving.queries import (
    Composition,
    Example,
    ImageIdQuery,
    ImageQuery,
    Query,
    SearchOptions,
    TextQuery,
    VectorQuery,
)
from serving.searches import SearchAnswer, Timings
from serving.vector_index import SearchHit

_INPUTS = "a text, an image, an image_id, a vector or a composition"
_Type = query_pb2.Vector
_DTYPES = {_Type.DATA_TYPE_UNSPECIFIED: "<f4", _Type.DATA_TYPE_FLOAT32: "<f4", _Type.DATA_TYPE_FLOAT16: "<f2"}

HIT_FIELDS = ("image_id", "score", "rank", "captions", "attributes", "probability", "vector")


@dataclass(frozen=True)
class ReadMask:
    """Which fields of a message to return, and of its attributes which; None stands for all of these."""

    fields: frozenset[str]
    attributes: frozenset[str] | None

    def attributes_of(self, held: Mapping[str, AttributeValue]) -> Mapping[str, AttributeValue]:
        """The attributes to return."""
        if "attributes" not in self.fields:
            return {}
        return held if self.attributes is None else {name: held[name] for name in self.attributes if name in held}


def read_mask(mask: FieldMask, known: Sequence[str]) -> ReadMask:
    """What `mask` asks for of the `known` fields, by default all but the vector; `QueryError` for another path."""
    if not mask.paths:
        return _usual_mask(tuple(known))
    fields, attributes = set(), set()
    for path in mask.paths:
        field, dot, name = path.partition(".")
        if path != "*" and (field not in known or (dot and (field != "attributes" or not name))):
            raise QueryError("read_mask", f"some of {', '.join(known)}", repr(path)[:200], "correct the path")
        if path == "*":
            return ReadMask(frozenset(known), None)
        fields.add(field)
        attributes.add(name.strip("`"))
    return ReadMask(
        frozenset(fields), None if "" in attributes and "attributes" in mask.paths else frozenset(attributes)
    )


@functools.cache  # of each kind of message one
def _usual_mask(known: tuple[str, ...]) -> ReadMask:
    return ReadMask(frozenset(known) - {"vector"}, None)


def query_of(query: query_pb2.Query) -> Query:
    """The query; `QueryError` when an input is not set."""
    if query.WhichOneof("input") != "composition":
        return _example(query, "query")
    return Composition(
        tuple(
            (
                _example(part.query, f"query.composition.parts[{place}].query"),
                part.weight if part.HasField("weight") else 1.0,
            )
            for place, part in enumerate(query.composition.parts)
        )
    )


def _example(query: query_pb2.Query, field: str) -> Example:
    match query.WhichOneof("input"):
        case "text":
            return TextQuery(query.text)
        case "image":
            return ImageQuery(query.image)
        case "image_id":
            return ImageIdQuery(query.image_id)
        case "vector":
            return VectorQuery(vector_of(query.vector, f"{field}.vector"))
        case "composition":
            raise QueryError(field, "anything but a composition", "one inside another", "join their parts")
    raise QueryError(field, _INPUTS, "none", "set one input of the query")


def vector_of(vector: query_pb2.Vector, field: str) -> np.ndarray:
    """The components, (D,) float32; `QueryError` for bytes that are not what the other fields say."""
    if not vector.data:
        return np.array(vector.values, np.float32)
    if vector.values:
        raise QueryError(field, "either values or data", "both", "leave one out")
    dtype = _DTYPES.get(vector.data_type)
    if dtype is None:
        raise QueryError(f"{field}.data_type", "FLOAT32 or FLOAT16", str(vector.data_type), "use one of these")
    size = np.dtype(dtype).itemsize
    if len(vector.data) % size or (vector.dimension and len(vector.data) != size * vector.dimension):
        expected = f"{size} bytes for each of {vector.dimension or 'the'} components"
        raise QueryError(f"{field}.data", expected, f"{len(vector.data):,} bytes", "check data_type and dimension")
    return np.frombuffer(vector.data, dtype).astype(np.float32)


def options_of(request: search_service_pb2.SearchRequest, mask: ReadMask) -> SearchOptions:
    """How to search, as the request says; `QueryError` for a field that breaks its limits."""
    return SearchOptions(
        k=request.page_size or 10,
        min_score=request.min_score if request.HasField("min_score") else None,
        filter_text=request.filter,
        exact=request.exact,
        oversampling=request.oversampling or 1.0,
        deduplicate_similarity=(request.deduplicate_similarity if request.HasField("deduplicate_similarity") else None),
        page_token=request.page_token,
        with_vectors="vector" in mask.fields,
    )


def response_of(
    answer: SearchAnswer, mask: ReadMask, model_revision: str, with_timings: bool
) -> search_service_pb2.SearchResponse:
    """The answer as a message: of the caller's own with timings, without them the same whenever it is given again."""
    made = answer.rendered.get(mask)
    if made is None:
        made = answer.rendered[mask] = search_service_pb2.SearchResponse(
            model_revision=model_revision,
            index_revision=answer.index_revision,
            next_page_token=answer.next_page_token,
            match_probability=answer.match_probability,
        )
        for hit in answer.hits:
            _set_hit(made.hits.add(), hit, mask)
    if not with_timings:
        return made
    response = search_service_pb2.SearchResponse()
    response.CopyFrom(made)
    _set_timings(response.timings, answer.timings)
    return response


def _set_hit(message: search_service_pb2.SearchHit, hit: SearchHit, mask: ReadMask) -> None:
    """Put what is asked for of a hit into an empty message."""
    fields = mask.fields
    if "image_id" in fields:
        message.image_id = hit.image_id
    if "score" in fields:
        message.score = hit.score
    if "rank" in fields:
        message.rank = hit.rank
    if "captions" in fields:
        message.captions.extend(hit.captions)
    for name, value in mask.attributes_of(hit.attributes).items():
        set_attribute(message.attributes[name], value)
    if "probability" in fields and hit.probability is not None:
        message.probability = hit.probability
    if hit.vector is not None:
        message.vector.values.extend(hit.vector)


def _set_timings(message: search_service_pb2.SearchTimings, timings: Timings) -> None:
    for name in ("embedding", "queueing", "search", "lookup", "total"):
        getattr(message, name).FromNanoseconds(round(1e9 * getattr(timings, name)))


def set_certificate(
    message: search_service_pb2.SearchResponse | index_service_pb2.Index, certificate: Mapping[str, Any]
) -> None:
    """Put what was measured when the index was built into a message, texts before images."""
    for kind in ("text", "image"):
        recall = certificate.get(f"{kind}_index_recall_at_10")
        if recall is not None:
            message.certificate.index_recall = recall
            message.certificate.query_count = certificate[f"{kind}_queries"]
            message.certificate.query_kind = f"{kind}s"
            message.certificate.kind = certificate["kind"]
            return
