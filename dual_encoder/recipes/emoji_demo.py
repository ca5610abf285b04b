"""Emoji drawings and their names: the project's demonstration, trained in seconds on two CPU cores.

python -m dual_encoder.train --recipe emoji_demo --data emoji --out build/demo/model

The `openstax` recipe with less dropout: drawings of one kind need less of it than photographs of everything.
"""

import dataclasses

from dual_encoder.projection_head import AnchoredHead, LinearHead
from dual_encoder.recipes.openstax import RECIPE as OPENSTAX

MODEL = dataclasses.replace(
    OPENSTAX.model,
    image_head=AnchoredHead(trainable=True, dropout=0.2),
    text_head=LinearHead(start_as_identity=True, dropout=0.2),
)

RECIPE = dataclasses.replace(OPENSTAX, name="emoji_demo", model=MODEL).with_settings(batch_size=512, epochs=40)
