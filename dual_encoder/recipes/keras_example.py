"""The Keras example "Natural language image search with a Dual Encoder" (Salama, 2021), as the baseline.

python -m dual_encoder.train --recipe keras_example --data jsonl:datasets/openstax --out build/keras_example

Its residual heads, its loss, its optimizer and its stopping rule, faithfully; the backbones are those of the other
recipes, so that a comparison is about the recipe. TensorFlow Addons' AdamW, used there, takes 0.001 of every weight off
at each step; Keras multiplies the decay by the learning rate, hence the 1.0 here.

11 s on two CPU cores with features in the cache. Text → image on the 461 test images of openstax, mean of three seeds:
R@1 8.1 %, R@10 41.1 %; with 30 epochs 12.2 % and 43.8 %.
"""

from dual_encoder.losses import KerasExampleLoss
from dual_encoder.model import DualEncoderConfig
from dual_encoder.projection_head import ResidualHead
from dual_encoder.recipe import Recipe, TrainerConfig
from dual_encoder.schedules import ReduceOnPlateau
from dual_encoder.towers.efficientnet_lite import EfficientNetLite
from dual_encoder.towers.minilm import MiniLM

RECIPE = Recipe(
    name="keras_example",
    model=DualEncoderConfig(
        image_backbone=EfficientNetLite("lite0"),
        text_backbone=MiniLM(),
        image_head=ResidualHead(embedding_dim=256, layers=1, dropout=0.1),
        text_head=ResidualHead(embedding_dim=256, layers=1, dropout=0.1),
    ),
    objective=KerasExampleLoss(temperature=0.05),
    trainer=TrainerConfig(
        schedule=ReduceOnPlateau(initial=1e-3, factor=0.2, patience=3),
        epochs=5,
        batch_size=256,
        weight_decay=1.0,
        decay_all=True,
        patience=5,
        monitor="loss",
    ),
    hubness_correction=False,
)
