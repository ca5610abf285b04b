"""Work that takes longer than a call: jobs in processes of their own, followed, waited for and stopped; knows no index
and no gRPC.

Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

KEPT = 100
AT_ONCE = 4
STOP_SECONDS = 10.0  # for a job to clean up after SIGINT, before it is killed
MAX_LINE = 64 * 1024
MAX_OUTPUT = 1 << 20


class OperationNotFound(Exception):
    """There is no operation of this name, or none any more."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no operation is called {name!r}")
        self.name = name


class OperationRunning(Exception):
    """Another operation that publishes is under way."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is under way; one operation that publishes runs at a time")
        self.name = name


class OperationCancelled(Exception):
    """How an operation ends that was told to stop."""


class OperationFailed(Exception):
    """How an operation ends that could not be done; `refused` when what it was asked is at fault."""

    def __init__(self, message: str, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class Ended:
    """What a job left behind: its exit code, standard output, and the last lines of standard error."""

    code: int
    output: str
    last_lines: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A command, and what its end means: `result(ended)` is what it made, or raises why it failed.

    `after` runs when the command has succeeded, before the operation counts as done.
    """

    command: Sequence[str]
    publishes: bool = False
    result: Callable[[Ended], str] = lambda ended: ""
    after: Callable[[], Awaitable[None]] | None = None


@dataclass(eq=False)
class Operation:
    """Work that was begun; when `done`, either `error` or `result` tells how it ended."""

    name: str
    method: str
    publishes: bool
    create_time: datetime
    progress: str = ""
    end_time: datetime | None = None
    error: Exception | None = None
    result: str = ""
    done: bool = False
    _ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _stopping: bool = False

    async def wait(self, seconds: float | None) -> None:
        """Return when it is done, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)


class Operations:
    """The last operations, oldest ones forgotten first; one that publishes runs at a time.

    Example: `operation = operations.start("PublishIndex", Job(command, publishes=True))`.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, Operation] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._count = itertools.count(1)

    def start(self, method: str, job: Job) -> Operation:
        """Begin a job; `OperationRunning` when one that publishes runs and so would this, or `AT_ONCE` run."""
        running = [other for other in self._known.values() if not other.done]
        before = [other for other in running if job.publishes and other.publishes]
        if before or len(running) >= AT_ONCE:
            raise OperationRunning((before or running)[0].name)
        operation = Operation(f"operations/{next(self._count)}", method, job.publishes, datetime.now(UTC))
        self._known[operation.name] = operation
        task = self._tasks[operation.name] = asyncio.get_running_loop().create_task(self._run(operation, job))
        task.add_done_callback(lambda _: self._end(operation))
        self._forget()
        return operation

    def get(self, name: str) -> Operation:
        """The operation called `name`; `OperationNotFound`."""
        if name not in self._known:
            raise OperationNotFound(name)
        return self._known[name]

    def newest_first(self) -> list[Operation]:
        """All that are kept."""
        return list(self._known.values())[::-1]

    def cancel(self, name: str) -> None:
        """Tell an operation to stop; one that is done stays done."""
        operation = self.get(name)
        if not operation.done and not operation._stopping:
            operation._stopping = True
            self._tasks[name].cancel()

    async def close(self) -> None:
        """Stop what is under way, and wait until it has stopped."""
        tasks = list(self._tasks.values())
        for name in list(self._tasks):
            self.cancel(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, operation: Operation, job: Job) -> None:
        try:
            ended = await _follow(job.command, operation)
            operation._stopping = True  # what is done cannot be stopped any more
            operation.result = job.result(ended)
            if job.after is not None:
                await job.after()
        except asyncio.CancelledError:
            operation.error = OperationCancelled("it was told to stop")
        except Exception as error:
            operation.error = error
        self._end(operation)

    def _end(self, operation: Operation) -> None:
        """Note that an operation has ended; one that was told to stop before it began has done nothing."""
        if operation.done:
            return
        if operation.name in self._tasks and self._tasks[operation.name].cancelled():
            operation.error = OperationCancelled("it was told to stop")
        operation.end_time, operation.done = datetime.now(UTC), True
        operation._ended.set()
        del self._tasks[operation.name]

    def _forget(self) -> None:
        for name in [name for name, operation in self._known.items() if operation.done]:
            if len(self._known) <= KEPT:
                break
            del self._known[name]


async def _follow(command: Sequence[str], operation: Operation) -> Ended:
    """Run a command to its end; the lines it writes to standard error are its progress.

    When this is cancelled the process is interrupted, so that it can clean up, and this waits for its end.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, limit=MAX_LINE, start_new_session=True
    )
    lines: deque[str] = deque(maxlen=10)
    output = bytearray()

    async def read_progress() -> None:
        assert process.stderr is not None
        async for line in _lines(process.stderr):
            if text := line.decode("utf-8", "replace").strip():
                operation.progress = text
                lines.append(text)

    async def read_output() -> None:
        assert process.stdout is not None
        while chunk := await process.stdout.read(MAX_LINE):
            output.extend(chunk[: MAX_OUTPUT - len(output)])

    reading = asyncio.gather(read_progress(), read_output())
    try:
        await asyncio.shield(reading)
        code = await process.wait()
    except asyncio.CancelledError:
        await _stop(process)
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        if process.returncode != 0:  # else it was done before it could stop
            raise
        code = 0
    return Ended(code, output.decode("utf-8", "replace"), tuple(lines))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream; of one that is too long, the beginning is left out."""
    while True:
        try:
            line = await stream.readuntil()
        except asyncio.IncompleteReadError as end:
            if end.partial:
                yield end.partial
            return
        except asyncio.LimitOverrunError as error:
            await stream.readexactly(error.consumed or MAX_LINE)
            continue
        yield line


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
