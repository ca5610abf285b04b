"""Throughput of `data.prepare` against decoding alone on the same cores, and its memory against the number of images.

python -m benchmarks.prepare --json build/prepare.json

Every figure comes from a process of its own. Throughput: JPEG files of 500×375 pixels, like photographs; decoding alone
(already read, in as many threads as cores) is measured before and after each run, in the same process, and TensorFlow
is imported before the clock starts. Memory: PNG images of 8×8 pixels made on demand; the peak is Linux's VmHWM.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import Report, argument_parser
from data import console
from data.errors import UserError
from data.images import decode
from data.pairs import ImageBytes, ImageTextPair
from data.prepare import PrepareSettings, prepare
from data.quiet_tensorflow import load_tensorflow
from data.sources import open_source

RUNS = 3
OF_DECODING = 0.8
GROWTH = 1.2
SIZE = (500, 375)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print two tables, check the promises."""
    parser = argument_parser("prepare", __doc__)
    parser.add_argument("--images", type=int, default=1500, metavar="N", help="JPEG files (default 1500)")
    parser.add_argument("--tiny", type=int, default=1000, metavar="N", help="images of memory's first row (1000)")
    parser.add_argument("--speed", nargs=2, metavar=("DIR", "CORES"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not Path("/proc/self/status").is_file():
        raise UserError("Linux, which tells a process's peak memory", sys.platform, "run it there")
    if options.speed or options.memory:
        print(json.dumps(_speed(Path(options.speed[0])) if options.speed else _memory(options.memory)))
        return console.EXIT_OK

    report = Report("prepare")
    rows = _speeds(options.images)
    report.figures["speed"] = rows
    for cores in sorted({row["cores"] for row in rows}):
        ratio = statistics.median(row["prepare"] / row["decode"] for row in rows if row["cores"] == cores)
        report.at_least(f"prepare / decoding alone, {cores} core{'s' * (cores > 1)}", ratio, OF_DECODING)
    peaks = {size: _measured("--memory", size)["peak_mb"] for size in (options.tiny * 10**n for n in range(3))}
    report.figures["peak_mb"] = peaks
    console.print_table("memory", ["images", "peak MB"], [[f"{n:,}", f"{peak:,.0f}"] for n, peak in peaks.items()])
    report.at_most("memory of 100 times the images", peaks[options.tiny * 100] / peaks[options.tiny], GROWTH)
    return report.finish(options.json)


def _speeds(images: int) -> list[dict[str, Any]]:
    """A row for each run, cores taking turns."""
    turns = [cores for _ in range(RUNS) for cores in (1, 2) if cores <= len(os.sched_getaffinity(0))]
    with tempfile.TemporaryDirectory() as directory:
        write_photographs(Path(directory), images)
        rows = [{"cores": cores, **_measured("--speed", directory, cores)} for cores in turns]
    shown = [[row["cores"], *(f"{row[key]:,.0f}" for key in ("decode", "prepare"))] for row in rows]
    console.print_table("images a second", ["cores", "decoding alone", "prepare"], shown)
    return rows


def _measured(*arguments: object) -> dict[str, float]:
    """What a process of its own prints; `--speed DIR CORES` runs on that many cores."""
    command = [sys.executable, "-m", "benchmarks.prepare", *map(str, arguments)]
    cores = set(sorted(os.sched_getaffinity(0))[: int(str(arguments[2]))]) if len(arguments) > 2 else None
    restrict = partial(os.sched_setaffinity, 0, cores) if cores else None
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=restrict)  # noqa: PLW1509
    return json.loads(finished.stdout)  # type: ignore[no-any-return]


def _speed(directory: Path) -> dict[str, float]:
    """Images a second, decoding alone and preparing."""
    load_tensorflow()
    images = [path.read_bytes() for path in sorted(directory.glob("*.jpg"))[:300]]

    def decoding() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(decode, images))
        return len(images) / (time.perf_counter() - start)

    before = decoding()
    source = open_source(f"folder:{directory}")
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        prepare(source, Path(out) / "prepared", PrepareSettings())
        seconds = time.perf_counter() - start
    return {"decode": (before + decoding()) / 2, "prepare": len(source) / seconds}


def _memory(images: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        prepare(_TinyImages(images), Path(out) / "prepared", PrepareSettings())
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"peak_mb": int(line.split()[1]) / 1024}


class _TinyImages:
    """A source that holds nothing."""

    def __init__(self, images: int) -> None:
        self.name = f"{images} tiny images"
        self._images = images

    def __len__(self) -> int:
        return self._images

    def __iter__(self) -> Iterator[ImageTextPair]:
        for number in range(self._images):
            yield ImageTextPair(f"tiny/{number:08d}.png", ImageBytes(partial(_tiny, number)), (f"number {number}",))


def _tiny(number: int) -> bytes:
    file = io.BytesIO()
    colour = (number % 251, number // 251 % 251, number // 63001 % 251)
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def write_photographs(directory: Path, images: int) -> None:
    """Smooth noise with some grain: JPEG files of a photograph's size and cost."""
    random = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (SIZE[1], SIZE[0], 1))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"photograph of number {number:05d}.jpg", quality=90)


if __name__ == "__main__":
    console.run(main)
