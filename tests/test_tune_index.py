"""Tuning tries real indexes on queries, certifies on others, and hands its choice to the build job."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import ColourRuntime, picture

import dual_encoder.runtime
import serving.index_bundle
from data.errors import SourceError
from serving import build_index
from serving.faiss_index import FaissIndex, SearchSettings
from serving.index_tuning import Trial, fastest, try_settings
from serving.snapshot import open_snapshot
from serving.tune_index import Candidate, Goal, choose, main, read_tuning


def unit(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, 32))[rng.integers(0, 30, rows)] + 0.5 * rng.normal(size=(rows, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def candidate(kind: str, recall: float, p50: float, share: float) -> Candidate:
    return Candidate(kind, 1.0, share, Trial(kind, SearchSettings(), recall, recall, p50, p50))


def test_the_fastest_that_meets_every_part_of_the_goal_is_chosen():
    fitting, slower = candidate("a", 0.995, 1.0, 0.2), candidate("b", 0.999, 1.5, 0.1)
    large, poor, slow = candidate("c", 1.0, 0.5, 0.5), candidate("d", 0.9, 0.1, 0.1), candidate("e", 1.0, 9.0, 0.1)
    assert choose([slow, poor, large, slower, fitting], Goal()) is fitting


def test_where_none_meets_it_the_best_recall_within_the_memory_is():
    large, poor, near = candidate("a", 1.0, 5.0, 1.0), candidate("b", 0.5, 0.1, 0.1), candidate("c", 0.98, 3.0, 0.3)
    assert choose([large, poor, near], Goal()) is near


def test_the_fastest_trial_that_reaches_the_recall_else_the_nearest():
    found = ((1, 0.5, 0.4), (2, 0.99, 0.98), (3, 1.0, 1.0))
    trials = [Trial("", SearchSettings(nprobe=n), recall, surely, n, n) for n, recall, surely in found]
    assert fastest(trials, 0.9).settings.nprobe == 2
    assert fastest(trials, 0.985).settings.nprobe == 3  # the second might fall short of it on other queries
    assert fastest(trials[:1], 0.9).settings.nprobe == 1


def test_a_choice_is_written_with_its_certificate_and_read_by_the_build(tmp_path):
    np.save(tmp_path / "vectors.npy", unit(1_500, 1))
    np.save(tmp_path / "queries.npy", unit(60, 2))
    given = ["--vectors", str(tmp_path / "vectors.npy"), "--queries", str(tmp_path / "queries.npy")]
    goal = ["--recall", "0.9", "--latency-ms", "1000", "--memory-share", "10", "--kinds", "Flat", "IVF16,RaBitQfs"]
    assert main([*given, *goal, "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert written["index_recall_at_10"] >= 0.9
    assert read_tuning(tmp_path / "out" / "tuning.json").kind == written["kind"]
    assert (tmp_path / "out" / "tuning.html").read_text().count("<polyline") >= 1


def test_a_goal_out_of_reach_is_an_exit_code(tmp_path):
    np.save(tmp_path / "vectors.npy", unit(300, 3))
    given = ["--vectors", str(tmp_path / "vectors.npy"), "--queries", str(tmp_path / "vectors.npy")]
    assert main([*given, "--memory-share", "0.001", "--kinds", "Flat", "--out", str(tmp_path / "out")]) != 0


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "Flat", "search": {"nprobes": 3}}'])
def test_what_is_no_tuning_is_refused(tmp_path, content):
    (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(SourceError):
        read_tuning(tmp_path / "tuning.json")


def test_an_index_is_tuned_on_its_captions_built_so_and_keeps_it_when_it_is_brought_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(dual_encoder.runtime.Runtime, "load", lambda *_, **__: ColourRuntime())
    monkeypatch.setattr(serving.index_bundle, "bundle_of", lambda index: index / "bundle")
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(24):
        (tmp_path / "photos" / f"{number}.png").write_bytes(picture(("red", "blue")[number % 2], seed=number))
    (tmp_path / "texts.txt").write_text("red\nblue\n" * 12)
    build = ["--bundle", "x", "--data", "folder:photos", "--out", "index"]
    assert build_index.main(build) == 0
    goal = ["--latency-ms", "1000", "--memory-share", "1000", "--kinds", "SQ8"]
    assert main(["--index", "index", "--bundle", "x", "--queries", "texts.txt", *goal]) == 0
    assert build_index.main([*build, "--tuning", "tuning/tuning.json"]) == 0
    (tmp_path / "photos" / "0.png").unlink()
    assert build_index.main(["--sync", "--out", "index"]) == 0
    snapshot = open_snapshot(tmp_path / "index")
    assert (snapshot.manifest.image_count, snapshot.index.kind) == (23, "SQ8")
    assert snapshot.index.settings == read_tuning(tmp_path / "tuning" / "tuning.json").search
    snapshot.close()


def test_what_is_reached_surely_is_less_by_standard_errors():
    vectors = unit(40, seed=0)
    index = FaissIndex.build(vectors, "Flat")
    bounds = np.where(np.arange(36) % 2, 2.0, -2.0)  # every other query finds all ten, the rest none
    trial = try_settings(index, index.settings, vectors[:36], bounds)
    assert trial.recall == 0.5
    assert trial.surely == pytest.approx(0.5 - 1.645 * 0.5 / 6)
    assert try_settings(index, index.settings, vectors[:36], np.full(36, -2.0)).surely == 1
