"""Training in chunks gives the loss and gradients of one pass, with dropout and multi-positives too, and resumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_training import EPOCHS, IMAGE, STEPS, TEXT, everything, trainer

from data.errors import TrainingError
from dual_encoder.gradient_cache import GradientCache
from dual_encoder.losses import InfoNCE, Matches, SigmoidLoss
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.projection_head import LinearHead
from dual_encoder.towers.scratch import ScratchImage, ScratchText

ROWS = 10
# Rows 0 and 6, in different chunks, show one image; rows 1, 2 and 9 have one caption.
# Row 4 is trusted less than the others, row 8 not at all.
MATCHES = Matches(
    tf.constant([3, 1, 2, 0, 4, 5, 3, 7, 8, 9]),
    tf.constant([0, 1, 1, 3, 4, 5, 6, 7, 8, 1]),
    tf.constant([1.0, 1, 1, 1, 0.3, 1, 1, 2, 0, 1]),
)
OBJECTIVES = [
    InfoNCE(5.0),
    InfoNCE(5.0, multi_positive=True, chunk_rows=3, hard_negatives=0.3, soft_targets=0.2, label_smoothing=0.1),
    SigmoidLoss(5.0, -3.0),
    SigmoidLoss(5.0, -3.0, chunk_rows=4),
]


def small_model(objective: InfoNCE | SigmoidLoss, dropout: float, trainable: bool) -> DualEncoder:
    keras.utils.set_random_seed(3)
    image = ScratchImage(size=8, width=4, stages=2, depth=1) if trainable else IMAGE
    text = ScratchText(vocabulary_size=30, width=8, layers=1, heads=2, max_tokens=6, dropout=dropout)
    config = DualEncoderConfig(image, text if trainable else TEXT, *[LinearHead(5, dropout=dropout) for _ in range(2)])
    return DualEncoder(config, objective.initial_scale, initial_bias=objective.initial_bias)


def rows_of(trainable: bool) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(4)
    if not trainable:
        return {name: generator.normal(size=(ROWS, 16)).astype(np.float32) for name in ("image_features", "text")}
    return {
        "image": generator.normal(size=(ROWS, 8, 8, 3)).astype(np.float32),
        "ids": generator.integers(1, 30, (ROWS, 6)).astype(np.int32),
        "mask": np.ones((ROWS, 6), np.int32),
    }


def projection(model: DualEncoder) -> Callable:
    def project(batch):
        if "image_features" in batch:
            image, text = batch["image_features"], batch["text"]
        else:
            image = model.image_backbone(batch["image"], training=True)
            text = model.text_backbone({"ids": batch["ids"], "mask": batch["mask"]}, training=True)
        return model.image_head(image, training=True), model.text_head(text, training=True)

    return project


def states_of(model: DualEncoder) -> list:
    parts = (model.image_backbone, model.text_backbone, model.image_head, model.text_head)
    return [variable for part in parts for variable in part.non_trainable_variables]


def one_pass(model, objective, batch, chunk_size: int):
    """Everything on one tape; random layers draw chunk by chunk, as they do with the cache."""
    project = projection(model)
    chunks = [{k: v[s : s + chunk_size] for k, v in batch.items()} for s in range(0, ROWS, chunk_size)]
    with tf.GradientTape() as tape:
        image, text = (tf.concat(side, 0) for side in zip(*map(project, chunks), strict=True))
        loss = objective(image, text, model.log_scale, MATCHES, model.logit_bias)
    gradients = tape.gradient(loss, model.trainable_variables)
    return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]


def cached(model, objective, batch, chunk_size: int):
    def loss(image, text, positives):
        value = objective(image, text, model.log_scale, positives, model.logit_bias)
        return value, value

    cache = GradientCache(projection(model), loss, model.trainable_variables, states_of(model), chunk_size)
    return tf.function(cache)(batch, MATCHES)


def assert_same(found, expected) -> None:
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert len(found[1]) == len(expected[1])
    for one, other in zip(found[1], expected[1], strict=True):
        # Sums of float32 in another order: the rounding of the largest terms is left where terms cancel.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 + 2e-6 * np.abs(other).max())
    moved = [np.abs(gradient).max() > 1e-5 for gradient in expected[1]]
    # Attention does not change with the bias of its keys: the only gradient that may be nothing but rounding.
    assert moved.count(False) <= 1


def sizes_of_chunks() -> Iterator[Any]:
    """Each objective in chunks of which the last is smaller; one of them in the smallest and in a single one too."""
    for objective in OBJECTIVES:
        for size in (4, 1, 100):
            slow = () if size == 4 or objective is OBJECTIVES[1] else (pytest.mark.slow,)
            yield pytest.param(objective, size, id=f"{objective}-{size}", marks=slow)


@pytest.mark.parametrize(("objective", "chunk_size"), sizes_of_chunks())
def test_without_dropout_chunks_give_the_gradient_of_the_batch(objective, chunk_size: int) -> None:
    model, batch = small_model(objective, 0.0, trainable=False), rows_of(False)
    assert_same(cached(model, objective, batch, chunk_size), one_pass(model, objective, batch, ROWS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "trainable"),
    [(OBJECTIVES[1], False), (OBJECTIVES[3], False), (OBJECTIVES[1], True)],
    ids=["InfoNCE heads", "sigmoid heads", "InfoNCE whole towers"],
)
def test_with_dropout_both_passes_draw_the_same(objective, trainable: bool) -> None:
    batch = rows_of(trainable)
    reference = small_model(objective, 0.4, trainable)
    expected = one_pass(reference, objective, batch, 4)
    model = small_model(objective, 0.4, trainable)
    found = cached(model, objective, batch, 4)
    assert_same(found, expected)
    for one, other in zip(states_of(model), states_of(reference), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    again = cached(model, objective, batch, 4)
    assert abs(float(again[0]) - float(found[0])) > 1e-4, "the next step draws anew"


def test_what_a_forward_pass_changes_is_changed_once() -> None:
    """A moving average, as batch normalisation keeps one: two passes over the towers must not move it twice."""
    seen, weight = tf.Variable(0.0), tf.Variable(tf.eye(3))

    def project(batch):
        seen.assign(0.5 * seen + tf.reduce_sum(batch["x"]))
        return batch["x"] @ weight + seen, batch["x"]

    def loss(image, text, positives):
        value = tf.reduce_mean(tf.square(image - text))
        return value, value

    cache = GradientCache(project, loss, [weight], [seen], chunk_size=2)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    found, (by_weight,) = tf.function(cache)({"x": x}, MATCHES)
    assert float(seen) == 0.5 * x[:2].sum() + x[2:].sum()
    shift = np.repeat([x[:2].sum(), float(seen)], 2)[:, None]
    assert float(found) == pytest.approx(np.mean((x + shift - x) ** 2))
    np.testing.assert_allclose(by_weight, x.T @ (2 * np.broadcast_to(shift, x.shape) / x.size), rtol=1e-5)


def test_one_chunk_trains_as_one_pass_does(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain").fit().history
    chunked = trainer(tmp_path / "chunked", chunk_size=6).fit().history
    for one, other in zip(chunked, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize(
    "precision",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "mixed_bfloat16")), "mixed_float16"],
)
def test_training_in_chunks_learns_in_every_precision(tmp_path: Path, precision: str) -> None:
    run = trainer(tmp_path, chunk_size=4, precision=precision, epochs=15, monitor="loss")
    history = run.fit().history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [STEPS - 1, STEPS + 1])
def test_a_chunked_run_stopped_by_ctrl_c_goes_on_bit_by_bit(tmp_path: Path, step: int) -> None:
    straight = trainer(tmp_path / "straight", chunk_size=4)
    straight.fit()

    def press(current: int) -> None:
        if current == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "stopped", before=press, chunk_size=4).fit()
    seen: list[int] = []
    resumed = trainer(tmp_path / "stopped", before=seen.append, chunk_size=4)
    resumed.fit()
    assert seen == list(range(step + 1, EPOCHS * STEPS))
    assert resumed.progress == straight.progress
    assert everything(resumed) == everything(straight)


def test_a_chunk_size_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="chunk_size -1"):
        trainer(tmp_path, chunk_size=-1)
