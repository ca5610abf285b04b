"""Measures an index against the exact answer, and builds one that passes; knows no model and no data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import SnapshotError
from serving.exact_index import ROUNDING, ExactIndex
from serving.faiss_build import default_kind
from serving.faiss_index import FaissIndex, SearchSettings
from serving.vector_index import VectorIndex

# An approximate index that finds less than this of the exact top 10 is replaced by an exact one.
INDEX_RECALL_FLOOR = 0.9

# Queries of each sort that an index is measured on, and of texts that a large one learns from besides.
SAMPLE, LEARNED = 64, 4_096


@dataclass(frozen=True)
class Tuning:
    """The kind of index and the width of its searches that `serving.tune_index` chose."""

    kind: str
    search: SearchSettings

    @classmethod
    def of(cls, index: Mapping[str, Any]) -> Tuning | None:
        """What a snapshot's index was built with; None when nothing was tuned."""
        return cls(index["kind"], SearchSettings(**index["search"])) if index.get("tuned") else None


@dataclass(frozen=True)
class Certificate:
    """How an index was made and how well it finds the exact top 10; stored with it. None where no query was given."""

    kind: str
    image_queries: int
    image_index_recall_at_10: float
    text_queries: int
    text_index_recall_at_10: float | None
    search: SearchSettings
    tuned: bool = False

    @property
    def worst(self) -> float:
        """The lower of the two figures."""
        text = self.text_index_recall_at_10
        return self.image_index_recall_at_10 if text is None else min(self.image_index_recall_at_10, text)


def index_recall(index: VectorIndex, exact: VectorIndex, queries: np.ndarray, k: int = 10) -> float:
    """Share of the exact top k that `index` finds, over `queries` (Q, D); ties with the k-th count as found."""
    expected, _ = exact.search(queries, k)
    scores, _ = index.search(queries, k)
    return float((scores >= expected[:, -1:] - ROUNDING).mean())


def build_verified(
    vectors: np.ndarray,
    text_queries: np.ndarray,
    path: Path,
    kind: str | None = None,
    tuning: Tuning | None = None,
    embedding_dim: int | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Build a FAISS index over `vectors` (N, D), save it to `path`, and return its certificate as JSON.

    What is measured is the file as a server will load it, on a sample of images and on `text_queries` (Q, D), which may
    be empty; of many, most are learned from and a sample is measured. An approximate index below `INDEX_RECALL_FLOOR`
    gives way to an exact one; `SnapshotError` when even that disagrees with the reference. What of a vector has unit
    length are its first `embedding_dim` components, or all.
    `threads`: see `FaissIndex.build`.
    """
    tuning = tuning or Tuning(kind or default_kind(len(vectors)), SearchSettings())
    certificate = _build_and_measure(vectors, text_queries, path, tuning, embedding_dim, threads)
    if certificate.worst < INDEX_RECALL_FLOOR and certificate.kind != "Flat":
        flat = Tuning("Flat", SearchSettings())
        certificate = _build_and_measure(vectors, text_queries, path, flat, embedding_dim, threads)
    floor = 1.0 if certificate.kind == "Flat" else INDEX_RECALL_FLOOR
    if certificate.worst < floor:
        raise SnapshotError(
            f"index recall@10 of at least {floor}",
            f"{certificate.worst:.3f}",
            "check the machine's memory, then run again",
        )
    return asdict(certificate)


def load_certified(path: Path, vectors: np.ndarray, index: Mapping[str, Any]) -> FaissIndex:
    """The index at `path` over `vectors`, searched as its certificate says."""
    search = SearchSettings(**index.get("search", {}))
    return FaissIndex.load(path, vectors, index["kind"], None if search == SearchSettings() else search)


def _build_and_measure(
    vectors: np.ndarray,
    text_queries: np.ndarray,
    path: Path,
    tuning: Tuning,
    embedding_dim: int | None,
    threads: int,
) -> Certificate:
    held_out = np.zeros(len(text_queries), np.bool_)
    held_out[np.linspace(0, len(text_queries) - 1, min(SAMPLE, len(text_queries))).astype(int)] = True
    measured, learned = text_queries[held_out], text_queries[~held_out]
    FaissIndex.build(vectors, tuning.kind, threads, learned, embedding_dim).save(path)
    tuned = tuning.search != SearchSettings()
    index = FaissIndex.load(path, vectors, tuning.kind, tuning.search if tuned else None)
    exact = ExactIndex(vectors)
    images = np.asarray(vectors[np.unique(np.linspace(0, len(vectors) - 1, SAMPLE).astype(int))])
    return Certificate(
        kind=tuning.kind,
        image_queries=len(images),
        image_index_recall_at_10=index_recall(index, exact, images),
        text_queries=len(measured),
        text_index_recall_at_10=index_recall(index, exact, measured) if len(measured) else None,
        search=index.settings,
        tuned=tuned,
    )
