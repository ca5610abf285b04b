"""Both towers from nothing, small enough for a test: proves the whole chain without any published weight.

python -m dual_encoder.train --recipe tiny_scratch --data emoji --out build/tiny

For a large data set of your own, copy this file and raise width, layers, batch size and epochs.
"""

from dual_encoder.losses import InfoNCE
from dual_encoder.model import DualEncoderConfig
from dual_encoder.projection_head import LinearHead
from dual_encoder.recipe import Recipe, TrainerConfig
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.scratch import ScratchImage, ScratchText

RECIPE = Recipe(
    name="tiny_scratch",
    model=DualEncoderConfig(
        image_backbone=ScratchImage(),
        text_backbone=ScratchText(),
        image_head=LinearHead(embedding_dim=64),
        text_head=LinearHead(embedding_dim=64),
    ),
    objective=InfoNCE(),
    trainer=TrainerConfig(schedule=WarmupCosine(peak=2e-3), epochs=10, batch_size=64, weight_decay=0.01),
)
