"""The automatic recipe fits its data and machine, is the same for the same facts, and says why."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from data.errors import TrainingError
from dual_encoder.auto_recipe import FINE_TUNE_FROM, Choice, DataFacts, Machine, choose_recipe
from dual_encoder.fine_tuning import FineTuning
from dual_encoder.recipe import Recipe
from dual_encoder.recipes.openstax import RECIPE as OPENSTAX
from dual_encoder.train import describe

TWO_CORES = Machine(cores=2, memory_gb=16)
ONE_GPU = Machine(cores=16, memory_gb=64, gpus=1, gpu_memory_gb=24, compute_capability=8.6)
EIGHT_GPUS = Machine(cores=128, memory_gb=1000, gpus=8, gpu_memory_gb=80, compute_capability=9.0)
MACHINES = {"two cores": TWO_CORES, "one GPU": ONE_GPU, "eight GPUs": EIGHT_GPUS}
SIZES = (200, 2_000, 200_000, 20_000_000)


def facts(images: int, machine: Machine = TWO_CORES, sided: float = 0.0, **changes: Any) -> DataFacts:
    return DataFacts(
        images, 2 * images, **{"validation": images // 8, "words": 20.0, **changes}, sided=sided, machine=machine
    )


def chosen(given: DataFacts) -> tuple[Recipe, dict[str, Choice]]:
    recipe, choices = choose_recipe(given)
    return recipe, {choice.setting: choice for choice in choices}


@pytest.mark.parametrize(("images", "machine", "sided"), list(itertools.product(SIZES, MACHINES, (0.0, 0.6))))
def test_every_choice_can_be_carried_out_is_repeated_and_has_a_reason(images: int, machine: str, sided: float) -> None:
    given = facts(images, MACHINES[machine], sided)
    recipe, choices = choose_recipe(given)
    assert choose_recipe(given) == (recipe, choices)
    assert choose_recipe(DataFacts.from_config(json.loads(json.dumps(given.to_config())))) == (recipe, choices)
    json.dumps(describe(recipe))
    trainer, tuned = recipe.trainer, recipe.model.image_backbone.trainable
    rows = images + 1000 * recipe.class_prototypes
    assert 1 <= trainer.batch_size <= rows / 4, "several updates an epoch"
    assert trainer.epochs * (rows // trainer.batch_size) >= 120, "enough updates to move"
    assert trainer.chunk_size <= trainer.batch_size
    assert 3 <= trainer.patience <= trainer.epochs
    if tuned:  # what pixels cannot have is not asked of them
        assert (recipe.mirrored, recipe.class_prototypes) == (False, False)
    else:
        assert (trainer.precision, trainer.chunk_size) == ("float32", 0)
        assert trainer.fine_tuning == FineTuning()
        assert not recipe.augmentation.of_images
    assert all(choice.value and choice.reason for choice in choices)
    assert str(trainer.batch_size) in {choice.value.replace(",", "") for choice in choices}


def test_small_data_gets_the_recipe_that_was_measured_on_it() -> None:
    recipe, _ = choose_recipe(facts(3_174, sided=0.16))
    expected = describe(OPENSTAX)
    assert {**describe(recipe), "name": "openstax"} == expected


def test_a_tower_is_fine_tuned_where_a_gpu_and_enough_images_are() -> None:
    for images, machine, tuned in (
        (2_000, EIGHT_GPUS, False),
        (FINE_TUNE_FROM - 1, ONE_GPU, False),
        (FINE_TUNE_FROM, ONE_GPU, True),
        (20_000_000, TWO_CORES, False),
    ):
        recipe, _ = choose_recipe(facts(images, machine))
        assert recipe.model.image_backbone.trainable is tuned
        assert recipe.model.text_backbone.trainable is False
        assert recipe.trainer.schedule.peak == (1e-3 if tuned else 3e-3)  # type: ignore[attr-defined]


def test_fewer_pairs_get_more_dropout() -> None:
    rates = [chosen(facts(images))[0].model.image_head.dropout for images in SIZES]  # type: ignore[union-attr]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]
    assert chosen(facts(2_000, words=2.5))[0].model.text_head.dropout == 0.3  # type: ignore[union-attr]


def test_captions_that_name_left_or_right_keep_mirror_images_out() -> None:
    assert chosen(facts(2_000, sided=0.16))[0].mirrored
    recipe, why = chosen(facts(2_000, sided=0.6))
    assert not recipe.mirrored
    assert "60 % of captions name left or right" in why["mirror images"].reason


@pytest.mark.parametrize(
    ("capability", "precision"), [(6.1, "float32"), (7.5, "mixed_float16"), (8.0, "mixed_bfloat16"), (0.0, "float32")]
)
def test_precision_is_what_the_gpu_is_fast_at(capability: float, precision: str) -> None:
    machine = Machine(16, 64, gpus=1, gpu_memory_gb=16, compute_capability=capability)
    assert choose_recipe(facts(200_000, machine))[0].trainer.precision == precision


def test_a_batch_larger_than_a_gpu_goes_through_it_in_chunks() -> None:
    small = Machine(8, 32, gpus=1, gpu_memory_gb=8, compute_capability=8.6)
    trainer = choose_recipe(facts(200_000, small))[0].trainer
    assert (trainer.batch_size, trainer.chunk_size) == (4096, 64)  # 40 MB a row in half of 8 GB
    assert choose_recipe(facts(200_000, EIGHT_GPUS))[0].trainer.chunk_size == 0
    unknown = Machine(8, 32, gpus=1, compute_capability=8.6)
    recipe, why = chosen(facts(200_000, unknown))
    assert recipe.trainer.chunk_size == 64
    assert "not known" in why["chunk size"].reason


def test_few_validation_images_choose_the_epoch_by_loss_and_their_uncertainty_is_told() -> None:
    recipe, why = chosen(facts(200, validation=25))
    assert recipe.trainer.monitor == "loss"
    assert "± 20 points" in why["best epoch by"].reason
    assert choose_recipe(facts(3_174, validation=330))[0].trainer.monitor == "recall"


def test_what_no_setting_mends_is_said() -> None:
    minded = {choice.value: choice.reason for choice in choose_recipe(facts(20_000_000))[1] if choice.setting == "mind"}
    assert set(minded) == {"size", "time", "memory"}
    assert "33 hours" in minded["time"]
    assert "of 16 GB memory" in minded["memory"]
    assert not [choice for choice in choose_recipe(facts(2_000))[1] if choice.setting == "mind"]


def test_facts_of_another_shape_are_refused() -> None:
    config = facts(200).to_config()
    for wrong in ({**config, "images_": 3}, {**config, "machine": {"cores": 2}}, {"images": 3}):
        with pytest.raises(TrainingError, match="choose anew"):
            DataFacts.from_config(wrong)
