"""Builds an index of drawn pictures in a process of its own, telling each step, so that a test can kill it anywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from fakes import ColourRuntime, ListSource, colour_pair

from data import console
from serving.index_job import BuildSettings, build_index


class TellingRuntime(ColourRuntime):
    """Prints a line before each batch and waits for a line on standard input before it goes on."""

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        print("batch", flush=True)
        sys.stdin.readline()
        return super().embed_pixels(pixels)


def main(argv: list[str] | None = None) -> int:
    out, count = sys.argv[1:]
    runtime = TellingRuntime()
    source = ListSource([colour_pair(number) for number in range(int(count))], f"colours:{count}")
    report = build_index(runtime, source, Path(out), BuildSettings(batch_size=5, shard_size=10))
    print(f"embedded {runtime.embedded} reused {report.reused_shards} snapshot {report.snapshot}", flush=True)
    return 0


if __name__ == "__main__":
    console.run(main)
