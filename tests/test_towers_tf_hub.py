import dataclasses
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from published_backbones import place_for_kagglehub, place_for_tensorflow_hub, write_saved_models
from tower_contract import CAPTIONS, check_image_backbone, check_text_backbone

from data.errors import UserError
from dual_encoder.towers.tf_hub import TfHubImage, TfHubText


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_saved_models(tmp_path_factory.mktemp("saved"))


def image_backbone(saved, **settings):
    return TfHubImage(str(saved / "images"), size=16, **settings)


@pytest.mark.parametrize("trainable", [True, False])
def test_an_image_model_keeps_the_contract(saved, trainable):
    assert check_image_backbone(image_backbone(saved, trainable=trainable)).shape == (3, 6)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_model_of_strings_keeps_the_contract(saved, trainable):
    assert check_text_backbone(TfHubText(str(saved / "sentences"), trainable=trainable)).shape == (3, 5)


def test_a_preprocessor_and_an_encoder_work_as_one(saved):
    backbone = TfHubText(str(saved / "encoder"), str(saved / "tokens"))
    features = check_text_backbone(backbone)
    direct = tf.saved_model.load(str(saved / "sentences"))(tf.constant(CAPTIONS))
    np.testing.assert_allclose(features, direct, atol=1e-6)


def test_features_equal_the_saved_model_s_own(saved):
    pixels = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    direct = tf.reduce_mean(tf.saved_model.load(str(saved / "images"))(pixels), (1, 2))
    np.testing.assert_allclose(image_backbone(saved).build()(pixels), direct, atol=1e-6)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_training_step_changes_the_weights_only_when_trainable(saved, trainable):
    import keras

    keras.utils.set_random_seed(0)
    backbone = image_backbone(saved, trainable=trainable).build()
    outputs = keras.layers.Dense(2)(backbone.outputs[0])
    model = keras.Model(backbone.inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [weight.numpy() for weight in backbone.weights]
    pixels = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)
    features = np.asarray(backbone(pixels))
    model.fit(pixels, np.ones((4, 2), np.float32), epochs=2, verbose=0)
    changed = [not np.array_equal(a, b.numpy()) for a, b in zip(before, backbone.weights, strict=True)]
    assert changed == [trainable, trainable]  # the kernel by its gradient, the statistic by the training call
    assert np.allclose(backbone(pixels), features) != trainable


def test_weights_of_a_bundle_replace_the_saved_ones(saved):
    model = image_backbone(saved).build(load_weights=False)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape, np.float32))
    assert not np.asarray(model(np.ones((1, 16, 16, 3), np.float32))).any()


def test_models_that_are_kept_on_this_machine_are_found_by_their_handles(saved, tmp_path, monkeypatch):
    address, name = "https://tfhub.dev/example/images/1", "example/images/tensorFlow2/small/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    pixels = np.ones((1, 16, 16, 3), np.float32)
    expected = image_backbone(saved).build()(pixels)
    places = {
        address: place_for_tensorflow_hub(tmp_path, address),
        f"kaggle://{name}": place_for_kagglehub(tmp_path, name),
    }
    for handle, place in places.items():
        shutil.copytree(saved / "images", place)
        np.testing.assert_allclose(TfHubImage(handle, size=16).build()(pixels), expected)


@pytest.mark.parametrize(
    ("handle", "advice"),
    [
        (
            "https://tfhub.dev/tensorflow/small_bert/bert_en_uncased_L-4_H-512_A-8/1",
            r"A-8/1\?tf-hub-format=compressed .*TFHUB_CACHE_DIR/[0-9a-f]{40}$",
        ),
        (
            "kaggle://google/nnlm/tensorFlow2/en-dim50/1",
            r"kagglehub\.model_download\('google/nnlm/tensorFlow2/en-dim50/1'\)",
        ),
        ("kaggle://google/nnlm", "Invalid model handle"),
    ],
)
def test_without_a_connection_it_says_what_to_put_where(no_connection, handle, advice):
    with pytest.raises(UserError, match=f"the SavedModel {re.escape(handle)}.*{advice}"):
        TfHubText(handle).build()


def test_a_model_that_only_has_a_signature_is_used_by_it(tmp_path):
    module = tf.Module()
    module.weight = tf.Variable(tf.ones((3, 4)))

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32, "pixels")])
    def serve(pixels):
        return {"embedding": tf.reduce_mean(pixels, (1, 2)) @ module.weight}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": serve})
    assert check_image_backbone(TfHubImage(str(tmp_path / "model"), size=8, trainable=True)).shape == (3, 4)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"saved_model\.pb"):
        TfHubImage(str(tmp_path / "nothing")).build()


def test_an_output_that_does_not_exist_is_refused_with_those_that_do(saved):
    backbone = TfHubText(str(saved / "encoder"), str(saved / "tokens"), output="features")
    with pytest.raises(UserError, match=r"an output features.*pooled_output \(None, 5\)"):
        backbone.build()
    with pytest.raises(UserError, match="one vector of known size"):
        dataclasses.replace(backbone, output="sequence_output").build()
