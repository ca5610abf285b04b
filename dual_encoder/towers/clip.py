"""CLIP's image and text towers up to their projections (Radford et al. 2021, arXiv:2103.00020); know no weight file.

The layers are KerasHub's. Weights are random until a bundle brings its own: `dual_encoder.import_model` makes bundles
from published models. The projections are `LinearHead`s: bias-free linear maps, whose direction does not depend on the
features' length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from data.errors import UserError
from data.images import ImagePreprocessing, Interpolation, Resize
from data.text import CaptionTokenizer
from dual_encoder.towers.encoder_stack import (
    Activation,
    activation_of,
    check_settings,
    group_ends,
    last_token,
    run_stack,
    set_epsilon,
)

if TYPE_CHECKING:
    import keras

# Mean and standard deviation of RGB in [0, 1] of CLIP's training images.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipImage:
    """Pixels `(B, size, size, 3)` to features `(B, width)`: the normed output of the class token.

    With `pooling="mean"` the normed outputs of the patches are averaged instead. `hidden` is the width inside the MLPs;
    "gelu_tanh" is GELU's tanh approximation. Example: `ClipImage(size=224, patch=16)` is ViT-B/16.
    """

    family: ClassVar[str] = "clip_image"

    size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    pooling: Literal["class", "mean"] = "class"
    resize: Resize = "shortest_edge"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    trainable: bool = False

    def __post_init__(self) -> None:
        """JSON brings lists where tuples were; refuse what cannot be built."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_settings(self, ("size", "patch", "width", "layers", "heads", "hidden"))
        if self.pooling not in ("class", "mean"):
            raise UserError("pooling class or mean", repr(self.pooling), "correct the settings")

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """As the settings say, every pixel decoded, so that it is the reference's to the last bit."""
        return ImagePreprocessing(
            self.size, self.resize, self.mean, self.std, interpolation=self.interpolation, jpeg_margin=0
        )

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the patches and the layers."""
        return group_ends("patches", self.layers)

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way."""
        import keras
        from keras_hub.models import CLIPVisionEncoder

        encoder = CLIPVisionEncoder(
            patch_size=self.patch,
            hidden_dim=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            intermediate_dim=self.hidden,
            intermediate_activation=activation_of(self.activation, _gelu_tanh),
            image_shape=(self.size, self.size, 3),
            data_format="channels_last",
        )
        positions = encoder.embedding.position_ids
        positions.assign(keras.ops.arange(positions.shape[1], dtype=positions.dtype)[None])  # KerasHub leaves zeros
        set_epsilon([encoder.pre_layer_norm, *encoder.encoder_layers, encoder.layer_norm], self.epsilon)
        pixels = keras.Input((self.size, self.size, 3), name="pixels")
        x = encoder.pre_layer_norm(encoder.embedding(pixels))
        x = run_stack(self.layer_groups().values(), x, encoder.encoder_layers)
        if self.pooling == "class":
            features = encoder.layer_norm(x[:, 0])
        else:
            features = keras.ops.mean(encoder.layer_norm(x)[:, 1:], axis=1)
        model = keras.Model(pixels, keras.ops.cast(features, "float32"), name="clip_image")
        model.trainable = self.trainable
        return model


@dataclass(frozen=True)
class ClipText:
    """`{"ids", "mask"}` `(B, L)` int32 to the normed output of the last token, which ends the text, `(B, width)`.

    No token sees a later one, so padding changes nothing. Without a bundle that brings one, the tokeniser is learned
    from the training captions. Example: `ClipText(width=768, heads=12, hidden=3072)` is ViT-L/14's.
    """

    family: ClassVar[str] = "clip_text"

    vocabulary_size: int = 49408
    max_tokens: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 2048
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    trainable: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_settings(self, ("vocabulary_size", "max_tokens", "width", "layers", "heads", "hidden"))

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> CaptionTokenizer:
        """One learned from the training captions; a bundle brings the published one."""
        return CaptionTokenizer.trained(captions(), self.vocabulary_size, self.max_tokens)

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the embeddings and the layers."""
        return group_ends("embeddings", self.layers)

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way."""
        import keras
        from keras_hub.models import CLIPTextEncoder

        encoder = CLIPTextEncoder(
            vocabulary_size=self.vocabulary_size,
            embedding_dim=self.width,
            hidden_dim=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            intermediate_dim=self.hidden,
            intermediate_activation=activation_of(self.activation, _gelu_tanh),
            max_sequence_length=self.max_tokens,
        )
        set_epsilon([*encoder.encoder_layers, encoder.layer_norm], self.epsilon)
        ids = keras.Input((None,), dtype="int32", name="ids")
        mask = keras.Input((None,), dtype="int32", name="mask")
        x = run_stack(self.layer_groups().values(), encoder.embedding(ids), encoder.encoder_layers)
        features = encoder.layer_norm(last_token(x, mask))
        model = keras.Model({"ids": ids, "mask": mask}, keras.ops.cast(features, "float32"), name="clip_text")
        model.trainable = self.trainable
        return model


def _gelu_tanh(x: object) -> object:
    import keras

    return keras.activations.gelu(x, approximate=True)
