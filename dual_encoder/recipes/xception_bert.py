"""The Keras example "Natural language image search with a Dual Encoder" on its own pair: Xception and small BERT.

python -m dual_encoder.train --recipe xception_bert --data jsonl:datasets/openstax --out build/xception_bert

`keras_example` on the two networks that the example uses, both frozen: Xception at 299 × 299 as Keras Applications
publishes it, and BERT with 4 layers of 512 (bert_en_uncased_L-4_H-512_A-8) with its pooled output, as KerasHub does.
Naming this recipe names their weights, 84 MB and 115 MB, which Keras and KerasHub download once; without a connection
the command says what to put where. docs/models.md has the same with TensorFlow Hub's BERT and with other losses.

Without the published weights, no result was measured here.
"""

import dataclasses

from dual_encoder.recipes.keras_example import RECIPE as EXAMPLE
from dual_encoder.towers.keras_applications import KerasApplication
from dual_encoder.towers.keras_hub import KerasHubText

# Written out, so that the recipe can be looked at before the preset is here.
BERT = {"vocabulary_size": 30522, "num_layers": 4, "num_heads": 8, "hidden_dim": 512, "intermediate_dim": 2048}

MODEL = dataclasses.replace(
    EXAMPLE.model,
    image_backbone=KerasApplication("Xception", weights="imagenet", size=299),
    text_backbone=KerasHubText("bert_small_en_uncased", "BertBackbone", BERT, max_tokens=128, pooled=True),
)

RECIPE = dataclasses.replace(EXAMPLE, name="xception_bert", model=MODEL)
