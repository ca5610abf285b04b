"""How fast bundles encode, against PyTorch, sentence-transformers, OpenCLIP and ONNX Runtime driven by hand.

python -m benchmarks.runtime --json build/runtime.json

Contestants take turns on the same cores, now in one order and now in the other, after a pause in which the threads of
the one before go to sleep; figures are medians over the turns, ratios medians over turns that followed each other. Text
goes from strings to embeddings, towers from pixels in memory, a folder from JPEG files of 500×375 pixels, whose limit
on cores that the tower keeps busy is the time of both added up. The share of the machine is the rate of floating-point
operations as a share of that of a float32 matrix product of 2,048² in the same run. With `--int8-data` a text tower in
int8 is measured against float32: its recall as `dual_encoder.quantize` measures it before it publishes one, its speed
on text of 16 tokens. The peers' environment is made by `make peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.encoding_contestants import PAUSE_SECONDS, SENTENCE, contestants
from benchmarks.peer_process import DEFAULT_PYTHON, peer_python
from benchmarks.report import Report, argument_parser
from data import console

TASKS = ("text, batch 1", "text, batch 32", "captions", "lite0, batch 32", "vit_b32, batch 32", "folder", "cold start")
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
COLD_START_SECONDS = {"onnxruntime": 3.0, "keras": 12.0}


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
            taking_turns, operations = contestants(task, runtime, python, options, stack, report)
            taking_turns["matrix product"] = partial(_matrix_product, operations)
            rates[task] = {name: [] for name in taking_turns}
            for number in range(options.turns):
                order = list(taking_turns.items())
                for name, turn in order if number % 2 else reversed(order):  # who follows whom matters
                    time.sleep(PAUSE_SECONDS)
                    rates[task][name].append(turn())
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


def _matrix_product(operations: float, size: int = 2048) -> float:
    """Items a second of so many operations each, at the rate of NumPy in one float32 product of square matrices."""
    matrix = np.ones((size, size), np.float32)
    began = time.perf_counter()
    np.matmul(matrix, matrix)
    return 2.0 * size**3 / operations / (time.perf_counter() - began)


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
    """A text tower in int8 against float32: recall on the validation split of pairs, speed at 16 tokens."""
    from data.sources import open_source
    from dual_encoder import quantize
    from dual_encoder.evaluate import pairs_of_split
    from dual_encoder.runtime import open_named_bundle

    opened = open_named_bundle(bundle)
    read = list(open_source(source))
    pairs = pairs_of_split(read, "validation")
    graph, figures = quantize.chosen(opened, quantize.calibration_captions(read, pairs), pairs)
    console.say(f"int8 with {100 * figures['weights_in_float32']:g} % of the weights in float32")
    gains = quantize.speed(opened, graph, [SENTENCE])
    report.figures["int8"] = figures | {"speed_16_tokens": gains}
    for batch, gain in gains.items():
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
