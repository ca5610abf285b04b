"""Gradients of a large contrastive batch in the memory of a small one (GradCache); knows no optimizer and no data set.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv:2101.06983. A
contrastive loss needs every row's embedding at once, but not every row's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from dual_encoder.losses import Matches

Tensor = Any
Batch = Mapping[str, Any]


class GradientCache:
    """Computes the loss of a batch and its gradients, `chunk_size` rows at a time.

    1. Every chunk is projected without keeping activations.
    2. The loss of the whole batch is differentiated with respect to the projections: the cache.
    3. Every chunk is projected again, now differentiated, with the cached gradients as output gradients.

    The result equals differentiation in one pass over the same chunks, within float32 rounding. Random layers draw per
    chunk, and draw the same in 1 and 3, since `states` (generators, moving averages: whatever `project` changes) are
    put back in between; afterwards they stand as after one pass. A layer that looks across rows, such as batch
    normalisation in training, sees a chunk and not the batch.

    `project(batch)` gives both sides' projections (B, D). `loss(image, text, positives)` gives the loss to report and
    the one to differentiate, which may be scaled. `variables` are those of `project` and of `loss`.
    """

    def __init__(
        self,
        project: Callable[[Batch], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor, Matches], tuple[Tensor, Tensor]],
        variables: Sequence[Any],
        states: Sequence[Any],
        chunk_size: int,
    ) -> None:
        self.project, self.loss = project, loss
        self.variables, self.states, self.chunk_size = list(variables), list(states), chunk_size
        # Steps of their own, one after another: inside one graph, chunks could run side by side and add up in memory.
        self._embed = tf.function(project, reduce_retracing=True)
        self._differentiate_loss = tf.function(self._loss_gradients, reduce_retracing=True)
        self._differentiate_chunk = tf.function(self._chunk_gradients, reduce_retracing=True)

    def __call__(self, batch: Batch, positives: Matches) -> tuple[Tensor, list[Tensor]]:
        """The loss, float32, and its gradients in the order of `variables`; arrays of `batch` have B rows each."""
        before = [tf.identity(state) for state in self.states]
        projections = [self._embed(chunk) for chunk in self._chunks(batch)]
        image, text = (tf.concat(side, axis=0) for side in zip(*projections, strict=True))
        loss, cached, gradients = self._differentiate_loss(image, text, positives)
        for state, value in zip(self.states, before, strict=True):
            state.assign(value)
        for chunk, outputs in zip(self._chunks(batch), self._chunks(cached), strict=True):
            parts = self._differentiate_chunk(chunk, outputs)
            gradients = [tf.add(*pair) for pair in zip(gradients, parts, strict=True)]
        return loss, gradients

    def _chunks(self, batch: Batch) -> Iterator[dict[str, Any]]:
        rows = len(next(iter(batch.values())))
        for start in range(0, rows, self.chunk_size):
            yield {name: values[start : start + self.chunk_size] for name, values in batch.items()}

    def _loss_gradients(
        self, image: Tensor, text: Tensor, positives: Matches
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """The loss, its gradients by the projections, and by `variables`: the scale's, the bias's, otherwise zero."""
        with tf.GradientTape() as tape:
            tape.watch((image, text))
            loss, scaled = self.loss(image, text, positives)
        by_image, by_text, *others = self._dense(tape, scaled, [image, text, *self.variables])
        return loss, {"image": by_image, "text": by_text}, others

    def _chunk_gradients(self, chunk: Batch, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        with tf.GradientTape() as tape:
            image, text = self.project(chunk)
        return self._dense(tape, [image, text], self.variables, [outputs["image"], outputs["text"]])

    @staticmethod
    def _dense(tape: tf.GradientTape, target: Any, sources: list[Any], outputs: Any = None) -> list[Tensor]:
        """Gradients as plain tensors, zero where there are none, so that they add up."""
        found = tape.gradient(target, sources, output_gradients=outputs)
        return [
            tf.zeros_like(source) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, source in zip(found, sources, strict=True)
        ]
