"""The training loop: steps, validation, checkpoints, exact resume; knows no data set and no bundle."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from data.console import progress, say
from data.errors import BundleError, TrainingError
from dual_encoder.distillation import Distillation, Taught
from dual_encoder.feature_batches import Batches
from dual_encoder.gradient_cache import GradientCache
from dual_encoder.losses import Matches, Objective
from dual_encoder.model import DualEncoder
from dual_encoder.recipe import TrainerConfig
from dual_encoder.replicas import Replicas, equally_finite, gathered, share, total
from dual_encoder.trained_model import TrainedModel
from dual_encoder.weight_averaging import MovingAverage, best_interpolation, interpolated
from dual_encoder.weights import load_weights, save_weights

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60.0


@dataclass
class Progress:
    """Where a run stands; stored with the weights in its checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    loss_sum: float = 0.0  # of this epoch so far
    finished: bool = False
    alpha: float = 1.0  # how far the result lies from the weights at the start to the best epoch's (WiSE-FT)
    alpha_scores: dict[str, float] = field(default_factory=dict)

    def waited(self) -> int:
        """Epochs since the best one."""
        return len(self.history) - 1 - self.best_epoch


class Trainer:
    """Trains `model` on `batches`; `validate` gives figures after each epoch, "recall" and "loss" among them.

    `run_key` names everything that decides the result; a checkpoint of another run is refused. With several `replicas`,
    `model` was made in their scope; how many there are does not decide, so a run may go on with another number. For
    `distillation`, batches hold what its teacher says of them.
    """

    def __init__(
        self,
        model: DualEncoder,
        objective: Objective,
        config: TrainerConfig,
        batches: Batches,
        validate: Callable[[], Mapping[str, float]],
        directory: Path,
        run_key: str,
        replicas: Replicas | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self.distillation = distillation
        self.model, self.objective, self.config = model, objective, config
        self.batches, self.validate = batches, validate
        self.directory, self.run_key = directory, run_key
        self.progress = Progress()
        self.replicas = replicas or Replicas()
        self.trained = TrainedModel(model, config.fine_tuning)
        with self.replicas.scope():
            self.optimizer = self.trained.optimizer(config, batches.steps_per_epoch)
        self.average = MovingAverage(model.trainable_variables, config.average_decay)
        self.start = self.best = self.trained.arrays()
        self._step = self._new_step()

    def fit(self) -> Progress:
        """Train to the end, from the checkpoint if there is one, and leave the model with the best epoch's weights."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._restore()
        writer = tf.summary.create_file_writer(str(self.directory / "tensorboard"))
        with _deferred_interrupt() as interrupted, writer.as_default():
            while not self._done():
                self._epoch(interrupted)
        writer.close()
        if not self.progress.finished:
            self._choose_interpolation()
            self.progress.finished = True
            self._save()
        self.trained.assign(interpolated(self.start, self.best, self.progress.alpha))
        return self.progress

    def _choose_interpolation(self) -> None:
        """Decide how far to go from the start to the best epoch."""
        state, sign = self.progress, self._monitor()[1]

        def score(alpha: float) -> float:
            self.trained.assign(interpolated(self.start, self.best, alpha))
            return sign * float(self.validate()[self.config.monitor])

        if self.config.interpolate:
            trained = self.trained.arrays()
            state.alpha, scores = best_interpolation(self.config.interpolate, score)
            state.alpha_scores = {alpha: sign * value for alpha, value in scores.items()}
            self.trained.assign(trained)  # what the checkpoint holds beside the best
            say(f"{state.alpha:g} of the way from the start to the best epoch is kept")

    def _done(self) -> bool:
        stopped = self.config.patience and self.progress.waited() >= self.config.patience
        return self.progress.finished or self.progress.epoch >= self.config.epochs or bool(stopped)

    def _epoch(self, interrupted: Callable[[], bool]) -> None:
        state, steps = self.progress, self.batches.steps_per_epoch
        total = steps * self.config.epochs
        losses = [row["validation_loss"] for row in state.history]
        if self.trained.unfreeze(state.epoch):
            self._step = self._new_step()
        saved = time.monotonic()
        label = f"epoch {state.epoch + 1}/{self.config.epochs}"
        for batch in progress(self.batches.epoch(state.epoch, state.step), label, steps, state.step, quiet=True):
            done = state.epoch * steps + state.step
            self.optimizer.learning_rate.assign(self.config.schedule.learning_rate(done, total, losses))
            loss = float(self._step(batch))
            self.average.update(done)
            if not np.isfinite(loss):
                raise _not_finite("loss", loss, state.epoch)
            state.loss_sum += loss
            state.step += 1
            if interrupted():
                self._save()
                raise KeyboardInterrupt
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
        self._end_epoch()

    def _end_epoch(self) -> None:
        state = self.progress
        loss = state.loss_sum / max(1, state.step)
        with self.average.in_place():
            figures = self.validate()
            weights = self.trained.arrays()
        if not np.isfinite(figures["loss"]):  # the last step may have spoiled the weights
            raise _not_finite("validation loss", figures["loss"], state.epoch)
        state.history.append(
            {
                "loss": loss,
                "learning_rate": float(np.asarray(self.optimizer.learning_rate)),
                "scale": float(np.exp(np.asarray(self.model.log_scale))),
                **({} if self.model.logit_bias is None else {"bias": float(np.asarray(self.model.logit_bias))}),
                **{f"validation_{name}": float(value) for name, value in figures.items()},
            }
        )
        if self._improved():
            state.best_epoch = state.epoch
            self.best = weights
        row = state.history[-1]
        for name, value in row.items():
            tf.summary.scalar(name, value, step=state.epoch)
        say(
            f"epoch {state.epoch + 1}/{self.config.epochs}: loss {loss:.4f}, validation loss "
            f"{row['validation_loss']:.4f}, recall {100 * row['validation_recall']:.1f} %"
            + (" (best so far)" if state.best_epoch == state.epoch else "")
        )
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        self._save()

    def _monitor(self) -> tuple[str, int]:
        """The figure that chooses the best epoch, and 1 where more of it is better, else -1."""
        return f"validation_{self.config.monitor}", 1 if self.config.monitor == "recall" else -1

    def _improved(self) -> bool:
        name, sign = self._monitor()
        scores = [sign * row[name] for row in self.progress.history]
        return self.progress.best_epoch < 0 or scores[-1] > scores[self.progress.best_epoch]

    def _new_step(self) -> Callable[[Mapping[str, Any]], Any]:
        """A training step for what trains now."""
        self._cache = None
        if self.config.chunk_size:
            trained = self.trained
            states = [variable for variable in trained.variables().values() if not variable.trainable]
            self._cache = GradientCache(trained.project, self._loss, trained.trainable, states, self.config.chunk_size)
        return self.replicas.function(self._train_step)

    def _train_step(self, batch: Mapping[str, Any]) -> Any:
        """One step with this replica's rows of the batch; the loss of all rows."""
        matches = Matches.of_batch(batch) if self.distillation is None else Taught.of_batch(batch)
        if self._cache is not None:
            loss, gradients = self._cache(batch, matches)
        else:
            with tf.GradientTape() as tape:
                image, text = self.trained.project(batch)
                loss, scaled = self._loss(image, text, matches)
            gradients = tape.gradient(scaled, self.trained.trainable)
        self._apply(gradients)
        return total(loss)

    def _loss(self, image: Any, text: Any, matches: Matches | Taught) -> tuple[Any, Any]:
        """This replica's share of the loss over all rows, and what is to be differentiated: scaled for float16."""
        image, text, matches = gathered((image, text, matches))
        loss_of: Callable[..., Any] = self.objective
        if self.distillation is not None:
            loss_of = functools.partial(self.distillation.mixed, self.objective)
        loss = loss_of(image, text, self.model.log_scale, matches, self.model.logit_bias, share())
        return loss, self.optimizer.scale_loss(loss)

    def _apply(self, gradients: Sequence[Any]) -> None:
        """Move the weights by the sum of all replicas' gradients; None is no gradient."""
        variables = self.trained.trainable
        gradients = [
            tf.zeros_like(variable) if gradient is None else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        if self.config.precision == "mixed_float16":
            gradients = equally_finite(gradients)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        # Beyond its limit the scale would have no gradient and never come back.
        self.model.log_scale.assign(tf.minimum(self.model.log_scale, math.log(self.objective.max_scale)))

    def _checkpoint_variables(self) -> dict[str, Any]:
        others = {"optimizer": self.optimizer.variables, "average": self.average.averages}
        named = {f"{part}/{i:04d}": v for part, variables in others.items() for i, v in enumerate(variables)}
        return {**{f"model/{name}": variable for name, variable in self.trained.variables().items()}, **named}

    def _save(self) -> None:
        best = {f"best/{name}": array for name, array in self.best.items()}
        metadata = {"run": self.run_key, "progress": json.dumps(self.progress.__dict__)}
        save_weights(self.directory / CHECKPOINT, {**self._checkpoint_variables(), **best}, metadata)

    def _restore(self) -> None:
        path = self.directory / CHECKPOINT
        if not path.exists():
            return
        best = {f"best/{name}": _Slot(array) for name, array in self.best.items()}
        try:
            metadata = load_weights(path, {**self._checkpoint_variables(), **best}, expected={"run": self.run_key})
        except BundleError as error:
            raise TrainingError(
                "a checkpoint of this same run (recipe, data and settings)",
                error.received,
                f"add --fresh to start again, or give another --out; the checkpoint is {path}",
            ) from None
        self.best = {name: best[f"best/{name}"].array for name in self.best}
        self.progress = Progress(**json.loads(metadata["progress"]))
        say(f"going on from epoch {self.progress.epoch + 1}, step {self.progress.step}, of {path}")


class _Slot:
    """Takes an array from a checkpoint, as a variable would."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def assign(self, array: np.ndarray) -> None:
        self.array = array


def _not_finite(what: str, value: float, epoch: int) -> TrainingError:
    return TrainingError(f"a finite {what}", f"{value} in epoch {epoch + 1}", "lower the learning rate")


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a flag that is read between steps, so that no checkpoint holds half a step."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
