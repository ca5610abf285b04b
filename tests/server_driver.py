"""A search server over drawn pictures in a process of its own: `server_driver.py INDEX ADDRESS WORDS`.

With the word `hold`, loading waits for a line on standard input; with `writable`, changes are accepted. `page`, or
`page=HOST:PORT`, serves the page too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fakes import ColourRuntime

from data import console
from serving.embedded_store import EmbeddedStore
from serving.search_engine import SearchEngine
from serving.server import serve
from serving.web.http_settings import HttpSettings


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
    index, address, *words = sys.argv[1:]
    page = [word.partition("=")[2] or "127.0.0.1:0" for word in words if word.startswith("page")]

    def load() -> SearchEngine:
        if "hold" in words:
            sys.stdin.readline()
        runtime = SteeredRuntime()
        store = EmbeddedStore.open(Path(index), runtime.fingerprint, writable="writable" in words)
        return SearchEngine(runtime, store)

    serve(address, load, grace=5.0, http=HttpSettings(page[0]) if page else None)
    return 0


if __name__ == "__main__":
    console.run(main)
