"""SigLIP's and SigLIP 2's image and text towers (arXiv:2303.15343 and arXiv:2502.14786); know no weight file.

The layers are KerasHub's. Weights are random until a bundle brings its own: `dual_encoder.import_model` makes bundles
from published models. The text projection is the tower's last layer and images have none, so the heads are
`IdentityHead`s. SigLIP 2 with a fixed image size has the same towers as SigLIP, behind another tokeniser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from data.images import ImagePreprocessing, Interpolation, Resize
from data.text import CaptionTokenizer
from dual_encoder.towers.encoder_stack import (
    Activation,
    activation_of,
    check_settings,
    fixed_length_layer,
    group_ends,
    run_stack,
    set_epsilon,
)

if TYPE_CHECKING:
    import keras

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class SiglipImage:
    """Pixels `(B, size, size, 3)` to features `(B, width)`: the patches pooled by attention from a learned query.

    `hidden` is the width inside the MLPs; "gelu_tanh" is GELU's tanh approximation.
    Example: `SiglipImage(size=384, patch=14, width=1152, layers=27, heads=16, hidden=4304)` is SO400M's.
    """

    family: ClassVar[str] = "siglip_image"

    size: int = 224
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "gelu_tanh"
    epsilon: float = 1e-6
    resize: Resize = "squash"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    trainable: bool = False

    def __post_init__(self) -> None:
        """JSON brings lists where tuples were; refuse what cannot be built."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_settings(self, ("size", "patch", "width", "layers", "heads", "hidden"))

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """As the settings say, every pixel decoded, so that it is the reference's to the last bit."""
        return ImagePreprocessing(
            self.size, self.resize, self.mean, self.std, interpolation=self.interpolation, jpeg_margin=0
        )

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the patches and the layers; the pooling belongs to the last."""
        return group_ends("patches", self.layers)

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way."""
        import keras
        from keras_hub.models import SigLIPVisionEncoder

        encoder = SigLIPVisionEncoder(
            patch_size=self.patch,
            hidden_dim=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            intermediate_dim=self.hidden,
            intermediate_activation=activation_of(self.activation, "gelu_approximate"),
            layer_norm_epsilon=self.epsilon,
            image_shape=(self.size, self.size, 3),
            data_format="channels_last",
        )
        set_epsilon([encoder.post_layer_norm], self.epsilon)
        # KerasHub's statement of the shape counts a class token that SigLIP does not have.
        shape = (None, encoder.embedding.num_positions, self.width)
        encoder.embedding.compute_output_shape = lambda pixels_shape: shape
        # KerasHub leaves the query that pools without a name, and Keras numbers such weights per process.
        encoder.head.probe._name, encoder.head.probe._path = "probe", "head/probe"
        pixels = keras.Input((self.size, self.size, 3), name="pixels")
        x = run_stack(self.layer_groups().values(), encoder.embedding(pixels), encoder.encoder_layers)
        features = encoder.head(encoder.post_layer_norm(x))
        model = keras.Model(pixels, keras.ops.cast(features, "float32"), name="siglip_image")
        model.trainable = self.trainable
        return model


@dataclass(frozen=True)
class SiglipText:
    """`{"ids", "mask"}` `(B, L)` int32 to the projected output of the last position, `(B, embedding_dim)`.

    Every text is filled with `pad_id` to `max_tokens`, as in training, and every position sees every other; the filling
    happens inside, so a batch's own padding changes nothing. Without a bundle that brings one, the tokeniser is learned
    from the training captions. Example: `SiglipText(vocabulary_size=256000, pad_id=0)` is SigLIP 2's base size.
    """

    family: ClassVar[str] = "siglip_text"

    vocabulary_size: int = 32000
    max_tokens: int = 64
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    embedding_dim: int = 768
    pad_id: int = 1
    activation: Activation = "gelu_tanh"
    epsilon: float = 1e-6
    trainable: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        counts = ("vocabulary_size", "max_tokens", "width", "layers", "heads", "hidden", "embedding_dim")
        check_settings(self, counts)

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> CaptionTokenizer:
        """One learned from the training captions; a bundle brings the published one."""
        return CaptionTokenizer.trained(captions(), self.vocabulary_size, self.max_tokens)

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the embeddings and the layers; the projection belongs to the last."""
        return group_ends("embeddings", self.layers)

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way."""
        import keras
        from keras_hub.models import SigLIPTextEncoder

        encoder = SigLIPTextEncoder(
            vocabulary_size=self.vocabulary_size,
            embedding_dim=self.width,
            hidden_dim=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            intermediate_dim=self.hidden,
            intermediate_activation=activation_of(self.activation, "gelu_approximate"),
            layer_norm_epsilon=self.epsilon,
            max_sequence_length=self.max_tokens,
            projection_dim=self.embedding_dim,
        )
        ids = keras.Input((None,), dtype="int32", name="ids")
        mask = keras.Input((None,), dtype="int32", name="mask")
        filled = fixed_length_layer()(self.max_tokens, self.pad_id, name="fixed_length")(ids, mask)
        x = run_stack(self.layer_groups().values(), encoder.embedding(filled), encoder.encoder_layers)
        features = encoder.head(encoder.post_layer_norm(x)[:, -1])
        model = keras.Model({"ids": ids, "mask": mask}, keras.ops.cast(features, "float32"), name="siglip_text")
        model.trainable = self.trainable
        return model
