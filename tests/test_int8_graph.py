"""A graph with products in int8 computes what its rounded weights and activations say, whatever runs beside a text."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dual_encoder.int8_graph import Int8Fit, find_products
from dual_encoder.int8_rounding import fit_input, fit_weight

WIDTH, HEADS = 16, 4


@pytest.fixture
def model() -> onnx.ModelProto:
    """Two products of one tensor, of which the first adds its bias by heads, then one more, and a head."""
    rng = np.random.default_rng(0)
    arrays = {
        **{name: rng.normal(size=(WIDTH, WIDTH)) for name in ("key", "value", "out", "head")},
        "key_bias": rng.normal(size=(HEADS, WIDTH // HEADS)),
        "value_bias": rng.normal(size=WIDTH),
    }
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    constants.append(numpy_helper.from_array(np.array([0, 0, HEADS, -1], np.int64), "heads"))
    constants.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "joined"))
    steps = [
        ("MatMul", ["x", "key"], "a"),
        ("Reshape", ["a", "heads"], "b"),
        ("Add", ["b", "key_bias"], "c"),
        ("Reshape", ["c", "joined"], "d"),
        ("MatMul", ["x", "value"], "e"),
        ("Add", ["value_bias", "e"], "f"),
        ("Mul", ["d", "f"], "g"),
        ("MatMul", ["g", "out"], "h"),
        ("MatMul", ["h", "head"], "y"),
    ]
    nodes = [helper.make_node(kind, names, [out], name=f"{'head/' * (out == 'y')}{out}") for kind, names, out in steps]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", WIDTH]) for name in "xy")
    mask = helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "length"])
    graph = helper.make_graph(nodes, "tower", [x, mask], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batches(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        mask = (np.arange(6) < rng.integers(1, 7, (8, 1))).astype(np.int32)
        x = rng.uniform(-1, 1, (8, 6, WIDTH)).astype(np.float32)
        found.append({"x": np.where(mask[..., None], x, 1e6).astype(np.float32), "mask": mask})  # padding is no measure
    return found


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {"x": x, "mask": np.ones(x.shape[:2], np.int32)}
    return session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_products_are_found_with_their_biases(model: onnx.ModelProto) -> None:
    found = {product.node: product for product in find_products(model)}
    assert list(found) == ["a", "e", "h", "head/y"]
    assert found["a"].bias.shape == (WIDTH,)
    assert (found["a"].reshape, found["a"].add) == ("b", "c")
    assert (found["e"].reshape, found["e"].add) == (None, "f")
    assert not found["h"].bias.any()


def test_the_graph_computes_almost_the_same_and_a_text_alone_what_it_computes_among_others(
    model: onnx.ModelProto,
) -> None:
    quantised = Int8Fit(model, batches(), "head/").graph()
    assert kinds(quantised).count("MatMulIntegerToFloat") == 3
    assert kinds(quantised).count("QuantizeLinear") == 2, "products of one tensor share its bytes"
    assert kinds(quantised).count("MatMul") == 1, "the head stays in float32"
    assert "Add" not in kinds(quantised), "biases are added by the products"
    assert not {"key", "value", "out"} & {tensor.name for tensor in quantised.graph.initializer}
    x = np.random.default_rng(5).uniform(-0.9, 0.9, (8, 6, WIDTH)).astype(np.float32)
    exact, found = run(model, x), run(quantised, x)
    assert np.square(found - exact).sum() < 0.005 * np.square(exact).sum()
    np.testing.assert_allclose(run(quantised, x[3:4]), found[3:4], rtol=1e-5, atol=1e-5)


def test_the_products_that_harm_most_stay_in_float32_up_to_a_share_of_the_weights(model: onnx.ModelProto) -> None:
    fit = Int8Fit(model, batches(), "head/")
    x = batches(1)[0]["x"].clip(-1, 1)
    exact = run(model, x)
    errors = [np.square(run(fit.graph(share), x) - exact).sum() for share in (0.0, 0.34, 0.67, 1.0)]
    left = [kinds(fit.graph(share)).count("MatMulIntegerToFloat") for share in (0.0, 0.3, 0.34, 0.67, 1.0)]
    assert left[:2] == [3, 3], "none is as small as that"
    assert left[-1] == 0
    assert errors[0] > errors[2] > errors[3] == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_do_not_overflow(sign: int) -> None:
    """On a processor without VNNI, which adds two of them in 16 bits."""
    weight = sign * np.tile(np.array([[64, 127], [64, 1]], np.float32), (8, 8))
    x = np.tile(np.linspace(0, 1, 256, dtype=np.float32)[:, None], (1, WIDTH))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    chosen = fit_input(x, weight)
    assert np.abs(fit_weight(x, weight, chosen).values.astype(int).reshape(8, 2, WIDTH).sum(axis=1)).max() >= 127
    quantised = Int8Fit(model, [{"x": x}], "head/").graph()
    session = onnxruntime.InferenceSession(quantised.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=0.01, atol=2)
