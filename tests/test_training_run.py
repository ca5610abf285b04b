"""What a recipe asks for reaches training: groups of near-duplicates, a learned bias, chunks."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapes import FROZEN, RECIPE

from data.pairs import ImageBytes, ImageTextPair
from dual_encoder.losses import Matches, SigmoidLoss
from dual_encoder.recipe import Recipe
from dual_encoder.training_data import data_digest, image_groups
from dual_encoder.training_run import TrainingRun


def pair(number: int, group: str | None) -> ImageTextPair:
    def png() -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (20 * number, 255 - 20 * number, 90)).save(file, "PNG")
        return file.getvalue()

    return ImageTextPair(f"image {number}", ImageBytes(png), (f"colour number {number}",), group)


# Image 3 is named like the group of 1 and 2, and is not of it.
PAIRS = [pair(0, None), pair(1, "image 3"), pair(2, "image 3"), pair(3, None), *(pair(n, None) for n in range(4, 10))]


def recipe(base: Recipe, **changes) -> Recipe:
    trainer = {name: changes.pop(name) for name in ("chunk_size", "epochs") if name in changes}
    small = dataclasses.replace(base.trainer, batch_size=5, **trainer)
    return dataclasses.replace(base, trainer=small, **changes)


def test_images_of_one_group_share_a_number_and_others_do_not() -> None:
    numbers = image_groups(PAIRS)
    assert numbers[1] == numbers[2]
    assert len(set(numbers)) == len(PAIRS) - 1


@pytest.mark.parametrize("base", [RECIPE, FROZEN], ids=["pixels", "cached features"])
def test_groups_are_positives_when_the_recipe_says_so(base: Recipe) -> None:
    numbers = np.array(image_groups(PAIRS))
    run = TrainingRun(recipe(base, group_positives=True), PAIRS, PAIRS)
    rows = []
    for batch in run.batches.epoch(0):
        np.testing.assert_array_equal(batch["image_group"], numbers[np.asarray(batch["image_row"])])
        rows += np.asarray(batch["image_row"]).tolist()
        same = np.equal.outer(numbers[batch["image_row"]], numbers[batch["image_row"]])
        np.testing.assert_array_equal(np.asarray(Matches.of_batch(batch).of_rows(np.arange(5))), same)
    assert sorted(rows) == list(range(len(PAIRS)))
    plain = TrainingRun(recipe(base), PAIRS, PAIRS)
    assert all("image_group" not in batch for batch in plain.batches.epoch(0))


def test_a_changed_group_is_another_run_where_groups_decide() -> None:
    other = {"train": [dataclasses.replace(PAIRS[0], group="new"), *PAIRS[1:]]}
    assert data_digest({"train": PAIRS}) == data_digest(other)
    assert data_digest({"train": PAIRS}, groups=True) != data_digest(other, groups=True)


def test_another_picture_under_the_same_name_is_another_run() -> None:
    other = dataclasses.replace(PAIRS[0], image=PAIRS[1].image)
    assert data_digest({"train": PAIRS}) == data_digest({"train": list(PAIRS)})
    assert data_digest({"train": PAIRS}) != data_digest({"train": [other, *PAIRS[1:]]})


@pytest.mark.slow
def test_whole_towers_train_in_chunks_with_a_learned_bias(tmp_path: Path) -> None:
    wanted = recipe(RECIPE, objective=SigmoidLoss(), group_positives=True, chunk_size=2, epochs=3)
    run = TrainingRun(wanted, PAIRS, PAIRS)
    parts = (run.model.image_backbone, run.model.text_backbone, run.model.image_head, run.model.text_head)
    before = [[np.asarray(weight).copy() for weight in part.trainable_variables] for part in parts]
    history = run.fit(tmp_path, "chunks").history
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    assert history[-1]["bias"] != history[0]["bias"] != -10.0
    for part, weights in zip(parts, before, strict=True):
        pairs = zip(part.trainable_variables, weights, strict=True)
        assert any(np.abs(np.asarray(weight) - old).max() > 1e-4 for weight, old in pairs)
