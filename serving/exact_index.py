"""Brute force in NumPy: the reference answer every other index is tested against; knows no file but its own header."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data.errors import QueryError, SnapshotError
from serving.row_subset import RowSubset
from serving.vector_rows import rows_of

# Rows compared at once; with 384 dimensions a block is 25 MB, so memory stays bounded however large the index is.
BLOCK_ROWS = 16_384

# Rows converted at once, few enough to stay in a core's cache.
CONVERTED_ROWS = 512

# Rows whose lengths are checked at once: of so few, memory is used again instead of taken fresh, which costs more.
CHECKED_ROWS = 2_048

# A float32 matrix product of unit vectors is off by less than this; candidates so close to the k-th are all re-scored.
ROUNDING = 4e-6

# Unit length within what float32 arithmetic, or a pass through float16, leaves.
UNIT_TOLERANCE = 1e-2


class ExactIndex:
    """Compares a query with every vector.

    Example: `scores, rows = ExactIndex.build(vectors).search(queries, k=10)`.
    """

    kind = "Exact"

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    @classmethod
    def build(cls, vectors: np.ndarray) -> ExactIndex:
        """Index `vectors`, (N, D) float32 or float16 of unit length; `ValueError` when they are not."""
        check_vectors(vectors)
        return cls(vectors)

    @property
    def dimension(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def search(
        self, queries: np.ndarray, k: int, allowed: RowSubset | None = None, oversampling: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `VectorIndex.search`."""
        queries = check_queries(queries, self.dimension, k)
        rows = None if allowed is None else check_allowed(allowed, len(self)).rows
        count = len(self) if rows is None else len(rows)
        k = min(k, count)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        candidates: list[list[np.ndarray]] = [[] for _ in queries]
        worst = np.full(len(queries), -np.inf)  # a lower bound of each query's k-th best score so far
        for start in range(0, count, BLOCK_ROWS):
            chosen = slice(start, start + BLOCK_ROWS) if rows is None else rows[start : start + BLOCK_ROWS]
            block = as_float32(self.vectors[chosen])
            similarity = queries @ block.T  # (Q, D) * (B, D) -> (Q, B)
            if similarity.shape[1] >= k:
                worst = np.maximum(worst, np.partition(similarity, -k, axis=1)[:, -k])
            for found, row_scores, bound in zip(candidates, similarity, worst, strict=True):
                near = np.flatnonzero(row_scores >= bound - ROUNDING * np.abs(row_scores).max())
                found.append(start + near if rows is None else rows[start + near])
        return best_of(self.vectors, queries, [np.concatenate(found) for found in candidates], k)

    def save(self, path: Path) -> None:
        """Write the index's kind and shape: brute force keeps nothing but the vectors."""
        header = {"kind": self.kind, "rows": len(self), "dimension": self.dimension}
        path.write_text(json.dumps(header), "utf-8")

    @classmethod
    def load(cls, path: Path, vectors: np.ndarray, kind: str = kind) -> ExactIndex:
        """Read a saved index over the vectors it was built from; `SnapshotError` when they do not fit."""
        header = json.loads(path.read_text("utf-8"))
        check_shape(path, header["rows"], header["dimension"], vectors)
        return cls(vectors)


def best_of(
    vectors: np.ndarray, queries: np.ndarray, candidates: list[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of each query's candidate rows by exact score: scores (Q, k) float32 and rows (Q, k) int64.

    Each query has at least k distinct candidates. Scores are summed in float64, one row at a time, so that a pair of
    vectors has one score wherever it stands: equal vectors tie exactly, and every index reports the same numbers.
    """
    scores = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for position, (query, found) in enumerate(zip(queries, candidates, strict=True)):
        exact = np.empty(len(found), np.float32)
        for start in range(0, len(found), BLOCK_ROWS):
            block = as_float32(rows_of(vectors, found[start : start + BLOCK_ROWS])).astype(np.float64)
            exact[start : start + BLOCK_ROWS] = np.einsum("bd,d->b", block, query.astype(np.float64))
        best = np.lexsort((found, -exact))[:k]
        scores[position], rows[position] = exact[best], found[best]
    return scores, rows


def as_float32(vectors: np.ndarray) -> np.ndarray:
    """`vectors` (B, D) of finite numbers as float32; from float16 four to five times as fast as NumPy converts.

    The bits of a float16 stand where a float32 has them, the exponent's bias 112 lower, which a multiplication by
    2**112 makes good for subnormal numbers too.
    """
    if vectors.dtype != np.float16:
        return np.asarray(vectors, np.float32)
    converted = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), CONVERTED_ROWS):
        part = converted[start : start + CONVERTED_ROWS]
        bits = part.view(np.int32)
        bits[...] = vectors[start : start + CONVERTED_ROWS].view(np.int16)  # spreads the sign to the left
        bits <<= 13
        bits &= np.int32(-0x70002000)  # the sign, five bits of exponent and ten of fraction: 0x8fffe000
        part *= np.float32(2.0**112)
    return converted


def check_vectors(vectors: np.ndarray, embedding_dim: int | None = None) -> None:
    """`ValueError` unless `vectors` is a non-empty (N, D) array, float32 or float16, of finite rows of unit length.

    With `embedding_dim` only that many components count; what follows them is an offset (see `snapshot.Manifest`).
    """
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16) or not vectors.size:
        raise ValueError(
            f"expected a non-empty (N, D) float32 or float16 array; received {vectors.dtype} {vectors.shape}"
        )
    for start in range(0, len(vectors), CHECKED_ROWS):
        rows = as_float32(vectors[start : start + CHECKED_ROWS, :embedding_dim])
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))  # also true for NaN
        if len(wrong):
            raise ValueError(f"expected rows of unit length; row {start + wrong[0]} has length {lengths[wrong[0]]}")


def check_queries(queries: np.ndarray, dimension: int, k: int) -> np.ndarray:
    """`queries` as contiguous float32; `QueryError` as `VectorIndex.search` says."""
    if k < 1:
        raise QueryError("k", "at least 1", str(k), "ask for one hit or more")
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise QueryError(
            "vector", f"{dimension} components", f"{queries.shape[-1] if queries.ndim else 0}", "use the index's model"
        )
    squares = np.einsum("qd,qd->q", queries, queries)
    if ((squares > 0) & (squares < np.inf)).all():  # all is well: no component is worth looking at by itself
        return queries
    if not np.isfinite(queries).all():
        raise QueryError("vector", "finite components", "NaN or infinity", "check how the vector was made")
    if not queries.any(axis=1).all():
        raise QueryError("vector", "a direction", "a zero vector", "check how the vector was made")
    return queries


def check_allowed(allowed: RowSubset, rows: int) -> RowSubset:
    """`allowed` if it is a subset of an index of `rows` rows; else `ValueError`."""
    if allowed.total != rows:
        raise ValueError(f"expected a subset of {rows:,} rows; received one of {allowed.total:,}")
    return allowed


def check_shape(path: Path, rows: int, dimension: int, vectors: np.ndarray) -> None:
    """`SnapshotError` unless an index of `rows` × `dimension` belongs to `vectors`."""
    if (rows, dimension) != vectors.shape:
        raise SnapshotError(
            f"{path.name} over {vectors.shape[0]:,} vectors of {vectors.shape[1]} dimensions",
            f"{rows:,} of {dimension}",
            "build the index again",
        )
