"""Scores of a part are read where nothing changed, made anew where anything did, and a killed run goes on from them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.durable import CACHE_VARIABLE
from dual_encoder.kept_scores import digest_of, kept_in_cache
from dual_encoder.pair_scores import Part, Scores

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "pair_scores"


def part() -> Part:
    random = np.random.default_rng(0)
    features = (random.normal(size=(6, size)).astype(np.float32) for size in (5, 3, 3))
    return Part(*features, np.arange(6), np.arange(6) % 5, np.ones(6), 10.0, np.random.default_rng(1))


class Scorer:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, part: Part) -> Scores:
        self.asked += 1
        return np.full((6, 4), part.penalty), part.random.normal(size=(6, 4))


def test_a_part_is_scored_once(cache: Path) -> None:
    scorer = Scorer()
    first = kept_in_cache(scorer)(part())
    again = kept_in_cache(scorer)(part())
    assert scorer.asked == 1
    np.testing.assert_array_equal(first, again)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    np.testing.assert_array_equal(kept_in_cache(scorer)(part()), first)
    assert scorer.asked == 2, "a damaged file is made again"


def test_every_number_that_scores_depend_on_names_them() -> None:
    same = part()
    others = [
        replace(same, images=same.images + np.float32(1e-6)),
        replace(same, captions=same.captions[:, ::-1]),
        replace(same, named=None),
        replace(same, group=same.group + 1),
        replace(same, fold=same.fold[::-1]),
        replace(same, trust=same.trust * 0.5),
        replace(same, penalty=5.0),
        replace(same, random=np.random.default_rng(2)),
    ]
    digests = {digest_of(one) for one in (same, part(), *others)}
    assert len(digests) == 1 + len(others)


def drive(out: Path, cache: Path, killed_at: int = 0, ask: int = 0) -> subprocess.Popen[str]:
    """The doctor in a process that kills itself, or waits to be interrupted, at the scoring of a part."""
    arguments = [str(ROOT / "tests/doctor_driver.py"), str(out), str(killed_at), str(ask)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), CACHE_VARIABLE: str(cache)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe
    )


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    home = tmp_path_factory.mktemp("uninterrupted")
    job = drive(home / "out", home / "cache")
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert output.split()[-1] == "8", "two rounds of four parts"
    return content(home / "out")


def test_a_doctor_that_is_killed_goes_on_behind_the_last_part(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    for killed_at in (3, 4):
        job = drive(tmp_path / "out", tmp_path / "cache", killed_at)
        _, errors = job.communicate(timeout=120)
        assert job.returncode == -signal.SIGKILL, errors
        assert not (tmp_path / "out").exists(), "lists appear whole or not at all"
    assert len(list((tmp_path / "cache/pair_scores").glob("*.npy"))) == 2 + 3
    last = drive(tmp_path / "out", tmp_path / "cache")
    output, errors = last.communicate(timeout=120)
    assert (last.returncode, output.split()[-1]) == (0, "3"), errors
    assert content(tmp_path / "out") == uninterrupted


def test_a_doctor_that_is_interrupted_says_so_and_goes_on(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    job = drive(tmp_path / "out", tmp_path / "cache", ask=6)
    assert job.stdout is not None
    assert job.stdout.readline() == "scoring\n"
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; what was finished is kept"
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    last = drive(tmp_path / "out", tmp_path / "cache")
    output, errors = last.communicate(timeout=120)
    assert (last.returncode, output.split()[-1]) == (0, "3"), errors
    assert content(tmp_path / "out") == uninterrupted
