"""What clients give and get: searches, images, receipts, descriptions of the index; knows no message and no channel."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict, cast

from serving.client_errors import ServiceError
from serving.vector_index import SearchHit

if TYPE_CHECKING:
    from data.pairs import AttributeValue
    from serving.filters import Filter


@dataclass(frozen=True)
class ImageId:
    """An indexed image, as an example in a composition."""

    image_id: str


# A text, an encoded image, an indexed image or an embedding.
Example = str | bytes | ImageId | Sequence[float]


class Composition:
    """Several examples at once, each alone or with a weight: images are ranked by the weighted sum of similarities.

    Example: `Composition(("red shoes", 1), ("high heels", -1))`, `Composition(photo, "at night")`.
    """

    def __init__(self, *parts: Example | tuple[Example, float]) -> None:
        self.parts = tuple(_weighted(part) for part in parts)


def _weighted(part: Example | tuple[Example, float]) -> tuple[Example, float]:
    if isinstance(part, tuple) and len(part) == 2:
        example, weight = part
        if not isinstance(example, int | float):  # else a vector of two components
            return example, weight
    return cast(Example, part), 1.0


class SearchKeywords(TypedDict, total=False):
    """The keywords of a search; `Search` tells what they mean."""

    image: bytes | None
    image_id: str | None
    vector: Sequence[float] | None
    composition: Composition | None
    k: int
    min_score: float | None
    filter: str | Filter
    exact: bool
    oversampling: float
    deduplicate_similarity: float | None
    fields: Sequence[str]
    with_timings: bool
    with_certificate: bool
    page_token: str


@dataclass(frozen=True)
class Search:
    """One search: a `text`, an encoded `image`, the `image_id` of an indexed one, a `vector` or a `composition`.

    The best `k` images that `filter` matches, such as 'kind = "photo" AND year >= 2010', without those that score less
    than `min_score`. `deduplicate_similarity` leaves out an image that is at least so similar to a better hit (0.97:
    near copies); `oversampling` from 1 to 16 has the index look at so many times as many candidates; `exact` compares
    with every image. `fields` of the hits to return, such as "image_id", "attributes.year" or "vector"; none stands for
    all but "vector". `page_token` asks for the hits that follow those of an answer.
    """

    text: str | None = None
    image: bytes | None = None
    image_id: str | None = None
    vector: Sequence[float] | None = None
    composition: Composition | None = None
    k: int = 10
    min_score: float | None = None
    filter: str | Filter = ""
    exact: bool = False
    oversampling: float = 1.0
    deduplicate_similarity: float | None = None
    fields: Sequence[str] = ()
    with_timings: bool = False
    with_certificate: bool = False
    page_token: str = ""

    def __post_init__(self) -> None:
        inputs = ("text", "image", "image_id", "vector", "composition")
        given = [name for name in inputs if getattr(self, name) is not None]
        if len(given) != 1:
            wanted = "one of text, image, image_id, vector and composition"
            raise TypeError(f"expected {wanted}; received {', '.join(given) or 'none'}")
        if self.k < 1:  # 0 would stand for the server's default
            raise ValueError(f"expected k of at least 1; received {self.k}")


@dataclass(frozen=True)
class SearchTimings:
    """Seconds that the parts of a search took in the server, waiting included."""

    embedding: float
    queueing: float
    search: float
    lookup: float
    total: float


@dataclass(frozen=True)
class IndexCertificate:
    """The share of the true first ten hits that the index found when it was built, and what was asked then."""

    index_recall: float
    query_count: int
    query_kind: str
    kind: str


class SearchResults(list[SearchHit]):
    """The hits of a search, best first, and what is known about the answer.

    `model_revision` and `index_revision` name the model and the state of the index; `next_page_token` is empty on the
    last page; `match_probability` is that of one of the first ten hits being what was meant, where it is known.
    """

    def __init__(
        self,
        hits: Sequence[SearchHit],
        model_revision: str,
        index_revision: str,
        next_page_token: str = "",
        match_probability: float | None = None,
        timings: SearchTimings | None = None,
        certificate: IndexCertificate | None = None,
    ) -> None:
        super().__init__(hits)
        self.model_revision, self.index_revision = model_revision, index_revision
        self.next_page_token, self.match_probability = next_page_token, match_probability
        self.timings, self.certificate = timings, certificate


@dataclass(frozen=True)
class Image:
    """What the index knows about an image. `digest` is its SHA-256, empty where only a vector is known."""

    image_id: str
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    version: int = 0
    digest: str = ""
    vector: Sequence[float] | None = None


def new_request_id() -> str:
    """A name that no other request has."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Upload:
    """An image to add or replace: the encoded `image`, or a `vector` of the same model.

    With `if_version` it applies only if the image has that version now, 0 for one that is not there. Sent again as it
    is, with its `request_id`, it changes nothing and gets the same answer.
    """

    image_id: str
    image: bytes | None = None
    vector: Sequence[float] | None = None
    captions: Sequence[str] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    if_version: int | None = None
    request_id: str = field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        if (self.image is None) == (self.vector is None):
            received = "neither" if self.image is None else "both"
            raise TypeError(f"expected an image or a vector for {self.image_id!r}; received {received}")


@dataclass(frozen=True)
class Receipt:
    """An image is durable and searched: its version now, and the model that embedded it."""

    version: int
    model_revision: str


@dataclass(frozen=True)
class AttributeSummary:
    """An attribute that images have; `frequent_values` of texts, most frequent first."""

    name: str
    kind: str
    image_count: int
    frequent_values: tuple[str, ...]


@dataclass(frozen=True)
class IndexStatus:
    """What a server serves."""

    snapshot: str
    image_count: int
    dimension: int
    kind: str
    model_name: str
    model_revision: str
    source: str
    create_time: datetime
    revision: str
    writable: bool
    change_count: int
    certificate: IndexCertificate | None
    attributes: tuple[AttributeSummary, ...]


@dataclass(frozen=True)
class Snapshot:
    """A published state of the index that is kept."""

    name: str
    live: bool
    image_count: int
    model_revision: str
    source: str
    create_time: datetime


@dataclass(frozen=True)
class Operation:
    """Work that the server began: when it is `done`, either its `error` or its `result` tells how it ended."""

    name: str
    method: str
    create_time: datetime
    end_time: datetime | None
    progress: str
    done: bool
    error: ServiceError | None
    result: str
