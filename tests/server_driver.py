"""A search server over drawn pictures in a process of its own: `server_driver.py INDEX ADDRESS [WORD …] [FLAG …]`.

With the word `hold`, loading waits for a line on standard input; `page`, or `page=HOST:PORT`, serves the page too, and
`writable` accepts changes; `calibrated` tells probabilities; `isolated` decodes images in other processes; with
`narrow`, one text at a time finds room; `in_place` answers where calls are taken, as servers do, but then a text that
waits keeps everybody. Flags are those of serving.server.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fakes import ColourRuntime, TurnedRuntime

from data import console
from data.errors import BundleError
from dual_encoder.calibration import Calibration
from serving import batcher
from serving.batcher import QueueLimits
from serving.index_upkeep import IndexUpkeep
from serving.isolated_decoding import IsolatedDecoder
from serving.search_engine import SearchEngine
from serving.server import serve
from serving.server_settings import ServerSettings, read_arguments
from serving.snapshot import SNAPSHOTS, current_name, read_manifest
from serving.unit_loader import UnitLoader


class SteeredRuntime(ColourRuntime):
    """Fails on the text "break", as a defect would; on one that begins with "wait" it says so and waits for a line, and
    on one that begins with "where" it tells its thread."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if "break" in texts:
            raise RuntimeError("a secret path")
        if any(text.startswith("wait") for text in texts):
            print("waiting", flush=True)
            sys.stdin.readline()
        if any(text.startswith("where") for text in texts):
            print(threading.current_thread().name, flush=True)
        return super().embed_texts(texts)


class SteeredTurnedRuntime(TurnedRuntime, SteeredRuntime):
    """Another model, steered in the same way."""


class ColourLoader(UnitLoader):
    """Knows two models by their fingerprints, without bundles."""

    def __init__(self, index: Path, settings: ServerSettings, words: set[str], decoder: IsolatedDecoder | None) -> None:
        super().__init__(dataclasses.replace(settings, index=index), decoder)
        self._words = words

    def load(self) -> SearchEngine:
        """The first unit, when loading need not wait any more."""
        if "hold" in self._words:
            sys.stdin.readline()
        engine = super().load()
        if "narrow" in self._words:
            engine.encoder.texts.limits = QueueLimits(items=1)
        return engine

    def runtime(self, index: Path) -> ColourRuntime:
        """The model of the live snapshot; one that is not known cannot be loaded."""
        name = current_name(index)
        if name is None:
            return SteeredRuntime()
        fingerprint = read_manifest(index / SNAPSHOTS / name)[0].model_fingerprint
        for model in (SteeredRuntime, SteeredTurnedRuntime):
            if (runtime := model()).fingerprint == fingerprint:
                if "calibrated" in self._words:
                    runtime.calibration = Calibration(-3.0, 12.0, 2.0, 0.1, 10, 1_000, 100)
                return runtime
        raise BundleError("a known model", fingerprint, "use another one")


def main(argv: list[str] | None = None) -> int:
    index, address, *flags = sys.argv[1:]
    page = [word.partition("=")[2] or "127.0.0.1:0" for word in flags if word.startswith("page")]
    words = {word for word in flags if word in ("hold", "calibrated", "isolated", "narrow", "in_place")}
    flags = [
        "--writable" if word == "writable" else word
        for word in flags
        if word not in words and not word.startswith("page")
    ]
    flags += ["--address", address, "--grace", "5", *(["--http-address", page[0]] if page else [])]
    settings, _ = read_arguments(flags)
    if "in_place" not in words:
        batcher.HERE_SECONDS = 0.0
    IndexUpkeep.build_command = (sys.executable, str(Path(__file__).with_name("build_command.py")))

    decoder = IsolatedDecoder() if "isolated" in words else None
    serve(settings, ColourLoader(Path(index), settings, words, decoder))
    if decoder is not None:
        decoder.close()
    return 0


if __name__ == "__main__":
    console.run(main)
