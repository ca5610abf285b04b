"""Which rows of a block hold which values of an attribute, so that a filter is a look-up and not a scan; knows no file
and no filter.

Within a block the distinct values of one attribute and kind stand in order, and so do the rows that hold them: every
relation selects a run of values, found by bisection with Python's own comparison, hence one run of rows. What is slow
about exactness (whole numbers beyond 2**53 against fractions, text by code point) happens some 16 times a block.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data.attributes import is_attribute
from data.pairs import AttributeValue
from serving.filters import Scalar

# A row within a block is a uint16.
BLOCK_ROWS = 65_536

# The kinds of values; LIST marks the rows that hold a list, ITEM the rows of each text in one.
TEXT, INTEGER, REAL, TRUTH, MOMENT, LIST, ITEM = "text", "integer", "real", "truth", "moment", "list", "item"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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

    def related(self, relation: str, value: Any) -> tuple[int, int]:
        """The run of `rows`, its beginning and its end, whose value stands in `relation` to `value`."""
        low = 0 if relation[0] == "<" else (bisect_right if relation == ">" else bisect_left)(self.values, value)
        high = len(self.values)
        if relation[0] != ">":
            high = (bisect_left if relation == "<" else bisect_right)(self.values, value)
        return int(self.ends[low]), int(self.ends[high])

    def among(self, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        """The runs of `rows` whose values are `wanted`: their beginnings (R,) and ends (R,)."""
        if len(wanted.texts) == 1:
            low, high = self.related("=", *wanted.texts)
            return np.array([low]), np.array([high])
        places = self._places(wanted)
        return self.ends[places], self.ends[places + 1]

    def rows_of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The rows in many runs (R,), by one look-up."""
        lengths = ends - starts
        after = np.cumsum(lengths)
        return self.rows[np.repeat(starts - after + lengths, lengths) + np.arange(after[-1])]

    def most_frequent(self, limit: int) -> dict[Any, int]:
        """The values that most rows hold, at most `limit`, with how many."""
        rows = np.diff(self.ends)
        places = np.argsort(-rows, kind="stable")[:limit].tolist()
        return {self.values[place]: int(rows[place]) for place in places}

    def _places(self, wanted: Wanted) -> np.ndarray:
        """Where the values `wanted` stand, (P,)."""
        if wanted.numbers is not None:
            values = np.asarray(self.values)
            places = np.searchsorted(values, wanted.numbers)
            places = places[places < len(values)]
            return places[values[places] == wanted.numbers[: len(places)]]
        texts = wanted.texts
        if len(texts) > FEW and isinstance(self.values, Lookup):
            found = self.values.places(texts)
        elif len(self.values) < 16 * len(texts):  # to look at every value is faster
            found = [place for place, value in enumerate(self.values) if value in texts]
        else:
            at = [(bisect_left(self.values, value), value) for value in texts]
            found = [place for place, value in at if place < len(self.values) and self.values[place] == value]
        return np.fromiter(found, np.int64)


class Wanted:
    """Values of one kind to look for, as in postings: `numbers` (W,), distinct and increasing, or `texts`.

    Numbers that no value of the kind equals are left out.
    """

    def __init__(self, kind: str, values: Iterable[Any]) -> None:
        self.texts: set[str] = set()
        self.numbers: np.ndarray | None = None
        if kind in (TEXT, ITEM):
            self.texts = set(values)
        elif kind == REAL:
            self.numbers = np.unique(np.array(list(_reals(values)), np.float64))
        else:
            whole = [int(value) for value in values if -(2**63) <= value < 2**63 and value == int(value)]
            self.numbers = np.unique(np.array(whole, np.int64))


def _reals(values: Iterable[int | float]) -> Iterator[float]:
    for value in values:
        with contextlib.suppress(OverflowError):
            if float(value) == value:
                yield float(value)


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
                self._put(name, *stored(value))
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


def kinds(value: Scalar) -> tuple[str, ...]:
    """The kinds of values that `value` compares with."""
    kind, _ = stored(value)
    return (INTEGER, REAL) if kind in (INTEGER, REAL) else (kind,)


def stored(value: Scalar) -> tuple[str, Any]:
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
