"""Keeps the answers to what was asked of late, for as long as the index does not change; knows no search."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from serving.queries import Query, SearchOptions, TextQuery

if TYPE_CHECKING:
    from serving.search_engine import SearchAnswer

KEPT_ANSWERS, MOST_HITS = 2_000, 100  # about 10 MB with captions of 200 characters and ten hits each


class KeptAnswers:
    """The `size` answers used last. Belongs to one event loop.

    An answer is given again in the state of the index that it was found in, and in no other. Kept are first pages of
    searches for a text, without vectors: small, and asked again.
    """

    def __init__(self, size: int = KEPT_ANSWERS) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[Query, SearchOptions], SearchAnswer] = OrderedDict()
        self.hits = self.misses = 0

    def get(self, query: Query, options: SearchOptions, revision: str | None) -> SearchAnswer | None:
        """The answer found in the state with `revision`, if it is kept; None stands for a state that is not known."""
        answer = self._kept.get((query, options)) if _keeps(query, options) else None
        if answer is None or answer.index_revision != revision:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end((query, options))
        return answer

    def keep(self, query: Query, options: SearchOptions, answer: SearchAnswer) -> None:
        """Keep `answer` in the place of what was kept for the same search."""
        if not _keeps(query, options):
            return
        self._kept[query, options] = answer
        self._kept.move_to_end((query, options))
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)


def _keeps(query: Query, options: SearchOptions) -> bool:
    small = options.k <= MOST_HITS and not options.with_vectors
    return isinstance(query, TextQuery) and small and not options.page_token
