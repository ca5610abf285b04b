"""Augmentation varies training images and captions, never what they mean, and comes back exactly after a stop."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data.augmentation import (
    RATIO,
    Augmentation,
    ImageVariation,
    crop,
    draw_variation,
    drop_words,
    jitter,
    may_be_mirrored,
    row_generator,
    varied_pixels,
)
from data.errors import TrainingError
from data.images import ImagePreprocessing, load_pixels
from data.pairs import ImageBytes, ImageTextPair
from data.pipeline import batches
from data.text import CaptionTokenizer

PREPROCESSING = ImagePreprocessing(size=16)
EVERYTHING = Augmentation(crop=0.4, flip=True, colour=0.4, word_dropout=0.3)


def picture(number: int = 0) -> bytes:
    image = Image.new("RGB", (40, 30), (number * 9 % 256, 120, 60))
    ImageDraw.Draw(image).rectangle((0, 0, 15, 29), (250, 240, 20))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PAIRS = [
    ImageTextPair(f"image{n}", ImageBytes(lambda n=n: picture(n)), (f"one red bicycle beside tree {n}", "a bicycle"))
    for n in range(12)
]
TOKENIZER = CaptionTokenizer.trained([c for p in PAIRS for c in p.captions], vocabulary_size=200, max_tokens=12)


def epoch(number: int = 0, augmentation: Augmentation = EVERYTHING, **changes) -> list[dict[str, np.ndarray]]:
    settings = {"batch_size": 4, "seed": 7, "epoch": number, "augmentation": augmentation, **changes}
    return list(batches(PAIRS, PREPROCESSING, TOKENIZER, **settings).as_numpy_iterator())


def assert_equal(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_an_epoch_is_repeated_and_entered_late_exactly() -> None:
    assert_equal(epoch(3), epoch(3))
    assert_equal(epoch(3, start_batch=2), epoch(3)[2:])


def test_images_and_captions_vary_from_epoch_to_epoch() -> None:
    def of_image_0(number: int, augmentation: Augmentation) -> tuple[bytes, int]:
        for batch in epoch(number, augmentation):
            for row, image, mask in zip(batch["image_row"], batch["image"], batch["mask"], strict=True):
                if row == 0:
                    return image.tobytes(), int(mask.sum())
        raise AssertionError

    assert len({of_image_0(number, EVERYTHING)[0] for number in range(6)}) == 6
    words = dataclasses.replace(EVERYTHING, crop=1.0, flip=False, colour=0.0)
    seen = [of_image_0(number, words) for number in range(12)]
    assert len({image for image, _ in seen}) == 1
    assert len({length for _, length in seen}) > 2


def test_without_shuffling_nothing_varies() -> None:
    assert_equal(epoch(shuffle=False), epoch(shuffle=False, augmentation=Augmentation()))


def test_no_variation_is_the_one_preprocessing_path() -> None:
    for resize in ("squash", "crop", "pad"):
        preprocessing = dataclasses.replace(PREPROCESSING, resize=resize)
        varied = varied_pixels(picture(), preprocessing, ImageVariation())
        np.testing.assert_array_equal(varied, load_pixels(picture(), preprocessing))
    mirrored = varied_pixels(picture(), PREPROCESSING, ImageVariation(mirror=True))
    np.testing.assert_array_equal(mirrored, load_pixels(picture(), dataclasses.replace(PREPROCESSING, mirror=True)))


@given(st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_a_crop_lies_inside_and_keeps_enough_of_the_image(smallest: float, seed: int) -> None:
    variation = draw_variation(Augmentation(crop=smallest), True, np.random.default_rng(seed))
    left, top, right, bottom = variation.box
    width, height = right - left, bottom - top
    assert -1e-9 <= left < right <= 1 + 1e-9
    assert -1e-9 <= top < bottom <= 1 + 1e-9
    assert 1 / RATIO - 1e-6 <= width / height <= RATIO + 1e-6
    assert width * height >= smallest / RATIO - 1e-6  # a side that reaches the edge cannot be stretched beyond it
    assert variation.mirror is False
    assert variation.colour == (1.0, 1.0, 1.0)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 1000))
def test_a_crop_of_a_tiny_image_has_a_pixel(width: int, height: int, seed: int) -> None:
    box = draw_variation(Augmentation(crop=0.01), False, np.random.default_rng(seed)).box
    cropped = crop(Image.new("RGB", (width, height)), box)
    assert min(cropped.size) >= 1
    assert cropped.size[0] <= width
    assert cropped.size[1] <= height


def test_a_crop_is_the_named_part_of_the_picture() -> None:
    whole = Image.open(io.BytesIO(picture()))
    part = crop(whole, (0.25, 0.1, 0.75, 0.9))
    np.testing.assert_array_equal(np.asarray(part), np.asarray(whole)[3:27, 10:30])
    assert crop(whole, (0.0, 0.0, 1.0, 1.0)) is whole


def test_half_of_the_images_that_may_be_are_mirrored() -> None:
    drawn = [draw_variation(Augmentation(flip=True), True, row_generator(0, 0, row, 0)).mirror for row in range(400)]
    assert 160 < sum(drawn) < 240
    assert not any(draw_variation(EVERYTHING, False, row_generator(0, 0, row, 0)).mirror for row in range(100))


@pytest.mark.parametrize(
    "captions",
    [
        ["a man looks to the LEFT"],
        ["a cat", "the graph of y = x"],
        ["a stop sign"],
        ["Arrows turn clockwise."],
        ["a left\u00adhanded pitcher throws, right"],
        ["the word\u0000 STOP"],
    ],
)
def test_images_of_directions_and_of_text_are_never_mirrored(captions: list[str]) -> None:
    assert not may_be_mirrored(captions)


def test_other_images_may_be_mirrored() -> None:
    assert may_be_mirrored(["a bright leftover cake", "two readers signal, wordless"])
    assert may_be_mirrored([])


def test_jitter_multiplies_brightness_contrast_and_saturation() -> None:
    pixels = np.random.default_rng(0).integers(60, 120, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(jitter(pixels, (1.5, 1.0, 1.0)), pixels * 1.5, atol=1)
    grey = jitter(pixels, (1.0, 1.0, 0.0))
    assert np.ptp(grey, axis=-1).max() == 0
    flat = jitter(pixels, (1.0, 0.0, 1.0))
    assert np.ptp(flat) == 0
    assert jitter(pixels, (1.0, 1.0, 1.0)) is pixels


@given(st.lists(st.text("abc", min_size=1), min_size=1, max_size=12), st.floats(0, 0.99), st.integers(0, 2**32))
def test_words_are_left_out_in_order_and_never_all(words: list[str], probability: float, seed: int) -> None:
    left = drop_words(" ".join(words), probability, np.random.default_rng(seed)).split()
    assert left
    remaining = iter(words)
    assert all(word in remaining for word in left)  # a subsequence
    if probability == 0:
        assert left == words


def test_words_are_left_out_as_often_as_asked() -> None:
    caption = " ".join(["word"] * 50)
    left = [len(drop_words(caption, 0.3, row_generator(0, 0, row, 1)).split()) for row in range(200)]
    assert np.mean(left) == pytest.approx(35, abs=1)


@pytest.mark.parametrize("wrong", [{"crop": 0.0}, {"crop": 1.1}, {"colour": 1.0}, {"word_dropout": 1.0}])
def test_settings_outside_their_range_are_refused(wrong: dict) -> None:
    with pytest.raises(TrainingError, match="crop in"):
        Augmentation(**wrong)
