import dataclasses

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from tower_contract import check_image_backbone

from data.errors import UserError
from dual_encoder.losses import InfoNCE
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.onnx_export import export_onnx
from dual_encoder.projection_head import LinearHead
from dual_encoder.recipe import TrainerConfig
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.patch_embedding import PatchEmbedding
from dual_encoder.towers.scratch import ScratchText
from dual_encoder.towers.vision_transformer import VisionTransformer
from dual_encoder.trainer import Trainer

TINY = VisionTransformer(size=32, patch=8, width=16, layers=2, heads=2)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_the_tower_keeps_the_contract(pooling, trainable):
    backbone = dataclasses.replace(TINY, pooling=pooling, trainable=trainable)
    assert check_image_backbone(backbone).shape == (3, 16)


def test_patches_are_embedded_as_a_convolution_would():
    layer = PatchEmbedding(patch=4, width=6, class_token=False)
    pixels = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    layer.build(pixels.shape)
    convolved = tf.nn.conv2d(pixels, tf.reshape(layer.kernel.value, (4, 4, 3, 6)), strides=4, padding="VALID")
    expected = tf.reshape(convolved, (2, 9, 6)) + layer.positions
    np.testing.assert_allclose(layer(pixels), expected, atol=1e-5)


def test_the_class_token_comes_first_and_all_is_normed():
    layer = PatchEmbedding(patch=4, width=6)
    layer.build((None, 12, 12, 3))
    sequence = np.asarray(layer(np.ones((2, 12, 12, 3), np.float32)))
    assert sequence.shape == layer.compute_output_shape((2, 12, 12, 3)) == (2, 10, 6)
    first = np.asarray(layer.token) + np.asarray(layer.positions)[0]
    expected = (first - first.mean()) / np.sqrt(first.var() + 1e-5)
    np.testing.assert_allclose(sequence[:, 0], [expected, expected], atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_onnx_runtime_gives_the_same_features(activation, tmp_path):
    keras.utils.set_random_seed(0)
    model = dataclasses.replace(TINY, activation=activation).build()
    export_onnx(model, tmp_path / "tower.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "tower.onnx"), providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        pixels = np.random.default_rng(rows).normal(size=(rows, 32, 32, 3)).astype(np.float32)
        np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], model(pixels, training=False), atol=1e-4)


@pytest.mark.slow
def test_it_learns():
    keras.utils.set_random_seed(0)
    pixels = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    targets = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    model = TINY.build()
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    losses = model.fit(pixels, targets, epochs=30, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


class Batches:
    """Three steps an epoch over the same pixels and tokens; `stop` is the step at which the run is cut off."""

    steps_per_epoch = 3

    def __init__(self, stop=None):
        generator = np.random.default_rng(0)
        self.stop = stop
        self.batch = {
            "image": generator.standard_normal((6, 32, 32, 3), np.float32),
            "ids": generator.integers(1, 60, (6, 9), np.int32),
            "mask": (np.arange(9) < np.array([[9], [3], [5], [9], [1], [7]])).astype(np.int32),
            "image_row": np.arange(6, dtype=np.int32),
            "caption_group": np.arange(6, dtype=np.int32),
        }

    def epoch(self, epoch, start=0):
        for step in range(start, self.steps_per_epoch):
            if epoch * self.steps_per_epoch + step == self.stop:
                raise RuntimeError("cut off")
            yield self.batch


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_bit_by_bit(tmp_path):
    def trainer(directory, stop=None):
        keras.utils.set_random_seed(0)
        text = ScratchText(vocabulary_size=60, width=16, layers=1, heads=2, max_tokens=12)
        towers = DualEncoderConfig(dataclasses.replace(TINY, layers=1, dropout=0.1), text, LinearHead(8), LinearHead(8))
        settings = TrainerConfig(WarmupCosine(peak=1e-3), epochs=2, batch_size=6)
        figures = {"recall": 0.0, "loss": 0.0}
        return Trainer(DualEncoder(towers), InfoNCE(), settings, Batches(stop), lambda: figures, directory, "run")

    def weights(trainer):
        return {name: np.asarray(variable) for name, variable in trainer._checkpoint_variables().items()}

    straight, cut, resumed = (
        trainer(tmp_path / "straight"),
        trainer(tmp_path / "cut", stop=5),
        trainer(tmp_path / "cut"),
    )
    straight.fit()
    with pytest.raises(RuntimeError, match="cut off"):
        cut.fit()
    resumed.fit()
    for name, expected in weights(straight).items():
        np.testing.assert_array_equal(weights(resumed)[name], expected, err_msg=name)


def test_settings_that_cannot_be_built_are_refused():
    for wrong in ({"size": 33}, {"heads": 3}, {"layers": 0}):
        with pytest.raises(UserError, match="a size that patch divides"):
            dataclasses.replace(TINY, **wrong)
    with pytest.raises(UserError, match="'relu'"):
        dataclasses.replace(TINY, activation="relu")
