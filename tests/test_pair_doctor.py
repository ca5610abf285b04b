"""Captions on the wrong drawings are found by the command's own backbones, and the benchmark moves what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.doctor import corrupted, examine
from data.errors import SourceError
from data.pairs import ImageTextPair
from data.sources.openmoji import OpenMoji
from dual_encoder.judged_pairs import judged_pairs
from dual_encoder.pair_doctor import mismatched_pairs, pair_encoder

Splits = dict[str, list[ImageTextPair]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Drawings of every sixth emoji."""
    pairs = list(OpenMoji())[::6]
    return {"train": pairs[:240], "validation": pairs[240:280], "test": pairs[280:]}


def captions_of(splits: Splits) -> list[tuple[str, ...]]:
    return [tuple(pair.captions) for part in ("train", "validation") for pair in splits[part]]


@pytest.mark.slow
def test_captions_on_wrong_drawings_are_more_suspicious_than_others(splits: Splits) -> None:
    figures, entries = examine(corrupted(splits, "shuffled", 0.2, seed=1), splits)
    assert figures["wrong"] == pytest.approx(0.2, abs=0.05)
    assert figures["auroc"] > 0.7
    assert all(entry.reason == "mismatched" and entry.weight <= 0.9 for entry in entries)


@pytest.mark.slow
def test_every_caption_is_judged_and_the_most_suspicious_comes_first(splits: Splits) -> None:
    pairs = splits["train"][:60]
    entries, share = mismatched_pairs(pairs, 0.0, pair_encoder())
    judged = {(entry.image_id, entry.caption) for entry in entries}
    assert judged == {(pair.image_id, caption) for pair in pairs for caption in pair.captions}
    scores = [entry.score for entry in entries]
    assert scores == sorted(scores)
    assert share == pytest.approx(1 - np.mean([entry.weight for entry in entries]), abs=1e-3)


def test_pairs_are_read_in_pieces_and_give_what_they_give_at_once(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lengths:
        """Takes images for the length of their name, and cannot read the fourth of them."""

        def images(self, pairs: Sequence[ImageTextPair]) -> tuple[np.ndarray, list[int]]:
            rows = np.array([[float(len(pair.image_id)), 1.0] for pair in pairs])
            return rows, [n for n, pair in enumerate(pairs) if pair.image_id == splits["train"][3].image_id]

        def captions(self, captions: Sequence[str]) -> np.ndarray:
            return np.array([[float(len(caption)), 1.0] for caption in captions])

        def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate(parts)

        def named(self, images: np.ndarray) -> None:
            return None

    pairs = [replace(pair, captions=("", *pair.captions)) for pair in splits["train"][:50]]
    pairs[7] = replace(pairs[7], captions=(" ",))
    whole = judged_pairs(Lengths(), pairs)
    assert whole.kept.tolist() == [n for n in range(50) if n not in (3, 7)]
    assert len(whole.features.captions) == sum(len(pairs[n].captions) - 1 for n in whole.kept)
    monkeypatch.setattr("dual_encoder.judged_pairs.CHUNK", 4)
    pieces = judged_pairs(Lengths(), iter(pairs))
    np.testing.assert_array_equal(pieces.kept, whole.kept)
    for name in ("images", "captions", "image_row", "groups"):
        np.testing.assert_array_equal(getattr(pieces.features, name), getattr(whole.features, name))
    with pytest.raises(SourceError, match="none with a caption"):
        judged_pairs(Lengths(), [pairs[7]])


@pytest.mark.parametrize("kind", ["shuffled", "targeted"])
def test_captions_are_moved_outside_the_test_split_only(splits: Splits, kind: str) -> None:
    moved = corrupted(splits, kind, 0.3, seed=0)
    assert [pair.image_id for pair in moved["train"]] == [pair.image_id for pair in splits["train"]]
    assert moved["test"] == splits["test"]
    assert moved["train"] != splits["train"]
    assert captions_of(corrupted(splits, kind, 0.0, seed=0)) == captions_of(splits)


@pytest.mark.slow
def test_a_bundle_judges_by_its_own_embeddings(splits: Splits) -> None:
    moved = corrupted(splits, "shuffled", 0.2, seed=1)
    true = {(pair.image_id, caption) for pair in splits["train"] for caption in pair.captions}
    entries, _ = mismatched_pairs(moved["train"], 0.0, pair_encoder("default"))
    wrong = np.array([(entry.image_id, entry.caption) not in true for entry in entries])
    places = np.arange(len(entries))
    assert places[wrong].mean() < 0.7 * places[~wrong].mean(), "wrong ones come first"
