"""Fine-tuning the top of the image tower: the `openstax` recipe, whose last two stages of EfficientNet-Lite0 train too.

python -m dual_encoder.train --recipe finetune --data jsonl:datasets/openstax --out build/finetune

The text tower and the lower stages stand still and are computed once. The trained stages move slowly, with batch
normalisation as published; docs/benchmarks.md says what each setting brought.
"""

import dataclasses

from dual_encoder.fine_tuning import FineTuning
from dual_encoder.recipe import Recipe
from dual_encoder.recipes.openstax import RECIPE as OPENSTAX
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.efficientnet_lite import EfficientNetLite

RECIPE: Recipe = dataclasses.replace(
    OPENSTAX,
    name="finetune",
    model=dataclasses.replace(OPENSTAX.model, image_backbone=EfficientNetLite("lite0", trainable=True)),
    trainer=dataclasses.replace(
        OPENSTAX.trainer,
        schedule=WarmupCosine(peak=3e-3),
        epochs=10,
        batch_size=256,
        fine_tuning=FineTuning(image_top=2, rate=0.03, rate_decay=0.5),
    ),
    class_prototypes=False,
    mirrored=False,
)
