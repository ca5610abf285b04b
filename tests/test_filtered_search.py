"""A search of some rows finds what the exact reference finds among them, however many and wherever they lie."""

from __future__ import annotations

import numpy as np
import pytest

from serving.exact_index import ExactIndex, as_float32
from serving.faiss_index import EXACT_SUBSET, FaissIndex
from serving.row_subset import RowSubset

ROWS, DIMENSION, CLUSTERS, QUERIES = 100_001, 64, 60, 20


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["Balanced,IVF1024", "IVF512,RaBitQfs"])
def world(request):
    """Clustered float16 vectors in an index with lists, queries near a few clusters, and the clusters by distance."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, DIMENSION))
    cluster = rng.integers(0, CLUSTERS, ROWS)
    vectors = unit(centres[cluster] + 0.7 * rng.normal(size=(ROWS, DIMENSION))).astype(np.float16)
    queries = unit(centres[:5].repeat(QUERIES // 5, 0) + 0.9 * rng.normal(size=(QUERIES, DIMENSION)))
    far_to_near = np.argsort(centres @ queries.mean(0))
    index = FaissIndex.build(vectors, request.param)
    return index, ExactIndex(vectors), queries, cluster, far_to_near


def recall(world, mask: np.ndarray, k: int = 10) -> float:
    """Index recall@k among the rows of `mask`."""
    index, exact, queries, *_ = world
    allowed = RowSubset.from_mask(mask)
    scores, found = index.search(queries, k, allowed)
    expected_scores, expected = exact.search(queries, k, allowed)
    assert mask[found].all()
    if len(allowed) <= EXACT_SUBSET:
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(scores, expected_scores)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)]))


@pytest.mark.parametrize("selectivity", [0.0001, 0.001, 0.01, 0.1, 0.5, 1.0])
def test_rows_spread_at_random_are_found(world, selectivity):
    mask = np.random.default_rng(1).random(ROWS) < selectivity
    assert recall(world, mask) >= 0.98


@pytest.mark.parametrize("clusters", [1, 3, 8, 20, 40])
def test_rows_that_all_lie_far_from_the_queries_are_found(world, clusters):
    *_, cluster, far_to_near = world
    assert recall(world, np.isin(cluster, far_to_near[:clusters])) >= 0.95


@pytest.mark.parametrize("clusters", [8, 30])
def test_a_few_near_rows_do_not_hide_the_far_ones(world, clusters):
    *_, cluster, far_to_near = world
    mask = np.isin(cluster, far_to_near[:clusters]) | (np.random.default_rng(2).random(ROWS) < 0.0005)
    assert recall(world, mask, k=100) >= 0.95


def test_half_precision_is_converted_bit_by_bit():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 8)
    np.testing.assert_array_equal(as_float32(finite).view(np.uint32), finite.astype(np.float32).view(np.uint32))
