"""Inner products with the queries to come survive the projection, better than by the vectors' own main directions."""

from __future__ import annotations

import numpy as np

from serving.balanced_projection import BalancedProjection


def sample(spread: np.ndarray, rows: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, len(spread))) * spread).astype(np.float32)


def test_all_dimensions_keep_every_inner_product_up_to_a_number_of_the_query():
    vectors, queries = sample(np.ones(24), 400, 1), sample(np.ones(24), 300, 2)
    projection = BalancedProjection.fit(vectors, queries)
    got = (queries @ projection.queries.T) @ projection.project(vectors).T
    expected = queries.astype(np.float64) @ (vectors - vectors.mean(axis=0)).T.astype(np.float64)
    assert projection.dimension == 24
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_directions_that_queries_ask_about_are_kept_however_little_vectors_differ_in_them():
    large, small = np.full(64, 0.05), np.full(64, 0.05)
    large[:40], small[40:44] = 1.0, 30.0  # vectors differ in 40 directions, and queries look along 4 others
    large[40:44] = 0.5
    vectors, queries = sample(large, 2_000, 3), sample(small, 2_000, 4)
    projection = BalancedProjection.fit(vectors, queries)
    assert projection.dimension == 32
    kept = (queries @ projection.queries.T) @ projection.project(vectors).T
    exact = queries @ (vectors - vectors.mean(axis=0)).T
    main = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[2][:32]
    of_main = (queries @ main.T) @ (vectors @ main.T).T
    assert np.mean((kept - exact) ** 2) < 0.05 * np.mean((of_main - exact) ** 2)


def test_without_queries_vectors_stand_for_them():
    vectors = sample(np.linspace(1, 0.1, 48), 1_000, 5)
    projection = BalancedProjection.fit(vectors)
    exact = vectors @ (vectors - vectors.mean(axis=0)).T
    lost = (vectors @ projection.queries.T) @ projection.project(vectors).T - exact
    assert np.mean(lost**2) < 0.01 * np.mean(exact**2)


def test_second_moments_of_many_rows_are_those_of_float64():
    vectors = sample(np.linspace(1, 0.01, 16), 10_001, 6) + np.float32(3)
    projection = BalancedProjection.fit(vectors)
    np.testing.assert_allclose(projection.mean, vectors.mean(axis=0, dtype=np.float64), rtol=1e-6)
    exact = (vectors.astype(np.float64) - projection.mean) @ vectors[:50].T.astype(np.float64)
    got = projection.project(vectors) @ projection.queries @ vectors[:50].T
    np.testing.assert_allclose(got, exact, atol=2e-4 * np.abs(exact).max())
