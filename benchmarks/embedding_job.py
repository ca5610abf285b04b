"""What the batch indexing job costs beyond embedding, repeats after a kill, and holds in memory.

python -m benchmarks.embedding_job --json build/embedding_job.json

Throughput: JPEG files of 500×375 pixels, in turn by three ways and the model's embeddings of pixels in memory alone:
decoding alone (in as many threads as cores), `Runtime.embed_images` on encoded images in memory, and the job on files,
which also reads, hashes and keeps shards. Beside other work on the machine, processor time says more than time. Kills:
a process with SIGKILL at random moments, a cheap model that counts. Memory: a whole `build_index` of 8×8 PNG images
made on demand, by a cheap model of 384 dimensions, in a process of its own; resident memory of Linux, all of it and
without the pages of files, which the kernel can take back at any time.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.report import Report, argument_parser
from data import console
from data.errors import UserError
from data.images import ImagePreprocessing, load_resized, normalise_batch
from data.loading import map_ordered
from data.pairs import ImageBytes, ImageTextPair
from data.sources.image_folder import ImageFolder
from serving.embedding_job import EmbeddingJob
from serving.index_job import build_index

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime

SIZE, TINY, LATENT, DIMENSION = (500, 375), 8, 12, 384
COUNTS, LARGE = (10_000, 100_000), 1_000_000
OVERHEAD, GROWTH_MB = 1.05, 100
BATCH, SHARD = 32, 256
CHEAP = {"OPENBLAS_NUM_THREADS": "1"}  # a matrix product so small gains nothing from a second thread


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, check the promises."""
    parser = argument_parser("embedding_job", __doc__)
    parser.add_argument("--bundle", default="default", help="the model whose throughput counts, default %(default)s")
    parser.add_argument("--threads", type=int, help="of the model, by default as many as cores")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="JPEG files, default %(default)s")
    parser.add_argument("--turns", type=int, default=5, help="of each way, default %(default)s")
    parser.add_argument("--kills", type=int, default=10, help="default %(default)s")
    parser.add_argument(
        "--tiny", type=int, nargs="+", default=list(COUNTS), metavar="N", help="images of memory's rows"
    )
    parser.add_argument("--large", action="store_true", help="memory with a million images too")
    parser.add_argument("--victim", nargs=2, metavar=("DIR", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, metavar=("DIR", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not Path("/proc/self/status").is_file():
        raise UserError("Linux, which tells a process's resident memory", sys.platform, "run it there")
    if options.victim:
        return _victim(Path(options.victim[0]), int(options.victim[1]))
    if options.memory:
        print(json.dumps(_memory(Path(options.memory[0]), int(options.memory[1]))))
        return console.EXIT_OK

    from dual_encoder.runtime import Runtime

    report, runtime = (
        Report("embedding_job", {"images": options.images, "size": SIZE}),
        Runtime.load(options.bundle, threads=options.threads),
    )
    with tempfile.TemporaryDirectory() as directory:
        os.environ["DUAL_ENCODER_CACHE"] = directory  # no digest is known from an earlier run
        _throughput(runtime, Path(directory), options, report)
        _kills(Path(directory) / "kills", options.kills, report)
        _growth(Path(directory), [*options.tiny, *([LARGE] if options.large else [])], report)
    return report.finish(options.json)


def _throughput(runtime: Runtime, directory: Path, options: argparse.Namespace, report: Report) -> None:
    folder = directory / "photos"
    folder.mkdir()
    for number in range(options.images):
        (folder / f"{number:05}.jpg").write_bytes(_photograph(number))
    source = ImageFolder(folder)
    encoded = [pair.image.read() for pair in source]
    times: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    ways = _ways(runtime, source, encoded, directory)
    runtime.warm_up(1, BATCH)
    for turn in range(options.turns):
        names = list(ways)[:: 1 if turn % 2 else -1]  # there and back, so that a drift favours nobody
        for name in names:
            began, before = time.perf_counter(), time.process_time()
            ways[name]()
            times.setdefault(name, []).append(time.perf_counter() - began)
            processor.setdefault(name, []).append(time.process_time() - before)
    rates = {name: options.images / statistics.median(times[name]) for name in ways}
    report.figures["throughput"] = {"images_per_second": rates, "seconds": times, "processor_seconds": processor}
    used = {name: statistics.median(found) for name, found in processor.items()}
    rows = [[name, f"{rates[name]:.0f}", f"{1e3 * used[name] / options.images:.1f}"] for name in ways]
    console.print_table("throughput", ["way", "images/s", "processor ms an image"], rows)
    pairs = zip(times["job"], times["embed_images"], strict=True)
    report.figures["time_ratio"] = statistics.median(job / own for job, own in pairs)
    report.at_most("time of the job / of Runtime.embed_images", report.figures["time_ratio"], OVERHEAD)
    least = {name: min(found) for name, found in processor.items()}
    report.at_most(
        "processor time of the job / of Runtime.embed_images", least["job"] / least["embed_images"], OVERHEAD
    )
    apart = used["job"] / (used["pixels"] + used["decoding"])
    report.at_most("processor time of the job / of embedding pixels and of decoding", apart, OVERHEAD)


def _ways(
    runtime: Runtime, source: ImageFolder, encoded: list[bytes], directory: Path
) -> dict[str, Callable[[], object]]:
    preprocessing, shards = runtime.preprocessing, itertools.count()
    decoded = [load_resized(data, preprocessing) for data in encoded]
    batches = [normalise_batch(decoded[at : at + BATCH], preprocessing) for at in range(0, len(decoded), BATCH)]

    def decode() -> None:
        for _ in map_ordered(lambda data: load_resized(data, preprocessing), encoded, ahead=2 * BATCH):
            pass

    def run_job() -> None:
        job = EmbeddingJob(runtime, directory / f"shards-{next(shards)}", BATCH, SHARD)
        assert all(outcome.embedded for outcome in job.run(source))

    return {
        "pixels": lambda: [runtime.embed_pixels(batch) for batch in batches],
        "decoding": decode,
        "embed_images": lambda: runtime.embed_images(encoded),
        "job": run_job,
    }


def _photograph(seed: int) -> bytes:
    """A JPEG with detail on every scale."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    pixels = np.zeros((height, width, 3), np.float32)
    for side in (4, 16, 64, 256):
        layer = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        pixels += np.asarray(layer.resize(SIZE, Image.Resampling.BICUBIC), np.float32) / side**0.25
    buffer = io.BytesIO()
    Image.fromarray((pixels * (255 / pixels.max())).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class TinyRuntime:
    """A cheap model: pixels of 8×8 images times a fixed matrix; tells where a job is, and how many it embedded."""

    bundle, hubness, name, embedding_dim = None, None, "tiny", DIMENSION
    fingerprint = hashlib.sha256(b"tiny").hexdigest()
    preprocessing = ImagePreprocessing(size=TINY)

    def __init__(self, embedded: Callable[[int], None] = lambda _: None, staged: Callable[[], None] = lambda: None):
        self._embedded, self._staged = embedded, staged
        self._matrix = np.random.default_rng(1).normal(size=(TINY * TINY * 3, DIMENSION)).astype(np.float32)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, 8, 8, 3) to embeddings (B, D)."""
        rows = pixels.reshape(len(pixels), -1) @ self._matrix
        self._embedded(len(pixels))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_texts(self, texts: Sequence[str], shown: str | None = None) -> np.ndarray:
        """What the job asks for when everything is staged: embeddings (B, D) of images in place of the captions."""
        self._staged()
        pixels = [load_resized(_tiny(int(text)), self.preprocessing) for text in texts]
        return self.embed_pixels(normalise_batch(pixels, self.preprocessing))


class TinyImages:
    """`count` images made on demand, no two alike, around a few directions as real ones are."""

    def __init__(self, count: int) -> None:
        self.count, self.name = count, f"tiny:{count}"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ImageTextPair]:
        for number in range(self.count):
            image = ImageBytes(lambda number=number: _tiny(number))
            yield ImageTextPair(f"image/{number:09}.png", image, (str(number),), attributes={"number": number})


_BASIS = np.random.default_rng(2).normal(size=(LATENT, TINY * TINY * 3))


def _tiny(number: int) -> bytes:
    values = np.random.default_rng(number).normal(size=LATENT) @ _BASIS * 18 + 128
    buffer = io.BytesIO()
    pixels = values.clip(0, 255).astype(np.uint8).reshape(TINY, TINY, 3)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _victim(directory: Path, count: int) -> int:
    """Embed, and add the size of every batch to a file before it counts as done."""
    with (directory / "embedded").open("ab", buffering=0) as told:
        job = EmbeddingJob(TinyRuntime(lambda rows: told.write(b"%d\n" % rows) and None), directory / "shards")  # type: ignore[arg-type]
        for _ in job.run(TinyImages(count)):
            pass
    return console.EXIT_OK


def _kills(directory: Path, kills: int, report: Report) -> None:
    """Kill a job again and again until it is done; images that were embedded twice, for each kill."""
    directory.mkdir()
    told, count, chance = directory / "embedded", 40 * SHARD, random.Random(0)
    command = [sys.executable, "-m", "benchmarks.embedding_job", "--victim", str(directory), str(count)]
    repeated = []
    told.touch()
    for _ in range(kills):
        wanted = _sum(told) + chance.randrange(1, count // kills)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **CHEAP}) as job:
            while job.poll() is None and _sum(told) < wanted:
                time.sleep(0.001)
            job.send_signal(signal.SIGKILL)
        repeated.append(_sum(told) - SHARD * len(list((directory / "shards").glob("*.npz"))) - sum(repeated))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    report.figures["kills"] = {"images": count, "repeated": repeated, "embedded": _sum(told)}
    console.print_table("kills", ["kill", "images repeated"], list(enumerate(repeated, start=1)))
    report.at_least("images embedded for the first time", _sum(told) - sum(repeated), count)
    report.at_most("shards repeated after a kill, at most", max(repeated) / SHARD, 1)


def _sum(told: Path) -> int:
    return sum(int(line) for line in told.read_bytes().split(b"\n")[:-1])


class _Peak:
    """The highest resident memory in MB since it was last asked: all of it, and without the pages of files."""

    def __init__(self) -> None:
        self._highest = (0.0, 0.0)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._highest = tuple(map(max, self._highest, _resident()))  # type: ignore[assignment]
            time.sleep(0.02)

    def take(self) -> tuple[float, float]:
        highest, self._highest = self._highest, _resident()
        return highest


def _resident() -> tuple[float, float]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(fields["VmRSS"].split()[0]) / 1e3, int(fields["RssAnon"].split()[0]) / 1e3


def _memory(directory: Path, count: int) -> dict[str, Any]:
    """Build an index of `count` tiny images; seconds and peaks of its two halves, and bytes on the disk."""
    peak, times, peaks = _Peak(), [time.perf_counter()], []

    def staged() -> None:
        times.append(time.perf_counter())
        peaks.append(peak.take())

    build = build_index(TinyRuntime(staged=staged), TinyImages(count), directory)  # type: ignore[arg-type]
    staged()
    files = {path.name: path.stat().st_size for path in (directory / "snapshots").glob("*/*")}
    (all_embedding, embedding), (all_indexing, indexing) = peaks
    return {
        "images": build.indexed, "kind": build.index["kind"], "file_bytes": files,
        "embedding": {"seconds": times[1] - times[0], "memory_mb": embedding, "with_files_mb": all_embedding},
        "indexing": {"seconds": times[2] - times[1], "memory_mb": indexing, "with_files_mb": all_indexing},
    }  # fmt: skip


def _growth(directory: Path, counts: Sequence[int], report: Report) -> None:
    found = []
    for count in counts:
        console.say(f"building an index of {count:,} images")
        command = [
            sys.executable,
            "-m",
            "benchmarks.embedding_job",
            "--memory",
            str(directory / str(count)),
            str(count),
        ]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        run = subprocess.run(command, check=True, text=True, env={**os.environ, **CHEAP}, **output)  # type: ignore[call-overload]
        found.append(json.loads(run.stdout))
    for half in ("embedding", "indexing"):
        rows = [[f"{row['images']:,}", *(f"{value:.0f}" for value in row[half].values())] for row in found]
        console.print_table(half, ["images", "s", "MB", "MB with pages of files"], rows)
    names = sorted({name for row in found for name in row["file_bytes"]})
    rows = [
        [
            f"{row['images']:,}",
            *(f"{row['file_bytes'].get(name, 0) / row['images']:.0f}" for name in names),
            row["kind"],
        ]
        for row in found
    ]
    console.print_table("bytes an image on the disk", ["images", *names, "kind"], rows)
    report.figures["memory"] = found
    grown = max(row["embedding"]["memory_mb"] for row in found) - found[0]["embedding"]["memory_mb"]
    report.at_most(f"growth of memory while embedding, {counts[0]:,} to {max(counts):,} images, MB", grown, GROWTH_MB)


if __name__ == "__main__":
    console.run(main)
