"""Heads that map backbone features into the shared embedding space; know no backbone and no loss.

A head is a frozen dataclass of settings whose `build` gives a Keras model from features (B, F) to projections
(B, `embedding_dim`), not yet L2-normalised.
"""

from __future__ import annotations

import dataclasses
import string
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from data.errors import BundleError


@dataclass(frozen=True)
class IdentityHead:
    """Features are the embedding, as for a sentence encoder that is used as it is."""

    kind: ClassVar[str] = "identity"

    def build(self, feature_dim: int) -> keras.Model:
        """See the module."""
        features = keras.Input((feature_dim,), name="features")
        return keras.Model(features, keras.layers.Identity(name="identity")(features), name="identity_head")


@dataclass(frozen=True)
class LinearHead:
    """One linear map of the L2-normalised features, as in CLIP.

    With `start_as_identity` the first `embedding_dim` features pass unchanged at the start, so that a pretrained
    sentence space is what training starts from.
    """

    embedding_dim: int = 384
    start_as_identity: bool = False
    dropout: float = 0.0
    kind: ClassVar[str] = "linear"

    def build(self, feature_dim: int) -> keras.Model:
        """See the module."""
        features = keras.Input((feature_dim,), name="features")
        x = keras.layers.UnitNormalization(name="normalised")(features)
        if self.dropout:
            x = keras.layers.Dropout(self.dropout, name="dropout")(x)
        initial = _IdentityStart() if self.start_as_identity else "glorot_uniform"
        x = keras.layers.Dense(self.embedding_dim, use_bias=False, kernel_initializer=initial, name="projection")(x)
        return keras.Model(features, x, name="linear_head")


@dataclass(frozen=True)
class ResidualHead:
    """The projection of the Keras example: dense, then residual blocks of GELU, dense, dropout and layer norm."""

    embedding_dim: int = 256
    layers: int = 1
    dropout: float = 0.1
    kind: ClassVar[str] = "residual"

    def build(self, feature_dim: int) -> keras.Model:
        """See the module."""
        features = keras.Input((feature_dim,), name="features")
        projected = keras.layers.Dense(self.embedding_dim, name="projection")(features)
        for number in range(self.layers):
            x = keras.layers.Activation("gelu", name=f"gelu_{number}")(projected)
            x = keras.layers.Dense(self.embedding_dim, name=f"dense_{number}")(x)
            x = keras.layers.Dropout(self.dropout, name=f"dropout_{number}")(x)
            x = keras.layers.Add(name=f"add_{number}")([projected, x])
            projected = keras.layers.LayerNormalization(name=f"norm_{number}")(x)
        return keras.Model(features, projected, name="residual_head")


@dataclass(frozen=True)
class AnchoredHead:
    """Language-anchored image head: classifier probabilities weight the text embeddings of the class names.

    This bridge (ConSE, Norouzi et al. 2014, arXiv:1312.5650) puts images into the text space before any training. With
    `trainable`, a linear map of the bridge's output beside the features starts as the bridge alone and learns the rest
    (its trained relative is DeViSE, Frome et al. 2013). `top` classes are kept, their logits divided by `temperature`.

    A class stands where the mean of its `templates`' embeddings points (prompt ensembling, Radford et al. 2021,
    arXiv:2103.00020, section 3.1.4); `{name}` is its clearest name, `{description}` a sentence on how it looks.
    """

    embedding_dim: int = 384
    top: int = 100
    temperature: float = 2.0
    trainable: bool = False
    dropout: float = 0.0
    classes: int = 1000
    templates: tuple[str, ...] = ("a photo of a {name}", "{name}. {description}")
    kind: ClassVar[str] = "anchored"

    def __post_init__(self) -> None:
        """Take a list, as JSON has it, for a tuple; refuse templates that name no class."""
        object.__setattr__(self, "templates", tuple(self.templates))
        wrong = [template for template in self.templates if not _names_a_class(template)]
        if wrong or not self.templates:
            raise BundleError(
                "templates with {name} or {description} and no other field", repr(self.templates), "correct the head"
            )
        if self.top < 1 or not self.temperature > 0:
            raise BundleError(
                "top of at least 1 and a positive temperature", f"{self.top}, {self.temperature}", "correct the head"
            )

    def build(self, feature_dim: int) -> keras.Model:
        """See the module; the bridge's constants are zero until `anchor` or a bundle's weights set them."""
        features = keras.Input((feature_dim,), name="features")
        bridge = LanguageBridge(self.embedding_dim, self.classes, self.top, self.temperature, name="bridge")(features)
        if not self.trainable:
            return keras.Model(features, bridge, name="anchored_head")
        direct = keras.layers.UnitNormalization(name="normalised")(features)
        beside = keras.layers.Concatenate(name="beside")([bridge, direct])
        if self.dropout:
            beside = keras.layers.Dropout(self.dropout, name="dropout")(beside)
        projection = keras.layers.Dense(
            self.embedding_dim, use_bias=False, kernel_initializer=_IdentityStart(), name="projection"
        )
        return keras.Model(features, projection(beside), name="anchored_head")


def _names_a_class(template: str) -> bool:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError:  # a lone brace
        return False
    return bool(fields) and fields <= {"name", "description"}


class LanguageBridge(keras.layers.Layer):
    """Features (B, F) → weighted mean of class-name embeddings (B, D), L2-normalised; all weights are constants."""

    def __init__(self, embedding_dim: int, classes: int, top: int, temperature: float, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.embedding_dim, self.classes = embedding_dim, classes
        self.top, self.temperature = min(top, classes), temperature

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the classifier `(F, C)`, `(C,)` and the class embeddings `(C, D)`, zero until they are set."""
        shapes = {
            "classifier_kernel": (input_shape[-1], self.classes),
            "classifier_bias": (self.classes,),
            "class_embeddings": (self.classes, self.embedding_dim),
        }
        for name, shape in shapes.items():
            setattr(self, name, self.add_weight(shape=shape, initializer="zeros", trainable=False, name=name))

    def call(self, features: Any) -> Any:
        """See the class."""
        logits = ops.matmul(features, self.classifier_kernel) + self.classifier_bias
        logits = ops.cast(logits, "float32") / self.temperature
        smallest_kept = ops.min(ops.top_k(logits, self.top)[0], axis=-1, keepdims=True)
        probabilities = ops.softmax(ops.where(logits < smallest_kept, -1e9, logits), axis=-1)
        mean = ops.matmul(probabilities, ops.cast(self.class_embeddings, "float32"))
        length = ops.sqrt(ops.maximum(ops.sum(ops.square(mean), axis=-1, keepdims=True), 1e-12))
        return ops.cast(mean / length, self.compute_dtype)


class _IdentityStart(keras.initializers.Initializer):
    """Identity for the first rows, zero for the rest."""

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return ops.convert_to_tensor(np.eye(*shape, dtype=np.float32), dtype)


def anchor(head: keras.Model, kernel: np.ndarray, bias: np.ndarray, class_embeddings: np.ndarray) -> None:
    """Give a built `AnchoredHead` its classifier and the L2-normalised text embeddings of the class names."""
    head.get_layer("bridge").set_weights([kernel, bias, class_embeddings])


Head = IdentityHead | LinearHead | ResidualHead | AnchoredHead
_KINDS: dict[str, type[Head]] = {cls.kind: cls for cls in (IdentityHead, LinearHead, ResidualHead, AnchoredHead)}


def head_config(head: Head) -> dict[str, Any]:
    """A head's settings as JSON."""
    return {"kind": head.kind, **dataclasses.asdict(head)}


def head_from_config(config: dict[str, Any]) -> Head:
    """The inverse of `head_config`."""
    settings = dict(config)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise BundleError(f"a head among {', '.join(_KINDS)}", repr(kind), "upgrade, or export the bundle again")
    try:
        return _KINDS[kind](**settings)
    except TypeError as error:
        raise BundleError(f"settings of head {kind}", str(error), "correct the config") from None
