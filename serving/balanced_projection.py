"""Fewer dimensions that keep inner products with the queries to come, not the vectors' own shape; knows no index.

Text queries lie apart from images and look along few of the directions in which images differ. The projections of
vectors and of queries are chosen together, from the second moments of both: of all pairs of linear maps to d dimensions
they lose least of the inner products on average (LeanVec-OOD, Tepper et al. 2023, arXiv:2312.16335, learns the same by
iteration; with whole second moments a singular value decomposition solves it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.exact_index import as_float32

# Rows worked on at once: fresh memory costs more than the arithmetic, and of so many the same is used again.
ROWS = 1_024

# The share of the inner products' variance that is kept; what compares candidates exactly makes up for the rest.
KEPT = 0.998

# Dimensions come in steps that fill the registers of a compressed scan.
STEP = 32


@dataclass(frozen=True)
class BalancedProjection:
    """`query @ queries.T` and `(vector - mean) @ vectors.T` have nearly the inner product of query and vector.

    Nearly, and up to a number that depends on the query alone, which does not change an order. Both maps are (d, D)
    float32; `mean` is (D,). Vectors and queries have the same spread along every dimension, evenly turned, so that
    codes of equal size for all dimensions fit.
    """

    mean: np.ndarray
    vectors: np.ndarray
    queries: np.ndarray

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.queries)

    @classmethod
    def fit(cls, vectors: np.ndarray, queries: np.ndarray | None = None, seed: int = 0) -> BalancedProjection:
        """Learn from samples of the vectors (N, D) and of the queries to come (Q, D).

        Without queries the vectors stand for them; with few, the less they weigh.
        """
        mean = vectors.mean(axis=0, dtype=np.float64)
        spread = _moments(vectors, mean)
        asked = spread + np.outer(mean, mean)
        if queries is not None and len(queries):
            share = len(queries) / (len(queries) + vectors.shape[1])
            asked = share * _moments(queries) + (1 - share) * asked
        left, singular, right = np.linalg.svd(_power(asked, 0.5) @ _power(spread, 0.5))
        energy = np.cumsum(singular**2) / (singular**2).sum()
        dimension = min(len(mean), STEP * (1 + int(np.searchsorted(energy, KEPT)) // STEP))
        dimension -= dimension % 2  # two share a code
        root = np.sqrt(singular[:dimension, np.newaxis])
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))
        of_vectors = turn @ (root * right[:dimension]) @ _power(spread, -0.5)
        of_queries = turn @ (root * left.T[:dimension]) @ _power(asked, -0.5)
        return cls(mean.astype(np.float32), of_vectors.astype(np.float32), of_queries.astype(np.float32))

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) to (N, d) float32, as vectors are projected."""
        projected = np.empty((len(vectors), self.dimension), np.float32)
        of_mean = self.mean @ self.vectors.T
        for start in range(0, len(vectors), ROWS):
            part = projected[start : start + ROWS]
            np.matmul(as_float32(vectors[start : start + ROWS]), self.vectors.T, out=part)
            part -= of_mean
        return projected


def _moments(rows: np.ndarray, mean: np.ndarray | float = 0.0) -> np.ndarray:
    """(D, D) second moments around `mean`: products of float32, whose sums over `ROWS` rows are added in float64."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS] - np.asarray(mean, np.float32)
        total += part.T @ part
    return total / len(rows)


def _power(moments: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric matrix; directions in which there is next to nothing count as having a little."""
    values, directions = np.linalg.eigh(moments)
    values = np.maximum(values, 1e-6 * values[-1])
    return (directions * values**exponent) @ directions.T
