"""Attributes of images between protos and Python, for servers and clients; knows no call and imports no NumPy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from protos.imageretrieval.v1 import query_pb2

if TYPE_CHECKING:
    from data.pairs import AttributeValue


def attribute_message(value: AttributeValue) -> query_pb2.AttributeValue:
    """An attribute's value as a message."""
    if isinstance(value, bool):  # before int, of which it is a subclass
        return query_pb2.AttributeValue(bool_value=value)
    if isinstance(value, int):
        return query_pb2.AttributeValue(int_value=value)
    if isinstance(value, float):
        return query_pb2.AttributeValue(double_value=value)
    if isinstance(value, str):
        return query_pb2.AttributeValue(string_value=value)
    if isinstance(value, datetime):
        return query_pb2.AttributeValue(timestamp_value=value)
    return query_pb2.AttributeValue(string_list_value=query_pb2.StringList(values=value))


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
