import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from data.errors import UserError
from data.images import normalise
from dual_encoder import onnx_export
from dual_encoder.onnx_export import export_onnx, merge_onnx
from dual_encoder.towers.keras_applications import KerasApplication
from dual_encoder.towers.keras_hub import KerasHubText
from dual_encoder.towers.scratch import ScratchImage, ScratchText


def session(path, optimised=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def text_model():
    keras.utils.set_random_seed(1)
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype="int32", name="mask")
    x = layers.Embedding(50, 16)(ids)
    for dropout in (0.1, 0.0):  # Keras computes attention in two ways, depending on dropout
        attended = layers.MultiHeadAttention(2, 8, dropout=dropout)(x, x, attention_mask=mask[:, None, :])
        x = layers.LayerNormalization(epsilon=1e-12)(x + attended)
    x = layers.Dense(32, activation=keras.activations.gelu)(x)
    features = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model({"ids": ids, "mask": mask}, features, name="text")


@pytest.fixture(scope="module")
def image_model():
    keras.utils.set_random_seed(2)
    pixels = keras.Input((32, 32, 3), name="pixels")
    x = layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(pixels)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(5, 2, padding="same")(x)
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(x), name="image")


def tokens(rows, length):
    rng = np.random.default_rng(rows * 100 + length)
    mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return {"ids": rng.integers(0, 50, (rows, length)).astype(np.int32), "mask": mask}


def unit(features):
    features = np.asarray(features)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_a_text_model_gives_the_same_features_for_any_batch_and_length(text_model, tmp_path):
    export_onnx(text_model, tmp_path / "text.onnx")
    runner = session(tmp_path / "text.onnx")
    assert [value.name for value in runner.get_inputs()] == ["ids", "mask"]
    assert [value.name for value in runner.get_outputs()] == ["features"]
    for rows, length in ((1, 2), (1, 7), (5, 3), (4, 40)):
        inputs = tokens(rows, length)
        np.testing.assert_allclose(runner.run(None, inputs)[0], text_model(inputs, training=False), atol=1e-5)


def test_an_image_model_gives_the_same_features_for_any_batch(image_model, tmp_path):
    export_onnx(image_model, tmp_path / "image.onnx")
    runner = session(tmp_path / "image.onnx")
    for rows in (1, 6):
        pixels = np.random.default_rng(rows).normal(size=(rows, 32, 32, 3)).astype(np.float32)
        np.testing.assert_allclose(runner.run(None, {"pixels": pixels})[0], image_model(pixels), atol=1e-5)


def test_onnx_runtime_recognises_the_expensive_parts(text_model, image_model, tmp_path):
    import onnx

    def kernels(model, name):
        export_onnx(model, tmp_path / f"{name}.onnx")
        session(tmp_path / f"{name}.onnx", tmp_path / f"{name}.optimised.onnx")
        return [node.op_type for node in onnx.load(tmp_path / f"{name}.optimised.onnx").graph.node]

    text = kernels(text_model, "text")
    assert text.count("LayerNormalization") == 3
    assert {"BiasGelu", "Gelu"} & set(text)
    assert not {"Erf", "Einsum"} & set(text)
    image = kernels(image_model, "image")
    assert image.count("Conv") == 2  # batch normalisation, bias and ReLU6 are inside
    assert not {"BatchNormalization", "Clip", "Mul"} & set(image)


def test_exporting_leaves_keras_as_it_was(text_model, tmp_path):
    import tensorflow as tf

    inputs = tokens(3, 5)
    methods = (layers.LayerNormalization.call, layers.EinsumDense.call, layers.Dense.call, tf.nn.gelu)
    before = np.asarray(text_model(inputs))
    export_onnx(text_model, tmp_path / "text.onnx")
    assert methods == (layers.LayerNormalization.call, layers.EinsumDense.call, layers.Dense.call, tf.nn.gelu)
    np.testing.assert_array_equal(text_model(inputs), before)


def test_a_backbone_and_a_head_become_one_graph(text_model, tmp_path):
    features = keras.Input((32,), name="features")
    head = keras.Model(features, layers.Dense(4, name="projection")(features), name="head")
    export_onnx(text_model, tmp_path / "backbone.onnx")
    export_onnx(head, tmp_path / "head.onnx", l2_normalised=True)
    merge_onnx(tmp_path / "backbone.onnx", tmp_path / "head.onnx", tmp_path / "tower.onnx")
    inputs = tokens(4, 6)
    runner = session(tmp_path / "tower.onnx")
    assert [value.name for value in runner.get_outputs()] == ["embeddings"]
    np.testing.assert_allclose(runner.run(None, inputs)[0], unit(head(text_model(inputs))), atol=1e-5)


def test_a_head_that_changes_nothing_can_be_joined(text_model, tmp_path):
    features = keras.Input((32,), name="features")
    identity = keras.Model(features, layers.Identity()(features), name="identity")
    export_onnx(text_model, tmp_path / "backbone.onnx")
    export_onnx(identity, tmp_path / "head.onnx", l2_normalised=True)
    merge_onnx(tmp_path / "backbone.onnx", tmp_path / "head.onnx", tmp_path / "tower.onnx")
    inputs = tokens(2, 6)
    np.testing.assert_allclose(
        session(tmp_path / "tower.onnx").run(None, inputs)[0], unit(text_model(inputs)), atol=1e-5
    )


def test_a_model_of_strings_is_refused(tmp_path):
    texts = keras.Input((), dtype="string", name="texts")
    model = keras.Model(texts, layers.StringLookup(vocabulary=["a"])(texts))
    with pytest.raises(UserError, match="run it in TensorFlow"):
        export_onnx(model, tmp_path / "text.onnx")
    assert not (tmp_path / "text.onnx").exists()


@pytest.mark.parametrize(
    "trained", [(True, False, True, False), pytest.param((False, True, False, True), marks=pytest.mark.slow)]
)
def test_small_towers_of_every_convertible_family_give_keras_s_features(tmp_path, trained):
    bert = {"vocabulary_size": 60, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    keras.utils.set_random_seed(3)
    for backbone in (
        ScratchImage(size=32, width=8, stages=2, depth=1, trainable=trained[0]),
        ScratchText(vocabulary_size=60, width=16, layers=1, heads=2, trainable=trained[1]),
        KerasHubText(class_name="BertBackbone", settings=bert, trainable=trained[2]),
        KerasApplication("MobileNetV3Small", size=32, trainable=trained[3]),
    ):
        model = backbone.build()
        inputs = tokens(3, 9)
        if hasattr(backbone, "preprocessing"):
            values = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
            inputs = {"pixels": normalise(values, backbone.preprocessing)}
        export_onnx(model, tmp_path / "tower.onnx")
        expected = model(inputs if len(inputs) > 1 else inputs["pixels"], training=False)
        np.testing.assert_allclose(session(tmp_path / "tower.onnx").run(None, inputs)[0], expected, atol=1e-4)


def test_weights_that_stay_outside_the_converter_are_constants_of_the_graph(
    text_model, image_model, tmp_path, monkeypatch
):
    """Every weight, however small: the features and the fused graph are what they are with all weights inside."""
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    for model, inputs in ((text_model, tokens(4, 9)), (image_model, {"pixels": images})):
        runs = {}
        for name, large in (("inside", 10**9), ("outside", 1)):
            monkeypatch.setattr(onnx_export, "LARGE", large)
            path = tmp_path / f"{model.name}_{name}.onnx"
            export_onnx(model, path)
            runner = session(path, optimised=path.with_suffix(".optimised"))
            assert {value.name for value in runner.get_inputs()} == set(inputs)
            operations = [node.op_type for node in onnx.load(path.with_suffix(".optimised")).graph.node]
            runs[name] = runner.run(None, inputs)[0], sorted(operations)
        np.testing.assert_allclose(runs["outside"][0], runs["inside"][0], atol=1e-6)
        assert runs["outside"][1] == runs["inside"][1]
