"""An index in FAISS, the only file that imports it; compressed scans are re-scored exactly, and nothing is mutated
after building, so that searches may run at the same time."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from data.durable import naming_file
from data.errors import SnapshotError
from serving.exact_index import ExactIndex, best_of, check_allowed, check_queries, check_shape, check_vectors
from serving.row_subset import RowSubset

# Up to here an exact scan answers within a few milliseconds and needs no tuning.
FLAT_ROWS = 100_000

# Training looks at 64 vectors for each of the nlist centroids, as FAISS's guidelines have it (at least 39).
TRAINING_PER_LIST = 64

# Up to so many allowed rows are compared one by one: the lists would hold few of them, and it takes no longer.
EXACT_SUBSET = 10_000

# Among rows that lie far from a query, scores differ less than one bit a dimension tells. So many times as many are
# compared exactly when only some rows are allowed, and when these are mostly not where the query's neighbours are.
FILTERED_CANDIDATES, FAR_CANDIDATES = 4, 16

# Rows handed to FAISS at once while building, so that memory-mapped vectors are never all in memory.
ADD_ROWS = 65_536


class FaissIndex:
    """Inner-product search in FAISS: "Flat" for small indexes, inverted lists with RaBitQ codes for larger ones.

    RaBitQ (Gao and Long 2024, arXiv:2405.12497) keeps one bit a dimension; the candidates it proposes are compared
    exactly. Example: `scores, rows = FaissIndex.build(vectors).search(queries, k=10)`.
    """

    def __init__(self, index: Any, kind: str, vectors: np.ndarray) -> None:
        self.index = index
        self.kind = kind
        self.vectors = vectors
        # BLAS from four queries on: FAISS's default leaves batches of hundreds to a loop five times as slow, and a
        # single query through BLAS is slower still.
        faiss.cvar.distance_compute_blas_threshold = 4 * index.d

    @classmethod
    def build(cls, vectors: np.ndarray, kind: str | None = None, threads: int = 0) -> FaissIndex:
        """Index `vectors`, (N, D) float32 or float16 of unit length, by the factory string `kind` (None: by size).

        `threads` is how many cores building may use; 0 stands for all.
        """
        check_vectors(vectors)
        kind = kind or default_kind(len(vectors))
        faiss.omp_set_num_threads(threads or len(os.sched_getaffinity(0)))
        index: Any = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(training_sample(vectors, index.nlist * TRAINING_PER_LIST))
        for start in range(0, len(vectors), ADD_ROWS):
            index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS], np.float32))
        return cls(index, kind, vectors)

    @property
    def dimension(self) -> int:
        """D."""
        return self.index.d

    def __len__(self) -> int:
        return self.index.ntotal

    def search(self, queries: np.ndarray, k: int, allowed: RowSubset | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `VectorIndex.search`."""
        queries = check_queries(queries, self.dimension, k)
        count = len(self) if allowed is None else len(check_allowed(allowed, len(self)))
        if allowed is not None and count <= max(k, EXACT_SUBSET):
            return ExactIndex(self.vectors).search(queries, k, allowed)
        k = min(k, count)
        # OpenMP keeps this setting per thread. Concurrency comes from the callers; a single search gains nothing from
        # a second OpenMP thread and loses much when the cores are busy.
        faiss.omp_set_num_threads(1)
        if allowed is not None and isinstance(self.index, faiss.IndexIVF):
            proposed = self._search_lists(queries, self._candidates(k), allowed)
        else:
            parameters = self._parameters(allowed)
            _, proposed = self.index.search(queries, min(self._candidates(k), count), params=parameters)
        candidates = [rows[rows >= 0] for rows in proposed]
        # The probed lists may hold fewer than k rows; those queries get the exact answer instead of padding.
        short = [position for position, rows in enumerate(candidates) if len(rows) < k]
        if short:
            _, exact_rows = ExactIndex(self.vectors).search(queries[short], k, allowed)
            for position, rows in zip(short, exact_rows, strict=True):
                candidates[position] = rows
        return best_of(self.vectors, queries, candidates, k)

    def _candidates(self, k: int) -> int:
        """How many rows to compare exactly. A Flat scan only needs a few more than k, for ties at the last place."""
        return k + 8 if self.kind == "Flat" else 400 + 4 * k

    def _parameters(self, allowed: RowSubset | None) -> Any:
        """How FAISS shall search: which rows, and how many lists."""
        parameters: Any = faiss.SearchParameters()
        if isinstance(self.index, faiss.IndexIVF):
            # Wide, since text queries lie apart from the images that the lists were made from.
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = min(self.index.nlist, max(16, self.index.nlist // 8))
        if allowed is not None:
            parameters.sel = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg, arg-type]
        return parameters

    def _search_lists(self, queries: np.ndarray, k: int, allowed: RowSubset) -> np.ndarray:
        """The most promising allowed rows, some multiple of `k`, from the nearest lists that hold any: (Q, K) or -1.

        Where the allowed rows stand together far from a query, the lists around it hold none or the wrong ones. So
        lists are taken until they hold twice the share of the allowed rows that a search of all rows looks at; more
        of them when few rows are allowed, for then the nearest lie farther away.
        """
        parameters = self._parameters(allowed)
        share = 2 * parameters.nprobe / self.index.nlist / np.sqrt(len(allowed) / len(self))
        held = np.bincount(self._list_of_row[allowed.mask], minlength=self.index.nlist)
        distances, lists = self.index.quantizer.search(queries, self.index.nlist)  # (Q, nlist), nearest first
        near = lists[:, : parameters.nprobe]
        allowed_near = held[near].sum(axis=1) / len(allowed)
        far = allowed_near < self._list_sizes[near].sum(axis=1) / len(self) / 2
        k = min((FAR_CANDIDATES if far.any() else FILTERED_CANDIDATES) * k, len(allowed))
        before = np.cumsum(held[lists], axis=1) - held[lists]
        taken = (held[lists] > 0) & (before < share * len(allowed))
        first = np.argsort(~taken, axis=1, kind="stable")[:, : int(taken.sum(axis=1).max())]
        lists = np.where(np.take_along_axis(taken, first, 1), np.take_along_axis(lists, first, 1), -1)
        parameters.nprobe = lists.shape[1]
        distances = np.take_along_axis(distances, first, 1)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        # The C++ method: FAISS's wrapper in Python takes no parameters.
        pointers = map(faiss.swig_ptr, (lists, distances, scores, rows))
        self.index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *pointers, False, parameters)
        return rows

    @cached_property
    def _list_of_row(self) -> np.ndarray:
        """(N,) int32: the inverted list that each row stands in."""
        lists = np.empty(len(self), np.int32)
        for number in range(self.index.nlist):
            size = self.index.invlists.list_size(number)
            if size:
                lists[faiss.rev_swig_ptr(self.index.invlists.get_ids(number), size)] = number
        return lists

    @cached_property
    def _list_sizes(self) -> np.ndarray:
        """(nlist,): how many rows stand in each list."""
        return np.bincount(self._list_of_row, minlength=self.index.nlist)

    def save(self, path: Path) -> None:
        """Write FAISS's own format; `OSError` as for any file."""
        with naming_file(path), path.open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
            faiss.write_index(self.index, writer)

    @classmethod
    def load(cls, path: Path, vectors: np.ndarray, kind: str) -> FaissIndex:
        """Read a saved index over the vectors it was built from; `SnapshotError` when they do not fit.

        FAISS parses files in native code, so the caller has checked that the file is the one that was written.
        """
        # An index has no reason to be much larger than its vectors; a damaged header must not ask for more memory.
        faiss.set_deserialization_vector_byte_limit(2 * vectors.nbytes + (1 << 26))
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise SnapshotError("a FAISS index", f"{path.name} that FAISS refuses", "build the index again") from error
        check_shape(path, index.ntotal, index.d, vectors)
        return cls(index, kind, vectors)


def default_kind(rows: int) -> str:
    """FAISS's factory string for an index of so many rows."""
    if rows <= FLAT_ROWS:
        return "Flat"
    return f"IVF{2 ** round(np.log2(2 * np.sqrt(rows)))},RaBitQfs"


def training_sample(vectors: np.ndarray, size: int) -> np.ndarray:
    """At most `size` rows, spread evenly."""
    return np.ascontiguousarray(vectors[:: max(1, len(vectors) // size)], np.float32)
