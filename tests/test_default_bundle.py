"""The untrained default model finds what ImageNet has words for, far better than chance, and mends itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.sources import open_source
from data.sources.openmoji import draw
from data.splits import split_pairs
from dual_encoder.default_bundle import default_bundle
from dual_encoder.evaluate import evaluate
from dual_encoder.runtime import Runtime

# Drawings of things that ImageNet has classes for, and how a person would ask for them.
SUBJECTS = {
    "🐘": "an elephant",
    "🦓": "a zebra",
    "🐧": "a penguin",
    "🦩": "a flamingo",
    "🐌": "a snail",
    "🦋": "a butterfly",
    "🍌": "a banana",
    "🍓": "a strawberry",
    "🍕": "a slice of pizza",
    "☂️": "an umbrella",
    "🚲": "a bicycle",
    "🎸": "a guitar",
    "🌋": "a volcano erupting",
    "🪑": "a chair",
    "⛵": "a sailing boat",
    "🦖": "a dinosaur",
}


def test_drawings_are_found_by_their_names_though_it_only_knows_photographs(default_runtime: Runtime) -> None:
    images = default_runtime.embed_images([draw(character) for character in SUBJECTS])
    texts = default_runtime.embed_texts(list(SUBJECTS.values()))
    scores = texts @ images.T
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    named = dict(zip(SUBJECTS, ranks.tolist(), strict=True))
    assert (ranks == 1).mean() >= 4 / 16, named  # chance: 1/16
    assert ranks.mean() < 7, named  # chance: 8.5


def test_a_name_is_understood_beyond_the_class_s_own_words(default_runtime: Runtime) -> None:
    """Words that no ImageNet class has reach it through the sentence encoder."""
    images = default_runtime.embed_images([draw("🦓"), draw("🍕"), draw("🎸"), draw("🐧")])
    questions = ["something to eat", "a musical instrument", "a bird on the ice"]
    assert np.argmax(default_runtime.embed_texts(questions) @ images.T, axis=1).tolist() == [1, 2, 3]


def test_it_says_what_it_is(default_runtime: Runtime) -> None:
    assert default_runtime.name == "default"
    assert default_runtime.embedding_dim == 384
    assert "ConSE" in (default_runtime.bundle.path / "README.md").read_text("utf-8")
    assert default_runtime.preprocessing.size == 224


def test_it_is_built_once(default_runtime: Runtime) -> None:
    manifest = default_runtime.bundle.path / "bundle.json"
    before = manifest.stat().st_mtime_ns
    assert default_bundle().fingerprint == default_runtime.fingerprint
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_damaged_copy_is_built_again_with_the_same_fingerprint(
    default_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(os.environ["DUAL_ENCODER_CACHE"], cache)
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(cache))
    path = cache / default_runtime.bundle.path.relative_to(default_runtime.bundle.path.parents[1])
    (path / "weights.safetensors").write_bytes(b"")
    rebuilt = default_bundle()
    assert "built again" in capfd.readouterr().err
    assert (rebuilt.path, rebuilt.fingerprint) == (path, default_runtime.fingerprint)


def test_textbook_pictures_are_found_nine_times_better_than_by_chance(default_runtime: Runtime) -> None:
    directory = Path(os.environ.get("DATASETS_DIR", "datasets")) / "openstax"
    if not (directory / "captions.jsonl").is_file():
        pytest.skip(f"needs the data set openstax: nothing at {directory}; set DATASETS_DIR to where it is")
    pairs = split_pairs(open_source(f"jsonl:{directory}"), compare_bytes=False)["validation"]
    report = evaluate(default_runtime, pairs)["text_to_image"]
    chance = 10 / report["gallery"]
    assert report["recall@10"] >= 9 * chance
