"""A bias that an objective learns is trained, resumed and stored, and is no part of models without one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_training import CONFIG, EPOCHS, IMAGES, STEPS, Batches, everything, project, settings, tokenizer

from dual_encoder.bundle_model import load_model, save_bundle
from dual_encoder.losses import InfoNCE, Matches, SigmoidLoss
from dual_encoder.model import DualEncoder
from dual_encoder.trainer import Trainer


def sigmoid_trainer(directory: Path, before: Callable[[int], None] = lambda step: None, **changes) -> Trainer:
    config = settings(**changes)
    keras.utils.set_random_seed(config.seed)
    objective = SigmoidLoss()
    model = DualEncoder(CONFIG, objective.initial_scale, initial_bias=objective.initial_bias)

    def validate() -> dict[str, float]:
        rows = np.arange(IMAGES)
        loss = float(objective(*project(model), model.log_scale, Matches(rows, rows), model.logit_bias))
        return {"recall": -loss, "loss": loss}

    return Trainer(model, objective, config, Batches(before), validate, directory, "sigmoid")


@pytest.mark.parametrize("chunk_size", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_the_sigmoid_loss_trains_scale_bias_and_heads(tmp_path: Path, chunk_size: int) -> None:
    run = sigmoid_trainer(tmp_path, chunk_size=chunk_size, epochs=20, patience=0)
    history = run.fit().history
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert abs(history[-1]["bias"] + 10) > 0.05
    assert abs(history[-1]["scale"] - 10) > 0.05
    place = [variable is run.model.logit_bias for variable in run.model.trainable_variables].index(True)
    assert run.optimizer.settings[place].weight_decay == 0
    assert any(settings.weight_decay for settings in run.optimizer.settings), "others do decay"


def test_a_run_with_a_bias_goes_on_bit_by_bit(tmp_path: Path) -> None:
    def press(step: int) -> None:
        if step == STEPS + 1:
            os.kill(os.getpid(), signal.SIGINT)

    straight = sigmoid_trainer(tmp_path / "straight")
    straight.fit()
    with pytest.raises(KeyboardInterrupt):
        sigmoid_trainer(tmp_path / "stopped", press).fit()
    resumed = sigmoid_trainer(tmp_path / "stopped")
    assert len(resumed.fit().history) == EPOCHS
    assert everything(resumed) == everything(straight)
    assert resumed.progress == straight.progress


@pytest.mark.usefixtures("no_engines")
def test_a_bundle_holds_the_bias_of_a_model_that_has_one(tmp_path: Path) -> None:
    model = DualEncoder(CONFIG, 7.0, initial_bias=-4.5)
    saved = save_bundle(tmp_path / "model", model, tokenizer(), name="tiny", card="# tiny\n", trained={})
    loaded = load_model(saved)
    assert float(loaded.logit_bias.numpy()) == -4.5
    for one, other in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_models_without_a_bias_are_as_before() -> None:
    assert InfoNCE().initial_bias is None
    plain = DualEncoder(CONFIG, 7.0)
    assert plain.logit_bias is None
    assert "logit_bias" not in plain.parts()


def test_a_copy_that_computes_in_float32_has_the_same_bias() -> None:
    mixed = DualEncoder(CONFIG, 7.0, precision="mixed_bfloat16", initial_bias=-4.5)
    twin = mixed.in_float32()
    assert twin is not mixed
    assert float(twin.logit_bias.numpy()) == -4.5
