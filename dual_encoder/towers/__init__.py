"""What a backbone must offer, and the table of the families there are; builds nothing itself.

A backbone is a frozen dataclass that holds its settings: a recipe names it as an object, a bundle stores its fields as
JSON. A new family is one new file in this folder and one line in `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from data.errors import BundleError
from data.images import ImagePreprocessing
from data.text import CaptionTokenizer

if TYPE_CHECKING:
    import keras
    import numpy as np

# family → "module:class". Modules are imported when a family is used, since most of them import TensorFlow.
FAMILIES = {
    "clip_image": "dual_encoder.towers.clip:ClipImage",
    "clip_text": "dual_encoder.towers.clip:ClipText",
    "efficientnet_lite": "dual_encoder.towers.efficientnet_lite:EfficientNetLite",
    "minilm": "dual_encoder.towers.minilm:MiniLM",
    "siglip_image": "dual_encoder.towers.siglip:SiglipImage",
    "siglip_text": "dual_encoder.towers.siglip:SiglipText",
    "tf_hub_image": "dual_encoder.towers.tf_hub:TfHubImage",
    "tf_hub_text": "dual_encoder.towers.tf_hub:TfHubText",
    "keras_hub_image": "dual_encoder.towers.keras_hub:KerasHubImage",
    "keras_hub_text": "dual_encoder.towers.keras_hub:KerasHubText",
    "keras_applications": "dual_encoder.towers.keras_applications:KerasApplication",
    "scratch_image": "dual_encoder.towers.scratch:ScratchImage",
    "scratch_text": "dual_encoder.towers.scratch:ScratchText",
    "vision_transformer": "dual_encoder.towers.vision_transformer:VisionTransformer",
}

BUNDLED = "bundled"  # what a bundle's config says in the place of a directory that it brings along


@dataclass(frozen=True)
class Provenance:
    """Where a backbone's weights come from: their name, publisher and training data in words, and their licence.

    A family that knows offers it as `provenance`; None is what nobody here knows.
    """

    weights: str
    origin: str | None = None
    licence: str | None = None


class ImageBackbone(Protocol):
    """Implementers are frozen dataclasses with a `family`, their input's preprocessing and a Keras model."""

    family: ClassVar[str]

    @property
    def trainable(self) -> bool:
        """Whether training changes the weights."""

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """How an image becomes this backbone's input."""

    def build(self, load_weights: bool = True) -> keras.Model:
        """A model from pixels `(B, size, size, 3)` float32 to features `(B, F)` float32.

        `load_weights=False` leaves the published weights unread, for a bundle that brings its own.
        """


class TextBackbone(Protocol):
    """Implementers are frozen dataclasses with a `family`, a tokeniser and a Keras model."""

    family: ClassVar[str]

    @property
    def trainable(self) -> bool:
        """Whether training changes the weights."""

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> CaptionTokenizer | None:
        """The tokeniser; `captions` gives the training captions to those that learn theirs.

        None when the model takes strings and tokenises inside its graph.
        """

    def build(self, load_weights: bool = True) -> keras.Model:
        """A model from `{"ids": (B, L), "mask": (B, L)}` int32, or `(B,)` strings, to features `(B, F)` float32."""


class Classifier(Protocol):
    """What an image backbone may offer beside its features: the linear classifier it was trained with."""

    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel `(F, C)` and bias `(C,)`, float32: features @ kernel + bias are the logits of ImageNet's classes."""


class Bundled(Protocol):
    """What a backbone offers that cannot be built of settings and weights alone, so that a bundle can be moved."""

    def write_assets(self, directory: Path) -> list[str]:
        """Copy what building needs into `directory`, a sub-directory for each setting that names it.

        Returns those settings.
        """


class Layered(Protocol):
    """What a backbone may offer so that its top can train alone: its layers in groups. Without it, it is one group."""

    def layer_groups(self) -> dict[str, str]:
        """Group → the layer of the built model whose output ends it, from input to output; the last ends anywhere."""


def backbone_config(backbone: ImageBackbone | TextBackbone) -> dict[str, Any]:
    """A backbone's settings as JSON, read back by `backbone_from_config`.

    A family whose settings may point to a description kept elsewhere has a method `resolved` that writes it in.
    """
    if hasattr(backbone, "resolved"):
        backbone = backbone.resolved()
    return {"family": backbone.family, **dataclasses.asdict(backbone)}  # type: ignore[call-overload]


def provenance_of(backbone: ImageBackbone | TextBackbone) -> Provenance:
    """What a backbone's family says of its weights, or else what its settings name."""
    if hasattr(backbone, "provenance"):
        return backbone.provenance
    named = [str(value) for name in ("handle", "preset", "name") if (value := getattr(backbone, name, None))]
    return Provenance(" ".join([backbone.family, *named]))


def backbone_from_config(config: dict[str, Any], assets: Path | None = None) -> Any:
    """The backbone of a stored config; `assets` is where a bundle keeps the directories it took along for it."""
    settings = dict(config)
    family = settings.pop("family", None)
    if family not in FAMILIES:
        raise BundleError(
            f"a backbone family among {', '.join(FAMILIES)}", repr(family), "upgrade, or export the bundle again"
        )
    module, name = FAMILIES[family].split(":")
    cls = getattr(importlib.import_module(module), name)
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(settings) - known):
        raise BundleError(f"settings of {family}: {', '.join(sorted(known))}", ", ".join(unknown), "correct the config")
    if assets is not None:
        settings |= {name: str(assets / name) for name, value in settings.items() if value == BUNDLED}
    return cls(**settings)
