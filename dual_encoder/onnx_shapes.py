"""States in an ONNX graph the shapes that it would compute to reshape by; knows no Keras and no bundle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dual_encoder.onnx_layout import attributes, drop_unread

if TYPE_CHECKING:
    import onnx

# Constants of so many numbers or more are no shapes: inference need not see what they hold.
LARGE = 2**10

COPY, REST = 0, -1  # of Reshape: the input's size at this axis; what the other sizes leave


def state_reshapes(model: onnx.ModelProto) -> None:
    """Replace each shape that is computed for a Reshape by a constant that says the same for inputs of any size.

    A size is a number, or a copy of the input's at the same axis, or the only one left; a shape with two sizes of which
    none of these is known stays as it is. What nothing reads any more is dropped.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    computed = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] not in constants]
    shapes = _shapes(model) if computed else {}
    stated = 0
    for node in computed:
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if before is None or after is None or attributes(node).get("allowzero", 0):
            continue
        sizes = [_size(axis, size, before) for axis, size in enumerate(after)]
        if sizes.count(REST) < 2:
            name = f"{node.output[0]}/shape"
            graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
            node.input[1] = name
            stated += 1
    if stated:
        drop_unread(graph)


def _size(axis: int, size: Any, before: Any) -> int:
    """What Reshape is told of one axis of its output, which has that size; `before` are the sizes of its input."""
    if axis < len(before) and size.dim_param and size.dim_param == before[axis].dim_param:
        return COPY
    return size.dim_value or REST


def _shapes(model: onnx.ModelProto) -> dict[str, Any]:
    """The axes of every tensor: with a number, or a name that only axes of the same size share."""
    import onnx
    from onnx import helper, shape_inference

    graph = model.graph
    inputs = []
    for value in graph.input:
        inputs.append(onnx.ValueInfoProto())
        inputs[-1].CopyFrom(value)
        for axis, size in enumerate(inputs[-1].type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):  # names that are given may be the same by mistake
                size.dim_param = f"{value.name}/{axis}"
    outputs = [
        helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None) for value in graph.output
    ]
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) >= LARGE]
    inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) < LARGE]
    outline = helper.make_model(
        helper.make_graph(graph.node, "outline", inputs, outputs, small),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    found = shape_inference.infer_shapes(outline, data_prop=True).graph
    values = [*found.input, *found.value_info, *found.output]
    return {v.name: v.type.tensor_type.shape.dim for v in values if v.type.tensor_type.HasField("shape")}
