"""Vision Transformer that starts from random weights, with CLIP's image tower's shapes; knows no published weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from data.errors import UserError
from data.images import ImagePreprocessing

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class VisionTransformer:
    """Pixels `(B, size, size, 3)` to features `(B, width)` (Dosovitskiy et al. 2021, arXiv:2010.11929).

    With `pooling="class"` it is CLIP's image tower up to its projection: a class token, a norm before the blocks, and a
    norm of the class token's output. With `"mean"` there is no class token and the normed patch outputs are averaged.
    Example: `VisionTransformer(size=64, width=64, layers=2, heads=2).build()`; CLIP's ViT-B/32 is
    `VisionTransformer(size=224, patch=32, width=768, layers=12, heads=12, activation="quick_gelu")`.
    """

    family: ClassVar[str] = "vision_transformer"

    size: int = 112
    patch: int = 16
    width: int = 192
    layers: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    pooling: Literal["class", "mean"] = "class"
    dropout: float = 0.0
    trainable: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot be built."""
        counts = (self.size, self.patch, self.width, self.layers, self.heads)
        if min(counts) < 1 or self.size % self.patch or self.width % self.heads or self.mlp_ratio <= 0:
            raise UserError(
                "positive settings, a size that patch divides and a width that heads divides",
                repr(self),
                "correct the settings",
            )
        if self.activation not in ("gelu", "quick_gelu") or self.pooling not in ("class", "mean"):
            raise UserError(
                "activation gelu or quick_gelu and pooling class or mean",
                f"{self.activation!r} and {self.pooling!r}",
                "correct the settings",
            )

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """The whole image squeezed to a square, ImageNet's mean and deviation."""
        return ImagePreprocessing(size=self.size)

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the patches and the layers."""
        return {name: name for name in ("patches", *(f"layer{number}" for number in range(self.layers)))}

    def build(self, load_weights: bool = True) -> keras.Model:
        """Random weights either way; `keras.utils.set_random_seed` makes them repeatable."""
        import keras

        from dual_encoder.towers.patch_embedding import PatchEmbedding
        from dual_encoder.towers.transformer import TransformerBlock

        pixels = keras.Input((self.size, self.size, 3), name="pixels")
        x = PatchEmbedding(self.patch, self.width, self.pooling == "class", name="patches")(pixels)
        for number in range(self.layers):
            x = TransformerBlock(
                self.heads,
                self.mlp_ratio,
                self.activation,
                dropout=self.dropout if self.trainable else 0.0,
                name=f"layer{number}",
            )(x)
        norm = keras.layers.LayerNormalization(epsilon=1e-5, dtype="float32", name="norm")
        features = norm(x[:, 0]) if self.pooling == "class" else keras.ops.mean(norm(x), axis=1)
        model = keras.Model(pixels, features, name="vision_transformer")
        model.trainable = self.trainable
        return model
