"""From a query to hits: embeds, searches, looks up; knows no gRPC and no HTTP.

Example: `answer = await SearchEngine(runtime, store).search(TextQuery("a red bicycle"))`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from serving.batcher import Batcher, QueueLimits, Turn
from serving.filter_syntax import parse
from serving.held_views import HeldViews
from serving.image_changes import ImageChanges
from serving.image_lookup import ImageLookup
from serving.kept_answers import KeptAnswers
from serving.queries import MAX_IMAGES, MAX_TEXTS, Query, SearchOptions, TextQuery, check_count
from serving.query_encoder import Decode, EncodedQuery, QueryEncoder
from serving.searches import Search, SearchAnswer, Timings, answers, is_short
from serving.work_pool import WorkPool

if TYPE_CHECKING:
    from dual_encoder.calibration import Calibration
    from dual_encoder.runtime import Runtime
    from serving.vector_store import VectorStore

DEFAULTS = SearchOptions()
SEARCH_BATCH = 16  # searches that a thread does together
SEARCH_QUEUE = QueueLimits(seconds=1.0)


class SearchEngine:
    """One model and a store of its embeddings. Belongs to the event loop that first uses it.

    Texts are embedded in batches of what waits, and searched for where they were embedded; short searches for other
    queries run in batches too, decoding and other searches one by one, on as many threads as there are cores.
    Deadlines are moments on the event loop's clock; what has not begun by then is a `TimeoutError`, and what has no
    prospect of being done by then, or finds too much waiting, is `overload.Overloaded`.
    """

    def __init__(self, runtime: Runtime, store: VectorStore, decode: Decode | None = None) -> None:
        self.runtime = runtime
        self.store = store
        self.workers = WorkPool("search")
        # Nothing here refers back to the engine: it and the model are gone with their last user, without a collection.
        self._calibration: Calibration | None = runtime.calibration
        self._views = HeldViews(store)
        answer = partial(answers, self._views)
        self.encoder = QueryEncoder(runtime, self.workers, partial(_vector_of, store), decode, answer)
        threads = self.workers.threads
        self.searches: Batcher[Search, SearchAnswer | Exception] = Batcher(
            answer,
            self.workers.pool,
            Turn(threads),
            SEARCH_BATCH,
            limits=SEARCH_QUEUE,
            lanes=threads,
        )
        self.kept = KeptAnswers()
        self.images = ImageLookup(store, self.workers)
        self.changes = ImageChanges(runtime, store, self.encoder)

    async def search(
        self, query: Query, options: SearchOptions = DEFAULTS, deadline: float | None = None, *, bulk: bool = False
    ) -> SearchAnswer:
        """The best images for `query`, best first.

        `QueryError` names the field that breaks a limit; its subclasses are `ImageNotFound` and `ImageRefused`.
        `PageTokenExpired` when the state that a page token names is gone. `bulk` work gives way to other.
        """
        began = time.perf_counter()
        if (kept := self.kept.get(query, options, lambda: self.store.known_revision)) is not None:
            if kept.next_page_token:
                self._views.hold(kept.index_revision)
            return dataclasses.replace(kept, timings=Timings(0.0, 0.0, 0.0, 0.0, time.perf_counter() - began))
        filter_text = options.filter_text
        where = await self.workers.run(lambda: parse(filter_text), deadline) if filter_text.strip() else None
        calibration, short = None if where else self._calibration, is_short(options, where)

        def search(encoded: EncodedQuery) -> Search:
            return Search(encoded, options, where, query, calibration, began)

        answer: SearchAnswer | Exception | None = None
        if short and isinstance(query, TextQuery):
            encoded, answer = await self.encoder.encode_text(query.text, search, deadline, bulk=bulk)
        else:
            encoded = await self.encoder.encode(query, deadline, bulk=bulk)
        if answer is None and short:
            (answer,) = await self.searches.submit([search(encoded)], deadline, bulk=bulk)
        elif answer is None:
            (answer,) = await self.workers.run(lambda: answers(self._views, [search(encoded)]), deadline)
        if isinstance(answer, Exception):
            raise answer
        self.kept.keep(query, options, answer)
        return answer.taking(time.perf_counter() - began)

    def place(self) -> AbstractContextManager[None] | None:
        """A context in which a search for a text is done in the thread that begins it, which stands in for the loop's.

        None where that may take long: the model does, others are under way, or the store asks elsewhere.
        """
        return self.encoder.texts.place() if self.store.at_hand else None

    async def embed_texts(self, texts: Sequence[str], deadline: float | None = None) -> np.ndarray:
        """Embeddings (B, D) float32 of 1 to 256 texts."""
        check_count("texts", len(texts), MAX_TEXTS)
        return await self.encoder.embed_texts(texts, deadline, bulk=len(texts) > 1)

    async def embed_images(self, images: Sequence[bytes], deadline: float | None = None) -> np.ndarray:
        """Embeddings (B, D) float32 of 1 to 64 encoded images."""
        check_count("images", len(images), MAX_IMAGES)
        return await self.encoder.embed_images(images, "images[{}]", deadline)

    def close(self) -> None:
        """Stop the threads after what they are doing, and close the store."""
        self.changes.close()
        self.encoder.close()
        self.workers.close()
        self._views.close()
        self.store.close()


def _vector_of(store: VectorStore, image_id: str) -> np.ndarray:
    with store.view() as view:
        return view.vectors([image_id])[0]
