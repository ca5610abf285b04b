"""The demonstration behind `make demo`: runs the real commands one after the other, then asks the real server.

With --images it indexes a folder by the untrained default model instead of training on emoji.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import console
from data.errors import SourceError
from serving.client import SearchClient
from serving.network import join_address, split_address

BUILD = Path("build")
HITS = 5


@dataclass(frozen=True)
class Question:
    """A query and the emoji of which one must come first for the answer to be right."""

    text: str
    right: str


# Said in other words than the captions say it, so that answering takes more than matching strings.
QUESTIONS = (
    Question("a juicy apple", "🍎🍏"),
    Question("somebody riding a bike", "🚴🚵🚲"),
    Question("a birthday cake with candles", "🎂"),
    Question("someone playing the violin", "🎻"),
    Question("fireworks in the night sky", "🎆🎇"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns 1 when an answer is wrong."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--mode", choices=("serve", "check"), default="serve")
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--http-address", default="127.0.0.1:8080", help="of the page; the next free port is taken")
    parser.add_argument("--images", type=Path, help="a folder of your own pictures")
    options = parser.parse_args(argv)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server is stopped too
    # A check must not depend on a free port.
    address = "127.0.0.1:0" if options.mode == "check" else options.address
    http_address = "127.0.0.1:0" if options.mode == "check" else _free(options.http_address)
    index = _own_folder(options.images) if options.images else _emoji()
    with _server(index, address, http_address) as (process, real_address, page):
        console.say(f"ready after {time.monotonic() - started:.0f} s")
        good = _ask(real_address, index, QUESTIONS if not options.images else ())
        if options.mode == "check":
            return console.EXIT_OK if good else console.EXIT_FAILED
        _say_how_to_query(real_address, page)
        return _serve_until_interrupted(process)


def _emoji() -> Path:
    """Prepare, train, evaluate and index the emoji data set; finished steps find their results and are short."""
    pairs, bundle, index = BUILD / "demo" / "pairs", BUILD / "demo" / "model", BUILD / "demo" / "index"
    _run("data.prepare", "--data", "emoji", "--out", pairs, "--overwrite")
    _run("dual_encoder.train", "--recipe", "emoji_demo", "--data", pairs, "--out", bundle)
    _run("dual_encoder.evaluate", "--bundle", bundle, "--data", pairs, "--json", BUILD / "demo" / "metrics.json")
    _run("serving.build_index", "--bundle", bundle, "--data", pairs, "--out", index)
    return index


def _own_folder(images: Path) -> Path:
    """Index a folder by the default model."""
    images = images.expanduser().resolve()
    if not images.is_dir():
        raise SourceError("a folder of images", f"{images}, which is none", "give IMAGES=DIR an existing folder")
    index = BUILD / "images" / hashlib.sha256(str(images).encode()).hexdigest()[:12]
    _run("serving.build_index", "--bundle", "default", "--data", f"folder:{images}", "--out", index)
    return index


def _run(module: str, *arguments: object) -> None:
    """Run one of the project's commands, showing it; ends the demonstration with its exit code if it fails."""
    shown = " ".join(str(argument) for argument in arguments)
    console.say(f"\n$ python -m {module} {shown}")
    code = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=False).returncode
    if code:
        sys.exit(code)


@contextlib.contextmanager
def _server(index: Path, address: str, http_address: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A running server, its real address and that of its page; stopped by SIGTERM at the end."""
    command = ["serving.server", "--index", str(index), "--address", address, "--http-address", http_address]
    console.say(f"\n$ python -m {' '.join(command)}")
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.fullmatch(r"listening on (\S+)\s*", line):
                address = found[1]
            if found := re.fullmatch(r"page on (\S+)\s*", line):
                with SearchClient(address) as client:
                    client.wait_until_ready(timeout=120)
                yield process, address, found[1]
                break
        else:
            sys.exit(process.wait() or console.EXIT_FAILED)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _ask(address: str, index: Path, questions: Sequence[Question]) -> bool:
    """Ask the questions, print ranked answers, and say whether all are right and equal to the exact reference."""
    good = True
    with SearchClient(address) as client:
        status = client.status()
        console.say(f"{status.image_count:,} images, index {status.kind}, model {status.model_name}")
        if not questions:
            return status.image_count > 0
        for question, exact in zip(questions, _exact_answers(client, index, questions, HITS), strict=True):
            hits = client.search(question.text, k=HITS)
            # Only the first character counts: what may follow tells a man from a woman.
            right = str(hits[0].attributes["emoji"])[0] in question.right
            same = [hit.image_id for hit in hits] == exact
            good = good and right and same
            verdict = "right" if right else f"wrong, expected one of {question.right}"
            rows = [
                [rank, f"{hit.score:.3f}", hit.attributes.get("emoji", ""), hit.captions[0] if hit.captions else ""]
                for rank, hit in enumerate(hits, 1)
            ]
            title = f"“{question.text}”: {verdict}; {'equal to' if same else 'DIFFERENT FROM'} the exact reference"
            console.print_table(title, ["rank", "score", "emoji", "caption"], rows)
    return good


def _exact_answers(client: SearchClient, index: Path, questions: Sequence[Question], k: int) -> list[list[str]]:
    """The image ids that brute force over the stored vectors gives, best first."""
    import numpy as np

    from serving.embedded_store import EmbeddedStore

    store = EmbeddedStore.open(index, client.status().model_revision, writable=False)
    queries = np.array(client.embed_texts([question.text for question in questions]), np.float32)
    with store.view() as view:
        answers = [[hit.image_id for hit in found] for found in view.search(queries, k, exact=True, by_text=True)]
    store.close()
    return answers


def _free(address: str) -> str:
    """The address, with the first port from its own on that is free."""
    host, first = split_address(address, "--http-address", "127.0.0.1:8080")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, min(first + 100, 65_536)):
        with contextlib.suppress(OSError), socket.create_server((host, port), family=family):
            return join_address(host, port)
    return join_address(host, 0)


def _say_how_to_query(address: str, page: str) -> None:
    python = os.path.relpath(sys.executable)
    console.say(f"\nThe server goes on. Search in a browser: {page}")
    console.say("Or in another terminal:")
    console.say(f'  {python} -m serving.client search "somebody riding a bike" --address {address}')
    console.say(f"  {python} -m serving.client search-image PICTURE.jpg --address {address}")
    console.say("Ctrl-C stops it.")


def _serve_until_interrupted(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        console.say("stopping …")
        return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
