"""The two-tower model: each tower is a backbone and a projection head; knows no data, loss or file.

pixels (B, S, S, 3) → image features (B, F) → projection (B, D) → L2 → image embedding; the same for text.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from data.errors import BundleError, TrainingError
from dual_encoder.losses import l2_normalise
from dual_encoder.projection_head import AnchoredHead, Head, anchor, head_config, head_from_config
from dual_encoder.replicas import is_mirrored
from dual_encoder.towers import ImageBackbone, TextBackbone, backbone_config, backbone_from_config


@dataclass(frozen=True)
class DualEncoderConfig:
    """What a model is made of; stored in its bundle."""

    image_backbone: ImageBackbone
    text_backbone: TextBackbone
    image_head: Head
    text_head: Head

    def to_config(self) -> dict[str, Any]:
        """JSON form, read back by `from_config`."""
        return {
            "image_backbone": backbone_config(self.image_backbone),
            "text_backbone": backbone_config(self.text_backbone),
            "image_head": head_config(self.image_head),
            "text_head": head_config(self.text_head),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], assets: Any = None) -> DualEncoderConfig:
        """The inverse of `to_config`; `assets` is a bundle's directory of files that backbones need."""
        parts = {field.name for field in dataclasses.fields(cls)}
        if set(config) != parts:
            raise BundleError(
                f"a config of {', '.join(sorted(parts))}", ", ".join(sorted(config)) or "none of them", "correct it"
            )
        return cls(
            backbone_from_config(config["image_backbone"], assets and assets / "image_backbone"),
            backbone_from_config(config["text_backbone"], assets and assets / "text_backbone"),
            head_from_config(config["image_head"]),
            head_from_config(config["text_head"]),
        )


class DualEncoder(keras.Model):
    """Image tower, text tower and the learned logarithm of the similarity scale.

    With `initial_bias` there is a learned `logit_bias` too, for objectives that have one; an embedding depends on
    neither.

    `precision` is the Keras dtype policy of the parts that train. A frozen backbone computes in float32 whatever it is:
    its features and its converted graph are kept for other runs.
    """

    def __init__(
        self,
        config: DualEncoderConfig,
        initial_scale: float = 1.0,
        load_weights: bool = True,
        precision: str = "float32",
        initial_bias: float | None = None,
    ) -> None:
        super().__init__(name="dual_encoder", dtype="float32")
        self.config, self.precision = config, precision
        with _dtype_policy(precision if config.image_backbone.trainable else "float32"):
            self.image_backbone = config.image_backbone.build(load_weights)
        with _dtype_policy(precision if config.text_backbone.trainable else "float32"):
            self.text_backbone = config.text_backbone.build(load_weights)
        with _dtype_policy(precision):
            self.image_head = config.image_head.build(self.image_backbone.output_shape[-1])
            self.text_head = config.text_head.build(self.text_backbone.output_shape[-1])
        if self.image_head.output_shape != self.text_head.output_shape:
            raise TrainingError(
                "heads of one embedding size",
                f"{self.image_head.output_shape[-1]} for images and {self.text_head.output_shape[-1]} for text",
                "give both heads the same embedding_dim",
            )
        self.log_scale = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(float(np.log(initial_scale))), name="log_scale"
        )
        self.logit_bias = None
        if initial_bias is not None:
            constant = keras.initializers.Constant(initial_bias)
            self.logit_bias = self.add_weight(shape=(), initializer=constant, name="logit_bias")
        self.image_backbone.trainable = config.image_backbone.trainable
        self.text_backbone.trainable = config.text_backbone.trainable

    @property
    def embedding_dim(self) -> int:
        """D, the size of an embedding."""
        return self.image_head.output_shape[-1]

    def set_bridge(self, head: AnchoredHead) -> None:
        """Give the image head's bridge another temperature and number of classes, before anything is traced."""
        layer = self.image_head.get_layer("bridge")
        layer.temperature, layer.top = head.temperature, min(head.top, head.classes)
        self.config = dataclasses.replace(self.config, image_head=head)

    def embed_images(self, pixels: Any) -> Any:
        """Pixels (B, S, S, 3) float32 → L2-normalised embeddings (B, D) float32."""
        features = self.image_backbone(pixels, training=False)
        return l2_normalise(self.image_head(features, training=False))

    def embed_texts(self, tokens: Any) -> Any:
        """The text backbone's input → L2-normalised embeddings (B, D) float32."""
        features = self.text_backbone(tokens, training=False)
        return l2_normalise(self.text_head(features, training=False))

    def in_float32(self) -> DualEncoder:
        """This model, or one with its weights that computes in float32 on one device: for a bundle and conversion."""
        if self.precision == "float32" and not is_mirrored(self.log_scale):
            return self
        twin = DualEncoder(self.config, load_weights=False, initial_bias=None if self.logit_bias is None else 0.0)
        for part, variables in self.parts().items():
            for theirs, mine in zip(twin.parts()[part], variables, strict=True):
                theirs.assign(mine)
        return twin

    def parts(self) -> dict[str, list[Any]]:
        """Every weight by part, in an order that depends on the config alone: how weights are named in files."""
        return {
            "image_backbone": self.image_backbone.weights,
            "text_backbone": self.text_backbone.weights,
            "image_head": self.image_head.weights,
            "text_head": self.text_head.weights,
            "log_scale": [self.log_scale],
            **({} if self.logit_bias is None else {"logit_bias": [self.logit_bias]}),
        }


def anchor_in_language(model: DualEncoder, class_embeddings: np.ndarray) -> None:
    """Set the bridge of an `AnchoredHead` from the image backbone's own classifier and embedded class names (C, D)."""
    if not isinstance(model.config.image_head, AnchoredHead):
        return
    kernel, bias = classifier_of(model.config.image_backbone)
    shape = (model.config.image_head.classes, model.config.image_head.embedding_dim)
    if class_embeddings.shape != shape or kernel.shape[1] != shape[0]:
        raise TrainingError(
            f"an AnchoredHead of {kernel.shape[1]} classes and embedding_dim {class_embeddings.shape[1]}, "
            "as the classifier and the text backbone have",
            f"{shape[0]} classes and embedding_dim {shape[1]}",
            "correct the head's settings",
        )
    anchor(model.image_head, kernel, bias, class_embeddings)


def classifier_of(backbone: ImageBackbone) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (F, C) and bias (C,) of a backbone's own classifier; `TrainingError` for a backbone without one."""
    classifier = getattr(backbone, "classifier", None)
    if classifier is None:
        raise TrainingError(
            "an image backbone with a classifier, for a language-anchored head or class prototypes",
            f"{backbone.family}, which has none",
            "use LinearHead without class prototypes, or the efficientnet_lite backbone",
        )
    return classifier()


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Build layers under a dtype policy and leave Keras's global one as it was."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
