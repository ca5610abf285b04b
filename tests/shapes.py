"""A dozen coloured shapes as a data set on disk, and recipes small enough to learn it in seconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dual_encoder.losses import InfoNCE
from dual_encoder.model import DualEncoderConfig
from dual_encoder.projection_head import LinearHead
from dual_encoder.recipe import Recipe, TrainerConfig
from dual_encoder.schedules import WarmupCosine
from dual_encoder.towers.scratch import ScratchImage, ScratchText

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 220), "yellow": (240, 220, 30)}
SHAPES = ("circle", "square", "triangle")

# Both towers from nothing, as the recipe tiny_scratch, but smaller.
RECIPE = Recipe(
    name="shapes",
    model=DualEncoderConfig(
        image_backbone=ScratchImage(size=16, width=16, stages=2, depth=1),
        text_backbone=ScratchText(vocabulary_size=100, width=32, layers=1, heads=2, max_tokens=12),
        image_head=LinearHead(embedding_dim=16),
        text_head=LinearHead(embedding_dim=16),
    ),
    objective=InfoNCE(),
    trainer=TrainerConfig(schedule=WarmupCosine(peak=4e-3), epochs=40, batch_size=12, patience=0, monitor="loss"),
)

# The same with frozen towers: only the heads learn, from cached features.
FROZEN = dataclasses.replace(
    RECIPE,
    name="frozen_shapes",
    model=dataclasses.replace(
        RECIPE.model,
        image_backbone=dataclasses.replace(RECIPE.model.image_backbone, trainable=False),  # type: ignore[type-var]
        text_backbone=dataclasses.replace(RECIPE.model.text_backbone, trainable=False),  # type: ignore[type-var]
        image_head=LinearHead(embedding_dim=16, dropout=0.2),
    ),
)


def draw(colour: str, shape: str, shift: int = 0) -> Image.Image:
    image = Image.new("RGB", (48, 40), "white")
    canvas, (left, top) = ImageDraw.Draw(image), (2 + shift, 2 + shift // 3)
    box = (left, top, left + 28, top + 28)
    if shape == "circle":
        canvas.ellipse(box, COLOURS[colour])
    elif shape == "square":
        canvas.rectangle(box, COLOURS[colour])
    else:
        canvas.polygon([(left, top + 28), (left + 28, top + 28), (left + 14, top)], COLOURS[colour])
    return image


SPLITS = ("train", "train", "validation", "train", "test", "train", "train")


def write_shapes(directory: Path, splits: Sequence[str] = SPLITS, **extra: Any) -> str:
    """`jsonl:directory` with every shape once for each of `splits`, further right each time; the source's name."""
    (directory / "images").mkdir(parents=True)
    rows = []
    for shift, split in enumerate(splits):
        for colour in COLOURS:
            for shape in SHAPES:
                path = f"images/{split}-{shift}-{colour}-{shape}.png"
                draw(colour, shape, 2 * shift).save(directory / path)
                captions = [f"a {colour} {shape}", f"{shape}, painted {colour}"]
                rows.append({"image": path, "captions": captions, "split": split, **extra})
    (directory / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return f"jsonl:{directory}"
