"""Fine-tuning: the top of a backbone trains from cached maps, late starters wait, averages are kept, runs resume."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from shapes import RECIPE, write_shapes
from tiny_training import STEPS, Batches, everything, settings, trainer

from data.augmentation import Augmentation
from data.errors import TrainingError
from data.sources import open_source
from data.splits import split_pairs
from dual_encoder.fine_tuning import FineTuning
from dual_encoder.losses import InfoNCE
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.projection_head import LinearHead
from dual_encoder.recipe import Recipe
from dual_encoder.runtime import Runtime
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.scratch import ScratchImage, ScratchText
from dual_encoder.train import describe, train
from dual_encoder.trainer import Trainer
from dual_encoder.training_run import TrainingRun

IMAGE = ScratchImage(size=16, width=8, stages=2, depth=1)
TEXT = ScratchText(vocabulary_size=100, width=16, layers=1, heads=2, max_tokens=12)
FROZEN_TEXT = dataclasses.replace(TEXT, trainable=False)
FROZEN_IMAGE = dataclasses.replace(IMAGE, trainable=False)


def recipe(image=IMAGE, text=FROZEN_TEXT, tuning: FineTuning | None = None, **changes: Any) -> Recipe:
    of_recipe = {k: changes.pop(k) for k in ("augmentation", "mirrored", "class_prototypes") if k in changes}
    trainer = {"epochs": 2, "schedule": WarmupCosine(peak=5e-3), "monitor": "loss", **changes}
    return dataclasses.replace(
        RECIPE,
        model=DualEncoderConfig(image, text, LinearHead(16), LinearHead(16, dropout=0.2)),
        trainer=dataclasses.replace(RECIPE.trainer, fine_tuning=tuning or FineTuning(), **trainer),
        **of_recipe,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


def run_of(chosen: Recipe, data: str) -> TrainingRun:
    splits = split_pairs(open_source(data))
    return TrainingRun(chosen, splits["train"], splits["validation"])


def snapshot(model: DualEncoder) -> dict[str, list[np.ndarray]]:
    return {part: [np.asarray(v).copy() for v in variables] for part, variables in model.parts().items()}


def moved(before: list[np.ndarray], after: list[np.ndarray]) -> list[bool]:
    return [bool(np.any(a != b)) for a, b in zip(before, after, strict=True)]


# What each side's batches hold, by what of it trains.
CASES = {
    "frozen text": (recipe(), {"image", "text_features"}),
    "frozen image": (recipe(FROZEN_IMAGE, TEXT), {"image_features", "ids", "mask"}),
    "top of image, frozen text": (recipe(tuning=FineTuning(image_top=1)), {"image_features", "text_features"}),
    "top of image, augmented": (
        recipe(tuning=FineTuning(image_top=1), augmentation=Augmentation(crop=0.5, flip=True, colour=0.2)),
        {"image", "text_features"},
    ),
    "top of both": (recipe(text=TEXT, tuning=FineTuning(image_top=1, text_top=1)), {"image_features", "ids", "mask"}),
}


SLOW = ("frozen image", "top of image, augmented")


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()],
)
def test_what_stands_still_is_cached_and_what_trains_learns(chosen: Recipe, keys: set, data: str, tmp_path) -> None:
    run = run_of(chosen, data)
    batch = next(iter(run.batches.epoch(0)))
    assert set(batch) == keys | {"image_row", "caption_group"}
    before = snapshot(run.model)
    history = run.fit(tmp_path, "run").history
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    after = snapshot(run.model)
    tuning = chosen.trainer.fine_tuning
    for part, top in (("image_backbone", tuning.image_top), ("text_backbone", tuning.text_top)):
        backbone = getattr(chosen.model, part)
        if not backbone.trainable:
            assert not any(moved(before[part], after[part]))
            continue
        trained = {id(v) for v in getattr(run.model, part).trainable_variables}
        expected = [id(v) in trained for v in run.model.parts()[part]]
        assert moved(before[part], after[part]) == expected
        assert any(expected)
        assert all(expected) == (top is None)


def test_cached_maps_give_the_projections_of_the_pixels(data: str) -> None:
    chosen = recipe(tuning=FineTuning(image_top=1))
    cached = run_of(chosen, data)
    from_pixels = run_of(dataclasses.replace(chosen, augmentation=Augmentation(colour=1e-9)), data)
    assert cached.validation.images is not None
    assert from_pixels.validation.images is None
    one, other = (run._project(run.validation) for run in (cached, from_pixels))
    np.testing.assert_allclose(one[0], other[0], atol=2e-3)  # float16 maps
    np.testing.assert_array_equal(one[1], other[1])


def test_mirrored_views_come_from_the_cache_of_the_trunk_too(data: str) -> None:
    run = run_of(recipe(tuning=FineTuning(image_top=1), mirrored=True), data)
    plain, mirrored = (view[:4] for view in run.batches.image_views)
    assert plain.shape == mirrored.shape == (4, 8, 8, 8)
    assert plain.dtype == np.float16
    assert np.any(plain != mirrored)


def test_frozen_text_features_belong_to_the_caption_that_was_drawn(data: str) -> None:
    run = run_of(recipe(), data)
    groups = {}
    for epoch in range(3):
        for batch in run.batches.epoch(epoch):
            for group, features in zip(np.asarray(batch["caption_group"]), batch["text_features"], strict=True):
                np.testing.assert_array_equal(groups.setdefault(int(group), features), features)
    assert len(groups) == 24  # 12 shapes, 2 captions each


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (recipe(FROZEN_IMAGE, augmentation=Augmentation(crop=0.5)), "an image backbone that trains with crop"),
        (recipe(augmentation=Augmentation(word_dropout=0.1)), "a text backbone that trains with word_dropout"),
        (recipe(mirrored=True), "images that come from a cache"),
        (recipe(tuning=FineTuning(image_top=1), class_prototypes=True), "a frozen image backbone"),
        (recipe(tuning=FineTuning(image_top=3)), "between 1 and 2 top groups of scratch_image"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(chosen: Recipe, expected: str, data: str) -> None:
    with pytest.raises(TrainingError, match=expected):
        run_of(chosen, data)


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"image_top": 0}, {"rate": 0.0}, {"rate_decay": 1.5}, {"unfreeze_every": -1}):
        with pytest.raises(TrainingError):
            FineTuning(**wrong)
    for wrong in ({"average_decay": 1.0}, {"interpolate": (1.5,)}):
        with pytest.raises(TrainingError):
            settings(**wrong)


def test_every_setting_is_part_of_what_names_a_run() -> None:
    described = [
        json.dumps(describe(chosen), sort_keys=True)
        for chosen in (
            recipe(),
            recipe(tuning=FineTuning(rate_decay=0.5)),
            recipe(average_decay=0.9),
            recipe(interpolate=(0.5,)),
            recipe(augmentation=Augmentation(crop=0.5)),
        )
    ]
    assert len(set(described)) == 5


# From here on: the loop alone, on a few rows of cached features for the heads and token-like inputs for a backbone.


class Tokens(Batches):
    """The tiny problem with token ids instead of text features, so that a text backbone trains."""

    def epoch(self, epoch: int, start: int = 0):
        for drawn in super().epoch(epoch, start):
            batch = dict(drawn)
            del batch["text_features"]
            ids = (batch["image_row"][:, None] * np.array([1, 3, 5]) % 40 + 1).astype(np.int32)
            yield {**batch, "ids": ids, "mask": np.ones_like(ids)}


def tokens_trainer(directory: Path, before=lambda step: None, watch=lambda run: None, **changes) -> Trainer:
    config = settings(**changes)
    keras.utils.set_random_seed(config.seed)
    backbones = (dataclasses.replace(FROZEN_IMAGE, width=8), dataclasses.replace(TEXT, dropout=0.1))
    model_config = DualEncoderConfig(*backbones, LinearHead(12, dropout=0.3), LinearHead(12, dropout=0.3))
    model = DualEncoder(model_config, 5.0, precision=config.precision)

    def validate() -> dict[str, float]:
        watch(run)
        return {"recall": 0.5, "loss": 1.0}

    run = Trainer(model, InfoNCE(initial_scale=5.0), config, Tokens(before), validate, directory, "tokens")
    return run


def test_groups_start_one_after_another_from_the_top(tmp_path: Path) -> None:
    weights: list[list[np.ndarray]] = []

    def watch(run: Trainer) -> None:
        groups = run.trained.text_tower.trainable_by_group()
        weights.append([np.concatenate([np.ravel(v) for v in group]) for group in groups])

    run = tokens_trainer(tmp_path, watch=watch, patience=0, fine_tuning=FineTuning(unfreeze_every=1))
    watch(run)
    run.fit()
    changed = [[bool(np.any(a != b)) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(weights)]
    assert changed == [[False, False], [False, True], [True, True]]
    assert {s.first_step for s in run.optimizer.settings} == {0, STEPS, 2 * STEPS}


def test_rates_fall_from_the_top_group_down(tmp_path: Path) -> None:
    run = tokens_trainer(tmp_path, fine_tuning=FineTuning(rate=0.5, rate_decay=0.1))
    rate_of = dict(zip(map(id, run.model.trainable_variables), run.optimizer.settings, strict=True))
    groups = run.trained.text_tower.trainable_by_group()
    for group, rate in zip(groups, (0.05, 0.5), strict=True):
        assert [rate_of[id(v)].rate for v in group] == pytest.approx([rate] * len(group))
    others = [rate_of[id(v)].rate for v in [*run.model.text_head.trainable_variables, run.model.log_scale]]
    assert set(others) == {1.0}


ALL = {
    "fine_tuning": FineTuning(text_top=1, rate=0.5, rate_decay=0.5, unfreeze_every=1),
    "average_decay": 0.9,
    "interpolate": (0.0, 0.5, 1.0),
    "epochs": 2,
    "patience": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_with_everything_on_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path, precision: str) -> None:
    def stop(step: int) -> None:
        if step == STEPS + 1:
            raise KeyboardInterrupt

    straight = tokens_trainer(tmp_path / "straight", precision=precision, **ALL)
    straight.fit()
    stopped = tokens_trainer(tmp_path / "stopped", before=stop, precision=precision, **ALL)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = tokens_trainer(tmp_path / "stopped", precision=precision, **ALL)
    resumed.fit()
    assert resumed.progress == straight.progress
    assert everything(resumed) == everything(straight)
    assert all(np.isfinite(row["loss"]) for row in straight.progress.history)


def test_the_average_is_what_is_validated_and_kept_and_the_raw_weights_train_on(tmp_path: Path) -> None:
    raw: list[np.ndarray] = []
    seen: list[np.ndarray] = []

    def kernel(run: Trainer) -> np.ndarray:
        return np.asarray(run.model.text_head.trainable_variables[0]).copy()

    run = trainer(tmp_path, watch=lambda model: seen.append(kernel(run)), average_decay=0.8, epochs=1)
    start, step = kernel(run), run._step

    def record(batch):
        loss = step(batch)
        raw.append(kernel(run))
        return loss

    run._step = record
    run.fit()
    average = start.astype(np.float64)
    for number, weights in enumerate(raw):
        decay = min(0.8, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights
    np.testing.assert_allclose(seen[0], average, atol=1e-6)
    np.testing.assert_array_equal(kernel(run), seen[0])
    checkpoint = trainer(tmp_path, average_decay=0.8, epochs=1)
    checkpoint._restore()
    np.testing.assert_array_equal(kernel(checkpoint), raw[-1])


@pytest.mark.parametrize(
    ("alphas", "recalls", "expected"),
    [
        ((0.0, 0.5, 1.0), [0.2, 0.6, 0.3], 0.5),
        ((0.0, 0.5, 1.0), [0.6, 0.6, 0.6], 1.0),
        ((0.25,), [], 0.25),
        ((), [], 1.0),
    ],
)
def test_weights_lie_between_the_start_and_the_best_epoch(
    tmp_path: Path, alphas: tuple, recalls: list, expected: float
) -> None:
    def run_once() -> Trainer:
        run = trainer(tmp_path, recalls=[0.1, 0.4, 0.2, *recalls], interpolate=alphas)
        run.fit()
        return run

    run = run_once()
    assert (run.progress.best_epoch, run.progress.alpha) == (1, expected)
    assert run.progress.alpha_scores == {f"{a:g}": r for a, r in zip(alphas, recalls, strict=False)}
    for name, variable in run.trained.variables().items():
        if np.asarray(variable).dtype == np.float32:
            between = run.start[name] + expected * (run.best[name].astype(np.float64) - run.start[name])
            np.testing.assert_allclose(variable, between, atol=1e-6)
    again = run_once()  # finished: nothing is validated again
    assert again.progress == run.progress
    for one, other in zip(again.model.trainable_variables, run.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_bundle_says_how_its_weights_were_averaged(data: str, tmp_path: Path) -> None:
    chosen = recipe(tuning=FineTuning(image_top=1), average_decay=0.5, interpolate=(0.0, 1.0), epochs=1)
    bundle = train(dataclasses.replace(chosen, name="averaged"), data, tmp_path / "model")
    found = bundle.manifest["trained"]["interpolation"]
    assert found["alpha"] in (0.0, 1.0)
    assert set(found["validation"]) == {"0", "1"}
    card = (bundle.path / "README.md").read_text()
    assert "| average decay | 0.5 |" in card
    assert (
        f"| share of the way from the start to the best epoch | {found['alpha']:g} (on the validation split 0: " in card
    )
    fast, slow = (Runtime.load(bundle.path, engine=engine) for engine in ("onnxruntime", "keras"))
    np.testing.assert_allclose(fast.embed_texts(["a red circle"]), slow.embed_texts(["a red circle"]), atol=1e-4)
