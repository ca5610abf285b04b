"""Two devices give the loss, gradients and weights of one on the same batch, and a run moves between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server_process import ROOT

from data.errors import TrainingError
from dual_encoder.replicas import Replicas

QUICK = ["InfoNCE in chunks"]
SLOW = [
    "InfoNCE",
    "InfoNCE, every setting",
    "sigmoid",
    "whole towers",
    "taught, in chunks",
    "sigmoid, whole towers in chunks",
    "Keras example",
]
HALF = ["float16 in chunks", "bfloat16 in chunks", "float16"]  # float16 has eleven bits, bfloat16 eight
QUICK_OTHERS, OTHERS = ["overflow", "too few rows"], ["resume", "command"]


def run_driver(directory: Path, cases: list[str]) -> dict[str, Any]:
    """What a process with two logical CPU devices finds."""
    driver = [sys.executable, str(ROOT / "tests" / "replicas_driver.py"), str(directory), *cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(driver, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_driver(tmp_path_factory.mktemp("replicas"), [*QUICK, *QUICK_OTHERS])


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_driver(tmp_path_factory.mktemp("replicas"), [*SLOW, *HALF, *OTHERS])


def assert_same(figures: dict[str, float], tolerance: float) -> None:
    """Of the largest number of an array; Adam's moments after the first step are the gradients.

    Four steps of Adam, which divides by a gradient's own size, make ten times as much of a difference.
    """
    assert figures["loss"] < tolerance
    assert figures["gradients"] < tolerance
    assert figures["end"] < 10 * tolerance
    assert figures["moved"] > 0.1


@pytest.mark.slow
# Float32 sums in another order. Without dropout, which draws the same on every device.
@pytest.mark.parametrize("case", QUICK)
def test_two_replicas_train_as_one(found: dict[str, Any], case: str) -> None:
    assert_same(found[case], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_two_replicas_train_as_one_by_every_objective(more: dict[str, Any], case: str) -> None:
    assert_same(more[case], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", HALF)
def test_two_replicas_train_as_one_in_half_precision(more: dict[str, Any], case: str) -> None:
    assert_same(more[case], 2e-3 if case == "float16 in chunks" else 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", ["on two", "on one"])
def test_a_run_goes_on_with_another_number_of_devices(more: dict[str, Any], replicas: str) -> None:
    assert more["resume"][replicas] < 1e-5


@pytest.mark.slow
def test_an_overflow_on_one_device_skips_the_step_on_all(found: dict[str, Any]) -> None:
    assert found["overflow"] == {"weight": [1.0, 0.25, 0.25], "scale": [2.0**15, 2.0**15, 2.0**14]}


@pytest.mark.slow
def test_a_batch_of_fewer_rows_than_devices_is_refused(found: dict[str, Any]) -> None:
    assert "at least one row for each of 2 devices" in found["too few rows"]


@pytest.mark.slow
def test_the_command_trains_on_several_devices_and_publishes_a_model_for_one(more: dict[str, Any]) -> None:
    assert more["command"] == {"image": "onnxruntime", "text": "onnxruntime"}


def test_more_devices_than_there_are_is_refused() -> None:
    for wanted in (0, 99):
        with pytest.raises(TrainingError, match="correct --devices"):
            Replicas.on_gpus(wanted)
