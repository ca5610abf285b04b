"""Which rows hold which values of an attribute, in blocks of rows, so that a filter is a look-up and not a scan; knows
no file and no index.

Within a block the distinct values of one attribute and kind stand in order, and so do the rows that hold them: every
relation selects a run of values, found by bisection with Python's own comparison, hence one run of rows. What is slow
about exactness (whole numbers beyond 2**53 against fractions, text by code point) happens some 16 times a block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data.attributes import is_attribute
from data.pairs import AttributeValue
from serving.filters import And, Compare, Contains, Exists, Filter, In, Not, Or, Scalar, matches
from serving.vector_store import AttributeSummary

# A row within a block is a uint16.
BLOCK_ROWS = 65_536

# The kinds of values; LIST marks the rows that hold a list, ITEM the rows of each text in one.
TEXT, INTEGER, REAL, TRUTH, MOMENT, LIST, ITEM = "text", "integer", "real", "truth", "moment", "list", "item"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# What interfaces call the kinds, and how many frequent values they are told.
_SAID = {
    TEXT: "string", INTEGER: "number", REAL: "number", TRUTH: "bool", MOMENT: "timestamp", LIST: "strings",
    ITEM: "strings",
}  # fmt: skip
FREQUENT, _CANDIDATES = 20, 1_000

# Up to so many values are looked up one by one.
FEW = 8


@runtime_checkable
class Lookup(Protocol):
    """Values that find many of theirs at once."""

    def places(self, wanted: set[Any]) -> Iterable[int]:
        """Where the values `wanted` stand."""


@dataclass(frozen=True)
class Postings:
    """The rows of a block that hold each value: `rows[ends[i]:ends[i + 1]]` hold `values[i]`.

    `values` (V,) are distinct and increase; times are microseconds since 1970. `ends` is (V + 1,) and begins with 0,
    `rows` (R,) uint16.
    """

    values: Sequence[Any]
    ends: np.ndarray
    rows: np.ndarray

    def related(self, relation: str, value: Any) -> slice:
        """The run of `rows` whose value stands in `relation` to `value`."""
        low = 0 if relation[0] == "<" else (bisect_right if relation == ">" else bisect_left)(self.values, value)
        high = len(self.values)
        if relation[0] != ">":
            high = (bisect_left if relation == "<" else bisect_right)(self.values, value)
        return slice(int(self.ends[low]), int(self.ends[high]))

    def among(self, wanted: set[Any]) -> np.ndarray:
        """The rows whose value is one of `wanted`."""
        chosen = [self.rows[self.ends[place] : self.ends[place + 1]] for place in self._places(wanted)]
        return np.concatenate(chosen) if chosen else self.rows[:0]

    def most_frequent(self, limit: int) -> dict[Any, int]:
        """The values that most rows hold, at most `limit`, with how many."""
        rows = np.diff(self.ends)
        places = np.argsort(-rows, kind="stable")[:limit].tolist()
        return {self.values[place]: int(rows[place]) for place in places}

    def _places(self, wanted: set[Any]) -> Iterable[int]:
        """Where the values `wanted` stand."""
        if len(wanted) > FEW and isinstance(self.values, Lookup):
            return self.values.places(wanted)
        if len(self.values) < 16 * len(wanted):  # to look at every value is faster
            return [place for place, value in enumerate(self.values) if value in wanted]
        places = [(bisect_left(self.values, value), value) for value in wanted]
        return [place for place, value in places if place < len(self.values) and self.values[place] == value]


class BlockBuilder:
    """Collects the attributes of consecutive rows, at most `BLOCK_ROWS`."""

    def __init__(self) -> None:
        self.count = 0
        # By attribute and kind: values and, for each, its row.
        self._columns: defaultdict[tuple[str, str], tuple[list, list[int]]] = defaultdict(lambda: ([], []))

    def add(self, attributes: Mapping[str, AttributeValue]) -> None:
        """The next row; `ValueError` for a value that no index can keep, such as NaN."""
        for name, value in attributes.items():
            if not is_attribute(value):
                raise ValueError(f"expected an attribute that an index can keep; received {name} = {value!r}")
            if isinstance(value, list | tuple):
                self._put(name, LIST, 1)
                for item in set(value):
                    self._put(name, ITEM, item)
            else:
                self._put(name, *_stored(value))
        self.count += 1

    def finish(self) -> dict[tuple[str, str], Postings]:
        """The postings of each attribute's name and kind."""
        return {column: _postings(column[1], *self._columns[column]) for column in sorted(self._columns)}

    def _put(self, name: str, kind: str, value: Any) -> None:
        values, rows = self._columns[name, kind]
        values.append(value)
        rows.append(self.count)


def _postings(kind: str, values: list[Any], rows: list[int]) -> Postings:
    """Put values, and the row of each, in the order of the values."""
    distinct: Sequence[Any]
    if kind in (TEXT, ITEM):
        distinct = sorted(set(values))
        place_of = {value: place for place, value in enumerate(distinct)}
        places = np.fromiter(map(place_of.__getitem__, values), np.int64, len(values))
    else:
        numbers, places = np.unique(np.array(values, np.float64 if kind == REAL else np.int64), return_inverse=True)
        distinct = memoryview(numbers)  # type: ignore[arg-type]
    ends = np.zeros(len(distinct) + 1, np.int32)
    np.cumsum(np.bincount(places, minlength=len(distinct)), out=ends[1:])
    return Postings(distinct, ends, np.array(rows, np.uint16)[np.argsort(places, kind="stable")])


class PostingBlocks:
    """The postings of consecutive blocks of rows; one thread may add while others evaluate the rows they know of."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], list[tuple[int, Postings]]] = {}

    def add(self, start: int, columns: Mapping[tuple[str, str], Postings]) -> None:
        """The block whose first row is `start`."""
        for column, postings in columns.items():
            self._columns.setdefault(column, []).append((start, postings))

    def matching(self, where: Filter, count: int, with_ids: Callable[[frozenset[str]], np.ndarray]) -> np.ndarray:
        """(N,) bool: which of the first `count` rows, all of them in blocks, `where` matches.

        `with_ids` tells the rows of images by their ids, as whole numbers or (N,) bool.
        """
        match where:
            case And(terms):
                mask = np.ones(count, bool)
                for term in terms:
                    mask &= self.matching(term, count, with_ids)
                    if not mask.any():
                        break
                return mask
            case Or(terms):
                mask = np.zeros(count, bool)
                for term in terms:
                    mask |= self.matching(term, count, with_ids)
                return mask
            case Not(term):
                mask = self.matching(term, count, with_ids)
                return np.logical_not(mask, out=mask)
        mask = np.zeros(count, bool)
        match where:
            case Compare(attribute, relation, value):
                stored = _stored(value)[1]
                for kind in _kinds(value):
                    for block, held in self._blocks(mask, attribute, kind):
                        _mark_run(block, held.rows, held.related(relation, stored))
            case In(attribute, values):
                wanted: defaultdict[str, set[Any]] = defaultdict(set)
                for value in values:
                    for kind in _kinds(value):
                        wanted[kind].add(_stored(value)[1])
                for kind, asked in wanted.items():
                    for block, held in self._blocks(mask, attribute, kind):
                        block[held.among(asked)] = True
            case Contains(attribute, text):
                for block, held in self._blocks(mask, attribute, ITEM):
                    block[held.rows[held.related("=", text)]] = True
            case Exists(attribute):
                for kind in (TEXT, INTEGER, REAL, TRUTH, MOMENT, LIST):
                    for block, held in self._blocks(mask, attribute, kind):
                        _mark_run(block, held.rows, slice(0, len(held.rows)))
            case _:
                mask[with_ids(where.image_ids)] = True
        return mask

    def summaries(self) -> list[AttributeSummary]:
        """Every attribute by the kind of its values, in the order of their names.

        Frequent values are exact where a block of rows has at most 1,000 values, and nearly so beyond.
        """
        counts: Counter[tuple[str, str]] = Counter()
        values: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for (name, kind), blocks in self._columns.items():
            said = (name, _SAID[kind])
            for _, postings in blocks:
                if kind != ITEM:
                    counts[said] += len(postings.rows)
                if kind in (TEXT, ITEM):
                    values[said].update(postings.most_frequent(_CANDIDATES))
        return [
            AttributeSummary(name, kind, count, tuple(value for value, _ in values[name, kind].most_common(FREQUENT)))
            for (name, kind), count in sorted(counts.items())
        ]

    def _blocks(self, mask: np.ndarray, attribute: str, kind: str) -> Iterator[tuple[np.ndarray, Postings]]:
        """The part of `mask` that belongs to each block, and what the block holds."""
        for start, postings in self._columns.get((attribute, kind), ()):
            if start >= len(mask):
                break
            yield mask[start : start + BLOCK_ROWS], postings


def _mark_run(block: np.ndarray, rows: np.ndarray, run: slice) -> None:
    """Mark `rows[run]`, where each row stands at most once; by its complement where that is the smaller part."""
    if len(rows) == len(block) and 2 * (run.stop - run.start) > len(rows):
        block[:] = True
        block[rows[: run.start]] = False
        block[rows[run.stop :]] = False
    else:
        block[rows[run]] = True


class GrowingColumns:
    """Attributes of rows that are added one by one, as changes above a snapshot are; most of them are in postings.

    One thread appends; any number evaluates at a count of rows that it knows.
    Example: `columns.append("a", {"year": 2010})`, then `columns.rows_matching(where, count=1)`.
    """

    def __init__(self, sealed_rows: int = 1_000) -> None:
        self._step = sealed_rows
        self._entries: list[tuple[str, Mapping[str, AttributeValue]]] = []
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
        tail = [matches(where, *entry) for entry in self._entries[sealed:count]]
        if not sealed:
            return np.array(tail, bool)

        def with_ids(image_ids: frozenset[str]) -> np.ndarray:
            return np.fromiter((image_id in image_ids for image_id, _ in self._entries[:sealed]), bool, sealed)

        return np.concatenate([self._blocks.matching(where, sealed, with_ids), np.array(tail, bool)])[:count]


def _kinds(value: Scalar) -> tuple[str, ...]:
    """The kinds of values that `value` compares with."""
    kind, _ = _stored(value)
    return (INTEGER, REAL) if kind in (INTEGER, REAL) else (kind,)


def _stored(value: Scalar) -> tuple[str, Any]:
    """The kind of a value and how it stands in postings."""
    if isinstance(value, bool):  # before int, of which it is a subclass
        return TRUTH, int(value)
    if isinstance(value, int):
        return INTEGER, value
    if isinstance(value, float):
        return REAL, value
    if isinstance(value, datetime):
        since = value - _EPOCH
        return MOMENT, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return TEXT, value
