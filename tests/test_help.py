"""`--help` of every tool answers at once: nothing heavy is imported before the arguments are parsed."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from chain import Machine

TOOLS = (
    "data.doctor",
    "data.prepare",
    "dual_encoder.train",
    "dual_encoder.correct_hubness",
    "dual_encoder.evaluate",
    "dual_encoder.export",
    "dual_encoder.half_precision",
    "dual_encoder.import_model",
    "dual_encoder.quantize",
    "dual_encoder.zero_shot",
    "serving.build_index",
    "serving.import_vectors",
    "serving.manage",
    "serving.server",
    "serving.tokens",
    "serving.client",
    "benchmarks.anchoring",
    "benchmarks.distillation",
    "benchmarks.embedding_job",
    "benchmarks.training_quality",
    "benchmarks.training_speed",
    "benchmarks.web",
    "tools.demo",
    "tools.screenshots",
)
HEAVY = re.compile(r"\|\s*(tensorflow|keras|faiss|onnxruntime|ray|pymilvus|pyarrow|torch)(\.|\s|$)", re.MULTILINE)

# The aim is one second on a quiet machine; importing TensorFlow alone takes more than this.
SECONDS = 3.0


@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_fast_and_imports_nothing_heavy(tool: str, tmp_path: Path):
    machine = Machine.at(tmp_path)
    started = time.monotonic()
    said = machine.done(tool, "--help", options=("-X", "importtime"))
    assert time.monotonic() - started < SECONDS
    assert said.output.startswith("usage: ")
    assert "import time:" in said.errors
    assert not HEAVY.search(said.errors), HEAVY.search(said.errors)


def test_the_guard_knows_what_is_heavy(tmp_path: Path):
    said = Machine.at(tmp_path).done("serving.faiss_index", options=("-X", "importtime"))
    assert HEAVY.search(said.errors)
