"""Masked self-attention becomes one node that gives the same, and can be told in standard operations again."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from dual_encoder import onnx_export
from dual_encoder.int8_graph import find_products
from dual_encoder.onnx_attention import fuse_attention, in_standard_operations
from dual_encoder.onnx_export import export_onnx, merge_onnx


def encoder(bias: bool = True) -> keras.Model:
    """Two layers as BERT's, by Keras's own attention, of 3 heads."""
    keras.utils.set_random_seed(0)
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype="int32", name="mask")
    x = layers.Embedding(50, 24)(ids)
    for _ in range(2):
        attention = layers.MultiHeadAttention(3, 8, use_bias=bias, bias_initializer="random_normal")
        seen = keras.ops.expand_dims(mask, 1)
        x = layers.LayerNormalization()(x + attention(4 * x, 4 * x, attention_mask=seen))
    return keras.Model({"ids": ids, "mask": mask}, layers.GlobalAveragePooling1D()(x), name="encoder")


def tokens(rows: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows * 100 + length)
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return {"ids": random.integers(0, 50, (rows, length)).astype(np.int32), "mask": mask}


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The encoder as it is traced, and as it is exported."""
    directory = tmp_path_factory.mktemp("graphs")
    model = encoder()
    export_onnx(model, directory / "fused.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "fuse_attention", lambda graph: None)
        export_onnx(model, directory / "traced.onnx")
    return onnx.load(directory / "traced.onnx"), onnx.load(directory / "fused.onnx")


def test_an_encoder_is_exported_with_one_node_for_each_attention(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    traced, fused = graphs
    assert kinds(traced).count("Softmax") == 2
    assert kinds(fused).count("Attention") == 2
    assert not {"Softmax", "Transpose"} & set(kinds(fused))
    assert kinds(fused).count("MatMul") == 2, "what follows an attention"
    onnx.checker.check_model(fused, full_check=True)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("length", [1, 2, 16, 128])
def test_any_batch_and_length_gives_what_the_traced_graph_gives(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto], rows: int, length: int
) -> None:
    traced, fused = graphs
    inputs = tokens(rows, length)
    expected = run(traced, inputs)
    np.testing.assert_allclose(run(fused, inputs), expected, atol=1e-5)
    np.testing.assert_allclose(run(in_standard_operations(fused), inputs), expected, atol=1e-5)


def test_what_is_masked_is_not_attended_to_whatever_number_the_mask_has_elsewhere(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    """Nothing at all is seen in the last row."""
    traced, fused = graphs
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [2, -1, 1, 0, 1], [0, 0, 0, 0, 0]], np.int32)
    inputs = {"ids": np.arange(20, dtype=np.int32).reshape(4, 5), "mask": mask}
    np.testing.assert_allclose(run(fused, inputs), run(traced, inputs), atol=1e-5)
    unmasked = run(fused, inputs | {"mask": np.ones_like(mask)})
    assert np.abs(unmasked - run(fused, inputs)).max() > 1e-3, "the mask matters"


def test_onnx_runtime_computes_the_node_by_its_own_kernel(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(graphs[1].SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert kinds(onnx.load(tmp_path / "optimised.onnx")).count("Attention") == 2


def test_standard_operations_name_no_other_domain_and_have_products_to_find(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    standard = in_standard_operations(graphs[1])
    onnx.checker.check_model(standard, full_check=True)
    assert not standard.functions
    assert {node.domain for node in standard.graph.node} <= {"", "ai.onnx"}
    assert "com.microsoft" not in {entry.domain for entry in standard.opset_import}
    found = [(product.weight.shape, bool(product.bias.any())) for product in find_products(standard)]
    assert found == [((24, 24), True)] * 8
    names = [node.name for node in standard.graph.node]
    assert len(names) == len(set(names))


def test_a_graph_without_functions_stays_as_it_is(graphs: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    """As the graphs of bundles that were made before."""
    assert in_standard_operations(graphs[0]) == graphs[0]


def test_a_head_is_joined_to_a_fused_encoder(graphs: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path: Path) -> None:
    """Also where the names of both outputs have to be told apart."""
    given = keras.Input((24,), name="given")
    onnx.save(graphs[1], tmp_path / "body.onnx")
    same = layers.Dense(24, kernel_initializer="identity")(given)
    export_onnx(keras.Model(given, same), tmp_path / "head.onnx")
    merge_onnx(tmp_path / "body.onnx", tmp_path / "head.onnx", tmp_path / "tower.onnx")
    tower = onnx.load(tmp_path / "tower.onnx")
    inputs = tokens(3, 7)
    assert kinds(tower).count("Attention") == 2
    for model in (tower, in_standard_operations(tower)):
        np.testing.assert_allclose(run(model, inputs), run(graphs[0], inputs), atol=1e-5)


def test_attention_without_biases_stays_as_it_is(tmp_path: Path) -> None:
    export_onnx(encoder(bias=False), tmp_path / "encoder.onnx")
    model = onnx.load(tmp_path / "encoder.onnx")
    assert kinds(model).count("Softmax") == 2
    assert not model.functions


@pytest.mark.parametrize("part", ["Softmax", "Mul", "MatMul"])
def test_attention_of_which_something_else_reads_a_part_stays_as_it_is(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto], part: str
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graphs[0])
    makers = {name: node for node in model.graph.node for name in node.output}
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    scaled = makers[makers[softmax.input[0]].input[0]]
    node = {"Softmax": softmax, "Mul": scaled, "MatMul": makers[scaled.input[0]]}[part]
    model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    fuse_attention(model)
    assert kinds(model).count("Attention") == 1
    assert kinds(model).count("Softmax") == 1
