"""Computes attention in an ONNX graph by one kernel of ONNX Runtime; knows no Keras and no bundle.

The kernel multiplies by the weights of query, key and value at once and writes heads before tokens, without a copy. The
graph says itself what it stands for, in a function of standard operations, which `in_standard_operations` puts in its
place: for what runs no kernels of ONNX Runtime, and for what looks at the products inside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dual_encoder.onnx_layout import CONTRIBUTED, add_constant, attributes, drop_unread

if TYPE_CHECKING:
    import onnx

HEADS_FIRST, HEADS_FIRST_TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]  # of (B, L, heads, size)
BOOLEAN = 9  # among ONNX's types


@dataclass(frozen=True)
class _Attention:
    """Self-attention of `input` (B, L, F) where `mask` (B, L) is not 0, as it stands in a graph."""

    input: str
    mask: str
    weights: list[np.ndarray]  # of query, key and value, (F, heads * size) each
    biases: list[np.ndarray]  # (heads, size) each
    scale: float
    penalty: float  # added to the scores of what is masked
    last: onnx.NodeProto  # gives (B, L, heads * size)


def fuse_attention(model: onnx.ModelProto) -> None:
    """Put ONNX Runtime's `Attention` in the place of masked self-attention, with its three products and biases.

    Attention without a mask, with another one than (B, L), or without biases stays as it is, and so does one of which
    anything else reads a part.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    found = list(_Reading(graph).attentions())
    if not found:
        return
    masks: dict[str, str] = {}
    put: dict[str, list[onnx.NodeProto]] = {}
    for attention in found:
        name, nodes = attention.last.output[0], []
        if attention.mask not in masks:
            masks[attention.mask] = f"{attention.mask}/attended"
            seen = f"{attention.mask}/seen"
            nodes.append(helper.make_node("Cast", [attention.mask], [seen], seen, to=BOOLEAN))
            attended = masks[attention.mask]
            nodes.append(helper.make_node("Cast", [seen], [attended], attended, to=TensorProto.INT32))
        weight = add_constant(graph, f"{name}/weight", np.concatenate(attention.weights, axis=1))
        bias = add_constant(graph, f"{name}/bias", np.concatenate(attention.biases).reshape(-1))
        nodes.append(
            helper.make_node(
                "Attention",
                [attention.input, weight, bias, masks[attention.mask]],
                [name],
                attention.last.name,
                domain=CONTRIBUTED,
                num_heads=len(attention.biases[0]),
                scale=attention.scale,
                mask_filter_value=attention.penalty,
            )
        )
        put[name] = nodes
    kept = [new for node in graph.node for new in put.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread(graph)
    model.functions.append(_attention_in_standard_operations(model))
    model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))


def in_standard_operations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with what the functions in it say in their place."""
    from onnx import inliner

    if not model.functions:
        return model
    result = inliner.inline_local_functions(model)
    domains = {node.domain for node in result.graph.node}
    needed = [entry for entry in result.opset_import if entry.domain != CONTRIBUTED or CONTRIBUTED in domains]
    del result.opset_import[:]
    result.opset_import.extend(needed)
    return result


def _attention_in_standard_operations(model: onnx.ModelProto) -> onnx.FunctionProto:
    """`Attention` as `fuse_attention` uses it, with a mask (B, L) of 0 and 1."""
    from onnx import parser

    version = next(entry.version for entry in model.opset_import if entry.domain == "")
    function = parser.parse_function(f"""
        <domain: "{CONTRIBUTED}", opset_import: ["" : {version}]>
        Attention <num_heads, scale, mask_filter_value> (x, weight, bias, mask) => (y)
        {{
            query_weight, key_weight, value_weight = Split <axis = 1> (weight)
            query_bias, key_bias, value_bias = Split <axis = 0> (bias)
            query_product = MatMul (x, query_weight)
            key_product = MatMul (x, key_weight)
            value_product = MatMul (x, value_weight)
            query_rows = Add (query_product, query_bias)
            key_rows = Add (key_product, key_bias)
            value_rows = Add (value_product, value_bias)
            whole = Constant <value_ints = [0, 0]> ()
            heads = Constant <value_int: int = @num_heads> ()
            rest = Constant <value_ints = [-1]> ()
            first = Constant <value_ints = [0]> ()
            head_axis = Unsqueeze (heads, first)
            split = Concat <axis = 0> (whole, head_axis, rest)
            joined = Constant <value_ints = [0, 0, -1]> ()
            query_heads = Reshape (query_rows, split)
            key_heads = Reshape (key_rows, split)
            value_heads = Reshape (value_rows, split)
            query = Transpose <perm = {HEADS_FIRST}> (query_heads)
            key = Transpose <perm = {HEADS_FIRST_TRANSPOSED}> (key_heads)
            value = Transpose <perm = {HEADS_FIRST}> (value_heads)
            likeness = MatMul (query, key)
            factor = Constant <value_float: float = @scale> ()
            scaled = Mul (likeness, factor)
            one = Constant <value_float = 1.0> ()
            attended = Cast <to = 1> (mask)
            unseen = Sub (one, attended)
            each = Constant <value_float: float = @mask_filter_value> ()
            penalties = Mul (unseen, each)
            axes = Constant <value_ints = [1, 2]> ()
            penalty = Unsqueeze (penalties, axes)
            scores = Add (scaled, penalty)
            shares = Softmax <axis = -1> (scores)
            mixed = MatMul (shares, value)
            tokens_first = Transpose <perm = {HEADS_FIRST}> (mixed)
            y = Reshape (tokens_first, joined)
        }}
    """)
    function.doc_string = "what ONNX Runtime computes by a kernel of its own"
    for node in function.node:
        node.name = node.output[0]
    return function


class _Reading:
    """A graph, read backwards and forwards from its softmaxes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in graph.output}

    def attentions(self) -> Iterator[_Attention]:
        """What is recognised."""
        for node in self.graph.node:
            if node.op_type == "Softmax" and attributes(node).get("axis", -1) in (-1, 3):
                with suppress(_OtherwiseError):
                    yield self._attention(node)

    def _attention(self, softmax: onnx.NodeProto) -> _Attention:
        masked = self._maker(softmax.input[0], "Add")
        scaled = self._maker(masked.input[0], "Mul")
        scores = self._maker(scaled.input[0], "MatMul")
        mixed = self._reader(softmax, "MatMul")
        joined = self._reader(mixed, "Transpose")
        last = self._reader(joined, "Reshape")
        _require(mixed.input[0] == softmax.output[0] and attributes(joined)["perm"] == HEADS_FIRST)
        read = [
            self._projection(scores.input[0], HEADS_FIRST),
            self._projection(scores.input[1], HEADS_FIRST_TRANSPOSED),
            self._projection(mixed.input[1], HEADS_FIRST),
        ]
        inputs, weights, biases = (list(part) for part in zip(*read, strict=True))
        _require(len(set(inputs)) == 1 and len({bias.shape for bias in biases}) == 1)
        _require(self._value(last.input[1]).tolist() in ([0, 0, biases[0].size], [0, 0, -1]))
        mask, penalty = self._mask(masked.input[1])
        return _Attention(inputs[0], mask, weights, biases, self._number(scaled.input[1]), penalty, last)

    def _projection(self, name: str, permutation: list[int]) -> tuple[str, np.ndarray, np.ndarray]:
        """The input (B, L, F), weight (F, heads * size) and bias (heads, size) of what is read by heads."""
        by_heads = self._maker(name, "Transpose")
        added = self._maker(by_heads.input[0], "Add")
        split = self._maker(added.input[0], "Reshape")
        product = self._maker(split.input[0], "MatMul")
        weight, bias = self._value(product.input[1]), self._value(added.input[1])
        _require(attributes(by_heads)["perm"] == permutation and weight.ndim == bias.ndim == 2)
        _require(weight.dtype == bias.dtype == np.float32 and weight.shape[1] == bias.size)
        _require(self._value(split.input[1]).tolist() == [0, 0, *bias.shape])
        return product.input[0], weight, bias

    def _mask(self, name: str) -> tuple[str, float]:
        """The mask (B, L) that a penalty (B, 1, 1, L) is made of, and what is added where it is 0."""
        by_heads = self._maker(name, "Unsqueeze", shared=True)
        penalty = self._maker(by_heads.input[0], "Mul", shared=True)
        unseen = self._maker(penalty.input[0], "Sub", shared=True)
        number = self._maker(unseen.input[1], "Cast", shared=True)
        boolean = self._maker(number.input[0], "Cast", shared=True)
        by_tokens = self._maker(boolean.input[0], "Unsqueeze", shared=True)
        _require(self._number(unseen.input[0]) == 1 and attributes(boolean)["to"] == BOOLEAN)
        _require(self._value(by_heads.input[1]).tolist() == self._value(by_tokens.input[1]).tolist() == [1])
        return by_tokens.input[0], self._number(penalty.input[1])

    def _maker(self, name: str, operation: str, shared: bool = False) -> onnx.NodeProto:
        """The node that makes a tensor, which only one other reads unless it may be `shared`."""
        node = self.makers.get(name)
        if node is None or node.op_type != operation or not (shared or self._is_read_once(name)):
            raise _OtherwiseError
        return node

    def _reader(self, node: onnx.NodeProto, operation: str) -> onnx.NodeProto:
        """The only node that reads what a node makes."""
        _require(self._is_read_once(node.output[0]))
        (reader,) = self.readers[node.output[0]]
        _require(reader.op_type == operation)
        return reader

    def _is_read_once(self, name: str) -> bool:
        return len(self.readers[name]) == 1 and name not in self.outputs

    def _value(self, name: str) -> np.ndarray:
        """A constant, or one reshaped."""
        from onnx import numpy_helper

        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self._maker(name, "Reshape", shared=True)
        return self._value(node.input[0]).reshape(self._value(node.input[1]))

    def _number(self, name: str) -> float:
        value = self._value(name)
        _require(value.size == 1)
        return float(value.reshape(()))


class _OtherwiseError(Exception):
    """What is read is no attention that the kernel computes."""


def _require(holds: bool) -> None:
    if not holds:
        raise _OtherwiseError
