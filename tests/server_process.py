"""Starts tests/server_driver.py on a free port for tests of the service and of the client."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "tests" / "server_driver.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def held(process: subprocess.Popen) -> Iterator[None]:
    """What is asked for inside, a text that begins with "wait", has no answer before the end."""
    yield
    assert process.stdout.readline() == "waiting\n"
    process.stdin.write("\n")
    process.stdin.flush()


@contextlib.contextmanager
def running(index: Path, *hold: str, address: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process and its address."""
    process = subprocess.Popen(
        [*COMMAND, str(index), address, *hold], env=ENVIRONMENT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), process.stderr.read()
        yield process, line.removeprefix("listening on ").strip()
    finally:
        process.kill()
        process.communicate()
