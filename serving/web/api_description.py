"""The OpenAPI document of the gateway, with the schemas of the interface's messages read off their descriptors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from protos.imageretrieval.v1 import image_service_pb2, index_service_pb2, search_service_pb2
from serving.web.problems import MEDIA_TYPE
from serving.web.search_requests import PARAMETERS, PICTURES

Schema = dict[str, Any]

# The JSON forms of well-known types: https://protobuf.dev/programming-guides/json/
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$"},
    "google.protobuf.FieldMask": {"type": "string"},
}
_SCALARS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "string", "pattern": r"^-?\d+$"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}


def description() -> Schema:
    """The document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image search",
            "version": _version(),
            "description": "The JSON form of imageretrieval.v1; limits, tokens and reasons are those of gRPC.",
        },
        "paths": {"/v1/search": _searches(), **_images(), "/v1/status": {"get": _status()}},
        "components": {
            "schemas": {**_schemas(), "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _searches() -> Schema:
    pictures = _parameter(PICTURES, "boolean", "Tell the size of each hit's picture, and where it is.")
    found = _answers(_json_response("The hits, best first", "SearchResponse"))
    return {
        "get": {
            "summary": "Search by a text or an indexed image",
            "operationId": "search",
            "parameters": [
                *(_parameter(name, kind, f"SearchRequest.{field}") for name, (kind, field) in PARAMETERS.items()),
                pictures,
            ],
            "responses": found,
        },
        "post": {
            "summary": "Search by anything that gRPC takes",
            "operationId": "searchBy",
            "parameters": [pictures],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
                    "multipart/form-data": {"schema": _FORM},
                },
            },
            "responses": found,
        },
    }


def _images() -> dict[str, Schema]:
    image_id = {"name": "image_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    digest = _parameter("digest", "string", "With the image's digest, the answer may be kept for good.")
    known = {
        "summary": "What is known about an image",
        "operationId": "getImage",
        "parameters": [image_id],
        "responses": _answers(_json_response("The image", "GetImageResponse")),
    }
    formats = ("image/jpeg", "image/png", "image/gif", "image/webp")
    return {
        "/v1/images/{image_id}": {"get": known},
        "/v1/images/{image_id}/thumbnail": _shows("A small copy", "thumbnail", [image_id, digest], ("image/webp",)),
        "/v1/images/{image_id}/content": _shows(
            "The picture as it was indexed", "content", [image_id, digest], formats
        ),
    }


def _status() -> Schema:
    return {
        "summary": "What is served",
        "operationId": "status",
        "responses": _answers(_json_response("The index", "GetIndexResponse")),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("dual-encoder-search")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _parameter(name: str, kind: str, told: str) -> Schema:
    return {"name": name, "in": "query", "schema": {"type": kind}, "description": told}


def _json_response(told: str, name: str) -> Schema:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": told, "content": {"application/json": {"schema": schema}}}


def _shows(told: str, name: str, parameters: list[Schema], media_types: tuple[str, ...]) -> Schema:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}
    responses = _answers({"description": told, "content": content})
    responses["304"] = {"description": "It is what If-None-Match names"}
    return {"get": {"summary": told, "operationId": name, "parameters": parameters, "responses": responses}}


def _answers(found: Schema) -> Schema:
    """The responses of an operation: what is found, or why it was refused."""
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"200": found, "default": {"description": "Why it was refused", "content": {MEDIA_TYPE: problem}}}


_FORM: Schema = {
    "type": "object",
    "properties": {
        "request": {"type": "string", "description": "A SearchRequest as JSON."},
        "image": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "An image for each query of the request without an input, in their order.",
        },
    },
}
_PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "reason"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "The name of a google.rpc.Code."},
        "reason": {"type": "string", "description": "The stable reason, as over gRPC."},
        "violations": {"type": "array", "items": {"type": "object"}},
        "preconditions": {"type": "array", "items": {"type": "object"}},
        "resource": {"type": "object"},
        "requestId": {"type": "string"},
        "retryAfterSeconds": {"type": "number"},
        "metadata": {"type": "object"},
    },
}
_PICTURE: Schema = {
    "type": "object",
    "required": ["width", "height", "thumbnail", "content"],
    "properties": {
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "thumbnail": {"type": "string"},
        "content": {"type": "string"},
    },
}


def _schemas() -> dict[str, Schema]:
    """The schema of every message that the paths name, and of those in it."""
    waiting: list[Descriptor] = [
        search_service_pb2.SearchRequest.DESCRIPTOR,
        search_service_pb2.SearchResponse.DESCRIPTOR,
        image_service_pb2.GetImageResponse.DESCRIPTOR,
        index_service_pb2.GetIndexResponse.DESCRIPTOR,
    ]
    found: dict[str, Schema] = {}
    while waiting:
        message = waiting.pop()
        if message.name not in found:
            found[message.name] = _message_schema(message)
            waiting += _inside(message)
    found["SearchHit"]["properties"]["picture"] = _PICTURE
    return found


def _message_schema(message: Descriptor) -> Schema:
    properties = {field.json_name: _field_schema(field) for field in message.fields}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _inside(message: Descriptor) -> Iterator[Descriptor]:
    for field in message.fields:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None and inner.full_name not in _WELL_KNOWN:
            yield inner


def _field_schema(field: FieldDescriptor) -> Schema:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value_schema(inner.fields_by_name["value"])}
    if field.is_repeated:
        return {"type": "array", "items": _value_schema(field)}
    return _value_schema(field)


def _value_schema(field: FieldDescriptor) -> Schema:
    if field.message_type is not None:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return known or {"$ref": f"#/components/schemas/{field.message_type.name}"}
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return _SCALARS[field.cpp_type]
