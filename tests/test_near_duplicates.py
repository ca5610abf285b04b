"""Copies of a picture are found however they were saved, and pictures that only resemble each other are not joined."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from data.image_likeness import BYTES, Look, look_of
from data.images import decode
from data.near_duplicates import RADIUS, NearDuplicates, within_radius
from data.sources.openmoji import OpenMoji


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return decode(buffer.getvalue())


def cropped(image: Image.Image) -> Image.Image:
    """Without 2.5 % at every edge."""
    width, height = image.size
    return image.crop((round(width * 0.025), round(height * 0.025), round(width * 0.975), round(height * 0.975)))


COPIES = {
    "saved again": jpeg,
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "another shape": lambda image: image.resize((200, 150)),
    "mirrored": ImageOps.mirror,
    "mirrored, saved again": lambda image: jpeg(ImageOps.mirror(image)),
    "cropped": cropped,
    "without colour": lambda image: image.convert("L").convert("RGB"),
}
# What moves the hash too far, but not an embedding.
COPIES_FOR_EMBEDDINGS = {
    "cut at a corner": lambda image: image.crop((0, 0, round(image.width * 0.9), round(image.height * 0.9))),
    "cut at the other corner, mirrored": lambda image: ImageOps.mirror(
        image.crop((round(image.width * 0.07), round(image.height * 0.07), image.width, image.height))
    ),
    "written over": lambda image: written_over(image),
}


def written_over(image: Image.Image) -> Image.Image:
    image = image.copy()
    width, height = image.size
    ImageDraw.Draw(image).rectangle((0.6 * width, 0.88 * height, 0.95 * width, 0.97 * height), "black")
    return image


def landscape(seed: int) -> Image.Image:
    """Texture all over, as a photograph has."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize((160, 120), 3), np.float32)
        for n in (4, 8, 16)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def embeddings(pictures: list[int]) -> np.ndarray:
    """Near each other for images of one picture, at right angles or so for others."""
    noise = np.random.default_rng(7)
    return np.stack([np.random.default_rng(n).normal(size=64) + 0.1 * noise.normal(size=64) for n in pictures])


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    """Forty drawings of animals and things."""
    return [decode(pair.image.read()) for pair in list(OpenMoji())[500:1300:20]]


def found(images: list[Image.Image], embeddings: np.ndarray | None = None) -> set[tuple[int, int, bool]]:
    with NearDuplicates() as looks:
        for image in images:
            looks.add(look_of(image))
        return {(pair.one, pair.other, pair.mirrored) for pair in looks.pairs(embeddings)}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(kind: str, drawings: list[Image.Image]) -> None:
    copies = [COPIES[kind](image) for image in drawings]
    count = len(drawings)
    pairs = {(one, other) for one, other, _ in found([*drawings, *copies])}
    assert all(other == one + count for one, other in pairs), "two different drawings were taken for one"
    assert len(pairs) >= count * (0.85 if kind == "cropped" else 1)


@pytest.mark.parametrize("kind", COPIES_FOR_EMBEDDINGS)
def test_embeddings_find_copies_that_the_hash_does_not(kind: str) -> None:
    count = 30
    images = [landscape(seed) for seed in range(count)]
    images += [COPIES_FOR_EMBEDDINGS[kind](image) for image in images]
    by_hash = {(one, other) for one, other, _ in found(images)}
    pairs = {(one, other) for one, other, _ in found(images, embeddings([*range(count), *range(count)]))}
    assert all(other == one + count for one, other in pairs)
    assert len(pairs) >= 0.8 * count
    assert len(by_hash) < 0.7 * len(pairs)


def test_what_an_embedding_takes_for_the_same_is_looked_at(drawings: list[Image.Image]) -> None:
    """Flags with another emblem, hearts of another colour, and other pictures altogether."""
    plain = Image.new("RGB", (90, 60), "white")
    for n, colour in enumerate(("red", "white", "blue")):
        ImageDraw.Draw(plain).rectangle((30 * n, 0, 30 * n + 29, 59), colour)
    emblem = plain.copy()
    ImageDraw.Draw(emblem).ellipse((38, 22, 52, 38), "green")
    hearts = []
    for colour in ("purple", "grey", "orange", "red"):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), colour, "black", 3)
        hearts.append(image)
    for images in ([plain, emblem], hearts, drawings[:4]):
        assert not found(images, embeddings([0] * len(images)))


def test_a_mirrored_copy_is_said_to_be_mirrored(drawings: list[Image.Image]) -> None:
    asymmetric = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(asymmetric).polygon([(5, 5), (5, 55), (50, 30)], "red")
    assert found([asymmetric, *drawings[:5], ImageOps.mirror(asymmetric)]) == {(0, 6, True)}


def test_plots_with_the_same_axes_stay_apart() -> None:
    """The frame is most of what a small copy shows of a plot."""
    images = []
    for seed in range(60):
        image = Image.new("RGB", (320, 240), "white")
        canvas, random = ImageDraw.Draw(image), np.random.default_rng(seed)
        canvas.line([(30, 10), (30, 210), (310, 210)], "black", 2)
        heights = np.convolve(random.normal(size=60), np.ones(20) / 5, "valid") * 30 + random.uniform(60, 160)
        canvas.line([(30 + 280 * n / 40, float(np.clip(y, 12, 208))) for n, y in enumerate(heights)], "blue", 3)
        images.append(image)
    assert len(found(images)) <= 1


def test_colours_tell_pictures_apart() -> None:
    hearts = []
    for colour in ("red", "green", "blue", "orange", "purple"):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), colour)
        hearts.append(image)
    assert not found(hearts)


def test_one_picture_of_many_images_is_one_set(drawings: list[Image.Image]) -> None:
    """n - 1 pairs connect n images."""
    images = [drawings[0].resize((200 - n, 200 - n)) for n in range(12)] + drawings[1:4]
    pairs = found(images)
    assert len(pairs) == 11
    assert {number for one, other, _ in pairs for number in (one, other)} == set(range(12))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_no_pair_within_the_radius_is_missed_and_each_comes_once(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    centre = random.integers(0, 2**63, 3, np.uint64)
    hashes = np.array([_flipped(int(centre[n % 3]), random, n % (2 * RADIUS)) for n in range(count)], np.uint64)
    other = np.array([_flipped(int(value), random, 8) for value in hashes], np.uint64)

    def near(one: np.uint64, two: np.uint64) -> bool:
        return int(one ^ two).bit_count() <= RADIUS

    pairs = [
        pair for pieces in within_radius(hashes, hashes) for pair in zip(*(p.tolist() for p in pieces), strict=True)
    ]
    assert sorted(pairs) == [(i, j) for i, j in combinations(range(count), 2) if near(hashes[i], hashes[j])]
    pairs = [
        pair for pieces in within_radius(hashes, other) for pair in zip(*(p.tolist() for p in pieces), strict=True)
    ]
    wanted = [(i, j) for i in range(count) for j in range(count) if i != j and near(hashes[i], other[j])]
    assert sorted(pairs) == wanted


def _flipped(value: int, random: np.random.Generator, bits: int) -> int:
    for bit in random.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


def test_images_without_contrast_and_too_few_images_are_no_error() -> None:
    grey = look_of(Image.new("RGB", (50, 50), "grey"))
    with NearDuplicates() as looks:
        assert looks.pairs() == []
        looks.add(grey)
        assert looks.pairs() == []
        looks.add(Look(grey.hash, grey.mirrored, np.zeros(BYTES, np.uint8)))
        assert len(looks) == 2
        assert looks.pairs() == []
