"""Lets the first convolution of an ONNX graph read pixels as they lie in memory; knows no Keras and no bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# Pixels have so many channels at most; a convolution of many reads them faster side by side.
MOST_CHANNELS = 4

CONTRIBUTED = "com.microsoft"  # the domain of ONNX Runtime's own operations


def read_pixels_in_place(model: onnx.ModelProto) -> None:
    """Replace "transpose (B, H, W, C) to (B, C, H, W), convolve" at an input of the graph by one convolution.

    A kernel (kh, kw) over C interleaved channels is the kernel (kh, kw · C) over rows of W · C numbers, with a stride
    and padding along the row of C times as much: the same products and sums without a copy of all pixels. Convolutions
    that are dilated, grouped or padded by name stay as they are, and so does an input that something else reads too.
    """
    graph = model.graph
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.input}
    for transpose in list(graph.node):
        if transpose.op_type != "Transpose" or list(attributes(transpose).get("perm", ())) != [0, 3, 1, 2]:
            continue
        height, width, channels = shapes.get(transpose.input[0], [0, 0, 0, 0])[1:]
        readers = [node for node in graph.node if transpose.output[0] in node.input]
        if not (height and width and 1 <= channels <= MOST_CHANNELS) or len(readers) != 1:
            continue
        if _is_plain(readers[0]) and (kernel := _constant(graph, readers[0].input[1])) is not None:
            _convolve_rows(graph, transpose, readers[0], kernel, (height, width, channels))


def _convolve_rows(
    graph: onnx.GraphProto,
    transpose: onnx.NodeProto,
    convolution: onnx.NodeProto,
    kernel: np.ndarray,
    size: tuple[int, int, int],
) -> None:
    """Put a view (B, 1, H, W · C) in the place of a transposition; `kernel` is the convolution's, (F, C, kh, kw)."""
    from onnx import helper, numpy_helper

    height, width, channels = size
    filters, _, rows, columns = kernel.shape
    flat = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1).reshape(filters, 1, rows, columns * channels))
    settings = attributes(convolution)
    top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
    down, along = settings.get("strides", [1, 1])
    settings |= {
        "kernel_shape": [rows, columns * channels],
        "pads": [top, left * channels, bottom, right * channels],
        "strides": [down, along * channels],
    }
    names = [f"{transpose.output[0]}/shape", f"{convolution.output[0]}/rows"]
    arrays = [np.array([0, 1, height, width * channels], np.int64), flat]
    graph.initializer.extend(map(numpy_helper.from_array, arrays, names))
    inputs = [convolution.input[0], names[1], *convolution.input[2:]]
    transpose.CopyFrom(
        helper.make_node("Reshape", [transpose.input[0], names[0]], list(transpose.output), transpose.name)
    )
    convolution.CopyFrom(helper.make_node("Conv", inputs, list(convolution.output), convolution.name, **settings))
    drop_unread(graph)


def _constant(graph: onnx.GraphProto, name: str) -> np.ndarray | None:
    """The value of a constant, or of one transposed; None for what depends on the inputs."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for node in graph.node:
        if name in node.output and node.op_type == "Transpose":
            stored = _constant(graph, node.input[0])
            return None if stored is None else stored.transpose(attributes(node)["perm"])
    return None


def add_constant(graph: onnx.GraphProto, name: str, array: Any) -> str:
    """Put a constant into the graph; return its name."""
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [node for node in graph.node if read.intersection(node.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution without groups and dilation whose padding is told in numbers."""
    settings = attributes(node)
    return (
        node.op_type == "Conv"
        and settings.get("group", 1) == 1
        and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(step == 1 for step in settings.get("dilations", ()))
    )


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's settings by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
