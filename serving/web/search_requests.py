"""From an HTTP request to the SearchRequest that gRPC would carry: parameters, JSON, or a form with images; searches
nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from data.errors import QueryError
from protos.imageretrieval.v1 import query_pb2, search_service_pb2
from serving.error_details import MalformedRequest
from serving.queries import MAX_PARTS
from serving.web.problems import HttpRefusal

MAX_JSON_IN_FORM = 1024 * 1024
_PARSED_IN_THE_LOOP = 64 * 1024  # bytes; parsing longer ones would hold others up

# Parameters of GET /v1/search: the JSON type of each, and what it stands for in SearchRequest.
PARAMETERS: dict[str, tuple[str, str]] = {
    "q": ("string", "query.text"),
    "image_id": ("string", "query.image_id"),
    "k": ("integer", "page_size"),
    "page_token": ("string", "page_token"),
    "min_score": ("number", "min_score"),
    "filter": ("string", "filter"),
    "exact": ("boolean", "exact"),
    "oversampling": ("number", "oversampling"),
    "deduplicate_similarity": ("number", "deduplicate_similarity"),
    "read_mask": ("string", "read_mask"),
    "with_timings": ("boolean", "with_timings"),
    "with_certificate": ("boolean", "with_certificate"),
}
PICTURES = "pictures"
_BOOLEANS = {"true": True, "1": True, "": True, "false": False, "0": False}


def wants_pictures(parameters: QueryParams) -> bool:
    """Whether hits are to tell the size of their pictures and where these are."""
    return _value(PICTURES, "boolean", parameters.get(PICTURES, "false"))


def from_parameters(parameters: QueryParams) -> search_service_pb2.SearchRequest:
    """The request that GET parameters stand for; `QueryError` for one that is unknown, repeated or no such value."""
    _only_known(parameters, (*PARAMETERS, PICTURES))
    request = search_service_pb2.SearchRequest(query=query_pb2.Query())
    if "q" in parameters and "image_id" in parameters:
        raise QueryError("query", "q or image_id", "both", "join them as a composition in POST /v1/search")
    for name, (kind, field) in PARAMETERS.items():
        if name not in parameters:
            continue
        value = _value(name, kind, parameters[name])
        target: Message = request.query if field.startswith("query.") else request
        if field == "read_mask":
            request.read_mask.paths.extend(path.strip() for path in value.split(",") if path.strip())
        else:
            _set(target, field.rpartition(".")[2], value)
    return request


async def from_body(request: Request) -> search_service_pb2.SearchRequest:
    """The request in the body of a POST."""
    _only_known(request.query_params, (PICTURES,))
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await _parsed(await request.body())
    if media_type == "multipart/form-data":
        try:
            async with request.form(max_files=MAX_PARTS, max_fields=1, max_part_size=MAX_JSON_IN_FORM) as form:
                return await _from_form(form)
        except HTTPException as error:
            raise MalformedRequest(f"the form cannot be read: {error.detail}") from None
    expected = "application/json or multipart/form-data"
    raise HttpRefusal(415, f"expected {expected}; received {media_type[:100]!r}")


async def _from_form(form: FormData) -> search_service_pb2.SearchRequest:
    """`request` holds the JSON; each query in it without an input takes the next `image`."""
    text, images = "{}", []
    for name, value in form.multi_items():
        if name == "image" and isinstance(value, UploadFile):
            images.append(await value.read())
        elif name == "request":
            text = value if isinstance(value, str) else (await value.read()).decode("utf-8", "replace")
        else:
            raise QueryError(name[:100], "the fields request and image", repr(name)[:100], "leave it out")
    found = await _parsed(text.encode("utf-8", "replace"))
    if not found.HasField("query"):
        found.query.SetInParent()
    places = list(_without_input(found.query))
    if len(places) != len(images):
        expected = f"{len(places)} images, one for each query without an input"
        raise QueryError("image", expected, str(len(images)), "leave the input of such a query out")
    for place, image in zip(places, images, strict=True):
        place.image = image
    return found


def _without_input(query: query_pb2.Query) -> Iterator[query_pb2.Query]:
    kind = query.WhichOneof("input")
    if kind is None:
        yield query
    elif kind == "composition":
        for part in query.composition.parts:
            if part.query.WhichOneof("input") is None:
                yield part.query


async def _parsed(body: bytes) -> search_service_pb2.SearchRequest:
    if len(body) <= _PARSED_IN_THE_LOOP:
        return _parse(body)
    return await asyncio.to_thread(_parse, body)


def _parse(body: bytes) -> search_service_pb2.SearchRequest:
    try:
        value = json.loads(body)
        if not isinstance(value, dict):
            raise MalformedRequest("the body is no JSON object")
        return json_format.ParseDict(value, search_service_pb2.SearchRequest(), max_recursion_depth=20)
    except json_format.ParseError as error:
        raise MalformedRequest(f"the body is no SearchRequest: {error}") from None
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise MalformedRequest(f"the body is no JSON in UTF-8: {error}") from None


def _only_known(parameters: QueryParams, known: tuple[str, ...]) -> None:
    for name in parameters:
        if name not in known:
            raise QueryError(name[:100] or "parameter", f"some of {', '.join(known)}", repr(name)[:100], "leave it out")
        if len(parameters.getlist(name)) > 1:
            raise QueryError(name, "one value", f"{len(parameters.getlist(name))}", "leave all but one out")


def _value(name: str, kind: str, text: str) -> Any:
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "boolean":
            return _BOOLEANS[text.lower()]
        text.encode()
    except (ValueError, KeyError):
        article = "an" if kind == "integer" else "a"
        raise QueryError(name, f"{article} {kind}", repr(text)[:100], "correct the value") from None
    return text


def _set(message: Message, field: str, value: Any) -> None:
    try:
        setattr(message, field, value)
    except ValueError:
        raise QueryError(field, "a number that fits in 32 bits", f"{value}"[:100], "correct the value") from None
