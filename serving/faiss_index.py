"""An index in FAISS, which only this file and faiss_build.py import; what compressed scans propose is compared exactly.

Nothing is mutated after building, so that searches may run at the same time.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from data.durable import naming_file
from data.errors import SnapshotError
from serving.exact_index import ExactIndex, best_of, check_allowed, check_queries, check_shape, check_vectors
from serving.faiss_build import build, default_kind
from serving.row_subset import RowSubset

# Up to so many allowed rows are compared one by one: the lists would hold few of them, and it takes no longer.
EXACT_SUBSET = 10_000

# Among rows that lie far from a query, scores differ less than one bit a dimension tells. So many times as many are
# compared exactly when only some rows are allowed, and when these are mostly not where the query's neighbours are.
FILTERED_CANDIDATES, FAR_CANDIDATES = 4, 16
FILTERED_BASE = 400  # there are no second codes between: every candidate is compared exactly

# How FAISS scans lists of codes: one list after the other, candidates in a reservoir. Its own choice suits several
# queries at once, and takes nearly twice as long for one.
LIST_BY_LIST = 11

# Settings hold for the ten best hits. For each hit more, so many more rows are compared exactly and proposed.
USUAL_K, COMPARED_PER_HIT, PROPOSED_PER_HIT = 10, 4, 20

BALANCED_NPROBE = 192  # at least: small indexes have few lists, and an eighth of them finds 98 % of what there is

MADE_PARAMETERS = 256  # as callers may ask for any number of hits


@dataclass(frozen=True)
class SearchSettings:
    """How wide a search looks for the ten best, in FAISS's words; what does not apply to a kind is 0.

    `nprobe` lists are scanned, or `ef_search` nodes of a graph kept in view; of the `proposed` best by the first codes,
    those that the second codes find best are `compared` exactly.
    """

    nprobe: int = 0
    ef_search: int = 0
    proposed: int = 0
    compared: int = 0


class FaissIndex:
    """Inner-product search in FAISS, by any factory string, or by the balanced kind of `faiss_build`.

    Without a kind it is "Flat" for small indexes and balanced for larger ones. Example:
    `scores, rows = FaissIndex.build(vectors).search(queries, k=10)`.
    """

    def __init__(self, index: Any, kind: str, vectors: np.ndarray, settings: SearchSettings | None = None) -> None:
        self.index = index
        self.kind = kind
        self.vectors = vectors
        self.lists = _inverted_lists(index)
        if isinstance(self.lists, faiss.IndexIVFPQFastScan):
            self.lists.implem = LIST_BY_LIST
        self._made_parameters: dict[tuple[int, SearchSettings], Any] = {}
        self.settings = settings or default_settings(index)
        # BLAS from four queries on: FAISS's default leaves batches of hundreds to a loop five times as slow, and a
        # single query through BLAS is slower still.
        faiss.cvar.distance_compute_blas_threshold = 4 * index.d

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        kind: str | None = None,
        threads: int = 0,
        queries: np.ndarray | None = None,
        embedding_dim: int | None = None,
    ) -> FaissIndex:
        """Index `vectors`, (N, D) float32 or float16 of unit length, as `kind` (None: by size).

        `threads` is how many cores building may use; 0 stands for all. `queries`, (Q, D) float32, are like those to
        come, and no answer depends on them but the choice of what is compared. `embedding_dim`: see `check_vectors`.
        """
        check_vectors(vectors, embedding_dim)
        kind = kind or default_kind(len(vectors))
        faiss.omp_set_num_threads(threads or len(os.sched_getaffinity(0)))
        return cls(build(vectors, kind, queries), kind, vectors)

    @property
    def dimension(self) -> int:
        """D."""
        return self.index.d

    def __len__(self) -> int:
        return self.index.ntotal

    def search(
        self, queries: np.ndarray, k: int, allowed: RowSubset | None = None, oversampling: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `VectorIndex.search`."""
        if oversampling != 1:
            return self._widened(oversampling).search(queries, k, allowed)
        queries = check_queries(queries, self.dimension, k)
        count = len(self) if allowed is None else len(check_allowed(allowed, len(self)))
        if allowed is not None and count <= max(k, EXACT_SUBSET):
            return ExactIndex(self.vectors).search(queries, k, allowed)
        k = min(k, count)
        # OpenMP keeps this setting per thread. Concurrency comes from the callers; a single search gains nothing from
        # a second OpenMP thread and loses much when the cores are busy.
        faiss.omp_set_num_threads(1)
        if allowed is not None and self.lists is not None:
            wanted = min(self._candidates(k), FILTERED_BASE + COMPARED_PER_HIT * k)
            proposed = self._search_lists(self._projected(queries), wanted, allowed)
        else:
            parameters = self._parameters_of_all(k) if allowed is None else self._parameters(self.index, k, allowed)
            _, proposed = self.index.search(queries, min(self._compared(k), count), params=parameters)
        candidates = [rows[rows >= 0] for rows in proposed]
        # The probed lists may hold fewer than k rows; those queries get the exact answer instead of padding.
        short = [position for position, rows in enumerate(candidates) if len(rows) < k]
        if short:
            _, exact_rows = ExactIndex(self.vectors).search(queries[short], k, allowed)
            for position, rows in zip(short, exact_rows, strict=True):
                candidates[position] = rows
        return best_of(self.vectors, queries, candidates, k)

    def _widened(self, times: float) -> FaissIndex:
        """This index with searches so many times as wide."""
        wide = copy.copy(self)
        wide.settings = SearchSettings(
            *(math.ceil(times * getattr(self.settings, field.name)) for field in fields(SearchSettings))
        )
        return wide

    def _compared(self, k: int) -> int:
        """How many rows to compare exactly. A Flat scan only needs a few more than k, for ties at the last place."""
        return max(k + 8, self.settings.compared + COMPARED_PER_HIT * (k - USUAL_K))

    def _candidates(self, k: int) -> int:
        """How many rows the first codes propose."""
        return max(self._compared(k), self.settings.proposed + PROPOSED_PER_HIT * (k - USUAL_K))

    def _projected(self, queries: np.ndarray) -> np.ndarray:
        """What the inverted lists compare with."""
        if isinstance(self.index, faiss.IndexPreTransform):
            return self.index.chain.at(0).apply(queries)  # type: ignore[attr-defined]
        return queries

    def _parameters_of_all(self, k: int) -> Any:
        """`_parameters` of a search of all rows, made once: FAISS only reads them."""
        parameters = self._made_parameters.get((k, self.settings))
        if parameters is None:
            parameters = self._parameters(self.index, k, None)
            if len(self._made_parameters) >= MADE_PARAMETERS:
                self._made_parameters.clear()
            self._made_parameters[k, self.settings] = parameters
        return parameters

    def _parameters(self, index: Any, k: int, allowed: RowSubset | None) -> Any:
        """How FAISS shall search `index`, which may be a part of the whole."""
        if isinstance(index, faiss.IndexPreTransform):
            parameters: Any = faiss.SearchParametersPreTransform()
            parameters.index_params = self._parameters(faiss.downcast_index(index.index), k, allowed)
            return parameters
        if isinstance(index, faiss.IndexRefine):
            parameters = faiss.IndexRefineSearchParameters()
            parameters.k_factor = self._candidates(k) / self._compared(k)
            parameters.base_index_params = self._parameters(faiss.downcast_index(index.base_index), k, allowed)
            return parameters
        if isinstance(index, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = min(index.nlist, self.settings.nprobe)
        elif isinstance(index, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
            parameters.efSearch = max(self.settings.ef_search, self._compared(k))
        else:
            parameters = faiss.SearchParameters()
        if allowed is not None:
            parameters.sel = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg, arg-type]
        return parameters

    def _search_lists(self, queries: np.ndarray, k: int, allowed: RowSubset) -> np.ndarray:
        """The most promising allowed rows, some multiple of `k`, from the nearest lists that hold any: (Q, K) or -1.

        Where the allowed rows stand together far from a query, the lists around it hold none or the wrong ones. So
        lists are taken until they hold twice the share of the allowed rows that a search of all rows looks at; more
        of them when few rows are allowed, for then the nearest lie farther away.
        """
        parameters = self._parameters(self.lists, k, None)
        parameters.sel = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg, arg-type]
        share = 2 * parameters.nprobe / self.lists.nlist / np.sqrt(len(allowed) / len(self))
        held = np.bincount(self._list_of_row[allowed.mask], minlength=self.lists.nlist)
        distances, lists = self.lists.quantizer.search(queries, self.lists.nlist)  # (Q, nlist), nearest first
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
        self.lists.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *pointers, False, parameters)
        return rows

    @cached_property
    def _list_of_row(self) -> np.ndarray:
        """(N,) int32: the inverted list that each row stands in."""
        lists = np.empty(len(self), np.int32)
        for number in range(self.lists.nlist):
            size = self.lists.invlists.list_size(number)
            if size:
                lists[faiss.rev_swig_ptr(self.lists.invlists.get_ids(number), size)] = number
        return lists

    @cached_property
    def _list_sizes(self) -> np.ndarray:
        """(nlist,): how many rows stand in each list."""
        return np.bincount(self._list_of_row, minlength=self.lists.nlist)

    def save(self, path: Path) -> None:
        """Write FAISS's own format; `OSError` as for any file."""
        with naming_file(path), path.open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
            faiss.write_index(self.index, writer)

    @classmethod
    def load(cls, path: Path, vectors: np.ndarray, kind: str, settings: SearchSettings | None = None) -> FaissIndex:
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
        return cls(index, kind, vectors, settings)


def default_settings(index: Any) -> SearchSettings:
    """Wide, since text queries lie apart from the images that lists and codes were made from."""
    lists = _inverted_lists(index)
    nprobe = 0 if lists is None else min(lists.nlist, max(16, lists.nlist // 8))
    if isinstance(index, faiss.IndexPreTransform):
        return SearchSettings(min(lists.nlist, max(BALANCED_NPROBE, nprobe)), proposed=1_000, compared=50)
    if isinstance(index, faiss.IndexFlat):
        return SearchSettings()
    return SearchSettings(nprobe=nprobe, ef_search=512, compared=440)


def _inverted_lists(index: Any) -> Any:
    """The inverted lists inside an index; None where there are none."""
    if isinstance(index, faiss.IndexPreTransform):
        return _inverted_lists(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return _inverted_lists(faiss.downcast_index(index.base_index))
    return index if isinstance(index, faiss.IndexIVF) else None
