"""Converts Keras models to ONNX graphs that ONNX Runtime runs fast, and joins two of them; knows no bundle.

Keras's own formulas convert to graphs that ONNX Runtime does not recognise, or (exact GELU) refuses. While a model is
traced here, five of them are computed by the textbook formulas that ONNX Runtime fuses into single kernels, and
embeddings by formulas of fewer operations.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from data.durable import write_atomic
from data.errors import UserError
from dual_encoder.onnx_attention import fuse_attention
from dual_encoder.onnx_layout import read_pixels_in_place
from dual_encoder.onnx_shapes import state_reshapes

if TYPE_CHECKING:
    import keras
    import onnx

# The first opset with LayerNormalization, the fused form of what is traced here.
OPSET = 17

HEAD_PREFIX = "head/"  # of the names in a joined graph's second part

# Raised where the same model is converted to another graph, so that graphs in a cache are made again.
GRAPH_REVISION = 4

# Weights of so many numbers or more do not go through the converter, whose every pass copies all constants.
LARGE = 2**16

# The formulas are swapped in Keras's own classes, so one trace at a time.
_TRACING = threading.Lock()


def export_onnx(model: keras.Model, path: Path, l2_normalised: bool = False) -> None:
    """Write `model` to `path` as ONNX in inference mode, with its input names and any batch size and length.

    The output is called "features", or "embeddings" with `l2_normalised`, which divides each row by its length.
    Raises `UserError` for a model of strings or of several outputs; an operation without an ONNX form raises what the
    converter raises. While it runs, no other thread may trace or train a Keras model.
    """
    import keras
    import tensorflow as tf

    names = {tensor.name: tensor for tensor in model.inputs}
    if len(model.outputs) != 1 or any(tensor.dtype == "string" for tensor in model.inputs):
        raise UserError("a model of numbers with one output", model.name, "run it in TensorFlow instead")
    signature = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in names.items()}

    large = {f"weight_{n}": v for n, v in enumerate(model.weights) if math.prod(v.shape) >= LARGE}
    weights = {name: tf.TensorSpec(v.shape, v.dtype, name=name) for name, v in large.items()}

    def compute(inputs: dict[str, Any], weights: dict[str, Any]) -> Any:
        with keras.StatelessScope(state_mapping=[(large[name], value) for name, value in weights.items()]):
            features = model(inputs if isinstance(model.input, dict) else next(iter(inputs.values())), training=False)
        return tf.math.l2_normalize(features, axis=-1, epsilon=1e-12) if l2_normalised else features

    with _TRACING, _fusable_formulas():
        function = tf.function(compute, autograph=False).get_concrete_function(signature, weights)
    graph = _convert(function, "embeddings" if l2_normalised else "features", weights)
    _fill_in(graph, large)
    read_pixels_in_place(graph)
    state_reshapes(graph)
    fuse_attention(graph)
    write_atomic(path, graph.SerializeToString())


def merge_onnx(first: Path, second: Path, path: Path) -> None:
    """Write to `path` one graph that feeds the only output of `first` to the only input of `second`."""
    import onnx

    body = onnx.load(first)
    head = onnx.compose.add_prefix(onnx.load(second), HEAD_PREFIX, rename_inputs=True, rename_outputs=False)
    link = (body.graph.output[0].name, head.graph.input[0].name)
    # A name that both graphs have, as in output "features" of both, would be taken for one tensor.
    if head.graph.output[0].name == body.graph.output[0].name:
        body = onnx.compose.add_prefix(body, "body/", rename_inputs=False, rename_functions=False)
        link = (body.graph.output[0].name, link[1])
    merged = onnx.compose.merge_models(body, head, io_map=[link])
    state_opsets_once(merged)
    write_atomic(path, merged.SerializeToString())


def state_opsets_once(model: onnx.ModelProto) -> None:
    """Name the version of each set of operations once: graphs that were joined name it once each."""
    from onnx import helper

    versions = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())


def _convert(function: Any, output_name: str, weights: Collection[str]) -> onnx.ModelProto:
    """The ONNX model of a traced function whose inputs are named after their arguments; `weights` are among these."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tf2onnx.optimizer import optimize_graph
    from tf2onnx.tfonnx import process_tf_graph

    inputs = {tensor.name: tensor.name.split(":")[0] for tensor in function.inputs if tensor.dtype != tf.resource}
    # A SavedModel inside reads its own variables, whatever it is given.
    unread = {tensor.name for tensor in function.inputs if not tensor.consumers()}
    inputs = {name: plain for name, plain in inputs.items() if plain not in weights or name not in unread}
    outputs = {tensor.name: output_name for tensor in function.outputs}
    with _quiet("tf2onnx"), tf.device("/cpu:0"):
        # Not tf2onnx.convert.from_function: its Grappler pass rewrites the very formulas that are to be recognised, and
        # its optimiser copies the graph with all weights some fifty times.
        frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen.graph.as_graph_def(add_shapes=True), name="")
            converted = process_tf_graph(
                graph,
                opset=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                tensors_to_rename={**inputs, **outputs},
            )
        converted = optimize_graph(converted, catch_errors=False, optimizers=_graph_optimizers())
        return converted.make_model("dual encoder tower")


def _fill_in(model: onnx.ModelProto, weights: Mapping[str, Any]) -> None:
    """Make constants of the inputs that stand for weights, and name the axes of the others."""
    from onnx import numpy_helper

    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(value for value in inputs if value.name not in weights)
    for value in inputs:
        if value.name in weights:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(weights[value.name]), value.name))
    _name_axes(model)


def _graph_optimizers() -> dict[str, Callable[[], Any]]:
    """tf2onnx's passes without the ones that hide what ONNX Runtime looks for (a ReduceMean behind a pooling)."""
    from tf2onnx import optimizer

    unwanted = ("global_pool_optimizer", "einsum_optimizer", "q_dq_optimizer", "const_dequantize_optimizer")
    return {name: cls for name, cls in optimizer._get_optimizers().items() if name not in unwanted}


def _name_axes(model: onnx.ModelProto) -> None:
    """Call the open axes "batch" and "length" instead of giving each input its own unknown."""
    for value in [*model.graph.input, *model.graph.output]:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = "batch" if axis == 0 else "length"


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _fusable_formulas() -> Iterator[None]:
    """Compute layer normalisation, GELU, dense layers, embeddings and attention by formulas that suit ONNX Runtime."""
    import tensorflow as tf
    from keras import layers

    attention = layers.MultiHeadAttention
    swaps = [
        (layers.LayerNormalization, "call", _layer_normalization(layers.LayerNormalization.call)),
        (layers.Dense, "call", _dense(layers.Dense.call)),
        (layers.EinsumDense, "call", _einsum_dense(layers.EinsumDense.call)),
        (layers.Embedding, "call", _embedding(layers.Embedding.call)),
        (attention, "_compute_attention", _attention(attention._compute_attention)),
        (tf.nn, "gelu", _gelu(tf.nn.gelu)),
    ]
    if "keras_hub" in sys.modules:  # a model without its layers need not wait for its import
        positions = sys.modules["keras_hub"].layers.PositionEmbedding
        swaps.append((positions, "call", _position_embedding(positions.call)))
    with ExitStack() as stack:
        for owner, name, formula in swaps:
            stack.enter_context(mock.patch.object(owner, name, formula))
        yield


def _layer_normalization(original: Callable) -> Callable:
    import tensorflow as tf

    def call(self, inputs):
        last_axis = list(self.axis) in ([-1], [len(inputs.shape) - 1])
        if not last_axis or self.rms_scaling or self.gamma is None or self.beta is None:
            return original(self, inputs)
        x = tf.cast(inputs, tf.float32)
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.pow(centred, 2.0), axis=-1, keepdims=True)
        return tf.cast(centred / tf.sqrt(variance + self.epsilon) * self.gamma + self.beta, self.compute_dtype)

    return call


def _gelu(original: Callable) -> Callable:
    import tensorflow as tf

    def gelu(features, approximate=False, name=None):
        if approximate:
            return original(features, approximate=True, name=name)
        return 0.5 * features * (1.0 + tf.math.erf(features / math.sqrt(2.0)))

    return gelu


def _dense(original: Callable) -> Callable:
    """ONNX multiplies (B, L, F) by a matrix directly; Keras would fold and unfold B and L by their dynamic sizes."""
    import tensorflow as tf
    from keras import ops

    def call(self, inputs, training=None):
        if len(inputs.shape) == 2:
            return original(self, inputs, training=training)
        x = tf.matmul(inputs, ops.convert_to_tensor(self.kernel))
        x = x if self.bias is None else x + self.bias
        return x if self.activation is None else self.activation(x)

    return call


def _einsum_dense(original: Callable) -> Callable:
    """A contraction of the last axes with the kernel's first is one matrix product."""
    import tensorflow as tf
    from keras import ops

    def call(self, inputs, training=None):
        left, _, result = self.equation.partition("->")
        data, _, weights = left.partition(",")
        bound = "".join(axis for axis in data if axis in weights)
        free, rest = data.removesuffix(bound), weights.removeprefix(bound)
        if data != free + bound or weights != bound + rest or result != free + rest or "." in self.equation:
            return original(self, inputs, training=training)
        kernel = ops.convert_to_tensor(self.kernel)
        split = len(bound)
        matrix = tf.reshape(kernel, (math.prod(kernel.shape[:split]), math.prod(kernel.shape[split:])))
        batch = tf.shape(inputs, out_type=tf.int64)[: len(free)]
        if split > 1:
            inputs = tf.reshape(inputs, tf.concat([batch, matrix.shape[:1]], axis=0))
        x = tf.matmul(inputs, matrix)
        if len(rest) > 1:
            x = tf.reshape(x, tf.concat([batch, kernel.shape[split:]], axis=0))
        x = x if self.bias is None else x + self.bias
        return x if self.activation is None else self.activation(x)

    return call


def _embedding(original: Callable) -> Callable:
    """ONNX counts negative ids from the end by itself, where Keras would compute them."""
    import tensorflow as tf
    from keras import ops

    def call(self, inputs):
        if inputs.dtype not in (tf.int32, tf.int64):
            return original(self, inputs)
        return tf.cast(tf.gather(ops.convert_to_tensor(self.embeddings), inputs), self.compute_dtype)

    return call


def _position_embedding(original: Callable) -> Callable:
    """The first positions for all rows at once, without a copy of them for each."""
    import tensorflow as tf
    from keras import ops

    def call(self, inputs, start_index=0, positions=None):
        if start_index != 0 or positions is not None:
            return original(self, inputs, start_index, positions)
        return ops.convert_to_tensor(self.position_embeddings)[: tf.shape(inputs)[-2]]

    return call


def _attention(original: Callable) -> Callable:
    """Scaled dot-product attention with the mask as an added penalty, heads before tokens."""
    import tensorflow as tf

    def compute(
        self,
        query,
        key,
        value,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        use_causal_mask=False,
    ):
        if return_attention_scores or use_causal_mask or len(query.shape) != 4:
            return original(self, query, key, value, attention_mask, training, return_attention_scores, use_causal_mask)
        query, key, value = (tf.transpose(tensor, (0, 2, 1, 3)) for tensor in (query, key, value))
        scores = tf.matmul(query, key, transpose_b=True) * self._inverse_sqrt_key_dim
        if attention_mask is not None:
            penalty = (1.0 - tf.cast(attention_mask, scores.dtype)) * -1e9
            scores += penalty if len(penalty.shape) == 4 else tf.expand_dims(penalty, 1)
        return tf.transpose(tf.matmul(tf.nn.softmax(scores), value), (0, 2, 1, 3)), None

    return compute
