"""The rows of many blocks that a filter leaves, looked up in their postings; knows no file and no index.

A block is evaluated whole before the next, so that what a term leaves of it stays in the processor's cache.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import QueryError
from serving.attribute_postings import (
    BLOCK_ROWS,
    INTEGER,
    ITEM,
    LIST,
    MOMENT,
    REAL,
    TEXT,
    TRUTH,
    Postings,
    Wanted,
    kinds,
    stored,
)
from serving.filter_plan import Every, Items, Ranges, Some, Step, Without, lookups, planned
from serving.filters import Compare, Exists, Filter, Ids, In, Scalar
from serving.vector_store import AttributeSummary

Columns = Mapping[tuple[str, str], Postings]

# What interfaces call the kinds, and how many frequent values they are told.
_SAID = {
    TEXT: "string", INTEGER: "number", REAL: "number", TRUTH: "bool", MOMENT: "timestamp", LIST: "strings",
    ITEM: "strings",
}  # fmt: skip
FREQUENT, _CANDIDATES = 20, 1_000

# An attribute that so many steps ask about gets its rows' places in the order of values, which compare faster than rows
# are marked.
RANKED = 4
FEW_RUNS = 16  # are marked one by one
_NOWHERE = 65_535  # the place of a row without the attribute

# What a filter may cost, in rows marked; a second at the most. Fifty steps that each look at every row may always.
MAX_COST = 300_000_000
_STEPS, _STEP_COST, _COMPARED = 50, 2_000, 4  # a step on a block costs as much as so many rows; so many compared as one


class PostingBlocks:
    """The postings of consecutive blocks of rows; one thread may add while others evaluate the rows they know of."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, Columns]] = []

    def add(self, start: int, columns: Columns) -> None:
        """The block whose first row is `start`."""
        self._blocks.append((start, columns))

    def matching(self, where: Filter, count: int, with_ids: Callable[[frozenset[str]], np.ndarray]) -> np.ndarray:
        """(N,) bool: which of the first `count` rows, all of them in blocks, `where` matches.

        `with_ids` tells the rows of images by their ids, as whole numbers or (N,) bool. `QueryError` for a filter that
        would take too long.
        """
        mask = np.zeros(count, bool)
        evaluation = _Evaluation(planned(where), count, with_ids)
        for start, end, columns in self._parts(count):
            evaluation.mark(mask[start:end], start, columns)
        return mask

    def _parts(self, count: int) -> Iterator[tuple[int, int, Columns]]:
        """The first `count` rows in parts, where each begins and ends; blocks whose rows have no attributes are not
        there, and may be many."""
        blocks = [*self._blocks, (count, {})]
        if blocks[0][0]:
            yield 0, min(blocks[0][0], count), {}
        for (start, columns), (following, _) in itertools.pairwise(blocks):
            following = min(following, count)
            end = min(start + BLOCK_ROWS, following)
            if start < end:
                yield start, end, columns
            if end < following:
                yield end, following, {}

    def summaries(self) -> list[AttributeSummary]:
        """Every attribute by the kind of its values, in the order of their names.

        Frequent values are exact where a block of rows has at most 1,000 values, and nearly so beyond.
        """
        counts: Counter[tuple[str, str]] = Counter()
        values: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for _, columns in self._blocks:
            for (name, kind), postings in columns.items():
                said = (name, _SAID[kind])
                if kind != ITEM:
                    counts[said] += len(postings.rows)
                if kind in (TEXT, ITEM):
                    values[said].update(postings.most_frequent(_CANDIDATES))
        return [
            AttributeSummary(name, kind, count, tuple(value for value, _ in values[name, kind].most_common(FREQUENT)))
            for (name, kind), count in sorted(counts.items())
        ]


class _Evaluation:
    """One filter, evaluated block by block."""

    def __init__(self, step: Step, count: int, with_ids: Callable[[frozenset[str]], np.ndarray]) -> None:
        self._step = step
        self._cost, self._allowed = 0, max(MAX_COST, _STEPS * count)
        self._uses: Counter[str] = Counter()
        self._after, self._flags = np.empty(0, np.uint16), np.empty(0, bool)  # not allocated anew in every step
        self._wanted: dict[tuple[int, str], Wanted] = {}
        self._prepared: dict[int, Any] = {}  # by the identity of a step: what it looks for, as postings have it
        for look in lookups(step):
            match look:
                case Ranges(attribute, alternatives):
                    self._uses[attribute] += len(alternatives)
                    self._prepared[id(look)] = _ranges(alternatives)
                case In(_, values):
                    self._prepared[id(look)] = _by_kind(values)
                case Items(_, texts):
                    self._prepared[id(look)] = {ITEM: texts}
                case Ids(image_ids):
                    rows = with_ids(image_ids)
                    self._prepared[id(look)] = np.sort(np.flatnonzero(rows) if rows.dtype == np.bool_ else rows)

    def mark(self, mask: np.ndarray, start: int, columns: Columns) -> None:
        """Mark the rows of one block that match, the first of them `start`, in `mask` (B,), which is all False."""
        self._start, self._columns = start, columns
        self._ranks: dict[tuple[str, str], np.ndarray] = {}
        self._sorted: dict[tuple[str, str], Postings] = {}
        self._mark_step(self._step, mask)

    def _mark_step(self, step: Step, mask: np.ndarray) -> None:
        match step:
            case Every(steps) | Some(steps):
                self._mark_steps(steps, isinstance(step, Every), mask)
            case Without(inner):
                self._mark_step(inner, mask)
                np.logical_not(mask, out=mask)
            case _:
                self._spend(_STEP_COST)
                self._look_up(step, mask)

    def _mark_steps(self, steps: Sequence[Step], every: bool, mask: np.ndarray) -> None:
        """Mark what every one of `steps`, or some, match."""
        if not steps:
            mask[:] = every
            return
        self._mark_step(steps[0], mask)
        for inner in steps[1:]:
            if every and not mask.any():
                return
            own = np.zeros(len(mask), bool)
            self._mark_step(inner, own)
            (np.logical_and if every else np.logical_or)(mask, own, out=mask)

    def _look_up(self, step: Step, mask: np.ndarray) -> None:
        match step:
            case Ranges(attribute):
                for kind, alternatives in self._prepared[id(step)].items():
                    if (attribute, kind) in self._columns:
                        self._mark_ranges(mask, (attribute, kind), alternatives)
            case In(attribute) | Items(attribute):
                for kind, values in self._prepared[id(step)].items():
                    if (postings := self._columns.get((attribute, kind))) is not None:
                        self._mark_runs(mask, postings, *postings.among(self._wanted_of(step, kind, values)))
            case Exists(attribute):
                for kind in (TEXT, INTEGER, REAL, TRUTH, MOMENT, LIST):
                    if (postings := self._columns.get((attribute, kind))) is not None:
                        self._spend(len(postings.rows))
                        _mark_run(mask, postings.rows, 0, len(postings.rows))
            case Ids():
                rows = self._prepared[id(step)]
                mask[rows[slice(*np.searchsorted(rows, (self._start, self._start + len(mask))))] - self._start] = True

    def _wanted_of(self, step: Step, kind: str, values: Sequence[Any]) -> Wanted:
        """What a step looks for among values of one kind, made when a block has that kind."""
        key = (id(step), kind)
        if key not in self._wanted:
            self._wanted[key] = Wanted(kind, values)
        return self._wanted[key]

    def _mark_ranges(self, mask: np.ndarray, column: tuple[str, str], alternatives: Sequence[Sequence[tuple]]) -> None:
        postings = self._by_value(column)
        runs = _united(_common(postings, related) for related in alternatives)
        marked = sum(high - low for low, high in runs)
        if self._uses[column[0]] >= RANKED and marked > len(runs) * len(mask) // _COMPARED:
            self._spend(len(runs) * len(mask) // _COMPARED)
            for low, high in runs:
                mask |= self._inside(column, low, high, len(mask))
        elif len(runs) == 1:
            self._spend(marked)
            _mark_run(mask, postings.rows, *runs[0])
        else:
            self._mark_runs(mask, postings, *np.array(runs, np.int64).reshape(-1, 2).T)

    def _mark_runs(self, mask: np.ndarray, postings: Postings, starts: np.ndarray, ends: np.ndarray) -> None:
        """Mark the rows in runs (R,), where a row of a list may stand several times."""
        if len(starts) > FEW_RUNS:
            rows = postings.rows_of(starts, ends)
            self._spend(len(rows))
            mask[rows.astype(np.intp)] = True  # NumPy's own conversion takes longer
            return
        for low, high in zip(starts.tolist(), ends.tolist(), strict=True):
            self._spend(high - low)
            mask[postings.rows[low:high]] = True

    def _inside(self, column: tuple[str, str], low: int, high: int, count: int) -> np.ndarray:
        """(B,) bool: which of `count` rows stand in a run of a column; good until this is called again."""
        rank = self._rank(column, count)
        if low == 0:
            return np.less(rank, high, out=self._flags)
        if high == len(self._columns[column].rows) == count:
            return np.greater_equal(rank, low, out=self._flags)
        return np.less(np.subtract(rank, np.uint16(low), out=self._after), high - low, out=self._flags)

    def _by_value(self, column: tuple[str, str]) -> Postings:
        """The postings of a column, its values where they are found fast."""
        if column not in self._sorted:
            postings = self._columns[column]
            if len(postings.values) <= 200 * self._uses[column[0]] and not isinstance(postings.values, memoryview):
                postings = dataclasses.replace(postings, values=list(postings.values))
            self._sorted[column] = postings
        return self._sorted[column]

    def _rank(self, column: tuple[str, str], count: int) -> np.ndarray:
        """(B,) uint16 for `count` rows: the place of each row in the postings' `rows`."""
        if column not in self._ranks:
            rows = self._columns[column].rows
            self._ranks[column] = np.full(count, _NOWHERE, np.uint16)
            self._ranks[column][rows] = np.arange(len(rows), dtype=np.uint16)
            if len(self._after) != count:
                self._after, self._flags = np.empty(count, np.uint16), np.empty(count, bool)
        return self._ranks[column]

    def _spend(self, cost: int) -> None:
        self._cost += cost
        if self._cost > self._allowed:
            raise QueryError(
                "filter",
                "a filter that is evaluated within a second or so",
                "more broad comparisons of different attributes than that",
                "ask in parts, or join values of one attribute as in kind IN (...)",
            )


def _ranges(alternatives: Iterable[Sequence[Compare]]) -> dict[str, list[list[tuple[str, Any]]]]:
    """By the kind of values: relations and stored values that all hold, for each alternative that can hold."""
    prepared: defaultdict[str, list[list[tuple[str, Any]]]] = defaultdict(list)
    for comparisons in alternatives:
        common = set(kinds(comparisons[0].value)).intersection(*(kinds(one.value) for one in comparisons[1:]))
        for kind in common:
            prepared[kind].append([(one.relation, stored(one.value)[1]) for one in comparisons])
    return prepared


def _by_kind(values: Iterable[Scalar]) -> dict[str, list[Any]]:
    """Stored values by the kinds that they compare with."""
    by_kind: defaultdict[str, list[Any]] = defaultdict(list)
    for kind, value in map(stored, values):
        by_kind[INTEGER if kind == REAL else kind].append(value)
    if INTEGER in by_kind:
        by_kind[REAL] = by_kind[INTEGER]
    return by_kind


def _common(postings: Postings, related: Iterable[tuple[str, Any]]) -> tuple[int, int]:
    """The run of rows whose value stands in every one of these relations."""
    runs = [postings.related(relation, value) for relation, value in related]
    return max(low for low, _ in runs), min(high for _, high in runs)


def _united(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same rows in runs that do not touch."""
    united: list[tuple[int, int]] = []
    for low, high in sorted(run for run in runs if run[0] < run[1]):
        if united and low <= united[-1][1]:
            united[-1] = (united[-1][0], max(high, united[-1][1]))
        else:
            united.append((low, high))
    return united


def _mark_run(block: np.ndarray, rows: np.ndarray, low: int, high: int) -> None:
    """Mark `rows[low:high]` alone, where each row stands at most once; by the others where those are fewer.

    Nothing else can be marked before when every row stands in `rows`: they have values of one kind.
    """
    if len(rows) == len(block) and 2 * (high - low) > len(rows):
        block[:] = True
        block[rows[:low]] = False
        block[rows[high:]] = False
    else:
        block[rows[low:high]] = True
