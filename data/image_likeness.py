"""What a picture looks like, in 1,168 bytes: two perceptual hashes and a small copy, and how alike two copies are.

Knows no file and no data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from PIL import Image

SIDE, BLOCKS = 32, 8  # a side of the small copy: pixels of lightness, and of each of its two colour differences
BYTES = SIDE * SIDE + 2 * BLOCKS * BLOCKS

# Of the same picture: least correlation of lightness; greatest difference of a block, of 255, in lightness and colour.
ALIKE, LIGHTNESS, COLOUR = 0.93, 16.0, 20.0
HOPELESS = 0.8  # correlation of blocks that no cut mends
CROP = 0.95  # of each side that a cut leaves
GREY, SAME_LIGHTNESS = 4, 4.0  # colour of a picture without any; greatest difference of a block from its coloured one

# What is trusted only of pictures that something else than their look has brought together.
PARTS, PARTS_HOPELESS = (0.95, 0.9, 0.85), 0.2  # of each side that a cut may leave
SPARED = 6  # blocks of another colour: 8 × 8 of them are too coarse to be stretched well
BLOCK_LIGHTNESS, BLOCK_COLOUR = 6.0, 12.0  # mean difference of the pixels of a block that is the same in both
TEXTURE = 4.0  # deviation of its pixels from which a block agrees by no accident
SAME_BLOCKS, TEXTURED_BLOCKS = 54, 44  # of 64

FREQUENCIES = 8
NOTHING = 0.1  # of the waves' root mean square: what those that a symmetric picture lacks stay below
_WAVES = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None] / SIDE)
_MIRRORED = (-1.0) ** np.arange(FREQUENCIES)  # mirroring turns the sign of every other wave


@dataclass(frozen=True)
class Look:
    """The hashes of a picture and of its mirror image, 64 bits each, and its small copy (BYTES,) uint8."""

    hash: int
    mirrored: int
    copy: np.ndarray


def look_of(image: Image.Image) -> Look:
    """The look of an RGB image, whatever its size and aspect ratio.

    The hash is that of Zauner 2010 ("Implementation and benchmarking of perceptual image hash functions"): which of the
    slowest waves of the picture's cosine transform are positive. A wave counts above a tenth of their mean size instead
    of above the median, since half of the waves of a symmetric picture are nothing but noise around zero.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("YCbCr")
    light, *colours = small.split()
    lightness = np.asarray(light)
    coarse = [np.asarray(part.resize((BLOCKS, BLOCKS), Image.Resampling.BOX)) for part in colours]
    waves = _WAVES @ lightness @ _WAVES.T
    waves[0, 0] = 0  # brightness
    least = NOTHING * np.sqrt(np.mean(waves**2))
    copy = np.concatenate([part.ravel() for part in (lightness, *coarse)])
    return Look(_bits(waves > least), _bits(waves * _MIRRORED > least), copy)


def alike(
    one: np.ndarray, other: np.ndarray, crop: float = CROP, hopeless: float = HOPELESS, spared: int = 0
) -> np.ndarray:
    """How alike pictures are by their small copies (P, BYTES): the correlation of lightness (P,), 0 where they differ.

    Pictures differ when the correlation is below `ALIKE`, or when one of 64 blocks differs by more than `LIGHTNESS`,
    once both have the same mean and contrast, or by more than `COLOUR`: another face under the same hat is another
    picture. They are compared as they are, and with one of them cut at its edges to `crop` of its sides, where blocks
    correlate by more than `hopeless`; then `spared` blocks may have another colour. A picture without any colour may be
    a coloured one of the very same lightness.
    """
    one, other = one.astype(np.float32), other.astype(np.float32)
    blocks, other_blocks = _blocks(one), _blocks(other)
    same = np.flatnonzero(_difference(blocks, other_blocks) <= LIGHTNESS)
    best = np.zeros(len(one), np.float32)
    best[same] = _likeness(*_parts(one[same]), *_parts(other[same]))
    near = np.flatnonzero((best == 0) & (_correlation(blocks, other_blocks) > hopeless))
    for whole, cut, seen in ((one, other, other_blocks), (other, one, blocks)):
        cuts = _cuts(crop)
        fits = _difference(_blocks_of_cuts(whole[near], cuts), seen[near, None]) <= LIGHTNESS
        for column, (down, across) in enumerate(product(cuts, cuts)):
            rows = near[fits[:, column]]
            light, colour = _parts(whole[rows])
            stretched = down.light @ light @ across.light.T, down.colour @ colour @ across.colour.T
            best[rows] = np.maximum(best[rows], _likeness(*stretched, *_parts(cut[rows]), spared))
    return best


def alike_in_part(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """As `alike`, for pictures that an embedding takes for the same: cut by up to 15 %, or written over in a corner.

    What is written over is told from a drawing with another detail by its texture: in two thirds of the blocks pixels
    vary, and agree with those of the other picture. Flat drawings agree in their backgrounds by accident.
    """
    best = alike(one, other)
    for crop in PARTS:
        left = np.flatnonzero(best == 0)
        best[left] = alike(one[left], other[left], crop, PARTS_HOPELESS, SPARED)
    left = np.flatnonzero(best == 0)
    best[left] = _alike_but_for_blocks(one[left], other[left])
    return best


def _alike_but_for_blocks(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The share of blocks that are the same, 0 where they are too few or too plain."""
    (light, colour), (other_light, other_colour) = _parts(one.astype(np.float32)), _parts(other.astype(np.float32))
    pixels, others = (part.reshape(-1, BLOCKS, SIDE // BLOCKS, BLOCKS, SIDE // BLOCKS) for part in (light, other_light))
    same = np.abs(pixels - others).mean(axis=(2, 4)) <= BLOCK_LIGHTNESS
    same &= np.abs(colour - other_colour).max(axis=1) <= BLOCK_COLOUR
    textured = same & (np.minimum(pixels.std(axis=(2, 4)), others.std(axis=(2, 4))) >= TEXTURE)
    count = np.count_nonzero(_flat(same), axis=1)
    enough = (count >= SAME_BLOCKS) & (np.count_nonzero(_flat(textured), axis=1) >= TEXTURED_BLOCKS)
    return np.where(enough, count / BLOCKS**2, 0).astype(np.float32)


def mirror(copies: np.ndarray) -> np.ndarray:
    """Small copies (P, BYTES) of the mirror images."""
    light = copies[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE)[:, :, ::-1]
    colour = copies[:, SIDE * SIDE :].reshape(-1, 2, BLOCKS, BLOCKS)[:, :, :, ::-1]
    return np.concatenate([light.reshape(-1, SIDE * SIDE), colour.reshape(-1, BYTES - SIDE * SIDE)], axis=1)


def _parts(copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lightness (P, SIDE, SIDE) and colour (P, 2, BLOCKS, BLOCKS)."""
    light, colour = copies[:, : SIDE * SIDE], copies[:, SIDE * SIDE :]
    return light.reshape(-1, SIDE, SIDE), colour.reshape(-1, 2, BLOCKS, BLOCKS)


def _likeness(
    light: np.ndarray, colour: np.ndarray, other_light: np.ndarray, other_colour: np.ndarray, spared: int = 0
) -> np.ndarray:
    """As `alike`, of pictures as they are, whose blocks agree in lightness."""
    correlation = _correlation(_flat(light), _flat(other_light))
    recoloured = np.count_nonzero(_flat(np.abs(colour - other_colour).max(axis=1) > COLOUR), axis=1) > spared
    recoloured &= ~_greyed(light, colour, other_light, other_colour)
    return np.where(recoloured | (correlation < ALIKE), 0, correlation)


def _greyed(light: np.ndarray, colour: np.ndarray, other_light: np.ndarray, other_colour: np.ndarray) -> np.ndarray:
    """Whether one is the other without its colours, (P,)."""
    grey, other_grey = (np.abs(_flat(part) - 128).max(axis=1, initial=0) <= GREY for part in (colour, other_colour))
    pixels = (light - other_light).reshape(-1, BLOCKS, SIDE // BLOCKS, BLOCKS, SIDE // BLOCKS).mean(axis=(2, 4))
    return (grey ^ other_grey) & (np.abs(_flat(pixels)).max(axis=1, initial=0) <= SAME_LIGHTNESS)


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The greatest difference among values (…, N) brought to the same mean and to the stronger contrast."""
    (one, contrast), (other, other_contrast) = _centred(one), _centred(other)
    differences = one / contrast[..., None] - other / other_contrast[..., None]
    return np.abs(differences, out=differences).max(axis=-1, initial=0) * np.maximum(contrast, other_contrast)


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of rows (P, N)."""
    (one, contrast), (other, other_contrast) = _centred(one), _centred(other)
    return np.einsum("pn,pn->p", one, other) / (one.shape[1] * contrast * other_contrast)


def _centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (…, N) of mean 0, and their standard deviations, never 0."""
    centred = values - values.mean(axis=-1, keepdims=True)
    squares = np.einsum("...n,...n->...", centred, centred)
    return centred, np.maximum(np.sqrt(squares / values.shape[-1]), 1e-3)


def _flat(parts: np.ndarray) -> np.ndarray:
    return parts.reshape(len(parts), int(np.prod(parts.shape[1:])))


def _blocks(copies: np.ndarray) -> np.ndarray:
    """Mean lightness by block, (P, 64)."""
    light, _ = _parts(copies)
    return _flat(light.reshape(-1, BLOCKS, SIDE // BLOCKS, BLOCKS, SIDE // BLOCKS).mean(axis=(2, 4)))


def _blocks_of_cuts(copies: np.ndarray, cuts: list[_Cut]) -> np.ndarray:
    """Mean lightness by block after every cut, (P, 9, 64): two products for all of them."""
    light, _ = _parts(copies)
    pooled = np.concatenate([cut.blocks for cut in cuts])
    across = (light.reshape(-1, SIDE) @ pooled.T).reshape(-1, SIDE, len(pooled)).transpose(0, 2, 1)
    both = (across.reshape(-1, SIDE) @ pooled.T).reshape(-1, len(cuts), BLOCKS, len(cuts), BLOCKS)
    return both.transpose(0, 3, 1, 4, 2).reshape(-1, len(cuts) ** 2, BLOCKS * BLOCKS)


@dataclass(frozen=True)
class _Cut:
    """A part of a row stretched to the whole: matrices for lightness, for colour, and from lightness to blocks."""

    light: np.ndarray
    colour: np.ndarray
    blocks: np.ndarray


@cache
def _cuts(crop: float) -> list[_Cut]:
    """At the end, at both edges alike, and at the beginning."""
    return [_cut(start, crop) for start in (0, (1 - crop) / 2, 1 - crop)]


def _cut(start: float, crop: float) -> _Cut:
    light = _stretch(start, crop, SIDE)
    return _Cut(light, _stretch(start, crop, BLOCKS), light.reshape(BLOCKS, SIDE // BLOCKS, SIDE).mean(axis=1))


def _stretch(start: float, size: float, side: int) -> np.ndarray:
    """A matrix (side, side) that stretches a part of a row, both of 1, over the whole row by linear interpolation."""
    places = start * side + (np.arange(side) + 0.5) * size - 0.5
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(side)), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _bits(signs: np.ndarray) -> int:
    return int.from_bytes(np.packbits(signs.ravel()).tobytes(), "big")
