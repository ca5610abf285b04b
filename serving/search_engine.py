"""From a query to hits: embeds, searches, looks up; knows no gRPC and no HTTP.

Example: `answer = await SearchEngine(runtime, store).search(TextQuery("a red bicycle"))`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from data.durable import digest_bytes, digest_json
from serving.filter_syntax import parse
from serving.held_views import HeldViews
from serving.image_changes import ImageChanges
from serving.image_lookup import ImageLookup
from serving.kept_answers import KeptAnswers
from serving.page_tokens import PageToken, checksum, checksums, other_request
from serving.queries import (
    MAX_IMAGES,
    MAX_K,
    MAX_TEXTS,
    Composition,
    ImageIdQuery,
    ImageQuery,
    Query,
    SearchOptions,
    TextQuery,
    check_count,
)
from serving.query_encoder import Decode, EncodedQuery, QueryEncoder
from serving.vector_index import SearchHit
from serving.vector_store import Found
from serving.work_pool import WorkPool

if TYPE_CHECKING:
    from dual_encoder.calibration import Calibration
    from dual_encoder.runtime import Runtime
    from serving.filters import Filter
    from serving.vector_store import StoreView, VectorStore

DEFAULTS = SearchOptions()


@dataclass(frozen=True)
class Timings:
    """Seconds that the parts of a search took, waiting included."""

    embedding: float
    queueing: float
    search: float
    lookup: float
    total: float


@dataclass(frozen=True)
class SearchAnswer:
    """Hits, best first, and the revision of the index that they were found in.

    `match_probability` is the probability that one of the first ten hits is what was meant, where that is known.
    """

    hits: list[SearchHit]
    index_revision: str
    next_page_token: str
    match_probability: float | None
    timings: Timings
    rendered: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # what a transport made of it


class SearchEngine:
    """One model and a store of its embeddings. Belongs to the event loop that first uses it.

    Embedding runs on one thread, in batches; decoding and searching run on as many threads as there are cores.
    Deadlines are moments on the event loop's clock; what has not begun by then is a `TimeoutError`, and what has no
    prospect of being done by then, or finds too much waiting, is `overload.Overloaded`.
    """

    def __init__(self, runtime: Runtime, store: VectorStore, decode: Decode | None = None) -> None:
        self.runtime = runtime
        self.store = store
        self.workers = WorkPool("search")
        # Nothing here refers back to the engine: it and the model are gone with their last user, without a collection.
        self.encoder = QueryEncoder(runtime, self.workers, partial(_vector_of, store), decode)
        self._calibration: Calibration | None = runtime.calibration
        self._views = HeldViews(store)
        self.kept = KeptAnswers()
        self.images = ImageLookup(store, self.workers)
        self.changes = ImageChanges(runtime, store, self.encoder)

    async def search(
        self, query: Query, options: SearchOptions = DEFAULTS, deadline: float | None = None, *, bulk: bool = False
    ) -> SearchAnswer:
        """The best images for `query`, best first.

        `QueryError` names the field that breaks a limit; its subclasses are `ImageNotFound` and `ImageRefused`.
        `PageTokenExpired` when the state that a page token names is gone. `bulk` work waits for all other.
        """
        began = time.perf_counter()
        if (kept := self.kept.get(query, options, self.store.known_revision)) is not None:
            if kept.next_page_token:
                self._views.hold(kept.index_revision)
            return dataclasses.replace(kept, timings=Timings(0.0, 0.0, 0.0, 0.0, time.perf_counter() - began))
        filter_text = options.filter_text
        where = await self.workers.run(lambda: parse(filter_text), deadline) if filter_text.strip() else None
        encoded = await self.encoder.encode(query, deadline, bulk=bulk)
        search = _Search(encoded, options, where, query, None if where else self._calibration)
        queued = time.perf_counter()
        answer = await self.workers.run(lambda: self._find(search, began, queued), deadline)
        self.kept.keep(query, options, answer)
        return dataclasses.replace(
            answer, timings=dataclasses.replace(answer.timings, total=time.perf_counter() - began)
        )

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

    def _find(self, search: _Search, began: float, queued: float) -> SearchAnswer:
        started = time.perf_counter()
        token = search.token
        with self._views.view(token.revision if token else None) as view:
            found, token_after, probabilities, match_probability = search.run(view)
            searched = time.perf_counter()
            hits = _looked_up(view, found, search.first_rank, probabilities, search.options.with_vectors)
            revision = view.revision
        if token_after:
            self._views.hold(revision)
        ended = time.perf_counter()
        timings = Timings(queued - began, started - queued, searched - started, ended - searched, ended - began)
        return SearchAnswer(hits, revision, token_after, match_probability, timings)


def _vector_of(store: VectorStore, image_id: str) -> np.ndarray:
    with store.view() as view:
        return view.vectors([image_id])[0]


class _Search:
    """One search, up to its hits' ids and scores."""

    def __init__(
        self,
        encoded: EncodedQuery,
        options: SearchOptions,
        where: Filter | None,
        query: Query,
        calibration: Calibration | None,
    ) -> None:
        self.options = options
        self._encoded, self._where = encoded, where
        self._request = _digest(query, options)
        self.token = PageToken.decode(options.page_token) if options.page_token else None
        if self.token is not None and self.token.request != self._request:
            raise other_request()
        self._calibration = calibration if isinstance(query, TextQuery) and self.token is None else None

    @property
    def first_rank(self) -> int:
        """The rank of the first hit of this page."""
        return 1 if self.token is None else 1 + len(self.token.first) + self.token.given

    def run(self, view: StoreView) -> tuple[list[Found], str, list[float | None], float | None]:
        """This page, the next page's token or "", each hit's probability, and that of a match."""
        if self.token is not None:
            return *self._later_page(view, self.token), [], None
        ranked, ordered = self._ranked(view, self.options.k + 1)
        page = ranked[: self.options.k]
        probabilities, match_probability = self._probabilities(view, ordered, page)
        token = ""
        if len(ranked) > len(page) and len(page) < MAX_K:
            first = checksums([found.image_id for found in page])
            token = PageToken(self._request, view.revision, 0, first).encode()
        return page, token, probabilities, match_probability

    def _later_page(self, view: StoreView, token: PageToken) -> tuple[list[Found], str]:
        """Go on in the one ranking of all that can be paged to, without what the first page had."""
        room = MAX_K - len(token.first)
        given = set(token.first)
        ranked = [found for found in self._ranked(view, MAX_K)[0] if checksum(found.image_id) not in given][:room]
        end = token.given + self.options.k
        after = dataclasses.replace(token, given=end).encode() if end < len(ranked) else ""
        return ranked[token.given : end], after

    def _ranked(self, view: StoreView, wanted: int) -> tuple[list[Found], list[Found]]:
        """The first `wanted` hits, or all there are, and the hits before any was left out."""
        least = self._calibration.depth if self._calibration else 1
        candidates = min(MAX_K, max(wanted, least))
        while True:
            ordered = self._search(view, candidates)
            ranked = self._distinct(view, self._scoring_enough(ordered))
            if len(ranked) >= wanted or len(ordered) < candidates or candidates == MAX_K:
                return ranked[:wanted], ordered
            if self.options.deduplicate_similarity is None:  # scores only fall from here
                return ranked, ordered
            candidates = min(MAX_K, 4 * candidates)

    def _search(self, view: StoreView, k: int) -> list[Found]:
        (found,) = view.search(
            self._encoded.vector[np.newaxis],
            k,
            self._where,
            exact=self.options.exact,
            by_text=self._encoded.by_text,
            oversampling=self.options.oversampling,
        )
        return found

    def _scoring_enough(self, found: list[Found]) -> list[Found]:
        lowest = self.options.min_score
        return found if lowest is None else [hit for hit in found if hit.score >= lowest]

    def _distinct(self, view: StoreView, found: list[Found]) -> list[Found]:
        """Without those that look the same as a better one."""
        similarity = self.options.deduplicate_similarity
        if similarity is None or not found:
            return found
        vectors = view.vectors([hit.image_id for hit in found])
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # stored as float16
        kept: list[int] = []
        for place in range(len(found)):
            if not kept or (vectors[kept] @ vectors[place]).max() < similarity:
                kept.append(place)
        return [found[place] for place in kept]

    def _probabilities(
        self, view: StoreView, ordered: list[Found], page: list[Found]
    ) -> tuple[list[float | None], float | None]:
        if self._calibration is None or not ordered:
            return [], None
        scores = np.array([[hit.score for hit in ordered]])
        each = self._calibration.probability(scores, len(view))[0].tolist()
        by_id = {hit.image_id: probability for hit, probability in zip(ordered, each, strict=True)}
        answered = float(self._calibration.answered(scores, len(view))[0])
        return [by_id[hit.image_id] for hit in page], answered


def _looked_up(
    view: StoreView, found: list[Found], first_rank: int, probabilities: list[float | None], with_vectors: bool
) -> list[SearchHit]:
    ids = [hit.image_id for hit in found]
    images = view.get(ids)
    vectors = view.vectors(ids).tolist() if with_vectors else [None] * len(ids)
    return [
        SearchHit(
            hit.image_id,
            hit.score,
            rank,
            image.captions,
            image.attributes,
            probabilities[place] if probabilities else None,
            vectors[place],
        )
        for place, (rank, hit, image) in enumerate(
            zip(range(first_rank, first_rank + len(found)), found, images, strict=True)
        )
        if image is not None
    ]


def _digest(query: Query, options: SearchOptions) -> str:
    """Names a search, whatever the size of its pages."""
    asked = dataclasses.asdict(dataclasses.replace(options, k=1, page_token=""))
    return digest_json([_described(query), asked])[:16]


def _described(query: Query) -> list[object]:
    """What is asked, as JSON."""
    if isinstance(query, Composition):
        return ["composition", [[_described(part), weight] for part, weight in query.parts]]
    if isinstance(query, TextQuery):
        return ["text", query.text]
    if isinstance(query, ImageQuery):
        return ["image", digest_bytes(query.data)]
    if isinstance(query, ImageIdQuery):
        return ["image_id", query.image_id]
    return ["vector", digest_bytes(np.asarray(query.values, np.float64).tobytes())]
