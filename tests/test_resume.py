"""Training by the real command, killed again and again at random moments, ends with the bits of a run left alone.

Real pictures through the pixel path, one backbone that trains and one that stands still, dropout in both heads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from server_process import ROOT
from shapes import write_shapes

from dual_encoder.bundle import open_bundle
from dual_encoder.trainer import CHECKPOINT

RECIPE = """
import dataclasses
import shapes
from dual_encoder.projection_head import LinearHead

MODEL = dataclasses.replace(
    shapes.RECIPE.model,
    text_backbone=shapes.FROZEN.model.text_backbone,
    image_head=LinearHead(embedding_dim=16, dropout=0.3),
    text_head=LinearHead(embedding_dim=16, dropout=0.3),
)
RECIPE = dataclasses.replace(shapes.RECIPE, model=MODEL).with_settings(epochs=4)
"""
LINES = 40  # steps and writes of a whole run
KILLS = 10


class Command:
    """The command on one data set, each bundle in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.data = directory, write_shapes(directory / "data")
        (directory / "recipe.py").write_text(RECIPE, "utf-8")

    def start(self, bundle: str) -> subprocess.Popen[str]:
        driver = [sys.executable, str(ROOT / "tests" / "resume_driver.py")]
        given = [
            "--recipe",
            str(self.directory / "recipe.py"),
            "--data",
            self.data,
            "--out",
            str(self.directory / bundle),
        ]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        return subprocess.Popen([*driver, *given], **pipes)  # type: ignore[call-overload]

    def done(self, bundle: str) -> list[str]:
        """Run to the end; what was told."""
        with self.start(bundle) as process:
            told, errors = process.communicate()
        assert process.returncode == 0, errors
        return told.splitlines()

    def kill(self, bundle: str, after: int) -> int:
        """Kill a run once it has told `after` lines; how many it told, fewer where it was through before."""
        with self.start(bundle) as process:
            assert process.stdout is not None
            told = [line for line in (process.stdout.readline() for _ in range(after)) if line]
            process.send_signal(signal.SIGKILL)
            process.communicate()
        return len(told)

    def left(self, bundle: str) -> dict[str, Any]:
        """The model, and what the last checkpoint holds: weights, optimizer, generators, history."""
        path = self.directory / bundle
        with safe_open(path.with_name(path.name + ".run") / CHECKPOINT, framework="numpy") as file:
            names, progress = list(file.keys()), json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name).tobytes() for name in names}
        return {"fingerprint": open_bundle(path).fingerprint, "progress": progress, **tensors}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def straight(command: Command) -> dict[str, Any]:
    """What a run leaves that nothing interrupts."""
    told = command.done("straight")
    assert told.count("write") == len([line for line in told if line.startswith("step")]) + 5, "epochs, and the end"
    return command.left("straight")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_very_same_model(
    command: Command, straight: dict[str, Any]
) -> None:
    bundle, seed = "killed", random.randrange(10**6)
    moments = random.Random(seed)
    for number in range(KILLS):
        # Spread over the whole run: what was told before a kill is done, but for one step or write.
        command.kill(bundle, after=1 + moments.randrange(LINES // KILLS))
        assert not (command.directory / bundle).exists(), f"seed {seed}: through after {number} kills"
    command.done(bundle)
    left = command.left(bundle)
    assert left.keys() == straight.keys()
    assert [name for name in left if left[name] != straight[name]] == [], f"seed {seed}"
