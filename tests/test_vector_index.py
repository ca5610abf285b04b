"""One contract for every VectorIndex: what it returns, refuses and keeps, compared with plain NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import QueryError, SnapshotError
from serving.exact_index import BLOCK_ROWS, ExactIndex
from serving.faiss_build import FLAT_ROWS, default_kind, find_centroids
from serving.faiss_index import EXACT_SUBSET, FaissIndex, SearchSettings
from serving.row_subset import RowSubset

# Every index under contract: how to build it, how exact it is (index recall@10 against NumPy), how many rows it needs.
INDEXES = {
    "exact": (ExactIndex.build, 1.0, 1),
    "flat": (FaissIndex.build, 1.0, 1),
    "ivf": (lambda vectors: FaissIndex.build(vectors, kind="IVF32,RaBitQfs"), 0.95, 2_000),
    "balanced": (lambda vectors: FaissIndex.build(vectors, kind="Balanced,IVF32", threads=1), 0.95, 2_000),
}


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def random_vectors(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around a few centres, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dimension))
    return unit(centres[rng.integers(0, 20, rows)] + 0.6 * rng.normal(size=(rows, dimension)))


def reference(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows by sorting every inner product, written without the code under test."""
    similarity = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-np.round(similarity, 9), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, rows, axis=1), rows


@pytest.fixture(params=INDEXES, ids=str)
def contract(request):
    return INDEXES[request.param]


def test_finds_what_sorting_every_score_finds(contract):
    build, floor, rows = contract
    vectors = random_vectors(max(rows, 3_000), 64, seed=1)
    queries = unit(vectors[:40] + 0.1 * np.random.default_rng(2).normal(size=(40, 64)))
    scores, found = build(vectors).search(queries, 10)
    expected_scores, expected = reference(vectors, queries, 10)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert overlap >= floor
    if floor == 1.0:
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)
    assert (np.diff(scores, axis=1) <= 0).all()
    true_scores = np.einsum("qd,qkd->qk", queries, vectors[found])
    np.testing.assert_allclose(scores, true_scores, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    dimension=st.integers(1, 12),
    queries=st.integers(1, 6),
    k=st.integers(1, 60),
    copies=st.integers(1, 4),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 10_000),
)
@pytest.mark.parametrize("build", [ExactIndex.build, FaissIndex.build], ids=["exact", "flat"])
def test_every_size_duplicate_and_query_length(build, rows, dimension, queries, k, copies, scale, seed):
    rng = np.random.default_rng(seed)
    vectors = np.repeat(unit(rng.normal(size=(rows, dimension))), copies, axis=0)
    rng.shuffle(vectors)
    asked = (unit(rng.normal(size=(queries, dimension))) * scale).astype(np.float32)
    scores, found = build(vectors).search(asked, k)
    returned = min(k, len(vectors))
    assert scores.shape == found.shape == (queries, returned)
    assert found.min() >= 0
    assert found.max() < len(vectors)
    assert all(len(set(row)) == returned for row in found)
    expected, _ = reference(vectors, asked, k)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5 * scale)


def test_equal_vectors_are_ordered_by_row(contract):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 200), 16, seed=3)
    twins = [5, 77, 120, 199]
    vectors[twins] = vectors[5]
    scores, found = build(vectors).search(vectors[[5]], 4)
    assert found[0].tolist() == twins
    assert len(set(scores[0].tolist())) == 1


def test_asking_for_more_than_there_is_returns_every_row_once(contract):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 7), 32, seed=4)
    scores, found = build(vectors).search(vectors[:3], len(vectors) + 1_000)
    assert scores.shape == found.shape == (3, len(vectors))
    assert (np.sort(found, axis=1) == np.arange(len(vectors))).all()


def test_one_vector_is_an_index():
    for build in (ExactIndex.build, FaissIndex.build):
        scores, found = build(unit(np.ones((1, 8)))).search(-unit(np.ones((2, 8))), 10)
        assert found.tolist() == [[0], [0]]
        np.testing.assert_allclose(scores, -1, atol=1e-6)


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((0, 8), np.float32),
        np.ones((4, 8), np.float64) / np.sqrt(8),
        np.ones((4, 8), np.float32),
        np.full((4, 8), np.nan, np.float32),
        np.zeros((4, 8), np.float32),
        np.ones(8, np.float32),
    ],
    ids=["empty", "float64", "not unit", "nan", "zero", "one axis"],
)
@pytest.mark.parametrize("build", [ExactIndex.build, FaissIndex.build], ids=["exact", "faiss"])
def test_vectors_that_cannot_be_compared_are_refused(build, vectors):
    with pytest.raises(ValueError, match="expected"):
        build(vectors)


@pytest.mark.parametrize(
    ("query", "k", "field"),
    [
        (np.full((1, 64), np.nan, np.float32), 1, "vector"),
        (np.full((1, 64), np.inf, np.float32), 1, "vector"),
        (np.zeros((1, 64), np.float32), 1, "vector"),
        (np.ones((1, 63), np.float32), 1, "vector"),
        (np.ones(64, np.float32), 1, "vector"),
        (np.ones((1, 64), np.float32), 0, "k"),
    ],
    ids=["nan", "infinite", "zero", "dimension", "one axis", "k"],
)
def test_queries_without_an_answer_are_refused(contract, query, k, field):
    build, _, rows = contract
    index = build(random_vectors(max(rows, 10), 64, seed=5))
    with pytest.raises(QueryError) as refusal:
        index.search(query, k)
    assert refusal.value.field == field


def test_a_saved_index_answers_as_before(contract, tmp_path):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 300), 64, seed=6)
    index = build(vectors)
    index.save(tmp_path / "index")
    again = type(index).load(tmp_path / "index", vectors, index.kind)
    assert (len(again), again.dimension, again.kind) == (len(vectors), 64, index.kind)
    for before, after in zip(index.search(vectors[:20], 10), again.search(vectors[:20], 10), strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_index_is_not_loaded_over_other_vectors(contract, tmp_path):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 30), 64, seed=7)
    index = build(vectors)
    index.save(tmp_path / "index")
    with pytest.raises(SnapshotError):
        type(index).load(tmp_path / "index", vectors[1:], index.kind)


def test_a_torn_faiss_file_is_an_error_not_a_crash(tmp_path):
    vectors = random_vectors(2_000, 64, seed=8)
    index = FaissIndex.build(vectors, kind="IVF32,RaBitQfs")
    index.save(tmp_path / "index")
    content = (tmp_path / "index").read_bytes()
    for length in (0, 3, 60, len(content) // 2, len(content) - 1):
        (tmp_path / "torn").write_bytes(content[:length])
        with pytest.raises(SnapshotError):
            FaissIndex.load(tmp_path / "torn", vectors, index.kind)


def test_searches_may_run_at_the_same_time(contract):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 500), 64, seed=9)
    index = build(vectors)
    alone = [index.search(vectors[i : i + 1], 5)[1].tolist() for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: index.search(vectors[i : i + 1], 5)[1].tolist(), range(100)))
    assert together == alone


def test_a_batch_answers_as_its_queries_one_by_one(contract):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 500), 64, seed=10)
    index = build(vectors)
    _, batch = index.search(vectors[:50], 5)
    assert batch.tolist() == [index.search(vectors[i : i + 1], 5)[1][0].tolist() for i in range(50)]


@pytest.fixture(scope="module")
def many():
    """Vectors enough that 0.01 % of them are a few, and queries near some of them."""
    vectors = random_vectors(4 * EXACT_SUBSET, 32, seed=13)
    return vectors, unit(vectors[::2_000] + 0.1 * np.random.default_rng(14).normal(size=(20, 32)))


@pytest.fixture(scope="module")
def built(many):
    """The indexes over them, each built once."""
    vectors, _ = many
    return {name: build(vectors) for name, (build, _, _) in INDEXES.items()}


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", INDEXES)
def test_only_allowed_rows_are_found_at_every_selectivity(many, built, name, share):
    vectors, queries = many
    rows = np.sort(np.random.default_rng(15).choice(len(vectors), int(share * len(vectors)), replace=False))
    expected_scores, expected = reference(vectors[rows], queries, 10)
    mask = np.isin(np.arange(len(vectors)), rows)
    for allowed in (RowSubset.from_rows(rows, len(vectors)), RowSubset.from_mask(mask)):
        scores, found = built[name].search(queries, 10, allowed)
        assert scores.shape == found.shape == (20, min(10, len(rows)))
        assert mask[found].all()
        assert all(len(set(row)) == len(row) for row in found.tolist())
        assert (scores >= expected_scores[:, -1:] - 1e-6).mean() >= INDEXES[name][1]
        if INDEXES[name][1] == 1.0 or len(rows) <= EXACT_SUBSET:
            np.testing.assert_array_equal(found, rows[expected])
            np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_no_row_allowed_is_an_empty_answer(contract):
    build, _, rows = contract
    index = build(random_vectors(max(rows, 10), 16, seed=16))
    scores, found = index.search(np.ones((3, 16), np.float32), 5, RowSubset.from_mask(np.zeros(len(index), np.bool_)))
    assert scores.shape == found.shape == (3, 0)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)


def test_more_hits_than_allowed_rows_are_all_of_them(contract):
    build, _, rows = contract
    vectors = random_vectors(max(rows, 40), 16, seed=17)
    _, found = build(vectors).search(vectors[:3], 1_000, RowSubset.from_rows(np.arange(5, 25), len(vectors)))
    assert (np.sort(found, axis=1) == np.arange(5, 25)).all()


def test_a_subset_of_another_index_is_refused(contract):
    build, _, rows = contract
    index = build(random_vectors(max(rows, 10), 16, seed=18))
    with pytest.raises(ValueError, match="subset"):
        index.search(np.ones((1, 16), np.float32), 5, RowSubset.from_rows(np.arange(3), len(index) + 1))


def test_vectors_of_half_precision_score_as_they_are_stored(contract):
    build, floor, rows = contract
    vectors = random_vectors(max(rows, 500), 64, seed=19).astype(np.float16)
    queries = random_vectors(20, 64, seed=20)
    scores, found = build(vectors).search(queries, 10)
    expected_scores, expected = reference(vectors, queries, 10)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, vectors[found].astype(np.float64)), atol=1e-6)
    assert (scores >= expected_scores[:, -1:] - 1e-6).mean() >= floor
    if floor == 1.0:
        np.testing.assert_array_equal(found, expected)


def test_exact_search_crosses_its_blocks():
    vectors = random_vectors(BLOCK_ROWS + 50, 8, seed=11)
    queries = vectors[[3, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 49]]
    _, found = ExactIndex.build(vectors).search(queries, 20)
    np.testing.assert_array_equal(found, reference(vectors, queries, 20)[1])


def test_lists_with_too_few_rows_never_pad():
    # A query far from everything but one small cluster: the probed lists hold fewer rows than are asked for.
    vectors = random_vectors(3_000, 64, seed=12)
    index = FaissIndex.build(vectors, kind="IVF64,RaBitQfs")
    scores, found = index.search(vectors[:5], 2_500)
    _, expected = reference(vectors, vectors[:5], 2_500)
    assert (found >= 0).all()
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_searches_of_other_widths_and_depths_do_not_share_parameters(monkeypatch):
    monkeypatch.setattr("serving.faiss_index.MADE_PARAMETERS", 2)
    vectors = random_vectors(3_000, 64, seed=13)
    index = FaissIndex.build(vectors, kind="Balanced,IVF16")
    index.settings = SearchSettings(nprobe=1, proposed=20, compared=10)
    queries = random_vectors(20, 64, seed=14)
    exact = reference(vectors, queries, 10)[1]

    def found(rows):
        return sum(len(set(ours) & set(theirs)) for ours, theirs in zip(rows.tolist(), exact.tolist(), strict=True))

    narrow = found(index.search(queries, 10)[1])
    assert found(index.search(queries, 10, oversampling=16)[1]) > narrow
    for k in (1, 5, 20, 10):
        assert index.search(queries, k)[1].shape == (20, k)
    assert found(index.search(queries, 10)[1]) == narrow


def test_centroids_found_in_groups_are_as_near_as_those_of_plain_k_means():
    random = np.random.default_rng(16)
    centres = random.normal(size=(100, 16)) * random.exponential(size=(100, 1))
    rows = centres[random.zipf(1.3, 6_000) % 100] + 0.3 * random.normal(size=(6_000, 16))
    rows = rows.astype(np.float32)
    plain = faiss.Kmeans(16, 128, niter=6, max_points_per_centroid=6_000, min_points_per_centroid=1)
    plain.train(rows)

    def distance(centroids):
        assert (centroids.shape, np.isfinite(centroids).all()) == ((128, 16), True)
        return ((rows[:, np.newaxis] - centroids) ** 2).sum(axis=2).min(axis=1).mean()

    found = find_centroids(rows, 128)
    assert distance(found) < 1.02 * distance(plain.centroids)
    np.testing.assert_array_equal(found, find_centroids(rows, 128))


@pytest.mark.parametrize(
    "rows", [np.arange(24).reshape(12, 2), np.zeros((12, 2)), np.eye(12)], ids=["line", "one", "eye"]
)
@pytest.mark.parametrize("nlist", [1, 7, 12])
def test_there_are_as_many_centroids_as_asked_for_however_few_and_alike_rows_are(rows, nlist):
    found = find_centroids(rows.astype(np.float32), nlist)
    assert (found.shape, np.isfinite(found).all()) == ((nlist, rows.shape[1]), True)


def test_small_indexes_are_exact_and_large_ones_compressed():
    assert default_kind(FLAT_ROWS) == "Flat"
    assert default_kind(FLAT_ROWS + 1) == "Balanced,IVF512"
    assert default_kind(1_000_000) == "Balanced,IVF4096"


def test_a_small_balanced_index_scans_more_than_an_eighth_of_its_lists():
    index = FaissIndex.build(random_vectors(3_000, 64, seed=15), kind="Balanced,IVF256")
    assert (index.lists.nlist, index.settings.nprobe) == (256, 192)
