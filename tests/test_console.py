"""Tools talk to people in sentences and to scripts in exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data import console


def run_tool(body: str, *, pipe_to: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `console.run` on a `main` with this body in a process of its own."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"from data import console\nfrom data.errors import *\ndef main(argv=None):\n{lines}\nconsole.run(main)\n"
    command = [sys.executable, "-c", code]
    if pipe_to:
        script = f'set -o pipefail; "$0" -c "$1" | {pipe_to}'
        command = ["bash", "-c", script, sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return None", 0),
        ("return 0", 0),
        ("return 1", 1),
        ("raise SourceError('a', 'b', 'c')", 2),
        ("raise KeyboardInterrupt", 130),
        ("raise OSError(28, 'No space left on device', 'out/x')", 1),
        ("raise RuntimeError('unforeseen')", 1),
        ("import sys; sys.exit(2)", 2),
    ],
)
def test_exit_codes(body: str, code: int) -> None:
    assert run_tool(body).returncode == code


def test_a_refusal_says_expected_received_and_what_to_do() -> None:
    done = run_tool("raise SourceError('a folder [of] images', 'none at /x[/y]', 'check the path')")
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: expected a folder [of] images",
        "       received none at /x[/y]",
        "       check the path",
    ]


def test_a_full_disk_is_told_without_a_traceback() -> None:
    done = run_tool("open('/dev/full', 'w', buffering=1).write('x\\n')")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    assert "RuntimeError: unforeseen" in run_tool("raise RuntimeError('unforeseen')").stderr


def test_a_crash_in_native_code_says_where() -> None:
    done = run_tool("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
    assert 'File "<string>", line 5 in main' in done.stderr


def test_without_standard_error_tools_still_work() -> None:
    command = [sys.executable, "-c", "from data import console\nconsole.run(lambda argv: print('done'))"]
    done = subprocess.run(["bash", "-c", '"$@" 2>&-', "bash", *command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_closed_pipe_is_no_error() -> None:
    done = run_tool("for n in range(100000):\n    print(n)", pipe_to="head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_results_go_to_standard_output_and_reports_to_standard_error() -> None:
    body = (
        "console.say('working on [a] thing')\n"
        "total = sum(console.progress([1, 2, 3], 'adding'))\n"
        "console.print_table('[sums]', ('what', 'value'), [('total [bold]', total), ('other', 12.5)])"
    )
    done = run_tool(body)
    assert done.returncode == 0
    assert done.stderr == "working on [a] thing\nadding: 3 done\n"
    for text in ("[sums]", "total [bold]", "6", "12.5"):
        assert text in done.stdout


def test_a_table_of_many_columns_loses_none(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [f"number {n}" for n in range(16)]
    console.print_table(
        "many", ["engine", *numbers, "settings"], [["ours", *range(16), "nprobe 384, proposed 700"]] * 2
    )
    console.print_table("few", ["path", "images"], [["x" * 300, 7]])
    many, few = capsys.readouterr().out.split("few\n")
    for shown in ("engine", *numbers, "settings", "ours", "nprobe 384,", "proposed 700"):
        assert shown in many
    assert max(map(len, few.splitlines())) == 120  # a long text is folded


def test_progress_passes_everything_on_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.progress(iter("abc"), "reading", total=5, done=2)) == ["a", "b", "c"]
    assert list(console.progress([], "nothing", quiet=True)) == []
    assert capsys.readouterr().err == "reading: 5 done\n"


def test_progress_tells_the_rate_of_this_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 12.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(times))
    list(console.progress("abcd", "reading", total=5, done=1, unit="images"))
    assert capsys.readouterr().err == "reading: 5 done (2.0 images/s)\n"


def test_progress_is_lazy() -> None:
    taken = []

    def items() -> object:
        for number in range(10):
            taken.append(number)
            yield number

    iterator = console.progress(items(), "reading", quiet=True)  # type: ignore[arg-type]
    assert next(iterator) == 0
    assert taken == [0]


def test_numbers_are_aligned_right(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table("t", ("name", "value"), [("a", 1), ("b", 1000)])
    lines = capsys.readouterr().out.splitlines()
    (one,), (thousand,) = ([line for line in lines if f" {name} " in line] for name in "ab")
    assert one.rstrip("│ ").endswith("   1")
    assert thousand.rstrip("│ ").endswith("1000")
    assert len(one) == len(thousand)


def test_importing_the_console_is_quick_work() -> None:
    code = "import sys, data.console; print('tensorflow' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == "False False\n"
