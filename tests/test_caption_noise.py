"""Corruption moves exactly the captions it says and leaves everything else alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.caption_noise import TARGETS, flipped, shuffled, targeted
from data.errors import SourceError
from data.pairs import ImageBytes, ImageTextPair


def pairs(groups: list[int]) -> list[ImageTextPair]:
    return [
        ImageTextPair(f"image {n}", ImageBytes(lambda: b""), (f"short {n}", f"long {n}"), group=f"group {group}")
        for n, group in enumerate(groups)
    ]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.floats(0, 1), st.integers(0, 5))
def test_shuffling_moves_captions_between_images_and_loses_none(groups: list[int], share: float, seed: int) -> None:
    before = pairs(groups)
    after = shuffled(before, share, seed)
    assert [pair.image_id for pair in after] == [pair.image_id for pair in before]
    assert sorted(pair.captions for pair in after) == sorted(pair.captions for pair in before)


def test_shuffling_moves_the_share_it_is_given_and_never_within_a_group() -> None:
    before = pairs([n // 2 for n in range(200)])
    after = shuffled(before, 0.3, seed=1)
    group_of = {caption: pair.group for pair in before for caption in pair.captions}
    moved = [pair for pair, old in zip(after, before, strict=True) if pair != old]
    assert len(moved) == 60
    assert all(group_of[caption] != pair.group for pair in moved for caption in pair.captions)


def test_a_targeted_attack_repeats_the_captions_of_a_few_images() -> None:
    before = pairs(list(range(100)))
    after = targeted(before, 0.2, seed=0)
    poisoned = [new.captions for new, old in zip(after, before, strict=True) if new != old]
    assert len(poisoned) == 20
    assert len(set(poisoned)) == TARGETS


def test_flipping_gives_one_kind_the_captions_of_another_which_keeps_its_own() -> None:
    kind = np.repeat(np.arange(4), 25)
    before = pairs(list(range(100)))
    after = flipped(before, np.eye(4)[kind], 0.25, seed=3)
    changed = [n for n in range(100) if after[n] != before[n]]
    of_caption = {caption: kind[n] for n, pair in enumerate(before) for caption in pair.captions}
    assert len(changed) == 25
    assert len({kind[n] for n in changed}) == 1
    assert len({of_caption[caption] for n in changed for caption in after[n].captions}) == 1


def test_more_than_half_cannot_be_flipped() -> None:
    with pytest.raises(SourceError, match="at most half"):
        flipped(pairs(list(range(10))), np.eye(10), 0.6, seed=0)
