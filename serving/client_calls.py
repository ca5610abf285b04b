"""A call and a stream as values, which the sync and the async client carry over their channels; knows no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from serving.filter_syntax import unparse
from serving.filters import Filter

IN_FLIGHT = 32  # requests of a stream that have no answer yet
MOST_BYTES = 32 * 1024 * 1024  # of what one request brings

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


def chunks(items: Iterable[T], most: int, size: Callable[[T], int] = lambda item: 0) -> Iterator[list[T]]:
    """`items` in order, at most so many at once, of no more bytes than a request holds unless one alone has more."""
    some: list[T] = []
    total = 0
    for item in items:
        more = size(item)
        if some and (len(some) == most or total + more > MOST_BYTES):
            yield some
            some, total = [], 0
        some.append(item)
        total += more
    if some:
        yield some


def filter_text(where: str | Filter) -> str:
    """A filter as requests hold it."""
    return where if isinstance(where, str) else unparse(where)


def moment(timestamp: Timestamp) -> datetime:
    """A time of an answer."""
    return timestamp.ToDatetime(UTC)
