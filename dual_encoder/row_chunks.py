"""A sum over the rows of a batch, taken chunk by chunk with exact gradients; knows no objective.

A contrastive loss compares every row with every other, B² numbers that differentiation keeps until the gradient is
taken. Here each chunk's gradient is taken at once and only the sums are kept, so that memory grows with chunk · B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dual_encoder.replicas import rows_of_share

Tensor = Any


def sum_over_rows(
    loss_of_rows: Callable[..., Tensor], chunk_rows: int, *tensors: Tensor, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """`loss_of_rows(all rows, *tensors)`, a float32 scalar, for a loss that is a sum over rows.

    `loss_of_rows` takes row numbers (R,) int32 and all of `tensors`, the first of which has the batch's B rows; it must
    reach anything that is to have a gradient through them. At most `chunk_rows` rows are taken at a time; 0 takes all
    at once. Share (i, n) sums over the i-th of n parts of the rows alone, for one of n replicas; the parts add up. The
    gradient is of first order only.
    """
    tensors = tuple(tf.convert_to_tensor(tensor) for tensor in tensors)
    known = tensors[0].shape[0]
    first, last = rows_of_share(tf.shape(tensors[0])[0], share)
    if not chunk_rows or (known is not None and known <= chunk_rows):
        return loss_of_rows(tf.range(first, last), *tensors)

    @tf.custom_gradient
    def total(*tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        def add_chunk(start: Tensor, loss: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
            end = tf.minimum(start + chunk_rows, last)
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                part = loss_of_rows(tf.range(start, end), *tensors)
            parts = tape.gradient(part, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return end, loss + part, [tf.add(*pair) for pair in zip(gradients, parts, strict=True)]

        _, loss, gradients = tf.while_loop(
            lambda start, *_: start < last,
            add_chunk,
            (first, tf.constant(0.0), [tf.zeros_like(tensor) for tensor in tensors]),
            parallel_iterations=1,  # chunks side by side would need their memory at the same time
        )
        return loss, lambda upstream: [upstream * gradient for gradient in gradients]

    return total(*tensors)
