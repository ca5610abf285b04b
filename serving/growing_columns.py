"""Attributes of rows that are added one by one, as changes above a snapshot are, and the rows that a filter leaves of
them; knows no file and no index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.pairs import AttributeValue
from serving.attribute_postings import BlockBuilder
from serving.filter_plan import lookups, planned
from serving.filters import Filter, matches
from serving.posting_blocks import PostingBlocks

Entry = tuple[str, Mapping[str, AttributeValue]]

# To compare rows one by one is faster than to make postings of them, up to so many comparisons.
_ONE_BY_ONE = 20_000


class GrowingColumns:
    """Attributes of rows that are added one by one, as changes above a snapshot are; most of them are in postings.

    One thread appends; any number evaluates at a count of rows that it knows.
    Example: `columns.append("a", {"year": 2010})`, then `columns.rows_matching(where, count=1)`.
    """

    def __init__(self, sealed_rows: int = 1_000) -> None:
        self._step = sealed_rows
        self._entries: list[Entry] = []
        self._blocks, self._sealed = PostingBlocks(), 0

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, image_id: str, attributes: Mapping[str, AttributeValue]) -> None:
        """The next row; `attributes` must not change afterwards."""
        self._entries.append((image_id, attributes))
        if len(self._entries) - self._sealed == self._step:
            builder = BlockBuilder()
            for _, held in self._entries[self._sealed :]:
                builder.add(held)
            self._blocks.add(self._sealed, builder.finish())
            self._sealed += self._step  # last: who reads it finds the postings

    def rows_matching(self, where: Filter, count: int) -> np.ndarray:
        """(count,) bool: which of the first `count` rows `where` matches."""
        sealed = self._sealed
        tail = _matching(where, self._entries[sealed:count])
        if not sealed:
            return tail

        def with_ids(image_ids: frozenset[str]) -> np.ndarray:
            return np.fromiter((image_id in image_ids for image_id, _ in self._entries[:sealed]), bool, sealed)

        return np.concatenate([self._blocks.matching(where, sealed, with_ids), tail])[:count]


def _matching(where: Filter, entries: Sequence[Entry]) -> np.ndarray:
    """(N,) bool: which of some rows `where` matches."""
    if len(entries) * sum(1 for _ in lookups(planned(where))) <= _ONE_BY_ONE:
        return np.array([matches(where, *entry) for entry in entries], bool)
    builder, blocks = BlockBuilder(), PostingBlocks()
    for _, held in entries:
        builder.add(held)
    blocks.add(0, builder.finish())
    ids = [image_id for image_id, _ in entries]
    return blocks.matching(where, len(ids), lambda wanted: np.array([image_id in wanted for image_id in ids], bool))
