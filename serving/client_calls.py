"""A call and a stream as values, which the sync and the async client carry over their channels; knows no method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from serving.filter_syntax import unparse
from serving.filters import Filter

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


def filter_text(where: str | Filter) -> str:
    """A filter as requests hold it."""
    return where if isinstance(where, str) else unparse(where)


def moment(timestamp: Timestamp) -> datetime:
    """A time of an answer."""
    return timestamp.ToDatetime(UTC)
