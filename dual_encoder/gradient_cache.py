"""Gradients of a large contrastive batch in the memory of a small one (GradCache); knows no optimizer and no data set.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv:2101.06983. A
contrastive loss needs every row's embedding at once, but not every row's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

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

    To be called inside a `tf.function`. `project(batch)` gives both sides' projections (B, D). `loss(image, text,
    positives)` gives the loss to report and the one to differentiate, which may be scaled; what it needs to know beside
    the projections are `positives`. `variables` are those of `project` and of `loss`.
    """

    def __init__(
        self,
        project: Callable[[Batch], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]],
        variables: Sequence[Any],
        states: Sequence[Any],
        chunk_size: int,
    ) -> None:
        self.project, self.loss = project, loss
        self.variables, self.states, self.chunk_size = list(variables), list(states), chunk_size

    def __call__(self, batch: Batch, positives: Any) -> tuple[Tensor, list[Tensor]]:
        """The loss, float32, and its gradients in the order of `variables`; arrays of `batch` have B rows each."""
        before = [tf.identity(state) for state in self.states]
        image, text = self._embed(batch)
        loss, cached, gradients = self._loss_gradients(image, text, positives)
        for state, value in zip(self.states, before, strict=True):
            state.assign(value)
        return loss, self._add_chunks(batch, cached, gradients)

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Projections (B, D) float32 of both sides, without what differentiation would need."""
        count = self._chunks(batch)
        store = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, None))
        widths: list[int | None] = []

        def add(number: Tensor, images: tf.TensorArray, texts: tf.TensorArray) -> tuple[Tensor, Any, Any]:
            image, text = (tf.cast(side, tf.float32) for side in self.project(self._chunk(batch, number)))
            widths[:] = [image.shape[-1]]
            return number + 1, images.write(number, image), texts.write(number, text)

        _, *stores = _one_by_one(count, add, [store, store])
        image, text = (tf.ensure_shape(side.concat(), (None, widths[0])) for side in stores)
        return image, text

    def _loss_gradients(
        self, image: Tensor, text: Tensor, positives: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
        """The loss, its gradients by the projections, and by `variables`: the scale's, the bias's, otherwise zero."""
        with tf.GradientTape() as tape:
            tape.watch((image, text))
            loss, scaled = self.loss(image, text, positives)
        by_image, by_text, *others = self._dense(tape, scaled, [image, text, *self.variables])
        return loss, (by_image, by_text), others

    def _add_chunks(self, batch: Batch, cached: tuple[Tensor, Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """`gradients` and those of every chunk, its rows of the cache being the gradients of its output."""

        def add(number: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
            chunk = self._chunk({"image": cached[0], "text": cached[1]}, number)
            with tf.GradientTape() as tape:
                image, text = self.project(self._chunk(batch, number))
            outputs = [tf.cast(chunk["image"], image.dtype), tf.cast(chunk["text"], text.dtype)]
            parts = self._dense(tape, [image, text], self.variables, outputs)
            return number + 1, *(tf.add(*pair) for pair in zip(sums, parts, strict=True))

        _, *sums = _one_by_one(self._chunks(batch), add, gradients)
        return sums

    def _chunks(self, batch: Batch) -> Tensor:
        rows = tf.shape(next(iter(batch.values())))[0]
        return (rows + self.chunk_size - 1) // self.chunk_size

    def _chunk(self, batch: Batch, number: Tensor) -> dict[str, Tensor]:
        start = number * self.chunk_size
        return {name: values[start : start + self.chunk_size] for name, values in batch.items()}

    @staticmethod
    def _dense(tape: tf.GradientTape, target: Any, sources: list[Any], outputs: Any = None) -> list[Tensor]:
        """Gradients as plain tensors, zero where there are none, so that they add up."""
        found = tape.gradient(target, sources, output_gradients=outputs)
        return [
            tf.zeros_like(source) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, source in zip(found, sources, strict=True)
        ]


def _one_by_one(count: Tensor, step: Callable[..., Any], carried: list[Any]) -> Any:
    """`step(number, *carried)` for each chunk; side by side, chunks would add up in memory."""
    return tf.while_loop(lambda number, *_: number < count, step, (tf.constant(0), *carried), parallel_iterations=1)
