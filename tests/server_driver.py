"""A search server over drawn pictures in a process of its own: `server_driver.py INDEX ADDRESS [WORD …] [FLAG …]`.

With the word `hold`, loading waits for a line on standard input; `page`, or `page=HOST:PORT`, serves the page too, and
`writable` accepts changes; `calibrated` tells probabilities. Flags are those of serving.server.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fakes import ColourRuntime

from data import console
from dual_encoder.calibration import Calibration
from serving.embedded_store import EmbeddedStore
from serving.index_upkeep import IndexUpkeep
from serving.search_engine import SearchEngine
from serving.server import serve
from serving.server_settings import read_arguments


class SteeredRuntime(ColourRuntime):
    """Fails on the text "break", as a defect would; on "wait" it says so and waits for a line on standard input."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if "break" in texts:
            raise RuntimeError("a secret path")
        if "wait" in texts:
            print("waiting", flush=True)
            sys.stdin.readline()
        return super().embed_texts(texts)


def main(argv: list[str] | None = None) -> int:
    index, address, *flags = sys.argv[1:]
    hold = "hold" in flags
    page = [word.partition("=")[2] or "127.0.0.1:0" for word in flags if word.startswith("page")]
    calibrated = "calibrated" in flags
    flags = [
        ("--writable" if word == "writable" else word) for word in flags if word[:4] not in ("hold", "page", "cali")
    ]
    flags += ["--address", address, "--grace", "5", *(["--http-address", page[0]] if page else [])]
    settings, _ = read_arguments(flags)
    IndexUpkeep.build_command = (sys.executable, str(Path(__file__).with_name("build_command.py")))

    def load() -> SearchEngine:
        if hold:
            sys.stdin.readline()
        runtime = SteeredRuntime()
        runtime.calibration = Calibration(-3.0, 12.0, 2.0, 0.1, 10, 1_000, 100) if calibrated else None
        store = EmbeddedStore.open(Path(index), runtime.fingerprint, writable=settings.writable)
        return SearchEngine(runtime, store)

    serve(settings, load)
    return 0


if __name__ == "__main__":
    console.run(main)
