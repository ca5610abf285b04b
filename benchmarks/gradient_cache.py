"""Peak memory of a training step against its batch size, in one pass and with cached gradients.

python -m benchmarks.gradient_cache --json build/gradient_cache.json

Every row is a process of its own that trains small towers from random weights on random pixels and tokens; its peak is
what Linux kept in memory at most (VmHWM), libraries included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report, argument_parser
from data import console
from data.errors import UserError
from data.quiet_tensorflow import load_tensorflow

CHUNK = 256
STEPS = 2  # the first one builds graphs and optimizer slots
LOSSES = ("info_nce", "sigmoid")
LIMIT = 1.3
SAME = 1e-4  # of the largest number of a weight's gradient: sums of float32 in another order


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, check the promised ratio."""
    parser = argument_parser("gradient_cache", __doc__)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[256, 1024, 4096], metavar="B", help="default: 256 1024 4096"
    )
    parser.add_argument("--one-pass", type=int, default=1024, metavar="B", help="largest batch in one pass, too")
    parser.add_argument("--difference", nargs=2, metavar=("LOSS", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, metavar=("LOSS", "BATCH", "CHUNK"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        loss, batch, chunk = options.measure
        print(json.dumps(_train(loss, int(batch), int(chunk))))
        return console.EXIT_OK
    if options.difference:
        print(json.dumps({"difference": _difference(options.difference[0], int(options.difference[1]))}))
        return console.EXIT_OK
    if not Path("/proc/self/status").is_file():
        raise UserError("Linux, which tells a process's peak memory", sys.platform, "run it there")
    smallest, *larger = sorted(options.batches)
    runs = [(loss, size, 0) for loss in LOSSES for size in (smallest, *larger) if size <= options.one_pass]
    runs += [(loss, size, CHUNK) for loss in LOSSES for size in larger]
    rows = [{"loss": loss, "batch": size, "chunk": chunk, **_measured(loss, size, chunk)} for loss, size, chunk in runs]
    _print(rows)
    report = Report("gradient_cache", {"rows": rows})
    peaks = {(row["loss"], row["batch"], row["chunk"]): row["peak_mb"] for row in rows}
    for loss in LOSSES if larger else ():
        ratio = peaks[loss, larger[-1], CHUNK] / peaks[loss, smallest, 0]
        name = f"{loss}: memory of batch {larger[-1]:,} in chunks / batch {smallest:,} in one pass"
        report.at_most(name, ratio, LIMIT)
    for loss in LOSSES:
        console.say(f"{loss}, gradients of batch {smallest:,} in one pass and in chunks")
        difference = _in_a_process("--difference", loss, str(smallest))["difference"]
        report.at_most(f"{loss}: difference of gradients, one pass and chunks of {CHUNK // 4}", difference, SAME)
    return report.finish(options.json)


def _measured(loss: str, size: int, chunk: int) -> dict[str, float]:
    console.say(f"{loss}, batch {size:,}, {'one pass' if not chunk else f'chunks of {chunk}'}")
    return _in_a_process("--measure", loss, str(size), str(chunk))


def _in_a_process(*options: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.gradient_cache", *options]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def _difference(loss: str, size: int) -> float:
    """The largest difference of Adam's first moments, a tenth of the gradients, after one step without dropout."""
    moments = []
    for chunk in (0, CHUNK // 4):
        trainer, batches = _trainer(loss, size, chunk, dropout=0.0)
        trainer._step(batches.batch)
        moments.append([np.asarray(v) for v in trainer.optimizer._momentums])
    scales = [max(np.abs(a).max(), 1e-7) for a in moments[0]]
    return float(max(np.abs(a - b).max() / scale for a, b, scale in zip(*moments, scales, strict=True)))


def _train(loss: str, size: int, chunk: int) -> dict[str, float]:
    """Train for `STEPS` steps; megabytes before and at most, and seconds of the last step."""
    trainer, batches = _trainer(loss, size, chunk)
    before = _memory_mb("VmRSS")
    with tempfile.TemporaryDirectory() as directory:
        trainer.directory = Path(directory)
        trainer.fit()
    return {"start_mb": before, "peak_mb": _memory_mb("VmHWM"), "step_seconds": batches.seconds}


def _trainer(loss: str, size: int, chunk: int, dropout: float = 0.1) -> tuple[Any, RandomBatches]:
    """A trainer of the towers on their initial weights, and its batches."""
    load_tensorflow()
    import keras

    from dual_encoder.losses import InfoNCE, SigmoidLoss
    from dual_encoder.model import DualEncoder, DualEncoderConfig
    from dual_encoder.projection_head import LinearHead
    from dual_encoder.recipe import TrainerConfig
    from dual_encoder.schedules import WarmupCosine
    from dual_encoder.towers.scratch import ScratchImage, ScratchText
    from dual_encoder.trainer import Trainer

    keras.utils.set_random_seed(0)
    objective = InfoNCE(chunk_rows=CHUNK) if loss == "info_nce" else SigmoidLoss(chunk_rows=CHUNK)
    config = DualEncoderConfig(
        ScratchImage(size=32, width=32, stages=2, depth=2),
        ScratchText(vocabulary_size=2000, width=64, layers=2, max_tokens=16, dropout=dropout),
        LinearHead(128),
        LinearHead(128),
    )
    model = DualEncoder(config, objective.initial_scale, initial_bias=objective.initial_bias)
    settings = TrainerConfig(WarmupCosine(peak=1e-4), epochs=1, batch_size=size, chunk_size=chunk)
    batches = RandomBatches(size)
    figures = {"recall": 0.0, "loss": 0.0}  # validation is not what is measured
    return Trainer(model, objective, settings, batches, lambda: figures, Path(), "memory"), batches


class RandomBatches:
    """The same random pixels and tokens at every step."""

    steps_per_epoch = STEPS

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(0)
        self.batch = {
            "image": generator.standard_normal((size, 32, 32, 3), np.float32),
            "ids": generator.integers(1, 2000, (size, 16), np.int32),
            "mask": np.ones((size, 16), np.int32),
            "image_row": np.arange(size, dtype=np.int32),
            "caption_group": np.arange(size, dtype=np.int32),
        }
        self.seconds = 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `dual_encoder.feature_batches.Batches`."""
        for _ in range(start, STEPS):
            began = time.perf_counter()
            yield self.batch
            self.seconds = time.perf_counter() - began


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) / 1024


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = [
        [
            row["loss"],
            f"{row['batch']:,}",
            row["chunk"] or "one pass",
            f"{row['start_mb']:,.0f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['step_seconds']:.1f}",
        ]
        for row in rows
    ]
    heads = ["loss", "batch", "chunks of", "MB before", "peak MB", "seconds a step"]
    console.print_table("memory of a training step", heads, table)


if __name__ == "__main__":
    console.run(main)
