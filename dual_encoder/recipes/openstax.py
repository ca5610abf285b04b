"""Textbook pictures and their alt text: language-anchored head on frozen EfficientNet-Lite0 and MiniLM.

python -m dual_encoder.train --recipe openstax --data jsonl:datasets/openstax --out build/openstax

3,174 training images: 20 s on two CPU cores, and a minute more the first time, for the features. Text → image on the
461 test images, mean of three seeds without hubness correction: R@1 25.6 %, R@10 69.4 %, against 12.2 % and 43.8 % by
`keras_example` with as many epochs.
"""

from dual_encoder.losses import InfoNCE
from dual_encoder.model import DualEncoderConfig
from dual_encoder.projection_head import AnchoredHead, LinearHead
from dual_encoder.recipe import Recipe, TrainerConfig
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.efficientnet_lite import EfficientNetLite
from dual_encoder.towers.minilm import MiniLM

RECIPE = Recipe(
    name="openstax",
    model=DualEncoderConfig(
        image_backbone=EfficientNetLite("lite0"),
        text_backbone=MiniLM(),
        image_head=AnchoredHead(trainable=True, dropout=0.5),
        text_head=LinearHead(start_as_identity=True, dropout=0.5),
    ),
    objective=InfoNCE(initial_scale=20.0),
    trainer=TrainerConfig(schedule=WarmupCosine(peak=3e-3), epochs=30, batch_size=1024, weight_decay=0.05),
    class_prototypes=True,
    mirrored=True,
)
