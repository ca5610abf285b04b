"""Runs a peer's script in the peer's own environment and lets it take turns; knows no peer."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from data.errors import UserError

PEERS = Path(__file__).parent / "peers"
DEFAULT_PYTHON = Path("build/peers/bin/python")


def peer_python(path: Path) -> Path:
    """The interpreter that has the peers, or an error that says how to get one."""
    if not path.exists():
        raise UserError(
            "an environment with the packages of benchmarks/requirements.txt",
            f"no {path}",
            "make one with `make peers`, or give another's interpreter with --peer-python",
        )
    return path


class PeerProcess:
    """A script of `benchmarks/peers` that waits for its turns.

    It takes `settings` as a line of JSON on standard input and prints one JSON line about itself when it is ready. For
    each further line of input, a number of steps, it prints one JSON line: the seconds that took. It ends with it.
    """

    def __init__(self, python: Path, script: str, settings: dict[str, Any]) -> None:
        command = [str(python), str(PEERS / script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._send(json.dumps(settings))
        self.about: dict[str, Any] = self._answer()

    def seconds(self, steps: int) -> float:
        """Seconds that `steps` steps take."""
        self._send(str(steps))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended shows where its answer is read
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UserError("a peer that runs", f"exit code {code}; its message is above", "see benchmarks/peers")
        return json.loads(line)
