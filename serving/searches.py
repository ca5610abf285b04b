"""Searches of one state of the store, several at once: rankings, pages, probabilities, look-ups; knows no queue and no
model."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from data.durable import canonical_json, digest_bytes
from serving.page_tokens import PageToken, checksum, checksums, other_request
from serving.queries import MAX_K, Composition, ImageIdQuery, ImageQuery, Query, SearchOptions, TextQuery
from serving.vector_index import SearchHit

if TYPE_CHECKING:
    from dual_encoder.calibration import Calibration
    from serving.filters import Filter
    from serving.held_views import HeldViews
    from serving.query_encoder import EncodedQuery
    from serving.vector_store import Found, StoredImage, StoreView


SHORT_K = 100


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

    def taking(self, total: float) -> SearchAnswer:
        """The same, with so many seconds in all."""
        each = self.timings
        timings = Timings(each.embedding, each.queueing, each.search, each.lookup, total)
        parts = self.hits, self.index_revision, self.next_page_token, self.match_probability
        return SearchAnswer(*parts, timings, self.rendered)


@dataclass(frozen=True)
class Ranked:
    """A page of hits without what is looked up; the token is "" where no other follows."""

    page: list[Found]
    next_page_token: str
    probabilities: list[float | None]  # each hit's, or none at all
    match_probability: float | None


class Search:
    """One search, up to its hits' ids and scores.

    Its caller `began`, and it was `queued` when its query was a vector: moments of `time.perf_counter`.
    """

    def __init__(
        self,
        encoded: EncodedQuery,
        options: SearchOptions,
        where: Filter | None,
        query: Query,
        calibration: Calibration | None,
        began: float,
    ) -> None:
        self.options = options
        self.vector, self.where, self._by_text = encoded.vector, where, encoded.by_text
        self.began, self.queued = began, time.perf_counter()
        self.first: list[Found] | None = None  # what the index finds at first, when it was asked together with others
        self._request = _digest(query, options)
        self.token = PageToken.decode(options.page_token) if options.page_token else None
        if self.token is not None and self.token.request != self._request:
            raise other_request()
        self._calibration = calibration if isinstance(query, TextQuery) and self.token is None else None

    @property
    def first_rank(self) -> int:
        """The rank of the first hit of this page."""
        return 1 if self.token is None else 1 + len(self.token.first) + self.token.given

    @property
    def asks(self) -> tuple[int, bool, float, float]:
        """What the index is asked for at first, beside the vector: how many, exactly, how much by text, how widely."""
        return self._candidates(self.options.k + 1), self.options.exact, self._by_text, self.options.oversampling

    def run(self, view: StoreView) -> Ranked:
        """This page, without what is looked up."""
        if self.token is not None:
            return Ranked(*self._later_page(view, self.token), [], None)
        ranked, ordered = self._ranked(view, self.options.k + 1)
        page = ranked[: self.options.k]
        probabilities, match_probability = self._probabilities(view, ordered, page)
        token = ""
        if len(ranked) > len(page) and len(page) < MAX_K:
            first = checksums([found.image_id for found in page])
            token = PageToken(self._request, view.revision, 0, first).encode()
        return Ranked(page, token, probabilities, match_probability)

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
        candidates = self._candidates(wanted)
        while True:
            ordered = self._search(view, candidates)
            ranked = self._distinct(view, self._scoring_enough(ordered))
            if len(ranked) >= wanted or len(ordered) < candidates or candidates == MAX_K:
                return ranked[:wanted], ordered
            if self.options.deduplicate_similarity is None:  # scores only fall from here
                return ranked, ordered
            candidates = min(MAX_K, 4 * candidates)

    def _candidates(self, wanted: int) -> int:
        return min(MAX_K, max(wanted, self._calibration.depth if self._calibration else 1))

    def _search(self, view: StoreView, k: int) -> list[Found]:
        if self.first is not None:
            found, self.first = self.first, None
            return found
        (found,) = view.search(
            self.vector[np.newaxis],
            k,
            self.where,
            exact=self.options.exact,
            by_text=self._by_text,
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


def is_short(options: SearchOptions, where: Filter | None) -> bool:
    """Whether such a search is soon done, so that others may wait for it."""
    return where is None and not options.page_token and not options.exact and options.k <= SHORT_K


def answers(views: HeldViews, searches: Sequence[Search]) -> list[SearchAnswer | Exception]:
    """The answer to each, or what went wrong with it, found in one state: that of the token of a single later page, or
    the present one. `PageTokenExpired` when that is gone.
    """
    token = searches[0].token
    with views.view(token.revision if token else None) as view:
        found = _answers(view, searches)
        revision = view.revision
    if any(isinstance(each, SearchAnswer) and each.next_page_token for each in found):
        views.hold(revision)
    return found


def _answers(view: StoreView, searches: Sequence[Search]) -> list[SearchAnswer | Exception]:
    started = time.perf_counter()
    _search_together(view, searches)
    ranked = [_ranked_or_error(view, search) for search in searches]
    searched = time.perf_counter()
    ids = list({hit.image_id: None for one in ranked if isinstance(one, Ranked) for hit in one.page})
    images = dict(zip(ids, view.get(ids), strict=True))
    hits = [
        [] if isinstance(one, Exception) else _looked_up(view, images, one, search)
        for one, search in zip(ranked, searches, strict=True)
    ]
    ended = time.perf_counter()
    return [
        one
        if isinstance(one, Exception)
        else SearchAnswer(
            found,
            view.revision,
            one.next_page_token,
            one.match_probability,
            Timings(
                search.queued - search.began,
                started - search.queued,
                searched - started,
                ended - searched,
                ended - search.began,
            ),
        )
        for one, search, found in zip(ranked, searches, hits, strict=True)
    ]


def _ranked_or_error(view: StoreView, search: Search) -> Ranked | Exception:
    try:
        return search.run(view)
    except Exception as error:  # one search's, and no other's
        return error


def _search_together(view: StoreView, searches: Sequence[Search]) -> None:
    """Ask the index at once for what several begin with: it takes less than one after the other."""
    alike: dict[tuple[int, bool, float, float], list[Search]] = defaultdict(list)
    for search in searches:
        alike[search.asks].append(search)
    for (k, exact, by_text, oversampling), group in alike.items():
        if len(group) > 1:
            try:
                vectors = np.stack([search.vector for search in group])
                found = view.search(vectors, k, exact=exact, by_text=by_text, oversampling=oversampling)
            except Exception:  # each by itself will tell whose fault it is
                continue
            for search, first in zip(group, found, strict=True):
                search.first = first


def _looked_up(
    view: StoreView, images: Mapping[str, StoredImage | None], ranked: Ranked, search: Search
) -> list[SearchHit]:
    found, probabilities = ranked.page, ranked.probabilities
    with_vectors = search.options.with_vectors
    vectors = view.vectors([hit.image_id for hit in found]).tolist() if with_vectors else [None] * len(found)
    return [
        SearchHit(
            hit.image_id,
            hit.score,
            search.first_rank + place,
            image.captions,
            image.attributes,
            probabilities[place] if probabilities else None,
            vectors[place],
        )
        for place, hit in enumerate(found)
        if (image := images[hit.image_id]) is not None
    ]


def _digest(query: Query, options: SearchOptions) -> str:
    """Names a search, whatever the size of its pages."""
    return hashlib.blake2b(orjson.dumps(_described(query)) + _asked(options), digest_size=8).hexdigest()


@functools.lru_cache(256)  # most ask in one of a few ways
def _asked(options: SearchOptions) -> bytes:
    return canonical_json(dataclasses.asdict(dataclasses.replace(options, k=1, page_token="")))


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
