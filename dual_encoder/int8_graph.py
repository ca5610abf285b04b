"""Puts matrix products in int8 into an ONNX graph, fitted to activations it records; knows no bundle and no metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dual_encoder.int8_rounding import Int8Input, Int8Weight, fit_input, fit_weight
from dual_encoder.onnx_layout import CONTRIBUTED, add_constant, attributes, drop_unread

if TYPE_CHECKING:
    import onnx

MOST_ROWS = 4096  # of each product's inputs are kept to fit it to
JUDGED_BATCHES = 1  # show what a single product does to the output


@dataclass(frozen=True)
class Product:
    """A node that multiplies a tensor by a constant matrix (K, N), and the one that adds its bias (N,), if any does.

    Between both lie only nodes that change the shape, the last of which is `reshape`.
    """

    node: str
    input: str
    weight: np.ndarray
    bias: np.ndarray
    reshape: str | None
    add: str | None


@dataclass(frozen=True)
class Int8Product:
    """A product, how its input becomes bytes, and its weights in bytes."""

    product: Product
    input: Int8Input
    weight: Int8Weight


class Int8Fit:
    """A graph's products by constant matrices in int8, but those of nodes whose name begins with `excluded`.

    `batches` are inputs of the graph such as it will have to deal with. Where they have a "mask" (B, L), only the
    places where it is not 0 count.
    """

    def __init__(self, model: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]], excluded: str) -> None:
        self._model, self._judged = model, batches[:JUDGED_BATCHES]
        groups: dict[str, list[Product]] = defaultdict(list)  # products that read one tensor share its bytes
        for product in find_products(model):
            if not product.node.startswith(excluded):
                groups[product.input].append(product)
        inputs = record(model, groups, batches)
        self._fitted: dict[str, list[Int8Product]] = {}
        for name, products in groups.items():
            seen = inputs.pop(name)
            chosen = fit_input(seen, np.concatenate([product.weight for product in products], axis=1))
            self._fitted[name] = [Int8Product(each, chosen, fit_weight(seen, each.weight, chosen)) for each in products]

    def graph(self, in_float: float = 0.0) -> onnx.ModelProto:
        """The graph in int8, but for products that harm its output most: up to a share `in_float` of the weights."""
        sizes = {name: sum(part.product.weight.size for part in parts) for name, parts in self._fitted.items()}
        left, kept = in_float * sum(sizes.values()), set()
        for name in sorted(sizes, key=lambda name: self._harm[name] / sizes[name], reverse=True) if left else ():
            if sizes[name] <= left:
                left -= sizes[name]
                kept.add(name)
        return _replaced(self._model, [part for name in sizes if name not in kept for part in self._fitted[name]])

    @cached_property
    def _harm(self) -> dict[str, float]:
        """What each does to the output when it alone is in int8: the sum of squares of the difference."""

        def outputs(model: onnx.ModelProto) -> np.ndarray:
            return np.concatenate([arrays[0] for arrays in _runs(model, self._judged)])

        exact = outputs(self._model)
        return {
            name: float(np.square(outputs(_replaced(self._model, parts)) - exact).sum())
            for name, parts in self._fitted.items()
        }


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Every product of a tensor by a constant matrix, in the graph's order."""
    constants = _constants(model.graph)
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    found = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[0] in constants:
            continue
        weight = constants.get(node.input[1])
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            continue
        reshape, reader = None, _only(readers[node.output[0]])
        while reader is not None and reader.op_type == "Reshape":
            reshape, reader = reader, _only(readers[reader.output[0]])
        bias = None
        if reader is not None and reader.op_type == "Add":
            bias = next((constants[name] for name in reader.input if name in constants), None)
        if bias is not None and bias.size == weight.shape[1]:
            assert reader is not None
            place = reshape.name if reshape is not None else None
            found.append(Product(node.name, node.input[0], weight, bias.reshape(-1), place, reader.name))
        else:
            found.append(Product(node.name, node.input[0], weight, np.zeros(weight.shape[1], np.float32), None, None))
    return found


def record(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What the named tensors hold while the graph runs, (T, K) each, from at most `MOST_ROWS` tokens."""
    import onnx

    wanted = list(names)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch, arrays in zip(batches, _runs(watched, batches), strict=False):
        mask = batch.get("mask")
        for name, found in zip(wanted, arrays, strict=True):
            masked = mask is not None and found.ndim == 3 and found.shape[:2] == mask.shape
            rows[name].append(found[mask != 0] if masked else found.reshape(-1, found.shape[-1]))
        if min(sum(map(len, parts)) for parts in rows.values()) >= MOST_ROWS:
            break
    return {name: np.concatenate(parts)[:MOST_ROWS] for name, parts in rows.items()}


def _runs(model: onnx.ModelProto, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """All outputs of a graph for one batch after the other."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = [entry.name for entry in session.get_inputs()]
    for batch in batches:
        yield session.run(None, {name: batch[name] for name in known})


def _replaced(model: onnx.ModelProto, fitted: Iterable[Int8Product]) -> onnx.ModelProto:
    import onnx
    from onnx import helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = {node.name: node for node in result.graph.node}
    put: dict[str, list[onnx.NodeProto]] = {}
    quantised: set[str] = set()
    gone = set()
    for each in fitted:
        product = each.product
        before = [] if product.input in quantised else _quantise(result.graph, product.input, each.input)
        quantised.add(product.input)
        if product.add is not None:
            nodes[product.reshape or product.node].output[0] = nodes[product.add].output[0]
            gone.add(product.add)
        put[product.node] = [*before, _multiply(result.graph, product, each.weight, nodes[product.node].output[0])]
    kept = [new for node in result.graph.node if node.name not in gone for new in put.get(node.name, [node])]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    drop_unread(result.graph)
    if CONTRIBUTED not in {entry.domain for entry in result.opset_import}:
        result.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    return result


def _quantise(graph: onnx.GraphProto, name: str, chosen: Int8Input) -> list[onnx.NodeProto]:
    from onnx import helper

    nodes, read = [], name
    if chosen.factors is not None:
        read = f"{name}/divided"
        inverse = add_constant(graph, f"{name}/factors", (1 / chosen.factors).astype(np.float32))
        nodes.append(helper.make_node("Mul", [name, inverse], [read], name=read))
    scale = add_constant(graph, f"{name}/scale", np.float32(chosen.scale))
    zero = add_constant(graph, f"{name}/zero_point", np.uint8(chosen.zero_point))
    nodes.append(helper.make_node("QuantizeLinear", [read, scale, zero], [f"{name}/int8"], name=f"{name}/int8"))
    return nodes


def _multiply(graph: onnx.GraphProto, product: Product, weight: Int8Weight, output: str) -> onnx.NodeProto:
    from onnx import helper

    arrays = {
        "weight": weight.values,
        "scales": weight.scales,
        "weight_zero": np.int8(0),
        "bias": product.bias + weight.correction,
    }
    values, scales, zero, bias = (
        add_constant(graph, f"{product.node}/{name}", array) for name, array in arrays.items()
    )
    read = product.input
    inputs = [f"{read}/int8", values, f"{read}/scale", scales, f"{read}/zero_point", zero, bias]
    return helper.make_node("MatMulIntegerToFloat", inputs, [output], name=product.node, domain=CONTRIBUTED)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Constants by name, reshaped ones and parts of equal size too."""
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and all(name in found for name in node.input):
            found[node.output[0]] = found[node.input[0]].reshape(found[node.input[1]])
        if node.op_type == "Split" and len(node.input) == 1 and node.input[0] in found:
            parts = np.split(found[node.input[0]], len(node.output), attributes(node).get("axis", 0))
            found.update(zip(node.output, parts, strict=True))
    return found


def _only(nodes: list[onnx.NodeProto]) -> onnx.NodeProto | None:
    return nodes[0] if len(nodes) == 1 else None
