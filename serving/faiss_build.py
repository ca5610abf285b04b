"""Builds an index in FAISS from vectors and a kind: FAISS's own factory, and the balanced kind; knows no search."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from serving.balanced_projection import BalancedProjection
from serving.exact_index import as_float32

# Up to here an exact scan of 384 dimensions answers within 3 ms (it takes 14 ms of 100,000) and needs no tuning.
FLAT_ROWS = 20_000

# Training looks at 64 vectors for each of the nlist centroids, as FAISS's guidelines have it (at least 39). The
# balanced kind has more and smaller lists, for which fewer do.
TRAINING_PER_LIST, BALANCED_PER_LIST = 64, 32

# Rounds of k-means inside each group of lists, and then with all lists at once, which alone takes time: two of these
# find lists as near to their rows as six without groups.
GROUP_ROUNDS, ROUNDS = 20, 2

CODE_TRAINING = 8_192  # rows that codes of 4 bits are learned from; FAISS takes no more than 4,096 of them

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
    centroids = find_centroids(sample, nlist)
    nearest, largest = faiss.IndexFlatL2(dimension), faiss.IndexFlatIP(dimension)
    for flat in (nearest, largest):
        flat.add(centroids)
    lists: Any = faiss.IndexIVFPQFastScan(nearest, dimension, nlist, dimension // 2, 4, faiss.METRIC_INNER_PRODUCT)
    lists.by_residual = True
    with _one_thread():
        lists.train(training_sample(sample, CODE_TRAINING))
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


def find_centroids(sample: np.ndarray, nlist: int) -> np.ndarray:
    """(nlist, d) centroids of `sample` (N, d), at least as many rows: k-means in two levels.

    Each of √nlist groups of rows gets a share of the lists by how many it has and how far apart they are: by the first
    alone lists of one dense group would be many and small, by the second a few lists would hold most rows. Then rounds
    with all centroids mend what the borders between groups cut.
    """
    groups = round(np.sqrt(nlist))
    with _one_thread():
        coarse = _k_means(training_sample(sample, TRAINING_PER_LIST * groups), groups, GROUP_ROUNDS)
    distances, group_of = coarse.assign(sample)
    counts = np.bincount(group_of, minlength=groups)
    weights = np.sqrt(counts * np.bincount(group_of, distances, groups)) + 1e-9 * counts  # rows may all be the same
    shares = np.diff(np.round(np.cumsum(weights) / weights.sum() * nlist).astype(int), prepend=0)
    shares = np.minimum(shares, counts).tolist()
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(counts)[:-1])
    with _one_thread():
        parts = [_k_means(sample[m], share, GROUP_ROUNDS) for m, share in zip(members, shares, strict=True) if share]
    missing = nlist - sum(shares)
    centroids = np.concatenate([*(part.centroids for part in parts), sample[:missing]])
    return np.asarray(_k_means(sample, nlist, ROUNDS, centroids).centroids)


def _k_means(rows: np.ndarray, k: int, rounds: int, start: np.ndarray | None = None) -> faiss.Kmeans:
    clusters = faiss.Kmeans(
        rows.shape[1], k, niter=rounds, min_points_per_centroid=1, max_points_per_centroid=len(rows)
    )
    clusters.train(rows, init_centroids=start)
    return clusters


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep FAISS to one thread: its threads would wait for each other after every few microseconds of work."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def default_kind(rows: int) -> str:
    """The kind for an index of so many rows when nothing was tuned."""
    if rows <= FLAT_ROWS:
        return "Flat"
    return f"Balanced,IVF{2 ** round(np.log2(4 * np.sqrt(rows)))}"


def training_sample(vectors: np.ndarray, size: int) -> np.ndarray:
    """At most `size` rows, spread evenly."""
    step = max(1, -(-len(vectors) // size))
    return np.ascontiguousarray(as_float32(vectors[::step]))
