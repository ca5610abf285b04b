"""Computed shapes become constants where these say the same for inputs of every size, and only there."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from dual_encoder import onnx_export
from dual_encoder.onnx_export import export_onnx
from dual_encoder.onnx_shapes import state_reshapes

WIDTH = 12


def graph(nodes: list[onnx.NodeProto], rank: int = 4, **constants: object) -> onnx.ModelProto:
    """Of x (B, L, 12) and z (B, L, 12), whose open axes have the same names, to y with as many axes as `rank`."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", WIDTH]) for name in "xz"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "reshapes", inputs, [output], held)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def leading_axes_of(name: str, count: int = 2) -> list[onnx.NodeProto]:
    """Nodes that compute the first sizes of a tensor, as "sizes"."""
    return [
        helper.make_node("Shape", [name], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", str(count), "zero"], ["sizes"]),
    ]


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def values(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, length, WIDTH)).astype(np.float32)


ZERO = np.zeros(1, np.int64)
SIZES = {"zero": ZERO, "1": np.array([1]), "2": np.array([2])}


def test_sizes_of_the_tensor_that_is_reshaped_are_copied() -> None:
    """Through a product too, which keeps all axes but the last, and a cast."""
    nodes = [
        helper.make_node("MatMul", ["x", "kernel"], ["product"]),
        *leading_axes_of("x"),
        helper.make_node("Cast", ["sizes"], ["small"], to=TensorProto.INT32),
        helper.make_node("Cast", ["small"], ["large"], to=TensorProto.INT64),
        helper.make_node("Concat", ["large", "heads"], ["target"], axis=0),
        helper.make_node("Reshape", ["product", "target"], ["y"]),
    ]
    model = graph(nodes, kernel=values(1, 18)[0].T.copy(), heads=np.array([3, 6]), **SIZES)
    inputs = [{"x": values(rows, length), "z": values(1, 1)} for rows, length in ((1, 1), (3, 5), (2, 9))]
    expected = [run(model, **each) for each in inputs]
    state_reshapes(model)
    onnx.checker.check_model(model, full_check=True)
    assert kinds(model) == ["MatMul", "Reshape"]
    assert {tensor.name for tensor in model.graph.initializer} == {"kernel", "y/shape"}
    assert numpy_helper.to_array(model.graph.initializer[-1]).tolist() == [0, 0, 3, 6]
    for each, before in zip(inputs, expected, strict=True):
        np.testing.assert_array_equal(run(model, **each), before)


def test_the_one_size_that_is_left_is_what_the_others_leave() -> None:
    nodes = [
        *leading_axes_of("x", 1),
        helper.make_node("Concat", ["sizes", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    model = graph(nodes, 3, rest=np.array([-1, 6]), **SIZES)
    state_reshapes(model)
    assert kinds(model) == ["Reshape"]
    assert numpy_helper.to_array(model.graph.initializer[-1]).tolist() == [0, -1, 6]
    assert run(model, x=values(3, 5), z=values(1, 1)).shape == (3, 10, 6)


@pytest.mark.parametrize(
    "case",
    ["sizes of another tensor", "sizes at other axes", "two sizes that are folded", "a zero that is no copy"],
)
def test_a_shape_that_no_constant_says_stays_computed(case: str) -> None:
    read, target, settings = "x", ["sizes", "rest"], {}
    constants = {"rest": np.array([3, 4]), **SIZES}
    before: list[onnx.NodeProto] = []
    if case == "sizes of another tensor":
        shape = leading_axes_of("z")  # names that are the same prove nothing
    elif case == "sizes at other axes":
        before = [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])]
        read, shape = "turned", leading_axes_of("x")
    elif case == "two sizes that are folded":
        before = [helper.make_node("Reshape", ["x", "rows"], ["folded"])]
        read, shape, constants["rows"] = "folded", leading_axes_of("x"), np.array([-1, WIDTH])
    else:
        shape, settings = leading_axes_of("x"), {"allowzero": 1}
    nodes = [
        *before,
        *shape,
        helper.make_node("Concat", target, ["target"], axis=0),
        helper.make_node("Reshape", [read, "target"], ["y"], **settings),
    ]
    model = graph(nodes, **constants)
    serialised = model.SerializeToString(deterministic=True)
    state_reshapes(model)
    assert model.SerializeToString(deterministic=True) == serialised


@pytest.fixture(scope="module")
def encoder() -> keras.Model:
    """Token and position embeddings and a layer as BERT's, with KerasHub's layers."""
    from keras_hub.layers import PositionEmbedding, TransformerEncoder

    keras.utils.set_random_seed(0)
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype="int32", name="mask")
    tokens = layers.Embedding(50, 24)(ids)
    x = layers.LayerNormalization()(layers.Add()([tokens, PositionEmbedding(40)(tokens)]))
    for _ in range(2):
        x = TransformerEncoder(48, 3, activation=keras.activations.gelu)(x, padding_mask=mask)
    return keras.Model({"ids": ids, "mask": mask}, layers.GlobalAveragePooling1D()(x), name="encoder")


def encoder_inputs(rows: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows * 100 + length)
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return {"ids": random.integers(0, 50, (rows, length)).astype(np.int32), "mask": mask}


def test_an_exported_encoder_computes_no_shape_to_reshape_by(
    encoder: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "fuse_attention", lambda graph: None)
    export_onnx(encoder, tmp_path / "encoder.onnx")
    model = onnx.load(tmp_path / "encoder.onnx")
    constants = {tensor.name for tensor in model.graph.initializer}
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape"]
    assert len(reshapes) >= 8
    assert not [node.name for node in reshapes if node.input[1] not in constants]
    assert kinds(model).count("Shape") == 1  # how many positions are looked up
    assert not {"Less", "Not", "Equal", "Expand"} & set(kinds(model))  # negative ids and copies of positions


def test_an_exported_encoder_gives_what_the_computed_shapes_give(
    encoder: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(encoder, tmp_path / "stated.onnx")
    monkeypatch.setattr(onnx_export, "state_reshapes", lambda graph: None)
    export_onnx(encoder, tmp_path / "computed.onnx")
    stated, computed = (onnx.load(tmp_path / f"{name}.onnx") for name in ("stated", "computed"))
    assert len(stated.graph.node) < len(computed.graph.node)
    for rows, length in ((1, 1), (1, 16), (3, 7), (5, 40)):
        inputs = encoder_inputs(rows, length)
        np.testing.assert_allclose(run(stated, **inputs), run(computed, **inputs), atol=1e-6)
        np.testing.assert_allclose(run(stated, **inputs), encoder(inputs, training=False), atol=1e-5)


def test_negative_ids_are_counted_from_the_end_as_in_keras(encoder: keras.Model, tmp_path: Path) -> None:
    export_onnx(encoder, tmp_path / "encoder.onnx")
    inputs = encoder_inputs(2, 5) | {"ids": np.array([[0, -1, 3, -50, 5], [-2, 48, 1, 2, 3]], np.int32)}
    found = run(onnx.load(tmp_path / "encoder.onnx"), **inputs)
    np.testing.assert_allclose(found, encoder(inputs, training=False), atol=1e-5)
