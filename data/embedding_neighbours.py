"""Proposes pairs of rows that lie near each other by the angle between them; knows not what the rows are of.

Rows are projected to `DIMENSIONS` at random, which moves the cosine of near ones by about a hundredth (Johnson and
Lindenstrauss 1984): a row costs 1 kB of memory, whatever its length. Up to `EXACT` rows, each is compared with every
other: time grows with the square of their number. Beyond, rows are parted into cells around some of them, every row is
put into its two nearest cells, and compared with what is there: time grows with their number times that of cells, which
is a thousandth of it, and a neighbour that shares no cell is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

NEIGHBOURS = 5
LEAST = 0.6  # cosine
DIMENSIONS = 256
EXACT = 200_000  # rows
CELL, CELLS_OF_ROW = 1000, 2
_BLOCK, _GALLERY = 1 << 11, 1 << 14


class Rows(Protocol):
    """Rows of numbers, as NumPy gives them; they may be read or computed when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Any, /) -> np.ndarray: ...


def neighbours(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions i < j (P,), (P,) of each of `rows` (N, D) and its nearest ones; a pair may come more than once."""
    vectors = _projected(rows)
    for members in _cells(vectors) if len(vectors) > EXACT else [np.arange(len(vectors))]:
        cell = vectors if len(members) == len(vectors) else vectors[members]
        for start in range(0, len(members), _BLOCK):
            own = np.arange(start, min(start + _BLOCK, len(members)))
            near, cosine = _nearest(cell, own)
            one, two = members[np.repeat(own, near.shape[1])], members[near.ravel()]
            kept = cosine.ravel() >= LEAST
            pairs = np.unique(np.sort(np.stack([one[kept], two[kept]]), axis=0), axis=1)
            if pairs.size:
                yield pairs[0], pairs[1]


def _projected(rows: Rows) -> np.ndarray:
    """Unit vectors (N, DIMENSIONS) float32, or shorter where the rows are; a row of zeros stays one."""
    count = len(rows)
    length = rows[:1].shape[1] if count else 0
    out = np.empty((count, min(length, DIMENSIONS)), np.float32)
    basis = None
    if length > DIMENSIONS:
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(length, DIMENSIONS)))[0].astype(np.float32)
    for start in range(0, count, _GALLERY):
        block = rows[start : start + _GALLERY].astype(np.float32)
        block = block if basis is None else block @ basis
        out[start : start + _GALLERY] = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
    return out


def _nearest(vectors: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest others (B, K) of some rows, and their cosines."""
    near = np.empty((len(own), 0), np.int64)
    cosine = np.empty((len(own), 0), np.float32)
    for start in range(0, len(vectors), _GALLERY):
        table = vectors[own] @ vectors[start : start + _GALLERY].T
        here = (own >= start) & (own < start + _GALLERY)
        table[np.flatnonzero(here), own[here] - start] = -2
        count = min(NEIGHBOURS, table.shape[1])
        best = np.argpartition(-table, count - 1, axis=1)[:, :count]
        near = np.concatenate([near, best + start], axis=1)
        cosine = np.concatenate([cosine, np.take_along_axis(table, best, axis=1)], axis=1)
        if near.shape[1] > NEIGHBOURS:
            kept = np.argpartition(-cosine, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
            near, cosine = np.take_along_axis(near, kept, axis=1), np.take_along_axis(cosine, kept, axis=1)
    return near, cosine


def _cells(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each cell (M,), every row in its nearest ones."""
    leaders = np.random.default_rng(0).choice(len(vectors), max(CELLS_OF_ROW, len(vectors) // CELL), replace=False)
    cells = np.empty((len(vectors), CELLS_OF_ROW), np.int32)
    for start in range(0, len(vectors), _BLOCK):
        table = vectors[start : start + _BLOCK] @ vectors[leaders].T
        cells[start : start + _BLOCK] = np.argpartition(-table, CELLS_OF_ROW - 1, axis=1)[:, :CELLS_OF_ROW]
    order = np.argsort(cells.ravel(), kind="stable")
    bounds = np.searchsorted(cells.ravel()[order], np.arange(len(leaders) + 1))
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        if last - first > 1:
            yield order[first:last] // CELLS_OF_ROW
