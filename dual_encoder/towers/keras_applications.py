"""Any network of `keras.applications` as an image backbone, with the input scaling it was trained with.

Nothing is downloaded unless `weights="imagenet"` asks for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from data.errors import UserError
from data.images import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing
from dual_encoder.towers.frozen import apply_network
from dual_encoder.towers.pooling import mean_over_positions

if TYPE_CHECKING:
    import keras

# Mean and deviation of RGB in [0, 1] that give the input range of each group (its module's `preprocess_input`).
SCALING = {
    "0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    "-1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
    # Blue, green, red minus their means, not scaled; the order is turned inside the model.
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
}
NETWORKS = {
    "0 to 255": (
        *(f"EfficientNetB{number}" for number in range(8)),
        *(f"EfficientNetV2{name}" for name in ("B0", "B1", "B2", "B3", "S", "M", "L")),
        *("MobileNetV3Small", "MobileNetV3Large"),
        *(f"ConvNeXt{name}" for name in ("Tiny", "Small", "Base", "Large", "XLarge")),
    ),
    "-1 to 1": (
        *("MobileNet", "MobileNetV2", "InceptionV3", "InceptionResNetV2", "Xception", "NASNetMobile", "NASNetLarge"),
        *("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    ),
    "ImageNet": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "caffe": ("ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"),
}
_SCALING_OF = {name: scaling for scaling, names in NETWORKS.items() for name in names}


@dataclass(frozen=True)
class KerasApplication:
    """Normalised pixels `(B, size, size, 3)` to the network's last feature map averaged, `(B, F)` float32.

    `weights` is None (random), "imagenet" (Keras downloads them once, to `models/` under `$KERAS_HOME`) or
    the path of a `.weights.h5` or `.h5` file of this network without its classifier.
    Example: `KerasApplication("ResNet50", weights="imagenet")`.
    """

    family: ClassVar[str] = "keras_applications"

    name: str = "MobileNetV3Small"
    weights: str | None = None
    size: int = 224
    resize: Literal["squash", "crop", "pad"] = "squash"
    trainable: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown names at once."""
        if self.name not in _SCALING_OF:
            raise UserError(f"a network among {', '.join(_SCALING_OF)}", repr(self.name), "correct the settings")

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """The scaling of the network's own `preprocess_input`, expressed as mean and deviation."""
        return ImagePreprocessing(self.size, self.resize, *SCALING[_SCALING_OF[self.name]])

    def build(self, load_weights: bool = True) -> keras.Model:
        """The network without its classifier."""
        import keras

        network = self._network(self.weights if load_weights else None)
        pixels = keras.Input((self.size, self.size, 3), name="pixels")
        ordered = keras.ops.flip(pixels, axis=-1) if _SCALING_OF[self.name] == "caffe" else pixels
        maps = apply_network(network, ordered, self.trainable)
        model = keras.Model(pixels, mean_over_positions(maps), name=network.name)
        model.trainable = self.trainable
        return model

    def _network(self, weights: str | None) -> keras.Model:
        import keras

        if weights not in (None, "imagenet") and not Path(str(weights)).is_file():
            raise UserError('a file of weights, or "imagenet"', str(weights), "correct the path")
        try:
            return getattr(keras.applications, self.name)(
                include_top=False, weights=weights, input_shape=(self.size, self.size, 3)
            )
        except Exception as error:  # Keras and h5py raise whatever they like
            reason = " ".join(str(error).split())
            raise UserError(
                f"weights of {self.name} without its classifier", f"{weights} ({reason[:200]})", _how_to_get(reason)
            ) from None


def _how_to_get(reason: str) -> str:
    """What to do where Keras could not fetch or read weights, by what it says."""
    if (address := re.search(r"URL fetch failure on (https://\S+/(\S+)):", reason)) is None:
        return "correct the path, or use another network or size"
    return (
        f"on a machine with a connection download {address[1]}, and give its path here as weights, or put it at "
        f"models/{address[2]} under $KERAS_HOME (default ~/.keras)"
    )
