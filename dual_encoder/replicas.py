"""Runs a training step on one device or several, with the same loss and gradients; knows no data set and no loss.

Every replica holds the whole model and projects its own rows of the batch. `gathered` gives each of them all rows, so
that every row meets every other; each takes its share of the loss, and the optimizer adds the gradients up. One replica
is a plain graph, without any of this. `tf.distribute.MirroredStrategy` does the communication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from data.errors import TrainingError

Tensor = Any
Batch = Mapping[str, Any]


class Replicas:
    """The devices of a run, named as TensorFlow does ("GPU:0"); fewer than two mean TensorFlow's own choice.

    Random layers draw the same numbers on every replica, each for its own rows: with dropout, N replicas are as good as
    one and not equal to it. A layer that looks across rows, such as batch normalisation in training, sees the rows of
    its replica.
    """

    def __init__(self, devices: Sequence[str] = ()) -> None:
        self.count = max(1, len(devices))
        self._strategy = tf.distribute.MirroredStrategy(list(devices)) if self.count > 1 else None

    @classmethod
    def on_gpus(cls, limit: int | None = None) -> Replicas:
        """One on each GPU that is visible, or on the first `limit`; `TrainingError` where there are fewer."""
        gpus = [f"GPU:{number}" for number, _ in enumerate(tf.config.list_logical_devices("GPU"))]
        if limit is not None and not 1 <= limit <= max(1, len(gpus)):
            raise TrainingError(
                f"1 to {max(1, len(gpus))} devices ({len(gpus)} GPUs are visible)", str(limit), "correct --devices"
            )
        return cls(gpus[:limit])

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """What the model and the optimizer are made in."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def function(self, step: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
        """A graph of `step(batch)`, which sees its replica's rows and returns what is equal on all replicas.

        The graph takes the whole batch, a dictionary of arrays of B rows each.
        """
        if self._strategy is None:
            return tf.function(step, reduce_retracing=True)
        strategy = self._strategy
        graph = tf.function(
            lambda batch: strategy.run(lambda: step(self._own_rows(batch))),
            reduce_retracing=True,
        )

        def run(batch: Batch) -> Tensor:
            if (rows := len(next(iter(batch.values())))) < self.count:
                raise TrainingError(
                    f"a batch of at least one row for each of {self.count} devices", f"{rows}", "use a larger batch"
                )
            with tf.device("CPU:0"):  # from here every device takes its own rows
                tensors = {name: tf.convert_to_tensor(values) for name, values in batch.items()}
            return strategy.experimental_local_results(graph(tensors))[0]

        return run

    def _own_rows(self, batch: Batch) -> Batch:
        with tf.device("CPU:0"):
            first, last = rows_of_share(tf.shape(next(iter(batch.values())))[0], share())
            return {name: values[first:last] for name, values in batch.items()}


def is_mirrored(variable: Any) -> bool:
    """Whether a Keras variable has a copy on every one of several devices."""
    return isinstance(variable.value, tf.distribute.DistributedValues)


def share() -> tuple[int, int]:
    """Which replica this is, and of how many; (0, 1) outside of `Replicas.function`."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group, context.num_replicas_in_sync


def rows_of_share(rows: Tensor, share: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the rows that share (i, n) has, of `rows` (a scalar); sizes differ by one at most."""
    part, parts = share
    return part * rows // parts, (part + 1) * rows // parts


def gathered(rows: Any) -> Any:
    """All replicas' rows of every tensor in a structure, None left out; a row's gradients from all replicas add up."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return rows
    return tf.nest.map_structure(lambda own: None if own is None else context.all_gather(own, axis=0), rows)


def total(value: Tensor) -> Tensor:
    """The sum of a value over replicas."""
    context = tf.distribute.get_replica_context()
    return value if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def equally_finite(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that are NaN where those of any replica are not finite.

    Keras's LossScaleOptimizer asks one replica alone whether a step is to be skipped.
    """
    if tf.distribute.get_replica_context().num_replicas_in_sync == 1:
        return list(gradients)
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    poison = tf.where(total(tf.cast(finite, tf.float32)) < share()[1], float("nan"), 0.0)
    return [gradient + tf.cast(poison, gradient.dtype) for gradient in gradients]
