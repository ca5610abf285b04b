"""Trains the tiny problem on two logical CPU devices and on one, in a process of its own; prints what it found as JSON.

`replicas_driver.py DIRECTORY CASE…`: devices are fixed when TensorFlow starts, so the tests' own process cannot do it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.quiet_tensorflow import load_tensorflow

load_tensorflow()

import keras  # noqa: E402
import shapes  # noqa: E402
import tensorflow as tf  # noqa: E402
from tiny_training import settings  # noqa: E402

from data.errors import TrainingError  # noqa: E402
from dual_encoder.bundle import Bundle  # noqa: E402
from dual_encoder.distillation import Distillation  # noqa: E402
from dual_encoder.losses import InfoNCE, KerasExampleLoss, Objective, SigmoidLoss  # noqa: E402
from dual_encoder.model import DualEncoder, DualEncoderConfig  # noqa: E402
from dual_encoder.projection_head import LinearHead  # noqa: E402
from dual_encoder.replicas import Replicas, equally_finite, total  # noqa: E402
from dual_encoder.runtime import Runtime  # noqa: E402
from dual_encoder.towers.scratch import ScratchImage, ScratchText  # noqa: E402
from dual_encoder.train import train  # noqa: E402
from dual_encoder.trainer import Trainer  # noqa: E402

ROWS = 11  # shares of 5 and 6
STEPS = 4
SIDES = ("image", "text")
FROZEN = DualEncoderConfig(
    ScratchImage(size=16, width=8, stages=2, depth=1, trainable=False),
    ScratchText(vocabulary_size=60, width=16, layers=1, heads=2, max_tokens=12, trainable=False),
    LinearHead(5),
    LinearHead(5),
)
WHOLE = DualEncoderConfig(
    ScratchImage(size=8, width=4, stages=2, depth=1),
    ScratchText(vocabulary_size=30, width=8, layers=1, heads=2, max_tokens=6, dropout=0.0),
    LinearHead(5),
    LinearHead(5),
)
EVERY_SETTING = InfoNCE(
    5.0, multi_positive=True, hard_negatives=0.3, soft_targets=0.2, label_smoothing=0.1, chunk_rows=3
)
CASES: dict[str, tuple[DualEncoderConfig, Objective, dict[str, Any]]] = {
    "InfoNCE": (FROZEN, InfoNCE(5.0), {}),
    "InfoNCE, every setting": (FROZEN, EVERY_SETTING, {}),
    "InfoNCE in chunks": (FROZEN, EVERY_SETTING, {"chunk_size": 4, "average_decay": 0.9}),
    "sigmoid": (FROZEN, SigmoidLoss(5.0, -3.0), {}),
    "sigmoid, whole towers in chunks": (WHOLE, SigmoidLoss(5.0, -3.0, chunk_rows=4), {"chunk_size": 2}),
    "whole towers": (WHOLE, InfoNCE(5.0), {}),
    "taught, in chunks": (FROZEN, EVERY_SETTING, {"chunk_size": 4}),
    "Keras example": (FROZEN, KerasExampleLoss(), {}),
    "bfloat16 in chunks": (FROZEN, InfoNCE(5.0), {"precision": "mixed_bfloat16", "chunk_size": 4}),
    "float16": (FROZEN, InfoNCE(5.0), {"precision": "mixed_float16"}),
    "float16 in chunks": (FROZEN, InfoNCE(5.0), {"precision": "mixed_float16", "chunk_size": 4}),
}
TAUGHT = {"taught, in chunks": Distillation(Bundle(Path("nobody"), {}), 0.6, 2.0, teacher_scale=9.0)}


class Rows:
    """Batches of `ROWS` rows; rows 0 and 7, on different replicas, show one image, 1, 2 and 10 have one caption."""

    steps_per_epoch = STEPS

    def __init__(self, config: DualEncoderConfig, watch: Callable[[int], None] = lambda step: None) -> None:
        self.whole = config.image_backbone.trainable
        self.watch = watch  # called before each step

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        for step in range(start, STEPS):
            self.watch(step)
            generator = np.random.default_rng([epoch, step])
            batch = {
                "image_row": np.array([3, 1, 2, 0, 4, 5, 6, 3, 8, 9, 10], np.int32),
                "caption_group": np.array([0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 1], np.int32),
            }
            batch |= {f"teacher_{side}": generator.normal(size=(ROWS, 7)).astype(np.float32) for side in SIDES}
            if self.whole:
                batch["image"] = generator.normal(size=(ROWS, 8, 8, 3)).astype(np.float32)
                batch["ids"] = generator.integers(1, 30, (ROWS, 6)).astype(np.int32)
                batch["mask"] = np.ones((ROWS, 6), np.int32)
            else:
                batch["image_features"] = generator.normal(size=(ROWS, 16)).astype(np.float32)
                batch["text_features"] = generator.normal(size=(ROWS, 16)).astype(np.float32)
            yield batch


def trainer(case: str, replicas: Replicas, directory: Path, epochs: int = 1) -> Trainer:
    """A trainer of a case, on its initial weights."""
    config, objective, changes = CASES[case]
    keras.utils.set_random_seed(3)
    with replicas.scope():
        model = DualEncoder(
            config,
            objective.initial_scale,
            precision=changes.get("precision", "float32"),
            initial_bias=objective.initial_bias,
        )
    figures = {"recall": 0.0, "loss": 0.0}
    wanted = settings(epochs=epochs, batch_size=ROWS, patience=0, **changes)
    taught = TAUGHT.get(case)
    return Trainer(model, objective, wanted, Rows(config), lambda: figures, directory, case, replicas, taught)


class Watched:
    """What a run shows: its losses, the gradients of its first step, and all variables at the end."""

    def __init__(self, case: str, replicas: Replicas, directory: Path) -> None:
        run = trainer(case, replicas, directory)
        self.start = arrays(run)
        self.gradients: list[np.ndarray] = []

        def watch(step: int) -> None:
            if step == 1:  # Adam's moments after one step are the gradient and its square, times constants
                self.gradients = [np.asarray(variable) for variable in run.optimizer.variables]

        run.batches = Rows(CASES[case][0], watch)
        self.losses = [row["loss"] for row in run.fit().history]
        self.end = arrays(run)


def arrays(run: Trainer) -> list[np.ndarray]:
    """Every variable but the biases of the keys of attention, a third of `qkv_bias`, which change nothing: their
    gradients are rounding alone, and Adam makes steps of full length of that."""
    found = []
    for variable in run._checkpoint_variables().values():
        array = np.asarray(variable).copy()
        if getattr(variable, "path", "").endswith("/qkv_bias"):
            third = len(array) // 3
            array[third : 2 * third] = 0
        found.append(array)
    return found


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference of any number, against the largest size of its array's numbers where that is over 1e-3."""
    return max(
        float(np.abs(a.astype(np.float64) - b).max() / max(np.abs(b.astype(np.float64)).max(), 1e-3))
        for a, b in zip(one, other, strict=True)
    )


def compare(case: str, one: Replicas, two: Replicas, directory: Path) -> dict[str, float]:
    alone, shared = (Watched(case, replicas, directory / str(replicas.count)) for replicas in (one, two))
    return {
        "loss": abs(alone.losses[0] - shared.losses[0]) / alone.losses[0],
        "gradients": difference(shared.gradients, alone.gradients),
        "end": difference(shared.end, alone.end),
        "moved": difference(alone.start, alone.end),
    }


def resume(one: Replicas, two: Replicas, directory: Path) -> dict[str, float]:
    """Stop in the second step and go on with another number of replicas, both ways."""
    expected = Watched("InfoNCE", one, directory / "straight").end
    found = {}
    for name, first, then in (("on two", one, two), ("on one", two, one)):
        stopped = trainer("InfoNCE", first, directory / name)
        stopped.batches = Rows(FROZEN, watch=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 1 else None)
        with contextlib.suppress(KeyboardInterrupt):
            stopped.fit()
        seen: list[int] = []
        resumed = trainer("InfoNCE", then, directory / name)
        resumed.batches = Rows(FROZEN, watch=seen.append)
        resumed.fit()
        assert seen == [2, 3], seen
        found[name] = difference(arrays(resumed), expected)
    return found


def overflow(one: Replicas, two: Replicas, directory: Path) -> dict[str, list[float]]:
    """A weight and the loss scale at the start, after a step, and after one with an overflow on the second replica."""
    with two.scope():
        weight = keras.Variable(1.0)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
        optimizer.build([weight])

    def step(batch: Mapping[str, Any]) -> Any:
        gradients = equally_finite([tf.reduce_sum(batch["x"]) * optimizer.dynamic_scale.value])
        optimizer.apply_gradients(zip(gradients, [weight], strict=True))
        return total(tf.constant(0.0))

    run = two.function(step)
    states = []
    for rows in ([], [0.25, 0.5], [0.25, np.inf]):
        if rows:
            run({"x": np.float32(rows)})
        states.append([np.asarray(weight).item(), np.asarray(optimizer.dynamic_scale).item()])
    return {"weight": [w for w, _ in states], "scale": [s for _, s in states]}


def too_few_rows(one: Replicas, two: Replicas, directory: Path) -> str:
    try:
        two.function(lambda batch: tf.constant(0.0))({"image_row": np.zeros(1, np.int32)})
    except TrainingError as error:
        return str(error)
    return ""


def command(one: Replicas, two: Replicas, directory: Path) -> dict[str, str]:
    """The engines of what the command itself trains and writes on two devices, one tower frozen and one not."""
    on_gpus = Replicas.on_gpus
    Replicas.on_gpus = classmethod(lambda cls, limit: two)  # type: ignore[method-assign]
    try:
        model = dataclasses.replace(shapes.RECIPE.model, image_backbone=shapes.FROZEN.model.image_backbone)
        recipe = dataclasses.replace(shapes.RECIPE, model=model).with_settings(epochs=2)
        train(recipe, shapes.write_shapes(directory / "data"), directory / "model")
    finally:
        Replicas.on_gpus = on_gpus  # type: ignore[method-assign]
    runtime = Runtime.load(directory / "model")
    return {"image": runtime.image_engine.name, "text": runtime.text_engine.name}


def main(directory: Path, names: list[str]) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one, two = Replicas(), Replicas(["CPU:0", "CPU:1"])
    others = {"resume": resume, "overflow": overflow, "too few rows": too_few_rows, "command": command}
    found = {}
    for number, name in enumerate(names):
        place = directory / str(number)
        found[name] = others[name](one, two, place) if name in others else compare(name, one, two, place)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
