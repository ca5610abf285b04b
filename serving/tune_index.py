"""Finds the index and the width of its searches that reach an index recall on real queries, and certifies the choice.

Example: `python -m serving.tune_index --index INDEX --bundle default --queries captions --out tuning`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console, html_page
from data.array_files import load_array
from data.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

    from serving.index_recall import Tuning
    from serving.index_tuning import Trial

TUNING, PAGE = "tuning.json", "tuning.html"
COLUMNS = ("kind", "search", "index recall@10", "p50 ms", "p99 ms", "memory share", "build s", "meets the goal")
MOST_QUERIES = 1_000  # that are searched; texts beyond are learned from
FEWEST_QUERIES = 20


@dataclass(frozen=True)
class Goal:
    """What an index must reach: index recall@10, milliseconds at the median, and its share of float32 vectors."""

    recall: float = 0.99
    latency_ms: float = 2.0
    memory_share: float = 0.35


@dataclass(frozen=True)
class Candidate:
    """A kind of index, what it costs, and how its best width does on the queries that it was not chosen on."""

    kind: str
    build_seconds: float
    memory_share: float
    certified: Trial

    def meets(self, goal: Goal) -> bool:
        """Whether every part of the goal is reached."""
        return (
            self.certified.recall >= goal.recall
            and self.certified.p50 <= goal.latency_ms
            and self.memory_share <= goal.memory_share
        )


def kinds(rows: int, dimension: int) -> list[str]:
    """What is tried for an index of this size."""
    import numpy as np

    lists = 2 ** round(np.log2(2 * np.sqrt(rows)))
    tried = ["Flat", "SQ8", "HNSW32_SQ8", f"IVF{lists},SQ8", f"IVF{lists},RaBitQfs"]
    if dimension % 4 == 0:
        tried.append(f"IVF{lists},PQ{dimension // 4}x4fs")
    return [*tried, f"Balanced,IVF{2 * lists}"]


def try_kinds(
    vectors: np.ndarray, queries: np.ndarray, tried: Iterable[str], goal: Goal, embedding_dim: int | None = None
) -> tuple[list[Candidate], dict[str, list[Trial]]]:
    """Build each kind over `vectors` (N, D), choose its width on half of `queries` (Q, D), certify it on the rest.

    Queries beyond `MOST_QUERIES` are learned from.
    """
    from serving.exact_index import ExactIndex
    from serving.faiss_index import FaissIndex
    from serving.index_tuning import fastest, try_settings, tune

    searched, learned = queries[:MOST_QUERIES], queries[MOST_QUERIES:]
    scores, _ = ExactIndex(vectors).search(searched, 10)
    tenth = scores[:, -1]
    candidates, trials = [], {}
    for kind in tried:
        console.say(f"building {kind}")
        start = time.perf_counter()
        index = FaissIndex.build(vectors, kind, queries=learned, embedding_dim=embedding_dim)
        seconds = time.perf_counter() - start
        trials[kind] = tune(index, searched[::2], tenth[::2], goal.recall)
        best = fastest(trials[kind], goal.recall)
        certified = try_settings(index, best.settings, searched[1::2], tenth[1::2])
        share = _bytes(index) / (4 * vectors.size)
        candidates.append(Candidate(kind, seconds, share, certified))
    return candidates, trials


def _bytes(index: Any) -> int:
    """What the index keeps in memory: as much as its file has, which the vectors are not part of."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "index"
        index.save(path)
        return path.stat().st_size


def choose(candidates: Sequence[Candidate], goal: Goal) -> Candidate:
    """The fastest that meets the goal; where none does, the one of best recall within the memory."""
    if met := [candidate for candidate in candidates if candidate.meets(goal)]:
        return min(met, key=lambda candidate: candidate.certified.p50)
    fitting = [candidate for candidate in candidates if candidate.memory_share <= goal.memory_share]
    return max(fitting or candidates, key=lambda candidate: (candidate.certified.recall, -candidate.certified.p50))


def write_tuning(path: Path, chosen: Candidate, goal: Goal, rows: int) -> None:
    """The choice and its certificate, for `serving.build_index --tuning`."""
    from data.durable import write_json

    figures = {
        **{"index_recall_at_10": chosen.certified.recall, "p50_ms": chosen.certified.p50},
        **{"p99_ms": chosen.certified.p99, "memory_share": chosen.memory_share, "build_seconds": chosen.build_seconds},
    }
    settings = asdict(chosen.certified.settings)
    write_json(path, {"kind": chosen.kind, "search": settings, "rows": rows, "goal": asdict(goal), **figures})


def read_tuning(path: Path) -> Tuning:
    """The kind and settings in a file of `write_tuning`; `SourceError` when it is none."""
    from serving.faiss_index import SearchSettings
    from serving.index_recall import Tuning

    try:
        content = json.loads(path.read_text("utf-8"))
        return Tuning(content["kind"], SearchSettings(**content["search"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError("a file that serving.tune_index wrote", f"{path} ({error})", "tune again") from None


def plot(trials: dict[str, list[Trial]]) -> str:
    """Index recall@10 against milliseconds, the best that each kind reaches in that time."""
    from data.svg_plots import Axis, line_plot

    lines = {}
    for kind, found in trials.items():
        front: list[tuple[float, float]] = []
        for trial in sorted(found, key=lambda trial: trial.p50):
            if not front or trial.recall > front[-1][1]:
                front.append((trial.p50, trial.recall))
        lines[kind] = front
    slowest = max(trial.p50 for found in trials.values() for trial in found)
    lowest = min(trial.recall for found in trials.values() for trial in found)
    return line_plot(
        "Index recall and time",
        "Index recall@10 against milliseconds for one query on one thread, by kind of index",
        Axis("ms a query, median", 0.0, slowest),
        Axis("index recall@10", lowest, 1.0),
        lines,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Try every kind, print the table, write the choice and the plot; fails when the goal is not met."""
    parser = argparse.ArgumentParser(prog="python -m serving.tune_index", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--index", type=Path, metavar="INDEX", help="tune for the images of this published index")
    where.add_argument("--vectors", type=Path, metavar="FILE", help="tune for these vectors: .npy, (N, D), unit length")
    parser.add_argument("--bundle", help='the model that embeds texts, or "default"; not needed for .npy queries')
    parser.add_argument(
        "--queries", required=True, help='texts, one a line; or .npy embeddings; or "captions", those of the index'
    )
    parser.add_argument("--recall", type=float, default=Goal.recall, help="index recall@10 to reach")
    parser.add_argument("--latency-ms", type=float, default=Goal.latency_ms, help="median of one query on one thread")
    parser.add_argument("--memory-share", type=float, default=Goal.memory_share, help="of what float32 vectors take")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="try these FAISS factory strings only")
    parser.add_argument("--out", type=Path, default=Path("tuning"), help=f"directory of {TUNING} and {PAGE}")
    options = parser.parse_args(argv)
    goal = Goal(options.recall, options.latency_ms, options.memory_share)
    vectors, queries, embedding_dim = _read(options)
    tried = options.kinds or kinds(*vectors.shape)
    candidates, trials = try_kinds(vectors, queries, tried, goal, embedding_dim)
    title = f"{len(vectors):,} vectors, queries that the search was not chosen on"
    rows = [_cells(candidate, goal) for candidate in candidates]
    console.print_table(title, COLUMNS, rows)
    chosen = choose(candidates, goal)
    options.out.mkdir(parents=True, exist_ok=True)
    write_tuning(options.out / TUNING, chosen, goal, len(vectors))
    sections = [html_page.section("Kinds", html_page.table(title, COLUMNS, rows)), plot(trials)]
    (options.out / PAGE).write_text(html_page.page("Index tuning", "Index tuning", sections), "utf-8")
    console.say(f"{chosen.kind} with {_words(chosen.certified)}: written to {options.out / TUNING}")
    if chosen.meets(goal):
        return console.EXIT_OK
    console.say("no index reaches the goal; this one comes nearest")
    return console.EXIT_FAILED


def _read(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors (N, W), queries (Q, W) float32 in an order without meaning, and D; W is D + 1 with offsets of images."""
    import numpy as np

    from dual_encoder.hubness import asked

    texts: list[str] | None = None
    if options.queries != "captions" and not options.queries.endswith(".npy"):
        texts = [line for line in Path(options.queries).read_text("utf-8").splitlines() if line.strip()]
    if options.index:
        from serving.snapshot import open_snapshot

        snapshot = open_snapshot(options.index)
        vectors, embedding_dim = snapshot.vectors, snapshot.manifest.dimension
        if options.queries == "captions":
            texts = [caption for entry in snapshot.catalog for caption in entry.captions if caption.strip()]
        snapshot.close()
    else:
        vectors = load_array(options.vectors, mapped=True)
        embedding_dim = vectors.shape[1]
    if texts is not None:
        queries = _embedded(texts, options.bundle)
    elif options.queries == "captions":
        raise SourceError("an index whose captions are queries", "--vectors without captions", "give --queries FILE")
    else:
        queries = load_array(options.queries).astype(np.float32)
    if len(queries) < FEWEST_QUERIES:
        raise SourceError(f"at least {FEWEST_QUERIES} queries", f"{len(queries)}", "give more texts")
    if queries.shape[1] < vectors.shape[1]:  # images have offsets: texts ask with one more component
        queries = asked(queries)
    return vectors, queries[np.random.default_rng(0).permutation(len(queries))], embedding_dim


def _embedded(texts: list[str], bundle: str | None) -> np.ndarray:
    from dual_encoder.runtime import Runtime

    if bundle is None:
        raise SourceError("a model for texts", "no --bundle", "give the bundle that the index was built with")
    step = max(1, len(texts) // (MOST_QUERIES + 4_096))
    return Runtime.load(bundle).embed_texts(texts[::step])


def _cells(candidate: Candidate, goal: Goal) -> list[str]:
    return [
        *(candidate.kind, _words(candidate.certified), f"{candidate.certified.recall:.4f}"),
        *(f"{candidate.certified.p50:.2f}", f"{candidate.certified.p99:.2f}"),
        *(f"{candidate.memory_share:.3f}", f"{candidate.build_seconds:.1f}"),
        "yes" if candidate.meets(goal) else "no",
    ]


def _words(trial: Trial) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(trial.settings).items() if value) or "defaults"


if __name__ == "__main__":
    console.run(main)
