"""The text by which a client asks for the hits that follow: which search it was, in which state of the index, and what
was given so far; knows no index.

A token is no secret and no permission: it only says where to go on, and is checked like any other field.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import orjson

from data.attributes import is_unicode
from data.errors import QueryError

_VERSION = 1
_LONGEST = 16_384


class PageTokenExpired(Exception):
    """The state of the index that a page token names is not there any more."""


@dataclass(frozen=True)
class PageToken:
    """Where a search goes on. `request` is a digest of what was asked, without the size of its pages.

    Later pages come from one ranking of as many hits as can be paged to. The first page came from a ranking of as many
    as it has, which an approximate index may find a little differently: so `first` names its images, by checksum, and
    `given` counts hits of later pages.
    """

    request: str
    revision: str
    given: int
    first: tuple[int, ...]

    def encode(self) -> str:
        """URL-safe text, read back by `decode`."""
        checksums = b"".join(number.to_bytes(4, "big") for number in self.first)
        head = orjson.dumps([_VERSION, self.request, self.revision, self.given])
        return base64.urlsafe_b64encode(head + b"\n" + checksums).decode()

    @classmethod
    def decode(cls, text: str) -> PageToken:
        """The inverse of `encode`; `QueryError` for a text that is no page token."""
        with _refusing(text):
            head, _, checksums = _bytes_of(text).partition(b"\n")
            version, request, revision, given = json.loads(head)
            if version != _VERSION or len(checksums) % 4 or type(given) is not int or given < 0:
                raise ValueError
            if type(request) is not str or type(revision) is not str:
                raise ValueError
        first = tuple(int.from_bytes(checksums[at : at + 4], "big") for at in range(0, len(checksums), 4))
        return cls(request, revision, given, first)


@dataclass(frozen=True)
class ListToken:
    """Where a list in the order of ids goes on: after an id. `request` is a digest of what was asked."""

    request: str
    after: str

    def encode(self) -> str:
        """URL-safe text, read back by `decode`."""
        return base64.urlsafe_b64encode(json.dumps([_VERSION, self.request, self.after]).encode()).decode()

    @classmethod
    def decode(cls, text: str) -> ListToken:
        """The inverse of `encode`; `QueryError` for a text that is no token of a list."""
        with _refusing(text):
            version, request, after = json.loads(_bytes_of(text))
            if version != _VERSION or type(request) is not str or type(after) is not str or not is_unicode(after):
                raise ValueError
        return cls(request, after)


def checksum(image_id: str) -> int:
    """What stands for an image in a token, a 32-bit number."""
    return zlib.crc32(image_id.encode("utf-8", "surrogatepass"))


def checksums(image_ids: Sequence[str]) -> tuple[int, ...]:
    """`checksum` of each."""
    return tuple(map(checksum, image_ids))


def other_request() -> QueryError:
    """The refusal of a token that belongs to another request."""
    return QueryError(
        "page_token",
        "the token of the same request",
        "that of another one",
        "change nothing but page_size between pages",
    )


def _bytes_of(text: str) -> bytes:
    if len(text) > _LONGEST:
        raise ValueError
    return base64.b64decode(text.encode("ascii"), b"-_", validate=True)


@contextmanager
def _refusing(text: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, binascii.Error, RecursionError):
        received, next_step = f"{text[:40]!r}", "use next_page_token of the answer before, as it is"
        raise QueryError("page_token", "a page token", received, next_step) from None
