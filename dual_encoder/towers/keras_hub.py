"""Any KerasHub backbone for images or text, by preset or by class name and settings; knows no architecture.

Nothing is downloaded unless `preset` names something remote (a KerasHub preset, `kaggle://…`, `hf://…`); a preset may
also be a local directory. With a preset alone its files are needed whenever the model is built; `resolved` writes the
preset's class and settings into the backbone, which is what a bundle stores, with a tokeniser that is in the graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data.errors import UserError
from data.images import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing
from data.text import CaptionTokenizer
from dual_encoder.towers.frozen import apply_network
from dual_encoder.towers.kaggle import KAGGLE, how_to_get_from_kaggle
from dual_encoder.towers.pooling import mean_over_mask, mean_over_positions

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class KerasHubImage:
    """Normalised pixels `(B, size, size, 3)` to the backbone's feature map or patches averaged, `(B, F)` float32.

    `class_name` and `settings` are a KerasHub backbone's constructor, `preset` its published weights; either suffices.
    `mean` and `std` (None: the preset's own scaling, else ImageNet's) are of RGB in [0, 1].
    Example: `KerasHubImage(preset="resnet_18_imagenet")`.
    """

    family: ClassVar[str] = "keras_hub_image"

    preset: str | None = None
    class_name: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    size: int = 224
    resize: Literal["squash", "crop", "pad"] = "squash"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    trainable: bool = False

    def __post_init__(self) -> None:
        """Settings take their JSON form at once, so that they survive a bundle unchanged."""
        _normalise(self)
        for name in ("mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """As the settings say; what they leave open comes from the preset."""
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if self.preset and (self.mean is None or self.std is None):
            mean, std = _scaling(self.preset)
        return ImagePreprocessing(self.size, self.resize, self.mean or mean, self.std or std)

    def resolved(self) -> KerasHubImage:
        """The same backbone with everything written in that would otherwise be read from the preset's description."""
        class_name, settings = _architecture(self)
        scaling = self.preprocessing
        return dataclasses.replace(self, class_name=class_name, settings=settings, mean=scaling.mean, std=scaling.std)

    def build(self, load_weights: bool = True) -> keras.Model:
        """The backbone and its pooling."""
        import keras

        backbone = _backbone(self, load_weights)
        pixels = keras.Input((self.size, self.size, 3), name="pixels")
        maps = apply_network(backbone, pixels, self.trainable)
        if isinstance(maps, dict):
            raise _refusal(backbone, "one feature map", ", ".join(sorted(maps)))
        model = keras.Model(pixels, mean_over_positions(maps), name="keras_hub_image")
        model.trainable = self.trainable
        return model


@dataclass(frozen=True)
class KerasHubText:
    """`{"ids", "mask"}` `(B, L)` int32 to the token outputs averaged over the mask, `(B, F)` float32.

    The tokeniser is the preset's WordPiece vocabulary, or without a preset one learned from the training captions. A
    preset with another kind of tokeniser needs `in_graph_tokenizer=True`: the model then takes strings `(B,)`. With
    `pooled` the features are BERT's `pooled_output` instead. Example: `KerasHubText(preset="bert_tiny_en_uncased")`.
    """

    family: ClassVar[str] = "keras_hub_text"

    preset: str | None = None
    class_name: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    max_tokens: int = 64
    in_graph_tokenizer: bool = False
    pooled: bool = False
    trainable: bool = False

    def __post_init__(self) -> None:
        """Settings take their JSON form at once, so that they survive a bundle unchanged."""
        _normalise(self)
        if self.in_graph_tokenizer and not self.preset:
            raise UserError("a preset to take the tokeniser from", repr(self), "name a preset, or learn the tokeniser")

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> CaptionTokenizer | None:
        """The preset's, or one learned from `captions`; None where the graph tokenises."""
        if self.in_graph_tokenizer:
            return None
        if not self.preset:
            vocabulary_size = self.settings.get("vocabulary_size", 8000)
            return CaptionTokenizer.trained(captions(), vocabulary_size, self.max_tokens)
        tokenizer = _preset_tokenizer(self.preset)
        vocabulary = getattr(tokenizer, "vocabulary", None)
        if not isinstance(vocabulary, list) or not getattr(tokenizer, "lowercase", False):
            raise UserError(
                "a preset with an uncased WordPiece tokeniser",
                f"{self.preset} with a {type(tokenizer).__name__}",
                "set in_graph_tokenizer=True",
            )
        return CaptionTokenizer.wordpiece(vocabulary, self.max_tokens)

    def resolved(self) -> KerasHubText:
        """The same backbone with the preset's class and settings written in."""
        class_name, settings = _architecture(self)
        return dataclasses.replace(self, class_name=class_name, settings=settings)

    def build(self, load_weights: bool = True) -> keras.Model:
        """The backbone and mean pooling, behind the preset's tokeniser if that works in the graph."""
        import keras

        backbone = _backbone(self, load_weights)
        if self.in_graph_tokenizer:
            inputs = keras.Input((), dtype="string", name="texts")
            ids, mask = _tokens_layer()(_preset_tokenizer(self.preset), self.max_tokens)(inputs)
        else:
            ids = keras.Input((None,), dtype="int32", name="ids")
            mask = keras.Input((None,), dtype="int32", name="mask")
            inputs = {"ids": ids, "mask": mask}
        known = {"token_ids": ids, "padding_mask": mask, "segment_ids": keras.ops.zeros_like(ids)}
        if not isinstance(backbone.input, dict) or not set(backbone.input) <= set(known):
            raise _refusal(backbone, f"inputs among {', '.join(known)}", str(backbone.input))
        outputs = apply_network(backbone, {name: known[name] for name in backbone.input}, self.trainable)
        outputs = outputs if isinstance(outputs, dict) else {"sequence_output": outputs}
        wanted, axes = ("pooled_output", 2) if self.pooled else ("sequence_output", 3)
        features = outputs.get(wanted)
        if features is None or len(features.shape) != axes:
            raise _refusal(backbone, f"a {wanted} of {axes} axes", str(backbone.output))
        features = keras.ops.cast(features, "float32") if self.pooled else mean_over_mask(features, mask)
        model = keras.Model(inputs, features, name="keras_hub_text")
        model.trainable = self.trainable
        return model

    def write_assets(self, directory: Path) -> list[str]:
        """See `Bundled`."""
        if not self.in_graph_tokenizer:
            return []
        from keras_hub.src.utils.preset_utils import CONFIG_FILE, get_file

        _preset_tokenizer(self.preset).save_to_preset(str(directory / "preset"))
        shutil.copyfile(get_file(self.preset, CONFIG_FILE), directory / "preset" / CONFIG_FILE)  # tells the format
        return ["preset"]


def _normalise(backbone: KerasHubImage | KerasHubText) -> None:
    if not backbone.preset and not backbone.class_name:
        raise UserError("a preset, or a class_name with its settings", "neither", "name one of them")
    object.__setattr__(backbone, "settings", json.loads(json.dumps(backbone.settings)))


def _architecture(backbone: KerasHubImage | KerasHubText) -> tuple[str, dict[str, Any]]:
    """Class name and constructor settings, from the preset's description unless they are given."""
    if backbone.class_name:
        return backbone.class_name, backbone.settings
    network = _from_preset(str(backbone.preset), load_weights=False)
    ignored = ("name", "trainable", "dtype")
    return type(network).__name__, {name: value for name, value in network.get_config().items() if name not in ignored}


def _backbone(backbone: KerasHubImage | KerasHubText, load_weights: bool) -> keras.Model:
    import keras_hub

    if backbone.preset and (load_weights or not backbone.class_name):
        return _from_preset(backbone.preset, load_weights)
    cls: Any = getattr(keras_hub.models, str(backbone.class_name), None)
    if not hasattr(cls, "from_preset"):
        raise UserError("the name of a KerasHub backbone", repr(backbone.class_name), "see keras.io/keras_hub")
    # By `from_config`, since settings that came from a preset may hold serialised Keras objects.
    return cls.from_config(dict(backbone.settings))


def _from_preset(preset: str, load_weights: bool) -> keras.Model:
    import keras_hub

    with _telling_how_to_get(preset):
        return keras_hub.models.Backbone.from_preset(preset, load_weights=load_weights)


@contextlib.contextmanager
def _telling_how_to_get(preset: str) -> Iterator[None]:
    """Turn what KerasHub, and what downloads for it, raise into a `UserError`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError("a KerasHub preset or its directory", f"{preset} ({reason})", how_to_get(preset)) from None


def how_to_get(preset: str) -> str:
    """What to do where a preset cannot be reached."""
    from keras_hub.src.utils.preset_utils import BUILTIN_PRESETS

    handle = BUILTIN_PRESETS[preset]["kaggle_handle"] if preset in BUILTIN_PRESETS else preset
    return how_to_get_from_kaggle(handle) if handle.startswith(KAGGLE) else "correct the name, or check the connection"


@functools.cache
def _scaling(preset: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation that equal the preset's `value * scale + offset`; ImageNet's if it says nothing."""
    import keras_hub
    import numpy as np

    with _telling_how_to_get(preset):
        try:
            converter = keras_hub.layers.ImageConverter.from_preset(preset)
        except (ValueError, FileNotFoundError):  # a preset without one
            return IMAGENET_MEAN, IMAGENET_STD
    scale = np.broadcast_to(1.0 if converter.scale is None else converter.scale, (3,))
    offset = np.broadcast_to(0.0 if converter.offset is None else converter.offset, (3,))
    std = 1.0 / (255.0 * scale)
    mean = -offset * std
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def _preset_tokenizer(preset: str | None) -> Any:
    import keras_hub

    with _telling_how_to_get(str(preset)):
        return keras_hub.models.Tokenizer.from_preset(preset)


def _refusal(backbone: Any, expected: str, received: str) -> UserError:
    return UserError(
        f"a backbone with {expected}", f"{type(backbone).__name__} with {received}", "use another backbone"
    )


@functools.cache
def _tokens_layer() -> type:
    """Defined at first use, so that naming a backbone does not import TensorFlow."""
    import keras
    from keras_hub.layers import StartEndPacker

    class Tokens(keras.layers.Layer):
        """Strings `(B,)` to ids and mask, both `(B, max_tokens)` int32."""

        def __init__(self, tokenizer: Any, max_tokens: int) -> None:
            super().__init__(name="tokens")
            self.tokenizer = tokenizer
            self.packer = StartEndPacker(
                max_tokens,
                start_value=tokenizer.start_token_id,
                end_value=tokenizer.end_token_id,
                pad_value=tokenizer.pad_token_id,
                return_padding_mask=True,
            )

        def call(self, texts: Any) -> Any:
            """See the class."""
            ids, mask = self.packer(self.tokenizer(texts))
            return keras.ops.cast(ids, "int32"), keras.ops.cast(mask, "int32")

        def compute_output_spec(self, texts: Any) -> Any:
            """Known, and not to be traced with strings."""
            shape = (texts.shape[0], self.packer.sequence_length)
            return keras.KerasTensor(shape, "int32"), keras.KerasTensor(shape, "int32")

    return Tokens
