import dataclasses
import hashlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text as tf_text
from tower_contract import CAPTIONS, check_image_backbone, check_text_backbone

from data.errors import UserError
from dual_encoder.towers.tf_hub import TfHubImage, TfHubText

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "bicycle", "two", "dogs", "play", "in", "the", "snow", "x"]


class Images(tf.Module):
    """A trainable convolution and a moving statistic; like Hub models, called with and without `training`."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 3, 3, 6), (1, 2)), name="conv/kernel")
        self.mean = tf.Variable(tf.zeros(6), trainable=False, name="bn/mean")

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32), tf.TensorSpec((), tf.bool, "training")]
    )
    def _run(self, pixels, training):
        maps = tf.nn.conv2d(pixels, self.kernel, 2, "SAME")
        if training:
            self.mean.assign_add(tf.reduce_mean(maps, (0, 1, 2)))
        return tf.nn.relu(maps - self.mean)

    @tf.function
    def __call__(self, pixels, training=False):
        return self._run(pixels, training)


class Tokens(tf.Module):
    """A BERT-like preprocessor: strings to padded word ids."""

    def __init__(self):
        super().__init__()
        self.tokenizer = tf_text.BertTokenizer(
            tf.lookup.StaticVocabularyTable(
                tf.lookup.KeyValueTensorInitializer(WORDS, tf.range(len(WORDS), dtype=tf.int64)), 1
            ),
            lower_case=True,
        )

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, texts):
        ids = self.tokenizer.tokenize(texts).merge_dims(-2, -1).to_tensor(shape=(None, 8))
        return {"input_word_ids": tf.cast(ids, tf.int32), "input_mask": tf.cast(ids > 0, tf.int32)}


class Encoder(tf.Module):
    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.random.stateless_normal((len(WORDS) + 1, 5), (3, 4)), name="table")

    @tf.function(
        input_signature=[{name: tf.TensorSpec((None, 8), tf.int32) for name in ("input_word_ids", "input_mask")}]
    )
    def __call__(self, tokens):
        sequence = tf.gather(self.table, tokens["input_word_ids"])
        return {"sequence_output": sequence, "pooled_output": tf.reduce_mean(sequence, 1)}


class Sentences(tf.Module):
    """Takes strings itself."""

    def __init__(self):
        super().__init__()
        self.tokens, self.encoder = Tokens(), Encoder()

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, texts):
        return self.encoder(self.tokens(texts))["pooled_output"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    images = Images()
    for training in (False, True):
        images.__call__.get_concrete_function(tf.TensorSpec((None, 16, 16, 3), tf.float32), training=training)
    modules = {"images": images, "tokens": Tokens(), "encoder": Encoder(), "sentences": Sentences()}
    for name, module in modules.items():
        tf.saved_model.save(module, str(root / name))
    return root


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


def test_a_web_address_is_served_from_tensorflow_hub_s_cache(saved, tmp_path, monkeypatch):
    address = "https://tfhub.dev/example/images/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    shutil.copytree(saved / "images", tmp_path / hashlib.sha1(address.encode()).hexdigest())
    model = TfHubImage(address, size=16).build()
    pixels = np.ones((1, 16, 16, 3), np.float32)
    np.testing.assert_allclose(model(pixels), image_backbone(saved).build()(pixels))


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
