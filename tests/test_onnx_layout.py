"""Pixels are convolved as they lie in memory, to the same numbers; graphs of another kind stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from dual_encoder.onnx_export import export_onnx
from dual_encoder.onnx_layout import read_pixels_in_place


def graph(kernel: np.ndarray, size: tuple[int, int, int], readers: int = 1, **settings: Any) -> onnx.ModelProto:
    """Pixels (B, H, W, C), transposed, convolved by kernels (F, C / group, kh, kw) once or more often."""
    nodes = [helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2])]
    nodes += [helper.make_node("Conv", ["planes", "kernel", "bias"], [f"y{n}"], **settings) for n in range(readers)]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", *size])
    outputs = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, [None] * 4) for n in range(readers)]
    bias = np.arange(len(kernel), dtype=np.float32)
    constants = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")]
    body = helper.make_graph(nodes, "convolution", [pixels], outputs, constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


@pytest.mark.parametrize(
    ("channels", "kernel", "settings"),
    [
        (3, (3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
        (3, (7, 5), {"strides": [1, 2], "pads": [3, 2, 1, 0]}),
        (1, (2, 3), {}),
        (4, (4, 4), {"strides": [4, 4]}),
        (3, (1, 1), {"dilations": [1, 1], "group": 1}),
    ],
)
def test_a_convolution_of_interleaved_pixels_is_the_convolution_of_planes(
    channels: int, kernel: tuple[int, int], settings: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    model = graph(random.normal(size=(5, channels, *kernel)).astype(np.float32), (12, 16, channels), **settings)
    for rows in (1, 3):
        pixels = random.normal(size=(rows, 12, 16, channels)).astype(np.float32)
        expected = run(model, pixels)
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        read_pixels_in_place(changed)
        onnx.checker.check_model(changed, full_check=True)
        assert [node.op_type for node in changed.graph.node] == ["Reshape", "Conv"]
        assert "kernel" not in {tensor.name for tensor in changed.graph.initializer}
        np.testing.assert_allclose(run(changed, pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        (3, {"dilations": [2, 2]}),
        (2, {"group": 2}),
        (3, {"auto_pad": "SAME_UPPER"}),
        (3, {"readers": 2}),
        (5, {}),
    ],
)
def test_other_graphs_stay_as_they_are(channels: int, settings: dict[str, Any]) -> None:
    kernel = np.ones((4, channels // settings.get("group", 1), 3, 3), np.float32)
    model = graph(kernel, (8, 8, channels), **settings)
    before = model.SerializeToString(deterministic=True)
    read_pixels_in_place(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_kernel_that_is_transposed_in_the_graph_is_read_as_it_is_used() -> None:
    kernel = np.random.default_rng(1).normal(size=(3, 2, 3, 4)).astype(np.float32)  # Keras's (kh, kw, C, F)
    model = graph(kernel.transpose(3, 2, 0, 1), (6, 8, 3))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "stored"))
    model.graph.node.insert(0, helper.make_node("Transpose", ["stored"], ["kernel"], perm=[3, 2, 0, 1]))
    pixels = np.random.default_rng(2).normal(size=(2, 6, 8, 3)).astype(np.float32)
    expected = run(model, pixels)
    read_pixels_in_place(model)
    assert [node.op_type for node in model.graph.node] == ["Reshape", "Conv"]
    assert "stored" not in {tensor.name for tensor in model.graph.initializer}
    np.testing.assert_allclose(run(model, pixels), expected, rtol=1e-5, atol=1e-5)


def test_an_exported_model_has_no_copy_of_its_pixels(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((16, 16, 3), name="pixels")
    x = layers.Conv2D(4, 3, 2, padding="same", use_bias=False)(pixels)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    model = keras.Model(pixels, layers.GlobalAveragePooling2D()(x))
    export_onnx(model, tmp_path / "image.onnx")
    written = onnx.load(tmp_path / "image.onnx")
    assert "Transpose" not in {node.op_type for node in written.graph.node}
    values = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(run(written, values), model(values, training=False), atol=1e-5)
