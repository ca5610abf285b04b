"""What a search asks for, and the limits of every field, named as in the interface; knows no model and no index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import ImageError, QueryError
from data.text import MAX_CHARACTERS, clean_caption

DEFAULT_K, MAX_K = 10, 1_000
MAX_ID_CHARACTERS = 1_024
MAX_TEXTS, MAX_IMAGES, MAX_PARTS = 256, 64, 16
MAX_WEIGHT = 10.0
MAX_OVERSAMPLING = 16.0


@dataclass(frozen=True)
class TextQuery:
    """What is wanted, in words."""

    text: str


@dataclass(frozen=True)
class ImageQuery:
    """An encoded image like the ones that are wanted."""

    data: bytes


@dataclass(frozen=True)
class ImageIdQuery:
    """An indexed image like the ones that are wanted; it comes first among its hits, beside any that look the same."""

    image_id: str


@dataclass(frozen=True)
class VectorQuery:
    """An embedding of the same model, of any length but zero."""

    values: Sequence[float] | np.ndarray


Example = TextQuery | ImageQuery | ImageIdQuery | VectorQuery


@dataclass(frozen=True)
class Composition:
    """Several examples with their weights; images are ranked by the weighted sum of their similarities to each."""

    parts: tuple[tuple[Example, float], ...]


Query = Example | Composition


@dataclass(frozen=True)
class SearchOptions:
    """How to search, and what to return of the hits; fields as in `SearchRequest` of the interface, `page_size` as `k`.

    `QueryError` for one that breaks its limits.
    """

    k: int = DEFAULT_K
    min_score: float | None = None
    filter_text: str = ""
    exact: bool = False
    oversampling: float = 1.0
    deduplicate_similarity: float | None = None
    page_token: str = ""
    with_vectors: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K:
            raise QueryError("page_size", f"1 to {MAX_K:,} hits", f"{self.k:,}", "ask for a number in this range")
        if self.min_score is not None and not math.isfinite(self.min_score):
            next_step = "use a number from -1 to 1, or none"
            raise QueryError("min_score", "a finite number", str(self.min_score), next_step)
        if not 1 <= self.oversampling <= MAX_OVERSAMPLING:  # NaN too
            expected = f"a number from 1 to {MAX_OVERSAMPLING:g}"
            raise QueryError("oversampling", expected, f"{self.oversampling:g}", "use one in this range")
        similarity = self.deduplicate_similarity
        if similarity is not None and not 0 < similarity <= 1:
            next_step = "0.97 leaves out near copies"
            raise QueryError("deduplicate_similarity", "a number above 0 and up to 1", f"{similarity:g}", next_step)


def texts_of(query: Query) -> tuple[str, ...]:
    """The texts in a query."""
    if isinstance(query, Composition):
        return tuple(part.text for part, _ in query.parts if isinstance(part, TextQuery))
    return (query.text,) if isinstance(query, TextQuery) else ()


class ImageRefused(QueryError):
    """An image in a query cannot be used; `reason` is the stable word of the `ImageError` behind it."""

    def __init__(self, field: str, error: ImageError) -> None:
        super().__init__(field, error.expected, error.received, error.next_step)
        self.reason = error.reason


def check_count(field: str, count: int, limit: int) -> None:
    """`QueryError` unless there are 1 to `limit`."""
    if not 1 <= count <= limit:
        raise QueryError(field, f"1 to {limit:,} {field.rpartition('.')[2]}", str(count), "split the request")


def check_text(field: str, text: str) -> None:
    """`QueryError` for a text that says nothing, or too much."""
    if len(text) > MAX_CHARACTERS:
        raise QueryError(field, f"at most {MAX_CHARACTERS:,} characters", f"{len(text):,}", "shorten the text")
    if not clean_caption(text):
        raise QueryError(field, "a text", "an empty one" if not text else "only spaces", "say what to look for")


def check_image_id(field: str, image_id: str) -> None:
    """`QueryError` for what cannot be an image's id."""
    if not 1 <= len(image_id) <= MAX_ID_CHARACTERS:
        expected, received = f"an id of 1 to {MAX_ID_CHARACTERS:,} characters", f"{len(image_id):,} characters"
        raise QueryError(field, expected, received, "name an indexed image")


def unit_vector(field: str, values: Sequence[float] | np.ndarray, dimension: int) -> np.ndarray:
    """`values` at unit length, (D,) float32; `QueryError` unless they are `dimension` finite numbers, not all 0."""
    vector = np.asarray(values, np.float64)
    if vector.shape != (dimension,):
        raise QueryError(field, f"{dimension} components", str(vector.size), "use an embedding of this model")
    if not np.isfinite(vector).all():
        raise QueryError(field, "finite components", "NaN or infinity", "check how the vector was made")
    largest = np.abs(vector).max()
    if not largest:
        raise QueryError(field, "a vector with a direction", "zero", "check how the vector was made")
    vector = vector / largest  # the squares of very small or large numbers would vanish or overflow
    return (vector / np.linalg.norm(vector)).astype(np.float32)
