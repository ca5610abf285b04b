"""Varies training images and captions, the same way for the same seed, epoch and row; knows no model and no file.

Mirroring an image turns "left" into "right" and text into nonsense, so images whose captions speak of either are never
mirrored.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from data.errors import TrainingError
from data.images import ImagePreprocessing, decode, normalise, resize
from data.text import clean_caption

# English words of captions whose image must not be mirrored: directions and turning, and what is written or read.
_UNMIRRORED = """
left right lefthand righthand leftmost rightmost leftward leftwards rightward rightwards lefty east eastern west
western clockwise counterclockwise anticlockwise text texts word words letter letters lettering alphabet number
numbers numeral numerals digit digits numbered sign signs signage label labels labeled labelled caption captions
title titled heading headline headlines written writing handwriting handwritten inscription inscribed script font
typed spelled spelling spells read reads reading says saying quote message slogan banner poster newspaper book page
document menu receipt equation equations formula formulas formulae symbol symbols code logo logos brand map maps
chart charts graph graphs plot plots diagram diagrams table tables axis axes flowchart clock clocks watch calendar
keyboard screenshot license licence plate
"""
UNMIRRORED = frozenset(_UNMIRRORED.split())
_WORD = re.compile(r"[a-z]+")
RATIO = 4 / 3  # a crop's sides may change by this against each other


@dataclass(frozen=True)
class Augmentation:
    """What varies from epoch to epoch; everything is off by default.

    crop
        The smallest share of an image's area that is kept (1: all of it). A random part between that and the whole, its
        sides changed against each other by up to 4/3, is resized as the whole would be (Szegedy et al. 2015,
        arXiv:1409.4842, section 6). 0.5 is mild; less may cut away what the caption names.
    flip
        Mirrors every other image, except those with a caption that has a word of `UNMIRRORED`. English words only.
    colour
        Brightness, contrast and saturation are each multiplied by a factor between 1 - colour and 1 + colour.
    word_dropout
        The probability that a word of a caption is left out; one word always stays.
    """

    crop: float = 1.0
    flip: bool = False
    colour: float = 0.0
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0 < self.crop <= 1 or not 0 <= self.colour < 1 or not 0 <= self.word_dropout < 1:
            raise TrainingError(
                "crop in (0, 1], colour and word_dropout in [0, 1)", str(self), "correct the recipe's augmentation"
            )

    @property
    def of_images(self) -> bool:
        """Whether pixels vary."""
        return self.crop < 1 or self.flip or self.colour > 0

    @property
    def of_captions(self) -> bool:
        """Whether words are left out."""
        return self.word_dropout > 0


@dataclass(frozen=True)
class ImageVariation:
    """One draw: the part of the image to keep, as shares of its sides (left, top, right, bottom), and what follows."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirror: bool = False
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of brightness, contrast, saturation


def may_be_mirrored(captions: Sequence[str]) -> bool:
    """Whether no caption has a word that speaks of left and right or of something to be read."""
    return not any(UNMIRRORED & set(_WORD.findall(clean_caption(caption).lower())) for caption in captions)


def row_generator(seed: int, epoch: int, row: int, purpose: int) -> np.random.Generator:
    """Random numbers of one row in one epoch, whatever was drawn before: resume relies on it."""
    return np.random.default_rng((seed, epoch, row, purpose))


def draw_variation(augmentation: Augmentation, mirrored: bool, random: np.random.Generator) -> ImageVariation:
    """How one image varies; `mirrored` says whether it may be. What is off changes no other draw."""
    area, ratio, across, down, flip, *colour = random.random(8)
    kept = augmentation.crop + (1 - augmentation.crop) * area
    stretch = (
        RATIO ** (ratio - 0.5) if augmentation.crop < 1 else 1.0
    )  # of each side; their ratio changes by its square
    width, height = min(1.0, math.sqrt(kept) * stretch), min(1.0, math.sqrt(kept) / stretch)
    left, top = across * (1 - width), down * (1 - height)
    factors = [1 + augmentation.colour * (2 * draw - 1) for draw in colour]
    return ImageVariation(
        (left, top, left + width, top + height),
        augmentation.flip and mirrored and flip < 0.5,
        (factors[0], factors[1], factors[2]),
    )


def varied_pixels(data: bytes, preprocessing: ImagePreprocessing, variation: ImageVariation) -> np.ndarray:
    """Encoded image to a backbone's input, `(size, size, 3)` float32; without variation that of `load_pixels`."""
    preprocessing = dataclasses.replace(preprocessing, mirror=preprocessing.mirror != variation.mirror)
    left, top, right, bottom = variation.box
    enough = math.ceil(preprocessing.enough / min(right - left, bottom - top))  # of what is kept
    pixels = resize(crop(decode(data, enough=enough), variation.box), preprocessing)
    return normalise(jitter(pixels, variation.colour), preprocessing)


def crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The part of `image` inside `box`, in shares of its sides; at least one pixel."""
    width, height = image.size
    left, top = min(width - 1, round(box[0] * width)), min(height - 1, round(box[1] * height))
    right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
    if (left, top, right, bottom) == (0, 0, width, height):
        return image
    return image.crop((left, top, right, bottom))


def jitter(pixels: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """`(H, W, 3)` uint8 with brightness, contrast and saturation multiplied, in this order."""
    if factors == (1.0, 1.0, 1.0):
        return pixels
    image = Image.fromarray(pixels)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        image = enhance(image).enhance(factor)
    return np.asarray(image)


def drop_words(caption: str, probability: float, random: np.random.Generator) -> str:
    """`caption` without each word that the dice take; one at least stays, drawn from all of them."""
    words = caption.split()
    kept = [word for word, draw in zip(words, random.random(len(words)), strict=True) if draw >= probability]
    return " ".join(kept) if kept else words[random.integers(len(words))]
