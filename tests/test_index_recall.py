"""What is published has been measured: ties count as found, and a poor approximate index gives way to an exact one."""

from __future__ import annotations

import numpy as np
import pytest

from serving.exact_index import ExactIndex
from serving.faiss_index import FaissIndex, SearchSettings
from serving.index_recall import INDEX_RECALL_FLOOR, SAMPLE, Tuning, build_verified, index_recall, load_certified


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Shifted:
    """Answers with the exact rows but the first `lost` of them."""

    def __init__(self, vectors: np.ndarray, lost: int) -> None:
        self.exact, self.lost = ExactIndex(vectors), lost

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = self.exact.search(queries, k + self.lost)
        return scores[:, self.lost :], rows[:, self.lost :]


@pytest.mark.parametrize(("lost", "recall"), [(0, 1.0), (1, 0.9), (4, 0.6), (10, 0.0)])
def test_recall_is_the_share_of_the_exact_top_that_is_found(lost, recall):
    vectors = unit(500, 16, seed=1)
    found = index_recall(Shifted(vectors, lost), ExactIndex(vectors), unit(20, 16, seed=2))
    assert found == pytest.approx(recall)


def test_rows_that_tie_with_the_last_count_as_found():
    vectors = np.repeat(unit(1, 16, seed=3), 50, axis=0)
    assert index_recall(Shifted(vectors, 20), ExactIndex(vectors), unit(5, 16, seed=4)) == 1.0


def test_a_good_approximate_index_is_kept_with_its_certificate(tmp_path):
    vectors = unit(3_000, 64, seed=5)
    certificate = build_verified(vectors, vectors[:30], tmp_path / "index", kind="IVF16,RaBitQfs")
    assert certificate["kind"] == "IVF16,RaBitQfs"
    assert (certificate["image_queries"], certificate["text_queries"]) == (64, 30)
    assert certificate["image_index_recall_at_10"] >= INDEX_RECALL_FLOOR
    assert len(FaissIndex.load(tmp_path / "index", vectors, certificate["kind"])) == 3_000


def test_an_index_that_misses_too_much_gives_way_to_an_exact_one(tmp_path):
    vectors = unit(6_000, 64, seed=6)
    queries = unit(40, 64, seed=7)  # in no particular direction, so that few of the lists cannot hold their neighbours
    poor = FaissIndex.build(vectors, kind="IVF512,RaBitQfs")
    assert index_recall(poor, ExactIndex(vectors), queries) < INDEX_RECALL_FLOOR
    certificate = build_verified(vectors, queries, tmp_path / "index", kind="IVF512,RaBitQfs")
    assert certificate["kind"] == "Flat"
    assert certificate["text_index_recall_at_10"] == 1.0


def test_without_captions_images_alone_are_measured(tmp_path):
    vectors = unit(5, 8, seed=8)
    certificate = build_verified(vectors, np.empty((0, 8), np.float32), tmp_path / "index")
    assert certificate == {
        "kind": "Flat",
        "image_queries": 5,
        "image_index_recall_at_10": 1.0,
        "text_queries": 0,
        "text_index_recall_at_10": None,
        "search": {"nprobe": 0, "ef_search": 0, "proposed": 0, "compared": 0},
        "tuned": False,
    }


def test_a_tuned_index_is_searched_as_it_was_tuned(tmp_path):
    vectors = unit(3_000, 64, seed=9)
    tuning = Tuning("Balanced,IVF16", SearchSettings(nprobe=12, proposed=300, compared=60))
    certificate = build_verified(vectors, vectors[:200], tmp_path / "index", tuning=tuning)
    assert (certificate["kind"], certificate["tuned"], certificate["text_queries"]) == ("Balanced,IVF16", True, SAMPLE)
    assert load_certified(tmp_path / "index", vectors, certificate).settings == tuning.search
    assert Tuning.of(certificate) == tuning


def test_what_nobody_tuned_stays_so():
    assert Tuning.of({"kind": "Flat", "search": {"compared": 3}, "tuned": False}) is None
