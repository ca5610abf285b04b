"""From a query to hits: checks limits, embeds, searches, looks up; knows no gRPC and no HTTP.

Example: `answer = await SearchEngine(runtime, store).search(TextQuery("a red bicycle"), k=10)`.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from data.errors import ImageError, QueryError
from data.images import load_pixels
from data.text import MAX_CHARACTERS, clean_caption
from serving.batcher import Batcher
from serving.filter_syntax import parse
from serving.vector_index import SearchHit

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime
    from serving.filters import Filter
    from serving.vector_store import VectorStore

R = TypeVar("R")

DEFAULT_K, MAX_K = 10, 1_000
MAX_ID_CHARACTERS = 1_024
MAX_TEXTS, MAX_IMAGES = 256, 64

# Images cost many times what texts do; small batches keep a text from waiting long behind them.
TEXT_BATCH, IMAGE_BATCH = 32, 8


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

    values: Sequence[float]


Query = TextQuery | ImageQuery | ImageIdQuery | VectorQuery


class ImageRefused(QueryError):
    """An image in a query cannot be used; `reason` is the stable word of the `ImageError` behind it."""

    def __init__(self, field: str, error: ImageError) -> None:
        super().__init__(field, error.expected, error.received, error.next_step)
        self.reason = error.reason


@dataclass(frozen=True)
class SearchAnswer:
    """Hits, best first, and the revision of the index that they were found in."""

    hits: list[SearchHit]
    index_revision: str


class SearchEngine:
    """One model and a store of its embeddings. Belongs to the event loop that first uses it.

    Embedding runs on one thread, in batches; decoding and searching run on as many threads as there are cores.
    Deadlines are moments on the event loop's clock; what has not begun by then is a `TimeoutError`.
    """

    def __init__(self, runtime: Runtime, store: VectorStore) -> None:
        self.runtime = runtime
        self.store = store
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="search")
        turn = asyncio.Lock()
        self._texts: Batcher[str, np.ndarray] = Batcher(
            lambda texts: list(runtime.embed_texts(texts)), self._inference, turn, TEXT_BATCH
        )
        self._images: Batcher[np.ndarray, np.ndarray] = Batcher(
            lambda pixels: list(runtime.embed_pixels(np.stack(pixels))), self._inference, turn, IMAGE_BATCH
        )

    async def search(
        self,
        query: Query,
        k: int = DEFAULT_K,
        min_score: float | None = None,
        deadline: float | None = None,
        filter_text: str = "",
    ) -> SearchAnswer:
        """The `k` best images for `query`, best first; those that score less than `min_score` are left out.

        Only images that `filter_text` matches (see filter_syntax.py) are searched; a blank one matches every image.

        `QueryError` names the field that breaks a limit; its subclasses are `ImageNotFound` and `ImageRefused`.
        """
        if not 1 <= k <= MAX_K:
            raise QueryError("k", f"1 to {MAX_K:,} hits", f"{k:,}", "ask for a number in this range")
        if min_score is not None and not math.isfinite(min_score):
            raise QueryError("min_score", "a finite number", str(min_score), "use a number from -1 to 1, or none")
        where = await self._in_worker(lambda: parse(filter_text), deadline) if filter_text.strip() else None
        vector = await self._vector(query, deadline)
        by_text = isinstance(query, TextQuery)
        return await self._in_worker(lambda: self._find(vector, k, min_score, where, by_text), deadline)

    async def embed_texts(self, texts: Sequence[str], deadline: float | None = None) -> np.ndarray:
        """Embeddings (B, D) float32 of 1 to 256 texts."""
        _check_count("texts", len(texts), MAX_TEXTS)
        for position, text in enumerate(texts):
            _check_text(f"texts[{position}]", text)
        return np.stack(await self._texts.submit(texts, deadline))

    async def embed_images(self, images: Sequence[bytes], deadline: float | None = None) -> np.ndarray:
        """Embeddings (B, D) float32 of 1 to 64 encoded images."""
        _check_count("images", len(images), MAX_IMAGES)
        decoding = (self._pixels(f"images[{at}]", image, deadline) for at, image in enumerate(images))
        pixels: list[np.ndarray] = []
        for decoded in await asyncio.gather(*decoding, return_exceptions=True):
            if isinstance(decoded, BaseException):
                raise decoded  # the first in order, whichever failed first in time
            pixels.append(decoded)
        return np.stack(await self._images.submit(pixels, deadline))

    def close(self) -> None:
        """Stop the threads after what they are doing, and close the store."""
        self._inference.shutdown(cancel_futures=True)
        self._workers.shutdown(cancel_futures=True)
        self.store.close()

    async def _vector(self, query: Query, deadline: float | None) -> np.ndarray:
        """The query's embedding, (D,) float32 of unit length."""
        if isinstance(query, TextQuery):
            _check_text("text", query.text)
            return (await self._texts.submit([query.text], deadline))[0]
        if isinstance(query, ImageQuery):
            pixels = await self._pixels("image", query.data, deadline)
            return (await self._images.submit([pixels], deadline))[0]
        if isinstance(query, ImageIdQuery):
            image_id = query.image_id
            if not 1 <= len(image_id) <= MAX_ID_CHARACTERS:
                raise QueryError(
                    "image_id",
                    f"an id of 1 to {MAX_ID_CHARACTERS:,} characters",
                    f"{len(image_id):,} characters",
                    "name an indexed image",
                )
            return await self._in_worker(lambda: self._vector_of(image_id), deadline)
        return _unit_vector(query.values, self.store.dimension)

    async def _pixels(self, field: str, data: bytes, deadline: float | None) -> np.ndarray:
        """Decode an image in a worker thread; `ImageRefused` when that fails."""
        try:
            return await self._in_worker(lambda: load_pixels(data, self.runtime.preprocessing), deadline)
        except ImageError as error:
            raise ImageRefused(field, error) from error

    def _vector_of(self, image_id: str) -> np.ndarray:
        with self.store.view() as view:
            return view.vectors([image_id])[0]

    def _find(
        self, vector: np.ndarray, k: int, min_score: float | None, where: Filter | None, by_text: bool
    ) -> SearchAnswer:
        with self.store.view() as view:
            (found,) = view.search(vector[np.newaxis], k, where, by_text=by_text)
            found = [hit for hit in found if min_score is None or hit.score >= min_score]
            images = view.get([hit.image_id for hit in found])
            hits = [
                SearchHit(hit.image_id, hit.score, rank, image.captions, image.attributes)
                for rank, (hit, image) in enumerate(zip(found, images, strict=True), start=1)
                if image is not None
            ]
            return SearchAnswer(hits, view.revision)

    async def _in_worker(self, work: Callable[[], R], deadline: float | None) -> R:
        loop = asyncio.get_running_loop()

        def unless_late() -> R:
            if deadline is not None and loop.time() >= deadline:
                raise TimeoutError("the deadline passed before the work began")
            return work()

        return await loop.run_in_executor(self._workers, unless_late)


def _check_count(field: str, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise QueryError(field, f"1 to {limit} {field}", str(count), "split the request")


def _check_text(field: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise QueryError(field, f"at most {MAX_CHARACTERS:,} characters", f"{len(text):,}", "shorten the text")
    if not clean_caption(text):
        raise QueryError(field, "a text", "an empty one" if not text else "only spaces", "say what to look for")


def _unit_vector(values: Sequence[float], dimension: int) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.shape != (dimension,):
        raise QueryError("vector", f"{dimension} components", str(vector.size), "use an embedding of this model")
    if not np.isfinite(vector).all():
        raise QueryError("vector", "finite components", "NaN or infinity", "check how the vector was made")
    length = np.linalg.norm(vector)
    if not length:
        raise QueryError("vector", "a vector with a direction", "zero", "check how the vector was made")
    return (vector / length).astype(np.float32)
