"""Keeps the answers to what was asked of late, for as long as the index does not change; knows no search."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.queries import Query, SearchOptions, TextQuery

if TYPE_CHECKING:
    from serving.searches import SearchAnswer

KEPT_ANSWERS, MOST_HITS = 2_000, 100  # about 10 MB with captions of 200 characters and ten hits each
_NEWEST = 1 / 32  # how much the newest search counts in the share


class KeptAnswers:
    """The `size` answers used last. Belongs to one event loop.

    An answer is given again in the state of the index that it was found in, and in no other. Kept are first pages of
    searches for a text, without vectors: small, and asked again.
    """

    def __init__(self, size: int = KEPT_ANSWERS) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[Query, SearchOptions], SearchAnswer] = OrderedDict()
        self.hits = self.misses = 0
        self.share = 0.0  # of late, of what was asked for

    def get(self, query: Query, options: SearchOptions, revision: Callable[[], str | None]) -> SearchAnswer | None:
        """The answer, if it is kept and was found in the state with the present `revision`, which is asked for then.

        None stands for a state that is not known.
        """
        answer = self._kept.get((query, options)) if _keeps(query, options) else None
        if answer is None or answer.index_revision != revision():
            self.misses += 1
            self.share -= _NEWEST * self.share
            return None
        self.hits += 1
        self.share += _NEWEST * (1 - self.share)
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
