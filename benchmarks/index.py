"""Vector search: ours against hnswlib and usearch at equal index recall, exact search, and what memory allows.

python -m benchmarks.index --bundle BUNDLE --json build/index.json

Image vectors are real embeddings enlarged by `benchmarks.enlarged_vectors`; queries are real captions whose images are
not among them. Half of the captions choose how wide ours searches, the other half are measured. The peers' width is
chosen on the measured ones. The exact answer is the truth. 1M vectors take about 12 minutes on two cores, 10 of them
the peers' building.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.enlarged_vectors import enlarge, likeness
from benchmarks.peer_process import DEFAULT_PYTHON, PEERS, peer_python
from benchmarks.report import Report, argument_parser
from data import console
from data.errors import UserError

TARGET = 0.99
SIZES, LARGE = (10_000, 100_000, 1_000_000), 10_000_000
PEERS_OFFERED = ("hnswlib", "usearch")
# Of the peers' graphs: they are taken at the first that reaches the target.
WIDTHS = (64, 128, 192, 256, 384, 512, 768, 1_024, 1_152, 1_280, 1_536, 2_048, 3_072, 4_096, 8_192)
MEASURED = 1_250  # queries, and as many to choose by: half of them if there are fewer
MILLION = 1_000_000


@dataclass(frozen=True)
class RealEmbeddings:
    """What everything is made from: images of the training splits; images and captions of the others."""

    images: np.ndarray
    captions: np.ndarray
    held_out_images: np.ndarray
    held_out_captions: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One engine at one width. Milliseconds, queries a second, bytes; memory is what the index adds to a process."""

    engine: str
    width: str
    recall: float
    p50: float
    p99: float
    p50_two: float
    p99_two: float
    qps_two: float
    memory: int
    mapped: int
    disk: int
    build_seconds: float
    cold_seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size, print tables, check the promised figures at a million."""
    parser = argument_parser("index", __doc__)
    parser.add_argument("--bundle", default="default", help="the model whose embeddings are enlarged")
    parser.add_argument("--data", action="append", metavar="SOURCE", help="default: all of $DATASETS_DIR, and emoji")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--large", action="store_true", help=f"{LARGE:,} too, without peers")
    parser.add_argument("--peers", nargs="*", choices=PEERS_OFFERED, default=PEERS_OFFERED)
    parser.add_argument("--peer-python", type=Path, default=DEFAULT_PYTHON)
    parser.add_argument("--passes", type=int, default=1, help="time a query so often and take the best: a busy machine")
    parser.add_argument("--work", type=Path, default=Path("build/index_benchmark"), help="vectors and indexes")
    options = parser.parse_args(argv)
    python = peer_python(options.peer_python) if options.peers else options.peer_python
    options.work.mkdir(parents=True, exist_ok=True)
    report = Report("index")
    real = real_embeddings(options.bundle, options.data, options.work)
    report.figures["likeness"] = _print_likeness(real)
    report.figures["bandwidth_gb_s"] = bandwidth() / 1e9
    for size in [*options.sizes, *([LARGE] if options.large else [])]:
        peers = options.peers if size < LARGE else ()
        rows = measure_size(size, real, options.work, [(engine, python) for engine in peers], options.passes, report)
        if size == MILLION:
            _check(report, rows, size * real.images.shape[1] * 4)
    return report.finish(options.json)


def real_embeddings(bundle: str, data: Sequence[str] | None, work: Path) -> RealEmbeddings:
    """Embed the data sets once; a later run with the same bundle and data reads what the first one wrote."""
    from data.durable import digest_json
    from dual_encoder.runtime import open_named_bundle

    fingerprint = open_named_bundle(bundle).fingerprint
    kept = work / f"real-{digest_json([fingerprint, data])[:16]}.npz"
    if not kept.exists():
        np.savez(kept, **_embed(bundle, data))
    with np.load(kept) as arrays:
        return RealEmbeddings(**arrays)


def _embed(bundle: str, data: Sequence[str] | None) -> dict[str, np.ndarray]:
    from benchmarks.training_quality import default_data
    from data.sources import open_source
    from data.splits import split_pairs
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.runtime import Runtime
    from dual_encoder.training_data import captioned

    runtime = Runtime.load(bundle)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in RealEmbeddings.__dataclass_fields__}
    for name in data or default_data():
        for split, pairs in split_pairs(open_source(name)).items():
            console.say(f"embedding {split} of {name}")
            embedded = embed_pairs(runtime, captioned(pairs, split))
            prefix = "" if split == "train" else "held_out_"
            parts[f"{prefix}images"].append(embedded.images)
            parts[f"{prefix}captions"].append(embedded.captions)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _print_likeness(real: RealEmbeddings) -> dict[str, Any]:
    """The real images beside as many made ones."""
    made = enlarge(real.images, len(real.images), seed=1)
    probes = real.held_out_images, real.held_out_captions
    both = {"real": likeness(real.images, *probes), "made": likeness(made, *probes)}
    figures = {name: asdict(found) for name, found in both.items()}
    rows = [[name, *(f"{figures[which][name]:.3g}" for which in figures)] for name in figures["real"]]
    console.print_table(f"how {len(made):,} real and made vectors lie", ["seen from held-out pairs", *figures], rows)
    return figures


def bandwidth() -> float:
    """Bytes a second that one thread reads from memory: the best of five dot products of 256 MB with itself."""
    block = np.ones(1 << 26, np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        block.max()
        seconds.append(time.perf_counter() - start)
    return block.nbytes / min(seconds)


def measure_size(
    size: int, real: RealEmbeddings, work: Path, peers: Sequence[tuple[str, Path]], passes: int, report: Report
) -> list[Measured]:
    """Every engine over `size` vectors, and exact search."""
    console.say(f"{size:,} vectors")
    paths = {name: work / f"{name}-{size}.npy" for name in ("vectors", "learned", "chosen", "measured", "tenth")}
    vectors = _made(paths["vectors"], real, size)
    order = np.random.default_rng(2).permutation(len(real.held_out_captions))
    measuring = min(MEASURED, len(order) // 2)
    measured = real.held_out_captions[order[:measuring]]
    chosen = real.held_out_captions[order[measuring : 2 * measuring]]
    for name, queries in (("learned", real.captions), ("chosen", chosen), ("measured", measured)):
        np.save(paths[name], queries)
    tenth, exact_ms = exact_tenth(vectors, np.concatenate([measured, chosen]))
    np.save(paths["tenth"], tenth[:measuring])
    rows, notes = ours(paths, vectors, chosen, tenth[measuring:], passes, report)
    for engine, python in peers:
        rows.append(peer(engine, python, paths, passes))
    title = f"{size:,} vectors, text queries; exact search takes {exact_ms:.3g} ms on one thread; {notes}"
    report.figures[f"{size}"] = {"engines": [asdict(row) for row in rows], "exact_ms": exact_ms, "notes": notes}
    columns = ["engine", "width", "index recall@10", "p50 ms", "p99", "2 threads: p50", "p99", "QPS", "memory MB"]
    cells = [
        [
            *(row.engine, row.width, f"{row.recall:.4f}"),
            *(f"{value:.2f}" for value in (row.p50, row.p99, row.p50_two, row.p99_two)),
            *(f"{row.qps_two:.0f}", f"{row.memory / 1e6:.0f} + {row.mapped / 1e6:.0f} mapped"),
            *(f"{row.disk / 1e6:.0f}", f"{row.build_seconds:.1f}", f"{row.cold_seconds:.2f}"),
        ]
        for row in rows
    ]
    console.print_table(title, [*columns, "disk MB", "build s", "cold start s"], cells)
    return rows


def _made(path: Path, real: RealEmbeddings, size: int) -> np.ndarray:
    """Made a million at a time: ten of them are 15 GB in float32."""
    if not path.exists():
        part = path.with_suffix(".part")
        made = np.lib.format.open_memmap(part, "w+", np.float16, (size, real.images.shape[1]))
        for number, start in enumerate(range(0, size, MILLION)):
            made[start : start + MILLION] = enlarge(real.images, min(MILLION, size - start), seed=number)
        made.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def exact_tenth(vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """The exact score of each query's tenth hit, and milliseconds that one exact search takes in float32.

    The time is that of a million vectors where there are more, so many times as long.
    """
    from serving.exact_index import ExactIndex
    from serving.faiss_index import FaissIndex

    scores, _ = ExactIndex(vectors).search(queries, 10)
    flat = FaissIndex.build(vectors[:MILLION], "Flat")
    seconds = []
    for query in queries[:5]:
        start = time.perf_counter()
        flat.search(query[np.newaxis], 10)
        seconds.append(time.perf_counter() - start)
    return scores[:, 9], 1_000 * float(np.median(seconds)) * len(vectors) / len(flat)


def ours(
    paths: dict[str, Path], vectors: np.ndarray, chosen: np.ndarray, tenth: np.ndarray, passes: int, report: Report
) -> tuple[list[Measured], str]:
    """Ours with the width that `chosen` queries need, and with default settings; and the bound by memory."""
    from serving.faiss_build import default_kind
    from serving.faiss_index import FaissIndex
    from serving.index_tuning import fastest, tune

    job = {
        "engine": "ours",
        "kind": default_kind(len(vectors)),
        "learned_from": str(paths["learned"]),
        "passes": passes,
    }
    built = _run(Path(sys.executable), "build", job, paths)
    index = FaissIndex.load(_index(job, paths), vectors, job["kind"])
    default = index.settings
    best = fastest(tune(index, chosen, tenth, TARGET), TARGET).settings
    widths = list(dict.fromkeys([best, default]))
    names = ["tuned" if width is best else "default" for width in widths]
    found = _run(Path(sys.executable), "search", {**job, "widths": [asdict(width) for width in widths]}, paths)
    rows = _measured(found, job, [f"{n}: {_words(w)}" for n, w in zip(names, widths, strict=True)], built, paths)
    if index.lists is None:
        return rows, f"kind {index.kind}"
    d = index.lists.d
    scanned = len(vectors) * best.nprobe / index.lists.nlist * (d / 4)
    read = scanned + 4 * d * index.lists.nlist + best.proposed * d + best.compared * vectors.shape[1] * 2
    bound = 1e3 * read / (1e9 * report.figures["bandwidth_gb_s"])
    return (
        rows,
        f"kind {index.kind}, {d} dimensions, {read / 1e6:.1f} MB read a query, {bound:.2f} ms at full bandwidth",
    )


def _words(settings: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(settings).items() if value) or "-"


def peer(engine: str, python: Path, paths: dict[str, Path], passes: int) -> Measured:
    """A peer at the narrowest width that reaches the target on the measured queries, or at the widest."""
    job = {"engine": engine, "passes": passes}
    built = _run(python, "build", job, paths)
    found = _run(python, "search", {**job, "widths": WIDTHS}, paths)
    rows = _measured(found, job, [f"ef {width}" for width in WIDTHS], built, paths)
    for row in rows:
        console.say(f"{engine} {row.width}: index recall@10 {row.recall:.4f}, p50 {row.p50:.2f} ms")
    return rows[-1]


def _index(job: dict[str, Any], paths: dict[str, Path]) -> Path:
    return paths["vectors"].with_suffix(f".{job['engine']}")


def _run(python: Path, mode: str, job: dict[str, Any], paths: dict[str, Path]) -> dict[str, Any]:
    """Run the script of all engines in a process of its own."""
    dimension = int(np.load(paths["vectors"], mmap_mode="r").shape[1])
    job = {
        **job,
        **{"mode": mode, "dimension": dimension, "vectors": str(paths["vectors"]), "queries": str(paths["measured"])},
        **{"index": str(_index(job, paths)), "tenth": str(paths["tenth"]), "target": TARGET},
        "spawned": time.time(),
    }
    command = [str(python), str(PEERS / "vector_search.py"), json.dumps(job)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError("an engine that runs", f"exit code {done.returncode}", "its message is above; try make peers")
    return json.loads(done.stdout.splitlines()[-1])


def _measured(
    found: dict[str, Any], job: dict[str, Any], widths: list[str], built: dict[str, Any], paths: dict[str, Path]
) -> list[Measured]:
    rows = []
    for width, timed in zip(widths, found["widths"], strict=False):  # a peer stops when a width is enough
        one, two = (1_000 * np.quantile(timed[threads], [0.5, 0.99]) for threads in ("one", "two"))
        rows.append(
            Measured(
                *(job["engine"], width, timed["recall"], *one.tolist(), *two.tolist(), timed["two_qps"]),
                memory=found["memory"]["RssAnon"],
                mapped=found["memory"]["RssFile"],
                disk=built["bytes"],
                build_seconds=built["seconds"],
                cold_seconds=found["cold_seconds"],
            )
        )
    return rows


def _check(report: Report, rows: list[Measured], float32_bytes: int) -> None:
    """What was promised for a million vectors."""
    tuned, peers = rows[0], [row for row in rows if row.engine != "ours"]
    report.at_least("index recall@10 on text", tuned.recall, TARGET)
    report.at_most("p50 on one thread, ms", tuned.p50, 2.0)
    report.at_most("memory / float32 vectors", (tuned.memory + tuned.mapped) / float32_bytes, 0.35)
    report.at_most("cold start, s", tuned.cold_seconds, 3.0)
    if peers:
        report.at_most("build time / faster peer's", tuned.build_seconds / min(p.build_seconds for p in peers), 0.1)
        report.at_least("QPS / better peer's, one thread", min(p.p50 for p in peers) / tuned.p50, 3.0)
        report.at_least("QPS / better peer's, two threads", tuned.qps_two / max(p.qps_two for p in peers), 3.0)
        report.at_most(
            "memory / smaller peer's", (tuned.memory + tuned.mapped) / min(p.memory + p.mapped for p in peers), 1.0
        )


if __name__ == "__main__":
    console.run(main)
