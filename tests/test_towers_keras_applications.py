import importlib

import keras
import numpy as np
import pytest
from tower_contract import check_image_backbone

from data.errors import UserError
from data.images import normalise
from dual_encoder.towers.keras_applications import NETWORKS, KerasApplication


def test_it_keeps_the_contract_of_image_backbones():
    assert check_image_backbone(KerasApplication("MobileNetV3Small", size=32)).shape == (3, 576)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("MobileNetV3Small", "mobilenet_v3"),
        ("MobileNetV2", "mobilenet_v2"),
        ("DenseNet121", "densenet"),
        ("EfficientNetV2B0", "efficientnet_v2"),
    ],
)
def test_pixels_are_scaled_as_the_network_expects(name, module):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    scaled = importlib.import_module(f"keras.applications.{module}").preprocess_input(pixels.astype(np.float32))
    np.testing.assert_allclose(normalise(pixels, KerasApplication(name).preprocessing), scaled, atol=1e-4)


def test_a_network_trained_on_blue_green_red_sees_that_order():
    keras.utils.set_random_seed(0)
    backbone = KerasApplication("VGG16", size=32, trainable=True)
    model = backbone.build()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    expected = keras.applications.vgg16.preprocess_input(pixels.astype(np.float32))
    (network,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    np.testing.assert_allclose(
        model(normalise(pixels, backbone.preprocessing)), np.mean(network(expected), axis=(1, 2)), atol=1e-3
    )


def test_weights_come_from_a_file_that_the_user_names(tmp_path):
    keras.utils.set_random_seed(5)
    network = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path / "network.weights.h5"
    network.save_weights(path)
    loaded = KerasApplication("MobileNetV3Small", weights=str(path), size=32).build()
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(pixels), np.mean(network(pixels), axis=(1, 2)), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_that_cannot_be_had_are_refused_with_what_to_do(no_connection, tmp_path):
    with pytest.raises(UserError, match=r"download https://\S+/xception_\S+_notop\.h5, .* at models/xception_\S+\.h5"):
        KerasApplication("Xception", weights="imagenet", size=71).build()
    with pytest.raises(UserError, match="a file of weights"):
        KerasApplication("MobileNetV3Small", weights=str(tmp_path / "nothing.h5"), size=32).build()
    other = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(other)
    with pytest.raises(UserError, match="weights of MobileNetV3Small without its classifier"):
        KerasApplication("MobileNetV3Small", weights=str(other), size=32).build()


def test_every_listed_network_exists():
    assert all(hasattr(keras.applications, name) for names in NETWORKS.values() for name in names)


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="MobileNetV3Small.*'AlexNet'"):
        KerasApplication("AlexNet")
