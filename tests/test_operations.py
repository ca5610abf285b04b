"""Jobs in processes of their own: followed, waited for, stopped, kept, and one that publishes at a time."""

from __future__ import annotations

import asyncio
import sys

import pytest

from serving.operations import (
    AT_ONCE,
    KEPT,
    Job,
    OperationCancelled,
    OperationFailed,
    OperationNotFound,
    OperationRunning,
    Operations,
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


WAITING = python("import sys; print('ready', file=sys.stderr, flush=True); import time; time.sleep(60)")
STUBBORN = python(
    "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "print('ready', file=sys.stderr, flush=True); time.sleep(60)"
)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def ready(operation):
    while operation.progress != "ready":
        await asyncio.sleep(0.01)


def test_a_job_is_followed_to_its_result():
    async def main():
        operations = Operations()
        code = "import sys; print('one\\ntwo', file=sys.stderr); print('out')"
        job = Job(python(code), result=lambda ended: f"{ended.code} {ended.output.strip()} {ended.last_lines}")
        operation = operations.start("VerifyIndex", job)
        assert (operation.name, operation.done) == ("operations/1", False)
        await operation.wait(None)
        assert (operation.result, operation.progress) == ("0 out ('one', 'two')", "two")
        assert operation.done
        assert operation.error is None
        assert operation.end_time >= operation.create_time
        assert operations.get("operations/1") is operation
        with pytest.raises(OperationNotFound):
            operations.get("operations/2")

    run(main())


def test_a_long_line_is_no_harm():
    async def main():
        code = (
            "import sys; sys.stderr.write('x' * 1_000_000 + 'end\\n'); sys.stderr.write('last'); print('y' * 3_000_000)"
        )
        operation = Operations().start("VerifyIndex", Job(python(code), result=lambda ended: str(len(ended.output))))
        await operation.wait(None)
        assert (operation.progress, operation.result) == ("last", str(1 << 20))

    run(main())


def test_what_a_result_raises_is_the_error():
    async def main():
        def fail(ended):
            raise OperationFailed(ended.last_lines[-1], refused=ended.code == 2)

        operation = Operations().start("BuildIndex", Job(python("raise SystemExit('no')"), True, fail))
        await operation.wait(None)
        assert (str(operation.error), operation.error.refused) == ("no", False)

    run(main())


def test_one_that_publishes_runs_at_a_time_and_goes_over_before_it_is_done():
    async def main():
        operations, gone_over = Operations(), []

        async def go_over():
            gone_over.append(first.done)

        first = operations.start("PublishIndex", Job(python(""), True, after=go_over))
        with pytest.raises(OperationRunning, match="operations/1"):
            operations.start("BuildIndex", Job(python(""), True))
        verifying = operations.start("VerifyIndex", Job(python("")))
        await first.wait(None)
        assert gone_over == [False]
        second = operations.start("BuildIndex", Job(python(""), True))
        await asyncio.gather(second.wait(None), verifying.wait(None))
        assert [operation.name for operation in operations.newest_first()] == [f"operations/{n}" for n in (3, 2, 1)]

    run(main())


@pytest.mark.parametrize("command", [WAITING, STUBBORN], ids=["waiting", "stubborn"])
def test_a_job_that_is_cancelled_ends(command, monkeypatch):
    monkeypatch.setattr("serving.operations.STOP_SECONDS", 0.3)

    async def main():
        operations = Operations()
        operation = operations.start("PublishIndex", Job(command, True))
        await ready(operation)
        await operation.wait(0.01)
        assert not operation.done
        operations.cancel(operation.name)
        operations.cancel(operation.name)
        await operation.wait(None)
        assert isinstance(operation.error, OperationCancelled)
        operations.cancel(operation.name)  # done stays done
        operations.start("PublishIndex", Job(python(""), True))
        await operations.close()

    run(main())


def test_closing_stops_what_is_under_way():
    async def main():
        operations = Operations()
        started = [operations.start("VerifyIndex", Job(WAITING)) for _ in range(2)]
        await asyncio.gather(*map(ready, started))
        await operations.close()
        assert all(isinstance(operation.error, OperationCancelled) for operation in started)

    run(main())


def test_the_last_hundred_are_kept_and_none_that_runs_is_forgotten():
    async def main():
        operations = Operations()
        waiting = operations.start("VerifyIndex", Job(WAITING))
        await ready(waiting)
        for _ in range(KEPT + 3):
            operation = operations.start("VerifyIndex", Job(["true"]))
            await operation.wait(None)
        names = [operation.name for operation in operations.newest_first()]
        assert len(names) == KEPT
        assert (names[0], names[-1]) == (f"operations/{KEPT + 4}", "operations/1")
        await operations.close()

    run(main())


def test_no_more_run_at_once_than_a_machine_can_bear():
    async def main():
        operations = Operations()
        begun = [operations.start("VerifyIndex", Job(WAITING)) for _ in range(AT_ONCE)]
        with pytest.raises(OperationRunning) as refusal:
            operations.start("VerifyIndex", Job(WAITING))
        assert begun[0].name in str(refusal.value)
        operations.cancel(begun[1].name)
        await begun[1].wait(None)
        operations.start("VerifyIndex", Job(WAITING))
        await operations.close()

    run(main())
