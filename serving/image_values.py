"""Translates images between protos and Python; knows no call."""

from __future__ import annotations

from data.errors import QueryError
from data.pairs import AttributeValue
from protos.imageretrieval.v1 import image_service_pb2, query_pb2
from serving.image_changes import ImageUpsert
from serving.image_lookup import KnownImage
from serving.proto_attributes import attribute_message, attribute_of
from serving.proto_values import ReadMask, vector_of

IMAGE_FIELDS = ("image_id", "captions", "attributes", "version", "digest", "vector")


def image_message(known: KnownImage, mask: ReadMask) -> image_service_pb2.Image:
    """An image as a message, with the fields of `mask`."""
    image, fields = known.image, mask.fields
    message = image_service_pb2.Image(
        image_id=image.image_id if "image_id" in fields else "",
        captions=image.captions if "captions" in fields else (),
        attributes={name: attribute_message(value) for name, value in mask.attributes_of(image.attributes).items()},
        version=image.version if "version" in fields else 0,
        digest=image.digest if "digest" in fields else "",
    )
    if known.vector is not None:
        message.vector.values.extend(known.vector.tolist())
    return message


def upsert_of(request: image_service_pb2.UpsertImageRequest) -> ImageUpsert:
    """What a request asks to add; `QueryError` for what is not set, or no value."""
    content = request.WhichOneof("content")
    if content is None:
        raise QueryError("content", "data or a vector", "neither", "send the encoded image or its embedding")
    return ImageUpsert(
        request.image_id,
        request.data if content == "data" else vector_of(request.vector, "vector"),
        tuple(request.captions),
        {name: _attribute(name, value) for name, value in request.attributes.items()},
        request.if_version if request.HasField("if_version") else None,
        request.request_id,
    )


def _attribute(name: str, message: query_pb2.AttributeValue) -> AttributeValue:
    try:
        return attribute_of(message)
    except (ValueError, OverflowError):
        received = "none" if message.WhichOneof("kind") is None else "a time out of range"
        raise QueryError(f"attributes[{name[:100]!r}]", "a value", received, "set one that an index can keep") from None
