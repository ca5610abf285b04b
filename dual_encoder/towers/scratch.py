"""Small towers that start from random weights, for tests and for people with much data; know no published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from data.errors import UserError
from data.images import ImagePreprocessing
from data.text import CaptionTokenizer
from dual_encoder.towers import Provenance
from dual_encoder.towers.pooling import mean_over_mask, mean_over_positions

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class ScratchImage:
    """A small ConvNeXt (Liu et al. 2022, arXiv:2201.03545): pixels `(B, size, size, 3)` to features `(B, F)`.

    `stages` halvings of the side after the stem, `depth` blocks between them; channels start at `width` and double, so
    F is `width * 2 ** (stages - 1)`. Example: `ScratchImage(size=32, width=16).build()`.
    """

    family: ClassVar[str] = "scratch_image"

    size: int = 64
    width: int = 32
    stages: int = 3
    depth: int = 2
    trainable: bool = True

    def __post_init__(self) -> None:
        """Refuse sides that the stem and the stages cannot halve."""
        reduction = 2**self.stages
        if min(self.width, self.stages, self.depth) < 1 or self.size < 1 or self.size % reduction:
            raise UserError(
                f"positive settings and a size that {reduction} divides", repr(self), "correct the settings"
            )

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """The whole image squeezed to a square, ImageNet's mean and deviation."""
        return ImagePreprocessing(size=self.size)

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the stages."""
        return {f"stage{stage}": f"stage{stage}_block{self.depth - 1}_add" for stage in range(self.stages)}

    @property
    def provenance(self) -> Provenance:
        """No weights but its own."""
        return Provenance("none: trained from random weights", "this training", "none of others")

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way; `keras.utils.set_random_seed` makes them repeatable."""
        import keras
        from keras import layers

        pixels = keras.Input((self.size, self.size, 3), name="pixels")
        x = pixels
        for stage in range(self.stages):
            channels = self.width * 2**stage
            x = layers.Conv2D(channels, 3, 2, padding="same", name=f"stage{stage}_down")(x)
            x = layers.LayerNormalization(epsilon=1e-6, name=f"stage{stage}_norm")(x)
            for block in range(self.depth):
                x = _convnext_block(x, channels, f"stage{stage}_block{block}")
        x = layers.LayerNormalization(epsilon=1e-6, dtype="float32", name="norm")(mean_over_positions(x))
        model = keras.Model(pixels, x, name="scratch_image")
        model.trainable = self.trainable
        return model


def _convnext_block(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    """Look around (depthwise), then mix channels; added to the input."""
    from keras import layers

    y = layers.DepthwiseConv2D(5, padding="same", name=f"{name}_depthwise")(x)
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm")(y)
    y = layers.Dense(4 * channels, activation="gelu", name=f"{name}_widen")(y)
    y = layers.Dense(channels, name=f"{name}_narrow")(y)
    return layers.Add(name=f"{name}_add")([x, y])


@dataclass(frozen=True)
class ScratchText:
    """A small pre-norm Transformer encoder with learned positions: `{"ids", "mask"}` `(B, L)` to features `(B, width)`.

    Its WordPiece vocabulary of at most `vocabulary_size` tokens is learned from the training captions.
    Example: `ScratchText(vocabulary_size=2000, width=64).build()`.
    """

    family: ClassVar[str] = "scratch_text"

    vocabulary_size: int = 8000
    width: int = 128
    layers: int = 2
    heads: int = 4
    max_tokens: int = 32
    dropout: float = 0.1
    trainable: bool = True

    def __post_init__(self) -> None:
        """Refuse a width that the heads cannot share, and captions without room for a word."""
        if self.width < 1 or self.heads < 1 or self.width % self.heads or self.layers < 1 or self.max_tokens < 3:
            raise UserError(
                "a width that heads divides, layers of at least 1 and max_tokens of at least 3",
                repr(self),
                "correct the settings",
            )

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> CaptionTokenizer:
        """A WordPiece vocabulary learned from `captions`."""
        return CaptionTokenizer.trained(captions(), self.vocabulary_size, self.max_tokens)

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the embedding and the layers."""
        return {name: name for name in ("embedding", *(f"layer{number}" for number in range(self.layers)))}

    @property
    def provenance(self) -> Provenance:
        """No weights but its own."""
        return Provenance("none: trained from random weights", "this training", "none of others")

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way; `keras.utils.set_random_seed` makes them repeatable."""
        import keras
        from keras_hub.layers import TokenAndPositionEmbedding

        from dual_encoder.towers.transformer import TransformerBlock

        ids = keras.Input((None,), dtype="int32", name="ids")
        mask = keras.Input((None,), dtype="int32", name="mask")
        x = TokenAndPositionEmbedding(self.vocabulary_size, self.max_tokens, self.width, name="embedding")(ids)
        for number in range(self.layers):
            dropout = self.dropout if self.trainable else 0.0
            x = TransformerBlock(self.heads, dropout=dropout, name=f"layer{number}")(x, padding_mask=mask)
        x = keras.layers.LayerNormalization(name="norm")(x)
        model = keras.Model({"ids": ids, "mask": mask}, mean_over_mask(x, mask), name="scratch_text")
        model.trainable = self.trainable
        return model
