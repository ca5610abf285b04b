"""How command-line tools talk to people: progress, tables, errors and exit codes; knows no task of theirs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn, TypeVar

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from data.errors import UserError

T = TypeVar("T")

EXIT_OK = 0
EXIT_FAILED = 1  # the work was done and its result is bad, or something unforeseen happened
EXIT_REFUSED = 2  # the input or the settings were refused; nothing was changed
EXIT_INTERRUPTED = 130

_READABLE = 12  # letters that a column has room for, however many columns there are

# Reports go to standard error, so that standard output carries results only.
stderr = Console(stderr=True, soft_wrap=True, highlight=False)
stdout = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)


def say(message: str) -> None:
    """Print one line about what is going on, to standard error, without interpreting markup."""
    stderr.print(message, markup=False)


def progress(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    done: int = 0,
    quiet: bool = False,
    unit: str | None = None,
) -> Iterator[T]:
    """Yield `items` behind a progress bar with count, elapsed and remaining time, and `unit`s a second if it is named.

    `done` items are shown as finished before the first one. Where there is no terminal, one line says at the end how
    many there were; with `quiet`, nothing does, and the bar disappears when it is full.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([_RateColumn(unit)] if unit else []),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=quiet) as bar:
        task = bar.add_task(description, total=total, completed=done)
        count = done
        for item in items:
            yield item
            count += 1
            bar.advance(task)
    if not stderr.is_terminal and not quiet:
        rate = f" ({_rate((count - done) / (time.perf_counter() - start), unit)})" if unit and count > done else ""
        say(f"{description}: {count} done{rate}")


class _RateColumn(ProgressColumn):
    """How many items a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed, self.unit))


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table to standard output; numbers are aligned right. It is wider than the screen if it must be."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    materialised = [[str(cell) for cell in row] for row in rows]
    least = 1  # the width that all columns need, with their borders
    for position, column in enumerate(columns):
        cells = [row[position] for row in materialised]
        numeric = all(cell[:1].isdigit() or cell[:1] in "-+." or cell == "" for cell in cells) if cells else False
        longest = max(map(cell_len, [column, *cells]))
        needed = longest if numeric else min(longest, _READABLE)
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(column, justify=justify, no_wrap=numeric, overflow="fold", min_width=needed)
        least += needed + 3
    for row in materialised:
        table.add_row(*(Text(cell) for cell in row))  # a caption's brackets are no markup
    Console(width=max(stdout.width, least), soft_wrap=True, highlight=False).print(table)


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run a tool's `main` and exit: 0 done, 1 failed, 2 refused with the reason, 130 interrupted.

    Should native code end the process, where every thread stood is written to standard error first.
    """
    with contextlib.suppress(RuntimeError, OSError):  # there is no standard error
        faulthandler.enable()
    try:
        code = main(None) or EXIT_OK
        sys.stdout.flush()
    except UserError as error:
        say(f"error: expected {error.expected}")
        say(f"       received {error.received}")
        say(f"       {error.next_step}")
        code = EXIT_REFUSED
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    except OSError as error:
        if error.errno is None:
            raise
        say(f"error: {error.strerror}: {error.filename or 'while writing'}")
        say("       finished parts are kept; free the resource and run the same command again")
        code = EXIT_FAILED
    sys.exit(code)
