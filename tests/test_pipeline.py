"""Training batches hold the right pixels and captions, and come back exactly after an interruption."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data.errors import SourceError
from data.images import ImagePreprocessing, load_pixels
from data.pairs import ImageBytes, ImageTextPair
from data.pipeline import batches
from data.text import CaptionTokenizer

PREPROCESSING = ImagePreprocessing(size=16)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def pair(number: int, *captions: str) -> ImageTextPair:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (number * 9 % 256, 100, 50)).save(buffer, "PNG")
    return ImageTextPair(f"image{number}", ImageBytes(buffer.getvalue), captions)


PAIRS = [
    pair(n, f"picture {WORDS[n % 10]}", f"number {WORDS[n // 10]} {WORDS[n % 10]}", "a picture") for n in range(25)
]
TOKENIZER = CaptionTokenizer.trained([text for p in PAIRS for text in p.captions], vocabulary_size=200, max_tokens=12)


def epoch(number: int = 0, **changes: object) -> list[dict[str, np.ndarray]]:
    settings = {"batch_size": 4, "seed": 7, "epoch": number, **changes}
    pairs = settings.pop("pairs", PAIRS)
    dataset = batches(pairs, PREPROCESSING, TOKENIZER, **settings)  # type: ignore[arg-type]
    return list(dataset.as_numpy_iterator())


def assert_equal(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_an_epoch_shows_every_image_once_with_one_of_its_captions() -> None:
    found = epoch()
    assert [len(batch["image_row"]) for batch in found] == [4] * 6 + [1]
    rows = np.concatenate([batch["image_row"] for batch in found])
    assert sorted(rows) == list(range(25))
    for batch in found:
        assert {key: value.dtype.name for key, value in batch.items()} == {
            "image": "float32",
            "ids": "int32",
            "mask": "int32",
            "image_row": "int32",
            "caption": "int32",
            "caption_group": "int32",
        }
        for position, row in enumerate(batch["image_row"]):
            expected = load_pixels(PAIRS[row].image.read(), PREPROCESSING)
            np.testing.assert_array_equal(batch["image"][position], expected)
            ids = batch["ids"][position][batch["mask"][position] == 1].tolist()
            assert ids in [TOKENIZER.encode([caption]).ids[0].tolist() for caption in PAIRS[row].captions]


def test_seed_and_epoch_decide_everything() -> None:
    assert_equal(epoch(3), epoch(3))
    orders = [np.concatenate([b["image_row"] for b in epoch(n, seed=s)]).tolist() for n, s in ((0, 7), (1, 7), (0, 8))]
    assert len({tuple(order) for order in orders}) == 3


def test_captions_vary_between_epochs() -> None:
    chosen = {
        tuple(batch["ids"][i][batch["mask"][i] == 1])
        for n in range(12)
        for batch in epoch(n, pairs=PAIRS[:1])
        for i in (0,)
    }
    assert len(chosen) == 3


@pytest.mark.parametrize("start", [0, 1, 3, 6, 7, 9])
def test_an_epoch_goes_on_exactly_where_it_stopped(start: int) -> None:
    assert_equal(epoch(2, start_batch=start), epoch(2)[start:])


def test_without_shuffling_the_order_and_the_first_captions_are_kept() -> None:
    found = epoch(shuffle=False)
    assert np.concatenate([batch["image_row"] for batch in found]).tolist() == list(range(25))
    expected = TOKENIZER.encode([PAIRS[n].captions[0] for n in range(4)])
    np.testing.assert_array_equal(found[0]["ids"], expected.ids)
    assert_equal(found, epoch(5, shuffle=False, seed=1))


def test_equal_captions_share_a_group_and_others_do_not() -> None:
    pairs = [pair(0, "a  red cat"), pair(1, "a red cat "), pair(2, "a red car"), pair(3, "A red cat")]
    (batch,) = epoch(pairs=pairs, shuffle=False)
    first, second, third, fourth = batch["caption_group"].tolist()
    assert first == second
    assert len({first, third, fourth}) == 3


def test_a_pair_without_a_caption_is_refused() -> None:
    with pytest.raises(SourceError, match=r"2 of 3 without, such as image1, image2"):
        epoch(pairs=[pair(0, "a cat"), pair(1), pair(2, " ")])
    with pytest.raises(SourceError, match="at least one image"):
        epoch(pairs=[])


def test_an_image_that_cannot_be_decoded_is_named() -> None:
    broken = ImageTextPair("broken.jpg", ImageBytes(lambda: b"not an image"), ("a cat",))
    with pytest.raises(Exception, match=r"image broken\.jpg: expected a JPEG"):
        epoch(pairs=[broken])


def test_shapes_are_known_to_the_graph_where_they_are_fixed() -> None:
    spec = batches(PAIRS, PREPROCESSING, TOKENIZER, 4, 0, 0).element_spec
    assert spec["image"].shape.as_list() == [None, 16, 16, 3]
    assert spec["ids"].shape.as_list() == [None, None]
    assert spec["caption_group"].shape.as_list() == [None]
