"""Builds an index in FAISS from vectors and a kind: FAISS's own factory, and the balanced kind; knows no search."""

from __future__ import annotations

import re
from typing import Any

import faiss
import numpy as np

from serving.balanced_projection import BalancedProjection

# Up to here an exact scan of 384 dimensions answers within 3 ms (it takes 14 ms of 100,000) and needs no tuning.
FLAT_ROWS = 20_000

# Training looks at 64 vectors for each of the nlist centroids, as FAISS's guidelines have it (at least 39). The
# balanced kind has more and smaller lists, for which fewer do.
TRAINING_PER_LIST, BALANCED_PER_LIST = 64, 32
BALANCED_ROUNDS = 6  # of k-means; more find hardly better lists

# Rows handed to FAISS at once while building, so that memory-mapped vectors are never all in memory.
ADD_ROWS = 65_536

BALANCED = re.compile(r"Balanced,IVF(\d+)")


def build(vectors: np.ndarray, kind: str, queries: np.ndarray | None) -> Any:
    """A FAISS index of `kind` over `vectors` (N, D); `queries` (Q, D) are like those to come."""
    if balanced := BALANCED.fullmatch(kind):
        return build_balanced(vectors, int(balanced[1]), queries)
    index: Any = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(training_sample(vectors, TRAINING_PER_LIST * max(1_000, getattr(index, "nlist", 0))))
    for start in range(0, len(vectors), ADD_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS], np.float32))
    return index


def build_balanced(vectors: np.ndarray, nlist: int, queries: np.ndarray | None) -> Any:
    """Inverted lists of 2-bit codes of balanced dimensions, then 8-bit codes of the same for what they propose.

    Four bits code two dimensions (product quantisation, scanned in registers: André et al. 2015, arXiv:1704.07355). A
    row belongs to the list whose centroid is nearest by distance; a query looks into those of largest inner product.
    The file holds the projection of queries only: nothing is added after building.
    """
    sample = training_sample(vectors, max(65_536, nlist * BALANCED_PER_LIST))
    projection = BalancedProjection.fit(sample, queries)
    sample = projection.project(sample)
    dimension = projection.dimension
    clusters = faiss.Kmeans(
        dimension, nlist, niter=BALANCED_ROUNDS, max_points_per_centroid=BALANCED_PER_LIST, min_points_per_centroid=1
    )
    clusters.train(sample)
    nearest, largest = faiss.IndexFlatL2(dimension), faiss.IndexFlatIP(dimension)
    for flat in (nearest, largest):
        flat.add(clusters.centroids)
    lists: Any = faiss.IndexIVFPQFastScan(nearest, dimension, nlist, dimension // 2, 4, faiss.METRIC_INNER_PRODUCT)
    lists.by_residual = True
    lists.train(sample[:65_536])
    second: Any = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    second.train(sample)
    for start in range(0, len(vectors), ADD_ROWS):
        block = projection.project(vectors[start : start + ADD_ROWS])
        lists.add(block)
        second.add(block)
    lists.quantizer = largest
    refined = faiss.IndexRefine(lists, second)
    refined.ntotal = len(vectors)
    of_queries = faiss.LinearTransform(vectors.shape[1], dimension, False)
    faiss.copy_array_to_vector(projection.queries.ravel(), of_queries.A)
    of_queries.is_trained = True
    return faiss.IndexPreTransform(of_queries, refined)


def default_kind(rows: int) -> str:
    """The kind for an index of so many rows when nothing was tuned."""
    if rows <= FLAT_ROWS:
        return "Flat"
    return f"Balanced,IVF{2 ** round(np.log2(4 * np.sqrt(rows)))}"


def training_sample(vectors: np.ndarray, size: int) -> np.ndarray:
    """At most `size` rows, spread evenly."""
    step = max(1, -(-len(vectors) // size))
    return np.ascontiguousarray(vectors[::step], np.float32)
