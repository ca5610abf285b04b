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

# Kinds of things that ImageNet has no class of, and drawings of each kind.
KINDS = {
    "something to eat": "🍕🍓🍌🍔🌭🍦",
    "a musical instrument": "🎸🎻🎹🎷🥁🎺",
    "a bird": "🐧🦩🦆🦅🦉🦚",
    "a vehicle": "🚲🚗🚌🚂🚜🚑",
    "an animal of the savanna": "🦓🐘🦁🐆",
    "an insect": "🦋🐝🐞🦗",
    "a piece of furniture": "🪑🛋🛏",
    "something to wear": "👗👕👢👒🧤",
}


def test_drawings_are_found_by_their_names_though_it_only_knows_photographs(default_runtime: Runtime) -> None:
    images = default_runtime.embed_images([draw(character) for character in SUBJECTS])
    texts = default_runtime.embed_texts(list(SUBJECTS.values()))
    scores = texts @ images.T
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    named = dict(zip(SUBJECTS, ranks.tolist(), strict=True))
    assert (ranks == 1).mean() >= 4 / 16, named  # chance: 1/16
    assert ranks.mean() < 7, named  # chance: 8.5


def test_kinds_of_things_are_found_by_words_that_no_class_has(default_runtime: Runtime) -> None:
    """The names of kinds reach their classes through the sentence encoder; line drawings are hard, so by mean AP."""
    drawn = [(kind, character) for kind, characters in KINDS.items() for character in characters]
    images = default_runtime.embed_images([draw(character) for _, character in drawn])
    scores = default_runtime.embed_texts(list(KINDS)) @ images.T
    relevant = np.array([[kind == wanted for kind, _ in drawn] for wanted in KINDS])
    by_chance = np.mean(
        [_mean_average_precision(np.random.default_rng(i).random(scores.shape), relevant) for i in range(50)]
    )
    assert _mean_average_precision(scores, relevant) > 2 * by_chance


def _mean_average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1), axis=1)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    return float(((precision * ranked).sum(axis=1) / ranked.sum(axis=1)).mean())


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


@pytest.mark.slow
def test_textbook_pictures_are_found_nine_times_better_than_by_chance(default_runtime: Runtime) -> None:
    directory = Path(os.environ.get("DATASETS_DIR", "datasets")) / "openstax"
    if not (directory / "captions.jsonl").is_file():
        pytest.skip(f"needs the data set openstax: nothing at {directory}; set DATASETS_DIR to where it is")
    pairs = split_pairs(open_source(f"jsonl:{directory}"), compare_bytes=False)["validation"]
    report = evaluate(default_runtime, pairs)["text_to_image"]
    chance = 10 / report["gallery"]
    assert report["recall@10"] >= 9 * chance
