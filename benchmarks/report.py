"""How a benchmark tells what it measured: the machine, the versions, its tables and its checks."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data import console
from data.durable import write_json

PACKAGES = ("tensorflow", "keras", "onnxruntime", "faiss-cpu", "grpcio", "numpy", "pillow")


@dataclass(frozen=True)
class Check:
    """One promise: its measured value, its target and whether it holds."""

    name: str
    value: float
    target: str
    holds: bool


@dataclass
class Report:
    """What one run of a benchmark found."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def at_least(self, name: str, value: float, target: float) -> None:
        """Add a check that `value` reaches `target`."""
        self.checks.append(Check(name, value, f"≥ {target:g}", value >= target))

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Add a check that `value` does not pass `limit`."""
        self.checks.append(Check(name, value, f"≤ {limit:g}", value <= limit))

    def finish(self, path: Path | None) -> int:
        """Print the checks, write the JSON report, and give the exit code: 0 when every check holds."""
        rows = [[c.name, f"{c.value:.3g}", c.target, "yes" if c.holds else "NO"] for c in self.checks]
        console.print_table("checks", ["name", "value", "target", "holds"], rows)
        if path is not None:
            write_json(path, {"benchmark": self.name, **environment(), "figures": self.figures, "checks": self._rows()})
            console.say(f"written: {path}")
        return console.EXIT_OK if all(check.holds for check in self.checks) else console.EXIT_FAILED

    def _rows(self) -> list[Mapping[str, Any]]:
        return [asdict(check) for check in self.checks]


def environment() -> dict[str, Any]:
    """The machine, the versions and the command of this run."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", *_module(sys.argv)]),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def argument_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write figures and checks to this file")
    return parser


def _module(arguments: Sequence[str]) -> list[str]:
    return [f"benchmarks.{Path(arguments[0]).stem}", *arguments[1:]]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
