"""Attributes of images between protos and Python, for servers and clients; knows no call and imports no NumPy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from protos.imageretrieval.v1 import query_pb2

if TYPE_CHECKING:
    from data.pairs import AttributeValue


def attribute_message(value: AttributeValue) -> query_pb2.AttributeValue:
    """An attribute's value as a message."""
    message = query_pb2.AttributeValue()
    set_attribute(message, value)
    return message


def set_attribute(message: query_pb2.AttributeValue, value: AttributeValue) -> None:
    """Put an attribute's value into an empty message, such as one of a map: a third of what making it apart takes."""
    if isinstance(value, str):
        message.string_value = value
    elif isinstance(value, bool):  # before int, of which it is a subclass
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    elif isinstance(value, datetime):
        message.timestamp_value.FromDatetime(value)
    else:
        message.string_list_value.SetInParent()  # also when it is empty
        message.string_list_value.values.extend(value)


def attribute_of(message: query_pb2.AttributeValue) -> AttributeValue:
    """The inverse of `attribute_message`; `ValueError` for a message without a value, or a time that is none."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise ValueError("no value")
    if kind == "string_list_value":
        return list(message.string_list_value.values)
    if kind == "timestamp_value":
        return message.timestamp_value.ToDatetime(UTC)
    return getattr(message, kind)
