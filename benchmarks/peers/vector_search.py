"""Builds one engine's index, or searches it in a fresh process: the same loop for ours, hnswlib and usearch.

The only argument is JSON. `build` prints the seconds and the bytes on disk; `search` prints seconds from the start of
the process to the first answer, memory beyond what imports took, and for each width the milliseconds of every query.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

K = 10
ROUNDING = 4e-6  # of float32 products; what ties with the exact tenth counts as found


class _Hnswlib:
    """Settings that reach 0.99 here: M 24, ef of construction 120."""

    def __init__(self, job):
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=job["dimension"])

    def build(self, vectors, threads):
        self.index.init_index(max_elements=len(vectors), M=24, ef_construction=120)
        for start in range(0, len(vectors), 65_536):
            self.index.add_items(vectors[start : start + 65_536].astype(np.float32), num_threads=threads)

    def save(self, path):
        self.index.save_index(path)

    def load(self, path):
        self.index.load_index(path)

    def widen(self, width):
        self.index.set_ef(width)

    def search(self, query):
        return self.index.knn_query(query, k=K, num_threads=1)[0][0]


class _Usearch:
    """The same graph by usearch, whose vectors are kept as float16."""

    def __init__(self, job):
        from usearch.index import Index

        self.index = Index(
            ndim=job["dimension"], metric="ip", dtype="f16", connectivity=24, expansion_add=120, expansion_search=64
        )

    def build(self, vectors, threads):
        for start in range(0, len(vectors), 65_536):
            block = vectors[start : start + 65_536].astype(np.float32)
            self.index.add(np.arange(start, start + len(block)), block, threads=threads)

    def save(self, path):
        self.index.save(path)

    def load(self, path):
        self.index.load(path)

    def widen(self, width):
        self.index.expansion_search = width

    def search(self, query):
        return self.index.search(query, K, threads=1).keys.astype(np.int64)


class _Ours:
    """The project's index; learns from queries of the training split."""

    def __init__(self, job):
        from serving.faiss_index import FaissIndex, SearchSettings

        self.engine, self.settings, self.job = FaissIndex, SearchSettings, job

    def build(self, vectors, threads):
        self.index = self.engine.build(vectors, self.job["kind"], threads, np.load(self.job["learned_from"]))

    def save(self, path):
        self.index.save(Path(path))

    def load(self, path):
        from serving.vector_rows import map_vectors

        self.index = self.engine.load(Path(path), map_vectors(Path(self.job["vectors"])), self.job["kind"])

    def widen(self, width):
        self.index.settings = self.settings(**width)

    def search(self, query):
        return self.index.search(query, K)[1][0]


ENGINES = {"hnswlib": _Hnswlib, "usearch": _Usearch, "ours": _Ours}


def resident():
    """Bytes of this process in memory: its own, and mapped from files."""
    sizes = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: 1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssFile")}


def build(job):
    """Build with all cores and save."""
    vectors = np.load(job["vectors"], mmap_mode="r")
    engine = ENGINES[job["engine"]](job)
    start = time.perf_counter()
    engine.build(vectors, len(os.sched_getaffinity(0)))
    seconds = time.perf_counter() - start
    engine.save(job["index"])
    return {"seconds": seconds, "bytes": Path(job["index"]).stat().st_size}


def search(job):
    """Load and search, one query at a time, on one thread and on two; a peer stops at the width that is enough."""
    engine = ENGINES[job["engine"]](job)
    queries, tenth = np.load(job["queries"]), np.load(job["tenth"])
    before = resident()
    engine.load(job["index"])
    engine.widen(job["widths"][0])
    engine.search(queries[:1])
    answer = {"cold_seconds": time.time() - job["spawned"], "widths": []}
    rows = np.empty((len(queries), K), np.int64)

    def timed(at):
        start = time.perf_counter()
        rows[at] = engine.search(queries[at : at + 1])
        return time.perf_counter() - start

    for width in job["widths"]:
        engine.widen(width)
        one = np.min([[timed(at) for at in range(len(queries))] for _ in range(job["passes"])], axis=0)
        memory = resident()
        answer.setdefault("memory", {name: memory[name] - before[name] for name in memory})
        vectors = np.load(job["vectors"], mmap_mode="r")
        scores = np.stack(
            [vectors[found].astype(np.float64) @ query for found, query in zip(rows, queries, strict=True)]
        )
        recall = float((scores >= tenth[:, np.newaxis] - ROUNDING).mean())
        with ThreadPoolExecutor(2) as pool:
            start = time.perf_counter()
            two = list(pool.map(timed, range(len(queries))))
            elapsed = time.perf_counter() - start
        answer["widths"].append({"recall": recall, "one": one.tolist(), "two": two, "two_qps": len(queries) / elapsed})
        if job["engine"] != "ours" and recall >= job["target"]:
            break
    return answer


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"build": build, "search": search}[given["mode"]](given)))
