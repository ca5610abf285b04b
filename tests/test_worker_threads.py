"""The threads that a session begins are known, and leave the core of who wakes them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from dual_encoder.worker_threads import WorkerThreads

CORES = os.sched_getaffinity(0) if sys.platform == "linux" else set()
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="threads are moved on Linux, where there are two cores or more")


@contextmanager
def two_threads() -> Iterator[tuple[list[int], WorkerThreads]]:
    """Two that were begun for us, and one beside them that was not."""
    over = threading.Event()

    def make() -> list[int]:
        threads = [threading.Thread(target=over.wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        return [thread.native_id for thread in threads]

    other = threading.Thread(target=over.wait)
    other.start()
    try:
        made, workers = WorkerThreads.begun_by(make)
        yield [*made, other.native_id], workers
    finally:
        over.set()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def test_they_leave_the_core_of_who_wakes_them_and_no_other_thread_does():
    with two_threads() as ((first, second, other), workers):
        for core in (min(CORES), max(CORES), max(CORES), min(CORES)):
            with on_core(core):
                workers.leave_core()
            assert [os.sched_getaffinity(number) for number in (first, second, other)] == [
                CORES - {core},
                CORES - {core},
                CORES,
            ]


def test_threads_that_have_ended_are_left_alone():
    with two_threads() as (_, workers):
        pass
    for number in workers._threads:
        while os.path.exists(f"/proc/self/task/{number}"):  # noqa: PTH110
            threading.Event().wait(0.001)
    workers.leave_core()
    assert not workers._threads


def test_what_cannot_be_made_is_told():
    def fail() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        WorkerThreads.begun_by(fail)


def test_an_engine_knows_its_threads(tmp_path):
    """And has them leave the core of its caller before a run, or ONNX Runtime begins them in another way by now."""
    onnx = pytest.importorskip("onnx")
    from dual_encoder.engines import OnnxEngine

    rows = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [rows],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "relu.onnx")
    engine = OnnxEngine(tmp_path / "relu.onnx", threads=2)
    (thread,) = engine._workers._threads
    for core in (min(CORES), max(CORES)):
        with on_core(core):
            engine.run({"x": np.ones((1, 4), np.float32)})
        assert os.sched_getaffinity(thread) == CORES - {core}
    assert OnnxEngine(tmp_path / "relu.onnx", threads=1)._workers._threads == []
