"""TensorFlow's own lines stay out of a tool's output, and come out when they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ROOT

# Stands for TensorFlow in a process of its own: writes to the descriptor, as its C++ does.
PACKAGE = """
import os
os.write(2, b"E0000 noise from C++\\n")
{end}
class config:
    list_physical_devices = staticmethod(lambda: os.write(2, b"no GPU here\\n"))
"""


def load(tmp_path: Path, end: str = "", program: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tensorflow.py").write_text(PACKAGE.format(end=end))
    own = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", f"from data.quiet_tensorflow import load_tensorflow\nload_tensorflow()\n{program}"],
        env={**own, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_nothing_is_printed_and_later_lines_are_seen(tmp_path: Path) -> None:
    result = load(tmp_path, program="import os, sys; print('after', file=sys.stderr); os.write(2, b'below\\n')")
    assert (result.returncode, result.stderr, result.stdout) == (0, "after\nbelow\n", "")


@pytest.mark.parametrize("end", ["raise ImportError('libcudart is missing')", "raise SystemExit(3)"])
def test_a_failing_import_shows_what_was_written(tmp_path: Path, end: str) -> None:
    result = load(tmp_path, end)
    assert result.returncode != 0
    assert "noise from C++" in result.stderr


def test_a_user_who_asks_for_the_lines_gets_them(tmp_path: Path) -> None:
    assert "noise from C++" in load(tmp_path, TF_CPP_MIN_LOG_LEVEL="0").stderr
    assert load(tmp_path, TF_CPP_MIN_LOG_LEVEL="3").stderr == ""  # as inherited from a quiet process


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    result = load(tmp_path, program="load_tensorflow(); import tensorflow; print(tensorflow.__name__)")
    assert (result.stdout, result.stderr) == ("tensorflow\n", "")
