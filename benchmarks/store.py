"""Durable upserts of the embedded store against what the disk can flush, and searches while it compacts and publishes.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.store --json build/store.json

An upsert is a vector of 384 dimensions, a caption and five attributes, on the disk when it is acknowledged. The limit
beside each row is measured in the same run, in the same directory, turn by turn: a plain file that is appended to by as
many bytes as the log takes for one commit of what all threads have under way, and flushed (fdatasync), so many times a
second. Searches: 10 best of random directions near the stored ones, one after the other on one thread, idle and while a
compaction runs in a process of its own and its snapshot is taken over; upserts go on meanwhile. Run it with
`OPENBLAS_NUM_THREADS=1`, which the server sets for itself; garbage is collected as rarely as there.
"""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report, argument_parser
from data import console
from serving.builder_lock import only_builder
from serving.carry_over import open_log
from serving.catalog import CatalogEntry
from serving.compaction import start_compaction
from serving.embedded_store import EmbeddedStore
from serving.garbage_collection import collect_rarely
from serving.publish import index_staged, publish, staging
from serving.snapshot import Manifest
from serving.staged_snapshot import StagedSnapshot
from serving.vector_store import Upsert

DIMENSION = 384
OF_LIMIT = 0.7
SINGLE, BATCHED = 2_000, 20_000  # upserts a second
P99_RATIO = 2.0
ROUNDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, check the promises."""
    parser = argument_parser("store", __doc__)
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="in the snapshot (default 100000)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure of a round (default 3)")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the one of temporary files)")
    options = parser.parse_args(argv)
    report = Report("store")
    collect_rarely()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        _upserts(report, Path(directory), options.seconds)
        index = Path(directory) / "index"
        _searches(report, index, make_index(index, options.images))
    return report.finish(options.json)


def make_index(index: Path, images: int) -> np.ndarray:
    """An index of random vectors around a thousand centres; returns them, (N, D) float32 of unit length."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(1_000, DIMENSION)).astype(np.float32)
    vectors = centres[random.integers(0, 1_000, images)] + 0.8 * random.normal(size=(images, DIMENSION)).astype(
        np.float32
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.mkdir()
    with only_builder(index), staging(index) as directory, closing(open_log(index)) as log:
        staged = StagedSnapshot(directory, DIMENSION)
        staged.add(CatalogEntry(f"image-{n:08}", "", "", (f"picture {n}",), {"number": n}) for n in range(images))
        staged.add_vectors(vectors)
        staged.finish()
        certificate = index_staged(directory, vectors[:64], DIMENSION)
        now = datetime.now(UTC).isoformat()
        manifest = Manifest(images, DIMENSION, "f", "random", "random", [], certificate, now, log.last)
        publish(index, directory, manifest)
    return vectors


def _upserts(report: Report, directory: Path, seconds: float) -> None:
    shapes = [(1, 1), (16, 1), (64, 1), (1, 1_000), (16, 1_000)]
    found: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in shapes}
    for number, shape in itertools.product(range(ROUNDS), shapes):
        index = directory / f"{number}-{shape[0]}-{shape[1]}"
        vectors = make_index(index, 5_000)
        with closing(EmbeddedStore.open(index)) as store:
            rate, size = _upsert_rate(store, vectors, *shape, seconds)
        in_flight = shape[0] * shape[1]
        found[shape].append((rate, _flushes(directory, max(4_096, int(size * in_flight)), seconds / 2) * in_flight))
        shutil.rmtree(index)
    rows = []
    for (threads, batch), measured in found.items():
        rate = statistics.median(rate for rate, _ in measured)
        share = statistics.median(rate / limit for rate, limit in measured)
        rows.append({"threads": threads, "batch": batch, "upserts/s": rate, "share of limit": share})
    report.figures["upserts"] = rows
    console.print_table(
        "durable upserts",
        ["threads", "batch", "upserts/s", "of what the disk flushes"],
        [[str(r["threads"]), f"{r['batch']:,}", f"{r['upserts/s']:,.0f}", f"{r['share of limit']:.0%}"] for r in rows],
    )
    by_shape = {(row["threads"], row["batch"]): row for row in rows}
    _reaches(report, "single upserts/s, 64 threads", by_shape[64, 1], SINGLE)
    _reaches(report, "upserts/s in batches of 1,000", by_shape[16, 1_000], BATCHED)


def _reaches(report: Report, name: str, row: dict[str, Any], target: float) -> None:
    """A rate that reaches its target, or else the share of the disk's limit."""
    if row["upserts/s"] >= target:
        report.at_least(name, row["upserts/s"], target)
    else:
        report.at_least(f"{name} / the disk's limit", row["share of limit"], OF_LIMIT)


def _upsert_rate(
    store: EmbeddedStore, vectors: np.ndarray, threads: int, batch: int, seconds: float
) -> tuple[float, float]:
    """Upserts a second from so many threads, and the bytes that each takes in the log."""
    done = [0] * threads
    end = time.perf_counter() + seconds

    def change(thread: int) -> None:
        number = 0
        while time.perf_counter() < end:
            store.apply([_upsert(vectors, f"new-{thread}-{number + n}", number + n) for n in range(batch)])
            number += batch
            done[thread] = number

    start = time.perf_counter()
    workers = [threading.Thread(target=change, args=[thread]) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - start
    return sum(done) / elapsed, sum(path.stat().st_size for path in store.index.glob("changes.sqlite")) / sum(done)


def _upsert(vectors: np.ndarray, image_id: str, number: int) -> Upsert:
    attributes = {
        "title": f"picture {number}",
        "year": 1900 + number % 120,
        "width": 640.5,
        "colour": True,
        "tags": ["a", "b"],
    }
    return Upsert(
        image_id, vectors[number % len(vectors)], "0" * 64, "", (f"a picture of number {number}",), attributes
    )


def _flushes(directory: Path, size: int, seconds: float) -> float:
    """How often a second the disk takes `size` more bytes of a file and flushes them."""
    content, count = os.urandom(size), 0
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            file.write(content)
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.perf_counter() - start)


def _searches(report: Report, index: Path, vectors: np.ndarray) -> None:
    with closing(EmbeddedStore.open(index)) as store:
        store.apply([_upsert(vectors, f"more-{n}", n) for n in range(2_000)])
        store.refresh()
        _times(store, vectors, lambda count: count < 200)  # warm
        idle = _times(store, vectors, lambda count: count < 2_000)
        ended, changing = threading.Event(), threading.Thread(target=lambda: _keep_changing(store, vectors, ended))
        job = start_compaction(index)
        changing.start()
        busy = _times(store, vectors, lambda _: job.poll() is None or not _gone_over(store))
        ended.set()
        changing.join()
    figures = {
        name: {"p50_ms": _ms(times, 50), "p99_ms": _ms(times, 99)} for name, times in (("idle", idle), ("busy", busy))
    }
    memory = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    report.figures["searches"] = figures | {
        "searches_while_busy": len(busy),
        "resident_mb": int(memory.split()[1]) / 1024,
    }
    rows = [[name, f"{f['p50_ms']:.2f}", f"{f['p99_ms']:.2f}"] for name, f in figures.items()]
    console.print_table("searches", ["when", "p50 ms", "p99 ms"], rows)
    report.at_most(
        "p99 while compacting and publishing / idle", figures["busy"]["p99_ms"] / figures["idle"]["p99_ms"], P99_RATIO
    )


def _gone_over(store: EmbeddedStore) -> bool:
    with store.view() as view:
        return view.changes < 1_000


def _keep_changing(store: EmbeddedStore, vectors: np.ndarray, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(0.05):
        store.apply([_upsert(vectors, f"meanwhile-{number}", number)])
        number += 1


def _times(store: EmbeddedStore, vectors: np.ndarray, go_on: Callable[[int], bool]) -> list[float]:
    """Seconds of each of the searches made one after the other."""
    random, times = np.random.default_rng(1), []
    while go_on(len(times)):
        query = vectors[random.integers(len(vectors))] + 0.02 * random.normal(size=DIMENSION).astype(np.float32)
        start = time.perf_counter()
        with store.view() as view:
            (found,) = view.search((query / np.linalg.norm(query))[np.newaxis], 10)
            view.get([hit.image_id for hit in found])
        times.append(time.perf_counter() - start)
    return times


def _ms(times: Sequence[float], percentile: float) -> float:
    return float(np.percentile(times, percentile)) * 1_000


if __name__ == "__main__":
    console.run(main)
