"""From queries to vectors: embeds texts and images in batches, once for all who ask the same; knows no index, but lets
what follows on a text's vector be done where it was made.

Belongs to the event loop that first uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from data.durable import digest_bytes
from data.errors import ImageError, QueryError
from data.images import ImagePreprocessing, load_pixels
from serving.batcher import Batcher, QueueLimits, Turn
from serving.overload import Overloaded
from serving.queries import (
    MAX_PARTS,
    MAX_WEIGHT,
    Composition,
    Example,
    ImageIdQuery,
    ImageQuery,
    ImageRefused,
    Query,
    TextQuery,
    check_count,
    check_image_id,
    check_text,
    unit_vector,
)
from serving.single_flight import SingleFlight
from serving.work_pool import WorkPool, in_order

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime

# Images cost many times what texts do; small batches keep a text from waiting long behind them.
TEXT_BATCH, IMAGE_BATCH = 32, 8
BULK_TEXT_BATCH = 16
LANE_BATCH = 8  # texts of a core that runs batches of its own: more at once do little more, and take longer
LANE_CROWD_BATCH = 16  # where so many wait that the little counts
NICER = 5  # steps, which leave a third of the processor time of what it competes with
KEPT_EMBEDDINGS = 10_000  # 15 MB of 384 components

# Encoded images that are waited for. Clients may send many at once, of up to 32 MiB each.
MAX_IMAGE_BYTES = 256 * 1024 * 1024

Decode = Callable[[bytes], Awaitable[np.ndarray]]
Then = Callable[["EncodedQuery"], Any]
Follow = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class EncodedQuery:
    """A query as an index is asked: (D,) float32 of unit length, and how much of it is text.

    A text has `by_text` 1, an image 0; in a composition it is the sum of the weights of texts, over the length of the
    weighted sum, so that hubness offsets count in the scores of its texts only (see `dual_encoder.hubness`).
    """

    vector: np.ndarray
    by_text: float


@dataclass(slots=True)
class _Text:
    """A text to embed; where wanted, what `QueryEncoder`'s `follow` is given for its vector, and what that made."""

    text: str
    then: Then | None = None
    followed: Any = None


class QueryEncoder:
    """Embeds what clients send. Deadlines are moments on the event loop's clock.

    `decode` turns an encoded image into pixels or raises `ImageError`; `vector_of` gives the vector of an indexed one.
    `follow` does what follows on the vectors of a batch of texts, in the same thread (see `encode_text`).
    """

    def __init__(
        self,
        runtime: Runtime,
        workers: WorkPool,
        vector_of: Callable[[str], np.ndarray],
        decode: Decode | None = None,
        follow: Follow | None = None,
    ) -> None:
        self._runtime, self._workers, self._vector_of = runtime, workers, vector_of
        self._decode = decode or _decoding_here(workers, runtime.preprocessing)
        lanes = runtime.runs_at_once
        self._inference = ThreadPoolExecutor(lanes, thread_name_prefix="inference", initializer=_give_way)
        turn = Turn(lanes)
        self.texts: Batcher[_Text, np.ndarray] = Batcher(
            partial(_embed_and_follow, runtime, follow),
            self._inference,
            turn,
            TEXT_BATCH if lanes == 1 else LANE_BATCH,
            BULK_TEXT_BATCH if lanes == 1 else LANE_BATCH,
            None if lanes == 1 else LANE_CROWD_BATCH,
            lanes=lanes,
            ahead=1,
        )
        self.images: Batcher[np.ndarray, np.ndarray] = Batcher(
            lambda pixels: list(runtime.embed_pixels(np.stack(pixels))),
            self._inference,
            turn,
            IMAGE_BATCH,
            limits=QueueLimits(items=128, seconds=0.5),
            lanes=lanes,
        )
        self.kept: SingleFlight[str, np.ndarray] = SingleFlight(KEPT_EMBEDDINGS)
        self._image_bytes = 0

    async def encode(self, query: Query, deadline: float | None = None, *, bulk: bool = False) -> EncodedQuery:
        """The query's vector; `QueryError` names the field at fault, `ImageNotFound` an image that is not there."""
        if not isinstance(query, Composition):
            return await self._encode(query, "query", deadline, bulk)
        check_count("query.composition.parts", len(query.parts), MAX_PARTS)
        for place, (_, weight) in enumerate(query.parts):
            if not 0 < abs(weight) <= MAX_WEIGHT:  # NaN too
                field = f"query.composition.parts[{place}].weight"
                expected = f"a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, but not 0"
                raise QueryError(field, expected, f"{weight:g}", "leave the part out, or weight it in this range")
        parts = await in_order(
            self._encode(part, f"query.composition.parts[{place}].query", deadline, bulk)
            for place, (part, _) in enumerate(query.parts)
        )
        return _composed(parts, [weight for _, weight in query.parts])

    async def encode_text(
        self, text: str, then: Then, deadline: float | None = None, *, bulk: bool = False
    ) -> tuple[EncodedQuery, Any]:
        """As `encode`, and what follows, if the text is embedded now for this caller; None where its vector was known.

        `then` makes of the vector what `follow` is given, together with what others of the batch wait for: a change of
        threads less for each.
        """
        asked = _Text(text, then)
        vector = await self._text(asked, "query.text", deadline, bulk)
        return EncodedQuery(vector, 1.0), asked.followed

    async def embed_texts(
        self, texts: Sequence[str], deadline: float | None = None, *, bulk: bool = True
    ) -> np.ndarray:
        """Embeddings (B, D) float32 of texts; `QueryError` names the first that breaks a limit."""
        for position, text in enumerate(texts):
            check_text(f"texts[{position}]", text)
        return np.stack(await self.texts.submit([_Text(text) for text in texts], deadline, bulk=bulk))

    async def embed_images(self, images: Sequence[bytes], field: str, deadline: float | None = None) -> np.ndarray:
        """Embeddings (B, D) float32 of encoded images; `ImageRefused` names the first that cannot be decoded.

        `field` has a place for the position, such as "images[{}]".
        """
        with self._holding(sum(map(len, images))):
            pixels = await in_order(self._pixels(field.format(at), image, deadline) for at, image in enumerate(images))
            return np.stack(await self.images.submit(pixels, deadline, bulk=True))

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        self._inference.shutdown(cancel_futures=True)

    async def _encode(self, query: Example, field: str, deadline: float | None, bulk: bool) -> EncodedQuery:
        if isinstance(query, TextQuery):
            return EncodedQuery(await self._text(_Text(query.text), f"{field}.text", deadline, bulk), 1.0)
        if isinstance(query, ImageQuery):
            return EncodedQuery(await self._image(query.data, f"{field}.image", deadline, bulk), 0.0)
        if isinstance(query, ImageIdQuery):
            image_id = query.image_id
            check_image_id(f"{field}.image_id", image_id)
            return EncodedQuery(await self._workers.run(lambda: self._vector_of(image_id), deadline), 0.0)
        return EncodedQuery(unit_vector(f"{field}.vector", query.values, self._runtime.embedding_dim), 0.0)

    async def _text(self, asked: _Text, field: str, deadline: float | None, bulk: bool) -> np.ndarray:
        key = f"text {asked.text}"
        kept = self.kept.peek(key)
        if kept is not None:
            return kept
        check_text(field, asked.text)
        return await self.kept.get(key, lambda: self.texts.start(asked, deadline, bulk=bulk), deadline)

    async def _image(self, data: bytes, field: str, deadline: float | None, bulk: bool) -> np.ndarray:
        async def embed() -> np.ndarray:
            pixels = await self._pixels(field, data, deadline)
            return await self.images.start(pixels, deadline, bulk=bulk)

        with self._holding(len(data)):
            return await self.kept.get(f"image {digest_bytes(data)}", lambda: asyncio.ensure_future(embed()), deadline)

    @contextlib.contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        """Count the bytes of images while they are waited for; `Overloaded` when they are too many."""
        if self._image_bytes and self._image_bytes + size > MAX_IMAGE_BYTES:
            raise Overloaded(f"{self._image_bytes / 2**20:,.0f} MiB of images before this", 0.5)
        self._image_bytes += size
        try:
            yield
        finally:
            self._image_bytes -= size

    async def _pixels(self, field: str, data: bytes, deadline: float | None) -> np.ndarray:
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            raise TimeoutError("the deadline passed before the work began")
        try:
            return await self._decode(data)
        except ImageError as error:
            raise ImageRefused(field, error) from error


def _embed_and_follow(runtime: Runtime, follow: Follow | None, texts: list[_Text]) -> list[np.ndarray]:
    """The vector of each text; what `follow` makes of those that want it is noted with them."""
    vectors = list(runtime.embed_texts([each.text for each in texts]))
    wanted = [(each, each.then, vector) for each, vector in zip(texts, vectors, strict=True) if each.then]
    if follow is not None and wanted:
        made: Sequence[Any]
        try:
            made = follow([then(EncodedQuery(vector, 1.0)) for _, then, vector in wanted])
        except Exception as error:  # theirs, and not of those who asked for vectors only
            made = [error] * len(wanted)
        for (each, _, _), one in zip(wanted, made, strict=True):
            each.followed = one
    return vectors


def _give_way() -> None:
    """Let the event loop and searches go before this thread: they are short, and others wait for them.

    Without it, a server with more work than it can do is late even with its refusals.
    """
    if sys.platform == "linux":  # where threads have priorities of their own
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICER)


def _decoding_here(workers: WorkPool, preprocessing: ImagePreprocessing) -> Decode:
    """What decodes on threads of this process."""

    async def decode(data: bytes) -> np.ndarray:
        return await workers.run(lambda: load_pixels(data, preprocessing))

    return decode


def _composed(parts: Sequence[EncodedQuery], weights: Sequence[float]) -> EncodedQuery:
    weight = np.array(weights)
    total = weight @ np.stack([part.vector for part in parts]).astype(np.float64)  # (P,) * (P, D) -> (D,)
    length = np.linalg.norm(total)
    if length < 1e-3 * np.abs(weight).sum():
        expected, next_step = "parts whose sum has a direction", "leave out those that cancel each other"
        raise QueryError("query.composition", expected, "parts that cancel each other", next_step)
    by_text = float(weight @ [part.by_text for part in parts] / length)
    return EncodedQuery((total / length).astype(np.float32), by_text)
